#include "simulator.h"
#include "cuda_runtime.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define MSCONV_ADDRESS_SANITIZER 1
#else
#define MSCONV_ADDRESS_SANITIZER 0
#endif

namespace cuda_shim
{

namespace
{

constexpr std::size_t kStackBytes = MSCONV_ADDRESS_SANITIZER ? 256 * 1024 : 64 * 1024;
constexpr std::size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xA5;
constexpr unsigned char kPoison = 0xFF; // NaN in float, __half and __nv_bfloat16
constexpr std::size_t kPlainSharedBytes = 48 * 1024;
constexpr std::size_t kMostSharedBytes = 227 * 1024;
constexpr unsigned kMostThreads = 1024;
constexpr int64_t kMostBlocks = 1 << 20; // of one launch: a test with more is a mistake

enum class State
{
    kReady,
    kAtBarrier,
    kInCollective,
    kDone,
};

struct Copy
{
    void* to;
    void const* from;
    std::size_t bytes;
};

struct Fiber
{
    ucontext_t context;
    void* stack{};
    State state{State::kDone};
    uint3 index{};
    int linear{};
    Site site{};
    uint32_t mask{};
    std::array<unsigned char, kLargestExchange> given{};
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
#if MSCONV_ADDRESS_SANITIZER
    void* fakeStack{};
#endif
};

//! An array with guards around it. Under the address sanitizer it has exactly its size, and the sanitizer is the guard.
class GuardedMemory
{
public:
    explicit GuardedMemory(std::size_t bytes) : mBytes{bytes}
    {
        std::size_t const total = MSCONV_ADDRESS_SANITIZER ? std::max<std::size_t>(bytes, 1) : bytes + 2 * kGuardBytes;
        if (posix_memalign(&mMemory, 128, total) != 0)
        {
            std::abort();
        }
        std::memset(mMemory, kGuard, total);
    }

    ~GuardedMemory()
    {
        std::free(mMemory);
    }

    GuardedMemory(GuardedMemory const&) = delete;
    GuardedMemory& operator=(GuardedMemory const&) = delete;

    unsigned char* data() const
    {
        return static_cast<unsigned char*>(mMemory) + (MSCONV_ADDRESS_SANITIZER ? 0 : kGuardBytes);
    }

    std::size_t bytes() const
    {
        return mBytes;
    }

    void poison() const
    {
        std::memset(data(), kPoison, mBytes);
    }

    bool holds(void const* address, std::size_t count) const
    {
        auto const* const first = static_cast<unsigned char const*>(address);
        return first >= data() && count <= mBytes && first <= data() + (mBytes - count);
    }

