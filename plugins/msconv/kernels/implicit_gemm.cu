// The path for many channels (Path::kImplicitGemm).
//
// The convolution is the product of the weights [O, K] and the pixels' patches [K, H' W'], K = C1 kh kw, fp16 or bf16 operands,
// fp32 sums; the patches are never written out ("implicit"). A block computes 64 or 128 output channels of 128 pixels of one
// image, in slices of 32 along K, two slices in shared memory: one is multiplied while the next is on its way.
//
//   - K runs as the weights lie in memory, (channel, tap): their rows are copied 16 bytes at a time whatever the number of channels,
//     nothing is repacked, and no slice is padded but the last. (With (tap, channel) a tap's weights are kh kw apart.) The price
//     is a table per slice: K index -> image plane and tap.
//   - Pixels are counted through the whole output plane, so a tile has no empty columns and 16-byte alignment depends on H' W' alone.
//     A thread gathers two neighbouring ones; they are held in registers during the multiplication of the slice before.
//     For 1x1 kernels without stride and padding the patches are the image: 16 bytes are loaded at a time.
//   - Fragments come from shared memory through ldmatrix; the pixels are put in the order of tensor_core_epilogue.h on their way
//     in, and tables, activation and the store are the same functions.
//
// Expected: bound by the tensor cores or by gathering, well below a library's best on large layers, but one pass over the output.
// Not measured on a GPU.
#include "launch.h"
#include "paths.h"
#include "tensor_core_epilogue.h"

namespace msconv
{

namespace
{

using namespace implicit_gemm;

constexpr int32_t kWeightPitch = kSlice + 8;     //!< 80 bytes: eight rows of an ldmatrix lie in different banks
constexpr int32_t kPixelPitch = kTilePixels + 8; //!< 272 bytes: the same
constexpr int32_t kPairs = kTilePixels / 2;

template <int32_t kWarpsAlongO>
constexpr int32_t kBlockThreads = kWarpsAlongO * kThreadsPerWarpRow;

constexpr int32_t kResidentThreads = MSCONV_ARCH >= 800 ? kThreadsPerMultiprocessor : kThreadsPerMultiprocessorSm75;

//! One launch. Offsets in 16-bit values.
template <typename T>
struct Parameters
{
    uint16_t const* image;   //!< [N or 1, C1, H, W]
    uint16_t const* weights; //!< [O, K]
    int64_t imageBatchStride;
    Axis rows;
    Axis columns;
    PaddingMode paddingMode;
    int32_t reduction; //!< K
    int32_t slices;
    bool wideWeights;      //!< may rows of the weights be read 16 bytes at a time?
    int32_t channelBlocks; //!< blocks along O
    int64_t pixels;        //!< H' W'
    int32_t pixelBlocks;   //!< blocks along the pixels of one image; all blocks: 32 bits, implicitGemmRuns() sees to it
    OutputTarget<T> target;
};

//! What a K index means for the image.
struct alignas(16) Tap
{
    int64_t plane; //!< offset of the channel's plane; -1 past the end of K
    int32_t row;   //!< relative to the position of tap (0, 0)
    int32_t column;
};

//! A place in the output plane.
struct Place
{
    int32_t row;
    int32_t column;
};

//! The place `by` pixels further on, in the order of the output.
MSCONV_DEVICE Place advance(Place const& from, int32_t by, int32_t columns)
{
    int32_t const column = from.column + by;
    return {from.row + column / columns, column % columns};
}

//! Input position of tap (0, 0) of an output pixel. Past the last pixel that of the first: its sums are not stored.
struct Pixel
{
    int32_t row;
    int32_t column;
};

template <typename T>
MSCONV_DEVICE Pixel pixelAt(Parameters<T> const& p, Place const& place)
{
    bool const exists = place.row < p.rows.outputs;
    return {p.rows.start(exists ? place.row : 0), p.columns.start(exists ? place.column : 0)};
}

template <typename T>
MSCONV_DEVICE void fillTaps(Parameters<T> const& p, int32_t slice, Tap* taps)
{
    if (threadIdx.x < kSlice)
    {
        int32_t const k = slice * kSlice + static_cast<int32_t>(threadIdx.x);
        int32_t const area = p.rows.kernel * p.columns.kernel;
        int64_t const plane = static_cast<int64_t>(k / area) * p.rows.extent * p.columns.extent;
        taps[threadIdx.x] = {k < p.reduction ? plane : -1, k % area / p.columns.kernel * p.rows.dilation,
            k % p.columns.kernel * p.columns.dilation};
    }
}

//! The image's value for a pixel at a tap.
template <typename T>
MSCONV_DEVICE uint32_t gather(Parameters<T> const& p, uint16_t const* image, Pixel const& pixel, Tap const& tap)
{
    int32_t y = pixel.row + tap.row;
    int32_t x = pixel.column + tap.column;
    bool inside = y >= 0 && y < p.rows.extent && x >= 0 && x < p.columns.extent;
    if (!inside && p.paddingMode != PaddingMode::kZeros)
    {
        y = paddedIndex(p.paddingMode, y, p.rows.extent);
        x = paddedIndex(p.paddingMode, x, p.columns.extent);
        inside = true;
    }
    return inside && tap.plane >= 0 ? image[tap.plane + static_cast<int64_t>(y) * p.columns.extent + x] : 0U;
}

//! A slice of the weights of a block: kChannels rows.
template <typename T, int32_t kChannels, int32_t kThreads>
MSCONV_DEVICE void beginWeights(Parameters<T> const& p, int32_t firstChannel, int32_t slice, uint16_t* stage)
{
    constexpr int32_t kPerRow = kSlice / 8;
#pragma unroll
    for (int32_t r = 0; r < kChannels * kPerRow / kThreads; ++r)
    {
        int32_t const vector = static_cast<int32_t>(threadIdx.x) + r * kThreads;
        int32_t const o = firstChannel + vector / kPerRow;
        int32_t const k = slice * kSlice + vector % kPerRow * 8;
        uint16_t* const to = stage + vector / kPerRow * kWeightPitch + vector % kPerRow * 8;
        uint16_t const* const from = p.weights + static_cast<int64_t>(o) * p.reduction + k;
        if (p.wideWeights)
        {
            bool const inside = o < p.target.channels && k < p.reduction;
            beginCopy16(to, inside ? from : p.weights, inside);
        }
        else
        {
#pragma unroll
            for (int32_t e = 0; e < 8; ++e)
            {
                to[e] = o < p.target.channels && k + e < p.reduction ? from[e] : uint16_t{0};
            }
        }
    }
}

//! Where a pair of neighbouring pixels lies in a row of the slice, counted in pairs: the inverse of pixelOfColumn().
MSCONV_DEVICE int32_t pairPosition(int32_t pair)
{
    return pair / 16 * 16 + pair % 4 * 4 + pair % 16 / 4;
}

//! What one thread carries of the slices of the patches, on their way from the image to shared memory. load() is called once for
//! every slice, in their order.
template <typename T, int32_t kThreads, bool kPointwise>
struct PixelLoader;

//! Any geometry: a pair of pixels, of every K index that is `kRows` further.
template <typename T, int32_t kThreads>
struct PixelLoader<T, kThreads, false>
{
    static constexpr int32_t kRows = kThreads / kPairs;
    static constexpr int32_t kPasses = kSlice / kRows;

