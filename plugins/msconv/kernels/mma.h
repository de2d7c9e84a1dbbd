// Tensor-core, matrix-load, byte and asynchronous-copy instructions as functions. No other file of the kernels holds PTX, so that
// the CPU tests replace this layer alone (tests/cuda_shim/mma_emulation.h).
//
// Fragments are those of the PTX ISA ("Matrix Fragments for mma.m16n8k16"). With g = lane / 4 and q = lane % 4, two 16-bit
// values to a register, the one with the smaller index in the lower half:
//
//     A 16 x 16   a[0] = (g, 2q..)   a[1] = (g+8, 2q..)   a[2] = (g, 2q+8..)   a[3] = (g+8, 2q+8..)
//     B 16 x 8    b[0] = (2q.., g)   b[1] = (2q+8.., g)
//     D 16 x 8    d[0], d[1] = (g, 2q), (g, 2q+1)         d[2], d[3] = (g+8, 2q), (g+8, 2q+1)
#pragma once

#include "cuda.h"

#include <cstdint>

#if defined(__CUDA_ARCH__)
#define MSCONV_ARCH __CUDA_ARCH__
#elif !defined(MSCONV_ARCH)
#define MSCONV_ARCH 800 // nvcc's pass over the host code, and the CPU tests unless they ask for another
#endif

#if !defined(__CUDACC__)
#include "mma_emulation.h"
#endif

namespace msconv
{

constexpr int32_t kWarpSize = 32;

namespace ptx
{

#if defined(__CUDACC__)

#if MSCONV_ARCH >= 800

MSCONV_DEVICE void mmaF16K16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
                 "%1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MSCONV_DEVICE void mmaBf16K16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

//! 16 x 8 times 8 x 8: a0 = (g, 2q..), a1 = (g+8, 2q..), b = (2q.., g).
MSCONV_DEVICE void mmaF16K8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
}

MSCONV_DEVICE uint32_t sharedAddress(void const* shared)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

MSCONV_DEVICE void ldmatrix(uint32_t (&r)[4], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(sharedAddress(row))
        : "memory");
}

MSCONV_DEVICE void ldmatrixTransposed(uint32_t (&r)[4], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(sharedAddress(row))
        : "memory");
}

#if MSCONV_ARCH >= 800

MSCONV_DEVICE void cpAsync16(void* shared, void const* global, int32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :
        : "r"(sharedAddress(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
        : "memory");
}

MSCONV_DEVICE void cpAsyncWaitAll()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

#endif

MSCONV_DEVICE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector)
{
    return __byte_perm(a, b, selector);
}

#else

using namespace cuda_shim::ptx;

#endif

} // namespace ptx

//! d += a * b for a 16 x 16 times 16 x 8 tile, accumulated in fp32. T is __half or __nv_bfloat16. The whole warp must call.
//! On sm_75, which multiplies fp16 8 deep and has no bf16, two instructions do one step of fp16.
template <typename T>
MSCONV_DEVICE void multiplyAccumulate(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2]);

template <>
MSCONV_DEVICE void multiplyAccumulate<__half>(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
#if MSCONV_ARCH >= 800
    ptx::mmaF16K16(d, a, b);
#else
    ptx::mmaF16K8(d, a[0], a[1], b[0]);
    ptx::mmaF16K8(d, a[2], a[3], b[1]);
#endif
}

template <>
MSCONV_DEVICE void multiplyAccumulate<__nv_bfloat16>(
    [[maybe_unused]] float (&d)[4], [[maybe_unused]] uint32_t const (&a)[4], [[maybe_unused]] uint32_t const (&b)[2])
{
#if MSCONV_ARCH >= 800
    ptx::mmaBf16K16(d, a, b);
#else
    __trap(); // availablePaths() offers no bf16 here
#endif
}

//! Four bytes, each chosen by a hexadecimal digit of the selector, the lowest first: 0..3 from a, 4..7 from b.
MSCONV_DEVICE uint32_t selectBytes(uint32_t a, uint32_t b, uint32_t selector)
{
    return ptx::prmt(a, b, selector);
}

//! Four 8 x 8 matrices of 16-bit values from shared memory. Lane 8 m + r passes the address of row r of matrix m (16 bytes,
//! aligned to them) and receives in r[m] the values (g, 2q..) of matrix m. The whole warp must call.
MSCONV_DEVICE void loadMatrices(uint32_t (&r)[4], void const* row)
{
    ptx::ldmatrix(r, row);
}

//! The same, each matrix transposed on the way: r[m] holds the values (2q, g) and (2q+1, g).
MSCONV_DEVICE void loadMatricesTransposed(uint32_t (&r)[4], void const* row)
{
    ptx::ldmatrixTransposed(r, row);
}

//! Begin to copy 16 bytes, aligned to them, from global to shared memory; zeros instead unless `valid` (then nothing is read).
//! They are there after waitForCopies() and a barrier. sm_75 copies at once.
MSCONV_DEVICE void beginCopy16(void* shared, void const* global, bool valid)
{
#if MSCONV_ARCH >= 800
    ptx::cpAsync16(shared, global, valid ? 16 : 0);
#else
    *static_cast<uint4*>(shared) = valid ? *static_cast<uint4 const*>(global) : uint4{};
#endif
}

//! Wait for the copies that this thread has begun.
MSCONV_DEVICE void waitForCopies()
{
#if MSCONV_ARCH >= 800
    ptx::cpAsyncWaitAll();
#endif
}

} // namespace msconv
