// What a device is, as facts for people and for sizing.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

struct DeviceFacts {
    char name[128];
    uint64_t total_bytes;
    uint32_t capability_major, capability_minor, multiprocessors, l2_bytes;
    uint32_t driver_version, runtime_version;
};
static_assert(sizeof(DeviceFacts) == 160);

extern "C" cudaError_t device_facts(int ordinal, DeviceFacts* facts) {
    cudaDeviceProp properties;
    cudaError_t status = cudaGetDeviceProperties(&properties, ordinal);
    if (status != cudaSuccess) return status;
    std::memset(facts, 0, sizeof(*facts));
    std::strncpy(facts->name, properties.name, sizeof(facts->name) - 1);
    facts->total_bytes = properties.totalGlobalMem;
    facts->capability_major = static_cast<uint32_t>(properties.major);
    facts->capability_minor = static_cast<uint32_t>(properties.minor);
    facts->multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
    facts->l2_bytes = static_cast<uint32_t>(properties.l2CacheSize);
    int version = 0;
    status = cudaDriverGetVersion(&version);
    if (status != cudaSuccess) return status;
    facts->driver_version = static_cast<uint32_t>(version);
    status = cudaRuntimeGetVersion(&version);
    facts->runtime_version = static_cast<uint32_t>(version);
    return status;
}
