// Registers the creator when the library is merely opened.
//
// TensorRT's IPluginRegistry::loadLibrary() asks the entry points for creators. Triton's `plugins` option, ONNX
// Runtime's provider, ctypes and `trtexec --staticPlugins` only dlopen() a library and expect it to register itself.
// They have TensorRT loaded by then, so its registry is found without linking to it; where no TensorRT is loaded,
// nothing happens. When it is a registry that opens the library, it finds the creator there already: the entry point
// takes it out again first. The library is linked so that it stays in memory once it is opened (-z nodelete), because a
// registry may hold its creator.
#include "registration.h"

#include <dlfcn.h>

#include "plugin_v2.h"
#include "plugin_v3.h"

#define MSCONV_TEXT_OF(token) #token
#define MSCONV_TEXT(macro) MSCONV_TEXT_OF(macro)

namespace msconv::plugin
{

namespace
{

//! TensorRT and its lean runtime, of the major version that this library is compiled for.
constexpr char const* kLibraries[] = {
    "libnvinfer.so." MSCONV_TEXT(NV_TENSORRT_MAJOR), "libnvinfer_lean.so." MSCONV_TEXT(NV_TENSORRT_MAJOR)};
constexpr int32_t kLibraryCount = sizeof(kLibraries) / sizeof(kLibraries[0]);

bool gRegistered[kLibraryCount]{};

//! The registry of a library, if that is loaded in this process.
nvinfer1::IPluginRegistry* registryOf(char const* name) noexcept
{
    void* const library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr)
    {
        return nullptr;
    }
    using GetRegistry = nvinfer1::IPluginRegistry* (*)();
    auto const getRegistry = reinterpret_cast<GetRegistry>(dlsym(library, "getPluginRegistry"));
    nvinfer1::IPluginRegistry* const registry = getRegistry == nullptr ? nullptr : getRegistry();
    dlclose(library); // it was loaded before, and stays
    return registry;
}

struct AtOpening
{
    AtOpening() noexcept
    {
        for (int32_t i = 0; i < kLibraryCount; ++i)
        {
            nvinfer1::IPluginRegistry* const registry = registryOf(kLibraries[i]);
            gRegistered[i] = registry != nullptr && registry->registerCreator(creator(), kNamespace);
        }
    }
} const gAtOpening;

} // namespace

Creator& creator() noexcept
{
#if MSCONV_PLUGIN_V3
    static auto* const made = new MSConv2dCreatorV3;
#else
    static auto* const made = new MSConv2dCreatorV2;
#endif
    return *made;
}

void withdraw() noexcept
{
    for (int32_t i = 0; i < kLibraryCount; ++i)
    {
        nvinfer1::IPluginRegistry* const registry = gRegistered[i] ? registryOf(kLibraries[i]) : nullptr;
        if (registry != nullptr)
        {
            registry->deregisterCreator(creator());
        }
        gRegistered[i] = false;
    }
}

} // namespace msconv::plugin
