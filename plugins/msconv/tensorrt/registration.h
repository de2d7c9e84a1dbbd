// The library's one creator, and how a registry gets it.
#pragma once

#include "headers.h"

namespace msconv::plugin
{

#if MSCONV_PLUGIN_V3
using Creator = nvinfer1::IPluginCreatorInterface;
#else
using Creator = nvinfer1::IPluginCreator;
#endif

//! The creator. It is never destroyed: registries hold it until the process ends.
Creator& creator() noexcept;

//! Takes the creator out of every registry that it was put into when the library was opened.
void withdraw() noexcept;

} // namespace msconv::plugin
