// The plugin object against the real headers of one TensorRT version, without TensorRT and without a GPU.
//
// Reads questions from stdin, one a line, and answers each with one line; tests/plugins/test_plugin_object.py asks and
// knows the right answers. `selftest` runs what needs no table of cases and answers with several lines, the last one
// `done`.
//
//     fields                                  name:type:length of every field of the creator
//     create FIELD...                         "ok", or the error. FIELD is name:type:value/value/...
//     shape static|dynamic FIELD... ; SHAPE...    output shape for these inputs, or the error. SHAPE is 2x3x8x8
//     formats FIELD... ; TYPE:FORMAT...       1 or 0 for each tensor, the output last
//     type FIELD... ; TYPE...                 type of the output, or the error
//     run FIELD... ; TYPE SHAPE... ; SHAPE    "ok", or the error; the last shape is the output's
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <new>
#include <random>
#include <sstream>

#include "tensorrt_layer.h"

namespace
{

int64_t gAllocations = 0;
bool gNoMemory = false;

void* allocate(std::size_t size) noexcept
{
    ++gAllocations;
    return gNoMemory ? nullptr : std::malloc(size == 0 ? 1 : size);
}

} // namespace

void* operator new(std::size_t size)
{
    if (void* const memory = allocate(size))
    {
        return memory;
    }
    throw std::bad_alloc();
}

void* operator new(std::size_t size, std::nothrow_t const&) noexcept
{
    return allocate(size);
}

void operator delete(void* memory) noexcept
{
    std::free(memory);
}

void operator delete(void* memory, std::size_t) noexcept
{
    std::free(memory);
}

namespace msconv::test
{

namespace
{

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

LoggerFinder gFinder;

std::map<std::string, DataType> const kTypes = {
    {"float32", DataType::kFLOAT},
    {"float16", DataType::kHALF},
    {"int8", DataType::kINT8},
    {"int32", DataType::kINT32},
    {"bool", DataType::kBOOL},
#if MSCONV_HAS_BFLOAT16
    {"bfloat16", DataType::kBF16},
    {"int64", DataType::kINT64},
#endif
};

std::map<std::string, nvinfer1::TensorFormat> const kFormats = {
    {"linear", nvinfer1::TensorFormat::kLINEAR},
    {"chw2", nvinfer1::TensorFormat::kCHW2},
    {"hwc8", nvinfer1::TensorFormat::kHWC8},
    {"chw32", nvinfer1::TensorFormat::kCHW32},
    {"hwc", nvinfer1::TensorFormat::kHWC},
};

std::vector<std::string> split(std::string const& text, char separator)
{
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);)
    {
        parts.push_back(part);
    }
    return parts;
}

template <class Value>
OwnedField parse(std::string const& name, PluginFieldType type, std::vector<std::string> const& words)
{
    std::vector<Value> values;
    for (std::string const& word : words)
    {
        values.push_back(static_cast<Value>(std::stod(word)));
    }
    return makeField(name, type, values);
}

OwnedField parseField(std::string const& text)
{
    std::vector<std::string> const parts = split(text, ':');
    std::string const& name = parts.at(0);
    std::string const& type = parts.at(1);
    std::vector<std::string> const words = parts.size() > 2 ? split(parts[2], '/') : std::vector<std::string>{};
    if (type == "int32")
    {
        return parse<int32_t>(name, PluginFieldType::kINT32, words);
    }
    if (type == "float32")
    {
        return parse<float>(name, PluginFieldType::kFLOAT32, words);
    }
    if (type == "float64")
    {
        return parse<double>(name, PluginFieldType::kFLOAT64, words);
    }
    if (type == "int8")
    {
        return parse<int8_t>(name, PluginFieldType::kINT8, words);
    }
    throw std::invalid_argument("unknown field type " + type);
}

Shape parseShape(std::string const& text)
{
    Shape shape;
    for (std::string const& word : split(text, 'x'))
    {
        shape.push_back(std::stoll(word));
    }
    return shape;
}

std::string textOf(Shape const& shape)
{
    std::string text;
    for (int64_t extent : shape)
    {
        text += (text.empty() ? "" : "x") + std::to_string(extent);
    }
    return text;
}

//! The last error that the plugin logged.
std::string lastError()
{
    return gFinder.logger.errors.empty() ? "error without a message" : "error " + gFinder.logger.errors.back();
}

int32_t sourcesIn(OwnedFields const& fields)
{
    for (OwnedField const& field : fields)
    {
        if (field.name == "sources")
        {
            int32_t values[4];
            std::memcpy(values, field.bytes.data(), sizeof(values));
            return values[0] + values[1] + values[2] + values[3];
        }
    }
    return 0;
}

