// The operator's attributes as TensorRT's plugin fields: one table from which the creator's list of fields, reading,
// serializing and the describing text are made.
#pragma once

#include "../kernels/msconv2d.h"
#include "reporting.h"

namespace msconv::plugin
{

constexpr int32_t kFieldCount = 11;

//! Whose fields are read: a model's, where what is absent has its default, or a plan's, where nothing may be absent.
enum class FieldsOf
{
    kModel,
    kPlan,
};

//! Fields without values, as a creator lists them. Valid for the life of the process.
nvinfer1::PluginFieldCollection const* fieldNames() noexcept;

//! Fields that point into `attributes`; they are valid as long as it lives.
void fieldsOf(Attributes const& attributes, nvinfer1::PluginField (&fields)[kFieldCount]) noexcept;

//! Reads and checks fields. Null, or what is wrong, with the attribute's name.
char const* readFields(
    nvinfer1::PluginFieldCollection const* fields, FieldsOf origin, Attributes& attributes, Message& message) noexcept;

//! "sources=1/0/0/1 kernel_shape=3/3 ...": equal for equal attributes. Writes at most `size` bytes.
void describe(Attributes const& attributes, char* text, std::size_t size) noexcept;

} // namespace msconv::plugin
