// One warp that executes one instruction of kernels/mma.h, as C functions: for the tests of their emulation, and of the
// functions themselves on a GPU. Registers are arrays [lane][value]; pointers are to device memory.
#include "mma.h"

namespace
{

using namespace msconv;

constexpr int32_t kEights = 4; // 8 x 8 matrices of one ldmatrix

template <typename T>
__global__ void multiplyKernel(uint32_t const* a, uint32_t const* b, float* d)
{
    int32_t const lane = threadIdx.x;
    uint32_t const ofA[4] = {a[lane * 4], a[lane * 4 + 1], a[lane * 4 + 2], a[lane * 4 + 3]};
    uint32_t const ofB[2] = {b[lane * 2], b[lane * 2 + 1]};
    float ofD[4] = {d[lane * 4], d[lane * 4 + 1], d[lane * 4 + 2], d[lane * 4 + 3]};
    multiplyAccumulate<T>(ofD, ofA, ofB);
    for (int32_t i = 0; i < 4; ++i)
    {
        d[lane * 4 + i] = ofD[i];
    }
}

//! Copy 32 rows of 16 bytes to shared memory, those marked by `valid`, and load them as four matrices.
template <bool kTransposed>
__global__ void loadKernel(uint4 const* rows, int32_t const* valid, uint32_t* registers)
{
    MSCONV_SHARED_ARRAY(uint4, shared, kWarpSize);
    int32_t const lane = threadIdx.x;
    beginCopy16(shared + lane, rows + lane, valid[lane] != 0);
    waitForCopies();
    __syncthreads();
    uint32_t r[kEights];
    if (kTransposed)
    {
        loadMatricesTransposed(r, shared + lane);
    }
    else
    {
        loadMatrices(r, shared + lane);
    }
    for (int32_t m = 0; m < kEights; ++m)
    {
        registers[lane * kEights + m] = r[m];
    }
}

__global__ void selectKernel(uint32_t const* a, uint32_t const* b, uint32_t const* selectors, uint32_t* results)
{
    int32_t const lane = threadIdx.x;
    results[lane] = selectBytes(a[lane], b[lane], selectors[lane]);
}

} // namespace

extern "C"
{

    __attribute__((visibility("default"))) int32_t msconvMultiply(
        int32_t bfloat16, uint32_t const* a, uint32_t const* b, float* d)
    {
        auto const kernel = bfloat16 != 0 ? multiplyKernel<__nv_bfloat16> : multiplyKernel<__half>;
        MSCONV_LAUNCH(kernel, dim3(1), dim3(kWarpSize), 0, nullptr, a, b, d);
        return static_cast<int32_t>(cudaGetLastError());
    }

    __attribute__((visibility("default"))) int32_t msconvLoadMatrices(
        int32_t transposed, void const* rows, int32_t const* valid, uint32_t* registers)
    {
        auto const kernel = transposed != 0 ? loadKernel<true> : loadKernel<false>;
        MSCONV_LAUNCH(kernel, dim3(1), dim3(kWarpSize), 0, nullptr, static_cast<uint4 const*>(rows), valid, registers);
        return static_cast<int32_t>(cudaGetLastError());
    }

    __attribute__((visibility("default"))) int32_t msconvSelectBytes(
        uint32_t const* a, uint32_t const* b, uint32_t const* selectors, uint32_t* results)
    {
        auto const kernel = selectKernel;
        MSCONV_LAUNCH(kernel, dim3(1), dim3(kWarpSize), 0, nullptr, a, b, selectors, results);
        return static_cast<int32_t>(cudaGetLastError());
    }

} // extern "C"
