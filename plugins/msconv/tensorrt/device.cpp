#include "device.h"

#include <cuda_runtime_api.h>

namespace msconv::plugin
{

int32_t computeCapability() noexcept
{
    int device = 0;
    int major = 0;
    int minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess
        || cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess
        || cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    {
        return 0;
    }
    return 10 * major + minor;
}

} // namespace msconv::plugin