std::string answerFields()
{
    std::string text;
    nvinfer1::PluginFieldCollection const& names = *creatorOf().getFieldNames();
    for (int32_t i = 0; i < names.nbFields; ++i)
    {
        nvinfer1::PluginField const& field = names.fields[i];
        char const* const type = field.type == PluginFieldType::kINT32 ? "int32"
            : field.type == PluginFieldType::kFLOAT32                  ? "float32"
                                                                       : "?";
        text += (text.empty() ? "" : " ") + std::string(field.name) + ':' + type + ':' + std::to_string(field.length);
    }
    return text;
}

std::string answer(std::string const& line)
{
    std::vector<std::string> const parts = split(line, ';');
    std::istringstream words(parts.at(0));
    std::string verb;
    std::string dynamic;
    words >> verb;
    if (verb == "fields")
    {
        return answerFields();
    }
    if (verb == "shape")
    {
        words >> dynamic;
    }
    OwnedFields fields;
    for (std::string word; words >> word;)
    {
        fields.push_back(parseField(word));
    }
    gFinder.logger.errors.clear();
    std::unique_ptr<Layer> const layer = Layer::create(fields);
    if (layer == nullptr)
    {
        return lastError();
    }
    if (verb == "create")
    {
        return "ok";
    }
    std::vector<std::string> tensors;
    std::istringstream stream(parts.at(1));
    for (std::string word; stream >> word;)
    {
        tensors.push_back(word);
    }
    if (verb == "shape")
    {
        std::vector<Shape> shapes;
        std::transform(tensors.begin(), tensors.end(), std::back_inserter(shapes), parseShape);
        std::optional<Shape> const shape = layer->outputShape(shapes, sourcesIn(fields), dynamic == "dynamic");
        return shape ? textOf(*shape) : lastError();
    }
    if (verb == "formats")
    {
        std::vector<nvinfer1::PluginTensorDesc> described;
        for (std::string const& word : tensors)
        {
            std::vector<std::string> const pair = split(word, ':');
            described.push_back(linear({1, 1}, kTypes.at(pair.at(0))));
            described.back().format = kFormats.at(pair.at(1));
        }
        std::string text;
        for (bool supported : layer->supports(described))
        {
            text += (text.empty() ? "" : " ") + std::string(supported ? "1" : "0");
        }
        return text;
    }
    if (verb == "type")
    {
        std::vector<DataType> types;
        std::transform(tensors.begin(), tensors.end(), std::back_inserter(types),
            [](std::string const& word) { return kTypes.at(word); });
        std::optional<DataType> const type = layer->outputType(types);
        if (!type || !gFinder.logger.errors.empty())
        {
            return lastError();
        }
        return std::find_if(kTypes.begin(), kTypes.end(), [&](auto const& pair) { return pair.second == *type; })
            ->first;
    }
    if (verb == "run")
    {
        std::vector<Shape> shapes;
        std::transform(tensors.begin() + 1, tensors.end(), std::back_inserter(shapes), parseShape);
        std::istringstream last(parts.at(2));
        std::string output;
        last >> output;
        char memory[16]{};
        std::vector<void const*> const inputs(shapes.size() + 1, memory);
        bool const ran =
            layer->run(shapes, parseShape(output), kTypes.at(tensors.at(0)), inputs.data(), memory, memory, nullptr);
        return ran ? "ok" : lastError();
    }
    throw std::invalid_argument("unknown question " + verb);
}

// ---------------------------------------------------------------------------------------------------------------------
// What needs no table of cases.

void check(bool condition, std::string const& what)
{
    if (!condition)
    {
        throw std::runtime_error(what);
    }
}

//! Every attribute differs from its default.
OwnedFields allFields()
{
    return {ints("sources", {1, 1, 1, 1}), ints("kernel_shape", {3, 5}), ints("has_bias", {1}), ints("strides", {2, 1}),
        ints("dilations", {1, 2}), ints("pads", {1, 2, 0, 3}), ints("group", {2}), ints("padding_semantics", {1}),
        ints("padding_mode", {2}), ints("activation", {6}), floats("activation_params", {-0.5F, 6.25F})};
}

OwnedFields imageAndScalars(int32_t hasBias = 1)
{
    return {ints("sources", {1, 0, 0, 1}), ints("kernel_shape", {3, 3}), ints("pads", {1, 1, 1, 1}),
        ints("has_bias", {hasBias})};
}

//! nchw and nc of batch n with an image of h x w, their weights in source semantics, and a bias of 8 channels.
std::vector<Shape> shapesOf(int64_t n, int64_t channels, int64_t h, int64_t w)
{
    return {{n, channels, h, w}, {n, 5}, {8, channels, 3, 3}, {8, 5}, {8}};
}

