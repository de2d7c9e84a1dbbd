// 16-bit floating types on the CPU, rounded exactly as the GPU does: to nearest even, subnormals kept, overflow to infinity.
#pragma once

#include <cstdint>
#include <cstring>

namespace cuda_shim
{

inline uint32_t bitsOf(float x)
{
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

inline float floatOf(uint32_t bits)
{
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

inline uint16_t halfBits(float x)
{
    uint32_t const bits = bitsOf(x);
    uint32_t const sign = (bits >> 16) & 0x8000U;
    uint32_t const magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U)
    {
        return 0x7FFF; // the GPU's NaN
    }
    if (magnitude >= 0x477FF000U) // 65520 rounds to infinity
    {
        return static_cast<uint16_t>(sign | 0x7C00U);
    }
    uint32_t const exponent = magnitude >> 23;
    // A normal result drops 13 bits of the fraction; a subnormal one (below 2^-14) more, the leading 1 among them.
    uint32_t const dropped = exponent >= 113 ? 13 : 126 - exponent;
    if (dropped > 24)
    {
        return static_cast<uint16_t>(sign);
    }
    uint32_t const value = exponent >= 113 ? magnitude - (112U << 23) : (magnitude & 0x7FFFFFU) | 0x800000U;
    uint32_t const kept = value >> dropped;
    uint32_t const rest = value & ((1U << dropped) - 1U);
    uint32_t const middle = 1U << (dropped - 1U);
    uint32_t const up = rest > middle || (rest == middle && (kept & 1U) != 0) ? 1U : 0U;
    return static_cast<uint16_t>(sign | (kept + up)); // a carry moves into the exponent, as it should
}

inline float halfValue(uint16_t half)
{
    uint32_t const sign = static_cast<uint32_t>(half & 0x8000U) << 16;
    uint32_t const exponent = (half >> 10) & 0x1FU;
    uint32_t const fraction = half & 0x3FFU;
    if (exponent == 0x1F)
    {
        return floatOf(sign | 0x7F800000U | (fraction << 13));
    }
    if (exponent != 0)
    {
        return floatOf(sign | ((exponent + 112U) << 23) | (fraction << 13));
    }
    float const magnitude = static_cast<float>(fraction) * (1.0F / 16777216.0F); // 2^-24
    return sign != 0 ? -magnitude : magnitude;
}

inline uint16_t bfloat16Bits(float x)
{
    uint32_t const bits = bitsOf(x);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U)
    {
        return 0x7FFF;
    }
    return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

inline float bfloat16Value(uint16_t x)
{
    return floatOf(static_cast<uint32_t>(x) << 16);
}

} // namespace cuda_shim
