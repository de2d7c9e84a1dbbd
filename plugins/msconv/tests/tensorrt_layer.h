// A layer as the plugin's tests use it, over both plugin interfaces. It goes through the library's entry points only.
#pragma once

#include <cstring>
#include <memory>
#include <optional>

#include "tensorrt_doubles.h"
#include "tensorrt_kernels_double.h"

#if MSCONV_PLUGIN_V3
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators);
#else
extern "C" nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& nbCreators);
#endif
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace msconv::test
{

//! A field with values of its own.
struct OwnedField
{
    std::string name;
    nvinfer1::PluginFieldType type;
    int32_t length;
    std::string bytes;
};

using OwnedFields = std::vector<OwnedField>;

template <class Value>
OwnedField makeField(std::string name, nvinfer1::PluginFieldType type, std::vector<Value> const& values)
{
    std::string bytes(reinterpret_cast<char const*>(values.data()), values.size() * sizeof(Value));
    return {std::move(name), type, static_cast<int32_t>(values.size()), std::move(bytes)};
}

inline OwnedField ints(std::string name, std::vector<int32_t> const& values)
{
    return makeField(std::move(name), nvinfer1::PluginFieldType::kINT32, values);
}

inline OwnedField floats(std::string name, std::vector<float> const& values)
{
    return makeField(std::move(name), nvinfer1::PluginFieldType::kFLOAT32, values);
}

//! Copies fields as a plan keeps them. `width` is what TensorRT takes a value of the declared type to have.
inline OwnedFields copyOf(nvinfer1::PluginFieldCollection const& fields)
{
    OwnedFields copies;
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        nvinfer1::PluginField const& field = fields.fields[i];
        bool const wide =
            field.type == nvinfer1::PluginFieldType::kINT32 || field.type == nvinfer1::PluginFieldType::kFLOAT32;
        std::size_t const size = field.length * (wide ? 4 : 1);
        copies.push_back(
            {field.name, field.type, field.length, std::string(static_cast<char const*>(field.data), size)});
    }
    return copies;
}

class FieldView
{
public:
    explicit FieldView(OwnedFields const& fields)
    {
        for (OwnedField const& field : fields)
        {
            mFields.emplace_back(
                field.name.c_str(), field.bytes.empty() ? nullptr : field.bytes.data(), field.type, field.length);
        }
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

    nvinfer1::PluginFieldCollection const* get() const
    {
        return &mCollection;
    }

private:
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

using Shape = std::vector<int64_t>;

inline nvinfer1::Dims dimsOf(Shape const& shape)
{
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i)
    {
        dims.d[i] = static_cast<Extent>(shape[i]);
    }
    return dims;
}

inline nvinfer1::PluginTensorDesc linear(Shape const& shape, nvinfer1::DataType type)
{
    return {dimsOf(shape), type, nvinfer1::TensorFormat::kLINEAR, 1.0F};
}

#if MSCONV_PLUGIN_V3

inline nvinfer1::IPluginCreatorV3One& creatorOf()
{
    int32_t count = 0;
    auto* const* const creators = getCreators(count);
    if (count != 1)
    {
        throw std::logic_error("the library must have one creator");
    }
    return static_cast<nvinfer1::IPluginCreatorV3One&>(*creators[0]);
}

using Plugin = nvinfer1::IPluginV3;

struct Destroy
{
    void operator()(Plugin* plugin) const
    {
        delete plugin;
    }
};

#else

inline nvinfer1::IPluginCreator& creatorOf()
{
    int32_t count = 0;
    auto* const* const creators = getPluginCreators(count);
    if (count != 1)
    {
        throw std::logic_error("the library must have one creator");
    }
    return *creators[0];
}

using Plugin = nvinfer1::IPluginV2DynamicExt;

struct Destroy
{
    void operator()(Plugin* plugin) const
    {
        plugin->destroy();
    }
};

#endif

//! Smallest, best and largest shapes of all inputs.
struct Profile
{
    std::vector<Shape> min;
    std::vector<Shape> opt;
    std::vector<Shape> max;
};

class Layer
{
public:
    explicit Layer(Plugin* plugin) : mPlugin(plugin) {}

    //! Null where the creator refuses.
    static std::unique_ptr<Layer> create(OwnedFields const& fields)
    {
        FieldView const view(fields);
#if MSCONV_PLUGIN_V3
        return owned(creatorOf().createPlugin("layer", view.get(), nvinfer1::TensorRTPhase::kBUILD));
#else
        return owned(static_cast<Plugin*>(creatorOf().createPlugin("layer", view.get())));
#endif
    }