Profile profileOf(int64_t channels)
{
    return {shapesOf(1, channels, 8, 8), shapesOf(2, channels, 16, 16), shapesOf(4, channels, 32, 32)};
}

std::unique_ptr<Layer> made(OwnedFields const& fields)
{
    std::unique_ptr<Layer> layer = Layer::create(fields);
    check(layer != nullptr, "the creator refuses: " + lastError());
    return layer;
}

//! Addresses that stand for device memory.
struct Memory
{
    char inputs[16]{};
    char output{};
    char workspace{};
    void const* pointers[kSourceCount * 2 + 1]{};

    Memory()
    {
        for (int32_t i = 0; i < kSourceCount * 2 + 1; ++i)
        {
            pointers[i] = &inputs[i];
        }
    }
};

bool runOnce(Layer& layer, Memory& memory, std::vector<Shape> const& shapes, Shape const& output,
    DataType type = DataType::kFLOAT)
{
    return layer.run(shapes, output, type, memory.pointers, &memory.output, &memory.workspace, nullptr);
}

void aPlanMakesAnEqualLayer()
{
    std::unique_ptr<Layer> const layer = made(allFields());
    std::unique_ptr<Layer> const reloaded = layer->reloaded();
    check(reloaded != nullptr, "the plan is refused: " + lastError());
    check(layer->state() == reloaded->state(), "the reloaded layer has other attributes");
    check(reloaded->state() != made(imageAndScalars())->state(), "the state does not depend on the attributes");
}

void aReloadedLayerRunsTheSameProblem()
{
    Memory memory;
    std::vector<Shape> const shapes = {
        {2, 4, 9, 8}, {1, 3, 9}, {2, 2, 8}, {2, 5}, {6, 2, 3, 5}, {6, 3, 3, 5}, {6, 2, 3, 5}, {6, 5, 3, 5}, {6}};
    std::unique_ptr<Layer> const layer = made(allFields())->reloaded();
    check(runOnce(*layer, memory, shapes, {2, 6, 4, 5}, DataType::kHALF), lastError());
    Attributes const& a = gKernels.last.problem.attributes;
    Extents const& e = gKernels.last.problem.extents;
    check(std::all_of(a.sources, a.sources + 4, [](int32_t present) { return present == 1; }), "sources");
    check(a.kernelShape[0] == 3 && a.kernelShape[1] == 5 && a.hasBias == 1, "kernel_shape, has_bias");
    check(a.strides[0] == 2 && a.strides[1] == 1 && a.dilations[0] == 1 && a.dilations[1] == 2, "strides, dilations");
    check(a.pads[0] == 1 && a.pads[1] == 2 && a.pads[2] == 0 && a.pads[3] == 3 && a.group == 2, "pads, group");
    check(a.paddingSemantics == PaddingSemantics::kTiled && a.paddingMode == PaddingMode::kReplicate, "padding");
    check(a.activation == Activation::kClip && a.activationParams[0] == -0.5F && a.activationParams[1] == 6.25F,
        "activation");
    check(e.batch == 2 && e.sourceBatch[0] == 2 && e.sourceBatch[1] == 1 && e.sourceBatch[2] == 2, "batches");
    check(e.channels[0] == 4 && e.channels[1] == 3 && e.channels[2] == 2 && e.channels[3] == 5, "channels");
    check(e.outChannels == 6 && e.height == 9 && e.width == 8, "outChannels, height, width");
    check(gKernels.last.problem.type == msconv::DataType::kFloat16, "type");
}

void aCloneSharesNothing()
{
    std::unique_ptr<Layer> layer = made(allFields());
    std::string const state = layer->state();
    std::unique_ptr<Layer> const clone = layer->clone();
    std::unique_ptr<Layer> const second = clone->clone();
    layer.reset();
    check(clone->state() == state && second->state() == state, "a clone lost its attributes with the original");
    check(clone->reloaded() != nullptr, "a clone cannot be reloaded: " + lastError());
}

