// x = the sum of all ranks' x, in three ways, and one with the residual's addition and RMSNorm behind it.
//
// All of them add in F32 in the order of ranks and round once, so every rank has the same bits whichever is taken.
//
// Flagged: every 4 bytes travel with the call's number beside them in one 8-byte store, so a word that has arrived says
// so itself: no fence, no flag, half the wire. For small arrays.
// One shot: a rank pushes all of its array into a place at every peer, then a flag, and adds what it was pushed.
// Two shots: a rank reads its share of the array from every peer, adds, and writes the sums to every peer: each byte
// crosses a wire once in and once out, without places. Needs GPUs that reach each other's memory.
//
// Measured on two H200 in a graph, flagged: 7 KB 2.5 us, 57 KB 2.9, 229 KB 3.8, 459 KB 5.0; one shot: 1.8 MB 13, 7.3 MB 32;
// two shots: 59 MB 183 (320 GB/s each way). NCCL 2.28: 12, 12, 14, 15; 32, 48; 226. Norm included, 7 KB 3.4, 459 KB 6.1.
#include "common/element.cuh"
#include "common/launch.cuh"
#include "common/peers.cuh"
#include "common/reduce.cuh"

struct AllReduceParams {
    PeerParams peers;
    void* x;
    uint64_t count; // elements, at most a place's (flagged, one shot)
    uint32_t dtype; // 0 BF16, 1 F16, 2 F32
    uint32_t blocks;
    uint32_t way; // see `Way`
    uint32_t padding;
};
static_assert(sizeof(AllReduceParams) == 152);

enum Way : uint32_t { kFlagged = 0, kOneShot = 1, kTwoShot = 2 };

struct AllReduceNormParams {
    PeerParams peers;
    void* out;           // [rows, width]
    void* residual;      // [rows, width]
    const void* x;       // [rows, width], unstrided
    const float* weight; // [width]
    uint32_t rows, width, out_stride, residual_stride;
    float eps;
    uint32_t padding;
};
static_assert(sizeof(AllReduceNormParams) == 176);

namespace {

constexpr uint32_t kFlaggedThreads = 128;
constexpr uint32_t kThreads = 512;
constexpr uint32_t kNormThreads = 512;
// Vectors a thread has under way at once: what hides the way to a peer and back.
constexpr uint32_t kUnder = 4;
// Vectors of eight a thread keeps: rows up to 16,384 wide.
constexpr uint32_t kKept = 4;

template <typename T>
constexpr uint32_t kPerVector = 16 / sizeof(T);

template <typename T>
struct Sum {
    float x[kPerVector<T>] = {};

    __device__ __forceinline__ void add(const uint4& packed) {
        if constexpr (sizeof(T) == 4) {
            x[0] += __uint_as_float(packed.x);
            x[1] += __uint_as_float(packed.y);
            x[2] += __uint_as_float(packed.z);
            x[3] += __uint_as_float(packed.w);
        } else {
            float more[8];
            unpack8<T>(packed, more);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] += more[j];
        }
    }

    __device__ __forceinline__ uint4 pack() const {
        if constexpr (sizeof(T) == 4) {
            return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                              __float_as_uint(x[3]));
        } else {
            return pack8<T>(x);
        }
    }
};

// Vector `i` of an array whose last one may be short.
template <typename T>
__device__ __forceinline__ uint4 load_vector(const void* x, uint64_t i, uint64_t count) {
    const uint64_t begin = i * kPerVector<T>;
    if (begin + kPerVector<T> <= count) return __ldcg(static_cast<const uint4*>(x) + i);
    uint4 short_vector = make_uint4(0, 0, 0, 0);
    for (uint32_t j = 0; begin + j < count; j++) {
        // Not from the nearest cache, which knows nothing of what a peer has written.
        reinterpret_cast<T*>(&short_vector)[j] = __ldcg(static_cast<const T*>(x) + begin + j);
    }
    return short_vector;
}

