#include "plugin_v2.h"

#if !MSCONV_PLUGIN_V3

#include <cstring>
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

//! What a plan holds of a layer: a mark with the layout's version, then the values of all fields in their order.
constexpr char kMark[8] = {'M', 'S', 'C', 'o', 'n', 'v', '2', '1'};
constexpr std::size_t kValueSize = 4;

std::size_t bytesOf(nvinfer1::PluginField const& field) noexcept
{
    return static_cast<std::size_t>(field.length) * kValueSize;
}

std::size_t planSize() noexcept
{
    nvinfer1::PluginFieldCollection const& names = *fieldNames();
    std::size_t size = sizeof(kMark);
    for (int32_t i = 0; i < names.nbFields; ++i)
    {
        size += bytesOf(names.fields[i]);
    }
    return size;
}

} // namespace

MSConv2dPluginV2::MSConv2dPluginV2(Attributes const& attributes, Name const& layer) noexcept
    : mAttributes(attributes),
      mLayer(layer),
      mInputs(inputCount(attributes))
{
}

int32_t MSConv2dPluginV2::status(char const* error, ErrorCode code) const noexcept
{
    if (error == nullptr)
    {
        return 0;
    }
    report(nullptr, code, mLayer, error);
    return kFailed;
}

nvinfer1::AsciiChar const* MSConv2dPluginV2::getPluginType() const noexcept
{
    return kName;
}

nvinfer1::AsciiChar const* MSConv2dPluginV2::getPluginVersion() const noexcept
{
    return kVersion;
}

int32_t MSConv2dPluginV2::getNbOutputs() const noexcept
{
    return 1;
}

int32_t MSConv2dPluginV2::initialize() noexcept
{
    return 0;
}

void MSConv2dPluginV2::terminate() noexcept {}

size_t MSConv2dPluginV2::getSerializationSize() const noexcept
{
    return planSize();
}

void MSConv2dPluginV2::serialize(void* buffer) const noexcept
{
    nvinfer1::PluginField fields[kFieldCount];
    fieldsOf(mAttributes, fields);
    auto* at = static_cast<char*>(buffer);
    std::memcpy(at, kMark, sizeof(kMark));
    at += sizeof(kMark);
    for (nvinfer1::PluginField const& field : fields)
    {
        std::memcpy(at, field.data, bytesOf(field));
        at += bytesOf(field);
    }
}

void MSConv2dPluginV2::destroy() noexcept
{
    delete this;
}

void MSConv2dPluginV2::setPluginNamespace(nvinfer1::AsciiChar const* pluginNamespace) noexcept
{
    mNamespace = Name(pluginNamespace);
}

nvinfer1::AsciiChar const* MSConv2dPluginV2::getPluginNamespace() const noexcept
{
    return mNamespace.c_str();
}

nvinfer1::DataType MSConv2dPluginV2::getOutputDataType(
    int32_t /* index */, nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    Message message;
    DataType type{};
    status(readType(mAttributes, inputTypes, nbInputs, type, message), ErrorCode::kINVALID_ARGUMENT);
    return inputTypes[0];
}

nvinfer1::IPluginV2DynamicExt* MSConv2dPluginV2::clone() const noexcept
{
    auto* const copy = new (std::nothrow) MSConv2dPluginV2(*this);
    if (copy == nullptr)
    {
        status("no memory for a clone", ErrorCode::kFAILED_ALLOCATION);
    }
    return copy;
}

nvinfer1::DimsExprs MSConv2dPluginV2::getOutputDimensions(int32_t /* outputIndex */, nvinfer1::DimsExprs const* inputs,
    int32_t nbInputs, nvinfer1::IExprBuilder& builder) noexcept
{
    return guarded(nullptr, mLayer, nvinfer1::DimsExprs{-1, {}},
        [&]
        {
            Message message;
            nvinfer1::DimsExprs output{};
            char const* const error = outputShape(mAttributes, inputs, nbInputs, output, builder, message);
            return status(error, ErrorCode::kINVALID_ARGUMENT) == 0 ? output : nvinfer1::DimsExprs{-1, {}};
        });
}

bool MSConv2dPluginV2::supportsFormatCombination(
    int32_t pos, PluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    Message message;
    return checkCounts(mAttributes, nbInputs, nbOutputs, message) == nullptr && pos >= 0 && pos < nbInputs + nbOutputs
        && supports(inOut[pos], inOut[0]);
}

