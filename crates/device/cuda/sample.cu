// From rows of logits to tokens, as cpu/sampling defines it: edits, penalties, temperature, cuts, one draw.
//
// A block takes a row and passes over it a few times; nothing is sorted. The order in which tokens are likeliest is
// total (larger logit, of equals the lower id), so a cut is a threshold and how many of those equal to it are kept. It
// is found digit by digit of the logits' bits, from histograms of counts or of weights. Weights are added up in fixed
// point: sums do not depend on the order of additions, so neither does the token.
//
// Measured on H200 over 151,936 logits, copies to and from the device included: greedy 26 us, temperature 68, top-p
// 182; 64 rows take 31, 109 and 197, for each has a multiprocessor of its own.
#include "common/element.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"

// One row's parameters; the Rust twin is `sampler::Row`.
struct SampleRow {
    double uniform; // in [0, 1): where the draw falls
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k;
    int32_t logprobs; // how many likeliest tokens to return; -1: nothing
    uint32_t first_edit, num_edits, first_seen, num_seen;
};
static_assert(sizeof(SampleRow) == 56);

struct SampleEdit {
    uint32_t token;
    float added;
};

struct SampleSeen {
    uint32_t token, output_count;
};

struct SampleResult {
    uint32_t token, finite;
    float logit;          // the token's, before edits and penalties
    float largest;        // of the row before edits and penalties
    unsigned long long mass; // sum of exp(logit - largest), in fixed point
};
static_assert(sizeof(SampleResult) == 24);

struct SampleTop {
    uint32_t token;
    float logit;
};

struct SampleParams {
    float* logits; // [rows, stride]
    const SampleRow* rows;
    const SampleEdit* edits;
    const SampleSeen* seen;
    float* originals;      // [edits and seen of all rows]
    SampleResult* results; // [rows]
    SampleTop* tops;       // [rows, max_top]
    int32_t* tokens;       // [rows]: the chosen ids, for a step to come
    uint32_t count, stride, vocab, max_top, num_edits, padding;
};
static_assert(sizeof(SampleParams) == 88);

