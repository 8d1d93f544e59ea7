// out[i] = in[i] in another element type: weights as they are loaded, biases before cuBLASLt takes them.
#include "common/element.cuh"
#include "common/launch.cuh"

struct ConvertParams {
    void* out;
    const void* in;
    uint64_t count;
};
static_assert(sizeof(ConvertParams) == 24);

// What `in` holds; the Rust twin is `kernels::Source`.
enum class Source : uint32_t { F32 = 0, F16 = 1, BF16 = 2 };

namespace {

template <typename To, typename From>
__global__ void convert(const ConvertParams p) {
    start_next();
    wait_for_previous();
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += step) {
        static_cast<To*>(p.out)[i] = from_float<To>(to_float(static_cast<const From*>(p.in)[i]));
    }
}

template <typename To>
cudaError_t pick(const ConvertParams& p, Source source, const Launch& where) {
    const uint64_t blocks = (p.count + 1023) / 1024;
    const dim3 grid(static_cast<uint32_t>(blocks < 16384 ? blocks : 16384));
    switch (source) {
    case Source::F32: return launch(convert<To, float>, grid, 256, 0, where, p);
    case Source::F16: return launch(convert<To, f16>, grid, 256, 0, where, p);
    case Source::BF16: return launch(convert<To, bf16>, grid, 256, 0, where, p);
    }
    return cudaErrorInvalidValue;
}

} // namespace

extern "C" cudaError_t launch_convert(ConvertParams params, Source source, Element element, Launch where) {
    switch (element) {
    case Element::BF16: return pick<bf16>(params, source, where);
    case Element::F16: return pick<f16>(params, source, where);
    }
    return cudaErrorInvalidValue;
}