void tensorsGoWhereTheyBelong()
{
    // Every subset of sources, with and without bias: which pointer becomes which tensor.
    for (int32_t bits = 1; bits < 32; ++bits)
    {
        int32_t const hasBias = bits >> 4;
        std::vector<int32_t> sources;
        std::vector<Shape> shapes;
        std::vector<Shape> weights;
        Shape const all[4] = {{2, 2, 5, 6}, {2, 3, 5}, {2, 4, 6}, {2, 5}};
        Shape const allWeights[4] = {{7, 2, 3, 1}, {7, 3, 3}, {7, 4, 1}, {7, 5}};
        for (int32_t source = 0; source < 4; ++source)
        {
            sources.push_back(bits >> source & 1);
            if (sources.back() != 0)
            {
                shapes.push_back(all[source]);
                weights.push_back(allWeights[source]);
            }
        }
        if (shapes.empty())
        {
            continue;
        }
        int32_t const present = static_cast<int32_t>(shapes.size());
        shapes.insert(shapes.end(), weights.begin(), weights.end());
        if (hasBias != 0)
        {
            shapes.push_back({7});
        }
        std::unique_ptr<Layer> const layer =
            made({ints("sources", sources), ints("kernel_shape", {3, 1}), ints("has_bias", {hasBias})});
        Memory memory;
        int64_t const height = sources[0] + sources[1] > 0 ? 3 : 1;
        int64_t const width = sources[0] + sources[2] > 0 ? 6 : 1;
        check(runOnce(*layer, memory, shapes, {2, 7, height, width}), lastError());
        Tensors const& tensors = gKernels.last.tensors;
        int32_t next = 0;
        for (int32_t source = 0; source < 4; ++source)
        {
            bool const is = sources[source] != 0;
            check(tensors.sources[source] == (is ? memory.pointers[next] : nullptr), "a source's pointer");
            check(tensors.weights[source] == (is ? memory.pointers[present + next] : nullptr), "a weight's pointer");
            next += is ? 1 : 0;
        }
        check(tensors.bias == (hasBias != 0 ? memory.pointers[2 * present] : nullptr), "the bias's pointer");
        check(tensors.output == &memory.output && tensors.workspace == &memory.workspace, "output or workspace");
    }
}

void runningAllocatesNothing()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    Memory memory;
    std::vector<nvinfer1::PluginTensorDesc> inputs;
    for (Shape const& shape : shapesOf(2, 3, 8, 8))
    {
        inputs.push_back(linear(shape, DataType::kFLOAT));
    }
    nvinfer1::PluginTensorDesc const output = linear({2, 8, 8, 8}, DataType::kFLOAT);
    void* const outputs[] = {&memory.output};
    int64_t const before = gAllocations;
#if MSCONV_PLUGIN_V3
    int32_t const status =
        layer->runtime().enqueue(inputs.data(), &output, memory.pointers, outputs, &memory.workspace, nullptr);
#else
    int32_t const status =
        layer->plugin().enqueue(inputs.data(), &output, memory.pointers, outputs, &memory.workspace, nullptr);
#endif
    int64_t const after = gAllocations;
    check(status == 0, lastError());
    check(after == before, "enqueue allocated");
}

void aBatchOfZeroRuns()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    Memory memory;
    std::vector<Shape> shapes = shapesOf(0, 3, 8, 8);
    shapes[1][0] = 1;
    for (bool dynamic : {false, true})
    {
        std::optional<Shape> const shape = layer->outputShape(shapes, 2, dynamic);
        check(shape.has_value() && *shape == Shape{0, 8, 8, 8}, "output shape of a batch of 0 beside a batch of 1");
    }
    check(runOnce(*layer, memory, shapes, {0, 8, 8, 8}), lastError());
    check(gKernels.last.problem.extents.batch == 0, "batch");
}

void workspaceCoversEveryRun()
{
    std::mt19937 random(0);
    auto const upTo = [&](int64_t most) { return static_cast<int64_t>(random() % most) + 1; };
    for (int32_t round = 0; round < 300; ++round)
    {
        int32_t const semantics = static_cast<int32_t>(random() % 2);
        std::vector<int32_t> const kernel = {static_cast<int32_t>(upTo(4)), static_cast<int32_t>(upTo(4))};
        std::vector<int32_t> pads(4);
        std::generate(pads.begin(), pads.end(), [&] { return static_cast<int32_t>(random() % 3); });
        std::unique_ptr<Layer> const layer = made({ints("sources", {1, 1, 1, 1}), ints("kernel_shape", kernel),
            ints("strides", {static_cast<int32_t>(upTo(3)), 1}), ints("pads", pads),
            ints("padding_semantics", {semantics})});
        auto const shapes = [&](int64_t n, int64_t h, int64_t w, bool shared)
        {
            std::vector<Shape> all = {{n, 2, h, w}, {shared ? 1 : n, 3, h}, {n, 2, w}, {shared ? 1 : n, 4}};
            std::vector<Shape> const weights = semantics == 1
                ? std::vector<Shape>{{5, 2, kernel[0], kernel[1]}, {5, 3, kernel[0], kernel[1]},
                      {5, 2, kernel[0], kernel[1]}, {5, 4, kernel[0], kernel[1]}}
                : std::vector<Shape>{{5, 2, kernel[0], kernel[1]}, {5, 3, kernel[0]}, {5, 2, kernel[1]}, {5, 4}};
            all.insert(all.end(), weights.begin(), weights.end());
            all.push_back({5});
            return all;
        };
        int64_t const n = upTo(4);
        int64_t const h = 8 + upTo(20);
        int64_t const w = 8 + upTo(20);
        std::vector<Shape> const largest = shapes(n, h, w, false);
        std::size_t const bound = layer->workspace({shapes(1, 8, 8, true), largest, largest}, DataType::kFLOAT);
        for (int32_t run = 0; run < 10; ++run)
        {
            std::vector<Shape> const actual = shapes(upTo(n), 4 + upTo(h - 4), 4 + upTo(w - 4), random() % 2 == 0);
            std::optional<Shape> const output = layer->outputShape(actual, 4, false);
            Memory memory;
            check(output.has_value() && runOnce(*layer, memory, actual, *output), lastError());
            check(workspaceBytes(gKernels.last.problem) <= bound,
                "a smaller run needs more workspace than was asked for");
        }
    }
}

