// What both tensor-core paths do beside multiplying: add the tables, activate, round once, store. Where a warp has many tiles, sums
// begin as what the tables add, which spares a pass over them.
//
// A warp multiplies kTiles x 16 output channels by 4 x 8 pixels. In the result of one mma a lane holds two neighbouring columns;
// the columns are given to pixels so that over the four multiplications they become eight consecutive ones:
//
//     pixel(tile t, column c) = 8 (c / 2) + 2 t + c % 2          t < 4, c < 8
//
// With q = lane % 4, columns 2q and 2q+1 of the tiles 0..3 are the pixels 8q .. 8q+7: one 128-bit store per channel. Four
// lanes write 64 neighbouring bytes.
#pragma once

#include "epilogue.h"
#include "mma.h"
#include "tables.h"

namespace msconv
{

constexpr int32_t kMmaRows = 16;                           //!< output channels of one mma
constexpr int32_t kMmaColumns = 8;                         //!< pixels of one mma
constexpr int32_t kMmaDepth = 16;                          //!< of the reduction
constexpr int32_t kPixelTiles = 4;                         //!< mma tiles along the pixels
constexpr int32_t kWarpPixels = kPixelTiles * kMmaColumns; //!< 32
constexpr int32_t kLanePixels = 8;                         //!< consecutive pixels that a lane stores at once

//! Accumulators of a warp: [channel tile][pixel tile][fragment].
template <int32_t kTiles>
using Accumulators = float[kTiles][kPixelTiles][4];

//! First of the pixels, among a warp's 32, that column `column` of the mma tiles stands for; the next tile's is 2 further.
MSCONV_HD int32_t pixelOfColumn(int32_t column)
{
    return kLanePixels * (column / 2) + column % 2;
}

//! Where the result of a warp goes, the same for all its lanes.
template <typename T>
struct OutputTarget
{
    T* output;        //!< [N, O, H', W']
    int32_t channels; //!< O
    int32_t rows;     //!< H'
    int32_t columns;  //!< W'
    Tables tables;
    Epilogue epilogue;
};

//! The place of a lane's sums in the output: eight pixels in its order (past the end of a row comes the next one), of the
//! channels `channel`, `channel` + 8, ...
struct LanePosition
{
    int32_t n;
    int32_t channel;
    int32_t row;
    int32_t column;
    int32_t valid; //!< how many of the eight exist; at most 0 for none
};

//! Eight consecutive sums of one channel: tile m, `upper` for its rows 8..15.
template <int32_t kTiles>
MSCONV_DEVICE float& sumAt(Accumulators<kTiles>& sums, int32_t m, int32_t upper, int32_t pixel)
{
    return sums[m][pixel / 2][upper * 2 + pixel % 2];
}

//! Set the sums to what the tables add, where the eight pixels are of one row, from a multiple of 4 on.
template <typename T, int32_t kTiles>
MSCONV_DEVICE void beginWithTables(
    OutputTarget<T> const& target, LanePosition const& position, Accumulators<kTiles>& sums)
{
    Tables const& tables = target.tables;
    AddedRow added = addedRow(tables, position.n, position.channel, position.row);
#pragma unroll
    for (int32_t half = 0; half < 2 * kTiles; ++half)
    {
        float x[kLanePixels] = {};
        if (position.valid > 0 && position.channel + half * 8 < target.channels)
        {
            addedValues(x, added, position.column);
        }
#pragma unroll
        for (int32_t p = 0; p < kLanePixels; ++p)
        {
            sumAt<kTiles>(sums, half / 2, half % 2, p) = x[p];
        }
        if (added.row != nullptr)
        {
            added.row += 8 * tables.row.channelStride;
        }
        if (added.column != nullptr)
        {
            added.column += 8 * tables.column.channelStride;
        }
    }
}

//! Add what the tables hold for eight pixels of channel `o`, wherever they are.
template <typename T>
MSCONV_DEVICE void addTables(
    OutputTarget<T> const& target, LanePosition const& position, int32_t o, float (&x)[kLanePixels])
{
    if (position.column % 4 == 0 && position.column + kLanePixels <= target.columns)
    {
        addTo(x, addedRow(target.tables, position.n, o, position.row), position.column);
        return;
    }
    int32_t row = position.row;
    int32_t column = position.column;
#pragma unroll
    for (int32_t p = 0; p < kLanePixels; ++p)
    {
        if (p < position.valid)
        {
            x[p] += addedRow(target.tables, position.n, o, row)(column);
        }
        ++column;
        row += column == target.columns ? 1 : 0;
        column = column == target.columns ? 0 : column;
    }
}

//! Activate, round and store the sums.
//!
//! @tparam kAddTables first add what the tables hold: not for sums that began with it
template <bool kAddTables, typename T, int32_t kTiles>
MSCONV_DEVICE void storeSums(OutputTarget<T> const& target, LanePosition const& position, Accumulators<kTiles>& sums)
{
    int64_t const plane = static_cast<int64_t>(target.rows) * target.columns;
    T* to = target.output + (static_cast<int64_t>(position.n) * target.channels + position.channel) * plane
        + static_cast<int64_t>(position.row) * target.columns + position.column;
#pragma unroll
    for (int32_t half = 0; half < 2 * kTiles; ++half)
    {
        float x[kLanePixels];
#pragma unroll
        for (int32_t p = 0; p < kLanePixels; ++p)
        {
            x[p] = sumAt<kTiles>(sums, half / 2, half % 2, p);
        }
        int32_t const o = position.channel + half * 8;
        if (position.valid > 0 && o < target.channels)
        {
            if (kAddTables)
            {
                addTables(target, position, o, x);
            }
            activate(target.epilogue, x);
            store(to, x, position.valid);
        }
        to += 8 * plane;
    }
}

} // namespace msconv