    bool intact() const
    {
#if !MSCONV_ADDRESS_SANITIZER
        auto const* const memory = static_cast<unsigned char const*>(mMemory);
        for (std::size_t i = 0; i < kGuardBytes; ++i)
        {
            if (memory[i] != kGuard || memory[kGuardBytes + mBytes + i] != kGuard)
            {
                return false;
            }
        }
#endif
        return true;
    }

private:
    void* mMemory{};
    std::size_t mBytes;
};

struct Device
{
    ucontext_t scheduler;
#if MSCONV_ADDRESS_SANITIZER
    void* schedulerFakeStack{};
    void const* schedulerStack{};
    std::size_t schedulerStackBytes{};
#endif
    std::vector<std::unique_ptr<Fiber>> fibers;
    Fiber* running{};
    dim3 grid;
    dim3 block;
    uint3 blockIndex{};
    std::function<void()> const* thread{};
    std::unique_ptr<GuardedMemory> dynamic;
    std::vector<std::unique_ptr<GuardedMemory>> slots;
    std::vector<bool> slotUsed; // in this block
    //! What the lanes of each warp gave to the collective that was released last. One buffer is enough: all lanes that were
    //! released run before any other collective of the warp is.
    std::vector<std::array<unsigned char, kWarpSize * kLargestExchange>> exchanged;
    std::map<void const*, std::size_t> sharedLimits;
    std::string failure;
    cudaError_t error{cudaSuccess};
};

Device& device()
{
    static Device instance;
    return instance;
}

void* newStack()
{
    std::size_t const page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0)
    {
        std::abort();
    }
    return static_cast<unsigned char*>(memory) + page;
}

void toScheduler([[maybe_unused]] bool forEver)
{
    Device& d = device();
    Fiber& fiber = *d.running;
#if MSCONV_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(forEver ? nullptr : &fiber.fakeStack, d.schedulerStack, d.schedulerStackBytes);
#endif
    swapcontext(&fiber.context, &d.scheduler);
#if MSCONV_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fiber.fakeStack, &d.schedulerStack, &d.schedulerStackBytes);
#endif
}

void fiberMain()
{
    Device& d = device();
#if MSCONV_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(nullptr, &d.schedulerStack, &d.schedulerStackBytes);
#endif
    (*d.thread)();
    Fiber& fiber = *d.running;
    if (!fiber.open.empty() || !fiber.groups.empty())
    {
        waitForCopies(-1); // a GPU completes them too, though nobody waits
    }
    fiber.state = State::kDone;
    toScheduler(true);
}

void resume(Fiber& fiber)
{
    Device& d = device();
    d.running = &fiber;
#if MSCONV_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&d.schedulerFakeStack, fiber.stack, kStackBytes);
#endif
    swapcontext(&d.scheduler, &fiber.context);
#if MSCONV_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(d.schedulerFakeStack, nullptr, nullptr);
#endif
    d.running = nullptr;
}

void start(Fiber& fiber, int linear)
{
    Device const& d = device();
    unsigned const t = static_cast<unsigned>(linear);
    fiber.linear = linear;
    fiber.index = {t % d.block.x, t / d.block.x % d.block.y, t / (d.block.x * d.block.y)};
    fiber.state = State::kReady;
    fiber.open.clear();
    fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiberMain, 0);
}

bool sameSite(Site const& a, Site const& b)
{
    return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

void recordFailure(std::string message)
{
    Device& d = device();
    if (d.failure.empty())
    {
        d.failure = std::move(message);
    }
    d.error = cudaErrorLaunchFailure;
}

std::string describe(Fiber const& fiber)
{
    std::string const who = "thread " + std::to_string(fiber.linear);
    if (fiber.state == State::kDone)
    {
        return who + " has ended";
    }
    return who + " waits at " + fiber.site.what + " (" + fiber.site.file + ":" + std::to_string(fiber.site.line) + ")";
}

//! Let the threads go on that have what they wait for. Returns whether there were any.
bool release(int threads)
{
    Device& d = device();
    bool released = false;
    for (int first = 0; first < threads; first += kWarpSize)
    {
        int const lanes = std::min(kWarpSize, threads - first);
        for (int lane = 0; lane < lanes; ++lane)
        {
            Fiber const& leader = *d.fibers[static_cast<std::size_t>(first + lane)];
            if (leader.state != State::kInCollective || (leader.mask & ((1U << lane) - 1U)) != 0)
            {
                continue; // only the first lane of a mask asks
            }
            uint32_t const mask = leader.mask;
            Site const site = leader.site;
            bool complete = true;
            for (int other = 0; other < kWarpSize && complete; ++other)
            {
                if (((mask >> other) & 1U) != 0)
                {
                    complete = other < lanes;
                    if (complete)
                    {
                        Fiber const& fiber = *d.fibers[static_cast<std::size_t>(first + other)];
                        complete =
                            fiber.state == State::kInCollective && fiber.mask == mask && sameSite(fiber.site, site);
                    }
                }
            }
            if (!complete)
            {
                continue;
            }
            released = true;
            for (int other = 0; other < lanes; ++other)
            {
                if (((mask >> other) & 1U) != 0)
                {
                    Fiber& fiber = *d.fibers[static_cast<std::size_t>(first + other)];
                    fiber.state = State::kReady;
                    std::memcpy(d.exchanged[static_cast<std::size_t>(first / kWarpSize)].data()
                            + static_cast<std::size_t>(other) * kLargestExchange,
                        fiber.given.data(), kLargestExchange);
                }
            }
        }
    }
    auto const begin = d.fibers.begin();
    auto const end = begin + threads;
    if (std::all_of(begin, end, [](auto const& fiber) { return fiber->state == State::kAtBarrier; }))
    {
        auto const other =
            std::find_if(begin, end, [&](auto const& fiber) { return !sameSite(fiber->site, (*begin)->site); });
        if (other != end)
        {
            recordFailure("threads wait at different barriers: " + describe(**begin) + ", " + describe(**other));
            return false;
        }
        std::for_each(begin, end, [](auto const& fiber) { fiber->state = State::kReady; });
        released = true;
    }
    return released;
}

void runBlock(int threads, bool backward)
{
    Device& d = device();
    for (int t = 0; t < threads; ++t)
    {
        start(*d.fibers[static_cast<std::size_t>(t)], t);
    }
    while (true)
    {
        for (int t = 0; t < threads; ++t)
        {
            Fiber& fiber = *d.fibers[static_cast<std::size_t>(backward ? threads - 1 - t : t)];
            if (fiber.state == State::kReady)
            {
                resume(fiber);
                if (d.error != cudaSuccess)
                {
                    return; // the others stay where they are: their stacks are used anew
                }
            }
        }
        auto const begin = d.fibers.begin();
        auto const waiting =
            std::find_if(begin, begin + threads, [](auto const& fiber) { return fiber->state != State::kDone; });
        if (waiting == begin + threads)
        {
            return;
        }
        if (!release(threads))
        {
            auto const other = std::find_if(begin, begin + threads, [&](auto const& fiber)
                { return fiber->state != (*waiting)->state || !sameSite(fiber->site, (*waiting)->site); });
            recordFailure("deadlock: " + describe(**waiting)
                + (other == begin + threads ? "; its mask names lanes that never come" : ", " + describe(**other)));
            return;
        }
    }
}

void complete(std::vector<Copy>& copies)
{
    for (Copy const& copy : copies)
    {
        if (copy.from == nullptr)
        {
            std::memset(copy.to, 0, copy.bytes);
        }
        else
        {
            std::memcpy(copy.to, copy.from, copy.bytes);
        }
    }
    copies.clear();
}

} // namespace

