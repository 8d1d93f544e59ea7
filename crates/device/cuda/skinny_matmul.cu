// out[t, n] = sum_k x[t, k] * weight[n, k] + bias[n] for few tokens: bound by reading the weight once.
//
// The weight is the A operand of mma.m16n8k16 and eight tokens its B operand. As the order of k is free, a thread
// takes 16 contiguous bytes of a weight row (and of x) as the k-slots of two mma's, so no operand is shuffled. Weights
// come by cp.async through a queue in shared memory that is each thread's own: no thread waits for another, and what is
// under way is not bounded by registers. Eight warps of a block split k between them and add up at the end. The first
// weights are asked for before the previous kernel is done. Groups of eight tokens are blockIdx.y.
//
// With silu the weight is gate over up, and out[t, n] = silu(gate[t, n]) * up[t, n]: a tile is eight rows of either, so
// that both sums of an output meet in one block.
//
// Measured on H200, Qwen2.5-7B's weights from memory, one token: qkv 3.45 TB/s, o 3.3, gate_up 4.3 with silu or without,
// down 3.7, lm_head 4.5; a copy reaches 4.24. Half of each at tensor parallel 2: 2.5, 2.7, 4.0, 3.6. Tiles of fewer rows, so
// that every multiprocessor gets as many, were 2 to 4 % slower on qkv, o and down: the tail is not what they wait for.
#include "common/launch.cuh"
#include "common/tensor_core.cuh"

struct SkinnyMatmulParams {
    void* out;          // [tokens, rows], T or float
    const void* x;      // [tokens, columns]
    const void* weight; // [rows, columns]
    const float* bias;  // [rows] or null
    uint32_t tokens, rows, columns, x_stride, out_stride, out_is_float;
    uint32_t silu; // not 0: rows / 2 of gate, then as many of up; no bias, out is T
    uint32_t padding;
};
static_assert(sizeof(SkinnyMatmulParams) == 64);

namespace {

constexpr uint32_t kWarps = 8;
constexpr uint32_t kTileRows = 16;
constexpr uint32_t kTileTokens = 8;
// Columns of a pair of chunks: a cache line of a row.
constexpr uint32_t kPair = 64;
// Pairs of a warp that are under way at once.
constexpr uint32_t kStages = 4;
constexpr uint32_t kThreads = kWarps * 32;
constexpr uint32_t kStageBytes = 4 * kThreads * 16;
// More than a third of a multiprocessor's shared memory on any device.
constexpr size_t kHalf = 97 * 1024;
static_assert(kHalf <= kMostShared);

using Partial = float[kWarps][kTileTokens][kTileRows + 1];
static_assert(sizeof(Partial) <= kStages * kStageBytes);

// A thread's 64 bytes of one stage: 16 at a time, neighbours of a warp side by side.
struct Queue {
    uint32_t mine;

    __device__ __forceinline__ uint32_t at(uint32_t stage, uint32_t i) const {
        return mine + stage * kStageBytes + i * kThreads * 16;
    }
    __device__ __forceinline__ uint4 take(uint32_t stage, uint32_t i) const {
        uint4 x;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                     : "r"(at(stage, i)));
        return x;
    }
};

// Asks for the weights of rows g and g + 8 at `column` and half a pair further.
template <typename T>
__device__ __forceinline__ void ask(const Queue& queue, uint32_t stage, const T* upper, const T* lower, uint32_t column,
                                    uint32_t columns) {
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t at = column + half * (kPair / 2);
        const bool inside = at < columns;
        copy_async_16(queue.at(stage, half * 2), upper + (inside ? at : 0), inside);
        copy_async_16(queue.at(stage, half * 2 + 1), lower + (inside ? at : 0), inside);
    }
    copy_commit();
}

template <typename T>
__device__ __forceinline__ uint4 load_tokens(const T* x, uint32_t column, uint32_t columns) {
    return x != nullptr && column < columns ? *reinterpret_cast<const uint4*>(x + column) : make_uint4(0, 0, 0, 0);
}

// The sum over the warps, in their order.
__device__ __forceinline__ float total(const Partial& partial, uint32_t m, uint32_t r) {
    float sum = partial[0][m][r];
#pragma unroll
    for (uint32_t i = 1; i < kWarps; i++) sum += partial[i][m][r];
    return sum;
}