template <typename T>
__device__ __forceinline__ void store_vector(void* x, uint64_t i, uint64_t count, const uint4& vector) {
    const uint64_t begin = i * kPerVector<T>;
    if (begin + kPerVector<T> <= count) {
        static_cast<uint4*>(x)[i] = vector;
        return;
    }
    for (uint32_t j = 0; begin + j < count; j++) {
        static_cast<T*>(x)[begin + j] = reinterpret_cast<const T*>(&vector)[j];
    }
}

// A vector's first half lies at 16 * i, its second half in the upper half of the place.
__device__ __forceinline__ void push_flagged(const PeerParams& p, uint32_t call, uint64_t i, const uint4& x) {
    for (uint32_t step = 1; step < p.size; step++) {
        const uint32_t peer = p.rank + step < p.size ? p.rank + step : p.rank + step - p.size;
        char* to = small_place(p, peer, p.rank, call % 2) + i * 16;
        store_flagged(to, x.x, x.y, call);
        store_flagged(to + p.small_bytes / 2, x.z, x.w, call);
    }
}

template <typename T>
__device__ __forceinline__ uint4 sum_flagged(const PeerParams& p, uint32_t call, uint64_t i, const uint4& mine) {
    Sum<T> sum;
    for (uint32_t r = 0; r < p.size; r++) {
        if (r == p.rank) {
            sum.add(mine);
            continue;
        }
        const char* from = small_place(p, p.rank, r, call % 2) + i * 16;
        Wait wait;
        uint4 low, high;
        do {
            low = load_flagged(from);
            high = load_flagged(from + p.small_bytes / 2);
        } while ((low.y != call || low.w != call || high.y != call || high.w != call) &&
                 !wait.is_over(p, kAllReduce, r));
        sum.add(make_uint4(low.x, low.z, high.x, high.z));
    }
    return sum.pack();
}

template <typename T>
__global__ void __launch_bounds__(kFlaggedThreads) flagged(const __grid_constant__ AllReduceParams p) {
    start_next();
    wait_for_previous();
    const uint32_t call = p.peers.counts->calls[blockIdx.x] + 1;
    if (p.peers.counts->faulted != 0) return;
    const uint64_t vectors = (p.count + kPerVector<T> - 1) / kPerVector<T>;
    for (uint64_t i = blockIdx.x * kFlaggedThreads + threadIdx.x; i < vectors; i += gridDim.x * kFlaggedThreads) {
        const uint4 mine = load_vector<T>(p.x, i, p.count);
        push_flagged(p.peers, call, i, mine);
        store_vector<T>(p.x, i, p.count, sum_flagged<T>(p.peers, call, i, mine));
    }
    count_call(p.peers, call);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) one_shot(const __grid_constant__ AllReduceParams p) {
    start_next();
    wait_for_previous();
    const uint32_t call = p.peers.counts->calls[blockIdx.x] + 1, set = call % 2, rank = p.peers.rank;
    if (p.peers.counts->faulted != 0) return;
    const uint64_t vectors = (p.count + kPerVector<T> - 1) / kPerVector<T>;
    const uint64_t first = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kThreads;
    for (uint32_t step = 1; step < p.peers.size; step++) {
        uint4* to = reinterpret_cast<uint4*>(place(p.peers, (rank + step) % p.peers.size, rank, set));
        for (uint64_t i = first; i < vectors; i += stride) to[i] = load_vector<T>(p.x, i, p.count);
    }
    join(p.peers, call, kAllReduce);
    for (uint64_t i = first; i < vectors; i += stride) {
        Sum<T> sum;
        for (uint32_t r = 0; r < p.peers.size; r++) {
            const uint4* from = reinterpret_cast<const uint4*>(place(p.peers, rank, r, set));
            sum.add(r == rank ? load_vector<T>(p.x, i, p.count) : __ldcg(from + i));
        }
        store_vector<T>(p.x, i, p.count, sum.pack());
    }
    count_call(p.peers, call);
}

