// Causal attention over paged keys and values, queries of any length in one launch: tensor cores by mma.sync.
//
// A block takes a work item and a KV head: a tile of packed query rows against a range of keys, 64 at a time, copied
// by cp.async one tile ahead. Many rows (a chunk of a prompt): 128 of them, each warp 32 rows against all keys. Few
// rows (decode: one token's group): 16 of them, each warp all rows against a quarter of the keys. Scores and sums
// never leave registers (online softmax). Ranges of keys are merged by the block that finishes last.
//
// Measured on H200, 28 query and 4 KV heads of 128, bf16: decode of 64 sequences at 4,096 tokens 95 % of a copy's
// bandwidth (4.0 TB/s), one at 131,072 85 %, one at 512 8.3 us. Many rows: 280 TFLOP/s, 36 % of a large product's rate.
#include "common/attention.cuh"
#include "common/tensor_core.cuh"

namespace {

constexpr int kThreads = 128;
constexpr int kKeys = 64;
constexpr int kManyRows = 128;
constexpr int kFewRows = 16;

// Shared memory: queries, then two stages of keys and values; rows of head_dim elements, swizzled.
template <int kHeadDim>
struct Shared {
    static constexpr int kRowBytes = kHeadDim * 2;
    static constexpr int kQueryBytes = kManyRows * kRowBytes;
    static constexpr int kTileBytes = kKeys * kRowBytes;
    static constexpr int kBytes = kQueryBytes + 4 * kTileBytes;
    static_assert(kBytes + kMostDeclared <= kMostShared);

    // 16-byte chunk `chunk` of row `row`: eight rows' equal chunks lie in different banks.
    static __device__ __forceinline__ uint32_t at(int row, int chunk) {
        return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
    }
    static __device__ __forceinline__ uint32_t keys(int stage) { return kQueryBytes + stage * 2 * kTileBytes; }
    static __device__ __forceinline__ uint32_t values(int stage) { return keys(stage) + kTileBytes; }
};

template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_queries(const AttentionParams& p, const AttentionItem& item, int kv_head, int rows,
                                             uint32_t shared) {
    constexpr int kChunks = kHeadDim / 8;
    for (int i = threadIdx.x; i < rows * kChunks; i += kThreads) {
        const int r = i / kChunks, chunk = i % kChunks, row = item.first_row + r;
        const int head = r < item.num_rows ? query_head(p, kv_head, row) : -1;
        const size_t token = head < 0 ? 0 : item.first_token + row / static_cast<int>(p.group_size);
        const T* q = static_cast<const T*>(p.qkv) + token * p.qkv_stride + max(head, 0) * kHeadDim + chunk * 8;
        copy_async_16(shared + Shared<kHeadDim>::at(r, chunk), q, 0 <= head);
    }
}

// Starts copying the keys and values from `first` on; rows at or behind `end` become zeros.
template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_tile(const AttentionParams& p, const int32_t* table, int kv_head, int first,
                                          int end, uint32_t shared, int stage) {
    constexpr int kChunks = kHeadDim / 8;
    constexpr int kRowsAtOnce = kThreads / kChunks;
    const int chunk = threadIdx.x % kChunks;
    const uint32_t keys = shared + Shared<kHeadDim>::keys(stage), values = shared + Shared<kHeadDim>::values(stage);
#pragma unroll
    for (int r = threadIdx.x / kChunks; r < kKeys; r += kRowsAtOnce) {
        const int key = first + r;
        const bool valid = key < end;
        const int block = valid ? table[key >> p.block_shift] : 0;
        const int offset = key & ((1 << p.block_shift) - 1);
        const size_t row = ((static_cast<size_t>(block) * p.num_kv_heads + kv_head) << p.block_shift) + offset;
        const size_t from = row * kHeadDim + chunk * 8;
        copy_async_16(keys + Shared<kHeadDim>::at(r, chunk), static_cast<const T*>(p.keys) + from, valid);
        copy_async_16(values + Shared<kHeadDim>::at(r, chunk), static_cast<const T*>(p.values) + from, valid);
    }
}

// A warp's share of a tile of rows, in registers: kTiles times 16 rows. A thread has rows g and g + 8 of each.
template <typename T, int kHeadDim, int kTiles, int kWarpKeys>
struct Warp {
    float out[kTiles][kHeadDim / 8][4];
    float largest[kTiles][2], sum[kTiles][2];
    // Keys before this one are seen by the row.
    int limit[kTiles][2];

