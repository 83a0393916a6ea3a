// A driver's library (libnvidia-ml.so.1) with FAKE_GPUS GPUs, for machines without one. The last has MIG switched on, and
// FAKE_LOST is the number of one that has fallen off the bus. FAKE_INIT is what its beginning returns.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
enum { ok = 0, unsupported = 3, not_found = 6, lost = 15 };

long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

long index_of(const void *device) { return reinterpret_cast<intptr_t>(device) % 100 - 1; }
bool is_part(const void *device) { return reinterpret_cast<intptr_t>(device) > 100; }

struct Pci {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char text[32];
};
struct Memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
struct Utilization {
    unsigned gpu, memory;
};
}  // namespace

extern "C" {
int nvmlInitWithFlags(unsigned) { return int(number("FAKE_INIT", ok)); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = unsigned(number("FAKE_GPUS", 0));
    return ok;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = reinterpret_cast<void *>(intptr_t(index) + 1);
    return index == number("FAKE_LOST", -1) ? lost : ok;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    const long last = number("FAKE_GPUS", 0);
    *device = reinterpret_cast<void *>(intptr_t(100 + last));
    return strcmp(uuid, "MIG-part") ? not_found : ok;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *part, void **device) {
    *device = reinterpret_cast<void *>(intptr_t(index_of(part) + 1));
    return ok;
}

int nvmlDeviceGetPciInfo_v3(void *device, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    pci->bus = unsigned(0x1a + 16 * index_of(device));
    return ok;
}

int nvmlDeviceGetName(void *, char *name, unsigned length) {
    snprintf(name, length, "NVIDIA H100");
    return ok;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%ldf1-x", index_of(device));
    return ok;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    memory->total = 80ull << 30;
    memory->used = (unsigned long long)(index_of(device) + 1) << 30;
    return ok;
}

int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) {
    rates->gpu = unsigned(10 * (index_of(device) + 1));
    return is_part(device) ? unsupported : ok;
}
}
