// Files of cases, as harness.py writes them: a sequence of records in the machine's byte order,
//
//     Problem, int32 path, int32 compute capability, int64 bytes of the 4 sources, the 4 weights, the bias and the output,
//     the data of the first nine
//
// Programs write the outputs' bytes one after the other.
#pragma once

#include "msconv2d.h"

#include <cstdio>
#include <vector>

namespace msconv::test
{

constexpr std::size_t kCaseInputs = 9; //!< sources, weights, bias

struct CaseRecord
{
    Problem problem;
    Path path;
    int32_t computeCapability;
    std::vector<char> inputs[kCaseInputs]; //!< empty where a tensor is absent
    std::size_t outputBytes;
};

enum class ReadCase
{
    kCase,
    kEnd,
    kBroken, //!< the file ends within a case
};

inline ReadCase readCase(FILE* file, CaseRecord& record)
{
    if (std::fread(&record.problem, sizeof(record.problem), 1, file) != 1)
    {
        return ReadCase::kEnd;
    }
    int32_t pathAndCapability[2];
    int64_t bytes[kCaseInputs + 1];
    if (std::fread(pathAndCapability, sizeof(pathAndCapability), 1, file) != 1
        || std::fread(bytes, sizeof(bytes), 1, file) != 1)
    {
        return ReadCase::kBroken;
    }
    record.path = static_cast<Path>(pathAndCapability[0]);
    record.computeCapability = pathAndCapability[1];
    record.outputBytes = static_cast<std::size_t>(bytes[kCaseInputs]);
    for (std::size_t i = 0; i < kCaseInputs; ++i)
    {
        std::size_t const count = static_cast<std::size_t>(bytes[i]);
        record.inputs[i].resize(count);
        if (count > 0 && std::fread(record.inputs[i].data(), 1, count, file) != count)
        {
            return ReadCase::kBroken;
        }
    }
    return ReadCase::kCase;
}

//! Calls `run(record, output)` for every case and writes what it puts into `output` (record.outputBytes bytes). `run` returns
//! null, or what is wrong. Returns the exit code of the program: 0, 1 if a case failed, 2 for a bad command line.
template <class Run>
int runCases(char const* program, char const* casesPath, char const* outputsPath, Run&& run)
{
    FILE* const cases = std::fopen(casesPath, "rb");
    FILE* const outputs = std::fopen(outputsPath, "wb");
    if (cases == nullptr || outputs == nullptr)
    {
        std::fprintf(stderr, "%s: cannot open %s\n", program, cases == nullptr ? casesPath : outputsPath);
        return 2;
    }
    CaseRecord record;
    std::vector<char> output;
    int count = 0;
    char const* wrong = nullptr;
    ReadCase state = ReadCase::kEnd;
    while (wrong == nullptr && (state = readCase(cases, record)) == ReadCase::kCase)
    {
        output.assign(record.outputBytes, '\xff');
        wrong = run(record, output.data());
        if (wrong == nullptr && std::fwrite(output.data(), 1, output.size(), outputs) != output.size())
        {
            wrong = "the output file cannot be written";
        }
        ++count;
    }
    if (state == ReadCase::kBroken)
    {
        wrong = "the file of cases ends within a case";
    }
    std::fclose(cases);
    if (std::fclose(outputs) != 0 && wrong == nullptr)
    {
        wrong = "the output file cannot be written";
    }
    if (wrong != nullptr)
    {
        std::fprintf(stderr, "%s: case %d: %s\n", program, count, wrong);
        return 1;
    }
    return 0;
}

} // namespace msconv::test