namespace {

using u64 = unsigned long long;

constexpr uint32_t kThreads = 1024;
constexpr uint32_t kWarps = kThreads / 32;
constexpr uint32_t kBins = 2048;
constexpr uint32_t kMaxTop = 128;
// The likeliest token's weight.
constexpr float kOne = 1099511627776.0f; // 2^40: 2^18 tokens of this weight still fit 64 bits

// Weights are exp((x - largest) / temperature), the likeliest token's being 1.
struct Scale {
    float largest, temperature;
    float exponent; // log2(e) / temperature
};

__device__ __forceinline__ Scale make_scale(float largest, float temperature) {
    return {largest, temperature, 1.44269504f / temperature};
}

// What a cut keeps: logits above the threshold, and the first `equals` of those equal to it.
struct Cut {
    float threshold;
    uint32_t equals;
};

struct Shared {
    // Sums of 64 bits in two words, for shared memory adds words.
    uint32_t low[kBins], high[kBins];
    u64 warp_sums[kWarps];
    float scratch[32];
    uint32_t warp_counts[kWarps];
    u64 before;
    uint32_t digit;
    float peak;
    uint32_t token, finite;
    SampleTop top[kMaxTop];
    uint32_t num_top;
    float original;
};

__device__ __forceinline__ float weigh(float x, Scale scale) { return exp2_fast((x - scale.largest) * scale.exponent); }

__device__ __forceinline__ u64 fixed(float weight) { return __float2ull_rn(weight * kOne); }

// Integers in the order of the floats; the two zeros are equal.
__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(uint32_t key) {
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ u64 warp_sum_u64(u64 x) {
#pragma unroll
    for (int lane = 16; 0 < lane; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// The sum over this lane and those below it.
template <typename Number>
__device__ __forceinline__ Number warp_scan(Number x) {
#pragma unroll
    for (int lane = 1; lane < 32; lane *= 2) {
        const Number other = __shfl_up_sync(0xffffffffu, x, lane);
        if (lane <= static_cast<int>(threadIdx.x % 32)) x += other;
    }
    return x;
}

__device__ u64 block_sum_u64(u64 x, Shared& s) {
    x = warp_sum_u64(x);
    if (threadIdx.x % 32 == 0) s.warp_sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum_u64(s.warp_sums[threadIdx.x % 32]);
    __syncthreads();
    return x;
}

// Calls `visit(i, x[i])` for all logits of a row, a thread's in ascending order, with several loads under way.
template <typename Visit>
__device__ __forceinline__ void for_each(const float* x, uint32_t vocab, Visit visit) {
    constexpr uint32_t kAtOnce = 4;
    const uint32_t fours = reinterpret_cast<uintptr_t>(x) % 16 == 0 ? vocab / 4 : 0;
    for (uint32_t first = threadIdx.x; first < fours; first += kAtOnce * kThreads) {
        float4 loaded[kAtOnce];
#pragma unroll
        for (uint32_t j = 0; j < kAtOnce; j++) {
            const uint32_t i = first + j * kThreads;
            if (i < fours) loaded[j] = reinterpret_cast<const float4*>(x)[i];
        }
#pragma unroll
        for (uint32_t j = 0; j < kAtOnce; j++) {
            const uint32_t i = first + j * kThreads;
            if (fours <= i) break;
            visit(4 * i, loaded[j].x);
            visit(4 * i + 1, loaded[j].y);
            visit(4 * i + 2, loaded[j].z);
            visit(4 * i + 3, loaded[j].w);
        }
    }
    for (uint32_t i = 4 * fours + threadIdx.x; i < vocab; i += kThreads) visit(i, x[i]);
}

// The largest logit, the first token that has it, and whether all are finite: into `s`.
__device__ void find_peak(const float* x, uint32_t vocab, Shared& s) {
    float most = -INFINITY;
    uint32_t first = 0;
    bool finite = true;
    for_each(x, vocab, [&](uint32_t i, float value) {
        finite = finite && isfinite(value);
        if (most < value) {
            most = value;
            first = i;
        }
    });
    const bool all_finite = __syncthreads_and(finite) != 0;
    const float peak = block_max(most, s.scratch);
    if (threadIdx.x == 0) {
        s.token = vocab - 1;
        s.peak = peak;
        s.finite = all_finite ? 1 : 0;
    }
    __syncthreads();
    if (most == peak) atomicMin(&s.token, first);
    __syncthreads();
}

// What lies within some distances of the row's largest logit, of what a cut keeps.
struct Reaches {
    u64 mass[4], count[4]; // the last: everything
};

// Distances in units of the temperature. Most cuts lie within the first, so few logits have to be looked at closely.
__device__ constexpr float kReaches[3] = {4.0f, 8.0f, 16.0f};

__device__ Reaches find_reaches(const float* x, uint32_t vocab, Cut within, Scale scale, Shared& s) {
    u64 mass[4] = {};
    uint32_t count[4] = {};
    for_each(x, vocab, [&](uint32_t, float value) {
        if (!(within.threshold < value)) return;
        const u64 weight = fixed(weigh(value, scale));
        mass[3] += weight;
        count[3] += 1;
        // Few logits are so near to the largest.
        if (value < scale.largest - kReaches[2] * scale.temperature) return;
#pragma unroll
        for (int r = 0; r < 3; r++) {
            const bool inside = scale.largest - kReaches[r] * scale.temperature <= value;
            mass[r] += inside ? weight : 0;
            count[r] += inside ? 1 : 0;
        }
    });
    Reaches reaches;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        reaches.mass[r] = block_sum_u64(mass[r], s);
        reaches.count[r] = block_sum_u64(count[r], s);
    }
    return reaches;
}

__device__ __forceinline__ u64 bin(const Shared& s, uint32_t i) { return static_cast<u64>(s.high[i]) << 32 | s.low[i]; }

__device__ __forceinline__ void add_to_bin(Shared& s, uint32_t i, u64 amount) {
    const uint32_t low = static_cast<uint32_t>(amount);
    const uint32_t carry = atomicAdd(&s.low[i], low) > ~low ? 1 : 0;
    const uint32_t high = static_cast<uint32_t>(amount >> 32) + carry;
    if (high != 0) atomicAdd(&s.high[i], high);
}

// Finds the highest bin at which the sum from the top reaches `target`: into `s.digit`, with what lies above it in
// `s.before`. Should all bins fall short, it is the lowest that holds anything.
__device__ void find_bin(u64 target, Shared& s) {
    // Thread 0 has the two highest bins.
    const uint32_t high = kBins - 1 - 2 * threadIdx.x, low = high - 1;
    const u64 mine = bin(s, high) + bin(s, low);
    const u64 running = warp_scan(mine);
    if (threadIdx.x % 32 == 31) s.warp_sums[threadIdx.x / 32] = running;
    __syncthreads();
    u64 above = running - mine, total = 0;
    for (uint32_t w = 0; w < kWarps; w++) {
        if (w < threadIdx.x / 32) above += s.warp_sums[w];
        total += s.warp_sums[w];
    }
    target = target < 1 ? 1 : (total < target ? total : target);
    if (above < target && target <= above + mine) {
        const bool upper = target <= above + bin(s, high);
        s.digit = upper ? high : low;
        s.before = upper ? above : above + bin(s, high);
    }
    __syncthreads();
}

// The cut within `within` at which the sum from the likeliest reaches `target`: of weights, or (not `kMass`) of ones.
// `sums` are those of `Reaches`: logits farther away than what reaches the target are not looked at.
template <bool kMass>
__device__ Cut select(const float* x, uint32_t vocab, Cut within, Scale scale, u64 target, const u64 (&sums)[4],
                      Shared& s) {
    float least = -INFINITY;
#pragma unroll
    for (int r = 2; 0 <= r; r--) {
        if (target <= sums[r]) least = scale.largest - kReaches[r] * scale.temperature;
    }
    constexpr uint32_t kShifts[3] = {21, 10, 0};
    uint32_t prefix = 0, prefix_shift = 32;
    u64 before = 0;
    for (uint32_t pass = 0; pass < 3; pass++) {
        const uint32_t shift = kShifts[pass], mask = (1u << (prefix_shift - shift)) - 1;
        for (uint32_t i = threadIdx.x; i < kBins; i += kThreads) s.low[i] = s.high[i] = 0;
        __syncthreads();
        for_each(x, vocab, [&](uint32_t, float value) {
            if (!(within.threshold < value) || value < least) return;
            const uint32_t key = key_of(value);
            if (prefix_shift < 32 && key >> prefix_shift != prefix) return;
            const u64 amount = kMass ? fixed(weigh(value, scale)) : 1;
            if (amount != 0) add_to_bin(s, (key >> shift) & mask, amount);
        });
        const uint32_t key = key_of(within.threshold);
        const bool near = least <= within.threshold;
        if (threadIdx.x == 0 && 0 < within.equals && near && (prefix_shift == 32 || key >> prefix_shift == prefix)) {
            const u64 each = kMass ? fixed(weigh(within.threshold, scale)) : 1;
            add_to_bin(s, (key >> shift) & mask, each * within.equals);
        }
        __syncthreads();
        find_bin(before < target ? target - before : 1, s);
        prefix = prefix_shift == 32 ? s.digit : (prefix << (prefix_shift - shift)) | s.digit;
        before += s.before;
        prefix_shift = shift;
        __syncthreads();
    }
    const float threshold = value_of(prefix);
    const u64 each = kMass ? fixed(weigh(threshold, scale)) : 1;
    const u64 missing = before < target ? target - before : 1;
    const u64 equals = each == 0 ? 1 : (missing + each - 1) / each;
    const u64 most = threshold == within.threshold ? within.equals : vocab;
    return Cut{threshold, static_cast<uint32_t>(equals < most ? equals : most)};
}

// A contiguous part of a row: what is kept of those before it weighs `start`; `left` equals may still be kept.
struct Part {
    uint32_t begin, end;
    u64 start;
    uint32_t left;
};

// The row cut into a part for each warp.
__device__ __forceinline__ uint32_t part_size(uint32_t size) { return (size + kThreads - 1) / kThreads * 32; }

// Weighs the warps' parts of `whole`: into `s.warp_sums` (without equals) and `s.warp_counts` (equals).
__device__ void weigh_parts(const float* x, const Part& whole, Cut cut, Scale scale, float min_p, Shared& s) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, size = part_size(whole.end - whole.begin);
    const uint32_t begin = whole.begin + warp * size, end = min(whole.end, begin + size);
    u64 above = 0;
    uint32_t equals = 0;
#pragma unroll 8
    for (uint32_t i = begin + lane; i < end; i += 32) {
        const float value = x[i], weight = weigh(value, scale);
        if (cut.threshold < value && !(weight < min_p)) above += fixed(weight);
        equals += value == cut.threshold ? 1 : 0;
    }
    above = warp_sum_u64(above);
    equals = __reduce_add_sync(0xffffffffu, equals);
    if (lane == 0) {
        s.warp_sums[warp] = above;
        s.warp_counts[warp] = equals;
    }
    __syncthreads();
}

// What all of `whole` weighs, equals weighing `each`.
__device__ u64 total_of(const Part& whole, u64 each, const Shared& s) {
    u64 total = 0;
    uint32_t left = whole.left;
    for (uint32_t w = 0; w < kWarps; w++) {
        const uint32_t kept = min(left, s.warp_counts[w]);
        total += s.warp_sums[w] + kept * each;
        left -= kept;
    }
    return total;
}

// The warp's part of `whole` that `target` falls into.
__device__ Part find_part(const Part& whole, u64 target, u64 each, const Shared& s) {
    const uint32_t size = part_size(whole.end - whole.begin);
    Part part = {whole.begin, min(whole.end, whole.begin + size), whole.start, whole.left};
    for (uint32_t w = 0; w < kWarps; w++) {
        const uint32_t kept = min(part.left, s.warp_counts[w]);
        const u64 end = part.start + s.warp_sums[w] + kept * each;
        part.begin = min(whole.end, whole.begin + w * size);
        part.end = min(whole.end, part.begin + size);
        if (target < end) break;
        part.start = end;
        part.left -= kept;
    }
    return part;
}

// The token in `part` at which the running sum passes `target`: into `s.token`. One warp, eight neighbours a lane.
__device__ void walk(const float* x, const Part& part, u64 target, Cut cut, Scale scale, float min_p, Shared& s) {
    const uint32_t lane = threadIdx.x % 32;
    u64 running = part.start;
    uint32_t left = part.left;
    for (uint32_t first = part.begin; first < part.end; first += 256) {
        u64 weights[8], mine = 0;
        bool equal[8];
        uint32_t equals = 0;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            const uint32_t i = first + lane * 8 + j;
            const float value = i < part.end ? x[i] : -INFINITY, weight = weigh(value, scale);
            equal[j] = i < part.end && value == cut.threshold;
            equals += equal[j] ? 1 : 0;
            const bool kept = i < part.end && (equal[j] || cut.threshold < value) && !(weight < min_p);
            weights[j] = kept ? fixed(weight) : 0;
        }
        uint32_t rank = warp_scan(equals) - equals;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            if (equal[j] && left <= rank++) weights[j] = 0;
            mine += weights[j];
        }
        u64 sum = running + warp_scan(mine) - mine;
        const bool passes = sum <= target && target < sum + mine;
        if (passes) {
            uint32_t token = first + lane * 8;
            bool found = false;
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) {
                sum += weights[j];
                if (!found && target < sum) {
                    token += j;
                    found = true;
                }
            }
            s.token = token;
        }
        if (__any_sync(0xffffffffu, passes)) break;
        running += warp_sum_u64(mine);
        left -= min(left, __reduce_add_sync(0xffffffffu, equals));
    }
}