uint3 threadIndex()
{
    return device().running->index;
}

uint3 blockIndex()
{
    return device().blockIndex;
}

dim3 blockExtent()
{
    return device().block;
}

dim3 gridExtent()
{
    return device().grid;
}

int laneIndex()
{
    return device().running->linear % kWarpSize;
}

void fail(char const* format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    Device const& d = device();
    recordFailure(std::string(text) + " (block " + std::to_string(d.blockIndex.x) + "," + std::to_string(d.blockIndex.y)
        + "," + std::to_string(d.blockIndex.z) + " thread " + std::to_string(d.running->linear) + ")");
    toScheduler(true);
    std::abort(); // a failed fiber is not resumed
}

char const* lastFailure()
{
    return device().failure.c_str();
}

void clearFailure()
{
    device().failure.clear();
    device().error = cudaSuccess;
}

void syncThreads(Site const& site)
{
    Fiber& fiber = *device().running;
    fiber.site = site;
    fiber.state = State::kAtBarrier;
    toScheduler(false);
}

unsigned char const* exchange(Site const& site, uint32_t mask, void const* value, std::size_t bytes)
{
    Device& d = device();
    Fiber& fiber = *d.running;
    if (((mask >> laneIndex()) & 1U) == 0)
    {
        fail("%s:%d: %s by lane %d, which is not in its own mask %08x", site.file, site.line, site.what, laneIndex(),
            mask);
    }
    std::memcpy(fiber.given.data(), value, bytes);
    fiber.site = site;
    fiber.mask = mask;
    fiber.state = State::kInCollective;
    toScheduler(false);
    return d.exchanged[static_cast<std::size_t>(fiber.linear / kWarpSize)].data();
}

void* dynamicShared()
{
    return device().dynamic->data();
}

void requireShared(Site const& site, void const* address, std::size_t bytes)
{
    Device const& d = device();
    bool inside = d.dynamic->holds(address, bytes);
    for (std::size_t i = 0; i < d.slots.size() && !inside; ++i)
    {
        inside = d.slotUsed[i] && d.slots[i]->holds(address, bytes);
    }
    if (!inside)
    {
        fail("%s:%d: %s of %zu bytes outside of shared memory", site.file, site.line, site.what, bytes);
    }
}

