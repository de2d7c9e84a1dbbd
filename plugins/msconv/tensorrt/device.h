// What the plugin asks of the CUDA device.
#pragma once

#include <cstdint>

namespace msconv::plugin
{

//! Compute capability of the current device, 75, 80, 86, ...; 0 if there is none.
int32_t computeCapability() noexcept;

} // namespace msconv::plugin
