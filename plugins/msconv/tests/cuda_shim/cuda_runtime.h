// Stands in for CUDA's header of this name when the kernels are compiled for the CPU: the part of the language and of the
// runtime that they use.
#pragma once

#include "simulator.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (::cuda_shim::threadIndex())
#define blockIdx (::cuda_shim::blockIndex())
#define blockDim (::cuda_shim::blockExtent())
#define gridDim (::cuda_shim::gridExtent())

struct alignas(8) float2
{
    float x, y;
};

struct alignas(16) float4
{
    float x, y, z, w;
};

struct alignas(8) int2
{
    int x, y;
};

struct alignas(16) int4
{
    int x, y, z, w;
};

struct alignas(8) uint2
{
    unsigned x, y;
};

struct alignas(16) uint4
{
    unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y)
{
    return {x, y};
}

inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
};

enum cudaFuncAttribute
{
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
};

cudaError_t cudaGetLastError();
char const* cudaGetErrorName(cudaError_t error);

namespace cuda_shim
{

cudaError_t setSharedLimit(void const* kernel, int bytes);

} // namespace cuda_shim

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value)
{
    return cuda_shim::setSharedLimit(reinterpret_cast<void const*>(kernel), value);
}

#define MSCONV_SITE(what) (::cuda_shim::Site{__FILE__, __LINE__, what})

#define __syncthreads() ::cuda_shim::syncThreads(MSCONV_SITE("__syncthreads"))
#define __syncwarp(...) ::cuda_shim::syncWarp(MSCONV_SITE("__syncwarp"), ##__VA_ARGS__)
#define __shfl_sync(mask, value, lane) (::cuda_shim::gather(MSCONV_SITE("__shfl_sync"), (mask), (value))[lane])
#define __shfl_xor_sync(mask, value, bits) \
    (::cuda_shim::gather(MSCONV_SITE("__shfl_xor_sync"), (mask), (value))[::cuda_shim::laneIndex() ^ (bits)])
#define __trap() ::cuda_shim::fail("%s:%d: __trap", __FILE__, __LINE__)

namespace cuda_shim
{

inline void syncWarp(Site const& site, uint32_t mask = 0xFFFFFFFFU)
{
    exchange(site, mask, nullptr, 0);
}

} // namespace cuda_shim

template <typename T>
T __ldg(T const* address)
{
    return *address;
}
