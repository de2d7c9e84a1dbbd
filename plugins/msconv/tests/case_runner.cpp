// Runs a file of cases on the GPU and writes the outputs: the program that compute-sanitizer watches.
//
//     case_runner CASES OUTPUTS
#include "device_memory.h"

using namespace msconv;

int main(int argc, char** argv)
{
    if (argc != 3)
    {
        std::fprintf(stderr, "usage: case_runner CASES OUTPUTS\n");
        return 2;
    }
    char buffer[512];
    return test::runCases("case_runner", argv[1], argv[2],
        [&](test::CaseRecord const& record, char* output) -> char const*
        {
            test::DeviceCase device(record, workspaceBytes(record.problem));
            if (device.error != cudaSuccess)
            {
                return cudaGetErrorName(device.error);
            }
            Tensors tensors{};
            for (std::size_t s = 0; s < kSourceCount; ++s)
            {
                tensors.sources[s] = device.inputs[s].get();
                tensors.weights[s] = device.inputs[kSourceCount + s].get();
            }
            tensors.bias = device.inputs[2 * kSourceCount].get();
            tensors.output = device.output.get();
            tensors.workspace = device.workspace.get();
            char const* const wrong = enqueue(
                record.problem, tensors, record.path, record.computeCapability, nullptr, buffer, sizeof(buffer));
            return wrong != nullptr ? wrong : device.finish(record, nullptr, output);
        });
}
