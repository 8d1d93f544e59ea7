// Causal attention of long queries over paged keys and values for sm_90a: tensor cores by wgmma.
//
// A block takes a work item of up to 128 packed query rows and a KV head. One warpgroup copies keys and values, 128 of
// them at a time, two tiles ahead; two warpgroups multiply, 64 rows each. While the product of weights and values of
// one tile runs, the scores of the next are turned into weights. Tiles are taken from the last key to the first, so
// that those cut by the causal mask come first. Items of few rows are those of attention.cu.
//
// Measured on H200, 28 query and 4 KV heads of 128, bf16, causal: 4,096 tokens 445 TFLOP/s, 16,384 565, 4,096 behind
// 126,976 554: 62, 79 and 77 % of a large product's rate in the same run.
#include "common/attention.cuh"
#include "common/wgmma.cuh"

namespace {

constexpr int kConsumers = 256;
constexpr int kProducers = 128;
constexpr int kThreads = kConsumers + kProducers;
constexpr int kRows = 128;
constexpr int kKeys = 128;
constexpr int kStages = 2;
// Bytes from one column of 64 elements to the next, in tiles of 128 rows.
constexpr int kColumnBytes = 128 * 128;

// Shared memory: queries, stages of keys, stages of values, barriers; tiles as wgmma wants them.
template <int kHeadDim>
struct Shared {
    static constexpr int kTileBytes = kHeadDim / 64 * kColumnBytes;
    static constexpr int kBarriers = (1 + 2 * kStages) * kTileBytes;
    // A block's memory begins at 16 bytes; tiles at 1024.
    static constexpr int kBytes = kBarriers + 4 * kStages * 8 + 1024;
    static_assert(kBytes + kMostDeclared <= 227 * 1024);

    uint32_t start;

