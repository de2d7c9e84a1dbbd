// What the metadata and the bias add to the output, as two small fp32 tables in the workspace:
//
//     y[n,o,i,j] = act(conv2d(nchw, W1)[n,o,i,j] + row[n,o,i,cj(j)] + column[n,o,ci(i),j])
//
// The row table is R [Nt, O, H', column classes], the column table is K [Nt, O, row classes, W']. S and the bias are folded
// into R, else into K, else S [Nt, O, row classes, column classes] stands alone as the row table. A table that is not there has
// no data. projection.cu writes them; every path reads them through the functions here.
#pragma once

#include "index.h"

namespace msconv
{

struct ClassTable
{
    float* data;           //!< null: adds nothing. Aligned to 256 bytes
    int64_t batchStride;   //!< 0 where one batch serves all
    int64_t channelStride; //!< a multiple of 4
    int64_t rowStride;     //!< a multiple of 4 in the column table
    AxisClasses rows;      //!< output row -> row of the table
    AxisClasses columns;   //!< output column -> column of the table; the identity in the column table
};

struct Tables
{
    ClassTable row;
    ClassTable column;
    int32_t lastColumn; //!< W' - 1
};

//! The part of a table that serves one row of one output channel; null where the table is absent.
MSCONV_HD float const* tableRow(ClassTable const& table, int64_t n, int64_t o, int32_t i)
{
    return table.data == nullptr
        ? nullptr
        : table.data + n * table.batchStride + o * table.channelStride + table.rows(i) * table.rowStride;
}

//! What is added along one row of one output channel. A row of the column table begins at a multiple of 16 bytes and is
//! padded to one: four columns from a multiple of 4 on may be read with one load (`column + j`).
struct AddedRow
{
    float const* row;    //!< indexed by columns(j)
    float const* column; //!< indexed by j
    AxisClasses columns;
    int32_t lastColumn;

    MSCONV_HD float operator()(int32_t j) const
    {
        return (row == nullptr ? 0.0F : row[columns(j)]) + (column == nullptr ? 0.0F : column[j]);
    }
};

MSCONV_HD AddedRow addedRow(Tables const& tables, int64_t n, int64_t o, int32_t i)
{
    return {tableRow(tables.row, n, o, i), tableRow(tables.column, n, o, i), tables.row.columns, tables.lastColumn};
}

//! What is added to kCount consecutive elements of a row (a multiple of 4, from an existing column `j` that is one too); something
//! for those beyond the row.
template <int32_t kCount>
MSCONV_DEVICE void addedValues(float (&x)[kCount], AddedRow const& added, int32_t j)
{
    static_assert(kCount % 4 == 0, "columns are read four at a time");
    int32_t const first = added.columns(j);
    if (added.row == nullptr || first == added.columns(minOf(j + kCount - 1, added.lastColumn)))
    {
        float const value =
            added.row == nullptr ? 0.0F : added.row[first]; // one class: they never decrease along a row
#pragma unroll
        for (int32_t p = 0; p < kCount; ++p)
        {
            x[p] = value;
        }
    }
    else
    {
#pragma unroll
        for (int32_t p = 0; p < kCount; ++p)
        {
            x[p] = added.row[added.columns(minOf(j + p, added.lastColumn))];
        }
    }
    if (added.column != nullptr)
    {
#pragma unroll
        for (int32_t p = 0; p < kCount; p += 4)
        {
            if (j + p <= added.lastColumn)
            {
                float4 const four = *reinterpret_cast<float4 const*>(added.column + j + p);
                x[p] += four.x;
                x[p + 1] += four.y;
                x[p + 2] += four.z;
                x[p + 3] += four.w;
            }
        }
    }
}

//! Add them.
template <int32_t kCount>
MSCONV_DEVICE void addTo(float (&x)[kCount], AddedRow const& added, int32_t j)
{
    float values[kCount];
    addedValues(values, added, j);
#pragma unroll
    for (int32_t p = 0; p < kCount; ++p)
    {
        x[p] += values[p];
    }
}

//! Lay the tables of a valid problem out in a workspace, which may be null when only the sizes are asked for. Host only.
//! @param bytes receives what they need: at most workspaceBytes().
Tables layOutTables(Problem const& problem, void* workspace, std::size_t* bytes);

} // namespace msconv
