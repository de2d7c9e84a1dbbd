#include "reporting.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace msconv::plugin
{

namespace
{

std::atomic<nvinfer1::ILoggerFinder*> gLoggerFinder{nullptr};

nvinfer1::ILogger* findLogger() noexcept
{
    nvinfer1::ILoggerFinder* const finder = gLoggerFinder.load();
    if (finder == nullptr)
    {
        return nullptr;
    }
    try
    {
        return finder->findLogger(); // not declared noexcept
    }
    catch (...)
    {
        return nullptr;
    }
}

} // namespace

char const* Message::format(char const* pattern, ...) noexcept
{
    va_list arguments;
    va_start(arguments, pattern);
    std::vsnprintf(mText, kSize, pattern, arguments);
    va_end(arguments);
    return mText;
}

char const* Message::append(char const* pattern, ...) noexcept
{
    std::size_t const used = std::strlen(mText);
    va_list arguments;
    va_start(arguments, pattern);
    std::vsnprintf(mText + used, kSize - used, pattern, arguments);
    va_end(arguments);
    return mText;
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gLoggerFinder = finder;
}

Name::Name(char const* name) noexcept
{
    if (name != nullptr)
    {
        std::snprintf(mName, sizeof(mName), "%s", name);
    }
}

void log(nvinfer1::ILogger::Severity severity, Name const& layer, char const* text) noexcept
{
    Message line;
    if (*layer.c_str() == '\0')
    {
        line.format("%s: %s", kName, text);
    }
    else
    {
        line.format("%s '%s': %s", kName, layer.c_str(), text);
    }
    if (nvinfer1::ILogger* const logger = findLogger())
    {
        logger->log(severity, line.data());
    }
    else
    {
        std::fprintf(stderr, "%s\n", line.data());
    }
}

void report(nvinfer1::IErrorRecorder* recorder, nvinfer1::ErrorCode code, Name const& layer, char const* text) noexcept
{
    log(nvinfer1::ILogger::Severity::kERROR, layer, text);
    if (recorder != nullptr)
    {
        char description[nvinfer1::IErrorRecorder::kMAX_DESC_LENGTH + 1];
        std::snprintf(description, sizeof(description), "%s: %s", kName, text);
        recorder->reportError(code, description);
    }
}

} // namespace msconv::plugin
