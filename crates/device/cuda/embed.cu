// out[t] = table[ids[t] - first_id], or zeros when that row is another rank's: a copy of rows, bound by memory.
#include "common/element.cuh"
#include "common/launch.cuh"

struct EmbedParams {
    void* out;          // [tokens, width]
    const int32_t* ids; // [tokens]
    const void* table;  // [rows, width]
    uint32_t tokens, rows, width, out_stride, ids_stride;
    int32_t first_id;
};
static_assert(sizeof(EmbedParams) == 48);

namespace {

template <typename T>
__global__ void embed(const EmbedParams p) {
    start_next();
    wait_for_previous();
    const uint32_t token = blockIdx.x;
    const int64_t row = static_cast<int64_t>(p.ids[static_cast<size_t>(token) * p.ids_stride]) - p.first_id;
    const bool here = 0 <= row && row < p.rows;
    T* out = static_cast<T*>(p.out) + static_cast<size_t>(token) * p.out_stride;
    const T* from = static_cast<const T*>(p.table) + (here ? static_cast<size_t>(row) * p.width : 0);
    if (p.width % 8 == 0 && p.out_stride % 8 == 0) {
        for (uint32_t i = threadIdx.x * 8; i < p.width; i += blockDim.x * 8) {
            const uint4 value = here ? *reinterpret_cast<const uint4*>(from + i) : make_uint4(0, 0, 0, 0);
            *reinterpret_cast<uint4*>(out + i) = value;
        }
    } else {
        for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) out[i] = here ? from[i] : from_float<T>(0.0f);
    }
}

} // namespace

extern "C" cudaError_t launch_embed(EmbedParams params, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return launch(embed<bf16>, params.tokens, 128, 0, where, params);
    case Element::F16: return launch(embed<f16>, params.tokens, 128, 0, where, params);
    }
    return cudaErrorInvalidValue;
}
