// Drives the real plugin object through the registry of a real TensorRT runtime: loads the plugin library, finds the creator,
// creates the plugin as a plan would, attaches it and enqueues it on a stream, for every case of a file. No engine is built.
//
//     registry_driver LIBNVINFER PLUGIN CASES OUTPUTS
//
// Linked with problem.cpp of the kernels for the output's extents.
// LIBNVINFER is libnvinfer_lean.so or libnvinfer.so of the major version of the headers that this is compiled with. Exit codes: 0,
// 1 a case failed, 2 bad command line, 3 a library, the creator or a GPU is missing.
#include "device_memory.h"

#include <dlfcn.h>
#include <NvInferRuntime.h>

#include <algorithm>
#include <string>

using namespace msconv;

namespace
{

constexpr int kMissing = 3;

nvinfer1::DataType typeOf(DataType type)
{
    switch (type)
    {
    case DataType::kFloat16: return nvinfer1::DataType::kHALF;
    case DataType::kBFloat16: return nvinfer1::DataType::kBF16;
    case DataType::kFloat32: break;
    }
    return nvinfer1::DataType::kFLOAT;
}

nvinfer1::PluginTensorDesc describe(DataType type, std::vector<int64_t> const& shape)
{
    nvinfer1::PluginTensorDesc desc{};
    desc.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), desc.dims.d);
    desc.type = typeOf(type);
    desc.format = nvinfer1::TensorFormat::kLINEAR;
    desc.scale = 1.0F;
    return desc;
}

std::vector<int64_t> sourceShape(Problem const& problem, int32_t source)
{
    Extents const& e = problem.extents;
    std::vector<int64_t> shape{e.sourceBatch[source], e.channels[source]};
    if (source == kNCHW || source == kNCH)
    {
        shape.push_back(e.height);
    }
    if (source == kNCHW || source == kNCW)
    {
        shape.push_back(e.width);
    }
    return shape;
}

std::vector<int64_t> weightShape(Problem const& problem, int32_t source)
{
    Attributes const& a = problem.attributes;
    bool const tiled = a.paddingSemantics == PaddingSemantics::kTiled;
    bool const grouped = source == kNCHW || (!tiled && source != kNC);
    int64_t const channels = problem.extents.channels[source];
    std::vector<int64_t> shape{problem.extents.outChannels, grouped ? channels / a.group : channels};
    if (tiled || source == kNCHW || source == kNCH)
    {
        shape.push_back(a.kernelShape[0]);
    }
    if (tiled || source == kNCHW || source == kNCW)
    {
        shape.push_back(a.kernelShape[1]);
    }
    return shape;
}

//! The attributes as a plan holds them.
std::vector<nvinfer1::PluginField> fieldsOf(Attributes const& a)
{
    auto const ints = [](char const* name, void const* data, int32_t length)
    { return nvinfer1::PluginField(name, data, nvinfer1::PluginFieldType::kINT32, length); };
    return {ints("sources", a.sources, 4), ints("kernel_shape", a.kernelShape, 2), ints("has_bias", &a.hasBias, 1),
        ints("strides", a.strides, 2), ints("dilations", a.dilations, 2), ints("pads", a.pads, 4),
        ints("group", &a.group, 1), ints("padding_semantics", &a.paddingSemantics, 1),
        ints("padding_mode", &a.paddingMode, 1), ints("activation", &a.activation, 1),
        nvinfer1::PluginField("activation_params", a.activationParams, nvinfer1::PluginFieldType::kFLOAT32, 2)};
}

