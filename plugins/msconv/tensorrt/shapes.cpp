#include "shapes.h"

#include <algorithm>

namespace msconv::plugin
{

namespace
{

using nvinfer1::DimensionOperation;
using nvinfer1::Dims;
using nvinfer1::IDimensionExpr;

struct SourceLayout
{
    char const* name;
    char const* layout;
    int32_t rank;
    int32_t axis[2]; //!< position of H and of W, -1 where the source lacks it
};

constexpr SourceLayout kLayouts[kSourceCount] = {
    {"nchw", "[N, C1, H, W]", 4, {2, 3}},
    {"nch", "[N, C2, H]", 3, {2, -1}},
    {"ncw", "[N, C3, W]", 3, {-1, 2}},
    {"nc", "[N, C4]", 2, {-1, -1}},
};

constexpr char const* kAxisNames[2] = {"height", "width"};

//! The sources that are present, in order.
struct Present
{
    int32_t sources[kSourceCount]{};
    int32_t count{};

    explicit Present(Attributes const& attributes) noexcept
    {
        for (int32_t source = 0; source < kSourceCount; ++source)
        {
            if (attributes.sources[source] != 0)
            {
                sources[count++] = source;
            }
        }
    }
};

//! Name of an input for messages.
char const* inputName(Attributes const& attributes, int32_t input) noexcept
{
    constexpr char const* kWeights[kSourceCount] = {
        "the weight of nchw", "the weight of nch", "the weight of ncw", "the weight of nc"};
    Present const present(attributes);
    if (input < present.count)
    {
        return kLayouts[present.sources[input]].name;
    }
    return input < 2 * present.count ? kWeights[present.sources[input - present.count]] : "the bias";
}

char const* nameOf(nvinfer1::DataType type) noexcept
{
    switch (type)
    {
    case nvinfer1::DataType::kFLOAT: return "float32";
    case nvinfer1::DataType::kHALF: return "float16";
    case nvinfer1::DataType::kINT8: return "int8";
    case nvinfer1::DataType::kINT32: return "int32";
    case nvinfer1::DataType::kBOOL: return "bool";
    case nvinfer1::DataType::kUINT8: return "uint8";
#if MSCONV_HAS_BFLOAT16
    case nvinfer1::DataType::kBF16: return "bfloat16";
    case nvinfer1::DataType::kINT64: return "int64";
#endif
    default: return "another type";
    }
}

bool toDataType(nvinfer1::DataType given, DataType& type) noexcept
{
    switch (given)
    {
    case nvinfer1::DataType::kFLOAT: type = DataType::kFloat32; return true;
    case nvinfer1::DataType::kHALF: type = DataType::kFloat16; return true;
#if MSCONV_HAS_BFLOAT16
    case nvinfer1::DataType::kBF16: type = DataType::kBFloat16; return true;
#endif
    default: return false;
    }
}

void appendShape(Dims const& shape, Message& message) noexcept
{
    message.append("[");
    for (int32_t i = 0; i < shape.nbDims && i < Dims::MAX_DIMS; ++i)
    {
        message.append("%s%lld", i == 0 ? "" : ", ", static_cast<long long>(shape.d[i]));
    }
    message.append("]");
}

//! Extents of the sources. Null, or what is wrong.
char const* readSources(
    Present const& present, Dims const* const* shapes, ShapesAre meaning, Extents& extents, Message& message) noexcept
{
    int64_t* const spatial[2] = {&extents.height, &extents.width};
    char const* owner[2]{};
    bool empty = false;
    for (int32_t i = 0; i < present.count; ++i)
    {
        int32_t const source = present.sources[i];
        SourceLayout const& layout = kLayouts[source];
        Dims const& shape = *shapes[i];
        if (shape.nbDims != layout.rank || *std::min_element(shape.d, shape.d + layout.rank) < 0)
        {
            message.format("%s must have %d dimensions %s, but has shape ", layout.name, layout.rank, layout.layout);
            appendShape(shape, message);
            return message.data();
        }
        extents.sourceBatch[source] = shape.d[0];
        extents.channels[source] = shape.d[1];
        extents.batch = std::max<int64_t>(extents.batch, shape.d[0]);
        empty = empty || shape.d[0] == 0;
        for (int32_t axis = 0; axis < 2; ++axis)
        {
            if (layout.axis[axis] < 0)
            {
                continue;
            }
            int64_t const extent = shape.d[layout.axis[axis]];
            if (owner[axis] != nullptr && *spatial[axis] != extent && meaning == ShapesAre::kActual)
            {
                return message.format("%s has %s %lld but %s has %s %lld; they must be equal", layout.name,
                    kAxisNames[axis], static_cast<long long>(extent), owner[axis], kAxisNames[axis],
                    static_cast<long long>(*spatial[axis]));
            }
            *spatial[axis] = owner[axis] == nullptr ? extent : std::min(*spatial[axis], extent);
            owner[axis] = layout.name;
        }
    }
    if (empty && meaning == ShapesAre::kActual)
    {
        extents.batch = 0; // the others have batch 0, or 1 and are broadcast
    }
    if (meaning == ShapesAre::kUpper)
    {
        for (int64_t& batch : extents.sourceBatch)
        {
            batch = batch > 1 ? extents.batch : batch;
        }
    }
    return nullptr;
}

//! Shape that the weight of a source must have; the table of docs/spec.md.
Dims weightShape(Attributes const& attributes, Extents const& extents, int32_t source) noexcept
{
    bool const tiled = attributes.paddingSemantics == PaddingSemantics::kTiled;
    bool const grouped = source == kNCHW || (!tiled && source != kNC);
    Dims shape{};
    auto const push = [&shape](int64_t extent)
    { shape.d[shape.nbDims++] = static_cast<decltype(shape.d[0] + 0)>(extent); };
    push(extents.outChannels);
    push(grouped ? extents.channels[source] / attributes.group : extents.channels[source]);
    for (int32_t axis = 0; axis < 2; ++axis)
    {
        if (tiled || kLayouts[source].axis[axis] >= 0)
        {
            push(attributes.kernelShape[axis]);
        }
    }
    return shape;
}

//! Null if a tensor has this shape; else which tensor it is, its shape and the right one.
char const* checkShape(char const* name, Dims const& shape, Dims const& expected, Message& message) noexcept
{
    if (shape.nbDims == expected.nbDims && std::equal(shape.d, shape.d + shape.nbDims, expected.d))
    {
        return nullptr;
    }
    message.format("%s has shape ", name);
    appendShape(shape, message);
    message.append("; for these sources, kernel_shape, group and padding_semantics it must have shape ");
    appendShape(expected, message);
    return message.data();
}

//! Arithmetic on expressions. Folds nothing: TensorRT does.
class Arithmetic
{
public:
    explicit Arithmetic(nvinfer1::IExprBuilder& builder) noexcept : mBuilder(builder) {}

