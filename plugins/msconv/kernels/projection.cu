// From nch, ncw, nc and the bias to the class tables (tables.h). One launch fills both tables.
//
// A table element is a sum over channels and taps along the axis that its source owns, with weights that are summed over the
// taps of a class along the axis that the source lacks:
//
//     R[n,o,i,cj] = sum over c, u of nch[n,c,i*s - p + u*d] * (sum over v in class cj of W2[o,c,u,v])
//
// and K is the same with H and W exchanged, so one kernel serves both: "along" is the owned axis, "cross" the other one.
// A block makes kTile elements along x kClasses classes of one output channel. Its warps share the reduction over channels
// and taps, so that many channels with few outputs keep a block busy too; the partial sums meet in shared memory.
//
// S and the bias are added where the block writes: first the warps reduce nc over its channels for every tap, then each
// element sums the taps of its two classes.
#include "epilogue.h"
#include "launch.h"
#include "tables.h"

#include <algorithm>

namespace msconv
{

namespace
{

constexpr int32_t kWarp = 32;
constexpr int32_t kWarps = 8;
constexpr int32_t kThreads = kWarps * kWarp;
constexpr int32_t kPerLane = 4; //!< elements along that a lane sums: one read of the weights serves them
constexpr int32_t kTile = kWarp * kPerLane;
constexpr int32_t kClasses = 4;                 //!< a 3-tap axis with padding has 3, one without has 1
constexpr int32_t kSums = kPerLane * kClasses;  //!< per lane
constexpr int32_t kElements = kTile * kClasses; //!< per block
constexpr int32_t kTapChunk = 1024;             //!< taps of nc that are reduced at once

//! One table and what it is made of.
template <typename T>
struct Job
{
    ClassTable table;
    Axis along;
    Axis cross;
    int32_t alongCount;  //!< elements of the table along: outputs, or classes in a table of S alone
    int32_t crossCount;  //!< classes
    int64_t alongStride; //!< in the table
    int64_t crossStride;
    AxisClasses alongIndices; //!< its representative() takes an element of the table to an output
    int32_t batches;          //!< 0: nothing to do

    T const* source;  //!< nch or ncw [Ns, C, extent], or null
    T const* weights; //!< [O, C / groups, taps along and cross]
    int64_t sourceBatchStride;
    int32_t channels;         //!< C / groups
    int32_t channelsPerGroup; //!< output channels
    int32_t tapsCross;        //!< 1 in source semantics, where there is no cross axis
    int32_t alongTapStride;
    int32_t crossTapStride;

