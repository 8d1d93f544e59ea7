// out[i] = x[rows[i]]: a copy of whole rows, whatever is in them.
#include "common/launch.cuh"

struct GatherRowsParams {
    void* out;           // [count, row_bytes]
    const void* x;       // rows `x_stride_bytes` apart
    const int32_t* rows; // [count]
    uint32_t count, row_bytes, out_stride_bytes, x_stride_bytes;
};
static_assert(sizeof(GatherRowsParams) == 40);

namespace {

// `Word` is what the row's bytes and both strides are multiples of: 16 bytes but for odd widths.
template <typename Word>
__global__ void gather_rows(const GatherRowsParams p) {
    start_next();
    wait_for_previous();
    const size_t to = blockIdx.x, from = static_cast<size_t>(p.rows[to]);
    Word* out = reinterpret_cast<Word*>(static_cast<char*>(p.out) + to * p.out_stride_bytes);
    const Word* x = reinterpret_cast<const Word*>(static_cast<const char*>(p.x) + from * p.x_stride_bytes);
    for (uint32_t i = threadIdx.x; i < p.row_bytes / sizeof(Word); i += blockDim.x) out[i] = x[i];
}

} // namespace

extern "C" cudaError_t launch_gather_rows(GatherRowsParams params, Launch where) {
    const bool vectors = (params.row_bytes | params.out_stride_bytes | params.x_stride_bytes) % 16 == 0;
    return launch(vectors ? gather_rows<uint4> : gather_rows<uint16_t>, params.count, 256, 0, where, params);
}