template <typename T, bool kSilu>
__global__ void __launch_bounds__(kThreads, 3) skinny_matmul(const SkinnyMatmulParams p) {
    extern __shared__ __align__(16) unsigned char memory[];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // Columns of `out`, and those of a tile.
    const uint32_t width = kSilu ? p.rows / 2 : p.rows, tile = kSilu ? kTileRows / 2 : kTileRows;
    const uint32_t row = blockIdx.x * tile, token = blockIdx.y * kTileTokens;
    const T* weight = static_cast<const T*>(p.weight);
    // Rows past the end read the last row; their sums are not stored.
    const uint32_t first = min(row + g, width - 1), second = kSilu ? width + first : min(row + g + 8, width - 1);
    const T* upper = weight + static_cast<size_t>(first) * p.columns;
    const T* lower = weight + static_cast<size_t>(second) * p.columns;
    const T* x = nullptr;
    if (token + g < p.tokens) x = static_cast<const T*>(p.x) + static_cast<size_t>(token + g) * p.x_stride;
    const Queue queue = {shared_address(memory) + threadIdx.x * 16};

    constexpr uint32_t kStep = kWarps * kPair;
    const uint32_t mine = warp * kPair + t * 8;
#pragma unroll
    for (uint32_t stage = 0; stage < kStages; stage++) ask(queue, stage, upper, lower, mine + stage * kStep, p.columns);
    start_next();
    wait_for_previous();
    float acc[4] = {};
    uint4 tokens[2] = {load_tokens(x, mine, p.columns), load_tokens(x, mine + kPair / 2, p.columns)};
    uint32_t stage = 0;
    // The bound is the same for all lanes of a warp, for mma needs the warp whole.
    for (uint32_t column = mine; column - t * 8 < p.columns; column += kStep) {
        const uint4 v[2] = {tokens[0], tokens[1]};
        tokens[0] = load_tokens(x, column + kStep, p.columns);
        tokens[1] = load_tokens(x, column + kStep + kPair / 2, p.columns);
        copy_wait<kStages - 1>();
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint4 a = queue.take(stage, half * 2), b = queue.take(stage, half * 2 + 1);
            mma<T>(acc, a.x, b.x, a.y, b.y, v[half].x, v[half].y);
            mma<T>(acc, a.z, b.z, a.w, b.w, v[half].z, v[half].w);
        }
        ask(queue, stage, upper, lower, column + kStages * kStep, p.columns);
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }

    // The queues are empty but for copies of nothing; their memory is the block's from here on.
    copy_wait<0>();
    __syncthreads();
    Partial& partial = *reinterpret_cast<Partial*>(memory);
    partial[warp][2 * t][g] = acc[0];
    partial[warp][2 * t + 1][g] = acc[1];
    partial[warp][2 * t][g + 8] = acc[2];
    partial[warp][2 * t + 1][g + 8] = acc[3];
    __syncthreads();
    const uint32_t r = threadIdx.x % kTileRows, m = threadIdx.x / kTileRows;
    if (kTileTokens <= m || p.tokens <= token + m || tile <= r || width <= row + r) return;
    float sum = total(partial, m, r);
    if (kSilu) {
        sum = sum / (1.0f + __expf(-sum)) * total(partial, m, r + 8);
    } else if (p.bias != nullptr) {
        sum += p.bias[row + r];
    }
    const size_t at = static_cast<size_t>(token + m) * p.out_stride + row + r;
    if (p.out_is_float != 0) {
        static_cast<float*>(p.out)[at] = sum;
    } else {
        static_cast<T*>(p.out)[at] = from_float<T>(sum);
    }
}

template <typename T, bool kSilu>
cudaError_t start(const SkinnyMatmulParams& p, const Launch& where) {
    const uint32_t tiles = kSilu ? ceil_div(p.rows / 2, kTileRows / 2) : ceil_div(p.rows, kTileRows);
    const dim3 grid(tiles, ceil_div(p.tokens, kTileTokens));
    // Memory it does not need keeps a third block from a multiprocessor where two each are enough for the whole grid:
    // else some would get three and others one, and all wait for those.
    const bool few = grid.x * grid.y <= 2 * where.multiprocessors;
    const size_t bytes = few ? kHalf : kStages * kStageBytes;
    const cudaError_t raised =
        cudaFuncSetAttribute(skinny_matmul<T, kSilu>, cudaFuncAttributeMaxDynamicSharedMemorySize, kHalf);
    if (raised != cudaSuccess) return raised;
    return launch(skinny_matmul<T, kSilu>, grid, kThreads, bytes, where, p);
}

} // namespace

extern "C" cudaError_t launch_skinny_matmul(SkinnyMatmulParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return params.silu != 0 ? start<bf16, true>(params, where) : start<bf16, false>(params, where);
    case Element::F16: return params.silu != 0 ? start<f16, true>(params, where) : start<f16, false>(params, where);
    }
    return cudaErrorInvalidValue;
}
