// What ranks of one process do together over plain peer pointers: sum, put columns side by side, hand over.
//
// A rank pushes its part into a place of its own in every peer's memory, then a flag; it waits for its peers' flags and
// reads what they pushed from its own memory. Two sets of places are used in turn: a rank that starts the call after
// next has seen that its peers began the next one, so they are done with this one. Counters of calls live on the
// device, so calls can be recorded in graphs. A wait ends with a fault when a peer stays away, and from then on calls
// do nothing.
//
// Measured on two H200: sums of 7 KB 5.0 us, 57 KB 5.8, 459 KB 7.5, 1.8 MB 13, 7.3 MB 36, 59 MB 298 (NCCL: 11, 12, 14,
// 32, 48, 230).
#include "common/element.cuh"
#include "common/launch.cuh"

constexpr uint32_t kMaxRanks = 8;
constexpr uint32_t kMaxBlocks = 128;

// The head of each rank's memory; what peers push lies behind it, aligned. All zero at the start.
struct alignas(256) PeerHead {
    // Written by peers: the last call of all ranks, the last message to us, the last message of ours taken.
    uint32_t joined[kMaxBlocks][kMaxRanks], sent[kMaxBlocks][kMaxRanks], taken[kMaxBlocks][kMaxRanks];
    // Each rank's width of the last two calls that put columns side by side, in bytes.
    uint64_t widths[2][kMaxRanks];
    // Ours: not 0 after a fault. Host memory is too far away to be looked at by every call.
    uint32_t faulted;
    // Our own counts.
    uint32_t calls[kMaxBlocks], sends[kMaxRanks][kMaxBlocks], receives[kMaxRanks][kMaxBlocks];
};

struct PeerParams {
    PeerHead* ranks[kMaxRanks];
    uint32_t* fault; // host memory: 0, or operation << 8 | the peer that did not come
    uint64_t place_bytes, deadline_ns;
    uint32_t rank, size;
};
static_assert(sizeof(PeerParams) == 96);

struct AllReduceParams {
    PeerParams peers;
    void* x;
    uint64_t count; // elements, at most a place's
    uint32_t dtype, blocks; // 0 BF16, 1 F16, 2 F32
};
static_assert(sizeof(AllReduceParams) == 120);

struct GatherColumnsParams {
    PeerParams peers;
    void* out;
    const void* x;
    // Of this rank's columns, in bytes; strides too.
    uint64_t width, out_stride, x_stride;
    uint32_t rows, blocks, element_bytes, padding;
};
static_assert(sizeof(GatherColumnsParams) == 152);

struct HandOverParams {
    PeerParams peers;
    void* x;
    uint64_t bytes; // a multiple of 2, at most a place's
    uint32_t peer, blocks;
};
static_assert(sizeof(HandOverParams) == 120);

namespace {

constexpr uint32_t kThreads = 256;
enum Operation : uint32_t { kAllReduce = 1, kGatherColumns = 2, kSend = 3, kReceive = 4 };

__device__ __forceinline__ void store_release(uint32_t* to, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ uint64_t now_ns() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}

__device__ __forceinline__ bool faulted(const PeerParams& p) { return p.ranks[p.rank]->faulted != 0; }

// Waits until a counter has come to `value`; counters wrap around.
__device__ void wait_for(const PeerParams& p, const uint32_t* counter, uint32_t value, Operation operation,
                         uint32_t peer) {
    const uint64_t start = now_ns();
    while (static_cast<int32_t>(load_acquire(counter) - value) < 0) {
        if (p.deadline_ns < now_ns() - start) {
            store_release(&p.ranks[p.rank]->faulted, 1);
            store_release(p.fault, operation << 8 | peer);
            return;
        }
    }
}

// Where rank `from` pushes what it has for rank `to`: `set` is 0 or 1 for calls of all, 2 or 3 for messages.
__device__ __forceinline__ char* place(const PeerParams& p, uint32_t to, uint32_t from, uint32_t set) {
    return reinterpret_cast<char*>(p.ranks[to] + 1) + (static_cast<uint64_t>(set) * p.size + from) * p.place_bytes;
}

// Tells every peer that this block has pushed, and waits until theirs have.
__device__ void join(const PeerParams& p, uint32_t call, Operation operation) {
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x < p.size && threadIdx.x != p.rank) {
        store_release(&p.ranks[threadIdx.x]->joined[blockIdx.x][p.rank], call);
        wait_for(p, &p.ranks[p.rank]->joined[blockIdx.x][threadIdx.x], call, operation, threadIdx.x);
    }
    __syncthreads();
}

