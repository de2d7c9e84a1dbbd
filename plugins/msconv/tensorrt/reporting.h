// How the plugin says what is wrong: messages in fixed buffers, TensorRT's logger, the error recorder of a context.
#pragma once

#include <cstddef>
#include <exception>

#include "headers.h"

namespace msconv::plugin
{

//! Text of an error. A buffer of its own, so that reporting never allocates.
class Message
{
public:
    //! Formats like printf; what does not fit is cut. Returns the text.
    char const* format(char const* pattern, ...) noexcept __attribute__((format(printf, 2, 3)));

    //! Appends like format().
    char const* append(char const* pattern, ...) noexcept __attribute__((format(printf, 2, 3)));

    char* data() noexcept
    {
        return mText;
    }

    static constexpr std::size_t size() noexcept
    {
        return kSize;
    }

private:
    static constexpr std::size_t kSize = 512;
    char mText[kSize]{};
};

//! Where the logger is found. TensorRT calls it through the entry point of the same name when it loads the library.
void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! A copy of a layer's name or a namespace, cut where it is too long.
class Name
{
public:
    explicit Name(char const* name) noexcept;

    char const* c_str() const noexcept
    {
        return mName;
    }

private:
    char mName[128]{};
};

//! Writes "MSConv2d 'layer': text" to the logger, or to stderr where there is none.
void log(nvinfer1::ILogger::Severity severity, Name const& layer, char const* text) noexcept;

//! Writes an error to the logger and, where there is one, to the error recorder.
void report(nvinfer1::IErrorRecorder* recorder, nvinfer1::ErrorCode code, Name const& layer, char const* text) noexcept;

//! Runs a method's body. Nothing that it throws crosses TensorRT's boundary: it is reported, and `failed` returned.
template <class Result, class Body>
Result guarded(nvinfer1::IErrorRecorder* recorder, Name const& layer, Result failed, Body&& body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        report(recorder, nvinfer1::ErrorCode::kINTERNAL_ERROR, layer, error.what());
    }
    catch (...)
    {
        report(recorder, nvinfer1::ErrorCode::kINTERNAL_ERROR, layer, "an unknown exception");
    }
    return failed;
}

} // namespace msconv::plugin
