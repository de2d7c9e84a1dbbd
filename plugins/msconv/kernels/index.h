// Index arithmetic of the operator, the same on the host and on the device: axes, taps, border classes, padding.
//
// Positions along one axis are 32-bit: checkProblem() bounds every padded extent by kMaxExtent. Offsets into tensors are
// 64-bit: form them from an int64_t.
#pragma once

#include "cuda.h"
#include "msconv2d.h"

namespace msconv
{

//! No padded extent, dilated kernel or stride is longer: sums of two positions stay within 32 bits.
constexpr int32_t kMaxExtent = 1 << 30;

MSCONV_HD int32_t minOf(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

MSCONV_HD int32_t maxOf(int32_t a, int32_t b)
{
    return a < b ? b : a;
}

//! ceil(a / b) for a >= 0, b > 0.
MSCONV_HD int32_t ceilDiv(int32_t a, int32_t b)
{
    return a / b + (a % b != 0);
}

//! The kernel's taps [first, last) that read inside the input.
struct TapRange
{
    int32_t first;
    int32_t last;
};

//! Output index -> border class of one axis.
//!
//! docs/spec.md numbers the distinct tap ranges. Here every output at which some tap falls outside is a class of its own, and
//! all outputs between these are one: as many classes as the border is wide, and no division to find one. Outputs
//! up to `first`, the first interior one, keep their number; from there `skip` outputs share the class `first`:
//!
//!     j:      0 1 2 3 4 5 6 7 8      first = 1, skip = 6
//!     class:  0 1 1 1 1 1 1 1 2
//!
//! {0, 0} is the identity; {0, outputs - 1} is one class for all.
struct AxisClasses
{
    int32_t first;
    int32_t skip;

    MSCONV_HD int32_t operator()(int32_t output) const
    {
        return maxOf(minOf(output, first), output - skip);
    }

    //! An output of this class.
    MSCONV_HD int32_t representative(int32_t index) const
    {
        return index <= first ? index : index + skip;
    }
};

//! Index into an axis of `extent` for a position that may lie in the padding; -1 where the value is zero.
//! checkProblem() bounds pads by the extent where the mode needs that, so one reflection or turn is enough.
MSCONV_HD int32_t paddedIndex(PaddingMode mode, int32_t position, int32_t extent)
{
    if (position >= 0 && position < extent)
    {
        return position;
    }
    switch (mode)
    {
    case PaddingMode::kReflect: return position < 0 ? -position : 2 * (extent - 1) - position;
    case PaddingMode::kReplicate: return position < 0 ? 0 : extent - 1;
    case PaddingMode::kCircular: return position < 0 ? position + extent : position - extent;
    case PaddingMode::kZeros: break;
    }
    return -1;
}

//! One axis of the convolution of one problem.
struct Axis
{
    int32_t kernel;
    int32_t stride;
    int32_t dilation;
    int32_t padBefore;
    int32_t padAfter;
    int32_t extent;  //!< of the input; 0 where no source has the axis
    int32_t outputs; //!< extent of the output; 1 where no source has the axis
    bool border;     //!< does a tensor that is uniform along the axis contribute differently at the border?

    //! Positions that the dilated kernel spans.
    MSCONV_HD int32_t reach() const
    {
        return dilation * (kernel - 1) + 1;
    }

    //! Input position of tap 0 at an output; negative in the padding.
    MSCONV_HD int32_t start(int32_t output) const
    {
        return output * stride - padBefore;
    }

    //! Index into the input for a position; -1 where the value is zero, and behind the padding: there only outputs that do
    //! not exist look.
    MSCONV_HD int32_t inputIndex(PaddingMode mode, int32_t position) const
    {
        return position < extent + padAfter ? paddedIndex(mode, position, extent) : -1;
    }

    //! Taps inside the input at an output, for zero padding:
    //! first = max(0, ceil((p - j*s) / d)), last = min(k, ceil((L + p - j*s) / d)); an empty range has first >= last.
    MSCONV_HD TapRange tapRange(int32_t output) const
    {
        int32_t const begin = start(output);
        int32_t const first = begin < 0 ? ceilDiv(-begin, dilation) : 0;
        int32_t const last = extent > begin ? ceilDiv(extent - begin, dilation) : 0;
        return {minOf(first, kernel), minOf(last, kernel)};
    }

    //! The classes of a tensor that is uniform along the axis: one, unless `border`.
    MSCONV_HD AxisClasses classes() const
    {
        if (!border)
        {
            return {0, outputs - 1};
        }
        int32_t const first = minOf(outputs, ceilDiv(padBefore, stride)); // left of it, tap 0 is outside
        int32_t const room = extent + padBefore - reach();
        int32_t const end = room < 0 ? 0 : minOf(outputs, room / stride + 1); // from it on, the last tap is outside
        return {first, maxOf(0, end - first - 1)};
    }

    //! Number of classes: class indices are below.
    MSCONV_HD int32_t classCount() const
    {
        return outputs - classes().skip;
    }

    //! At least classCount(), and never less for a longer input: what workspace is sized by.
    MSCONV_HD int32_t classCountBound() const
    {
        return border ? minOf(outputs, ceilDiv(padBefore, stride) + 1 + ceilDiv(padAfter, stride)) : 1;
    }

    //! Taps that a uniform tensor is summed over in a class.
    MSCONV_HD TapRange classTaps(int32_t index) const
    {
        return border ? tapRange(classes().representative(index)) : TapRange{0, kernel};
    }
};

//! The axis H (0) or W (1) of a valid problem. Host only.
inline Axis axisOf(Problem const& problem, int32_t which)
{
    Attributes const& a = problem.attributes;
    int32_t const owner = which == 0 ? kNCH : kNCW;
    bool const present = a.sources[kNCHW] != 0 || a.sources[owner] != 0;
    Axis axis{};
    axis.kernel = a.kernelShape[which];
    axis.stride = a.strides[which];
    axis.dilation = a.dilations[which];
    axis.padBefore = a.pads[which];
    axis.padAfter = a.pads[which + 2];
    axis.extent = present ? static_cast<int32_t>(which == 0 ? problem.extents.height : problem.extents.width) : 0;
    axis.outputs = static_cast<int32_t>(outputExtent(a, problem.extents, which));
    axis.border = present && a.paddingSemantics == PaddingSemantics::kTiled && a.paddingMode == PaddingMode::kZeros
        && (axis.padBefore > 0 || axis.padAfter > 0);
    if (axis.outputs == 1)
    {
        axis.stride = 1; // it says nothing then, and a large one would only overflow
    }
    return axis;
}

} // namespace msconv
