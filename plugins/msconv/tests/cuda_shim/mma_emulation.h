// The instructions of kernels/mma.h on the simulated device. Operands are put together to whole matrices from the lanes'
// registers, with the formulas of the PTX ISA, multiplied, and taken apart again; sums are fp32, one product after the other.
// (Hardware adds the products of an instruction in an order and with a truncation of its own: results differ in the last bits.)
#pragma once

#include "half_types.h"
#include "simulator.h"

#include <array>
#include <cstdint>

namespace cuda_shim::ptx
{

inline constexpr uint32_t kWholeWarp = 0xFFFFFFFFU;

//! One register holds two 16-bit values, the first in its lower half.
inline uint16_t valueOf(uint32_t const* registers, int index)
{
    return static_cast<uint16_t>(registers[index / 2] >> (index % 2 * 16));
}

//! Row and column of a value.
struct Place
{
    int row;
    int column;
};

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "mma.m16n8k8": the place of value i of a lane. The latter
// are the former's first halves.

inline Place placeInA(int lane, int i)
{
    int const groupID = lane >> 2;
    int const threadIDInGroup = lane % 4;
    bool const upper = (0 <= i && i < 2) || (4 <= i && i < 6);
    return {upper ? groupID : groupID + 8, threadIDInGroup * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}

inline Place placeInB(int lane, int i)
{
    int const groupID = lane >> 2;
    int const threadIDInGroup = lane % 4;
    return {threadIDInGroup * 2 + (i & 1) + (i < 2 ? 0 : 8), groupID};
}

inline Place placeInD(int lane, int i)
{
    int const groupID = lane >> 2;
    int const threadIDInGroup = lane % 4;
    return {i < 2 ? groupID : groupID + 8, threadIDInGroup * 2 + (i & 1)};
}

//! d += A * B, A 16 x kDepth and B kDepth x 8, of 16-bit values that `toFloat` reads.
template <int kDepth, typename ToFloat>
void multiply(Site const& site, float (&d)[4], uint32_t const* a, uint32_t const* b, ToFloat toFloat)
{
    constexpr int kOfA = kDepth / 2; // values per lane
    constexpr int kOfB = kDepth / 4;
    struct Given
    {
        std::array<float, kOfA> a;
        std::array<float, kOfB> b;
    };
    Given mine;
    for (int i = 0; i < kOfA; ++i)
    {
        mine.a[static_cast<std::size_t>(i)] = toFloat(valueOf(a, i));
    }
    for (int i = 0; i < kOfB; ++i)
    {
        mine.b[static_cast<std::size_t>(i)] = toFloat(valueOf(b, i));
    }
    auto const lanes = gather(site, kWholeWarp, mine);
    // Rows of A and columns of B that this lane's results need are those of these groups of lanes; the others' stay unset.
    int const group = laneIndex() >> 2;
    int const pair = laneIndex() % 4;
    float matrixA[16][kDepth];
    float matrixB[kDepth][8];
    for (int lane = 0; lane < kWarpSize; ++lane)
    {
        bool const ofA = lane >> 2 == group;
        bool const ofB = lane >> 3 == pair;
        if (!ofA && !ofB)
        {
            continue;
        }
        Given const given = lanes[lane];
        for (int i = 0; i < kOfA && ofA; ++i)
        {
            Place const place = placeInA(lane, i);
            matrixA[place.row][place.column] = given.a[static_cast<std::size_t>(i)];
        }
        for (int i = 0; i < kOfB && ofB; ++i)
        {
            Place const place = placeInB(lane, i);
            matrixB[place.row][place.column] = given.b[static_cast<std::size_t>(i)];
        }
    }
    for (int i = 0; i < 4; ++i)
    {
        Place const place = placeInD(laneIndex(), i);
        for (int k = 0; k < kDepth; ++k)
        {
            d[i] += matrixA[place.row][k] * matrixB[k][place.column];
        }
    }
}

inline void mmaF16K16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    multiply<16>({__FILE__, __LINE__, "mma.m16n8k16 f16"}, d, a, b, halfValue);
}

inline void mmaBf16K16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    multiply<16>({__FILE__, __LINE__, "mma.m16n8k16 bf16"}, d, a, b, bfloat16Value);
}

inline void mmaF16K8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b)
{
    uint32_t const a[2] = {a0, a1};
    multiply<8>({__FILE__, __LINE__, "mma.m16n8k8 f16"}, d, a, &b, halfValue);
}

//! Four 8 x 8 matrices; lane 8 m + r gives the address of row r of matrix m.
inline void loadEights(Site const& site, uint32_t (&r)[4], void const* row, bool transposed)
{
    constexpr std::size_t kRowBytes = 16;
    requireShared(site, row, kRowBytes);
    if (reinterpret_cast<uintptr_t>(row) % kRowBytes != 0)
    {
        fail("%s:%d: %s from an address that is not a multiple of 16", site.file, site.line, site.what);
    }
    std::array<uint16_t, 8> mine;
    std::memcpy(mine.data(), row, kRowBytes);
    auto const lanes = gather(site, kWholeWarp, mine);
    int const major = laneIndex() / 4;
    int const minor = laneIndex() % 4 * 2;
    for (int m = 0; m < 4; ++m)
    {
        uint32_t pair = 0;
        for (int e = 0; e < 2; ++e)
        {
            int const line = transposed ? minor + e : major;
            int const column = transposed ? major : minor + e;
            pair |= static_cast<uint32_t>(lanes[8 * m + line][static_cast<std::size_t>(column)]) << (16 * e);
        }
        r[m] = pair;
    }
}

inline void ldmatrix(uint32_t (&r)[4], void const* row)
{
    loadEights({__FILE__, __LINE__, "ldmatrix"}, r, row, false);
}

inline void ldmatrixTransposed(uint32_t (&r)[4], void const* row)
{
    loadEights({__FILE__, __LINE__, "ldmatrix.trans"}, r, row, true);
}

inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t const bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i)
    {
        result |= static_cast<uint32_t>(bytes >> ((selector >> (4 * i) & 7U) * 8) & 0xFFU) << (8 * i);
    }
    return result;
}

inline void cpAsync16(void* shared, void const* global, int32_t bytes)
{
    beginCopy({__FILE__, __LINE__, "cp.async"}, shared, bytes == 0 ? nullptr : global, 16);
}

inline void cpAsyncWaitAll()
{
    waitForCopies(-1);
}

} // namespace cuda_shim::ptx