    T const* scalars;       //!< nc [Ns, C4], or null
    T const* scalarWeights; //!< [O, C4, taps]
    int64_t scalarBatchStride;
    int32_t scalarChannels;
    int32_t scalarTapsAlong; //!< these two: 1 in source semantics, where nc has a single weight
    int32_t scalarTapsCross;
    int32_t scalarAlongStride; //!< between taps
    int32_t scalarCrossStride;
    T const* bias; //!< [O], or null
};

template <typename T>
struct Jobs
{
    Job<T> row;
    Job<T> column;
    int32_t rowTiles; //!< the first blocks along x work on the row table
    int32_t outChannels;
    PaddingMode mode;
};

inline int32_t tilesOf(int32_t count, int32_t classes)
{
    return ceilDiv(count, kTile) * ceilDiv(classes, kClasses);
}

MSCONV_DEVICE float sumOfLanes(float x)
{
#pragma unroll
    for (int32_t bits = kWarp / 2; bits > 0; bits /= 2)
    {
        x += __shfl_xor_sync(0xFFFFFFFFU, x, bits);
    }
    return x;
}

//! The taps that are summed in a class of the cross axis, of `count`.
template <typename T>
MSCONV_DEVICE TapRange crossTaps(Job<T> const& job, int32_t crossClass, int32_t count)
{
    return job.cross.border ? job.cross.classTaps(crossClass) : TapRange{0, count};
}

//! Sums of one lane over this warp's part of the channels and taps.
template <typename T>
MSCONV_DEVICE void sumVector(Job<T> const& job, PaddingMode mode, int64_t n, int32_t o, int32_t along0, int32_t cross0,
    int32_t warp, int32_t lane, float (&sums)[kPerLane][kClasses])
{
    int32_t starts[kPerLane];
#pragma unroll
    for (int32_t p = 0; p < kPerLane; ++p)
    {
        int32_t const element = minOf(along0 + lane + p * kWarp, job.alongCount - 1);
        starts[p] = job.along.start(job.alongIndices.representative(element));
    }
    TapRange taps[kClasses];
#pragma unroll
    for (int32_t k = 0; k < kClasses; ++k)
    {
        taps[k] = crossTaps(job, minOf(cross0 + k, job.crossCount - 1), job.tapsCross);
    }
    int32_t const tapsAlong = job.along.kernel;
    int64_t const channel0 = static_cast<int64_t>(o / job.channelsPerGroup) * job.channels;
    T const* const source = job.source + n * job.sourceBatchStride + channel0 * job.along.extent;
    T const* const weights = job.weights + static_cast<int64_t>(o) * job.channels * tapsAlong * job.tapsCross;
    for (int32_t r = warp; r < job.channels * tapsAlong; r += kWarps)
    {
        int32_t const c = r / tapsAlong;
        int32_t const u = r - c * tapsAlong;
        T const* const tap = weights + static_cast<int64_t>(c) * tapsAlong * job.tapsCross
            + static_cast<int64_t>(u) * job.alongTapStride;
        float summed[kClasses] = {};
        for (int32_t v = 0; v < job.tapsCross; ++v)
        {
            float const w = toFloat(tap[static_cast<int64_t>(v) * job.crossTapStride]);
#pragma unroll
            for (int32_t k = 0; k < kClasses; ++k)
            {
                summed[k] += v >= taps[k].first && v < taps[k].last ? w : 0.0F;
            }
        }
        T const* const line = source + static_cast<int64_t>(c) * job.along.extent;
#pragma unroll
        for (int32_t p = 0; p < kPerLane; ++p)
        {
            int32_t const index = job.along.inputIndex(mode, starts[p] + u * job.along.dilation);
            float const x = index < 0 ? 0.0F : toFloat(line[index]);
#pragma unroll
            for (int32_t k = 0; k < kClasses; ++k)
            {
                sums[p][k] += x * summed[k];
            }
        }
    }
}

//! nc reduced over its channels for the taps [tap0, tap0 + count): W4[o,:,tap] . nc[n,:].
template <typename T>
MSCONV_DEVICE void reduceScalars(
    Job<T> const& job, int64_t n, int32_t o, int32_t tap0, int32_t count, int32_t warp, int32_t lane, float* reduced)
{
    int32_t const taps = job.scalarTapsAlong * job.scalarTapsCross;
    T const* const scalars = job.scalars + n * job.scalarBatchStride;
    T const* const weights = job.scalarWeights + static_cast<int64_t>(o) * job.scalarChannels * taps + tap0;
    for (int32_t t = warp; t < count; t += kWarps)
    {
        float sum = 0.0F;
        for (int32_t c = lane; c < job.scalarChannels; c += kWarp)
        {
            sum += toFloat(scalars[c]) * toFloat(weights[static_cast<int64_t>(c) * taps + t]);
        }
        sum = sumOfLanes(sum);
        if (lane == 0)
        {
            reduced[t] = sum;
        }
    }
}

//! Sum of those reduced taps that two classes share.
template <typename T>
MSCONV_DEVICE float sumScalars(
    Job<T> const& job, int32_t element, int32_t crossClass, int32_t tap0, int32_t count, float const* reduced)
{
    TapRange const along = job.along.border ? job.along.tapRange(job.alongIndices.representative(element))
                                            : TapRange{0, job.scalarTapsAlong};
    TapRange const cross = crossTaps(job, crossClass, job.scalarTapsCross);
    float sum = 0.0F;
    for (int32_t u = along.first; u < along.last; ++u)
    {
        for (int32_t v = cross.first; v < cross.last; ++v)
        {
            int32_t const t = u * job.scalarAlongStride + v * job.scalarCrossStride - tap0;
            sum += t >= 0 && t < count ? reduced[t] : 0.0F;
        }
    }
    return sum;
}

template <typename T>
MSCONV_DEVICE void makeTile(
    Job<T> const& job, PaddingMode mode, int32_t tile, int64_t n, int32_t o, float* partial, float* reduced)
{
    int32_t const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const warp = thread / kWarp;
    int32_t const lane = thread % kWarp;
    int32_t const alongTiles = ceilDiv(job.alongCount, kTile);
    int32_t const along0 = tile % alongTiles * kTile;
    int32_t const cross0 = tile / alongTiles * kClasses;
    int32_t const workers = job.source == nullptr ? 0 : minOf(kWarps, job.channels * job.along.kernel);
    if (warp < workers)
    {
        float sums[kPerLane][kClasses] = {};
        sumVector(job, mode, n, o, along0, cross0, warp, lane, sums);
#pragma unroll
        for (int32_t p = 0; p < kPerLane; ++p)
        {
#pragma unroll
            for (int32_t k = 0; k < kClasses; ++k)
            {
                partial[(warp * kSums + k * kPerLane + p) * kWarp + lane] = sums[p][k];
            }
        }
    }
    constexpr int32_t kPerThread = kElements / kThreads;
    float results[kPerThread] = {};
    int32_t const scalarTaps = job.scalars == nullptr ? 0 : job.scalarTapsAlong * job.scalarTapsCross;
    for (int32_t tap0 = 0; tap0 < scalarTaps; tap0 += kTapChunk)
    {
        int32_t const count = minOf(kTapChunk, scalarTaps - tap0);
        __syncthreads(); // the taps before have been read
        reduceScalars(job, n, o, tap0, count, warp, lane, reduced);
        __syncthreads();
#pragma unroll
        for (int32_t e = 0; e < kPerThread; ++e)
        {
            // Element k * kTile + a of the tile is class k at along index a.
            int32_t const index = thread + e * kThreads;
            int32_t const element = along0 + index % kTile;
            int32_t const crossClass = cross0 + index / kTile;
            if (element < job.alongCount && crossClass < job.crossCount)
            {
                results[e] += sumScalars(job, element, crossClass, tap0, count, reduced);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int32_t e = 0; e < kPerThread; ++e)
    {
        int32_t const index = thread + e * kThreads;
        int32_t const element = along0 + index % kTile;
        int32_t const crossClass = cross0 + index / kTile;
        float result = results[e] + (job.bias == nullptr ? 0.0F : toFloat(job.bias[o]));
        for (int32_t w = 0; w < workers; ++w)
        {
            result += partial[w * kElements + index];
        }
        if (element < job.alongCount && crossClass < job.crossCount)
        {
            job.table.data[n * job.table.batchStride + o * job.table.channelStride + element * job.alongStride
                + crossClass * job.crossStride] = result;
        }
    }
    __syncthreads(); // before the next tile overwrites the partial sums
}

template <typename T>
MSCONV_DEVICE void makeTable(
    Job<T> const& job, PaddingMode mode, int32_t outChannels, int32_t tile, float* partial, float* reduced)
{
    for (int32_t n = static_cast<int32_t>(blockIdx.z); n < job.batches; n += static_cast<int32_t>(gridDim.z))
    {
        for (int32_t o = static_cast<int32_t>(blockIdx.y); o < outChannels; o += static_cast<int32_t>(gridDim.y))
        {
            makeTile(job, mode, tile, n, o, partial, reduced);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) projectTables(Jobs<T> const jobs)
{
    MSCONV_SHARED_ARRAY(float, partial, kWarps* kElements);
    MSCONV_SHARED_ARRAY(float, reduced, kTapChunk);
    int32_t const block = static_cast<int32_t>(blockIdx.x);
    // Two calls rather than a reference to one of the two: that would copy the parameters to local memory.
    if (block < jobs.rowTiles)
    {
        makeTable(jobs.row, jobs.mode, jobs.outChannels, block, partial, reduced);
    }
    else
    {
        makeTable(jobs.column, jobs.mode, jobs.outChannels, block - jobs.rowTiles, partial, reduced);
    }
}

template <typename T>
Job<T> makeJob(Problem const& problem, Tensors const& tensors, ClassTable const& table, bool isRow, bool folds)
{
    Attributes const& a = problem.attributes;
    Extents const& e = problem.extents;
    bool const tiled = a.paddingSemantics == PaddingSemantics::kTiled;
    int32_t const source = isRow ? kNCH : kNCW;
    bool const hasSource = a.sources[source] != 0;
    bool const hasScalars = folds && a.sources[kNC] != 0;
    Job<T> job{};
    if (table.data == nullptr)
    {
        return job;
    }
    job.table = table;
    job.along = axisOf(problem, isRow ? 0 : 1);
    job.cross = axisOf(problem, isRow ? 1 : 0);
    job.alongIndices = isRow ? table.rows : table.columns;
    job.alongCount = job.along.outputs - job.alongIndices.skip;
    job.crossCount = job.cross.classCount();
    job.alongStride = isRow ? table.rowStride : 1;
    job.crossStride = isRow ? 1 : table.rowStride;
    job.batches = table.batchStride == 0 ? 1 : static_cast<int32_t>(e.batch);
    job.channelsPerGroup = 1;
    if (hasSource)
    {
        int32_t const groups = tiled ? 1 : a.group;
        int64_t const channels = e.channels[source];
        job.source = static_cast<T const*>(tensors.sources[source]);
        job.weights = static_cast<T const*>(tensors.weights[source]);
        job.sourceBatchStride = e.sourceBatch[source] == 1 ? 0 : channels * job.along.extent;
        job.channels = static_cast<int32_t>(channels / groups);
        job.channelsPerGroup = static_cast<int32_t>(e.outChannels / groups);
        job.tapsCross = tiled ? job.cross.kernel : 1;
        job.alongTapStride = isRow ? job.tapsCross : 1;
        job.crossTapStride = isRow ? 1 : job.along.kernel;
    }
    if (hasScalars)
    {
        job.scalars = static_cast<T const*>(tensors.sources[kNC]);
        job.scalarWeights = static_cast<T const*>(tensors.weights[kNC]);
        job.scalarBatchStride = e.sourceBatch[kNC] == 1 ? 0 : e.channels[kNC];
        job.scalarChannels = static_cast<int32_t>(e.channels[kNC]);
        job.scalarTapsAlong = tiled ? job.along.kernel : 1;
        job.scalarTapsCross = tiled ? job.cross.kernel : 1;
        job.scalarAlongStride = isRow ? a.kernelShape[1] : 1;
        job.scalarCrossStride = isRow ? 1 : a.kernelShape[1];
    }
    job.bias = folds && a.hasBias != 0 ? static_cast<T const*>(tensors.bias) : nullptr;
    return job;
}

template <typename T>
char const* launch(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
{
    bool const rowFolds = tables.row.data != nullptr;
    Jobs<T> jobs{};
    jobs.row = makeJob<T>(problem, tensors, tables.row, true, rowFolds);
    jobs.column = makeJob<T>(problem, tensors, tables.column, false, !rowFolds);
    jobs.rowTiles = tilesOf(jobs.row.alongCount, jobs.row.crossCount);
    jobs.outChannels = static_cast<int32_t>(problem.extents.outChannels);
    jobs.mode = problem.attributes.paddingMode;
    int32_t const tiles = jobs.rowTiles + tilesOf(jobs.column.alongCount, jobs.column.crossCount);
    int64_t const batches = std::max(jobs.row.batches, jobs.column.batches);
    if (tiles == 0)
    {
        return nullptr;
    }
    dim3 const grid(static_cast<unsigned>(tiles),
        static_cast<unsigned>(std::min<int64_t>(jobs.outChannels, kMaxGridYZ)),
        static_cast<unsigned>(std::min(batches, kMaxGridYZ)));
    auto* const kernel = projectTables<T>;
    MSCONV_LAUNCH(kernel, grid, dim3(kThreads), 0, stream, jobs);
    return launchError();
}

} // namespace

char const* launchProjection(Problem const& problem, Tensors const& tensors, Tables const& tables, cudaStream_t stream)
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
