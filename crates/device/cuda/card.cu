// What decides how fast a card is, as its driver knows it: read once, when a layout is chosen.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

struct CardNumbers {
    char name[128];
    uint8_t uuid[16];
    uint64_t total_bytes;
    uint32_t capability_major, capability_minor, multiprocessors;
    uint32_t clock_khz, memory_clock_khz, memory_bus_bits;
};
static_assert(sizeof(CardNumbers) == 176);

extern "C" cudaError_t card_numbers(int ordinal, CardNumbers* numbers) {
    cudaDeviceProp properties;
    cudaError_t status = cudaGetDeviceProperties(&properties, ordinal);
    if (status != cudaSuccess) return status;
    std::memset(numbers, 0, sizeof(*numbers));
    std::strncpy(numbers->name, properties.name, sizeof(numbers->name) - 1);
    std::memcpy(numbers->uuid, properties.uuid.bytes, sizeof(numbers->uuid));
    numbers->total_bytes = properties.totalGlobalMem;
    numbers->capability_major = static_cast<uint32_t>(properties.major);
    numbers->capability_minor = static_cast<uint32_t>(properties.minor);
    numbers->multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
    const struct {
        uint32_t* value;
        cudaDeviceAttr attribute;
    } clocks[] = {{&numbers->clock_khz, cudaDevAttrClockRate},
                  {&numbers->memory_clock_khz, cudaDevAttrMemoryClockRate},
                  {&numbers->memory_bus_bits, cudaDevAttrGlobalMemoryBusWidth}};
    for (const auto& clock : clocks) {
        int value = 0;
        status = cudaDeviceGetAttribute(&value, clock.attribute, ordinal);
        if (status != cudaSuccess) return status;
        *clock.value = static_cast<uint32_t>(value);
    }
    return cudaSuccess;
}