    std::unique_ptr<Layer> clone() const
    {
        return owned(mPlugin->clone());
    }

    //! Written to a plan and read again. Null where the creator refuses.
    std::unique_ptr<Layer> reloaded() const
    {
#if MSCONV_PLUGIN_V3
        OwnedFields const kept = copyOf(*runtime().getFieldsToSerialize());
        FieldView const view(kept);
        return owned(creatorOf().createPlugin("layer", view.get(), nvinfer1::TensorRTPhase::kRUNTIME));
#else
        std::string plan(mPlugin->getSerializationSize(), '\0');
        mPlugin->serialize(plan.data());
        return owned(static_cast<Plugin*>(creatorOf().deserializePlugin("layer", plan.data(), plan.size())));
#endif
    }

    //! What a plan holds, as a string that is equal for equal layers.
    std::string state() const
    {
#if MSCONV_PLUGIN_V3
        std::string all;
        for (OwnedField const& field : copyOf(*runtime().getFieldsToSerialize()))
        {
            all += field.name + ':' + field.bytes + ';';
        }
        return all;
#else
        std::string plan(mPlugin->getSerializationSize(), '\0');
        mPlugin->serialize(plan.data());
        return plan;
#endif
    }

    //! Output shape, or nothing where the plugin refuses.
    std::optional<Shape> outputShape(std::vector<Shape> const& inputs, int32_t sources, bool dynamic)
    {
        ExpressionBuilder builder;
        std::vector<nvinfer1::DimsExprs> shapes(inputs.size());
        for (std::size_t i = 0; i < inputs.size(); ++i)
        {
            shapes[i].nbDims = static_cast<int32_t>(inputs[i].size());
            for (std::size_t axis = 0; axis < inputs[i].size(); ++axis)
            {
                bool const known = !dynamic || static_cast<int32_t>(i) >= sources || axis == 1;
                shapes[i].d[axis] = builder.make(static_cast<Extent>(inputs[i][axis]), known);
            }
        }
        nvinfer1::DimsExprs output{};
        int32_t const count = static_cast<int32_t>(inputs.size());
#if MSCONV_PLUGIN_V3
        if (build().getOutputShapes(shapes.data(), count, nullptr, 0, &output, 1, builder) != 0)
        {
            return std::nullopt;
        }
#else
        output = mPlugin->getOutputDimensions(0, shapes.data(), count, builder);
        if (output.nbDims < 0)
        {
            return std::nullopt;
        }
#endif
        Shape shape;
        for (int32_t axis = 0; axis < output.nbDims; ++axis)
        {
            shape.push_back(static_cast<Expression const*>(output.d[axis])->value());
        }
        return shape;
    }

    //! Can the tensor at each position have this type and format, given those before it?
    std::vector<bool> supports(std::vector<nvinfer1::PluginTensorDesc> const& tensors)
    {
        std::vector<bool> answers;
        int32_t const inputs = static_cast<int32_t>(tensors.size()) - 1;
        for (int32_t position = 0; position <= inputs; ++position)
        {
#if MSCONV_PLUGIN_V3
            std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic;
            for (nvinfer1::PluginTensorDesc const& tensor : tensors)
            {
                dynamic.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
            }
            answers.push_back(build().supportsFormatCombination(position, dynamic.data(), inputs, 1));
#else
            answers.push_back(mPlugin->supportsFormatCombination(position, tensors.data(), inputs, 1));
#endif
        }
        return answers;
    }

    std::optional<nvinfer1::DataType> outputType(std::vector<nvinfer1::DataType> const& types)
    {
        int32_t const count = static_cast<int32_t>(types.size());
#if MSCONV_PLUGIN_V3
        nvinfer1::DataType type{};
        if (build().getOutputDataTypes(&type, 1, types.data(), count) != 0)
        {
            return std::nullopt;
        }
        return type;
#else
        return mPlugin->getOutputDataType(0, types.data(), count);
#endif
    }