    __device__ __forceinline__ uint32_t queries() const { return start; }
    __device__ __forceinline__ uint32_t keys(int stage) const { return start + (1 + stage) * kTileBytes; }
    __device__ __forceinline__ uint32_t values(int stage) const { return start + (1 + kStages + stage) * kTileBytes; }
    __device__ __forceinline__ uint32_t barrier(int kind, int stage) const {
        return start + kBarriers + (kind * kStages + stage) * 8;
    }
    __device__ __forceinline__ uint32_t keys_full(int stage) const { return barrier(0, stage); }
    __device__ __forceinline__ uint32_t values_full(int stage) const { return barrier(1, stage); }
    __device__ __forceinline__ uint32_t keys_empty(int stage) const { return barrier(2, stage); }
    __device__ __forceinline__ uint32_t values_empty(int stage) const { return barrier(3, stage); }
};

__device__ __forceinline__ uint32_t tile_at(int row, int chunk) {
    return chunk / 8 * kColumnBytes + swizzled(row, chunk % 8);
}

// Blocks hold at least this many keys.
constexpr int kSmallestBlock = 16;

// The blocks of a tile: lane i has that of its i-th 16 keys, so that nothing is looked up while keys are copied.
__device__ __forceinline__ int look_up(const AttentionParams& p, const int32_t* table, int first, int end) {
    const int key = first + threadIdx.x % (kKeys / kSmallestBlock) * kSmallestBlock;
    return key < end ? table[key >> p.block_shift] : 0;
}

// Starts copying a tile of keys or values; rows at or behind `end` become zeros.
template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_tile(const AttentionParams& p, const void* pool, int blocks, int kv_head,
                                          int first, int end, uint32_t to) {
    constexpr int kChunks = kHeadDim / 8;
    // A multiple of eight: a thread's rows are all exchanged alike. At most the smallest block.
    constexpr int kRowsAtOnce = kProducers / kChunks;
    static_assert(kRowsAtOnce % 8 == 0 && kRowsAtOnce <= kSmallestBlock);
    const int thread = threadIdx.x - kConsumers, chunk = thread % kChunks, first_row = thread / kChunks;
    const T* from = static_cast<const T*>(pool) + chunk * 8;
    const int within = (1 << p.block_shift) - 1;
    to += tile_at(first_row, chunk);
#pragma unroll 4
    for (int group = 0; group < kKeys / kSmallestBlock; group++) {
        const int key = first + group * kSmallestBlock + first_row;
        // A row's number fits 32 bits: pools have fewer than four billion rows.
        const uint32_t block = __shfl_sync(0xffffffffu, blocks, group);
        const uint32_t row = ((block * p.num_kv_heads + kv_head) << p.block_shift) + (key & within);
        const T* rows = from + static_cast<size_t>(row) * kHeadDim;
#pragma unroll
        for (int r = 0; r < kSmallestBlock; r += kRowsAtOnce) {
            copy_async_16(to + (group * kSmallestBlock + r) * 128, rows + r * kHeadDim, key + r < end);
        }
    }
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void produce(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                        const Shared<kHeadDim>& shared, int tiles) {
    constexpr int kChunks = kHeadDim / 8;
    const int thread = threadIdx.x - kConsumers;
    for (int i = thread; i < kRows * kChunks; i += kProducers) {
        const int r = i / kChunks, chunk = i % kChunks, row = item.first_row + r;
        const int head = r < item.num_rows ? query_head(p, kv_head, row) : -1;
        const size_t token = head < 0 ? 0 : item.first_token + row / static_cast<int>(p.group_size);
        const T* q = static_cast<const T*>(p.qkv) + token * p.qkv_stride + max(head, 0) * kHeadDim + chunk * 8;
        copy_async_16(shared.queries() + tile_at(r, chunk), q, 0 <= head);
    }
    const int32_t* table = p.arrays + item.table;
    int blocks = look_up(p, table, item.first_key + (tiles - 1) * kKeys, item.end_key);
    for (int i = 0; i < tiles; i++) {
        const int stage = i % kStages, first = item.first_key + (tiles - 1 - i) * kKeys;
        const int next = i + 1 < tiles ? look_up(p, table, first - kKeys, item.end_key) : 0;
        const uint32_t parity = (i / kStages + 1) % 2;
        if (kStages <= i) barrier_wait(shared.keys_empty(stage), parity);
        copy_tile<T, kHeadDim>(p, p.keys, blocks, kv_head, first, item.end_key, shared.keys(stage));
        barrier_arrive_copied(shared.keys_full(stage));
        if (kStages <= i) barrier_wait(shared.values_empty(stage), parity);
        copy_tile<T, kHeadDim>(p, p.values, blocks, kv_head, first, item.end_key, shared.values(stage));
        barrier_arrive_copied(shared.values_full(stage));
        blocks = next;
    }
    // A block must not end while its copies are under way; consumers wait for all of them.
}

// A warpgroup's 64 rows. A thread has rows g and g + 8 of its warp's 16.
template <typename T, int kHeadDim>
struct Warpgroup {
    float out[kHeadDim / 2];
    uint32_t weights[kKeys / 16][4];
    float largest[2], sum[2];
    // Keys before this one are seen by the row.
    int limit[2];

    __device__ __forceinline__ void start(const AttentionParams& p, const AttentionItem& item) {
        const int g = threadIdx.x % 32 / 4, group = static_cast<int>(p.group_size);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = item.first_row + threadIdx.x / 32 * 16 + h * 8 + g;
            limit[h] = min(item.computed + row / group + 1, item.end_key);
            largest[h] = -INFINITY;
            sum[h] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; i++) out[i] = 0.0f;
    }

    // Starts score = q * k^T.
    __device__ __forceinline__ void start_scores(float (&score)[64], uint64_t queries, uint64_t keys) {
        product_fence();
#pragma unroll
        for (int d = 0; d < kHeadDim / 16; d++) {
            // Descriptors count in 16 bytes.
            const uint64_t at = (d / 4 * kColumnBytes + d % 4 * 32) / 16;
            multiply_scores<T>(score, queries + at, keys + at, d != 0);
        }
        product_commit();
    }

    // Starts out += weights * v.
    __device__ __forceinline__ void start_values(uint64_t values) {
        product_fence();
#pragma unroll
        for (int n = 0; n < kKeys / 16; n++) multiply_values<T>(out, weights[n], values + n * 16 * 128 / 16);
        product_commit();
    }

    __device__ __forceinline__ void mask(float (&score)[64], int key) {
        const int first = key + threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < 64; i++) {
            if (limit[i / 2 % 2] <= first + i / 4 * 8 + i % 2) score[i] = -INFINITY;
        }
    }

