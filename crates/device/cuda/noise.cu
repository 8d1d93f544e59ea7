// out[r, c] = spread * uniform(key, first + r * tensor_columns + c): weights made up where they will lie.
//
// A value depends on its place in the whole tensor alone, so a rank that holds a part makes the same numbers, and so
// does the CPU (src/noise.rs), bit for bit: nothing here may be contracted to a fused multiply-add.
#include "common/element.cuh"
#include "common/launch.cuh"

struct NoiseParams {
    void* out;
    uint64_t key;
    // Where the first element stands in the tensor, counted row after row.
    uint64_t first;
    uint64_t tensor_columns;
    uint32_t rows;
    // A multiple of eight.
    uint32_t columns;
    float spread;
    // What the tensor would be stored in; values are rounded to it first. `Source` in convert.cu.
    uint32_t stored;
};
static_assert(sizeof(NoiseParams) == 48);

namespace {

// SplitMix64's step.
__device__ __forceinline__ uint64_t mix(uint64_t counter) {
    uint64_t z = counter + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ __forceinline__ float rounded(float x, uint32_t stored) {
    switch (stored) {
    case 1: return to_float(from_float<f16>(x));
    case 2: return to_float(from_float<bf16>(x));
    default: return x;
    }
}

template <typename T>
__global__ void noise(const NoiseParams p) {
    start_next();
    wait_for_previous();
    const uint32_t vectors = p.columns / 8;
    const uint64_t count = static_cast<uint64_t>(p.rows) * vectors;
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const uint64_t row = i / vectors;
        const uint64_t index = p.first + row * p.tensor_columns + 8 * (i - row * vectors);
        float x[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float upper = static_cast<float>(static_cast<uint32_t>(mix(p.key + index + k) >> 40));
            const float uniform = __fadd_rn(__fmul_rn(upper, 1.0f / (1 << 23)), -1.0f);
            x[k] = rounded(__fmul_rn(p.spread, uniform), p.stored);
        }
        static_cast<uint4*>(p.out)[i] = pack8<T>(x);
    }
}

template <typename T>
cudaError_t start(const NoiseParams& p, const Launch& where) {
    const uint64_t blocks = (static_cast<uint64_t>(p.rows) * (p.columns / 8) + 255) / 256;
    return launch(noise<T>, dim3(static_cast<uint32_t>(blocks < 16384 ? blocks : 16384)), 256, 0, where, p);
}

} // namespace

extern "C" cudaError_t launch_noise(NoiseParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return start<bf16>(params, where);
    case Element::F16: return start<f16>(params, where);
    }
    return cudaErrorInvalidValue;
}
