// One run of the operator, from TensorRT's descriptions of tensors to the kernels. Both plugin interfaces come through
// here.
#pragma once

#include "shapes.h"

namespace msconv::plugin
{

//! Assembles and checks the problem of one run. Null, or what is wrong.
char const* readRun(Attributes const& attributes, nvinfer1::PluginTensorDesc const* inputs, int32_t nbInputs,
    nvinfer1::PluginTensorDesc const* outputs, int32_t nbOutputs, Problem& problem, Message& message) noexcept;

//! `preferred` where it can run the problem on a device, else kChoose.
Path runnablePath(Problem const& problem, Path preferred, int32_t computeCapability) noexcept;

//! Launches a problem that readRun() made. Allocates nothing. Null, or what is wrong.
char const* run(Problem const& problem, void const* const* inputs, void* const* outputs, void* workspace, Path path,
    int32_t computeCapability, cudaStream_t stream, Message& message) noexcept;

} // namespace msconv::plugin
