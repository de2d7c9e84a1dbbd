// The path for few channels (Path::kTensorCore).
//
// These layers are bound by memory: the output is many times the image, so the aim is to write it once, in 128-bit stores, and to
// hide all else behind that. The convolution is the product of the weights [O, K] and the pixels' patches [K, pixels],
// K = C1 kh kw, fp16 or bf16 operands, fp32 sums:
//
//   - A block keeps the weights of up to 64 output channels, all of K (padded to 16), in shared memory, in the order of the mma
//     fragments: one 128-bit load gives a lane its part. It loads them once and then walks over several tiles down a stripe of
//     columns, where the column table's rows stay in the L1 cache.
//   - Of each tile it stages the image with its halo in shared memory; padding of every mode is resolved there, once.
//   - A warp takes 32 pixels of one output row. It gathers their patches from the staged image: K index -> offset is a small
//     table, so any kernel, stride and dilation costs the same. One gathered fragment serves all 64 channels.
//   - Tables, activation and the store are tensor_core_epilogue.h.
//
// Expected: near the copy bandwidth for 3 + 4 -> 64 channels, 3x3, fp16. Not measured on a GPU.
#include "launch.h"
#include "paths.h"
#include "tensor_core_epilogue.h"

namespace msconv
{

namespace
{

using namespace tensor_core;

//! One launch. Offsets and pitches in 16-bit values.
template <typename T>
struct Parameters
{
    uint16_t const* image;   //!< [N or 1, C1, H, W]
    uint16_t const* weights; //!< [O, K]
    int64_t imageBatchStride;
    Axis rows;
    Axis columns;
    PaddingMode paddingMode;
    int32_t channels;  //!< C1
    int32_t reduction; //!< K
    Tile tile;
    int32_t channelBlocks; //!< blocks along O
    int32_t tilesPerBlock;
    int32_t tilesAcross; //!< tiles of one image along W
    int32_t tilesDown;   //!< and along H
    int32_t tiles;       //!< of the batch: 32 bits, tensorCoreRuns() sees to it
    OutputTarget<T> target;
};

//! Position of the weight (row, k) among the 16-bit values of the fragments: [step][channel tile][lane][8].
template <int32_t kTiles>
MSCONV_DEVICE int32_t fragmentPosition(int32_t row, int32_t k)
{
    int32_t const r = row % kMmaRows;
    int32_t const c = k % kMmaDepth;
    int32_t const lane = r % 8 * 4 + c % 8 / 2;
    int32_t const element = r / 8 * 2 + c / 8 * 4 + c % 2;
    return ((k / kMmaDepth * kTiles + row / kMmaRows) * kWarpSize + lane) * 8 + element;
}

template <typename T, int32_t kTiles>
MSCONV_DEVICE void loadWeights(Parameters<T> const& p, int32_t firstChannel, uint16_t* fragments)
{
    int32_t const padded = p.tile.steps * kMmaDepth;
    for (int32_t row = threadIdx.x / kWarpSize; row < kTiles * kMmaRows; row += kWarps)
    {
        int32_t const o = firstChannel + row;
        uint16_t const* const from = p.weights + static_cast<int64_t>(o) * p.reduction;
#pragma unroll 4
        for (int32_t k = threadIdx.x % kWarpSize; k < padded; k += kWarpSize)
        {
            bool const inside = o < p.target.channels && k < p.reduction;
            fragments[fragmentPosition<kTiles>(row, k)] = inside ? from[k] : uint16_t{0};
        }
    }
}

//! K index -> offset in the staged image, relative to the position of tap (0, 0) of channel 0.
template <typename T>
MSCONV_DEVICE void fillOffsets(Parameters<T> const& p, int32_t* offsets)
{
    int32_t const taps = p.rows.kernel * p.columns.kernel;
    for (int32_t k = threadIdx.x; k < p.tile.steps * kMmaDepth; k += kThreads)
    {
        int32_t const channel = k / taps;
        int32_t const u = k % taps / p.columns.kernel;
        int32_t const v = k % p.columns.kernel;
        int32_t const offset =
            (channel * p.tile.patchRows + u * p.rows.dilation) * p.tile.patchPitch + v * p.columns.dilation;
        offsets[k] = k < p.reduction ? offset : 0;
    }
}

//! Stage the part of image n that the tile at output (row, column) reads. What lies in the padding has its final value; what no
//! output reads, since the tile reaches beyond the last one, is 0.
template <typename T>
MSCONV_DEVICE void loadPatch(Parameters<T> const& p, int32_t n, int32_t row, int32_t column, uint16_t* patch)
{
    constexpr int32_t kBatch = 5; // loads in flight: a row of 128 columns and its halo
    int32_t const lane = threadIdx.x % kWarpSize;
    int32_t const firstRow = p.rows.start(row);
    int32_t const firstColumn = p.columns.start(column);
    int32_t const endRow = p.rows.start(p.rows.outputs - 1) + p.rows.reach();
    int32_t const endColumn = p.columns.start(p.columns.outputs - 1) + p.columns.reach();
    uint16_t const* const image = p.image + n * p.imageBatchStride;
    for (int32_t line = threadIdx.x / kWarpSize; line < p.channels * p.tile.patchRows; line += kWarps)
    {
        int32_t const channel = line / p.tile.patchRows;
        int32_t const wantedRow = firstRow + line % p.tile.patchRows;
        int32_t const y = wantedRow < endRow ? paddedIndex(p.paddingMode, wantedRow, p.rows.extent) : -1;
        uint16_t const* const from =
            image + (static_cast<int64_t>(channel) * p.rows.extent + y) * p.columns.extent; // not read if y < 0
        uint16_t* const to = patch + line * p.tile.patchPitch;
#pragma unroll 1
        for (int32_t first = lane; first < p.tile.patchPitch; first += kBatch * kWarpSize)
        {
            uint16_t values[kBatch];
#pragma unroll
            for (int32_t b = 0; b < kBatch; ++b)
            {
                int32_t const wanted = firstColumn + first + b * kWarpSize;
                int32_t const x = wanted < endColumn ? paddedIndex(p.paddingMode, wanted, p.columns.extent) : -1;
                values[b] = y >= 0 && x >= 0 ? from[x] : uint16_t{0};
            }
#pragma unroll
            for (int32_t b = 0; b < kBatch; ++b)
            {
                if (first + b * kWarpSize < p.tile.patchPitch)
                {
                    to[first + b * kWarpSize] = values[b];
                }
            }
        }
    }
}

//! Which bytes of two 16-bit values, K indices k and k + 1, make the pair: those past the end of the reduction become 0. (Their
//! weights are 0, but the pixels are any, and 0 times infinity is not 0.) The upper bytes of a value in a register are 0.
MSCONV_DEVICE uint32_t pairSelector(int32_t k, int32_t reduction)
{
    return k + 1 < reduction ? 0x5410U : k < reduction ? 0x2210U : 0x2222U;
}

//! Add the product for 32 pixels of one output row to the sums. `pixel` is the patch at tap (0, 0) of this lane's first pixel, `step` the way
//! to its pixel of the next tile.
template <typename T, int32_t kTiles>
MSCONV_DEVICE void multiply(Parameters<T> const& p, uint16_t const* fragments, int32_t const* offsets,
    uint16_t const* pixel, int32_t step, int32_t lane, Accumulators<kTiles>& sums)
{
    int32_t k = lane % 4 * 2;
    uint16_t const* weights = fragments + lane * 8;
#pragma unroll 1
    for (int32_t s = 0; s < p.tile.steps; ++s)
    {
        uint32_t b[kPixelTiles][2];
#pragma unroll
        for (int32_t half = 0; half < 2; ++half)
        {
            int2 const offset = *reinterpret_cast<int2 const*>(offsets + k + half * 8);
            uint32_t const selector = pairSelector(k + half * 8, p.reduction);
            uint16_t const* low = pixel + offset.x;
            uint16_t const* high = pixel + offset.y;
#pragma unroll
            for (int32_t t = 0; t < kPixelTiles; ++t)
            {
                b[t][half] = selectBytes(*low, *high, selector);
                low += step;
                high += step;
            }
        }
#pragma unroll
        for (int32_t m = 0; m < kTiles; ++m)
        {
            uint4 const four = *reinterpret_cast<uint4 const*>(weights);
            uint32_t const a[4] = {four.x, four.y, four.z, four.w};
            weights += kWarpSize * 8;
#pragma unroll
            for (int32_t t = 0; t < kPixelTiles; ++t)
            {
                multiplyAccumulate<T>(sums[m][t], a, b[t]);
            }
        }
        k += kMmaDepth;
    }
}

//! A block: kTiles x 16 output channels, `tilesPerBlock` tiles one below the other.
template <typename T, int32_t kTiles>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) convolveTensorCore(Parameters<T> p)
{
    MSCONV_DYNAMIC_SHARED(uint16_t, shared);
    uint16_t* const fragments = shared;
    int32_t* const offsets = reinterpret_cast<int32_t*>(fragments + p.tile.steps * kTiles * kMmaRows * kMmaDepth);
    uint16_t* const patch = reinterpret_cast<uint16_t*>(offsets + p.tile.steps * kMmaDepth);

    int32_t const lane = threadIdx.x % kWarpSize;
    int32_t const warp = threadIdx.x / kWarpSize;
    int32_t const firstChannel = static_cast<int32_t>(blockIdx.x % p.channelBlocks) * kTiles * kMmaRows;
    loadWeights<T, kTiles>(p, firstChannel, fragments);
    fillOffsets(p, offsets);

    // A warp has the same 32 columns in every row of a tile.
    int32_t const groups = p.tile.columns / kWarpPixels;
    int32_t const warpColumn = warp % groups * kWarpPixels;
    int32_t const firstRow = warp / groups;
    int32_t const rowStep = kWarps / groups;
    uint16_t const* const firstPixel = patch + (warpColumn + pixelOfColumn(lane / 4)) * p.columns.stride;
    int32_t const firstTile = static_cast<int32_t>(blockIdx.x / p.channelBlocks) * p.tilesPerBlock;
    int32_t const endTile = minOf(firstTile + p.tilesPerBlock, p.tiles);
#pragma unroll 1
    for (int32_t t = firstTile; t < endTile; ++t)
    {
        int32_t const stripe = t / p.tilesDown;
        int32_t const n = stripe / p.tilesAcross;
        int32_t const tileRow = t % p.tilesDown * p.tile.rows;
        int32_t const tileColumn = stripe % p.tilesAcross * p.tile.columns;
        __syncthreads(); // the tile before is done with the patch
        loadPatch(p, n, tileRow, tileColumn, patch);
        __syncthreads();
        if (tileColumn + warpColumn >= p.target.columns)
        {
            continue; // the whole warp
        }
        int32_t const column = tileColumn + warpColumn + lane % 4 * kLanePixels;
        int32_t const rows = minOf(p.tile.rows, p.target.rows - tileRow);
#pragma unroll 1
        for (int32_t row = firstRow; row < rows; row += rowStep)
        {
            LanePosition const position{n, firstChannel + lane / 4, tileRow + row, column, p.target.columns - column};
            Accumulators<kTiles> sums;
            beginWithTables<T, kTiles>(p.target, position, sums);
            multiply<T, kTiles>(p, fragments, offsets, firstPixel + row * p.rows.stride * p.tile.patchPitch,
                2 * p.columns.stride, lane, sums);
            storeSums<false, T, kTiles>(p.target, position, sums);
        }
    }
}

template <typename T, int32_t kTiles>
char const* launch(
    Problem const& problem, Tensors const& tensors, Tables const& tables, Tile const& tile, cudaStream_t stream)
{
    Extents const& extents = problem.extents;
    Parameters<T> p{};
    p.image = static_cast<uint16_t const*>(tensors.sources[kNCHW]);
    p.weights = static_cast<uint16_t const*>(tensors.weights[kNCHW]);
    p.imageBatchStride = extents.sourceBatch[kNCHW] == 1 ? 0 : extents.channels[kNCHW] * extents.height * extents.width;
    p.rows = axisOf(problem, 0);
    p.columns = axisOf(problem, 1);
    p.paddingMode = problem.attributes.paddingMode;
    p.channels = static_cast<int32_t>(extents.channels[kNCHW]);
    p.reduction = p.channels * p.rows.kernel * p.columns.kernel;
    p.tile = tile;
    p.channelBlocks = static_cast<int32_t>(divideUp(extents.outChannels, kTiles * kMmaRows));
    p.tilesAcross = ceilDiv(p.columns.outputs, tile.columns);
    p.tilesDown = ceilDiv(p.rows.outputs, tile.rows);
    p.tiles = static_cast<int32_t>(extents.batch) * p.tilesAcross * p.tilesDown;
    p.target = {static_cast<T*>(tensors.output), static_cast<int32_t>(extents.outChannels), p.rows.outputs,
        p.columns.outputs, tables, epilogueOf(problem.attributes)};
    p.tilesPerBlock = tilesPerBlock(blocksOf(problem, tile));
    int32_t const blocks = ceilDiv(p.tiles, p.tilesPerBlock) * p.channelBlocks;
    auto const kernel = convolveTensorCore<T, kTiles>;
    MSCONV_LAUNCH(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(kThreads), tile.sharedBytes, stream, p);
    return launchError();
}

template <typename T>
char const* launchTyped(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    Tile const tile = tensor_core::chooseTile(problem);
    switch (tile.channelTiles)
    {
    case 1: return launch<T, 1>(problem, tensors, tables, tile, stream);
    case 2: return launch<T, 2>(problem, tensors, tables, tile, stream);
    case 4: return launch<T, 4>(problem, tensors, tables, tile, stream);
    default: return "the tensor-core path has no tile for this problem";
    }
}

} // namespace

char const* launchTensorCore(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    return problem.type == DataType::kFloat16 ? launchTyped<__half>(problem, tensors, tables, stream)
                                              : launchTyped<__nv_bfloat16>(problem, tensors, tables, stream);
}

} // namespace msconv
