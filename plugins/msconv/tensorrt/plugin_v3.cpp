#include "plugin_v3.h"

#if MSCONV_PLUGIN_V3

#include <algorithm>
#include <new>

#include "device.h"
#include "run.h"

namespace msconv::plugin
{

namespace
{

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::ErrorCode;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kFailed = -1;

} // namespace

MSConv2dPluginV3::MSConv2dPluginV3(Attributes const& attributes, Name const& layer) noexcept
    : mAttributes(attributes),
      mLayer(layer)
{
    describe(mAttributes, mDescription, sizeof(mDescription));
}

nvinfer1::IErrorRecorder* MSConv2dPluginV3::recorder() const noexcept
{
    return mContext == nullptr ? nullptr : mContext->getErrorRecorder();
}

int32_t MSConv2dPluginV3::status(char const* error, ErrorCode code) const noexcept
{
    if (error == nullptr)
    {
        return 0;
    }
    report(recorder(), code, mLayer, error);
    return kFailed;
}

nvinfer1::IPluginCapability* MSConv2dPluginV3::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* MSConv2dPluginV3::clone() noexcept
{
    auto* const copy = new (std::nothrow) MSConv2dPluginV3(*this);
    if (copy == nullptr)
    {
        status("no memory for a clone", ErrorCode::kFAILED_ALLOCATION);
        return nullptr;
    }
    copy->mContext = nullptr; // it is this object's
    return copy;
}

nvinfer1::AsciiChar const* MSConv2dPluginV3::getPluginName() const noexcept
{
    return kName;
}

nvinfer1::AsciiChar const* MSConv2dPluginV3::getPluginVersion() const noexcept
{
    return kVersion;
}

nvinfer1::AsciiChar const* MSConv2dPluginV3::getPluginNamespace() const noexcept
{
    return kNamespace;
}

int32_t MSConv2dPluginV3::getNbOutputs() const noexcept
{
    return 1;
}

int32_t MSConv2dPluginV3::getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
    nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(recorder(), mLayer, kFailed,
        [&]
        {
            Message message;
            DataType type{};
            char const* error = checkCounts(mAttributes, nbInputs, nbOutputs, message);
            error = error != nullptr ? error : readType(mAttributes, inputTypes, nbInputs, type, message);
            if (error == nullptr)
            {
                outputTypes[0] = inputTypes[0];
            }
            return status(error, ErrorCode::kINVALID_ARGUMENT);
        });
}

int32_t MSConv2dPluginV3::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const* /* shapeInputs */, int32_t /* nbShapeInputs */, nvinfer1::DimsExprs* outputs,
    int32_t nbOutputs, nvinfer1::IExprBuilder& builder) noexcept
{
    return guarded(recorder(), mLayer, kFailed,
        [&]
        {
            Message message;
            char const* error = checkCounts(mAttributes, nbInputs, nbOutputs, message);
            error = error != nullptr ? error : outputShape(mAttributes, inputs, nbInputs, outputs[0], builder, message);
            return status(error, ErrorCode::kINVALID_ARGUMENT);
        });
}

bool MSConv2dPluginV3::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    Message message;
    return checkCounts(mAttributes, nbInputs, nbOutputs, message) == nullptr && pos >= 0 && pos < nbInputs + nbOutputs
        && supports(inOut[pos].desc, inOut[0].desc);
}

int32_t MSConv2dPluginV3::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
    DynamicPluginTensorDesc const* /* out */, int32_t nbOutputs) noexcept
{
    return guarded(recorder(), mLayer, kFailed,
        [&]
        {
            mTacticCount = 0;
            Message message;
            Problem best;
            Problem upper;
            char const* error = checkCounts(mAttributes, nbInputs, nbOutputs, message);
            if (error == nullptr)
            {
                Inputs const inputs = inputsOf(in, nbInputs, &DynamicPluginTensorDesc::opt);
                error = readProblem(mAttributes, inputs, ShapesAre::kActual, best, message);
            }
            if (error == nullptr)
            {
                Inputs const inputs = inputsOf(in, nbInputs, &DynamicPluginTensorDesc::max);
                error = readProblem(mAttributes, inputs, ShapesAre::kUpper, upper, message);
            }
            int32_t const capability = computeCapability();
            if (error == nullptr && capability == 0)
            {
                error = "there is no CUDA device to choose a path for";
            }
            if (error != nullptr)
            {
                return status(error, ErrorCode::kINVALID_ARGUMENT);
            }
            // A tactic must be able to run every shape of the profile. The smallest may be one that no run can have.
            Path paths[kPathCount]{};
            int32_t const count = availablePaths(best, capability, paths);
            Problem lower;
            Inputs const smallest = inputsOf(in, nbInputs, &DynamicPluginTensorDesc::min);
            bool const hasLower = readProblem(mAttributes, smallest, ShapesAre::kActual, lower, message) == nullptr;
            for (int32_t i = 0; i < count; ++i)
            {
                if (runnablePath(upper, paths[i], capability) == paths[i]
                    && (!hasLower || runnablePath(lower, paths[i], capability) == paths[i]))
                {
                    mTactics[mTacticCount++] = paths[i];
                }
            }
            return 0;
        });
}

