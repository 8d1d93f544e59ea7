// What kernels of several ranks meet with: mailboxes, counts of calls, and waits that end.
//
// Each rank has a mailbox that its peers write: in its own memory when GPUs reach each other, in pinned host memory
// when they do not. Two sets of places are used in turn: a rank that starts the call after next has heard from all its
// peers in the next one, so they are done with this one. Counts of calls live on the device, so that calls can be
// recorded in graphs. A wait ends with a fault when a peer stays away for too long or the host says stop, and from then
// on calls do nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

constexpr uint32_t kMaxRanks = 8;
constexpr uint32_t kMaxBlocks = 512;
// Blocks of a hand-over: the same for all, for their counts are a block's own.
constexpr uint32_t kHandOverBlocks = 32;

// The head of a mailbox; the places lie behind it. All zero at the start.
struct alignas(256) Mail {
    // The last call of all ranks that a peer's block came to.
    uint32_t joined[kMaxBlocks][kMaxRanks];
    // The last message to us, the last message of ours that was taken.
    uint32_t sent[kHandOverBlocks][kMaxRanks], taken[kHandOverBlocks][kMaxRanks];
    // Of the last two calls: how wide each rank's columns are in bytes.
    uint64_t widths[2][kMaxRanks];
    // Of each block's last two calls: where each rank's array lies, in two words with the call's number behind each.
    uint4 arrays[2][kMaxBlocks][kMaxRanks];
};

// A rank's own counts, in its own memory. All zero at the start.
struct alignas(256) Counts {
    // Not 0 after a fault. Host memory is too far away to be looked at by every call.
    uint32_t faulted;
    // Calls of a library that were begun and ended.
    uint32_t begun, ended;
    uint32_t calls[kMaxBlocks], sends[kHandOverBlocks], receives[kHandOverBlocks];
};

struct PeerParams {
    Mail* mail[kMaxRanks];
    Counts* counts;
    // Host memory: the fault (0, or operation << 8 | the peer that did not come), then not 0 to end all waits.
    uint32_t* words;
    // Of one rank's place for: flagged words, a piece of an array, a piece of a message.
    uint64_t small_bytes, place_bytes, message_bytes, deadline_ns;
    uint32_t rank, size;
};
static_assert(sizeof(PeerParams) == 120);

enum Operation : uint32_t { kAllReduce = 1, kGatherColumns = 2, kSend = 3, kReceive = 4 };
// Beside the operation in a fault: the host said stop.
constexpr uint32_t kStopped = 1u << 16;

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

// Two words of data, each with its flag; a pair is written and read whole.
__device__ __forceinline__ void store_flagged(void* to, uint32_t a, uint32_t b, uint32_t flag) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(a), "r"(flag), "r"(b) : "memory");
}

__device__ __forceinline__ uint4 load_flagged(const void* from) {
    uint4 x;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(from)
                 : "memory");
    return x;
}

// Whether this block has seen a fault: not from a cache that is older than its waits.
__device__ __forceinline__ bool is_faulted(const PeerParams& p) {
    return *static_cast<const volatile uint32_t*>(&p.counts->faulted) != 0;
}

// No counter is as far ahead of what is waited for: the mailboxes' turns forbid more than a call or two, a ring more messages
// than it has places. The fewer the better: a block's counter that was last set 2^32 calls ago, less so many, would be taken
// for this call's.
constexpr uint32_t kFarAhead = 64;

// A wait's patience: looked at once in so many turns, for the host's memory is far away.
struct Wait {
    uint64_t start = 0;
    uint32_t turns = 0;

    // True when the wait shall end; the fault is noted then.
    __device__ bool is_over(const PeerParams& p, Operation operation, uint32_t peer) {
        if (++turns % 256 != 0) return false;
        // One wait's fault ends those behind it at once.
        if (is_faulted(p)) return true;
        const uint64_t now = now_ns();
        if (start == 0) start = now;
        const bool stopped = load_acquire(p.words + 1) != 0;
        if (!stopped && now - start <= p.deadline_ns) return false;
        store_release(&p.counts->faulted, 1);
        store_release(p.words, (stopped ? kStopped : 0) | operation << 8 | peer);
        return true;
    }
};

// Waits until a counter has come to `value`. Counters wrap around, and are never far ahead; what lies further behind than
// that has not been touched for long.
__device__ __forceinline__ void wait_for(const PeerParams& p, const uint32_t* counter, uint32_t value,
                                         Operation operation, uint32_t peer) {
    Wait wait;
    while (kFarAhead < load_acquire(counter) - value) {
        if (wait.is_over(p, operation, peer)) return;
    }
}

// Where rank `from` leaves a piece of an array for rank `to` in one of two turns.
__device__ __forceinline__ char* place(const PeerParams& p, uint32_t to, uint32_t from, uint32_t set) {
    char* places = reinterpret_cast<char*>(p.mail[to] + 1) + 2 * p.size * p.small_bytes;
    return places + (static_cast<uint64_t>(set) * p.size + from) * p.place_bytes;
}

// The same for flagged words.
__device__ __forceinline__ char* small_place(const PeerParams& p, uint32_t to, uint32_t from, uint32_t set) {
    return reinterpret_cast<char*>(p.mail[to] + 1) + (static_cast<uint64_t>(set) * p.size + from) * p.small_bytes;
}

__device__ __forceinline__ void store_relaxed(uint32_t* to, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// Tells every peer that this block came to `call` and what it wrote before, and waits until theirs have.
__device__ __forceinline__ void join(const PeerParams& p, uint32_t call, Operation operation) {
    // Every thread's own writes come before the flag that one of them sets behind the barrier.
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x < p.size && threadIdx.x != p.rank) {
        store_relaxed(&p.mail[threadIdx.x]->joined[blockIdx.x][p.rank], call);
        wait_for(p, &p.mail[p.rank]->joined[blockIdx.x][threadIdx.x], call, operation, threadIdx.x);
    }
    __syncthreads();
}

// Every block's count moves with every call, whether the call has that many blocks or not.
__device__ __forceinline__ void count_call(const PeerParams& p, uint32_t call) {
    __syncthreads();
    if (threadIdx.x == 0) p.counts->calls[blockIdx.x] = call;
    if (blockIdx.x == 0) {
        for (uint32_t b = gridDim.x + threadIdx.x; b < kMaxBlocks; b += blockDim.x) p.counts->calls[b] = call;
    }
}
