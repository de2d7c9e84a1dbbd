// The FFMA path: fp32 multiply-adds for any type and geometry. paths.h says which of the two kernels a problem takes, and why.
#include "epilogue.h"
#include "launch.h"
#include "paths.h"
#include "tables.h"

#include <algorithm>

namespace msconv
{

namespace
{

using namespace ffma;

constexpr int32_t kWarp = 32;
constexpr int32_t kWarps = kThreads / kWarp;

template <typename T>
struct Parameters
{
    T const* image;   //!< [Ns, C, H, W], or null
    T const* weights; //!< [O, C / group, kh, kw]
    T* output;        //!< [N, O, H', W']
    int64_t imageBatchStride;
    int32_t batch;
    int32_t channels;         //!< per group
    int32_t groupOutChannels; //!< output channels per group
    int32_t outChannels;
    int32_t channelTiles; //!< of one group
    int32_t allChannelTiles;
    Axis rows;
    Axis columns;
    PaddingMode mode;
    Tables tables;
    Epilogue epilogue;
    Slice slice;
};

//! Which output channels of which group a block computes.
struct ChannelTile
{
    int32_t group;
    int32_t first; //!< output channel
    int32_t count; //!< how many of a tile exist
};

template <typename T>
MSCONV_DEVICE ChannelTile channelTile(Parameters<T> const& p, int32_t tile, int32_t tileChannels)
{
    int32_t const group = tile / p.channelTiles;
    int32_t const first = (tile - group * p.channelTiles) * tileChannels;
    return {group, group * p.groupOutChannels + first, minOf(tileChannels, p.groupOutChannels - first)};
}

//! The weights of the slice [channel0, channel0 + count) as [channel][tap][kWeightPitch output channels]; zero for those
//! that do not exist.
template <typename T>
MSCONV_DEVICE void loadWeights(
    Parameters<T> const& p, ChannelTile const& tile, int32_t channel0, int32_t count, float* shared)
{
    int32_t const taps = p.rows.kernel * p.columns.kernel;
    int32_t const warp = static_cast<int32_t>(threadIdx.x) / kWarp;
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % kWarp;
    for (int32_t o = warp; o < kTileO; o += kWarps)
    {
        bool const exists = o < tile.count;
        T const* const from =
            p.weights + (static_cast<int64_t>(tile.first + (exists ? o : 0)) * p.channels + channel0) * taps;
        for (int32_t t = lane; t < count * taps; t += kWarp)
        {
            shared[t * kWeightPitch + o] = exists ? toFloat(from[t]) : 0.0F;
        }
    }
}

//! The image patch of the slice as [channel][row][column]; zero in zero padding and where no output looks.
template <typename T>
MSCONV_DEVICE void loadPatch(
    Parameters<T> const& p, T const* image, int32_t startRow, int32_t startColumn, int32_t count, float* shared)
{
    int32_t const warp = static_cast<int32_t>(threadIdx.x) / kWarp;
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % kWarp;
    for (int32_t r = warp; r < count * p.slice.patchRows; r += kWarps)
    {
        int32_t const c = r / p.slice.patchRows;
        int32_t const row = p.rows.inputIndex(p.mode, startRow + r - c * p.slice.patchRows);
        T const* const line = image + (static_cast<int64_t>(c) * p.rows.extent + maxOf(row, 0)) * p.columns.extent;
        for (int32_t x = lane; x < p.slice.patchPitch; x += kWarp)
        {
            int32_t const column = p.columns.inputIndex(p.mode, startColumn + x);
            shared[r * p.slice.patchPitch + x] = row < 0 || column < 0 ? 0.0F : toFloat(line[column]);
        }
    }
}

MSCONV_DEVICE void loadFour(float const* shared, float* registers)
{
    float4 const four = *reinterpret_cast<float4 const*>(shared);
    registers[0] = four.x;
    registers[1] = four.y;
    registers[2] = four.z;
    registers[3] = four.w;
}

//! acc += weights * pixels for one tap; `pixel(p)` is the pixel of output p.
template <typename Pixel>
MSCONV_DEVICE void multiplyTap(float const* weights, Pixel const& pixel, float (&sums)[kChannels][kPixels])
{
    float w[kChannels];
#pragma unroll
    for (int32_t o = 0; o < kChannels; o += 4)
    {
        loadFour(weights + o, w + o);
    }
#pragma unroll
    for (int32_t o = 0; o < kChannels; ++o)
    {
#pragma unroll
        for (int32_t p = 0; p < kPixels; ++p)
        {
            sums[o][p] += w[o] * pixel(p);
        }
    }
}

//! The sums of one slice. kKernel > 0: a square kernel of that size without stride and dilation, whose rows are read once into
//! registers and whose outputs are kPixels neighbours. kKernel = 0: any geometry, outputs kLanesX apart, so that the lanes read
//! neighbouring columns.
template <int32_t kKernel, typename T>
MSCONV_DEVICE void sumSlice(Parameters<T> const& p, int32_t count, float const* patch, float const* weights, int32_t x,
    int32_t y, float (&sums)[kChannels][kPixels])
{
    int32_t const pitch = p.slice.patchPitch;
    if constexpr (kKernel > 0)
    {
        constexpr int32_t kWindow = (kPixels + kKernel - 1 + 3) / 4 * 4;
        for (int32_t c = 0; c < count; ++c)
        {
            float const* line = patch + (c * p.slice.patchRows + y) * pitch + x * kPixels;
            float const* tap = weights + c * (kKernel * kKernel * kWeightPitch);
#pragma unroll 1
            for (int32_t u = 0; u < kKernel; ++u)
            {
                float window[kWindow];
#pragma unroll
                for (int32_t i = 0; i < kWindow; i += 4)
                {
                    loadFour(line + i, window + i);
                }
#pragma unroll
                for (int32_t v = 0; v < kKernel; ++v)
                {
                    multiplyTap(tap + v * kWeightPitch, [&](int32_t pixel) { return window[pixel + v]; }, sums);
                }
                line += pitch;
                tap += kKernel * kWeightPitch;
            }
        }
    }
    else
    {
        float const* tap = weights;
        for (int32_t c = 0; c < count; ++c)
        {
            for (int32_t u = 0; u < p.rows.kernel; ++u)
            {
                float const* const line = patch
                    + (c * p.slice.patchRows + y * p.rows.stride + u * p.rows.dilation) * pitch + x * p.columns.stride;
                for (int32_t v = 0; v < p.columns.kernel; ++v)
                {
                    float const* const from = line + v * p.columns.dilation;
                    multiplyTap(tap, [&](int32_t pixel) { return from[pixel * kLanesX * p.columns.stride]; }, sums);
                    tap += kWeightPitch;
                }
            }
        }
    }
}

//! Add the tables, apply the activation, store the tile.
template <bool kNeighbours, typename T>
MSCONV_DEVICE void storeTile(Parameters<T> const& p, ChannelTile const& tile, int64_t n, int32_t firstChannel,
    int32_t i, int32_t tileColumn, int32_t x, float (&sums)[kChannels][kPixels])
{
    if (i >= p.rows.outputs)
    {
        return;
    }
#pragma unroll
    for (int32_t o = 0; o < kChannels; ++o)
    {
        if (firstChannel + o >= tile.count)
        {
            return;
        }
        int64_t const channel = tile.first + firstChannel + o;
        AddedRow const added = addedRow(p.tables, n, channel, i);
        T* const line = p.output + ((n * p.outChannels + channel) * p.rows.outputs + i) * p.columns.outputs;
        if constexpr (kNeighbours)
        {
            int32_t const j = tileColumn + x * kPixels;
            if (j < p.columns.outputs)
            {
                addTo(sums[o], added, j);
                activate(p.epilogue, sums[o]);
                store(line + j, sums[o], p.columns.outputs - j);
            }
        }
        else
        {
#pragma unroll
            for (int32_t pixel = 0; pixel < kPixels; ++pixel)
            {
                sums[o][pixel] += added(minOf(tileColumn + x + pixel * kLanesX, p.tables.lastColumn));
            }
            activate(p.epilogue, sums[o]);
#pragma unroll
            for (int32_t pixel = 0; pixel < kPixels; ++pixel)
            {
                int32_t const j = tileColumn + x + pixel * kLanesX;
                if (j < p.columns.outputs)
                {
                    line[j] = fromFloat<T>(sums[o][pixel]);
                }
            }
        }
    }
}

template <typename T, int32_t kKernel>
__global__ void __launch_bounds__(kThreads, 2) convolveTiled(Parameters<T> const p)
{
    MSCONV_DYNAMIC_SHARED(float, shared);
    int32_t const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const x = thread % kLanesX;
    int32_t const y = thread / kLanesX % kLanesY;
    int32_t const firstChannel = thread / (kLanesX * kLanesY) * kChannels;
    int32_t const tilesX = ceilDiv(p.columns.outputs, kTileX);
    int32_t const tileRow = static_cast<int32_t>(blockIdx.x) / tilesX * kTileY;
    int32_t const tileColumn = static_cast<int32_t>(blockIdx.x) % tilesX * kTileX;
    int32_t const taps = p.rows.kernel * p.columns.kernel;
    float* const weights = shared;
    float* const patch = shared + p.slice.channels * taps * kWeightPitch;
    for (int32_t n = static_cast<int32_t>(blockIdx.z); n < p.batch; n += static_cast<int32_t>(gridDim.z))
    {
        for (int32_t t = static_cast<int32_t>(blockIdx.y); t < p.allChannelTiles; t += static_cast<int32_t>(gridDim.y))
        {
            ChannelTile const tile = channelTile(p, t, kTileO);
            float sums[kChannels][kPixels] = {};
            for (int32_t channel = 0; channel < p.channels; channel += p.slice.channels)
            {
                int32_t const count = minOf(p.slice.channels, p.channels - channel);
                int64_t const plane = static_cast<int64_t>(p.rows.extent) * p.columns.extent;
                T const* const image = p.image + n * p.imageBatchStride
                    + (static_cast<int64_t>(tile.group) * p.channels + channel) * plane;
                __syncthreads(); // the slice before has been read
                loadWeights(p, tile, channel, count, weights);
                loadPatch(p, image, p.rows.start(tileRow), p.columns.start(tileColumn), count, patch);
                __syncthreads();
                sumSlice<kKernel>(p, count, patch, weights + firstChannel, x, y, sums);
            }
            storeTile<(kKernel > 0)>(p, tile, n, firstChannel, tileRow + y, tileColumn, x, sums);
        }
    }
}

//! Each thread makes kCount output channels of as many neighbouring pixels as one store holds.
template <typename T, int32_t kCount>
__global__ void __launch_bounds__(kDirectThreads, 4) convolveDirect(Parameters<T> const p)
{
    constexpr int32_t kColumns = 16 / static_cast<int32_t>(sizeof(T));
    int32_t const perRow = ceilDiv(p.columns.outputs, kColumns);
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kDirectThreads + static_cast<int32_t>(threadIdx.x);
    if (index >= static_cast<int64_t>(p.rows.outputs) * perRow)
    {
        return;
    }
    int32_t const i = static_cast<int32_t>(index) / perRow;
    int32_t const j = (static_cast<int32_t>(index) - i * perRow) * kColumns;
    int32_t const taps = p.rows.kernel * p.columns.kernel;
    int64_t const plane = static_cast<int64_t>(p.rows.extent) * p.columns.extent;
    int32_t const startRow = p.rows.start(i);
    int32_t starts[kColumns];
#pragma unroll
    for (int32_t k = 0; k < kColumns; ++k)
    {
        starts[k] = p.columns.start(minOf(j + k, p.columns.outputs - 1));
    }
    for (int32_t n = static_cast<int32_t>(blockIdx.z); n < p.batch; n += static_cast<int32_t>(gridDim.z))
    {
        for (int32_t t = static_cast<int32_t>(blockIdx.y); t < p.allChannelTiles; t += static_cast<int32_t>(gridDim.y))
        {
            ChannelTile const tile = channelTile(p, t, kCount);
            float sums[kCount][kColumns] = {};
            T const* image = p.image + n * p.imageBatchStride + static_cast<int64_t>(tile.group) * p.channels * plane;
            T const* weights = p.weights + static_cast<int64_t>(tile.first) * p.channels * taps;
            for (int32_t c = 0; c < p.channels; ++c)
            {
                for (int32_t u = 0; u < p.rows.kernel; ++u)
                {
                    int32_t const row = p.rows.inputIndex(p.mode, startRow + u * p.rows.dilation);
                    if (row < 0)
                    {
                        continue;
                    }
                    T const* const line = image + static_cast<int64_t>(row) * p.columns.extent;
                    for (int32_t v = 0; v < p.columns.kernel; ++v)
                    {
                        float w[kCount];
#pragma unroll
                        for (int32_t o = 0; o < kCount; ++o)
                        {
                            // Channels behind the group's last one repeat it; they are not stored.
                            int64_t const channel = minOf(o, tile.count - 1);
                            w[o] = toFloat(weights[channel * p.channels * taps + u * p.columns.kernel + v]);
                        }
#pragma unroll
                        for (int32_t k = 0; k < kColumns; ++k)
                        {
                            int32_t const column = p.columns.inputIndex(p.mode, starts[k] + v * p.columns.dilation);
                            float const pixel = column < 0 ? 0.0F : toFloat(line[column]);
#pragma unroll
                            for (int32_t o = 0; o < kCount; ++o)
                            {
                                sums[o][k] += w[o] * pixel;
                            }
                        }
                    }
                }
                image += plane;
                weights += taps;
            }
#pragma unroll
            for (int32_t o = 0; o < kCount; ++o)
            {
                if (o < tile.count)
                {
                    int64_t const channel = tile.first + o;
                    addTo(sums[o], addedRow(p.tables, n, channel, i), j);
                    activate(p.epilogue, sums[o]);
                    T* const line = p.output + ((n * p.outChannels + channel) * p.rows.outputs + i) * p.columns.outputs;
                    store(line + j, sums[o], p.columns.outputs - j);
                }
            }
        }
    }
}

template <typename T>
using Kernel = void (*)(Parameters<T> const);

//! Kernels of their own: what is common. 16-bit types come here with groups only (paths.h); 3 x 3 is enough for them.
template <typename T>
Kernel<T> tiledKernel(Axis const& rows, Axis const& columns)
{
    bool const dense = rows.stride == 1 && columns.stride == 1 && rows.dilation == 1 && columns.dilation == 1;
    int32_t const kernel = dense && rows.kernel == columns.kernel ? rows.kernel : 0;
    if constexpr (sizeof(T) == sizeof(float))
    {
        switch (kernel)
        {
        case 1: return convolveTiled<T, 1>;
        case 5: return convolveTiled<T, 5>;
        case 7: return convolveTiled<T, 7>;
        default: break;
        }
    }
    return kernel == 3 ? convolveTiled<T, 3> : convolveTiled<T, 0>;
}

template <typename T>
char const* launch(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    Attributes const& a = problem.attributes;
    Extents const& e = problem.extents;
    Parameters<T> p{};
    p.output = static_cast<T*>(tensors.output);
    p.batch = static_cast<int32_t>(e.batch);
    p.outChannels = static_cast<int32_t>(e.outChannels);
    p.groupOutChannels = p.outChannels; // without an image, whose groups they are, all are one group
    p.rows = axisOf(problem, 0);
    p.columns = axisOf(problem, 1);
    p.mode = a.paddingMode;
    p.tables = tables;
    p.epilogue = epilogueOf(a);
    p.slice = ffmaSlice(problem);
    int32_t groups = 1;
    if (a.sources[kNCHW] != 0)
    {
        groups = a.group;
        p.image = static_cast<T const*>(tensors.sources[kNCHW]);
        p.weights = static_cast<T const*>(tensors.weights[kNCHW]);
        p.channels = static_cast<int32_t>(e.channels[kNCHW] / groups);
        p.groupOutChannels = p.outChannels / groups;
        p.imageBatchStride = e.sourceBatch[kNCHW] == 1 ? 0 : e.channels[kNCHW] * e.height * e.width;
    }
    bool const tiled = p.slice.channels > 0;
    bool const narrow = p.channels == 0 || p.groupOutChannels < kDirectChannels;
    int32_t const tileChannels = tiled ? kTileO : narrow ? 1 : kDirectChannels;
    p.channelTiles = ceilDiv(p.groupOutChannels, tileChannels);
    p.allChannelTiles = p.channelTiles * groups;
    int64_t const perThread = 16 / static_cast<int64_t>(sizeof(T));
    int64_t const tiles = tiled
        ? static_cast<int64_t>(ceilDiv(p.rows.outputs, kTileY)) * ceilDiv(p.columns.outputs, kTileX)
        : (p.rows.outputs * ((p.columns.outputs + perThread - 1) / perThread) + kDirectThreads - 1) / kDirectThreads;
    dim3 const grid(static_cast<unsigned>(tiles),
        static_cast<unsigned>(std::min<int64_t>(p.allChannelTiles, kMaxGridYZ)),
        static_cast<unsigned>(std::min<int64_t>(p.batch, kMaxGridYZ)));
    Kernel<T> const direct = narrow ? convolveDirect<T, 1> : convolveDirect<T, kDirectChannels>;
    Kernel<T> const kernel = tiled ? tiledKernel<T>(p.rows, p.columns) : direct;
    MSCONV_LAUNCH(kernel, grid, dim3(tiled ? kThreads : kDirectThreads), p.slice.bytes, stream, p);
    return launchError();
}

} // namespace

char const* launchFfma(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    switch (problem.type)
    {
    case DataType::kFloat32: return launch<float>(problem, tensors, tables, stream);
    case DataType::kFloat16: return launch<__half>(problem, tensors, tables, stream);
    case DataType::kBFloat16: return launch<__nv_bfloat16>(problem, tensors, tables, stream);
    }
    return nullptr;
}

} // namespace msconv