    // Turns scores into weights relative to the rows' largest scores so far; returns what to rescale `out` by.
    __device__ __forceinline__ float2 softmax(float (&score)[64], float scale) {
        float rescale[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            // Two chains each: what depends on the one before waits for it.
            float even = -INFINITY, odd = -INFINITY;
#pragma unroll
            for (int n = 0; n < 16; n++) {
                even = fmaxf(even, score[n * 4 + 2 * h]);
                odd = fmaxf(odd, score[n * 4 + 2 * h + 1]);
            }
            float most = fmaxf(even, odd);
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            most = fmaxf(largest[h], most * scale);
            // A row that has seen no key yet: any finite base does, for all weights are zero.
            const float base = most == -INFINITY ? 0.0f : most;
            rescale[h] = exp2_fast(largest[h] - base);
            largest[h] = most;
            float added[2] = {};
#pragma unroll
            for (int n = 0; n < 16; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& x = score[n * 4 + 2 * h + i];
                    x = exp2_fast(fmaf(x, scale, -base));
                    added[i] += x;
                }
            }
            sum[h] = sum[h] * rescale[h] + (added[0] + added[1]);
        }
        return make_float2(rescale[0], rescale[1]);
    }

    __device__ __forceinline__ void take_weights(const float (&score)[64]) {
#pragma unroll
        for (int n = 0; n < kKeys / 16; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) weights[n][i] = Pair<T>::pack(score[n * 8 + 2 * i], score[n * 8 + 2 * i + 1]);
        }
    }

    // The largest scores rarely change once some hundred keys are seen.
    __device__ __forceinline__ void rescale_out(float2 rescale) {
        if (!__any_sync(0xffffffffu, rescale.x != 1.0f || rescale.y != 1.0f)) return;
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; i++) out[i] *= i / 2 % 2 == 0 ? rescale.x : rescale.y;
    }
};

// One arrival a warp.
__device__ __forceinline__ void release(uint32_t barrier) { barrier_arrive_if(barrier, threadIdx.x % 32 == 0); }

// The warpgroups take turns at starting products, so that one multiplies while the other makes weights.
__device__ __forceinline__ void wait_for_turn() {
    asm volatile("bar.sync %0, 256;" ::"r"(2 + threadIdx.x / 128) : "memory");
}

__device__ __forceinline__ void pass_turn() {
    asm volatile("bar.arrive %0, 256;" ::"r"(3 - threadIdx.x / 128) : "memory");
}

