// What every attention kernel shares: its parameters, the work items the host plans, and where results go.
#pragma once

#include "element.cuh"
#include "launch.cuh"

// A piece of work: some query rows of one sequence against a range of its keys. The same for every KV head.
//
// The rows of a KV head's group are packed: packed row r is token r / group_size, head r % group_size of the group.
// So a group of any size fills the tensor cores' tiles, decode included.
struct AttentionItem {
    // Where the sequence's block table begins in the step's arrays.
    int32_t table;
    // First of the packed rows, and how many of them.
    int32_t first_row, num_rows;
    // Keys from `first_key`, a multiple of the key tile, to before `end_key`.
    int32_t first_key, end_key;
    // Which of `num_splits` ranges of keys this is.
    int32_t split, num_splits;
    // Where the splits' partial results lie, in rows, for one KV head.
    int32_t partial_row;
    // The tile's counter of splits that are done, for one KV head.
    int32_t counter;
    // The sequence's first row of q, and how many of its tokens were computed before this step.
    int32_t first_token, computed;
};
static_assert(sizeof(AttentionItem) == 44);

struct AttentionParams {
    void* out;                   // [tokens, num_heads * head_dim]
    const void* qkv;             // [tokens, qkv width], q first, rotated
    const void* keys;            // [num_blocks, num_kv_heads, block_size, head_dim]
    const void* values;          // the same
    const AttentionItem* items;  // [grid_items]
    const int32_t* arrays;       // the step's, block tables among them
    const uint32_t* num_items;   // how many of the grid's items there are; null: all of them
    float* partial_outs;         // [partial rows, head_dim]: not yet divided by the sums
    float2* partial_stats;       // [partial rows]: largest score (base 2) and sum
    uint32_t* counters;          // all zero between launches
    uint32_t grid_items, out_stride, qkv_stride, num_heads, num_kv_heads, group_size, group_offset, block_shift,
        head_dim;
    // 1 / sqrt(head_dim) * log2(e)
    float scale;
};
static_assert(sizeof(AttentionParams) == 120);

// Whether this block has an item. A grid recorded in a graph has as many blocks as any step of its size needs.
__device__ __forceinline__ bool has_item(const AttentionParams& p) {
    return p.num_items == nullptr || blockIdx.x / p.num_kv_heads < *p.num_items;
}

// The local query head of a packed row, or -1 when it is another rank's.
__device__ __forceinline__ int query_head(const AttentionParams& p, int kv_head, int row) {
    const int head = kv_head * static_cast<int>(p.group_size) + row % static_cast<int>(p.group_size) -
                     static_cast<int>(p.group_offset);
    return 0 <= head && head < static_cast<int>(p.num_heads) ? head : -1;
}