void aProfileWhoseLargestShapesDoNotFitHasABound()
{
    // The largest batches 4 and 2 cannot meet, but each can meet a batch of 1.
    Profile profile = profileOf(3);
    profile.max[1][0] = 2;
    profile.opt[1][0] = 1;
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    check(layer->configure(profile, DataType::kFLOAT), lastError());
    check(layer->workspace(profile, DataType::kFLOAT) >= layer->workspace(profileOf(3), DataType::kFLOAT),
        "too small a bound");
}

void aFailingKernelIsAnError()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    Memory memory;
    gKernels.failure = "cudaErrorIllegalAddress";
    bool const ran = runOnce(*layer, memory, shapesOf(1, 3, 8, 8), {1, 8, 8, 8});
    gKernels.failure = nullptr;
    check(!ran && lastError().find("cudaErrorIllegalAddress") != std::string::npos, "the kernel's error is lost");
    check(lastError().find("'layer'") != std::string::npos, "the error does not name the layer");
}

void aWrongOutputShapeIsAnError()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    Memory memory;
    check(!runOnce(*layer, memory, shapesOf(1, 3, 8, 8), {1, 8, 8, 7}), "a wrong output shape was taken");
}

void namesAreThePluginForms()
{
    check(std::string(creatorOf().getPluginName()) == "MSConv2d" && std::string(creatorOf().getPluginVersion()) == "1"
            && std::string(creatorOf().getPluginNamespace()).empty(),
        "name, version or namespace of the creator");
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
#if MSCONV_PLUGIN_V3
    check(std::string(layer->core().getPluginName()) == "MSConv2d"
            && std::string(layer->core().getPluginVersion()) == "1"
            && std::string(layer->core().getPluginNamespace()).empty() && layer->build().getNbOutputs() == 1,
        "name, version, namespace or outputs of the layer");
#else
    check(std::string(layer->plugin().getPluginType()) == "MSConv2d"
            && std::string(layer->plugin().getPluginVersion()) == "1" && layer->plugin().getNbOutputs() == 1,
        "name, version or outputs of the layer");
    layer->plugin().setPluginNamespace("other");
    check(std::string(layer->clone()->plugin().getPluginNamespace()) == "other", "the namespace is lost in a clone");
#endif
}

void nullsAreRefused()
{
    nvinfer1::PluginFieldCollection const none{2, nullptr};
#if MSCONV_PLUGIN_V3
    nvinfer1::TensorRTPhase const phase = nvinfer1::TensorRTPhase::kBUILD;
    check(creatorOf().createPlugin("layer", nullptr, phase) == nullptr, "no collection");
    check(creatorOf().createPlugin("layer", &none, phase) == nullptr, "no fields");
    check(creatorOf().createPlugin(
              nullptr, FieldView(OwnedFields{{"sources", PluginFieldType::kINT32, 4, ""}}).get(), phase)
            == nullptr,
        "a field without values");
#else
    check(creatorOf().createPlugin("layer", nullptr) == nullptr, "no collection");
    check(creatorOf().createPlugin("layer", &none) == nullptr, "no fields");
    check(creatorOf().createPlugin(nullptr, FieldView(OwnedFields{{"sources", PluginFieldType::kINT32, 4, ""}}).get())
            == nullptr,
        "a field without values");
#endif
    check(lastError().find("sources") != std::string::npos, "the error does not name the field");
}

#if MSCONV_PLUGIN_V3

