#include "run.h"

#include <algorithm>

namespace msconv::plugin
{

char const* readRun(Attributes const& attributes, nvinfer1::PluginTensorDesc const* inputs, int32_t nbInputs,
    nvinfer1::PluginTensorDesc const* outputs, int32_t nbOutputs, Problem& problem, Message& message) noexcept
{
    if (char const* const error = checkCounts(attributes, nbInputs, nbOutputs, message))
    {
        return error;
    }
    if (char const* const error =
            readProblem(attributes, inputsOf(inputs, nbInputs), ShapesAre::kActual, problem, message))
    {
        return error;
    }
    nvinfer1::Dims const& shape = outputs[0].dims;
    Extents const& extents = problem.extents;
    int64_t const expected[4] = {
        extents.batch, extents.outChannels, outputExtent(attributes, extents, 0), outputExtent(attributes, extents, 1)};
    if (shape.nbDims != 4 || !std::equal(expected, expected + 4, shape.d))
    {
        return message.format("the output must have shape [%lld, %lld, %lld, %lld], but TensorRT gives another",
            static_cast<long long>(expected[0]), static_cast<long long>(expected[1]),
            static_cast<long long>(expected[2]), static_cast<long long>(expected[3]));
    }
    if (outputs[0].type != inputs[0].type)
    {
        return "the output must have the type of the inputs";
    }
    return nullptr;
}

Path runnablePath(Problem const& problem, Path preferred, int32_t computeCapability) noexcept
{
    Path paths[kPathCount]{};
    Path* const end = paths + availablePaths(problem, computeCapability, paths);
    return std::find(paths, end, preferred) != end ? preferred : Path::kChoose;
}

char const* run(Problem const& problem, void const* const* inputs, void* const* outputs, void* workspace, Path path,
    int32_t computeCapability, cudaStream_t stream, Message& message) noexcept
{
    Tensors tensors{};
    int32_t const present = inputCount(problem.attributes) / 2;
    int32_t next = 0;
    for (int32_t source = 0; source < kSourceCount; ++source)
    {
        if (problem.attributes.sources[source] != 0)
        {
            tensors.sources[source] = inputs[next];
            tensors.weights[source] = inputs[present + next];
            ++next;
        }
    }
    tensors.bias = problem.attributes.hasBias != 0 ? inputs[2 * present] : nullptr;
    tensors.output = outputs[0];
    tensors.workspace = workspace;
    return enqueue(problem, tensors, path, computeCapability, stream, message.data(), Message::size());
}

} // namespace msconv::plugin