__device__ __forceinline__ float half_warp_max(float x) {
#pragma unroll
    for (int lane = 8; 0 < lane; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

__device__ __forceinline__ float half_warp_sum(float x) {
#pragma unroll
    for (int lane = 8; 0 < lane; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// First partial row of a split of an item.
__device__ __forceinline__ size_t partial_row(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                              int split) {
    return static_cast<size_t>(item.partial_row) * p.num_kv_heads +
           (static_cast<size_t>(kv_head) * item.num_splits + split) * item.num_rows;
}

// Where a packed row's result goes: to `out`, as a partial result, or (both null) nowhere.
template <typename T>
struct RowOut {
    T* out;
    float* partial;
    float scale;

    // Writes two neighbours.
    __device__ __forceinline__ void store(int at, float low, float high) const {
        if (out != nullptr) *reinterpret_cast<uint32_t*>(out + at) = Pair<T>::pack(low * scale, high * scale);
        if (partial != nullptr) *reinterpret_cast<float2*>(partial + at) = make_float2(low, high);
    }
};

template <typename T, int kHeadDim>
__device__ __forceinline__ RowOut<T> row_out(const AttentionParams& p, const AttentionItem& item, int kv_head, int r,
                                             float sum) {
    if (item.num_rows <= r) return {nullptr, nullptr, 0.0f};
    if (1 < item.num_splits) {
        const size_t partial = partial_row(p, item, kv_head, item.split) + r;
        return {nullptr, p.partial_outs + partial * kHeadDim, 0.0f};
    }
    const int row = item.first_row + r, head = query_head(p, kv_head, row);
    if (head < 0) return {nullptr, nullptr, 0.0f};
    const size_t token = item.first_token + row / static_cast<int>(p.group_size);
    return {static_cast<T*>(p.out) + token * p.out_stride + head * kHeadDim, nullptr, 1.0f / sum};
}

__device__ __forceinline__ void store_stats(const AttentionParams& p, const AttentionItem& item, int kv_head, int r,
                                            float largest, float sum) {
    if (item.num_splits == 1 || item.num_rows <= r) return;
    p.partial_stats[partial_row(p, item, kv_head, item.split) + r] = make_float2(largest, sum);
}

// Adds up the splits of an item in their order, whichever came last: results do not depend on timing.
// The first `threads` of the block take part: half a warp takes a row.
template <typename T, int kHeadDim>
__device__ void merge_splits(const AttentionParams& p, const AttentionItem& item, int kv_head, int threads) {
    constexpr int kElements = kHeadDim / 16;
    const int lane = threadIdx.x % 16;
    // The halves of a warp stay together: the row of the second may be past the end, then it reads the last.
    for (int first = threadIdx.x / 32 * 2; first < item.num_rows; first += threads / 16) {
        const int mine = first + threadIdx.x % 32 / 16, r = min(mine, item.num_rows - 1);
        const int row = item.first_row + r, head = query_head(p, kv_head, row);
        const size_t base = partial_row(p, item, kv_head, 0) + r;
        float largest = -INFINITY;
        for (int s = lane; s < item.num_splits; s += 16) {
            largest = fmaxf(largest, __ldcg(&p.partial_stats[base + static_cast<size_t>(s) * item.num_rows].x));
        }
        largest = half_warp_max(largest);
        float sum = 0.0f, out[kElements] = {};
        for (int start = 0; start < item.num_splits; start += 16) {
            float weight = 0.0f;
            if (start + lane < item.num_splits) {
                const float2 stats = __ldcg(p.partial_stats + base + static_cast<size_t>(start + lane) * item.num_rows);
                weight = exp2_fast(stats.x - largest);
                sum += stats.y * weight;
            }
            const int count = min(16, item.num_splits - start);
            const float* part =
                p.partial_outs + (base + static_cast<size_t>(start) * item.num_rows) * kHeadDim + lane * kElements;
#pragma unroll 8
            for (int s = 0; s < count; s++) {
                const float w = __shfl_sync(0xffffffffu, weight, s, 16);
                const size_t skipped = static_cast<size_t>(s) * item.num_rows * kHeadDim;
                const float4* four = reinterpret_cast<const float4*>(part + skipped);
#pragma unroll
                for (int i = 0; i < kElements / 4; i++) {
                    const float4 x = __ldcg(four + i);
                    out[4 * i] += x.x * w;
                    out[4 * i + 1] += x.y * w;
                    out[4 * i + 2] += x.z * w;
                    out[4 * i + 3] += x.w * w;
                }
            }
        }
        const float scale = 1.0f / half_warp_sum(sum);
        if (head < 0 || item.num_rows <= mine) continue;
        T* to = static_cast<T*>(p.out) +
                static_cast<size_t>(item.first_token + row / static_cast<int>(p.group_size)) * p.out_stride +
                head * kHeadDim + lane * kElements;
#pragma unroll
        for (int i = 0; i < kElements; i += 2) {
            *reinterpret_cast<uint32_t*>(to + i) = Pair<T>::pack(out[i] * scale, out[i + 1] * scale);
        }
    }
}

// Waits for the first `threads` of the block, all of which call this.
__device__ __forceinline__ void sync_threads(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }

// Called by the first `threads` of the block once their partial results are written: the last block of a tile merges.
template <typename T, int kHeadDim>
__device__ void finish_split(const AttentionParams& p, const AttentionItem& item, int kv_head, int threads) {
    __shared__ bool last;
    uint32_t* counter = p.counters + static_cast<size_t>(item.counter) * p.num_kv_heads + kv_head;
    __threadfence();
    sync_threads(threads);
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) + 1 == static_cast<uint32_t>(item.num_splits);
        if (last) *counter = 0;
    }
    sync_threads(threads);
    if (last) {
        __threadfence();
        merge_splits<T, kHeadDim>(p, item, kv_head, threads);
    }
    sync_threads(threads);
}