    uint16_t const* image;
    Pixel first;
    Pixel second;
    uint32_t values[kPasses];

    MSCONV_DEVICE PixelLoader(Parameters<T> const& p, uint16_t const* ofBatch, int64_t, Place const& firstPlace)
        : image(ofBatch)
    {
        Place const place = advance(firstPlace, threadIdx.x % kPairs * 2, p.columns.outputs);
        first = pixelAt(p, place);
        second = pixelAt(p, advance(place, 1, p.columns.outputs));
    }

    MSCONV_DEVICE void load(Parameters<T> const& p, Tap const* taps)
    {
#pragma unroll
        for (int32_t r = 0; r < kPasses; ++r)
        {
            Tap const tap = taps[threadIdx.x / kPairs + r * kRows];
            values[r] = gather(p, image, first, tap) | gather(p, image, second, tap) << 16;
        }
    }

    MSCONV_DEVICE void store(uint16_t* stage) const
    {
        int32_t const column = 2 * pairPosition(threadIdx.x % kPairs);
#pragma unroll
        for (int32_t r = 0; r < kPasses; ++r)
        {
            int32_t const k = threadIdx.x / kPairs + r * kRows;
            *reinterpret_cast<uint32_t*>(stage + k * kPixelPitch + column) = values[r];
        }
    }
};

//! 1x1 kernels without stride and padding, a multiple of 8 pixels: eight pixels, of every K index that is `kRows` further.
template <typename T, int32_t kThreads>
struct PixelLoader<T, kThreads, true>
{
    static constexpr int32_t kVectors = kTilePixels / 8;
    static constexpr int32_t kRows = kThreads / kVectors;
    static constexpr int32_t kPasses = kSlice / kRows;

    int32_t k;            //!< first index of the next slice; from K on nothing is read
    uint16_t const* from; //!< the pixels at k
    uint4 values[kPasses];