// Tile `i`, which begins at `key`: its scores become weights while the tile before is added to the output. There is no
// branch in it besides the waits: the assembler would let the products finish before one.
template <bool kMasked, typename T, int kHeadDim>
__device__ __forceinline__ void step(Warpgroup<T, kHeadDim>& group, float (&score)[64], const Shared<kHeadDim>& shared,
                                     uint64_t queries, int i, int key, float scale) {
    const int stage = i % kStages, before = (i - 1) % kStages;
    barrier_wait(shared.keys_full(stage), i / kStages % 2);
    barrier_wait(shared.values_full(before), (i - 1) / kStages % 2);
    proxy_fence();
    wait_for_turn();
    group.start_scores(score, queries, describe_rows(shared.keys(stage)));
    group.start_values(describe_columns(shared.values(before), kColumnBytes));
    pass_turn();
    product_wait<1>();
    pin(score);
    release(shared.keys_empty(stage));
    if (kMasked) group.mask(score, key);
    const float2 rescale = group.softmax(score, scale);
    // Weights are at most 1, so their sum is finite. But the assembler does not know, and has to have them all before
    // this branch: without it, it moves the wait up and nothing runs beside the product.
    if (group.sum[0] + group.sum[1] == INFINITY) return;
    product_wait<0>();
    pin(group.out);
    // The product read these until now, which the compiler does not know.
    pin(group.weights);
    release(shared.values_empty(before));
    group.rescale_out(rescale);
    group.take_weights(score);
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void consume(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                        const Shared<kHeadDim>& shared, int tiles) {
    Warpgroup<T, kHeadDim> group;
    float score[64];
    // The same for all lanes, which the compiler cannot see.
    const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    const uint64_t queries = describe_rows(shared.queries() + warpgroup * 64 * 128);
    // All rows of the item see the keys before this one.
    const int unmasked =
        min(item.end_key, item.computed + item.first_row / static_cast<int>(p.group_size) + 1);
    group.start(p, item);
    // The first turn is the first warpgroup's.
    if (threadIdx.x / 128 == 1) pass_turn();

    int key = item.first_key + (tiles - 1) * kKeys;
    barrier_wait(shared.keys_full(0), 0);
    proxy_fence();
    group.start_scores(score, queries, describe_rows(shared.keys(0)));
    product_wait<0>();
    pin(score);
    release(shared.keys_empty(0));
    if (unmasked < key + kKeys) group.mask(score, key);
    group.softmax(score, p.scale);
    group.take_weights(score);

    int i = 1;
    for (; i < tiles && unmasked < key; i++, key -= kKeys) {
        step<true>(group, score, shared, queries, i, key - kKeys, p.scale);
    }
    for (; i < tiles; i++) step<false>(group, score, shared, queries, i, 0, p.scale);
    barrier_wait(shared.values_full((tiles - 1) % kStages), (tiles - 1) / kStages % 2);
    proxy_fence();
    group.start_values(describe_columns(shared.values((tiles - 1) % kStages), kColumnBytes));
    product_wait<0>();
    pin(group.out);

    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = group.sum[h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int r = threadIdx.x / 32 * 16 + h * 8 + g;
        if (t == 0) store_stats(p, item, kv_head, r, group.largest[h], sum);
        const RowOut<T> to = row_out<T, kHeadDim>(p, item, kv_head, r, sum);
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; d++) {
            to.store(d * 8 + 2 * t, group.out[d * 4 + 2 * h], group.out[d * 4 + 2 * h + 1]);
        }
    }
    if (1 < item.num_splits) finish_split<T, kHeadDim>(p, item, kv_head, kConsumers);
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) attention_hopper(const AttentionParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char memory[];
    const Shared<kHeadDim> shared = {(shared_address(memory) + 1023) & ~1023u};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; stage++) {
            barrier_init(shared.keys_full(stage), kProducers);
            barrier_init(shared.values_full(stage), kProducers);
            barrier_init(shared.keys_empty(stage), kConsumers / 32);
            barrier_init(shared.values_empty(stage), kConsumers / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    start_next();
    wait_for_previous();
    __syncthreads();
    const AttentionItem item = p.items[blockIdx.x / p.num_kv_heads];
    const int kv_head = static_cast<int>(blockIdx.x % p.num_kv_heads);
    const int tiles = (item.end_key - item.first_key + kKeys - 1) / kKeys;
    if (kConsumers <= threadIdx.x) {
        give_registers<40>();
        produce<T, kHeadDim>(p, item, kv_head, shared, tiles);
    } else {
        take_registers<232>();
        consume<T, kHeadDim>(p, item, kv_head, shared, tiles);
    }
#else
    // Never launched: see code.cu. Nothing that was not computed may be taken for a result.
    __trap();
#endif
}

template <typename T, int kHeadDim>
cudaError_t start(const AttentionParams& p, const Launch& where) {
    constexpr size_t kBytes = Shared<kHeadDim>::kBytes;
    const cudaError_t raised =
        cudaFuncSetAttribute(attention_hopper<T, kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (raised != cudaSuccess) return raised;
    return launch(attention_hopper<T, kHeadDim>, p.grid_items * p.num_kv_heads, kThreads, kBytes, where, p);
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

// For items of more than 16 rows, where code of sm_90a runs.
extern "C" cudaError_t launch_attention_hopper(AttentionParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return pick<bf16>(params, where);
    case Element::F16: return pick<f16>(params, where);
    }
    return cudaErrorInvalidValue;
}