// Draws from what the cut keeps, in the order of ids: into `s.token`.
__device__ void draw(const float* x, uint32_t vocab, Cut cut, Scale scale, const SampleRow& row, Shared& s) {
    const float equal_weight = weigh(cut.threshold, scale);
    const u64 each = equal_weight < row.min_p ? 0 : fixed(equal_weight);
    const Part whole = {0, vocab, 0, cut.equals};
    weigh_parts(x, whole, cut, scale, row.min_p, s);
    const u64 total = total_of(whole, each, s);
    u64 target = static_cast<u64>(static_cast<double>(total) * row.uniform);
    target = target < total ? target : total - 1;
    const Part part = find_part(whole, target, each, s);
    __syncthreads();
    weigh_parts(x, part, cut, scale, row.min_p, s);
    const Part inner = find_part(part, target, each, s);
    if (threadIdx.x < 32) walk(x, inner, target, cut, scale, row.min_p, s);
    __syncthreads();
}

// The likeliest tokens with their logits, likeliest first, to `to`.
__device__ void find_top(const float* x, uint32_t vocab, uint32_t count, const Reaches& reaches, Scale scale,
                         SampleTop* to, Shared& s) {
    count = min(min(count, vocab), kMaxTop);
    if (count == 0) return;
    const Cut everything = {-INFINITY, 0};
    const Cut cut = select<false>(x, vocab, everything, scale, count, reaches.count, s);
    if (threadIdx.x == 0) s.num_top = 0;
    __syncthreads();
    for_each(x, vocab, [&](uint32_t i, float value) {
        if (cut.threshold < value) s.top[atomicAdd(&s.num_top, 1u)] = SampleTop{i, value};
    });
    __syncthreads();
    // Of those equal to the threshold, the first ones: each warp has a contiguous part, as in `draw`.
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t size = part_size(vocab), begin = warp * size, end = min(vocab, begin + size);
    uint32_t equals = 0;
    for (uint32_t i = begin + lane; i < end; i += 32) equals += x[i] == cut.threshold ? 1 : 0;
    equals = __reduce_add_sync(0xffffffffu, equals);
    if (lane == 0) s.warp_counts[warp] = equals;
    __syncthreads();
    uint32_t found = 0;
    for (uint32_t w = 0; w < warp; w++) found += s.warp_counts[w];
    for (uint32_t first = begin; 0 < equals && found < cut.equals && first < end; first += 32) {
        const uint32_t i = first + lane;
        const bool equal = i < end && x[i] == cut.threshold;
        const uint32_t ballot = __ballot_sync(0xffffffffu, equal);
        const uint32_t rank = found + __popc(ballot & ((1u << lane) - 1));
        if (equal && rank < cut.equals) s.top[count - cut.equals + rank] = SampleTop{i, x[i]};
        found += __popc(ballot);
    }
    __syncthreads();
    if (threadIdx.x < count) {
        const SampleTop mine = s.top[threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t i = 0; i < count; i++) {
            const SampleTop other = s.top[i];
            rank += mine.logit < other.logit || (mine.logit == other.logit && other.token < mine.token) ? 1 : 0;
        }
        to[rank] = mine;
    }
    __syncthreads();
}

