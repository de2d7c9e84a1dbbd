// Sentences about what is wrong with a problem.
#pragma once

#include "msconv2d.h"

#include <cstdarg>
#include <cstdio>

namespace msconv
{

constexpr char const* kSourceNames[kSourceCount] = {"nchw", "nch", "ncw", "nc"};

//! Writes a sentence, formatted as by printf, to a buffer of `size` bytes.
struct Message
{
    char* buffer;
    std::size_t size;

#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    char const* operator()(char const* format, ...) const
    {
        if (buffer == nullptr || size == 0)
        {
            return "invalid problem (no buffer was given for the reason)";
        }
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(buffer, size, format, arguments);
        va_end(arguments);
        return buffer;
    }
};

} // namespace msconv
