// Stands for the CUDA part of the kernels and for the device. Checks, sizes and paths are the kernels' own
// (kernels/problem.cpp).
#include "tensorrt_kernels_double.h"

#include "../tensorrt/device.h"

#include <cstdio>

namespace msconv
{

namespace test
{

KernelsDouble gKernels;

} // namespace test

char const* enqueue(Problem const& problem, Tensors const& tensors, Path path, int32_t computeCapability,
    CUstream_st* stream, char* buffer, std::size_t size)
{
    if (char const* const error = checkProblem(problem, buffer, size))
    {
        return error;
    }
    if (test::gKernels.failure != nullptr)
    {
        std::snprintf(buffer, size, "%s", test::gKernels.failure);
        return buffer;
    }
    ++test::gKernels.launches;
    test::gKernels.last = {problem, tensors, path, computeCapability, stream};
    return nullptr;
}

namespace plugin
{

int32_t computeCapability() noexcept
{
    return test::gKernels.computeCapability;
}

} // namespace plugin

} // namespace msconv
