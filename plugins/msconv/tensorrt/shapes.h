// From TensorRT's descriptions of tensors to the operator's extents, and to the shape of its output.
//
// The inputs are the sources that are present, then their weights, then the bias (docs/spec.md).
#pragma once

#include "../kernels/msconv2d.h"
#include "reporting.h"

namespace msconv::plugin
{

constexpr int32_t kMaxInputs = 2 * kSourceCount + 1;

//! Number of inputs that an operator with these attributes takes.
int32_t inputCount(Attributes const& attributes) noexcept;

//! Null if a layer has the right number of inputs and one output; else what is missing, by name.
char const* checkCounts(Attributes const& attributes, int32_t nbInputs, int32_t nbOutputs, Message& message) noexcept;

//! Null if all tensors have one supported type; else which one has not. Writes that type.
char const* readType(Attributes const& attributes, nvinfer1::DataType const* types, int32_t nbInputs, DataType& type,
    Message& message) noexcept;

//! Is this the type and format of a tensor that the plugin can take, given the layer's first one?
bool supports(nvinfer1::PluginTensorDesc const& tensor, nvinfer1::PluginTensorDesc const& first) noexcept;

//! [N, O, H', W'] as expressions of the inputs' extents. Null, or what is wrong.
char const* outputShape(Attributes const& attributes, nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs& output, nvinfer1::IExprBuilder& builder, Message& message) noexcept;

//! Types and shapes of a layer's inputs; at most kMaxInputs are looked at.
struct Inputs
{
    int32_t count{};
    nvinfer1::DataType types[kMaxInputs]{};
    nvinfer1::Dims const* shapes[kMaxInputs]{};
};

Inputs inputsOf(nvinfer1::PluginTensorDesc const* tensors, int32_t nbInputs) noexcept;

//! `which` is one of the shapes that a tensor has while an engine is built: smallest, best or largest.
Inputs inputsOf(nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t nbInputs,
    nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::* which) noexcept;

//! What the shapes given to readProblem() are.
enum class ShapesAre
{
    kActual, //!< of one run
    kUpper,  //!< each tensor's largest, which need not fit each other: taken as a bound of the sizes of all runs
};

//! Assembles and checks a problem. Null, or what is wrong: a missing input, a type, a rank, an extent, an attribute
//! that does not fit them.
char const* readProblem(
    Attributes const& attributes, Inputs const& inputs, ShapesAre meaning, Problem& problem, Message& message) noexcept;

} // namespace msconv::plugin