    __device__ __forceinline__ void start(const AttentionParams& p, const AttentionItem& item, int first_row) {
        const int g = threadIdx.x % 32 / 4, group = static_cast<int>(p.group_size);
#pragma unroll
        for (int m = 0; m < kTiles; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = item.first_row + first_row + m * 16 + h * 8 + g;
                limit[m][h] = min(item.computed + row / group + 1, item.end_key);
                largest[m][h] = -INFINITY;
                sum[m][h] = 0.0f;
            }
#pragma unroll
            for (int d = 0; d < kHeadDim / 8; d++) {
#pragma unroll
                for (int i = 0; i < 4; i++) out[m][d][i] = 0.0f;
            }
        }
    }

    // One tile of keys: `first_row` and `first_key` are the warp's within the shared tiles, `key` is that key's index.
    __device__ __forceinline__ void step(uint32_t queries, uint32_t keys, uint32_t values, int first_row, int first_key,
                                         int key, bool masked, float scale) {
        using S = Shared<kHeadDim>;
        const int lane = threadIdx.x % 32, t = lane % 4;
        float score[kTiles][kWarpKeys / 8][4] = {};
#pragma unroll
        for (int d = 0; d < kHeadDim / 16; d++) {
            uint32_t q[kTiles][4];
#pragma unroll
            for (int m = 0; m < kTiles; m++) {
                load_matrices(q[m], queries + S::at(first_row + m * 16 + lane % 16, d * 2 + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < kWarpKeys / 16; n++) {
                uint32_t k[4];
                load_matrices(k, keys + S::at(first_key + n * 16 + lane / 16 * 8 + lane % 8, d * 2 + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < kTiles; m++) {
                    mma<T>(score[m][2 * n], q[m][0], q[m][1], q[m][2], q[m][3], k[0], k[1]);
                    mma<T>(score[m][2 * n + 1], q[m][0], q[m][1], q[m][2], q[m][3], k[2], k[3]);
                }
            }
        }
        if (masked) {
#pragma unroll
            for (int m = 0; m < kTiles; m++) {
#pragma unroll
                for (int n = 0; n < kWarpKeys / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (limit[m][i / 2] <= key + n * 8 + 2 * t + i % 2) score[m][n][i] = -INFINITY;
                    }
                }
            }
        }
        softmax(score, scale);
        accumulate(score, values, first_key);
    }

    // Turns scores into weights relative to the rows' largest scores so far, and rescales what was summed before.
    __device__ __forceinline__ void softmax(float (&score)[kTiles][kWarpKeys / 8][4], float scale) {
#pragma unroll
        for (int m = 0; m < kTiles; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float most = -INFINITY;
#pragma unroll
                for (int n = 0; n < kWarpKeys / 8; n++) {
                    most = fmaxf(most, fmaxf(score[m][n][2 * h], score[m][n][2 * h + 1]));
                }
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                most = fmaxf(largest[m][h], most * scale);
                // A row that has seen no key yet: any finite base does, for all weights are zero.
                const float base = most == -INFINITY ? 0.0f : most;
                const float rescale = exp2_fast(largest[m][h] - base);
                largest[m][h] = most;
                float added = 0.0f;
#pragma unroll
                for (int n = 0; n < kWarpKeys / 8; n++) {
#pragma unroll
                    for (int i = 2 * h; i < 2 * h + 2; i++) {
                        score[m][n][i] = exp2_fast(fmaf(score[m][n][i], scale, -base));
                        added += score[m][n][i];
                    }
                }
                sum[m][h] = sum[m][h] * rescale + added;
#pragma unroll
                for (int d = 0; d < kHeadDim / 8; d++) {
                    out[m][d][2 * h] *= rescale;
                    out[m][d][2 * h + 1] *= rescale;
                }
            }
        }
    }

    __device__ __forceinline__ void accumulate(const float (&weight)[kTiles][kWarpKeys / 8][4], uint32_t values,
                                               int first_key) {
        using S = Shared<kHeadDim>;
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < kWarpKeys / 16; n++) {
            uint32_t w[kTiles][4];
#pragma unroll
            for (int m = 0; m < kTiles; m++) {
                w[m][0] = Pair<T>::pack(weight[m][2 * n][0], weight[m][2 * n][1]);
                w[m][1] = Pair<T>::pack(weight[m][2 * n][2], weight[m][2 * n][3]);
                w[m][2] = Pair<T>::pack(weight[m][2 * n + 1][0], weight[m][2 * n + 1][1]);
                w[m][3] = Pair<T>::pack(weight[m][2 * n + 1][2], weight[m][2 * n + 1][3]);
            }
#pragma unroll
            for (int d = 0; d < kHeadDim / 16; d++) {
                uint32_t v[4];
                load_matrices_transposed(v, values + S::at(first_key + n * 16 + lane % 16, d * 2 + lane / 16));
#pragma unroll
                for (int m = 0; m < kTiles; m++) {
                    mma<T>(out[m][2 * d], w[m][0], w[m][1], w[m][2], w[m][3], v[0], v[1]);
                    mma<T>(out[m][2 * d + 1], w[m][0], w[m][1], w[m][2], w[m][3], v[2], v[3]);
                }
            }
        }
    }

