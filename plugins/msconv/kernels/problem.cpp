// What is a valid problem, said with the names of docs/spec.md; the sizes of its output and its tables.
#include "message.h"
#include "msconv2d.h"
#include "paths.h"
#include "tables.h"

#include <algorithm>
#include <initializer_list>

namespace msconv
{

namespace
{

constexpr char const* kAxisNames[2] = {"height", "width"};
constexpr std::size_t kAlignment = 256;

//! Does a product of non-negative factors, in bytes of `size` each, exceed what 64 bits hold?
bool overflows(std::initializer_list<int64_t> factors)
{
    constexpr int64_t kMostElements = INT64_MAX / 8;
    int64_t product = 1;
    for (int64_t factor : factors)
    {
        if (factor != 0 && product > kMostElements / factor)
        {
            return true;
        }
        product *= factor;
    }
    return false;
}

int64_t roundUp(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

bool ownsAxis(Attributes const& a, int32_t axis)
{
    return a.sources[kNCHW] != 0 || a.sources[axis == 0 ? kNCH : kNCW] != 0;
}

//! Do the groups apply to a source? nc is a linear map without groups; tiled weights but the image's are dense.
bool isGrouped(Attributes const& a, int32_t source)
{
    return source == kNCHW || (a.paddingSemantics == PaddingSemantics::kSource && source != kNC);
}

char const* checkAxis(Attributes const& a, Extents const& extents, int32_t axis, Message const& message)
{
    int64_t const extent = axis == 0 ? extents.height : extents.width;
    int64_t const before = a.pads[axis];
    int64_t const after = a.pads[axis + 2];
    if (extent < 1)
    {
        return message("%s must be at least 1, but is %lld", kAxisNames[axis], static_cast<long long>(extent));
    }
    if (extent > kMaxExtent || extent + before + after > kMaxExtent)
    {
        return message("%s %lld with pads %lld and %lld is more than the %d positions that are supported",
            kAxisNames[axis], static_cast<long long>(extent), static_cast<long long>(before),
            static_cast<long long>(after), kMaxExtent);
    }
    int64_t const reach = static_cast<int64_t>(a.dilations[axis]) * (a.kernelShape[axis] - 1) + 1;
    if (extent + before + after < reach)
    {
        return message(
            "kernel_shape: a %s of %lld with pads %lld and %lld is smaller than the kernel, which spans %lld "
            "positions (kernel %d, dilation %d): use a larger input or more padding",
            kAxisNames[axis], static_cast<long long>(extent), static_cast<long long>(before),
            static_cast<long long>(after), static_cast<long long>(reach), a.kernelShape[axis], a.dilations[axis]);
    }
    bool const reflect = a.paddingMode == PaddingMode::kReflect;
    if (reflect || a.paddingMode == PaddingMode::kCircular)
    {
        int64_t const smallest = std::max(before, after) + (reflect ? 1 : 0);
        if (extent < smallest)
        {
            return message("pads: %s padding of %lld and %lld needs a %s of at least %lld, but it is %lld",
                reflect ? "reflect" : "circular", static_cast<long long>(before), static_cast<long long>(after),
                kAxisNames[axis], static_cast<long long>(smallest), static_cast<long long>(extent));
        }
    }
    return nullptr;
}

char const* checkSource(Problem const& problem, int32_t source, Message const& message)
{
    Attributes const& a = problem.attributes;
    Extents const& e = problem.extents;
    char const* const name = kSourceNames[source];
    int64_t const channels = e.channels[source];
    if (channels < 1)
    {
        return message("sources: %s is present and must have at least 1 channel, but has %lld", name,
            static_cast<long long>(channels));
    }
    int64_t const area = static_cast<int64_t>(a.kernelShape[0]) * a.kernelShape[1];
    if (channels > kMaxExtent / area)
    {
        return message("sources: %s has %lld channels; with a kernel of %d x %d at most %lld are supported", name,
            static_cast<long long>(channels), a.kernelShape[0], a.kernelShape[1],
            static_cast<long long>(kMaxExtent / area));
    }
    if (isGrouped(a, source) && channels % a.group != 0)
    {
        return message("group: %s has %lld channels, which is not divisible by %d groups", name,
            static_cast<long long>(channels), a.group);
    }
    if (isGrouped(a, source) && e.outChannels % a.group != 0)
    {
        return message("group: %lld output channels are not divisible by %d groups",
            static_cast<long long>(e.outChannels), a.group);
    }
    int64_t const batch = e.sourceBatch[source];
    if (batch != e.batch && batch != 1)
    {
        return message("sources: %s has batch %lld; it must be %lld or 1", name, static_cast<long long>(batch),
            static_cast<long long>(e.batch));
    }
    if (overflows({batch, channels, std::max<int64_t>(e.height, 1), std::max<int64_t>(e.width, 1)})
        || overflows({e.outChannels, channels, area}))
    {
        return message("sources: %s or its weight has more elements than 64 bits can count", name);
    }
    return nullptr;
}

ClassTable layOutTable(int64_t batches, int64_t channels, int64_t rows, int64_t columns, AxisClasses rowClasses,
    AxisClasses columnClasses, void* workspace, std::size_t* bytes)
{
    ClassTable table{};
    table.rowStride = columns;
    table.channelStride = roundUp(rows * columns, 4);
    table.batchStride = batches == 1 ? 0 : channels * table.channelStride;
    table.rows = rowClasses;
    table.columns = columnClasses;
    table.data = workspace == nullptr ? nullptr : reinterpret_cast<float*>(static_cast<char*>(workspace) + *bytes);
    *bytes += static_cast<std::size_t>(
        roundUp(batches * channels * table.channelStride * static_cast<int64_t>(sizeof(float)), kAlignment));
    return table;
}

} // namespace

int64_t outputExtent(Attributes const& attributes, Extents const& extents, int32_t axis)
{
    if (!ownsAxis(attributes, axis))
    {
        return 1;
    }
    int64_t const extent = axis == 0 ? extents.height : extents.width;
    int64_t const reach = static_cast<int64_t>(attributes.dilations[axis]) * (attributes.kernelShape[axis] - 1) + 1;
    int64_t const room = extent + attributes.pads[axis] + attributes.pads[axis + 2] - reach;
    return room < 0 ? 0 : room / attributes.strides[axis] + 1;
}

char const* checkAttributes(Attributes const& a, char* buffer, std::size_t size)
{
    Message const message{buffer, size};
    for (int32_t present : a.sources)
    {
        if (present != 0 && present != 1)
        {
            return message("sources must be 4 integers, each 0 or 1, but is [%d, %d, %d, %d]", a.sources[0],
                a.sources[1], a.sources[2], a.sources[3]);
        }
    }
    if (a.sources[0] + a.sources[1] + a.sources[2] + a.sources[3] == 0)
    {
        return message("sources is [0, 0, 0, 0]; at least one source must be present");
    }
    struct Pair
    {
        char const* name;
        int32_t const* values;
    };
    for (Pair const& pair :
        {Pair{"kernel_shape", a.kernelShape}, Pair{"strides", a.strides}, Pair{"dilations", a.dilations}})
    {
        if (pair.values[0] < 1 || pair.values[1] < 1)
        {
            return message(
                "%s must be 2 integers, each at least 1, but is [%d, %d]", pair.name, pair.values[0], pair.values[1]);
        }
    }
    for (int32_t pad : a.pads)
    {
        if (pad < 0)
        {
            return message("pads must be 4 integers, each at least 0, but is [%d, %d, %d, %d]", a.pads[0], a.pads[1],
                a.pads[2], a.pads[3]);
        }
    }
    if (static_cast<int64_t>(a.kernelShape[0]) * a.kernelShape[1] > kMaxExtent)
    {
        return message("kernel_shape [%d, %d] has more taps than are supported", a.kernelShape[0], a.kernelShape[1]);
    }
    for (int32_t axis = 0; axis < 2; ++axis)
    {
        if (static_cast<int64_t>(a.dilations[axis]) * (a.kernelShape[axis] - 1) + 1 > kMaxExtent)
        {
            return message(
                "dilations: a kernel of %d with dilation %d spans more than the %d positions that are supported",
                a.kernelShape[axis], a.dilations[axis], kMaxExtent);
        }
    }
    if (a.hasBias != 0 && a.hasBias != 1)
    {
        return message("has_bias must be 0 or 1, but is %d", a.hasBias);
    }
    if (a.group < 1)
    {
        return message("group must be at least 1, but is %d", a.group);
    }
    if (a.paddingSemantics != PaddingSemantics::kSource && a.paddingSemantics != PaddingSemantics::kTiled)
    {
        return message("padding_semantics is %d; known are 0 source, 1 tiled", static_cast<int>(a.paddingSemantics));
    }
    if (a.paddingMode < PaddingMode::kZeros || a.paddingMode > PaddingMode::kCircular)
    {
        return message("padding_mode is %d; known are 0 zeros, 1 reflect, 2 replicate, 3 circular",
            static_cast<int>(a.paddingMode));
    }
    if (a.activation < Activation::kNone || a.activation > Activation::kClip)
    {
        return message("activation is %d; known are 0 none, 1 relu, 2 leaky_relu, 3 silu, 4 sigmoid, 5 tanh, 6 clip",
            static_cast<int>(a.activation));
    }
    for (int32_t axis = 0; axis < 2; ++axis)
    {
        if (a.paddingSemantics == PaddingSemantics::kTiled && !ownsAxis(a, axis))
        {
            return message(
                "padding_semantics tiled: no source defines the %s, so there is no tiled tensor; use semantics "
                "source, which gives an extent of 1 there",
                kAxisNames[axis]);
        }
    }
    return nullptr;
}

char const* checkProblem(Problem const& problem, char* buffer, std::size_t size)
{
    Attributes const& a = problem.attributes;
    Extents const& e = problem.extents;
    Message const message{buffer, size};
    if (char const* wrong = checkAttributes(a, buffer, size))
    {
        return wrong;
    }
    if (problem.type < DataType::kFloat32 || problem.type > DataType::kBFloat16)
    {
        return message("data type is %d; known are 0 float32, 1 float16, 2 bfloat16", static_cast<int>(problem.type));
    }
    if (e.batch < 0 || e.batch > kMaxExtent)
    {
        return message("batch must be 0 to %d, but is %lld", kMaxExtent, static_cast<long long>(e.batch));
    }
    if (e.outChannels < 1 || e.outChannels > kMaxExtent)
    {
        return message(
            "output channels must be 1 to %d, but are %lld", kMaxExtent, static_cast<long long>(e.outChannels));
    }
    bool hasBatch = false;
    for (int32_t axis = 0; axis < 2; ++axis)
    {
        char const* const wrong = ownsAxis(a, axis) ? checkAxis(a, e, axis, message) : nullptr;
        if (wrong != nullptr)
        {
            return wrong;
        }
    }
    for (int32_t source = 0; source < kSourceCount; ++source)
    {
        if (a.sources[source] == 0)
        {
            continue;
        }
        if (char const* wrong = checkSource(problem, source, message))
        {
            return wrong;
        }
        hasBatch = hasBatch || e.sourceBatch[source] == e.batch;
    }
    if (!hasBatch)
    {
        return message("batch is %lld, but every source has batch 1", static_cast<long long>(e.batch));
    }
    int64_t const rows = outputExtent(a, e, 0);
    int64_t const columns = outputExtent(a, e, 1);
    if (rows * ((columns + 3) / 4) > INT32_MAX || overflows({e.batch, e.outChannels, rows + 3, columns + 3}))
    {
        return message("the output of %lld x %lld is larger than supported", static_cast<long long>(rows),
            static_cast<long long>(columns));
    }
    int64_t const rowClasses = axisOf(problem, 0).classCountBound();
    int64_t const columnClasses = axisOf(problem, 1).classCountBound();
    if (overflows({e.batch + 1, e.outChannels, rows * columnClasses + rowClasses * (columns + 3) + 1}))
    {
        return message("pads: the class tables of an output of %lld x %lld are larger than supported",
            static_cast<long long>(rows), static_cast<long long>(columns));
    }
    return nullptr;
}

Tables layOutTables(Problem const& problem, void* workspace, std::size_t* bytes)
{
    Attributes const& a = problem.attributes;
    Extents const& e = problem.extents;
    Axis const rows = axisOf(problem, 0);
    Axis const columns = axisOf(problem, 1);
    AxisClasses const identity{0, 0};
    auto const batchOf = [&](int32_t source) { return a.sources[source] != 0 ? e.sourceBatch[source] : 1; };
    bool const folds = a.sources[kNC] != 0 || a.hasBias != 0; // S and the bias need a table
    bool const rowFolds = a.sources[kNCH] != 0 || a.sources[kNCW] == 0;
    Tables tables{};
    tables.lastColumn = columns.outputs - 1;
    *bytes = 0;
    if (e.batch == 0)
    {
        return tables;
    }
    if (a.sources[kNCH] != 0)
    {
        tables.row = layOutTable(std::max(batchOf(kNCH), batchOf(kNC)), e.outChannels, rows.outputs,
            columns.classCountBound(), identity, columns.classes(), workspace, bytes);
    }
    else if (rowFolds && folds)
    {
        tables.row = layOutTable(batchOf(kNC), e.outChannels, rows.classCountBound(), columns.classCountBound(),
            rows.classes(), columns.classes(), workspace, bytes);
    }
    if (a.sources[kNCW] != 0)
    {
        tables.column = layOutTable(rowFolds ? batchOf(kNCW) : std::max(batchOf(kNCW), batchOf(kNC)), e.outChannels,
            rows.classCountBound(), roundUp(columns.outputs, 4), rows.classes(), identity, workspace, bytes);
    }
    return tables;
}

std::size_t workspaceBytes(Problem const& problem)
{
    std::size_t bytes = 0;
    layOutTables(problem, nullptr, &bytes);
    return bytes;
}

int32_t availablePaths(Problem const& problem, int32_t computeCapability, Path paths[kPathCount])
{
    bool const tensorCore = tensorCoreRuns(problem, computeCapability);
    bool const implicitGemm = implicitGemmRuns(problem, computeCapability);
    bool const fewProducts = reductionOf(problem) <= tensor_core::kFewProducts;
    int32_t count = 0;
    auto const offer = [&](Path path, bool runs)
    {
        if (runs)
        {
            paths[count++] = path;
        }
    };
    offer(Path::kTensorCore, tensorCore && fewProducts);
    offer(Path::kImplicitGemm, implicitGemm);
    offer(Path::kTensorCore, tensorCore && !fewProducts);
    offer(Path::kFfma, true);
    return count;
}

ffma::Slice ffmaSlice(Problem const& problem)
{
    Attributes const& a = problem.attributes;
    ffma::Slice slice{};
    if (a.sources[kNCHW] == 0 || problem.extents.outChannels / a.group < ffma::kFewestChannels)
    {
        return slice;
    }
    Axis const rows = axisOf(problem, 0);
    Axis const columns = axisOf(problem, 1);
    int64_t const patchRows = static_cast<int64_t>(ffma::kTileY - 1) * rows.stride + rows.reach();
    int64_t const patchPitch = roundUp(static_cast<int64_t>(ffma::kTileX - 1) * columns.stride + columns.reach(), 4);
    if (patchRows > static_cast<int64_t>(kPlainSharedBytes) || patchPitch > static_cast<int64_t>(kPlainSharedBytes))
    {
        return slice;
    }
    int64_t const perChannel = static_cast<int64_t>(sizeof(float))
        * (patchRows * patchPitch + static_cast<int64_t>(a.kernelShape[0]) * a.kernelShape[1] * ffma::kWeightPitch);
    int64_t const channels = problem.extents.channels[kNCHW] / a.group;
    int64_t const fitting = std::max(static_cast<int64_t>(ffma::kSharedBytes) / perChannel,
        std::min<int64_t>(1, static_cast<int64_t>(kPlainSharedBytes) / perChannel));
    slice.channels = static_cast<int32_t>(std::min(channels, fitting));
    slice.patchRows = static_cast<int32_t>(patchRows);
    slice.patchPitch = static_cast<int32_t>(patchPitch);
    slice.bytes = static_cast<std::size_t>(slice.channels * perChannel);
    return slice;
}

} // namespace msconv
