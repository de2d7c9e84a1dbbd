// Which problem runs on which path, with what tiles, and why: the one place for limits, tile sizes and shared memory. Host only;
// the constants are also the kernels' template arguments.
#pragma once

#include "index.h"

namespace msconv
{

//! Shared memory that every device gives a block without being asked for more.
constexpr std::size_t kPlainSharedBytes = 48 * 1024;

// ---------------------------------------------------------------------------------------------------------------------
// FFMA: any type, any geometry, fp32 multiply-adds. Two kernels.
//
// "Tiled": image patch and weights of a slice of channels lie in shared memory, each thread sums 8 output channels x 4 pixels in
// registers: 32 multiply-adds for at most 6 loads. It needs enough output channels per group to fill its tile, and a patch and
// weights that fit.
//
// "Direct": every thread reads what it needs through the L1 cache. For what the other cannot do well: no image (then it only
// adds tables: a store per thread), depthwise and narrow groups, kernels or strides whose patch does not fit.

namespace ffma
{

constexpr int32_t kLanesX = 8;                            //!< threads along W
constexpr int32_t kLanesY = 8;                            //!< threads along H
constexpr int32_t kLanesO = 4;                            //!< threads along O: a warp has one, so weights broadcast
constexpr int32_t kThreads = kLanesX * kLanesY * kLanesO; //!< 256
constexpr int32_t kPixels = 4;                            //!< output columns per thread
constexpr int32_t kChannels = 8;                          //!< output channels per thread
constexpr int32_t kTileX = kLanesX * kPixels;             //!< 32 columns per block
constexpr int32_t kTileY = kLanesY;                       //!< 8 rows per block
constexpr int32_t kTileO = kLanesO * kChannels;           //!< 32 channels per block
//! Floats from the weights of one tap to the next, one per channel of the block. 4 more than channels: neighbouring taps, which the
//! lanes of a warp write when they load weights in the order of memory, lie in different banks.
constexpr int32_t kWeightPitch = kTileO + 4;
constexpr int32_t kFewestChannels = kChannels; //!< per group; below it most of a tile would idle
constexpr int32_t kDirectThreads = 128;
constexpr int32_t kDirectChannels = 4; //!< per thread, where a group has as many
//! A slice's shared memory. Two blocks of a multiprocessor with 64 KB (sm_75) run side by side.
constexpr std::size_t kSharedBytes = 32 * 1024;

//! How the tiled kernel cuts one problem.
struct Slice
{
    int32_t channels;   //!< input channels per slice; 0: not one fits, or too few output channels
    int32_t patchRows;  //!< rows of the image patch
    int32_t patchPitch; //!< columns of the image patch, rounded up to 4
    std::size_t bytes;  //!< shared memory of a slice
};

} // namespace ffma

//! The slice of the tiled FFMA kernel; channels 0 means the direct kernel.
ffma::Slice ffmaSlice(Problem const& problem);

// ---------------------------------------------------------------------------------------------------------------------
// Tensor cores: fp16 from sm_75 on, bf16 from sm_80 on, group 1, an image. Offsets and pitches count 16-bit values.

//! Can the tensor-core paths run a valid problem at all, tiles aside?
inline bool hasTensorCores(Problem const& problem, int32_t computeCapability)
{
    return problem.attributes.sources[kNCHW] != 0 && problem.attributes.group == 1
        && ((problem.type == DataType::kFloat16 && computeCapability >= 75)
            || (problem.type == DataType::kBFloat16 && computeCapability >= 80));
}

//! K: products per output element.
inline int64_t reductionOf(Problem const& problem)
{
    return problem.extents.channels[kNCHW] * problem.attributes.kernelShape[0] * problem.attributes.kernelShape[1];
}

//! ceil(a / b) for a >= 0, b > 0.
inline int64_t divideUp(int64_t a, int64_t b)
{
    return a / b + (a % b != 0 ? 1 : 0);
}

// "Tensor core": few channels. A block holds the weights of up to 64 output channels, all of K, and an image patch. 128
// threads with up to 64 sums each; at most 128 registers, so that 4 blocks share a multiprocessor and one's loads hide behind
// another's stores.

namespace tensor_core
{

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = 32 * kWarps;
constexpr int32_t kBlocksPerMultiprocessor = 4;
//! Up to here the path comes before the implicit GEMM: the weights of 64 channels, K = 192, are half of the plain shared memory.
constexpr int64_t kFewProducts = 192;
//! Wanted, for 4 blocks on a multiprocessor with 100 KB (sm_86).
constexpr std::size_t kWantedSharedBytes = 24 * 1024;
//! A launch with fewer blocks leaves multiprocessors idle: smaller tiles are taken.
constexpr int64_t kEnoughBlocks = 512;
//! From this many blocks on, each takes several tiles and saves the loading of weights.
constexpr int64_t kManyBlocks = 4096;
constexpr int32_t kMostTilesPerBlock = 8;

//! The part of the output that a block computes at a time, and what it needs for that.
struct Tile
{
    int32_t channelTiles; //!< 16 output channels each: 1, 2 or 4; 0: the path cannot run the problem
    int32_t steps;        //!< K / 16, rounded up
    int32_t rows;         //!< of the output
    int32_t columns;      //!< of the output: 32, 64 or 128
    int32_t patchRows;    //!< rows of the image patch
    int32_t patchPitch;   //!< columns of the image patch; twice an odd number, so that its rows lie in different banks
    std::size_t sharedBytes;
};

//! A tile of this size, channelTiles 0 if it does not fit into plain shared memory.
inline Tile tileOf(Problem const& problem, int32_t rows, int32_t columns)
{
    Axis const h = axisOf(problem, 0);
    Axis const w = axisOf(problem, 1);
    int64_t const reduction = reductionOf(problem);
    int64_t const patchRows = static_cast<int64_t>(rows - 1) * h.stride + h.reach();
    int64_t const patchPitch = (static_cast<int64_t>(columns - 1) * w.stride + w.reach() + 1) / 4 * 4 + 2;
    int64_t const most = static_cast<int64_t>(kPlainSharedBytes) / 2;
    if (reduction > most || patchRows > most || patchPitch > most)
    {
        return {};
    }
    int64_t const outChannels = problem.extents.outChannels;
    int32_t const channelTiles = outChannels > 32 ? 4 : outChannels > 16 ? 2 : 1;
    int64_t const steps = divideUp(reduction, 16);
    int64_t const bytes = steps * 16 * (channelTiles * 16 * 2 + 4) // weights, offsets
        + problem.extents.channels[kNCHW] * patchRows * patchPitch * 2;
    if (bytes > static_cast<int64_t>(kPlainSharedBytes))
    {
        return {};
    }
    return {channelTiles, static_cast<int32_t>(steps), rows, columns, static_cast<int32_t>(patchRows),
        static_cast<int32_t>(patchPitch), static_cast<std::size_t>(bytes)};
}

//! Blocks that a launch needs with one tile each.
inline int64_t blocksOf(Problem const& problem, Tile const& tile)
{
    return problem.extents.batch * divideUp(outputExtent(problem.attributes, problem.extents, 0), tile.rows)
        * divideUp(outputExtent(problem.attributes, problem.extents, 1), tile.columns)
        * divideUp(problem.extents.outChannels, tile.channelTiles * 16);
}

//! The first tile, from large to small, that is not much larger than the output, leaves room for other blocks and gives enough
//! of them; else the last that gives all four warps work; else the largest that fits.
inline Tile chooseTile(Problem const& problem)
{
    constexpr int32_t kSizes[][2] = {
        {8, 128}, {4, 128}, {8, 64}, {4, 64}, {2, 128}, {8, 32}, {2, 64}, {4, 32}, {1, 128}, {2, 32}, {1, 64}, {1, 32}};
    int64_t const outRows = outputExtent(problem.attributes, problem.extents, 0);
    int64_t const outColumns = outputExtent(problem.attributes, problem.extents, 1);
    Tile spare{};
    Tile chosen{};
    for (auto const& size : kSizes)
    {
        Tile const tile = tileOf(problem, size[0], size[1]);
        bool const oversized = (size[0] > 1 && size[0] / 2 >= outRows) || (size[1] > 32 && size[1] / 2 >= outColumns);
        if (tile.channelTiles == 0 || oversized)
        {
            continue;
        }
        if (spare.channelTiles == 0)
        {
            spare = tile;
        }
        bool const busy = size[0] * size[1] >= 32 * kWarps;
        if (tile.sharedBytes > kWantedSharedBytes || (!busy && chosen.channelTiles != 0))
        {
            continue;
        }
        chosen = tile;
        if (blocksOf(problem, tile) >= kEnoughBlocks)
        {
            break;
        }
    }
    return chosen.channelTiles != 0 ? chosen : spare;
}

//! Tiles for each block to take, where `blocks` would take one each.
inline int32_t tilesPerBlock(int64_t blocks)
{
    int64_t const wanted = blocks / kManyBlocks;
    return wanted < 1 ? 1 : wanted < kMostTilesPerBlock ? static_cast<int32_t>(wanted) : kMostTilesPerBlock;
}

} // namespace tensor_core

inline bool tensorCoreRuns(Problem const& problem, int32_t computeCapability)
{
    tensor_core::Tile const tile =
        hasTensorCores(problem, computeCapability) ? tensor_core::chooseTile(problem) : tensor_core::Tile{};
    return tile.channelTiles != 0
        && tensor_core::blocksOf(problem, tile) <= INT32_MAX - tensor_core::kMostTilesPerBlock;
}

// "Implicit GEMM": many channels. A block computes 64 or 128 output channels x 128 pixels in slices of 32 products; a warp 64 x 32,
// 64 sums per thread. Two slices take 29 or 39 KB of static shared memory.

namespace implicit_gemm
{

constexpr int32_t kSlice = 32;                                 //!< products per slice
constexpr int32_t kWarpTiles = 4;                              //!< 16 output channels each, per warp
constexpr int32_t kWarpChannels = 16 * kWarpTiles;             //!< 64
constexpr int32_t kWarpsAlongPixels = 4;                       //!< 32 pixels each
constexpr int32_t kTilePixels = 32 * kWarpsAlongPixels;        //!< 128 per block
constexpr int32_t kThreadsPerWarpRow = 32 * kWarpsAlongPixels; //!< 128 for every 64 output channels
constexpr int32_t kThreadsPerMultiprocessor = 512;             //!< that fit at once: at most 128 registers per thread
constexpr int32_t kThreadsPerMultiprocessorSm75 = 256;         //!< 128 registers spill a little there
constexpr int64_t kMostProducts = 1 << 30;                     //!< K: indices past the last slice stay within 32 bits
//! Below it the only slice would not be full: left to the tensor-core path.
constexpr int64_t kFewestProducts = kSlice;

struct Grid
{
    int32_t warpsAlongO;   //!< 1 or 2
    int64_t channelBlocks; //!< blocks along O
    int64_t pixelBlocks;   //!< blocks along the pixels of one image