template <typename T, uint32_t kSize>
__device__ __forceinline__ void share_of_two_shots(const AllReduceParams& p, void* const (&arrays)[kMaxRanks],
                                                   uint64_t begin, uint64_t end) {
    constexpr uint32_t kMost = kSize == 0 ? kMaxRanks : kSize;
    const uint32_t size = kSize == 0 ? p.peers.size : kSize;
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kThreads;
    const uint64_t first = begin + static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
    uint64_t i = first;
    // Whole rounds of whole vectors without a look at the end of the array.
    const uint64_t vectors = p.count / kPerVector<T>, whole = vectors < end ? vectors : end;
    for (; i + (kUnder - 1) * stride < whole; i += kUnder * stride) {
        Sum<T> sums[kUnder];
#pragma unroll
        for (uint32_t r = 0; r < kMost; r++) {
            if (size <= r) break;
            uint4 x[kUnder];
#pragma unroll
            for (uint32_t u = 0; u < kUnder; u++) x[u] = __ldcg(static_cast<const uint4*>(arrays[r]) + i + u * stride);
#pragma unroll
            for (uint32_t u = 0; u < kUnder; u++) sums[u].add(x[u]);
        }
#pragma unroll
        for (uint32_t u = 0; u < kUnder; u++) {
            const uint4 packed = sums[u].pack();
#pragma unroll
            for (uint32_t r = 0; r < kMost; r++) {
                if (size <= r) break;
                static_cast<uint4*>(arrays[r])[i + u * stride] = packed;
            }
        }
    }
    for (; i < end; i += stride) {
        Sum<T> sum;
#pragma unroll
        for (uint32_t r = 0; r < kMost; r++) {
            if (r < size) sum.add(load_vector<T>(arrays[r], i, p.count));
        }
#pragma unroll
        for (uint32_t r = 0; r < kMost; r++) {
            if (r < size) store_vector<T>(arrays[r], i, p.count, sum.pack());
        }
    }
}

// Meets the peers, whose arrays are ready when they have come: what wrote them was a kernel before this one.
//
// The arrays lie at other addresses on other ranks, and in a graph nobody can be asked: so each block is told. False for all
// of a block after a fault: an address may be missing, or the array have been given up.
__device__ __forceinline__ bool meet_with_arrays(const AllReduceParams& p, uint32_t call, void* (&arrays)[kMaxRanks]) {
    const uint32_t rank = p.peers.rank, peer = threadIdx.x;
    bool faulted = false;
    if (peer < p.peers.size) {
        const uint64_t mine = reinterpret_cast<uint64_t>(p.x);
        uint4 theirs = make_uint4(static_cast<uint32_t>(mine), call, static_cast<uint32_t>(mine >> 32), call);
        if (peer != rank) {
            store_flagged(&p.peers.mail[peer]->arrays[call % 2][blockIdx.x][rank], theirs.x, theirs.z, call);
            Wait wait;
            do {
                theirs = load_flagged(&p.peers.mail[rank]->arrays[call % 2][blockIdx.x][peer]);
            } while ((theirs.y != call || theirs.w != call) && !wait.is_over(p.peers, kAllReduce, peer));
        }
        arrays[peer] = reinterpret_cast<void*>(static_cast<uint64_t>(theirs.z) << 32 | theirs.x);
        faulted = is_faulted(p.peers);
    }
    return __syncthreads_or(faulted) == 0;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) two_shot(const __grid_constant__ AllReduceParams p) {
    start_next();
    wait_for_previous();
    const uint32_t call = p.peers.counts->calls[blockIdx.x] + 1, rank = p.peers.rank, size = p.peers.size;
    if (p.peers.counts->faulted != 0) return;
    __shared__ void* shared_arrays[kMaxRanks];
    // Without a word to the peers, who would take their arrays for summed.
    if (!meet_with_arrays(p, call, shared_arrays)) return;
    void* arrays[kMaxRanks];
#pragma unroll
    for (uint32_t r = 0; r < kMaxRanks; r++) arrays[r] = shared_arrays[r];
    const uint64_t vectors = (p.count + kPerVector<T> - 1) / kPerVector<T>;
    const uint64_t share = (vectors + size - 1) / size, begin = rank * share;
    const uint64_t end = begin + share < vectors ? begin + share : vectors;
    size == 2 ? share_of_two_shots<T, 2>(p, arrays, begin, end) : share_of_two_shots<T, 0>(p, arrays, begin, end);
    // Nobody goes on before its peers have written their shares into its array.
    join(p.peers, call + 1, kAllReduce);
    count_call(p.peers, call + 1);
}

