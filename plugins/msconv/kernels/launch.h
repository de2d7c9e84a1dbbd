// Launchers of the kernels, for dispatch.cu. All take a valid problem with a batch of at least 1, launch on the stream,
// allocate nothing and do not synchronize. They return null or what is wrong.
#pragma once

#include "cuda.h"
#include "msconv2d.h"
#include "tables.h"

namespace msconv
{

//! Largest extent of a grid along y or z; along x it is INT32_MAX.
constexpr int64_t kMaxGridYZ = 65535;

//! The name of the CUDA error of the launch that was just made, else null.
inline char const* launchError()
{
    cudaError_t const error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

//! Fill the tables (projection.cu).
char const* launchProjection(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream);

//! The paths. Each convolves the image, adds the tables and applies the activation.
char const* launchFfma(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream);
char const* launchTensorCore(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream);
char const* launchImplicitGemm(
    Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream);

} // namespace msconv
