// From the fp32 sum to the stored value: activation, rounding, store.
//
// The activation is chosen at run time. It is the same for the whole launch, and the functions take several values at once, so
// that one uniform branch serves them all; a template would multiply the kernels by seven.
#pragma once

#include "cuda.h"
#include "msconv2d.h"

#include <cmath>

namespace msconv
{

struct Epilogue
{
    Activation activation;
    float first;  //!< slope of leaky_relu, low of clip
    float second; //!< high of clip
};

inline Epilogue epilogueOf(Attributes const& a)
{
    return {a.activation, a.activationParams[0], a.activationParams[1]};
}

//! 1 / (1 + exp(-x)), written so that nothing overflows.
MSCONV_DEVICE float sigmoid(float x)
{
    float const decay = expf(-fabsf(x));
    return (x < 0.0F ? decay : 1.0F) / (1.0F + decay);
}

//! The formulas of msconv_deploy/ops/reference.py. NaN stays NaN in all of them (comparisons with it are false), and clip with
//! low > high gives high, as in ONNX.
template <int32_t kCount>
MSCONV_DEVICE void activate(Epilogue const& epilogue, float (&x)[kCount])
{
    switch (epilogue.activation)
    {
    case Activation::kNone: break;
    case Activation::kRelu:
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            x[i] = x[i] < 0.0F ? 0.0F : x[i];
        }
        break;
    case Activation::kLeakyRelu:
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            x[i] = x[i] < 0.0F ? epilogue.first * x[i] : x[i];
        }
        break;
    case Activation::kSilu:
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            x[i] = x[i] * sigmoid(x[i]);
        }
        break;
    case Activation::kSigmoid:
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            x[i] = sigmoid(x[i]);
        }
        break;
    case Activation::kTanh:
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            x[i] = tanhf(x[i]);
        }
        break;
    case Activation::kClip:
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            float const raised = x[i] < epilogue.first ? epilogue.first : x[i];
            x[i] = raised > epilogue.second ? epilogue.second : raised;
        }
        break;
    }
}

MSCONV_DEVICE float toFloat(float x)
{
    return x;
}

MSCONV_DEVICE float toFloat(__half x)
{
    return __half2float(x);
}

MSCONV_DEVICE float toFloat(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

//! Round to nearest even; beyond the type's range to infinity.
template <typename T>
MSCONV_DEVICE T fromFloat(float x);

template <>
MSCONV_DEVICE float fromFloat<float>(float x)
{
    return x;
}

template <>
MSCONV_DEVICE __half fromFloat<__half>(float x)
{
    return __float2half_rn(x);
}

template <>
MSCONV_DEVICE __nv_bfloat16 fromFloat<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}

//! An aligned group of values, moved with one instruction if it has 4, 8 or 16 bytes.
template <typename T, int32_t kCount>
struct alignas(sizeof(T) * kCount) Pack
{
    T values[kCount];
};

//! Store the first `valid` of kCount consecutive values (a power of two): with one instruction where all are valid and
//! the address is aligned to them, else in two halves.
template <typename T, int32_t kCount>
MSCONV_DEVICE void store(T* to, float const (&x)[kCount], int32_t valid)
{
    static_assert(sizeof(T) * kCount <= 16, "one store moves at most 16 bytes");
    using Vector = Pack<T, kCount>;
    if (valid >= kCount && reinterpret_cast<uintptr_t>(to) % sizeof(Vector) == 0)
    {
        Vector vector;
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            vector.values[i] = fromFloat<T>(x[i]);
        }
        *reinterpret_cast<Vector*>(to) = vector;
    }
    else if constexpr (kCount > 1)
    {
        constexpr int32_t kHalf = kCount / 2;
        float halves[2][kHalf];
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
        {
            halves[i / kHalf][i % kHalf] = x[i];
        }
        store(to, halves[0], valid);
        store(to + kHalf, halves[1], valid - kHalf);
    }
}

} // namespace msconv