char const* runCase(
    nvinfer1::IPluginCreatorV3One& creator, test::CaseRecord const& record, cudaStream_t stream, char* output)
{
    Problem const& problem = record.problem;
    std::vector<nvinfer1::PluginField> const fields = fieldsOf(problem.attributes);
    nvinfer1::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    std::unique_ptr<nvinfer1::IPluginV3> const created(
        creator.createPlugin("case", &collection, nvinfer1::TensorRTPhase::kRUNTIME));
    auto* const createdRuntime = created == nullptr
        ? nullptr
        : static_cast<nvinfer1::IPluginV3OneRuntime*>(
              created->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    if (createdRuntime == nullptr)
    {
        return "the creator made no plugin";
    }
    std::unique_ptr<nvinfer1::IPluginV3> const attached(createdRuntime->attachToContext(nullptr));
    if (attached == nullptr)
    {
        return "the plugin cannot be attached";
    }
    auto* const runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        attached->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    auto* const build = static_cast<nvinfer1::IPluginV3OneBuild*>(
        attached->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));

    std::vector<nvinfer1::PluginTensorDesc> inputs;
    for (int32_t s = 0; s < kSourceCount; ++s)
    {
        if (problem.attributes.sources[s] != 0)
        {
            inputs.push_back(describe(problem.type, sourceShape(problem, s)));
        }
    }
    for (int32_t s = 0; s < kSourceCount; ++s)
    {
        if (problem.attributes.sources[s] != 0)
        {
            inputs.push_back(describe(problem.type, weightShape(problem, s)));
        }
    }
    if (problem.attributes.hasBias != 0)
    {
        inputs.push_back(describe(problem.type, {problem.extents.outChannels}));
    }
    nvinfer1::PluginTensorDesc const outputDesc = describe(problem.type,
        {problem.extents.batch, problem.extents.outChannels, outputExtent(problem.attributes, problem.extents, 0),
            outputExtent(problem.attributes, problem.extents, 1)});
    auto const dynamic = [](nvinfer1::PluginTensorDesc const& desc)
    { return nvinfer1::DynamicPluginTensorDesc{desc, desc.dims, desc.dims, desc.dims}; };
    std::vector<nvinfer1::DynamicPluginTensorDesc> dynamicInputs;
    std::transform(inputs.begin(), inputs.end(), std::back_inserter(dynamicInputs), dynamic);
    nvinfer1::DynamicPluginTensorDesc const dynamicOutput = dynamic(outputDesc);
    int32_t const count = static_cast<int32_t>(inputs.size());
    if (build->configurePlugin(dynamicInputs.data(), count, &dynamicOutput, 1) != 0)
    {
        return "configurePlugin failed";
    }
    std::size_t const workspace = build->getWorkspaceSize(dynamicInputs.data(), count, &dynamicOutput, 1);

    test::DeviceCase device(record, workspace);
    if (device.error != cudaSuccess)
    {
        return cudaGetErrorName(device.error);
    }
    std::vector<void const*> pointers;
    for (auto const& memory : device.inputs) // in the operator's order; absent ones are null
    {
        if (memory != nullptr)
        {
            pointers.push_back(memory.get());
        }
    }
    void* const outputs[1] = {device.output.get()};
    if (runtime->setTactic(static_cast<int32_t>(record.path)) != 0
        || runtime->onShapeChange(inputs.data(), count, &outputDesc, 1) != 0)
    {
        return "setTactic or onShapeChange failed";
    }
    if (runtime->enqueue(inputs.data(), &outputDesc, pointers.data(), outputs, device.workspace.get(), stream) != 0)
    {
        return "enqueue failed";
    }
    return device.finish(record, stream, output);
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 5)
    {
        std::fprintf(stderr, "usage: registry_driver LIBNVINFER PLUGIN CASES OUTPUTS\n");
        return 2;
    }
    void* const library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    auto const getRegistry = library == nullptr
        ? nullptr
        : reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"));
    if (getRegistry == nullptr)
    {
        std::fprintf(stderr, "registry_driver: %s\n", dlerror());
        return kMissing;
    }
    nvinfer1::IPluginRegistry* const registry = getRegistry();
    if (registry->loadLibrary(argv[2]) == nullptr)
    {
        std::fprintf(stderr, "registry_driver: the registry does not load %s\n", argv[2]);
        return kMissing;
    }
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(registry->getCreator("MSConv2d", "1", ""));
    if (creator == nullptr)
    {
        std::fprintf(stderr, "registry_driver: the registry has no creator MSConv2d, version 1\n");
        return kMissing;
    }
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
    {
        std::fprintf(stderr, "registry_driver: the creator was found; there is no GPU to run it on\n");
        return kMissing;
    }
    cudaStream_t stream{};
    if (cudaStreamCreate(&stream) != cudaSuccess)
    {
        std::fprintf(stderr, "registry_driver: no stream can be created\n");
        return kMissing;
    }
    return test::runCases("registry_driver", argv[3], argv[4],
        [&](test::CaseRecord const& record, char* output) { return runCase(*creator, record, stream, output); });
}