void serializedFieldsLieInTheLayer()
{
    std::unique_ptr<Layer> const layer = made(allFields());
    std::unique_ptr<Layer> const clone = layer->clone();
    std::unique_ptr<Layer> const attached(new Layer(clone->runtime().attachToContext(nullptr)));
    for (Layer const* each : {layer.get(), clone.get(), attached.get()})
    {
        auto const* const object = reinterpret_cast<char const*>(&each->plugin());
        nvinfer1::PluginFieldCollection const* const fields = each->runtime().getFieldsToSerialize();
        check(fields->nbFields == creatorOf().getFieldNames()->nbFields, "not every field is serialized");
        for (int32_t i = 0; i < fields->nbFields; ++i)
        {
            nvinfer1::PluginField const& field = fields->fields[i];
            auto const* const data = static_cast<char const*>(field.data);
            check(data >= object && data + 4 * field.length <= object + 4096,
                std::string(field.name) + " lies elsewhere");
            check(field.type == PluginFieldType::kINT32 || field.type == PluginFieldType::kFLOAT32,
                std::string(field.name) + " is not 32 bits wide");
        }
    }
}

std::vector<int32_t> tacticsOf(Layer& layer)
{
    std::vector<int32_t> tactics(layer.build().getNbTactics());
    check(layer.build().getValidTactics(tactics.data(), static_cast<int32_t>(tactics.size())) == 0, lastError());
    return tactics;
}

//! The paths that the kernels offer for shapesOf(n, channels, 16, 16), as tactics.
std::vector<int32_t> pathsFor(Layer& layer, int64_t n, int64_t channels, DataType type)
{
    Memory memory;
    check(runOnce(layer, memory, shapesOf(n, channels, 16, 16), {n, 8, 16, 16}, type), lastError());
    Path paths[kPathCount]{};
    int32_t const count = availablePaths(gKernels.last.problem, gKernels.computeCapability, paths);
    std::vector<int32_t> tactics;
    std::transform(
        paths, paths + count, std::back_inserter(tactics), [](Path path) { return static_cast<int32_t>(path); });
    return tactics;
}

void tacticsAreThePathsThatRunTheWholeProfile()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    check(tacticsOf(*layer).empty(), "tactics before anything is known");
    for (int64_t channels : {3, 32, 256})
    {
        for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
        {
            check(layer->configure(profileOf(channels), type), lastError());
            check(tacticsOf(*layer) == pathsFor(*layer, 2, channels, type),
                "the kernels offer other paths, or in other order");
        }
    }
    check(layer->configure(profileOf(3), DataType::kFLOAT) && tacticsOf(*layer) == std::vector<int32_t>{1}, "float32");
    check(layer->configure(profileOf(3), DataType::kHALF) && tacticsOf(*layer).size() > 1, "float16");
    gKernels.computeCapability = 75;
    check(layer->configure(profileOf(32), DataType::kBF16) && tacticsOf(*layer) == std::vector<int32_t>{1},
        "bfloat16 on sm_75");
    gKernels.computeCapability = 90;
    Profile profile = profileOf(256); // the largest batch needs more blocks of the implicit GEMM than a grid can have
    profile.max = shapesOf(1000000000, 256, 32, 32);
    std::vector<int32_t> const all = pathsFor(*layer, 2, 256, DataType::kHALF);
    check(layer->configure(profile, DataType::kHALF), lastError());
    std::vector<int32_t> const some = tacticsOf(*layer);
    int32_t const gemm = static_cast<int32_t>(Path::kImplicitGemm);
    check(std::count(all.begin(), all.end(), gemm) == 1 && std::count(some.begin(), some.end(), gemm) == 0,
        "a path that cannot run the largest shape");
    check(!some.empty(), "no path at all");
    int32_t one = 0;
    check(layer->build().getValidTactics(&one, 5) != 0, "another number of tactics");
}

void tacticsAreOfOneLayerAndReachTheKernels()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    std::unique_ptr<Layer> const clone = layer->clone();
    Memory memory;
    check(clone->runtime().setTactic(static_cast<int32_t>(Path::kTensorCore)) == 0, lastError());
    check(runOnce(*clone, memory, shapesOf(1, 3, 8, 8), {1, 8, 8, 8}, DataType::kHALF), lastError());
    check(gKernels.last.path == Path::kTensorCore && gKernels.last.computeCapability == 90, "the tactic is not run");
    check(runOnce(*layer, memory, shapesOf(1, 3, 8, 8), {1, 8, 8, 8}, DataType::kHALF), lastError());
    check(gKernels.last.path == Path::kChoose, "the original took its clone's tactic");
    std::unique_ptr<Layer> const attached(new Layer(clone->runtime().attachToContext(nullptr)));
    check(runOnce(*attached, memory, shapesOf(1, 3, 8, 8), {1, 8, 8, 8}, DataType::kHALF), lastError());
    check(gKernels.last.path == Path::kTensorCore, "the tactic is lost when the layer is attached");
}