size_t MSConv2dPluginV3::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t nbInputs,
    DynamicPluginTensorDesc const* /* out */, int32_t /* nbOutputs */) const noexcept
{
    return guarded(recorder(), mLayer, size_t{0},
        [&]
        {
            Message message;
            Problem upper;
            Inputs const largest = inputsOf(in, nbInputs, &DynamicPluginTensorDesc::max);
            char const* const error = readProblem(mAttributes, largest, ShapesAre::kUpper, upper, message);
            return status(error, ErrorCode::kINVALID_ARGUMENT) == 0 ? workspaceBytes(upper) : size_t{0};
        });
}

int32_t MSConv2dPluginV3::getNbTactics() noexcept
{
    return mTacticCount;
}

int32_t MSConv2dPluginV3::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept
{
    if (nbTactics != mTacticCount)
    {
        return status("TensorRT asks for another number of tactics than it was told", ErrorCode::kINVALID_STATE);
    }
    std::transform(mTactics, mTactics + nbTactics, tactics, [](Path path) { return static_cast<int32_t>(path); });
    return 0;
}

char const* MSConv2dPluginV3::getTimingCacheID() noexcept
{
    return mDescription;
}

char const* MSConv2dPluginV3::getMetadataString() noexcept
{
    return mDescription;
}

int32_t MSConv2dPluginV3::setTactic(int32_t tactic) noexcept
{
    if (tactic < 0 || tactic > kPathCount)
    {
        Message message;
        return status(message.format("tactic %d is unknown; the plan is from another version of the plugin", tactic),
            ErrorCode::kINVALID_ARGUMENT);
    }
    mTactic = static_cast<Path>(tactic);
    return 0;
}

int32_t MSConv2dPluginV3::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out, int32_t nbOutputs) noexcept
{
    return guarded(recorder(), mLayer, kFailed,
        [&]
        {
            Message message;
            Problem problem;
            char const* const error = readRun(mAttributes, in, nbInputs, out, nbOutputs, problem, message);
            if (error == nullptr && runnablePath(problem, mTactic, computeCapability()) != mTactic)
            {
                message.format(
                    "path %d, which the engine was built with, cannot run this device or shape; another is taken",
                    static_cast<int32_t>(mTactic));
                log(nvinfer1::ILogger::Severity::kWARNING, mLayer, message.data());
            }
            return status(error, ErrorCode::kINVALID_ARGUMENT);
        });
}

int32_t MSConv2dPluginV3::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(recorder(), mLayer, kFailed,
        [&]
        {
            Message message;
            Problem problem;
            char const* error =
                readRun(mAttributes, inputDesc, inputCount(mAttributes), outputDesc, 1, problem, message);
            if (error != nullptr)
            {
                return status(error, ErrorCode::kINVALID_ARGUMENT);
            }
            int32_t const capability = computeCapability();
            Path const path = runnablePath(problem, mTactic, capability);
            error = run(problem, inputs, outputs, workspace, path, capability, stream, message);
            return status(error, ErrorCode::kFAILED_EXECUTION);
        });
}

nvinfer1::IPluginV3* MSConv2dPluginV3::attachToContext(nvinfer1::IPluginResourceContext* context) noexcept
{
    auto* const attached = static_cast<MSConv2dPluginV3*>(clone());
    if (attached != nullptr)
    {
        attached->mContext = context;
    }
    return attached;
}

nvinfer1::PluginFieldCollection const* MSConv2dPluginV3::getFieldsToSerialize() noexcept
{
    fieldsOf(mAttributes, mFields);
    mFieldCollection = {kFieldCount, mFields};
    return &mFieldCollection;
}

nvinfer1::AsciiChar const* MSConv2dCreatorV3::getPluginName() const noexcept
{
    return kName;
}

nvinfer1::AsciiChar const* MSConv2dCreatorV3::getPluginVersion() const noexcept
{
    return kVersion;
}

nvinfer1::AsciiChar const* MSConv2dCreatorV3::getPluginNamespace() const noexcept
{
    return kNamespace;
}

nvinfer1::PluginFieldCollection const* MSConv2dCreatorV3::getFieldNames() noexcept
{
    return fieldNames();
}

nvinfer1::IPluginV3* MSConv2dCreatorV3::createPlugin(
    nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc, nvinfer1::TensorRTPhase phase) noexcept
{
    Name const layer(name);
    return guarded(nullptr, layer, static_cast<nvinfer1::IPluginV3*>(nullptr),
        [&]() -> nvinfer1::IPluginV3*
        {
            Message message;
            Attributes attributes;
            FieldsOf const origin = phase == nvinfer1::TensorRTPhase::kRUNTIME ? FieldsOf::kPlan : FieldsOf::kModel;
            if (char const* const error = readFields(fc, origin, attributes, message))
            {
                report(nullptr, ErrorCode::kINVALID_ARGUMENT, layer, error);
                return nullptr;
            }
            return new MSConv2dPluginV3(attributes, layer);
        });
}

} // namespace msconv::plugin

#endif
