// Sums and maxima over a warp or a block; every thread gets the result.
#pragma once

#include <cstdint>

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; 0 < lane; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lane = 16; 0 < lane; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// All threads of a block of whole warps take part. `scratch` holds 32 floats; it may be reused after the call.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    const uint32_t warps = blockDim.x / 32;
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : 0.0f);
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
    const uint32_t warps = blockDim.x / 32;
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_max(threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : -INFINITY);
    __syncthreads();
    return x;
}