    //! False where the plugin refuses (8.6 cannot).
    bool configure(Profile const& profile, nvinfer1::DataType type)
    {
        std::vector<nvinfer1::DynamicPluginTensorDesc> const inputs = describe(profile, type);
        nvinfer1::DynamicPluginTensorDesc output{};
        output.desc = linear({-1, -1, -1, -1}, type);
        int32_t const count = static_cast<int32_t>(inputs.size());
#if MSCONV_PLUGIN_V3
        return build().configurePlugin(inputs.data(), count, &output, 1) == 0;
#else
        mPlugin->configurePlugin(inputs.data(), count, &output, 1);
        return true;
#endif
    }

    std::size_t workspace(Profile const& profile, nvinfer1::DataType type)
    {
        int32_t const count = static_cast<int32_t>(profile.max.size());
#if MSCONV_PLUGIN_V3
        std::vector<nvinfer1::DynamicPluginTensorDesc> const inputs = describe(profile, type);
        nvinfer1::DynamicPluginTensorDesc const output{};
        return build().getWorkspaceSize(inputs.data(), count, &output, 1);
#else
        std::vector<nvinfer1::PluginTensorDesc> inputs;
        for (Shape const& shape : profile.max)
        {
            inputs.push_back(linear(shape, type));
        }
        nvinfer1::PluginTensorDesc const output{};
        return mPlugin->getWorkspaceSize(inputs.data(), count, &output, 1);
#endif
    }

    //! onShapeChange() (8.6: configurePlugin()) and enqueue(), with these pointers. True if both succeed.
    bool run(std::vector<Shape> const& shapes, Shape const& outputShape, nvinfer1::DataType type,
        void const* const* inputs, void* output, void* workspace, cudaStream_t stream)
    {
        std::vector<nvinfer1::PluginTensorDesc> described;
        for (Shape const& shape : shapes)
        {
            described.push_back(linear(shape, type));
        }
        nvinfer1::PluginTensorDesc const outputDescribed = linear(outputShape, type);
#if MSCONV_PLUGIN_V3
        if (runtime().onShapeChange(described.data(), static_cast<int32_t>(described.size()), &outputDescribed, 1) != 0)
        {
            return false;
        }
        return runtime().enqueue(described.data(), &outputDescribed, inputs, &output, workspace, stream) == 0;
#else
        std::vector<nvinfer1::DynamicPluginTensorDesc> configured;
        for (nvinfer1::PluginTensorDesc const& tensor : described)
        {
            configured.push_back({tensor, tensor.dims, tensor.dims});
        }
        nvinfer1::DynamicPluginTensorDesc const configuredOutput{
            outputDescribed, outputDescribed.dims, outputDescribed.dims};
        mPlugin->configurePlugin(configured.data(), static_cast<int32_t>(configured.size()), &configuredOutput, 1);
        return mPlugin->enqueue(described.data(), &outputDescribed, inputs, &output, workspace, stream) == 0;
#endif
    }

#if MSCONV_PLUGIN_V3
    nvinfer1::IPluginV3OneCore& core() const
    {
        return *static_cast<nvinfer1::IPluginV3OneCore*>(
            mPlugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kCORE));
    }

    nvinfer1::IPluginV3OneBuild& build() const
    {
        return *static_cast<nvinfer1::IPluginV3OneBuild*>(
            mPlugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    }

    nvinfer1::IPluginV3OneRuntime& runtime() const
    {
        return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
            mPlugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    }
#endif

    Plugin& plugin() const
    {
        return *mPlugin;
    }

private:
    template <class AnyPlugin>
    static std::unique_ptr<Layer> owned(AnyPlugin* plugin)
    {
        return plugin == nullptr ? nullptr : std::make_unique<Layer>(static_cast<Plugin*>(plugin));
    }

    static std::vector<nvinfer1::DynamicPluginTensorDesc> describe(Profile const& profile, nvinfer1::DataType type)
    {
        std::vector<nvinfer1::DynamicPluginTensorDesc> inputs(profile.max.size());
        for (std::size_t i = 0; i < inputs.size(); ++i)
        {
            Shape shape = profile.max[i];
            for (std::size_t axis = 0; axis < shape.size(); ++axis)
            {
                shape[axis] = profile.min[i][axis] == shape[axis] ? shape[axis] : -1;
            }
            inputs[i].desc = linear(shape, type);
            inputs[i].min = dimsOf(profile.min[i]);
            inputs[i].max = dimsOf(profile.max[i]);
#if MSCONV_PLUGIN_V3
            inputs[i].opt = dimsOf(profile.opt[i]);
#endif
        }
        return inputs;
    }

    std::unique_ptr<Plugin, Destroy> mPlugin;
};

} // namespace msconv::test