    IDimensionExpr const* constant(int64_t value) const noexcept
    {
        return mBuilder.constant(static_cast<decltype(Dims{}.d[0] + 0)>(value));
    }

    //! Null where an operand is.
    IDimensionExpr const* apply(
        DimensionOperation operation, IDimensionExpr const* first, IDimensionExpr const* second) const noexcept
    {
        return first == nullptr || second == nullptr ? nullptr : mBuilder.operation(operation, *first, *second);
    }

    IDimensionExpr const* apply(
        DimensionOperation operation, IDimensionExpr const* first, int64_t second) const noexcept
    {
        return apply(operation, first, constant(second));
    }

private:
    nvinfer1::IExprBuilder& mBuilder;
};

bool isConstant(IDimensionExpr const& expression, int64_t value) noexcept
{
    return expression.isConstant() && expression.getConstantValue() == value;
}

//! N, where every source has batch N or 1. Not simply the largest: of 0 and 1 it is 0.
IDimensionExpr const* batchOf(
    Present const& present, nvinfer1::DimsExprs const* inputs, Arithmetic const& arithmetic) noexcept
{
    IDimensionExpr const* largest = nullptr;
    IDimensionExpr const* smallest = nullptr;
    for (int32_t i = 0; i < present.count; ++i)
    {
        IDimensionExpr const* const batch = inputs[i].d[0];
        if (isConstant(*batch, 1))
        {
            continue;
        }
        if (batch->isConstant())
        {
            return batch; // N is known
        }
        largest = largest == nullptr ? batch : arithmetic.apply(DimensionOperation::kMAX, largest, batch);
        smallest = smallest == nullptr ? batch : arithmetic.apply(DimensionOperation::kMIN, smallest, batch);
    }
    if (largest == nullptr)
    {
        return arithmetic.constant(1);
    }
    if (largest == smallest)
    {
        return largest; // one source has it
    }
    return arithmetic.apply(
        DimensionOperation::kPROD, largest, arithmetic.apply(DimensionOperation::kMIN, smallest, 1));
}

//! H' or W': floor((extent + pads - dilation*(kernel-1) - 1) / stride) + 1.
IDimensionExpr const* outputExtentOf(
    Attributes const& attributes, int32_t axis, IDimensionExpr const* extent, Arithmetic const& arithmetic) noexcept
{
    int64_t const reach = int64_t{attributes.dilations[axis]} * (attributes.kernelShape[axis] - 1);
    int64_t const added = int64_t{attributes.pads[axis]} + attributes.pads[axis + 2] - reach;
    int64_t const stride = attributes.strides[axis];
    if (stride == 1)
    {
        return added == 0 ? extent : arithmetic.apply(DimensionOperation::kSUM, extent, added);
    }
    IDimensionExpr const* const room = arithmetic.apply(DimensionOperation::kSUM, extent, added - 1);
    IDimensionExpr const* const steps = arithmetic.apply(DimensionOperation::kFLOOR_DIV, room, stride);
    return arithmetic.apply(DimensionOperation::kSUM, steps, 1);
}

} // namespace

int32_t inputCount(Attributes const& attributes) noexcept
{
    return 2 * Present(attributes).count + (attributes.hasBias != 0 ? 1 : 0);
}

char const* checkCounts(Attributes const& attributes, int32_t nbInputs, int32_t nbOutputs, Message& message) noexcept
{
    int32_t const expected = inputCount(attributes);
    if (nbOutputs != 1)
    {
        return message.format("the layer has %d outputs; it must have 1", nbOutputs);
    }
    if (nbInputs == expected)
    {
        return nullptr;
    }
    if (nbInputs < expected)
    {
        message.format("%s is missing: ", inputName(attributes, std::max(nbInputs, 0)));
    }
    else
    {
        message.format("too many inputs: ");
    }
    message.append("by sources and has_bias the layer takes %d inputs (", expected);
    for (int32_t i = 0; i < expected; ++i)
    {
        message.append("%s%s", i == 0 ? "" : ", ", inputName(attributes, i));
    }
    return message.append("), but there are %d", nbInputs);
}

char const* readType(Attributes const& attributes, nvinfer1::DataType const* types, int32_t nbInputs, DataType& type,
    Message& message) noexcept
{
    for (int32_t i = 0; i < nbInputs; ++i)
    {
        if (types[i] != types[0] || !toDataType(types[i], type))
        {
            return message.format(
                "%s has type %s and %s has type %s; all inputs must have one type: float32, float16%s",
                inputName(attributes, 0), nameOf(types[0]), inputName(attributes, i), nameOf(types[i]),
                MSCONV_HAS_BFLOAT16 ? " or bfloat16" : "");
        }
    }
    return nullptr;
}

bool supports(nvinfer1::PluginTensorDesc const& tensor, nvinfer1::PluginTensorDesc const& first) noexcept
{
    DataType type{};
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == first.type
        && toDataType(tensor.type, type);
}

char const* outputShape(Attributes const& attributes, nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs& output, nvinfer1::IExprBuilder& builder, Message& message) noexcept
{
    if (char const* const error = checkCounts(attributes, nbInputs, 1, message))
    {
        return error;
    }
    Present const present(attributes);
    IDimensionExpr const* spatial[2]{};
    for (int32_t i = 0; i < present.count; ++i)
    {
        SourceLayout const& layout = kLayouts[present.sources[i]];
        if (inputs[i].nbDims != layout.rank)
        {
            return message.format(
                "%s must have %d dimensions %s, but has %d", layout.name, layout.rank, layout.layout, inputs[i].nbDims);
        }
        for (int32_t axis = 0; axis < 2; ++axis)
        {
            if (layout.axis[axis] >= 0 && (spatial[axis] == nullptr || !spatial[axis]->isConstant()))
            {
                spatial[axis] = inputs[i].d[layout.axis[axis]]; // a constant says more than an expression
            }
        }
    }
    if (inputs[present.count].nbDims < 2)
    {
        return message.format("%s has %d dimensions; it needs at least 2", inputName(attributes, present.count),
            inputs[present.count].nbDims);
    }
    Arithmetic const arithmetic(builder);
    output.nbDims = 4;
    output.d[0] = batchOf(present, inputs, arithmetic);
    output.d[1] = inputs[present.count].d[0];
    for (int32_t axis = 0; axis < 2; ++axis)
    {
        IDimensionExpr const* const extent = spatial[axis];
        output.d[axis + 2] =
            extent == nullptr ? arithmetic.constant(1) : outputExtentOf(attributes, axis, extent, arithmetic);
    }
    if (std::any_of(output.d, output.d + 4, [](IDimensionExpr const* extent) { return extent == nullptr; }))
    {
        return "TensorRT made no expression for the shape of the output";
    }
    return nullptr;
}

Inputs inputsOf(nvinfer1::PluginTensorDesc const* tensors, int32_t nbInputs) noexcept
{
    Inputs inputs{nbInputs, {}, {}};
    for (int32_t i = 0; i < std::min(nbInputs, kMaxInputs); ++i)
    {
        inputs.types[i] = tensors[i].type;
        inputs.shapes[i] = &tensors[i].dims;
    }
    return inputs;
}

Inputs inputsOf(nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t nbInputs,
    Dims nvinfer1::DynamicPluginTensorDesc::* which) noexcept
{
    Inputs inputs{nbInputs, {}, {}};
    for (int32_t i = 0; i < std::min(nbInputs, kMaxInputs); ++i)
    {
        inputs.types[i] = tensors[i].desc.type;
        inputs.shapes[i] = &(tensors[i].*which);
    }
    return inputs;
}

char const* readProblem(
    Attributes const& attributes, Inputs const& inputs, ShapesAre meaning, Problem& problem, Message& message) noexcept
{
    if (char const* const error = checkCounts(attributes, inputs.count, 1, message))
    {
        return error;
    }
    problem = Problem{attributes, {}, {}};
    if (char const* const error = readType(attributes, inputs.types, inputs.count, problem.type, message))
    {
        return error;
    }
    Present const present(attributes);
    if (char const* const error = readSources(present, inputs.shapes, meaning, problem.extents, message))
    {
        return error;
    }
    Dims const& firstWeight = *inputs.shapes[present.count];
    problem.extents.outChannels = firstWeight.nbDims > 0 ? int64_t{firstWeight.d[0]} : 0;
    if (char const* const error = checkProblem(problem, message.data(), Message::size()))
    {
        return error;
    }
    for (int32_t i = 0; i < present.count; ++i)
    {
        int32_t const input = present.count + i;
        Dims const expected = weightShape(attributes, problem.extents, present.sources[i]);
        if (char const* const error =
                checkShape(inputName(attributes, input), *inputs.shapes[input], expected, message))
        {
            return error;
        }
    }
    if (attributes.hasBias != 0)
    {
        Dims expected{};
        expected.nbDims = 1;
        expected.d[0] = firstWeight.d[0];
        return checkShape("the bias", *inputs.shapes[inputs.count - 1], expected, message);
    }
    return nullptr;
}

} // namespace msconv::plugin