    MSCONV_DEVICE PixelLoader(Parameters<T> const& p, uint16_t const* ofBatch, int64_t firstPixel, Place const&)
    {
        int64_t const pixel = firstPixel + threadIdx.x % kVectors * 8;
        int32_t const row = threadIdx.x / kVectors;
        k = pixel < p.pixels ? row : p.reduction;
        from = ofBatch + row * p.pixels + pixel;
    }

    MSCONV_DEVICE void load(Parameters<T> const& p, Tap const*)
    {
#pragma unroll
        for (int32_t r = 0; r < kPasses; ++r)
        {
            values[r] = k < p.reduction ? *reinterpret_cast<uint4 const*>(from) : uint4{};
            k += kRows;
            from += kRows * p.pixels;
        }
    }

    MSCONV_DEVICE void store(uint16_t* stage) const
    {
        int32_t const pair = threadIdx.x % kVectors * 4;
#pragma unroll
        for (int32_t r = 0; r < kPasses; ++r)
        {
            uint16_t* const row = stage + (threadIdx.x / kVectors + r * kRows) * kPixelPitch;
            *reinterpret_cast<uint32_t*>(row + 2 * pairPosition(pair)) = values[r].x;
            *reinterpret_cast<uint32_t*>(row + 2 * pairPosition(pair + 1)) = values[r].y;
            *reinterpret_cast<uint32_t*>(row + 2 * pairPosition(pair + 2)) = values[r].z;
            *reinterpret_cast<uint32_t*>(row + 2 * pairPosition(pair + 3)) = values[r].w;
        }
    }
};

//! A warp's 64 channels times 32 pixels, one slice deep. The pointers are to the warp's first row and column.
template <typename T>
MSCONV_DEVICE void multiplySlice(
    uint16_t const* weights, uint16_t const* pixels, int32_t lane, Accumulators<kWarpTiles>& sums)
{
    // Lane 8 m + r holds the address of row r of matrix m: m % 2 steps along the 16 rows first, m / 2 along the columns.
    int32_t const row = lane % 16;
    int32_t const column = lane / 16 * 8;
#pragma unroll
    for (int32_t k = 0; k < kSlice; k += kMmaDepth)
    {
        uint32_t b[kPixelTiles / 2][4]; // [two tiles][tile, half of the depth]
#pragma unroll
        for (int32_t t = 0; t < kPixelTiles / 2; ++t)
        {
            loadMatricesTransposed(b[t], pixels + (k + row) * kPixelPitch + t * 2 * kMmaColumns + column);
        }
#pragma unroll
        for (int32_t m = 0; m < kWarpTiles; ++m)
        {
            uint32_t a[4];
            loadMatrices(a, weights + (m * kMmaRows + row) * kWeightPitch + k + column);
#pragma unroll
            for (int32_t t = 0; t < kPixelTiles; ++t)
            {
                uint32_t const pair[2] = {b[t / 2][t % 2 * 2], b[t / 2][t % 2 * 2 + 1]};
                multiplyAccumulate<T>(sums[m][t], a, pair);
            }
        }
    }
}

//! A block: kWarpsAlongO x 64 output channels, 128 pixels of one image.
template <typename T, int32_t kWarpsAlongO, bool kPointwise>
__global__ void __launch_bounds__(kBlockThreads<kWarpsAlongO>, kResidentThreads / kBlockThreads<kWarpsAlongO>)
    convolveImplicitGemm(Parameters<T> p)
{
    constexpr int32_t kThreads = kBlockThreads<kWarpsAlongO>;
    constexpr int32_t kChannels = kWarpsAlongO * kWarpChannels;
    constexpr int32_t kWeightStage = kChannels * kWeightPitch;
    constexpr int32_t kPixelStage = kSlice * kPixelPitch;
    MSCONV_SHARED_ARRAY(uint16_t, weightStages, 2 * kWeightStage);
    MSCONV_SHARED_ARRAY(uint16_t, pixelStages, 2 * kPixelStage);
    MSCONV_SHARED_ARRAY(Tap, taps, 2 * kSlice);

    int32_t const lane = threadIdx.x % kWarpSize;
    int32_t const warpRow = threadIdx.x / kThreadsPerWarpRow;
    int32_t const warpColumn = threadIdx.x / kWarpSize % kWarpsAlongPixels;
    int32_t const firstChannel = static_cast<int32_t>(blockIdx.x % p.channelBlocks) * kChannels;
    int32_t const pixelBlock = static_cast<int32_t>(blockIdx.x / p.channelBlocks);
    int32_t const n = pixelBlock / p.pixelBlocks;
    int64_t const firstPixel = static_cast<int64_t>(pixelBlock % p.pixelBlocks) * kTilePixels;
    Place const firstPlace{
        static_cast<int32_t>(firstPixel / p.columns.outputs), static_cast<int32_t>(firstPixel % p.columns.outputs)};
    uint16_t const* const image = p.image + n * p.imageBatchStride;

    Accumulators<kWarpTiles> sums;
#pragma unroll
    for (auto& channelTile : sums)
    {
#pragma unroll
        for (auto& pixelTile : channelTile)
        {
#pragma unroll
            for (float& sum : pixelTile)
            {
                sum = 0.0F;
            }
        }
    }
    PixelLoader<T, kThreads, kPointwise> loader(p, image, firstPixel, firstPlace);
    fillTaps(p, 0, taps);
    __syncthreads();
    // Slice s is multiplied while s + 1 is loaded: the first turn only loads. What is written in a turn was read for the last
    // time in the turn before, and is read in the next: one barrier per turn is enough.
#pragma unroll 1
    for (int32_t s = -1; s < p.slices; ++s)
    {
        int32_t const next = s + 1;
        bool const more = next < p.slices;
        if (more)
        {
            beginWeights<T, kChannels, kThreads>(p, firstChannel, next, weightStages + next % 2 * kWeightStage);
            loader.load(p, taps + next % 2 * kSlice);
        }
        if (s >= 0)
        {
            multiplySlice<T>(weightStages + s % 2 * kWeightStage + warpRow * kWarpChannels * kWeightPitch,
                pixelStages + s % 2 * kPixelStage + warpColumn * kWarpPixels, lane, sums);
        }
        if (more)
        {
            loader.store(pixelStages + next % 2 * kPixelStage);
            fillTaps(p, next + 1, taps + (next + 1) % 2 * kSlice);
            waitForCopies();
        }
        __syncthreads();
    }

    int32_t const offset = warpColumn * kWarpPixels + lane % 4 * kLanePixels;
    int64_t const left = p.pixels - firstPixel - offset;
    Place const place = advance(firstPlace, offset, p.columns.outputs);
    LanePosition const position{n, firstChannel + warpRow * kWarpChannels + lane / 4, place.row, place.column,
        left < kLanePixels ? static_cast<int32_t>(left) : kLanePixels};
    storeSums<true, T, kWarpTiles>(p.target, position, sums);
}

bool isAligned(void const* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <typename T, int32_t kWarpsAlongO>
char const* launch(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    Extents const& extents = problem.extents;
    Parameters<T> p{};
    p.image = static_cast<uint16_t const*>(tensors.sources[kNCHW]);
    p.weights = static_cast<uint16_t const*>(tensors.weights[kNCHW]);
    p.imageBatchStride = extents.sourceBatch[kNCHW] == 1 ? 0 : extents.channels[kNCHW] * extents.height * extents.width;
    p.rows = axisOf(problem, 0);
    p.columns = axisOf(problem, 1);
    p.paddingMode = problem.attributes.paddingMode;
    p.reduction = static_cast<int32_t>(extents.channels[kNCHW]) * p.rows.kernel * p.columns.kernel;
    p.slices = ceilDiv(p.reduction, kSlice);
    p.wideWeights = p.reduction % 8 == 0 && isAligned(p.weights);
    Grid const grid = gridOf(problem);
    p.channelBlocks = static_cast<int32_t>(grid.channelBlocks);
    p.pixelBlocks = static_cast<int32_t>(grid.pixelBlocks);
    p.pixels = static_cast<int64_t>(p.rows.outputs) * p.columns.outputs;
    p.target = {static_cast<T*>(tensors.output), static_cast<int32_t>(extents.outChannels), p.rows.outputs,
        p.columns.outputs, tables, epilogueOf(problem.attributes)};
    dim3 const blocks(static_cast<uint32_t>(grid.blocks(extents.batch)));
    dim3 const threads(kBlockThreads<kWarpsAlongO>);
    if (isPointwise(problem.attributes) && p.pixels % 8 == 0 && isAligned(p.image))
    {
        auto const kernel = convolveImplicitGemm<T, kWarpsAlongO, true>;
        MSCONV_LAUNCH(kernel, blocks, threads, 0, stream, p);
    }
    else
    {
        auto const kernel = convolveImplicitGemm<T, kWarpsAlongO, false>;
        MSCONV_LAUNCH(kernel, blocks, threads, 0, stream, p);
    }
    return launchError();
}

template <typename T>
char const* launchTyped(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    return gridOf(problem).warpsAlongO == 1 ? launch<T, 1>(problem, tensors, tables, stream)
                                            : launch<T, 2>(problem, tensors, tables, stream);
}

} // namespace

char const* launchImplicitGemm(
    Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    return problem.type == DataType::kFloat16 ? launchTyped<__half>(problem, tensors, tables, stream)
                                              : launchTyped<__nv_bfloat16>(problem, tensors, tables, stream);
}

} // namespace msconv
