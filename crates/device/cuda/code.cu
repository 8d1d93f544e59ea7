// Tells what the code that a device runs was compiled with: all units are compiled alike, so it tells of all of them.
//
// Neither the card nor the list of what was built decides that alone: the driver chooses, and may be told to compile PTX.
#include "common/launch.cuh"

struct CodeFacts {
    // `__CUDA_ARCH__`, for example 900.
    uint32_t architecture;
    // Not 0: there is wgmma.
    uint32_t warpgroups;
};
static_assert(sizeof(CodeFacts) == 8);

namespace {

__global__ void tell(CodeFacts* facts) {
#if defined(__CUDA_ARCH__)
    facts->architecture = __CUDA_ARCH__;
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    facts->warpgroups = 1;
#else
    facts->warpgroups = 0;
#endif
}

} // namespace

// `facts` is memory that the host and the stream's device reach. The result is the launch's own: an error that the runtime
// remembers of an earlier call, such as an allocation for which there was no room, says nothing of the code.
extern "C" cudaError_t launch_tell_code(CodeFacts* facts, cudaStream_t stream) {
    return launch(tell, 1, 1, 0, Launch{stream, 0, 0}, facts);
}
