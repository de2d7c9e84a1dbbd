// Kernels with the mistakes that the simulated device must notice, and one without. tests/plugins/test_kernel_faults.py launches
// each of them on the shim.
#include "cuda.h"

namespace
{

constexpr int32_t kThreads = 64;

//! Sums numbers through shared memory and a warp: nothing is wrong.
__global__ void sound(float* result)
{
    MSCONV_SHARED_ARRAY(float, numbers, kThreads);
    int32_t const thread = static_cast<int32_t>(threadIdx.x);
    numbers[thread] = static_cast<float>(thread);
    __syncthreads();
    float sum = thread < 32 ? numbers[thread] + numbers[kThreads - 1 - thread] : 0.0F;
    for (int32_t bits = 16; bits > 0; bits /= 2)
    {
        sum += __shfl_xor_sync(0xFFFFFFFFU, sum, bits);
    }
    if (thread == 0)
    {
        *result = sum;
    }
}

//! Reads what another thread writes without waiting for it.
__global__ void missingBarrier(float* result)
{
    MSCONV_SHARED_ARRAY(float, numbers, kThreads);
    int32_t const thread = static_cast<int32_t>(threadIdx.x);
    numbers[thread] = 1.0F;
    result[thread] = numbers[kThreads - 1 - thread];
}

__global__ void divergentBarriers(float*)
{
    if (threadIdx.x < 32)
    {
        __syncthreads();
    }
    else
    {
        __syncthreads();
    }
}

__global__ void earlyExit(float*)
{
    if (threadIdx.x == 5)
    {
        return;
    }
    __syncthreads();
}

__global__ void absentLane(float* result)
{
    if (threadIdx.x % 32 != 3)
    {
        *result = __shfl_sync(0xFFFFFFFFU, 1.0F, 0);
    }
}

__global__ void laneOutsideMask(float* result)
{
    if (threadIdx.x < 16)
    {
        *result = __shfl_sync(0xFFFFU, 1.0F, 20);
    }
}

__global__ void beyondStaticShared(float*)
{
    MSCONV_SHARED_ARRAY(float, numbers, kThreads);
    numbers[kThreads + static_cast<int32_t>(threadIdx.x)] = 1.0F;
}

__global__ void beyondDynamicShared(float*)
{
    MSCONV_DYNAMIC_SHARED(float, numbers);
    numbers[kThreads + static_cast<int32_t>(threadIdx.x)] = 1.0F;
}

//! The second block finds what the first left, unless shared memory is new.
__global__ void uninitializedShared(float* result)
{
    MSCONV_DYNAMIC_SHARED(float, numbers);
    result[blockIdx.x] = numbers[threadIdx.x];
    numbers[threadIdx.x] = 1.0F;
}

using Kernel = void (*)(float*);

struct Entry
{
    Kernel kernel;
    unsigned blocks;
    unsigned threads;
    std::size_t sharedBytes;
};

constexpr std::size_t kBytes = kThreads * sizeof(float);

constexpr Entry kEntries[] = {
    {sound, 1, kThreads, 0},
    {missingBarrier, 1, kThreads, 0},
    {divergentBarriers, 1, kThreads, 0},
    {earlyExit, 1, kThreads, 0},
    {absentLane, 1, kThreads, 0},
    {laneOutsideMask, 1, kThreads, 0},
    {beyondStaticShared, 1, kThreads, 0},
    {beyondDynamicShared, 1, kThreads, kBytes},
    {uninitializedShared, 2, kThreads, kBytes},
    {sound, 1, 2048, 0},              // more threads than a block can have
    {sound, 1, kThreads, 100 * 1024}, // more shared memory than was asked for
};

} // namespace

//! Launch one of kEntries; `result` holds 64 floats. Returns what the simulated device says, empty if nothing.
extern "C" char const* launchFaulty(int32_t index, float* result)
{
    cuda_shim::clearFailure();
    Entry const& entry = kEntries[index];
    MSCONV_LAUNCH(entry.kernel, dim3(entry.blocks), dim3(entry.threads), entry.sharedBytes, nullptr, result);
    return cuda_shim::lastFailure();
}