// Applies edits, then penalties, keeping what the logits were before.
__device__ void edit(float* x, const SampleParams& p, const SampleRow& row) {
    float* before_edits = p.originals + row.first_edit;
    float* before_seen = p.originals + p.num_edits + row.first_seen;
    for (uint32_t i = threadIdx.x; i < row.num_edits; i += kThreads) {
        const uint32_t token = p.edits[row.first_edit + i].token;
        before_edits[i] = token < p.vocab ? x[token] : 0.0f;
    }
    for (uint32_t i = threadIdx.x; i < row.num_seen; i += kThreads) {
        const uint32_t token = p.seen[row.first_seen + i].token;
        before_seen[i] = token < p.vocab ? x[token] : 0.0f;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.num_edits; i += kThreads) {
        const SampleEdit change = p.edits[row.first_edit + i];
        if (change.token < p.vocab) atomicAdd(x + change.token, change.added);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.num_seen; i += kThreads) {
        const SampleSeen seen = p.seen[row.first_seen + i];
        if (p.vocab <= seen.token) continue;
        float value = x[seen.token];
        value = 0.0f < value ? value / row.repetition_penalty : value * row.repetition_penalty;
        if (0 < seen.output_count) {
            value -= row.presence_penalty + row.frequency_penalty * static_cast<float>(seen.output_count);
        }
        x[seen.token] = value;
    }
    __syncthreads();
}

