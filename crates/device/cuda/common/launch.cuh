// Launches that may overlap the tail of the kernel before (programmatic dependent launch, sm_90 and up).
//
// The rule that makes it safe: every kernel calls `wait_for_previous` before it touches anything another kernel
// reads or writes. Only constant weights may be read before it. Code of less than sm_90 does not wait, whatever GPU it
// runs on, and must not be launched so: a library's kernel before it lets the next one start early, too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Where and how to launch; the Rust twin is `kernels::Launch`.
struct Launch {
    cudaStream_t stream;
    // Not 0: a kernel may start while the one before drains. Only where code of sm_90 or more runs; see code.cu.
    uint32_t overlaps;
    // Streaming multiprocessors, for grids that are sized to the device.
    uint32_t multiprocessors;
};
static_assert(sizeof(Launch) == 16);

// Shared memory that a block may have on every GPU from sm_80 on, what it declares and what it is launched with together:
// 99 KB on sm_86, sm_89 and sm_120, 163 on sm_80, 227 on sm_90 and sm_100.
constexpr size_t kMostShared = 99 * 1024;
// What kernels that are launched with some may declare beside it.
constexpr size_t kMostDeclared = 1024;

// Returns when every kernel before this one in the stream is done and its writes are visible.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start as soon as there is room for them.
__device__ __forceinline__ void start_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <typename Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, uint32_t threads, size_t shared_bytes, const Launch& where,
                   const Params& params) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = where.stream;
    config.attrs = &overlap;
    config.numAttrs = where.overlaps != 0 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, params);
}

constexpr uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
