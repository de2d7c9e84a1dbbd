// What the plugin's tests see of the kernels: a launch is written down instead of made, and can be told to fail.
#pragma once

#include "../kernels/msconv2d.h"

namespace msconv::test
{

struct Launch
{
    Problem problem;
    Tensors tensors;
    Path path;
    int32_t computeCapability;
    CUstream_st* stream;
};

struct KernelsDouble
{
    int32_t launches{};
    Launch last{};
    char const* failure{};         //!< what enqueue() answers
    int32_t computeCapability{90}; //!< of the device that there is; 0: none
};

extern KernelsDouble gKernels;

} // namespace msconv::test