void MSConv2dPluginV2::configurePlugin(DynamicPluginTensorDesc const* /* in */, int32_t nbInputs,
    DynamicPluginTensorDesc const* /* out */, int32_t nbOutputs) noexcept
{
    mInputs = nbInputs;
    Message message;
    status(checkCounts(mAttributes, nbInputs, nbOutputs, message), ErrorCode::kINVALID_ARGUMENT);
}

size_t MSConv2dPluginV2::getWorkspaceSize(PluginTensorDesc const* inputs, int32_t nbInputs,
    PluginTensorDesc const* /* outputs */, int32_t /* nbOutputs */) const noexcept
{
    return guarded(nullptr, mLayer, size_t{0},
        [&]
        {
            Message message;
            Problem upper;
            char const* const error =
                readProblem(mAttributes, inputsOf(inputs, nbInputs), ShapesAre::kUpper, upper, message);
            return status(error, ErrorCode::kINVALID_ARGUMENT) == 0 ? workspaceBytes(upper) : size_t{0};
        });
}

int32_t MSConv2dPluginV2::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(nullptr, mLayer, kFailed,
        [&]
        {
            Message message;
            Problem problem;
            char const* error = readRun(mAttributes, inputDesc, mInputs, outputDesc, 1, problem, message);
            if (error != nullptr)
            {
                return status(error, ErrorCode::kINVALID_ARGUMENT);
            }
            error = run(problem, inputs, outputs, workspace, Path::kChoose, computeCapability(), stream, message);
            return status(error, ErrorCode::kFAILED_EXECUTION);
        });
}

nvinfer1::AsciiChar const* MSConv2dCreatorV2::getPluginName() const noexcept
{
    return kName;
}

nvinfer1::AsciiChar const* MSConv2dCreatorV2::getPluginVersion() const noexcept
{
    return kVersion;
}

nvinfer1::PluginFieldCollection const* MSConv2dCreatorV2::getFieldNames() noexcept
{
    return fieldNames();
}

nvinfer1::IPluginV2* MSConv2dCreatorV2::createPlugin(
    nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc) noexcept
{
    Name const layer(name);
    return guarded(nullptr, layer, static_cast<nvinfer1::IPluginV2*>(nullptr),
        [&]() -> nvinfer1::IPluginV2*
        {
            Message message;
            Attributes attributes;
            if (char const* const error = readFields(fc, FieldsOf::kModel, attributes, message))
            {
                report(nullptr, ErrorCode::kINVALID_ARGUMENT, layer, error);
                return nullptr;
            }
            auto* const plugin = new MSConv2dPluginV2(attributes, layer);
            plugin->setPluginNamespace(getPluginNamespace());
            return plugin;
        });
}

nvinfer1::IPluginV2* MSConv2dCreatorV2::deserializePlugin(
    nvinfer1::AsciiChar const* name, void const* serialData, size_t serialLength) noexcept
{
    Name const layer(name);
    return guarded(nullptr, layer, static_cast<nvinfer1::IPluginV2*>(nullptr),
        [&]() -> nvinfer1::IPluginV2*
        {
            if (serialData == nullptr || serialLength != planSize()
                || std::memcmp(serialData, kMark, sizeof(kMark)) != 0)
            {
                report(nullptr, ErrorCode::kINVALID_ARGUMENT, layer,
                    "the plan is from another version of the plugin: its attributes are not as this version writes "
                    "them");
                return nullptr;
            }
            Message message;
            Attributes attributes;
            nvinfer1::PluginFieldCollection const& names = *fieldNames();
            nvinfer1::PluginField fields[kFieldCount];
            auto const* at = static_cast<char const*>(serialData) + sizeof(kMark);
            for (int32_t i = 0; i < kFieldCount; ++i)
            {
                fields[i] = names.fields[i];
                fields[i].data = at;
                at += bytesOf(fields[i]);
            }
            nvinfer1::PluginFieldCollection const collection{kFieldCount, fields};
            if (char const* const error = readFields(&collection, FieldsOf::kPlan, attributes, message))
            {
                report(nullptr, ErrorCode::kINVALID_ARGUMENT, layer, error);
                return nullptr;
            }
            auto* const plugin = new MSConv2dPluginV2(attributes, layer);
            plugin->setPluginNamespace(getPluginNamespace());
            return plugin;
        });
}

void MSConv2dCreatorV2::setPluginNamespace(nvinfer1::AsciiChar const* pluginNamespace) noexcept
{
    mNamespace = Name(pluginNamespace);
}

nvinfer1::AsciiChar const* MSConv2dCreatorV2::getPluginNamespace() const noexcept
{
    return mNamespace.c_str();
}

} // namespace msconv::plugin

#endif
