// msconv::MSConv2d on the GPU: what it computes, what it needs, how to run it. No TensorRT header, no CUDA header but the
// stream's type: the plugin, the GPU harness and the CPU tests all go through this file.
//
// The operator is defined in docs/spec.md. Tensors are dense NCHW ("linear"); floating tensors all have one type.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace msconv
{

enum Source : int32_t
{
    kNCHW = 0, //!< image [N, C, H, W]
    kNCH = 1,  //!< per-row vector [N, C, H]
    kNCW = 2,  //!< per-column vector [N, C, W]
    kNC = 3,   //!< scalars [N, C]
    kSourceCount = 4,
};

enum class DataType : int32_t
{
    kFloat32 = 0,
    kFloat16 = 1,
    kBFloat16 = 2,
};

enum class PaddingSemantics : int32_t
{
    kSource = 0, //!< each source is padded along the axes that it owns
    kTiled = 1,  //!< equal to padding the tiled tensor
};

enum class PaddingMode : int32_t
{
    kZeros = 0,
    kReflect = 1,
    kReplicate = 2,
    kCircular = 3,
};

enum class Activation : int32_t
{
    kNone = 0,
    kRelu = 1,
    kLeakyRelu = 2, //!< activationParams[0] is the slope
    kSilu = 3,
    kSigmoid = 4,
    kTanh = 5,
    kClip = 6, //!< activationParams are low and high
};

//! The attributes of the operator, in the order of docs/spec.md.
struct Attributes
{
    int32_t sources[4]{}; //!< 0 or 1: is the source present?
    int32_t hasBias{1};
    int32_t kernelShape[2]{1, 1}; //!< kh, kw
    int32_t strides[2]{1, 1};     //!< along H, W
    int32_t dilations[2]{1, 1};   //!< along H, W
    int32_t pads[4]{};            //!< top, left, bottom, right
    int32_t group{1};
    PaddingSemantics paddingSemantics{PaddingSemantics::kSource};
    PaddingMode paddingMode{PaddingMode::kZeros};
    Activation activation{Activation::kNone};
    float activationParams[2]{};
};

//! Extents of all tensors. What is absent is 0.
struct Extents
{
    int64_t batch{};          //!< N of the output
    int64_t sourceBatch[4]{}; //!< N or 1 of each source
    int64_t channels[4]{};    //!< C1, C2, C3, C4
    int64_t outChannels{};    //!< O
    int64_t height{};         //!< H, from nchw or nch; 0 where no source defines it
    int64_t width{};          //!< W, from nchw or ncw; 0 where no source defines it
};

//! One operator on tensors of one size.
struct Problem
{
    Attributes attributes;
    Extents extents;
    DataType type{DataType::kFloat32};
};

//! Device pointers; those of absent tensors are null. `workspace` holds workspaceBytes() bytes, aligned to 256.
struct Tensors
{
    void const* sources[4]{};
    void const* weights[4]{};
    void const* bias{};
    void* output{};
    void* workspace{};
};

//! The ways to compute the convolution of the image. The numbers are the plugin's tactics: never renumber.
enum class Path : int32_t
{
    kChoose = 0,       //!< the first of availablePaths()
    kFfma = 1,         //!< any geometry, any type, fp32 multiply-adds
    kTensorCore = 2,   //!< fp16 and bf16, few channels: the whole reduction is resident
    kImplicitGemm = 3, //!< fp16 and bf16, many channels: the reduction is a loop over slices
};
constexpr int32_t kPathCount = 3;

//! Extent of the output along H (axis 0) or W (axis 1); 1 where no source defines the axis, at most 0 if there is none.
int64_t outputExtent(Attributes const& attributes, Extents const& extents, int32_t axis);

//! Null if the attributes are valid by themselves; else what is wrong, with the attribute's name first. Static or written to
//! `buffer`, which holds `size` bytes.
char const* checkAttributes(Attributes const& attributes, char* buffer, std::size_t size);

//! The same for a whole problem: channels against groups, extents against kernels, batches. A batch of 0 is valid and does nothing.
char const* checkProblem(Problem const& problem, char* buffer, std::size_t size);

//! Paths that can run a valid problem on a device of this compute capability (75, 80, 86, 90, ...), best guess first.
//! Returns their number, at most kPathCount.
int32_t availablePaths(Problem const& problem, int32_t computeCapability, Path paths[kPathCount]);

//! Bytes of workspace for a valid problem, whatever the path: class tables.
std::size_t workspaceBytes(Problem const& problem);

//! Launch on a stream. Allocates nothing and does not synchronize.
//! Returns null, or what is wrong: an invalid problem, a path that cannot run it, or the name of a CUDA error.
char const* enqueue(Problem const& problem, Tensors const& tensors, Path path, int32_t computeCapability,
    CUstream_st* stream, char* buffer, std::size_t size);

} // namespace msconv
