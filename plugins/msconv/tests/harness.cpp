// msconv2d.h with C linkage, for harness.py. The same file is compiled with the shim, where pointers are the CPU's, and by nvcc.
//
// Functions that can refuse return 0 or 1 and write the reason, a sentence or the name of a CUDA error, to `buffer`.
#include "msconv2d.h"

#include <cstdio>

#if !defined(__CUDACC__)
#include "simulator.h"
#endif

using namespace msconv;

namespace
{

int report(char const* wrong, char* buffer, std::size_t size)
{
    if (wrong != nullptr && wrong != buffer)
    {
        std::snprintf(buffer, size, "%s", wrong);
    }
    return wrong == nullptr ? 0 : 1;
}

} // namespace

extern "C"
{

    //! sizeof(Problem), sizeof(Tensors): harness.py mirrors them.
    void msconvSizes(int64_t sizes[2])
    {
        sizes[0] = sizeof(Problem);
        sizes[1] = sizeof(Tensors);
    }

    int msconvCheck(Problem const* problem, char* buffer, std::size_t size)
    {
        return report(checkProblem(*problem, buffer, size), buffer, size);
    }

    int64_t msconvOutputExtent(Problem const* problem, int32_t axis)
    {
        return outputExtent(problem->attributes, problem->extents, axis);
    }

    std::size_t msconvWorkspaceBytes(Problem const* problem)
    {
        return workspaceBytes(*problem);
    }

    int32_t msconvAvailablePaths(Problem const* problem, int32_t computeCapability, int32_t* paths)
    {
        Path found[kPathCount];
        int32_t const count = availablePaths(*problem, computeCapability, found);
        for (int32_t i = 0; i < count; ++i)
        {
            paths[i] = static_cast<int32_t>(found[i]);
        }
        return count;
    }

    int msconvEnqueue(Problem const* problem, Tensors const* tensors, int32_t path, int32_t computeCapability,
        void* stream, char* buffer, std::size_t size)
    {
#if !defined(__CUDACC__)
        cuda_shim::clearFailure();
#endif
        char const* wrong = enqueue(*problem, *tensors, static_cast<Path>(path), computeCapability,
            static_cast<CUstream_st*>(stream), buffer, size);
#if !defined(__CUDACC__)
        if (cuda_shim::lastFailure()[0] != '\0')
        {
            wrong = cuda_shim::lastFailure(); // says more than the name of the error
        }
#endif
        return report(wrong, buffer, size);
    }

} // extern "C"
