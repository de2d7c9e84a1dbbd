// enqueue(): check, fill the tables, run the path.
#include "launch.h"
#include "message.h"
#include "paths.h"

#include <algorithm>

namespace msconv
{

namespace
{

//! The first tensor of the problem that has no pointer, as a sentence; null if there is none.
char const* missingTensor(Problem const& problem, Tensors const& tensors, Message const& message)
{
    for (int32_t s = 0; s < kSourceCount; ++s)
    {
        bool const present = problem.attributes.sources[s] != 0;
        if (present && (tensors.sources[s] == nullptr || tensors.weights[s] == nullptr))
        {
            return message("sources: %s is present, but its %s is missing", kSourceNames[s],
                tensors.sources[s] == nullptr ? "tensor" : "weight");
        }
    }
    if (problem.attributes.hasBias != 0 && tensors.bias == nullptr)
    {
        return "has_bias is 1, but the bias is missing";
    }
    if (tensors.output == nullptr)
    {
        return "the output is missing";
    }
    if (workspaceBytes(problem) > 0 && tensors.workspace == nullptr)
    {
        return "the workspace is missing";
    }
    return nullptr;
}

} // namespace

char const* enqueue(Problem const& problem, Tensors const& tensors, Path path, int32_t computeCapability,
    CUstream_st* stream, char* buffer, std::size_t size)
{
    Message const message{buffer, size};
    if (char const* wrong = checkProblem(problem, buffer, size))
    {
        return wrong;
    }
    Path paths[kPathCount];
    Path* const end = paths + availablePaths(problem, computeCapability, paths);
    if (path == Path::kChoose)
    {
        path = paths[0];
    }
    if (std::find(paths, end, path) == end)
    {
        return message("path %d cannot run this problem on a device of compute capability %d", static_cast<int>(path),
            computeCapability);
    }
    if (problem.extents.batch == 0)
    {
        return nullptr;
    }
    if (char const* wrong = missingTensor(problem, tensors, message))
    {
        return wrong;
    }
    std::size_t bytes = 0;
    Tables const tables = layOutTables(problem, tensors.workspace, &bytes);
    if (char const* error = bytes > 0 ? launchProjection(problem, tensors, tables, stream) : nullptr)
    {
        return error;
    }
    switch (path)
    {
    case Path::kTensorCore: return launchTensorCore(problem, tensors, tables, stream);
    case Path::kImplicitGemm: return launchImplicitGemm(problem, tensors, tables, stream);
    case Path::kFfma:
    case Path::kChoose: break;
    }
    return launchFfma(problem, tensors, tables, stream);
}

} // namespace msconv
