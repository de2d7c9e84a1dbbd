// Tensors of a case on the GPU, each an allocation of exactly its size, so that compute-sanitizer sees every access beyond one.
#pragma once

#include "case_file.h"

#include <cuda_runtime_api.h>

#include <memory>

namespace msconv::test
{

struct DeviceFree
{
    void operator()(void* memory) const
    {
        cudaFree(memory);
    }
};

using DeviceMemory = std::unique_ptr<void, DeviceFree>;

//! Null for no bytes, and where `error` is set.
inline DeviceMemory allocate(std::size_t bytes, void const* from, cudaError_t& error)
{
    void* memory = nullptr;
    if (bytes == 0 || error != cudaSuccess || (error = cudaMalloc(&memory, bytes)) != cudaSuccess)
    {
        return nullptr;
    }
    DeviceMemory owned(memory);
    error = from == nullptr ? cudaMemset(memory, 0xFF, bytes) : cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice);
    return owned;
}

//! Inputs with their data; output and workspace full of NaN.
struct DeviceCase
{
    DeviceMemory inputs[kCaseInputs];
    DeviceMemory output;
    DeviceMemory workspace;
    cudaError_t error{cudaSuccess};

    DeviceCase(CaseRecord const& record, std::size_t workspaceBytes)
    {
        for (std::size_t i = 0; i < kCaseInputs; ++i)
        {
            inputs[i] = allocate(record.inputs[i].size(), record.inputs[i].data(), error);
        }
        output = allocate(record.outputBytes, nullptr, error);
        workspace = allocate(workspaceBytes, nullptr, error);
    }

    //! Waits for the stream and copies the output. Null, or the name of a CUDA error.
    char const* finish(CaseRecord const& record, cudaStream_t stream, char* to)
    {
        error = cudaStreamSynchronize(stream);
        if (error == cudaSuccess && record.outputBytes > 0)
        {
            error = cudaMemcpy(to, output.get(), record.outputBytes, cudaMemcpyDeviceToHost);
        }
        return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
    }
};

} // namespace msconv::test
