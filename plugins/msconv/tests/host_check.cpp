// Runs a file of cases on the shim and writes the outputs: the program that the sanitizers watch. Every tensor is its own
// allocation of exactly its size, so that no access beyond one goes unseen.
//
//     host_check CASES OUTPUTS
#include "case_file.h"
#include "simulator.h"

#include <cstdlib>
#include <cstring>
#include <memory>

using namespace msconv;

namespace
{

struct Free
{
    void operator()(void* memory) const
    {
        std::free(memory);
    }
};

using Memory = std::unique_ptr<void, Free>;

//! Aligned as device memory is; null for no bytes. NaN where there is no data.
Memory allocate(std::size_t bytes, char const* from = nullptr)
{
    void* memory = nullptr;
    if (bytes > 0 && posix_memalign(&memory, 256, bytes) != 0)
    {
        std::abort();
    }
    if (bytes > 0 && from == nullptr)
    {
        std::memset(memory, 0xFF, bytes);
    }
    else if (bytes > 0)
    {
        std::memcpy(memory, from, bytes);
    }
    return Memory(memory);
}

char const* runCase(test::CaseRecord const& record, char* to, char* buffer, std::size_t size)
{
    Memory inputs[test::kCaseInputs];
    for (std::size_t i = 0; i < test::kCaseInputs; ++i)
    {
        inputs[i] = allocate(record.inputs[i].size(), record.inputs[i].data());
    }
    Memory const output = allocate(record.outputBytes);
    Memory const workspace = allocate(workspaceBytes(record.problem));
    Tensors tensors{};
    for (std::size_t s = 0; s < kSourceCount; ++s)
    {
        tensors.sources[s] = inputs[s].get();
        tensors.weights[s] = inputs[kSourceCount + s].get();
    }
    tensors.bias = inputs[2 * kSourceCount].get();
    tensors.output = output.get();
    tensors.workspace = workspace.get();
    char const* const wrong =
        enqueue(record.problem, tensors, record.path, record.computeCapability, nullptr, buffer, size);
    if (wrong != nullptr)
    {
        return *cuda_shim::lastFailure() != '\0' ? cuda_shim::lastFailure() : wrong; // says more
    }
    if (record.outputBytes > 0)
    {
        std::memcpy(to, output.get(), record.outputBytes);
    }
    return nullptr;
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 3)
    {
        std::fprintf(stderr, "usage: host_check CASES OUTPUTS\n");
        return 2;
    }
    char buffer[512];
    return test::runCases("host_check", argv[1], argv[2],
        [&](test::CaseRecord const& record, char* output) { return runCase(record, output, buffer, sizeof(buffer)); });
}