// Every block's count moves with every call, whether the call has that many blocks or not.
__device__ void count_call(const PeerParams& p, uint32_t call) {
    uint32_t* calls = p.ranks[p.rank]->calls;
    __syncthreads();
    if (threadIdx.x == 0) calls[blockIdx.x] = call;
    if (blockIdx.x == 0) {
        for (uint32_t b = gridDim.x + threadIdx.x; b < kMaxBlocks; b += kThreads) calls[b] = call;
    }
}

template <typename T>
__device__ __forceinline__ void add8(float (&sum)[8], const uint4& packed) {
    float x[8];
    unpack8<T>(packed, x);
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += x[j];
}

// One 16-byte vector's sum over the ranks, in their order, so that it has the same bits on all of them.
template <typename T>
__device__ __forceinline__ uint4 sum_vector(const PeerParams& p, const uint4& mine, uint32_t set, uint64_t i) {
    float sum[8] = {};
    for (uint32_t r = 0; r < p.size; r++) {
        add8<T>(sum, r == p.rank ? mine : __ldcg(reinterpret_cast<const uint4*>(place(p, p.rank, r, set)) + i));
    }
    return pack8<T>(sum);
}

template <>
__device__ __forceinline__ uint4 sum_vector<float>(const PeerParams& p, const uint4& mine, uint32_t set, uint64_t i) {
    float sum[4] = {};
    for (uint32_t r = 0; r < p.size; r++) {
        const uint4 x = r == p.rank ? mine : __ldcg(reinterpret_cast<const uint4*>(place(p, p.rank, r, set)) + i);
        sum[0] += __uint_as_float(x.x);
        sum[1] += __uint_as_float(x.y);
        sum[2] += __uint_as_float(x.z);
        sum[3] += __uint_as_float(x.w);
    }
    return make_uint4(__float_as_uint(sum[0]), __float_as_uint(sum[1]), __float_as_uint(sum[2]),
                      __float_as_uint(sum[3]));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) all_reduce(const __grid_constant__ AllReduceParams p) {
    start_next();
    wait_for_previous();
    if (faulted(p.peers)) return;
    const uint32_t call = p.peers.ranks[p.peers.rank]->calls[blockIdx.x] + 1, set = call % 2;
    constexpr uint64_t kPerVector = 16 / sizeof(T);
    const uint64_t vectors = p.count / kPerVector, rest = p.count % kPerVector;
    const uint64_t per_block = (vectors + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per_block;
    const uint64_t end = begin + per_block < vectors ? begin + per_block : vectors;
    uint4* x = static_cast<uint4*>(p.x);
    T* tail = static_cast<T*>(p.x) + vectors * kPerVector;
    const bool has_tail = blockIdx.x == 0 && threadIdx.x < rest;
    for (uint32_t step = 1; step < p.peers.size; step++) {
        const uint32_t peer = (p.peers.rank + step) % p.peers.size;
        uint4* to = reinterpret_cast<uint4*>(place(p.peers, peer, p.peers.rank, set));
        for (uint64_t i = begin + threadIdx.x; i < end; i += kThreads) to[i] = x[i];
        if (has_tail) reinterpret_cast<T*>(to + vectors)[threadIdx.x] = tail[threadIdx.x];
    }
    join(p.peers, call, kAllReduce);
    for (uint64_t i = begin + threadIdx.x; i < end; i += kThreads) x[i] = sum_vector<T>(p.peers, x[i], set, i);
    if (has_tail) {
        float sum = 0.0f;
        for (uint32_t r = 0; r < p.peers.size; r++) {
            const T* theirs = reinterpret_cast<const T*>(place(p.peers, p.peers.rank, r, set)) + vectors * kPerVector;
            sum += to_float(r == p.peers.rank ? tail[threadIdx.x] : __ldcg(theirs + threadIdx.x));
        }
        tail[threadIdx.x] = from_float<T>(sum);
    }
    count_call(p.peers, call);
}

// `Word` is an element: the same on all ranks, so that a block reads what its twins pushed.
template <typename Word>
__global__ void __launch_bounds__(kThreads) gather_columns(const __grid_constant__ GatherColumnsParams p) {
    start_next();
    wait_for_previous();
    if (faulted(p.peers)) return;
    const uint32_t rank = p.peers.rank, call = p.peers.ranks[rank]->calls[blockIdx.x] + 1, set = call % 2;
    const uint64_t first = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads;
    const uint64_t mine = p.width / sizeof(Word);
    const Word* x = static_cast<const Word*>(p.x);
    for (uint32_t other = 1; other < p.peers.size; other++) {
        const uint32_t peer = (rank + other) % p.peers.size;
        Word* to = reinterpret_cast<Word*>(place(p.peers, peer, rank, set));
        for (uint64_t i = first; i < p.rows * mine; i += step) {
            to[i] = x[i / mine * (p.x_stride / sizeof(Word)) + i % mine];
        }
    }
    if (threadIdx.x < p.peers.size) p.peers.ranks[threadIdx.x]->widths[set][rank] = p.width;
    join(p.peers, call, kGatherColumns);
    Word* out = static_cast<Word*>(p.out);
    uint64_t column = 0;
    for (uint32_t r = 0; r < p.peers.size; r++) {
        const uint64_t width = __ldcg(&p.peers.ranks[rank]->widths[set][r]) / sizeof(Word);
        const Word* from = reinterpret_cast<const Word*>(place(p.peers, rank, r, set));
        for (uint64_t i = first; i < p.rows * width; i += step) {
            const Word word = r == rank ? x[i / width * (p.x_stride / sizeof(Word)) + i % width] : __ldcg(from + i);
            out[i / width * (p.out_stride / sizeof(Word)) + column + i % width] = word;
        }
        column += width;
    }
    count_call(p.peers, call);
}

// A block's share of a message, in 16-byte vectors, and what remains.
__device__ void copy_share(char* to, const char* from, uint64_t bytes) {
    const uint64_t first = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads, vectors = bytes / 16;
    for (uint64_t i = first; i < vectors; i += step) {
        reinterpret_cast<uint4*>(to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
    }
    for (uint64_t i = vectors * 8 + first; i < bytes / 2; i += step) {
        reinterpret_cast<uint16_t*>(to)[i] = __ldcg(reinterpret_cast<const uint16_t*>(from) + i);
    }
}

__global__ void __launch_bounds__(kThreads) send(const __grid_constant__ HandOverParams p) {
    start_next();
    wait_for_previous();
    if (faulted(p.peers)) return;
    PeerHead* mine = p.peers.ranks[p.peers.rank];
    const uint32_t message = mine->sends[p.peer][blockIdx.x] + 1;
    // The message before last was in the same place: every block of the receiver must have taken it.
    if (threadIdx.x < gridDim.x) wait_for(p.peers, &mine->taken[threadIdx.x][p.peer], message - 2, kSend, p.peer);
    __syncthreads();
    copy_share(place(p.peers, p.peer, p.peers.rank, 2 + message % 2), static_cast<const char*>(p.x), p.bytes);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_release(&p.peers.ranks[p.peer]->sent[blockIdx.x][p.peers.rank], message);
        mine->sends[p.peer][blockIdx.x] = message;
    }
}

__global__ void __launch_bounds__(kThreads) receive(const __grid_constant__ HandOverParams p) {
    start_next();
    wait_for_previous();
    if (faulted(p.peers)) return;
    PeerHead* mine = p.peers.ranks[p.peers.rank];
    const uint32_t message = mine->receives[p.peer][blockIdx.x] + 1;
    if (threadIdx.x == 0) wait_for(p.peers, &mine->sent[blockIdx.x][p.peer], message, kReceive, p.peer);
    __syncthreads();
    copy_share(static_cast<char*>(p.x), place(p.peers, p.peers.rank, p.peer, 2 + message % 2), p.bytes);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_release(&p.peers.ranks[p.peer]->taken[blockIdx.x][p.peers.rank], message);
        mine->receives[p.peer][blockIdx.x] = message;
    }
}

} // namespace

extern "C" uint64_t peer_head_bytes() { return sizeof(PeerHead); }

extern "C" cudaError_t launch_all_reduce(AllReduceParams params, Launch where) {
    switch (params.dtype) {
    case 0: return launch(all_reduce<bf16>, params.blocks, kThreads, 0, where, params);
    case 1: return launch(all_reduce<f16>, params.blocks, kThreads, 0, where, params);
    case 2: return launch(all_reduce<float>, params.blocks, kThreads, 0, where, params);
    }
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t launch_gather_columns(GatherColumnsParams params, Launch where) {
    switch (params.element_bytes) {
    case 2: return launch(gather_columns<uint16_t>, params.blocks, kThreads, 0, where, params);
    case 4: return launch(gather_columns<uint32_t>, params.blocks, kThreads, 0, where, params);
    }
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t launch_send(HandOverParams params, Launch where) {
    return launch(send, params.blocks, kThreads, 0, where, params);
}

extern "C" cudaError_t launch_receive(HandOverParams params, Launch where) {
    return launch(receive, params.blocks, kThreads, 0, where, params);
}
