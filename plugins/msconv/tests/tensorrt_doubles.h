// TensorRT's side of a plugin, as little of it as the plugin's tests need: expressions, a logger, an error recorder.
#pragma once

#include <deque>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../tensorrt/headers.h"

namespace msconv::test
{

using Extent = std::remove_reference_t<decltype(nvinfer1::Dims{}.d[0])>; //!< int32_t in 8.6, int64_t later

//! An expression that is evaluated at once: a value, and whether TensorRT would know it while it builds.
class Expression final : public nvinfer1::IDimensionExpr
{
public:
    Expression(Extent value, bool constant) : mValues(value, constant)
    {
        mImpl = &mValues;
    }

    Extent value() const
    {
        return mValues.value;
    }

private:
    struct Values final : public nvinfer1::apiv::VDimensionExpr
    {
        Values(Extent value, bool constant) : value(value), constant(constant) {}

        bool isConstant() const override
        {
            return constant;
        }

        Extent getConstantValue() const override
        {
            if (!constant)
            {
                throw std::logic_error("the value of an expression that is not constant");
            }
            return value;
        }

#if MSCONV_PLUGIN_V3
        bool isSizeTensor() const override
        {
            return false;
        }
#endif

        Extent value;
        bool constant;
    };

    Values mValues;
};

class ExpressionBuilder final : public nvinfer1::IExprBuilder
{
public:
    ExpressionBuilder()
    {
        mImpl = &mMaker;
    }

    Expression const* make(Extent value, bool constant)
    {
        return mMaker.make(value, constant);
    }

private:
    struct Maker final : public nvinfer1::apiv::VExprBuilder
    {
        Expression const* make(Extent value, bool constant)
        {
            return &made.emplace_back(value, constant);
        }

        nvinfer1::IDimensionExpr const* constant(Extent value) override
        {
            return make(value, true);
        }

        nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation operation,
            nvinfer1::IDimensionExpr const& first, nvinfer1::IDimensionExpr const& second) override
        {
            auto const& a = static_cast<Expression const&>(first);
            auto const& b = static_cast<Expression const&>(second);
            return make(evaluate(operation, a.value(), b.value()), a.isConstant() && b.isConstant());
        }

#if MSCONV_PLUGIN_V3
        nvinfer1::IDimensionExpr const* declareSizeTensor(
            int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override
        {
            throw std::logic_error("the operator has no size tensor");
        }
#endif

        static Extent evaluate(nvinfer1::DimensionOperation operation, Extent a, Extent b)
        {
            switch (operation)
            {
            case nvinfer1::DimensionOperation::kSUM: return a + b;
            case nvinfer1::DimensionOperation::kPROD: return a * b;
            case nvinfer1::DimensionOperation::kMAX: return a > b ? a : b;
            case nvinfer1::DimensionOperation::kMIN: return a < b ? a : b;
            case nvinfer1::DimensionOperation::kSUB: return a - b;
            case nvinfer1::DimensionOperation::kFLOOR_DIV: return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
            default: throw std::logic_error("an operation that this test does not know");
            }
        }

        std::deque<Expression> made;
    };

    Maker mMaker;
};

//! Keeps what the plugin says.
class Logger final : public nvinfer1::ILogger
{
public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        (severity == Severity::kERROR ? errors : others).emplace_back(message);
    }

    std::vector<std::string> errors;
    std::vector<std::string> others;
};

class LoggerFinder final : public nvinfer1::ILoggerFinder
{
public:
    nvinfer1::ILogger* findLogger() override
    {
        return &logger;
    }

    Logger logger;
};

class ErrorRecorder final : public nvinfer1::IErrorRecorder
{
public:
    int32_t getNbErrors() const noexcept override
    {
        return static_cast<int32_t>(errors.size());
    }

    nvinfer1::ErrorCode getErrorCode(int32_t index) const noexcept override
    {
        return codes[index];
    }

    ErrorDesc getErrorDesc(int32_t index) const noexcept override
    {
        return errors[index].c_str();
    }

    bool hasOverflowed() const noexcept override
    {
        return false;
    }

    void clear() noexcept override
    {
        errors.clear();
        codes.clear();
    }

    bool reportError(nvinfer1::ErrorCode code, ErrorDesc description) noexcept override
    {
        codes.push_back(code);
        errors.emplace_back(description);
        return true;
    }

    RefCount incRefCount() noexcept override
    {
        return 1;
    }

    RefCount decRefCount() noexcept override
    {
        return 0;
    }

    std::vector<std::string> errors;
    std::vector<nvinfer1::ErrorCode> codes;
};

#if MSCONV_PLUGIN_V3

class ResourceContext final : public nvinfer1::IPluginResourceContext
{
public:
    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }

    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return recorder;
    }

    ErrorRecorder* recorder{};
};

#endif

} // namespace msconv::test