void beginCopy(Site const& site, void* to, void const* from, std::size_t bytes)
{
    requireShared(site, to, bytes);
    if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    {
        fail("%s:%d: %s of %zu bytes is not aligned to them", site.file, site.line, site.what, bytes);
    }
    device().running->open.push_back({to, from, bytes});
}

void commitCopies()
{
    Fiber& fiber = *device().running;
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}

void waitForCopies(int pending)
{
    Fiber& fiber = *device().running;
    while (!fiber.groups.empty() && (pending < 0 || fiber.groups.size() > static_cast<std::size_t>(pending)))
    {
        complete(fiber.groups.front());
        fiber.groups.erase(fiber.groups.begin());
    }
    if (pending < 0)
    {
        complete(fiber.open);
    }
}

SharedSlot::SharedSlot() : mIndex{static_cast<int>(device().slots.size())}
{
    device().slots.emplace_back();
    device().slotUsed.push_back(false);
}

SharedSlot::~SharedSlot() = default;

void* SharedSlot::memory(std::size_t bytes)
{
    Device& d = device();
    std::size_t const index = static_cast<std::size_t>(mIndex);
    if (d.slots[index] == nullptr)
    {
        d.slots[index] = std::make_unique<GuardedMemory>(bytes);
    }
    if (!d.slotUsed[index])
    {
        d.slotUsed[index] = true;
        d.slots[index]->poison();
    }
    return d.slots[index]->data();
}

void run(dim3 grid, dim3 block, std::size_t sharedBytes, void const* kernel, std::function<void()> const& thread)
{
    Device& d = device();
    uint64_t const threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    uint64_t const blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    auto const limit = d.sharedLimits.find(kernel);
    std::size_t const mostShared = limit == d.sharedLimits.end() ? kPlainSharedBytes : limit->second;
    if (threads == 0 || threads > kMostThreads || blocks == 0 || grid.x > 2147483647U || grid.y > 65535U
        || grid.z > 65535U || sharedBytes > mostShared)
    {
        recordFailure("a launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads)
            + " threads with " + std::to_string(sharedBytes) + " bytes of shared memory is not valid");
        d.error = cudaErrorInvalidConfiguration;
        return;
    }
    if (blocks > static_cast<uint64_t>(kMostBlocks))
    {
        recordFailure("a launch of " + std::to_string(blocks) + " blocks is too large for the CPU");
        return;
    }
    if (d.error != cudaSuccess)
    {
        return;
    }
    while (d.fibers.size() < threads)
    {
        d.fibers.push_back(std::make_unique<Fiber>());
        d.fibers.back()->stack = newStack();
    }
    d.exchanged.resize((threads + kWarpSize - 1) / kWarpSize);
    d.grid = grid;
    d.block = block;
    d.thread = &thread;
    d.dynamic = std::make_unique<GuardedMemory>(sharedBytes);
    for (uint64_t b = 0; b < blocks && d.error == cudaSuccess; ++b)
    {
        d.blockIndex = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
            static_cast<unsigned>(b / grid.x / grid.y)};
        d.dynamic->poison();
        std::fill(d.slotUsed.begin(), d.slotUsed.end(), false);
        runBlock(static_cast<int>(threads), b % 2 != 0);
        bool intact = d.dynamic->intact();
        for (auto& slot : d.slots)
        {
            if (slot != nullptr && !slot->intact())
            {
                intact = false;
                slot.reset(); // the next launch has whole guards
            }
        }
        if (!intact)
        {
            recordFailure("block " + std::to_string(b) + " wrote outside of its shared memory");
        }
    }
}

} // namespace cuda_shim

cudaError_t cudaGetLastError()
{
    cudaError_t const error = cuda_shim::device().error;
    cuda_shim::device().error = cudaSuccess;
    return error;
}

char const* cudaGetErrorName(cudaError_t error)
{
    switch (error)
    {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    }
    return "cudaErrorUnknown";
}

cudaError_t cuda_shim::setSharedLimit(void const* kernel, int bytes)
{
    if (bytes < 0 || static_cast<std::size_t>(bytes) > kMostSharedBytes)
    {
        return cudaErrorInvalidValue;
    }
    device().sharedLimits[kernel] = static_cast<std::size_t>(bytes);
    return cudaSuccess;
}
