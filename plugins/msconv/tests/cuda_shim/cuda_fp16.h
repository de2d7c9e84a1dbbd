// Stands in for CUDA's header of this name.
#pragma once

#include "half_types.h"

struct __half
{
    uint16_t bits;
};

struct alignas(4) __half2
{
    __half x, y;
};

inline __half __float2half_rn(float x)
{
    return {cuda_shim::halfBits(x)};
}

inline float __half2float(__half x)
{
    return cuda_shim::halfValue(x.bits);
}

inline __half2 __floats2half2_rn(float x, float y)
{
    return {__float2half_rn(x), __float2half_rn(y)};
}

inline uint16_t __half_as_ushort(__half x)
{
    return x.bits;
}

inline __half __ushort_as_half(uint16_t bits)
{
    return {bits};
}