void aTacticThatCannotRunIsReplacedWithAWarning()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    Memory memory;
    gFinder.logger.others.clear();
    check(layer->runtime().setTactic(static_cast<int32_t>(Path::kImplicitGemm)) == 0, lastError());
    check(runOnce(*layer, memory, shapesOf(1, 3, 8, 8), {1, 8, 8, 8}), lastError());
    check(gKernels.last.path == Path::kChoose && gFinder.logger.others.size() == 1, "path, or no warning");
    check(layer->runtime().setTactic(4) != 0 && layer->runtime().setTactic(-1) != 0, "an unknown tactic was taken");
}

void withoutADeviceNothingIsConfigured()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    gKernels.computeCapability = 0;
    bool const configured = layer->configure(profileOf(3), DataType::kFLOAT);
    gKernels.computeCapability = 90;
    check(!configured && lastError().find("no CUDA device") != std::string::npos, "configured without a device");
}

void aBadProfileIsRefused()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    Profile profile = profileOf(3);
    profile.opt[2] = {8, 4, 3, 3};
    check(!layer->configure(profile, DataType::kFLOAT), "a weight that does not fit");
    check(lastError().find("the weight of nchw") != std::string::npos, lastError());
}

void timingCacheIdTellsAttributesApart()
{
    std::vector<std::string> ids = {made(allFields())->build().getTimingCacheID()};
    check(ids[0] == made(allFields())->clone()->build().getTimingCacheID(), "equal layers have different ids");
    OwnedFields const other = {ints("sources", {1, 1, 0, 1}), ints("kernel_shape", {3, 4}), ints("has_bias", {0}),
        ints("strides", {1, 1}), ints("dilations", {1, 1}), ints("pads", {1, 2, 3, 3}), ints("group", {1}),
        ints("padding_semantics", {0}), ints("padding_mode", {0}), ints("activation", {1}),
        floats("activation_params", {-0.5F, 6.5F})};
    for (std::size_t i = 0; i < other.size(); ++i)
    {
        OwnedFields fields = allFields();
        fields[i] = other[i];
        std::unique_ptr<Layer> const layer = made(fields);
        std::string const id = layer->build().getTimingCacheID();
        check(std::find(ids.begin(), ids.end(), id) == ids.end(), other[i].name + " is not part of the id");
        check(id.find(other[i].name + "=") != std::string::npos, other[i].name + " is cut off the id");
        check(
            std::string(layer->build().getMetadataString()).find(other[i].name + "=") != std::string::npos, "metadata");
        ids.push_back(id);
    }
}

void errorsReachTheRecorderOfTheContext()
{
    ErrorRecorder recorder;
    ResourceContext context;
    context.recorder = &recorder;
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    Layer attached(layer->runtime().attachToContext(&context));
    Memory memory;
    std::vector<Shape> shapes = shapesOf(1, 3, 8, 8);
    shapes[1] = {1, 6};
    check(!runOnce(attached, memory, shapes, {1, 8, 8, 8}), "a wrong number of channels ran");
    check(recorder.errors.size() == 1 && recorder.errors[0].find("the weight of nc") != std::string::npos,
        "the recorder");
    check(recorder.codes[0] == nvinfer1::ErrorCode::kINVALID_ARGUMENT, "the code");
    check(recorder.errors[0].size() <= nvinfer1::IErrorRecorder::kMAX_DESC_LENGTH, "too long for a recorder");
    check(!runOnce(*attached.clone(), memory, shapes, {1, 8, 8, 8}) && recorder.errors.size() == 1,
        "a clone of an attached layer uses its context");
    check(
        !runOnce(*layer, memory, shapes, {1, 8, 8, 8}) && recorder.errors.size() == 1, "the original is attached too");
}

void aPlanOfAnotherVersionIsRefused()
{
    OwnedFields const kept = copyOf(*made(allFields())->runtime().getFieldsToSerialize());
    auto const refusal = [](OwnedFields const& fields)
    {
        FieldView const view(fields);
        Plugin* const plugin = creatorOf().createPlugin("layer", view.get(), nvinfer1::TensorRTPhase::kRUNTIME);
        check(plugin == nullptr, "the plan was taken");
        check(lastError().find("another version of the plugin") != std::string::npos, lastError());
        return lastError();
    };
    for (std::size_t i = 0; i < kept.size(); ++i)
    {
        OwnedFields fewer = kept;
        fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
        check(refusal(fewer).find(kept[i].name + " is missing") != std::string::npos, lastError());
    }
    OwnedFields more = kept;
    more.push_back(ints("transposed", {0}));
    check(refusal(more).find("transposed") != std::string::npos, lastError());
}

#else

