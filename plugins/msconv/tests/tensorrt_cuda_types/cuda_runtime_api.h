// The two CUDA types that TensorRT's headers name: the plugin object is tested without a CUDA toolkit.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
