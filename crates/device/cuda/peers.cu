// What ranks of one process do together beside sums: put columns side by side, hand over, mark a library's calls; and
// what shows that their memory can be trusted.
//
// Columns: a rank pushes its own into a place at every peer, then a flag; it waits for its peers' flags and puts
// together what they pushed. Messages: a ring of places for each rank, filled by the rank before it, a flag a block.
#include "common/launch.cuh"
#include "common/peers.cuh"

struct GatherColumnsParams {
    PeerParams peers;
    void* out;
    const void* x;
    // Of this rank's columns, in bytes; strides too.
    uint64_t width, out_stride, x_stride;
    uint32_t rows, blocks, element_bytes, padding;
};
static_assert(sizeof(GatherColumnsParams) == 176);

struct HandOverParams {
    PeerParams peers;
    void* x;
    uint64_t bytes; // a multiple of 2, at most a message place's
    uint32_t peer;
    uint32_t places; // of the ring
};
static_assert(sizeof(HandOverParams) == 144);

struct PatternParams {
    uint32_t* at; // of this or another device
    uint64_t words;
    uint32_t* wrong; // host memory: how many words are not the pattern's
    uint32_t seed, padding;
};
static_assert(sizeof(PatternParams) == 32);

namespace {

constexpr uint32_t kThreads = 256;

// `Word` is an element: the same on all ranks, so that a block reads what its twins pushed.
template <typename Word>
__global__ void __launch_bounds__(kThreads) gather_columns(const __grid_constant__ GatherColumnsParams p) {
    start_next();
    wait_for_previous();
    const uint32_t rank = p.peers.rank, call = p.peers.counts->calls[blockIdx.x] + 1, set = call % 2;
    if (p.peers.counts->faulted != 0) return;
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
    if (threadIdx.x < p.peers.size) p.peers.mail[threadIdx.x]->widths[set][rank] = p.width;
    join(p.peers, call, kGatherColumns);
    Word* out = static_cast<Word*>(p.out);
    uint64_t column = 0;
    // After a fault a width may be missing.
    for (uint32_t r = 0; r < p.peers.size && !is_faulted(p.peers); r++) {
        const uint64_t width = __ldcg(&p.peers.mail[rank]->widths[set][r]) / sizeof(Word);
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

// Where message number `message` lies in a rank's ring.
__device__ char* ring_place(const PeerParams& p, uint32_t to, uint32_t message, uint32_t places) {
    return reinterpret_cast<char*>(p.mail[to] + 1) + message % places * p.message_bytes;
}

__global__ void __launch_bounds__(kThreads) send(const __grid_constant__ HandOverParams p) {
    start_next();
    wait_for_previous();
    if (p.peers.counts->faulted != 0) return;
    const Mail* mine = p.peers.mail[p.peers.rank];
    const uint32_t message = p.peers.counts->sends[blockIdx.x] + 1;
    // An earlier message was in the same place: every block of the receiver must have taken it.
    if (threadIdx.x < kHandOverBlocks) {
        wait_for(p.peers, &mine->taken[threadIdx.x][p.peer], message - p.places, kSend, p.peer);
    }
    __syncthreads();
    copy_share(ring_place(p.peers, p.peer, message, p.places), static_cast<const char*>(p.x), p.bytes);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_release(&p.peers.mail[p.peer]->sent[blockIdx.x][p.peers.rank], message);
        p.peers.counts->sends[blockIdx.x] = message;
    }
}

__global__ void __launch_bounds__(kThreads) receive(const __grid_constant__ HandOverParams p) {
    start_next();
    wait_for_previous();
    if (p.peers.counts->faulted != 0) return;
    const Mail* mine = p.peers.mail[p.peers.rank];
    const uint32_t message = p.peers.counts->receives[blockIdx.x] + 1;
    if (threadIdx.x == 0) wait_for(p.peers, &mine->sent[blockIdx.x][p.peer], message, kReceive, p.peer);
    __syncthreads();
    copy_share(static_cast<char*>(p.x), ring_place(p.peers, p.peers.rank, message, p.places), p.bytes);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_release(&p.peers.mail[p.peer]->taken[blockIdx.x][p.peers.rank], message);
        p.peers.counts->receives[blockIdx.x] = message;
    }
}

// Tells the host that a library's call is about to begin, or has ended: it has no deadline of its own.
struct Mark {
    PeerParams peers;
    uint32_t ended;
};

__global__ void mark(const __grid_constant__ Mark p) {
    uint32_t* count = p.ended != 0 ? &p.peers.counts->ended : &p.peers.counts->begun;
    *count += 1;
    store_release(p.peers.words + 2 + p.ended, *count);
}

__device__ __forceinline__ uint32_t pattern(uint64_t i, uint32_t seed) {
    return (static_cast<uint32_t>(i) ^ seed) * 2654435761u + seed;
}

__global__ void __launch_bounds__(kThreads) fill_pattern(const __grid_constant__ PatternParams p) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads * 4;
    for (uint64_t i = (static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < p.words; i += step) {
        *reinterpret_cast<uint4*>(p.at + i) =
            make_uint4(pattern(i, p.seed), pattern(i + 1, p.seed), pattern(i + 2, p.seed), pattern(i + 3, p.seed));
    }
}

__global__ void __launch_bounds__(kThreads) compare_pattern(const __grid_constant__ PatternParams p) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads * 4;
    uint32_t wrong = 0;
    for (uint64_t i = (static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < p.words; i += step) {
        const uint4 x = __ldcg(reinterpret_cast<const uint4*>(p.at + i));
        wrong += (x.x != pattern(i, p.seed)) + (x.y != pattern(i + 1, p.seed)) + (x.z != pattern(i + 2, p.seed)) +
                 (x.w != pattern(i + 3, p.seed));
    }
    if (wrong != 0) atomicAdd_system(p.wrong, wrong);
}

// Reads one word after another, each when the one before has come: a way there and back for each.
__global__ void chase(const __grid_constant__ PatternParams p) {
    uint32_t next = 0;
    for (uint64_t i = 0; i < p.words; i++) {
        uint32_t word;
        asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(word) : "l"(p.at + next * 32) : "memory");
        next = (word + static_cast<uint32_t>(i)) % 64;
    }
    if (next == 64) *p.wrong = 1;
}

} // namespace