    int64_t blocks(int64_t batch) const
    {
        return batch * channelBlocks * pixelBlocks;
    }
};

inline Grid gridOf(Problem const& problem)
{
    int64_t const pixels =
        outputExtent(problem.attributes, problem.extents, 0) * outputExtent(problem.attributes, problem.extents, 1);
    int32_t const warps = problem.extents.outChannels > kWarpChannels ? 2 : 1;
    return {warps, divideUp(problem.extents.outChannels, warps * kWarpChannels), divideUp(pixels, kTilePixels)};
}

//! Are the patches of pixels the image itself?
inline bool isPointwise(Attributes const& a)
{
    return a.kernelShape[0] == 1 && a.kernelShape[1] == 1 && a.strides[0] == 1 && a.strides[1] == 1 && a.pads[0] == 0
        && a.pads[1] == 0 && a.pads[2] == 0 && a.pads[3] == 0;
}

} // namespace implicit_gemm

inline bool implicitGemmRuns(Problem const& problem, int32_t computeCapability)
{
    int64_t const reduction = reductionOf(problem);
    return hasTensorCores(problem, computeCapability) && reduction >= implicit_gemm::kFewestProducts
        && reduction <= implicit_gemm::kMostProducts
        && implicit_gemm::gridOf(problem).blocks(problem.extents.batch) <= INT32_MAX;
}

} // namespace msconv
