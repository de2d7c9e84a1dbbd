// A CUDA device of one multiprocessor on the CPU, for tests of the kernels' own source.
//
// One fiber per CUDA thread; blocks run one after the other. A fiber runs until it waits at a barrier or in a warp
// collective, so what is unordered on a GPU has one order here: even blocks run their threads forward, odd blocks backward.
// Shared memory begins as NaN in every block and lies between guards. What would hang or corrupt memory on a GPU fails the launch with a
// sentence (lastFailure): threads waiting at different barriers, threads that ended while others wait, shared memory that was
// written outside of its array, more of it than was asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>

struct CUstream_st;
using cudaStream_t = CUstream_st*;

struct uint3
{
    unsigned x, y, z;
};

struct dim3
{
    unsigned x, y, z;

    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x{x}, y{y}, z{z} {}
};

namespace cuda_shim
{

constexpr int kWarpSize = 32;
constexpr std::size_t kLargestExchange = 64; //!< bytes that a lane can give in one warp collective

//! A place in the source where threads wait; the same place has the same file and line.
struct Site
{
    char const* file;
    int line;
    char const* what;
};

//! The position of the running thread. Valid inside a kernel.
uint3 threadIndex();
uint3 blockIndex();
dim3 blockExtent();
dim3 gridExtent();
int laneIndex();

//! End the launch: the message becomes lastFailure(). Does not return to the kernel.
[[noreturn]] void fail(char const* format, ...) __attribute__((format(printf, 1, 2)));

//! What was wrong with the last launch that failed; empty if none has since the last call of clearFailure().
char const* lastFailure();
void clearFailure();

//! Wait for all threads of the block.
void syncThreads(Site const& site);

//! Bytes of every lane of the warp, kLargestExchange apart; those of lanes outside the mask are not valid. Waits for all lanes
//! of the mask, which must pass the same mask at the same place. The result is valid until this thread's next collective.
unsigned char const* exchange(Site const& site, uint32_t mask, void const* value, std::size_t bytes);

//! What the lanes of a warp gave.
template <typename T>
class Lanes
{
public:
    Lanes(unsigned char const* bytes, uint32_t mask, Site const& site) : mBytes{bytes}, mMask{mask}, mSite{site} {}

    T operator[](int lane) const
    {
        if (lane < 0 || lane >= kWarpSize || ((mMask >> lane) & 1U) == 0)
        {
            fail("%s:%d: %s reads lane %d, which is not in the mask %08x", mSite.file, mSite.line, mSite.what, lane,
                mMask);
        }
        T value;
        std::memcpy(&value, mBytes + static_cast<std::size_t>(lane) * kLargestExchange, sizeof(T));
        return value;
    }

private:
    unsigned char const* mBytes;
    uint32_t mMask;
    Site mSite;
};

//! Give a value to the other lanes of the mask and see theirs: what all warp collectives are made of.
template <typename T>
Lanes<T> gather(Site const& site, uint32_t mask, T const& value)
{
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= kLargestExchange, "too much for one exchange");
    return {exchange(site, mask, &value, sizeof(T)), mask, site};
}

//! The block's dynamic shared memory.
void* dynamicShared();

//! Fails unless these bytes lie in the block's shared memory.
void requireShared(Site const& site, void const* address, std::size_t bytes);

//! Copy to shared memory at some time before waitForCopies(): here as late as possible, as a kernel must expect. `from` may
//! be null: then zeros are written.
void beginCopy(Site const& site, void* to, void const* from, std::size_t bytes);

//! Close the group of copies begun by this thread since the last one.
void commitCopies();

//! Complete all but the newest `pending` groups of this thread, or all copies if `pending` is negative.
void waitForCopies(int pending);

//! Static shared memory: one array of a kernel.
class SharedSlot
{
public:
    SharedSlot();
    ~SharedSlot();
    SharedSlot(SharedSlot const&) = delete;
    SharedSlot& operator=(SharedSlot const&) = delete;

    template <typename T, std::size_t kCount>
    T* array()
    {
        return static_cast<T*>(memory(kCount * sizeof(T)));
    }

private:
    void* memory(std::size_t bytes);

    int mIndex;
};

//! Run all threads of all blocks. cudaGetLastError() knows whether that went well.
void run(dim3 grid, dim3 block, std::size_t sharedBytes, void const* kernel, std::function<void()> const& thread);

template <typename... Parameters, typename... Arguments>
void launch(dim3 grid, dim3 block, std::size_t sharedBytes, cudaStream_t, void (*kernel)(Parameters...),
    Arguments const&... arguments)
{
    // The parameters are copied to the device at the launch, as on a GPU.
    std::tuple<std::decay_t<Parameters>...> const parameters(arguments...);
    run(grid, block, sharedBytes, reinterpret_cast<void const*>(kernel),
        [&] { std::apply([&](auto const&... values) { kernel(values...); }, parameters); });
}

} // namespace cuda_shim