// What the chosen token's logit was before the row was edited.
__device__ void find_original(const float* x, const SampleParams& p, const SampleRow& row, Shared& s) {
    if (threadIdx.x == 0) s.original = x[s.token];
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.num_edits; i += kThreads) {
        if (p.edits[row.first_edit + i].token == s.token) s.original = p.originals[row.first_edit + i];
    }
    for (uint32_t i = threadIdx.x; i < row.num_seen; i += kThreads) {
        if (p.seen[row.first_seen + i].token == s.token) s.original = p.originals[p.num_edits + row.first_seen + i];
    }
    __syncthreads();
}

__global__ void __launch_bounds__(kThreads) sample(const SampleParams p) {
    __shared__ Shared s;
    start_next();
    wait_for_previous();
    const SampleRow row = p.rows[blockIdx.x];
    float* x = p.logits + static_cast<size_t>(blockIdx.x) * p.stride;
    SampleResult result = {};
    find_peak(x, p.vocab, s);
    bool possible = s.finite != 0;
    if (possible && 0 <= row.logprobs) {
        const Scale scale = make_scale(s.peak, 1.0f);
        const Reaches reaches = find_reaches(x, p.vocab, Cut{-INFINITY, 0}, scale, s);
        result.largest = s.peak;
        result.mass = reaches.mass[3];
        SampleTop* top = p.tops + static_cast<size_t>(blockIdx.x) * p.max_top;
        find_top(x, p.vocab, static_cast<uint32_t>(row.logprobs), reaches, scale, top, s);
    }
    if (possible && 0 < row.num_edits + row.num_seen) {
        edit(x, p, row);
        find_peak(x, p.vocab, s);
        possible = isfinite(s.peak);
    }
    if (possible && row.temperature != 0.0f) {
        const Scale scale = make_scale(s.peak, row.temperature);
        Cut cut = {-INFINITY, 0};
        if (0 < row.top_k && row.top_k < p.vocab) {
            const Reaches reaches = find_reaches(x, p.vocab, cut, scale, s);
            cut = select<false>(x, p.vocab, cut, scale, row.top_k, reaches.count, s);
        }
        if (row.top_p < 1.0f) {
            const Reaches reaches = find_reaches(x, p.vocab, cut, scale, s);
            const u64 equals = cut.equals == 0 ? 0 : cut.equals * fixed(weigh(cut.threshold, scale));
            const double total = static_cast<double>(reaches.mass[3] + equals);
            const u64 target = static_cast<u64>(ceil(total * static_cast<double>(row.top_p)));
            cut = select<true>(x, p.vocab, cut, scale, target, reaches.mass, s);
        }
        draw(x, p.vocab, cut, scale, row, s);
    }
    if (possible && 0 <= row.logprobs) {
        find_original(x, p, row, s);
        result.logit = s.original;
    }
    if (threadIdx.x == 0) {
        result.token = possible ? s.token : 0;
        result.finite = possible ? 1 : 0;
        p.results[blockIdx.x] = result;
        p.tokens[blockIdx.x] = static_cast<int32_t>(result.token);
    }
}

} // namespace

extern "C" cudaError_t launch_sample(SampleParams params, Launch where) {
    return launch(sample, params.count, kThreads, 0, where, params);
}
