// out = silu(gate) * up for rows of gate and up side by side: three streams of memory, eight elements a thread.
//
// Measured on H200, 18,944 wide: 97 % of a copy's bandwidth from 256 rows up; one row 1.8 us.
#include "common/element.cuh"
#include "common/launch.cuh"

struct SiluMulParams {
    void* out;           // [rows, width]
    const void* gate_up; // [rows, 2 * width]
    uint32_t rows, width, out_stride, gate_up_stride;
};
static_assert(sizeof(SiluMulParams) == 32);

namespace {

constexpr uint32_t kThreads = 256;

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

template <typename T>
__global__ void __launch_bounds__(kThreads) silu_mul(const SiluMulParams p) {
    start_next();
    wait_for_previous();
    const uint32_t at = (blockIdx.x * kThreads + threadIdx.x) * 8;
    if (p.width <= at) return;
    for (size_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const T* gate = static_cast<const T*>(p.gate_up) + row * p.gate_up_stride + at;
        T* out = static_cast<T*>(p.out) + row * p.out_stride + at;
        float g[8], u[8];
        unpack8<T>(*reinterpret_cast<const uint4*>(gate), g);
        unpack8<T>(*reinterpret_cast<const uint4*>(gate + p.width), u);
#pragma unroll
        for (int j = 0; j < 8; j++) g[j] = silu(g[j]) * u[j];
        *reinterpret_cast<uint4*>(out) = pack8<T>(g);
    }
}

// Any width and stride, element by element.
template <typename T>
__global__ void __launch_bounds__(kThreads) silu_mul_any(const SiluMulParams p) {
    start_next();
    wait_for_previous();
    const uint32_t at = blockIdx.x * kThreads + threadIdx.x;
    if (p.width <= at) return;
    for (size_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const T* gate = static_cast<const T*>(p.gate_up) + row * p.gate_up_stride + at;
        const float value = silu(to_float(gate[0])) * to_float(gate[p.width]);
        static_cast<T*>(p.out)[row * p.out_stride + at] = from_float<T>(value);
    }
}

template <typename T>
cudaError_t pick(const SiluMulParams& p, const Launch& where) {
    const bool vectors = (p.width | p.out_stride | p.gate_up_stride) % 8 == 0;
    const dim3 grid(ceil_div(p.width, kThreads * (vectors ? 8 : 1)), p.rows < 32768 ? p.rows : 32768);
    return launch(vectors ? silu_mul<T> : silu_mul_any<T>, grid, kThreads, 0, where, p);
}

} // namespace

extern "C" cudaError_t launch_silu_mul(SiluMulParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return pick<bf16>(params, where);
    case Element::F16: return pick<f16>(params, where);
    }
    return cudaErrorInvalidValue;
}
