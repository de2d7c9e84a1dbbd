// The CUDA that the kernels are written in, so that nvcc and, behind the shim of plugins/msconv/tests/cuda_shim, g++ both
// compile them. Beyond the language itself that is three spellings: of a launch and of the two kinds of shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDACC__)

//! Inline on the host and on the device.
#define MSCONV_HD __host__ __device__ __forceinline__
#define MSCONV_DEVICE __device__ __forceinline__

//! Launch `kernel`, a kernel's name or a pointer to it: put a template's name into a variable first (commas).
#define MSCONV_LAUNCH(kernel, grid, block, sharedBytes, stream, ...) \
    (kernel)<<<(grid), (block), (sharedBytes), (stream)>>>(__VA_ARGS__)

//! `type* name`: the block's dynamic shared memory, aligned to 16 bytes. At most once in a kernel.
#define MSCONV_DYNAMIC_SHARED(type, name)          \
    extern __shared__ uint4 msconvDynamicShared[]; \
    type* const name = reinterpret_cast<type*>(msconvDynamicShared)

//! `type name[count]` in shared memory, aligned to 16 bytes; `count` is a constant.
#define MSCONV_SHARED_ARRAY(type, name, count) __shared__ __align__(16) type name[count]

#else

#define MSCONV_HD inline
#define MSCONV_DEVICE inline
#define MSCONV_LAUNCH(kernel, grid, block, sharedBytes, stream, ...) \
    cuda_shim::launch((grid), (block), (sharedBytes), (stream), (kernel), __VA_ARGS__)
#define MSCONV_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(cuda_shim::dynamicShared())
#define MSCONV_SHARED_ARRAY(type, name, count) \
    static cuda_shim::SharedSlot name##Slot;   \
    type* const name = name##Slot.template array<type, (count)>()

#endif