void aPlanOfAnotherVersionIsRefused()
{
    std::string const plan = made(allFields())->state();
    std::string mark = plan;
    mark[7] = '0';
    std::string value = plan;
    value[sizeof("MSConv21") - 1] = 7; // sources[0]
    for (std::string const& bad : {plan.substr(0, plan.size() - 4), plan + "more", mark, value, std::string()})
    {
        check(creatorOf().deserializePlugin("layer", bad.data(), bad.size()) == nullptr, "the plan was taken");
    }
    check(creatorOf().deserializePlugin("layer", nullptr, 0) == nullptr, "no plan was taken");
}

#endif

void noMemoryIsAnError()
{
    std::unique_ptr<Layer> const layer = made(imageAndScalars());
    OwnedFields const fields = imageAndScalars();
    FieldView const view(fields);
    ::setLoggerFinder(nullptr); // the test's logger allocates; stderr does not
    gNoMemory = true;
    bool const cloned = layer->plugin().clone() != nullptr;
#if MSCONV_PLUGIN_V3
    bool const created = creatorOf().createPlugin("layer", view.get(), nvinfer1::TensorRTPhase::kBUILD) != nullptr;
#else
    bool const created = creatorOf().createPlugin("layer", view.get()) != nullptr;
#endif
    gNoMemory = false;
    ::setLoggerFinder(&gFinder);
    check(!cloned && !created, "a layer without memory");
}

void aLoggerFinderThatThrowsIsSurvived()
{
    struct Throwing final : public nvinfer1::ILoggerFinder
    {
        nvinfer1::ILogger* findLogger() override
        {
            throw std::runtime_error("no logger");
        }
    } throwing;
    ::setLoggerFinder(&throwing);
    bool const refused = Layer::create({}) == nullptr;
    ::setLoggerFinder(nullptr);
    bool const refusedAgain = Layer::create({}) == nullptr;
    ::setLoggerFinder(&gFinder);
    check(refused && refusedAgain, "a layer without attributes was made");
}

int selfTest()
{
    std::pair<char const*, void (*)()> const tests[] = {
        {"a plan makes an equal layer", aPlanMakesAnEqualLayer},
        {"a reloaded layer runs the same problem", aReloadedLayerRunsTheSameProblem},
        {"a clone shares nothing", aCloneSharesNothing},
        {"tensors go where they belong", tensorsGoWhereTheyBelong},
        {"running allocates nothing", runningAllocatesNothing},
        {"a batch of zero runs", aBatchOfZeroRuns},
        {"workspace covers every run", workspaceCoversEveryRun},
        {"a profile whose largest shapes do not fit has a bound", aProfileWhoseLargestShapesDoNotFitHasABound},
        {"a failing kernel is an error", aFailingKernelIsAnError},
        {"a wrong output shape is an error", aWrongOutputShapeIsAnError},
        {"names are the plugin form's", namesAreThePluginForms},
        {"nulls are refused", nullsAreRefused},
        {"a plan of another version is refused", aPlanOfAnotherVersionIsRefused},
        {"no memory is an error", noMemoryIsAnError},
        {"a logger finder that throws is survived", aLoggerFinderThatThrowsIsSurvived},
#if MSCONV_PLUGIN_V3
        {"serialized fields lie in the layer", serializedFieldsLieInTheLayer},
        {"tactics are the paths that run the whole profile", tacticsAreThePathsThatRunTheWholeProfile},
        {"tactics are of one layer and reach the kernels", tacticsAreOfOneLayerAndReachTheKernels},
        {"a tactic that cannot run is replaced with a warning", aTacticThatCannotRunIsReplacedWithAWarning},
        {"without a device nothing is configured", withoutADeviceNothingIsConfigured},
        {"a bad profile is refused", aBadProfileIsRefused},
        {"the timing cache id tells attributes apart", timingCacheIdTellsAttributesApart},
        {"errors reach the recorder of the context", errorsReachTheRecorderOfTheContext},
#endif
    };
    int failed = 0;
    for (auto const& [name, test] : tests)
    {
        try
        {
            gFinder.logger.errors.clear();
            test();
            std::cout << "ok " << name << std::endl;
        }
        catch (std::exception const& error)
        {
            ++failed;
            std::cout << "FAILED " << name << ": " << error.what() << std::endl;
        }
    }
    std::cout << "done" << std::endl;
    return failed;
}

} // namespace

} // namespace msconv::test

int main()
{
    using namespace msconv::test;
    ::setLoggerFinder(&gFinder);
    int failed = 0;
    for (std::string line; std::getline(std::cin, line);)
    {
        if (line == "selftest")
        {
            failed += selfTest();
            continue;
        }
        try
        {
            std::cout << answer(line) << '\n';
        }
        catch (std::exception const& error)
        {
            std::cout << "QUESTION " << line << ": " << error.what() << '\n';
            failed = 1;
        }
    }
    return failed == 0 ? 0 : 1;
}