// A block a row: flagged words are summed, the sum is added to the residual, the row is normalised.
template <typename T>
__global__ void __launch_bounds__(kNormThreads) all_reduce_norm(const __grid_constant__ AllReduceNormParams p) {
    __shared__ float scratch[32];
    start_next();
    wait_for_previous();
    const uint32_t call = p.peers.counts->calls[blockIdx.x] + 1, vectors = p.width / 8;
    if (p.peers.counts->faulted != 0) return;
    const uint64_t row = blockIdx.x, first = row * vectors;
    T* residual = static_cast<T*>(p.residual) + row * p.residual_stride;
    uint4 mine[kKept];
#pragma unroll
    for (uint32_t k = 0; k < kKept; k++) {
        const uint32_t v = k * kNormThreads + threadIdx.x;
        if (vectors <= v) break;
        mine[k] = __ldcg(static_cast<const uint4*>(p.x) + first + v);
        push_flagged(p.peers, call, first + v, mine[k]);
    }
    float kept[kKept][8], squares = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < kKept; k++) {
        const uint32_t v = k * kNormThreads + threadIdx.x;
        if (vectors <= v) break;
        // Before the wait: the residual is ours alone.
        const uint4 before = reinterpret_cast<const uint4*>(residual)[v];
        // Rounded between the sums, as when they are two operations.
        Sum<T> sum;
        sum.add(sum_flagged<T>(p.peers, call, first + v, mine[k]));
        sum.add(before);
        const uint4 packed = sum.pack();
        reinterpret_cast<uint4*>(residual)[v] = packed;
        unpack8<T>(packed, kept[k]);
#pragma unroll
        for (int j = 0; j < 8; j++) squares += kept[k][j] * kept[k][j];
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(p.width) + p.eps);
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
#pragma unroll
    for (uint32_t k = 0; k < kKept; k++) {
        const uint32_t v = k * kNormThreads + threadIdx.x;
        if (vectors <= v) break;
        const float4 low = reinterpret_cast<const float4*>(p.weight)[2 * v];
        const float4 high = reinterpret_cast<const float4*>(p.weight)[2 * v + 1];
        const float weight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 8; j++) kept[k][j] *= scale * weight[j];
        reinterpret_cast<uint4*>(out)[v] = pack8<T>(kept[k]);
    }
    count_call(p.peers, call);
}

template <typename T>
cudaError_t pick(const AllReduceParams& p, const Launch& where) {
    switch (p.way) {
    case kFlagged: return launch(flagged<T>, p.blocks, kFlaggedThreads, 0, where, p);
    case kOneShot: return launch(one_shot<T>, p.blocks, kThreads, 0, where, p);
    case kTwoShot: return launch(two_shot<T>, p.blocks, kThreads, 0, where, p);
    }
    return cudaErrorInvalidValue;
}

} // namespace

extern "C" cudaError_t launch_all_reduce(AllReduceParams params, Launch where) {
    switch (params.dtype) {
    case 0: return pick<bf16>(params, where);
    case 1: return pick<f16>(params, where);
    case 2: return pick<float>(params, where);
    }
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t launch_all_reduce_norm(AllReduceNormParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return launch(all_reduce_norm<bf16>, params.rows, kNormThreads, 0, where, params);
    case Element::F16: return launch(all_reduce_norm<f16>, params.rows, kNormThreads, 0, where, params);
    }
    return cudaErrorInvalidValue;
}
