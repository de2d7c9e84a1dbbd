// TensorRT's headers of whichever version is compiled against, and the little that tells these versions apart.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#include <NvInferRuntime.h>
#pragma GCC diagnostic pop

//! 1: the plugin is an IPluginV3 (TensorRT 10 and later); 0: an IPluginV2DynamicExt (8.6).
#define MSCONV_PLUGIN_V3 (NV_TENSORRT_MAJOR >= 10)

//! 1: this TensorRT has a bfloat16 tensor type.
#define MSCONV_HAS_BFLOAT16 (NV_TENSORRT_MAJOR >= 9)

namespace msconv::plugin
{

constexpr char const* kName = "MSConv2d";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "";

} // namespace msconv::plugin