    // The four threads that share a row have each a part of its sum.
    __device__ __forceinline__ void complete_sums() {
#pragma unroll
        for (int m = 0; m < kTiles; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 1);
                sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 2);
            }
        }
    }
};

// Runs through the item's keys; `warp` then holds its share, and shared memory is free again.
template <typename T, int kHeadDim, int kTiles, int kWarpKeys>
__device__ __forceinline__ void run_keys(Warp<T, kHeadDim, kTiles, kWarpKeys>& warp, const AttentionParams& p,
                                         const AttentionItem& item, int kv_head, uint32_t shared) {
    constexpr bool kMany = kWarpKeys == kKeys;
    const int first_row = kMany ? threadIdx.x / 32 * kTiles * 16 : 0;
    const int first_key = kMany ? 0 : threadIdx.x / 32 * kWarpKeys;
    const int32_t* table = p.arrays + item.table;
    // All rows of the item see the keys before this one.
    const int unmasked =
        min(item.end_key, item.computed + item.first_row / static_cast<int>(p.group_size) + 1);
    copy_queries<T, kHeadDim>(p, item, kv_head, kMany ? kManyRows : kFewRows, shared);
    copy_tile<T, kHeadDim>(p, table, kv_head, item.first_key, item.end_key, shared, 0);
    copy_commit();
    warp.start(p, item, first_row);
    int stage = 0;
    for (int key = item.first_key; key < item.end_key; key += kKeys) {
        if (key + kKeys < item.end_key) {
            copy_tile<T, kHeadDim>(p, table, kv_head, key + kKeys, item.end_key, shared, stage ^ 1);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        warp.step(shared, shared + Shared<kHeadDim>::keys(stage), shared + Shared<kHeadDim>::values(stage), first_row,
                  first_key, key + first_key, unmasked < key + kKeys, p.scale);
        __syncthreads();
        stage ^= 1;
    }
    warp.complete_sums();
}

template <typename T, int kHeadDim>
__device__ void attend_many(const AttentionParams& p, const AttentionItem& item, int kv_head, uint32_t shared) {
    Warp<T, kHeadDim, 2, kKeys> warp;
    run_keys(warp, p, item, kv_head, shared);
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = threadIdx.x / 32 * 32 + m * 16 + h * 8 + g;
            if (t == 0) store_stats(p, item, kv_head, r, warp.largest[m][h], warp.sum[m][h]);
            const RowOut<T> to = row_out<T, kHeadDim>(p, item, kv_head, r, warp.sum[m][h]);
#pragma unroll
            for (int d = 0; d < kHeadDim / 8; d++) {
                to.store(d * 8 + 2 * t, warp.out[m][d][2 * h], warp.out[m][d][2 * h + 1]);
            }
        }
    }
}

