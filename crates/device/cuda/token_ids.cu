// out[t] = ids[t], or what was sampled in the step before and never came to the host: sampled[k] where ids[t] is -(k + 1).
#include "common/launch.cuh"

struct TokenIdsParams {
    int32_t* out;           // [tokens]
    const int32_t* ids;     // [tokens]
    const int32_t* sampled; // as many as ids refer to
    uint32_t tokens, padding;
};
static_assert(sizeof(TokenIdsParams) == 32);

namespace {

constexpr uint32_t kThreads = 256;

__global__ void __launch_bounds__(kThreads) token_ids(const TokenIdsParams p) {
    start_next();
    wait_for_previous();
    const uint32_t token = blockIdx.x * kThreads + threadIdx.x;
    if (p.tokens <= token) return;
    const int32_t id = p.ids[token];
    // The bits of -(k + 1) are those of k, each turned over.
    p.out[token] = 0 <= id ? id : p.sampled[~id];
}

} // namespace

extern "C" cudaError_t launch_token_ids(TokenIdsParams params, Launch where) {
    return launch(token_ids, ceil_div(params.tokens, kThreads), kThreads, 0, where, params);
}