extern "C" uint64_t mail_head_bytes() { return sizeof(Mail); }
extern "C" uint64_t counts_bytes() { return sizeof(Counts); }

extern "C" cudaError_t launch_gather_columns(GatherColumnsParams params, Launch where) {
    switch (params.element_bytes) {
    case 2: return launch(gather_columns<uint16_t>, params.blocks, kThreads, 0, where, params);
    case 4: return launch(gather_columns<uint32_t>, params.blocks, kThreads, 0, where, params);
    }
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t launch_send(HandOverParams params, Launch where) {
    return launch(send, kHandOverBlocks, kThreads, 0, where, params);
}

extern "C" cudaError_t launch_receive(HandOverParams params, Launch where) {
    return launch(receive, kHandOverBlocks, kThreads, 0, where, params);
}

// The launches below start when all before them is done. They return their own result: what the runtime remembers as the
// last error may be another call's, `cudaErrorNotReady` of an event that was asked for among them.
template <typename Params>
cudaError_t launch_alone(void (*kernel)(Params), uint32_t blocks, uint32_t threads, Launch where, const Params& params) {
    where.overlaps = 0;
    return launch(kernel, blocks, threads, 0, where, params);
}

extern "C" cudaError_t launch_mark(PeerParams params, uint32_t ended, Launch where) {
    return launch_alone(mark, 1, 1, where, Mark{params, ended});
}

extern "C" cudaError_t launch_fill_pattern(PatternParams params, Launch where) {
    return launch_alone(fill_pattern, 2 * where.multiprocessors, kThreads, where, params);
}

extern "C" cudaError_t launch_compare_pattern(PatternParams params, Launch where) {
    return launch_alone(compare_pattern, 2 * where.multiprocessors, kThreads, where, params);
}

extern "C" cudaError_t launch_chase(PatternParams params, Launch where) {
    return launch_alone(chase, 1, 1, where, params);
}