template <typename T, int kHeadDim>
__device__ void attend_few(const AttentionParams& p, const AttentionItem& item, int kv_head, unsigned char* memory,
                           uint32_t shared) {
    constexpr int kWarps = kThreads / 32;
    __shared__ float2 stats[kWarps][kFewRows];
    Warp<T, kHeadDim, 1, kKeys / kWarps> warp;
    run_keys(warp, p, item, kv_head, shared);
    // The warps' results meet in shared memory, each relative to its own largest score.
    float(*outs)[kFewRows][kHeadDim] = reinterpret_cast<float(*)[kFewRows][kHeadDim]>(memory);
    const int w = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = h * 8 + g;
        if (t == 0) stats[w][r] = make_float2(warp.largest[0][h], warp.sum[0][h]);
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; d++) {
            *reinterpret_cast<float2*>(&outs[w][r][d * 8 + 2 * t]) =
                make_float2(warp.out[0][d][2 * h], warp.out[0][d][2 * h + 1]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < item.num_rows * (kHeadDim / 2); i += kThreads) {
        const int r = i / (kHeadDim / 2), at = i % (kHeadDim / 2) * 2;
        float largest = -INFINITY, sum = 0.0f, low = 0.0f, high = 0.0f;
#pragma unroll
        for (int v = 0; v < kWarps; v++) largest = fmaxf(largest, stats[v][r].x);
        const float base = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
        for (int v = 0; v < kWarps; v++) {
            const float weight = exp2_fast(stats[v][r].x - base);
            sum += stats[v][r].y * weight;
            low += outs[v][r][at] * weight;
            high += outs[v][r][at + 1] * weight;
        }
        if (at == 0) store_stats(p, item, kv_head, r, largest, sum);
        row_out<T, kHeadDim>(p, item, kv_head, r, sum).store(at, low, high);
    }
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2) attention(const AttentionParams p) {
    extern __shared__ __align__(128) unsigned char memory[];
    const uint32_t shared = shared_address(memory);
    start_next();
    wait_for_previous();
    if (!has_item(p)) return;
    const AttentionItem item = p.items[blockIdx.x / p.num_kv_heads];
    const int kv_head = static_cast<int>(blockIdx.x % p.num_kv_heads);
    if (kFewRows < item.num_rows) {
        attend_many<T, kHeadDim>(p, item, kv_head, shared);
    } else {
        attend_few<T, kHeadDim>(p, item, kv_head, memory, shared);
    }
    if (1 < item.num_splits) finish_split<T, kHeadDim>(p, item, kv_head, kThreads);
}

template <typename T, int kHeadDim>
cudaError_t start(const AttentionParams& p, const Launch& where) {
    constexpr size_t kBytes = Shared<kHeadDim>::kBytes;
    const cudaError_t raised =
        cudaFuncSetAttribute(attention<T, kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (raised != cudaSuccess) return raised;
    return launch(attention<T, kHeadDim>, p.grid_items * p.num_kv_heads, kThreads, kBytes, where, p);
}

template <typename T>
cudaError_t pick(const AttentionParams& p, const Launch& where) {
    switch (p.head_dim) {
    case 64: return start<T, 64>(p, where);
    case 128: return start<T, 128>(p, where);
    }
    return cudaErrorInvalidValue;
}

} // namespace

extern "C" cudaError_t launch_attention(AttentionParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return pick<bf16>(params, where);
    case Element::F16: return pick<f16>(params, where);
    }
    return cudaErrorInvalidValue;
}
