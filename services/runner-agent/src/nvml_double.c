/* NVML as its documentation has it, with what a machine of three GPUs told by hand: no GPU was at hand. The file LOST
   takes the first one away. Symbols, structs and codes are those of nvml.h. */
#include <string.h>
#include <unistd.h>

typedef int ret;
enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };
typedef struct { const char *uuid, *name; unsigned long long total, reserved, used; int mig; } *device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;

#define MIB(n) ((n) * 1048576ULL)
static struct { const char *uuid, *name; unsigned long long total, reserved, used; int mig; } gpus[] = {
  {"GPU-whole", "NVIDIA H100 80GB HBM3", MIB(81559), MIB(551), MIB(31000), 0},
  {"GPU-divided", "NVIDIA A100-SXM4-40GB", MIB(40960), MIB(614), MIB(5000), 1},
  {"GPU-old", "Tesla T4", MIB(15360), MIB(455), MIB(0), -1},
}, instances[] = {
  {"MIG-first", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", MIB(4864), 0, MIB(13), 2},
  {"MIG-second", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", MIB(19968), 0, MIB(4987), 2},
};

static int lost(device d) { return (void *)d == &gpus[0] && access(LOST, F_OK) == 0; }
static int is(device d, const char *uuid) { return strcmp(d->uuid, uuid) == 0; }
ret nvmlInit_v2(void) { return SUCCESS; }
ret nvmlShutdown(void) { return SUCCESS; }
ret nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return SUCCESS; }
ret nvmlDeviceGetHandleByIndex_v2(unsigned i, device *d) {
  *d = (device)&gpus[i];
  return lost(*d) ? GPU_IS_LOST : SUCCESS;
}
ret nvmlDeviceGetMigMode(device d, unsigned *current, unsigned *pending) {
  *current = *pending = d->mig == 1;
  return d->mig < 0 ? NOT_SUPPORTED : SUCCESS;
}
ret nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *n) { *n = 7; return SUCCESS; }
/* Of its seven places two are taken. */
ret nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned i, device *instance) {
  if (i != 1 && i != 4) return NOT_FOUND;
  *instance = (device)&instances[i / 4];
  return SUCCESS;
}
ret nvmlDeviceGetUUID(device d, char *text, unsigned n) { strncpy(text, d->uuid, n); return SUCCESS; }
ret nvmlDeviceGetName(device d, char *text, unsigned n) { strncpy(text, d->name, n); return SUCCESS; }
ret nvmlDeviceGetMemoryInfo_v2(device d, memory_v2 *m) {
  if (m->version != (sizeof *m | 2 << 24)) return VERSION_MISMATCH;
  m->total = d->total, m->reserved = d->reserved, m->used = d->used;
  m->free = d->total - d->reserved - d->used;
  return SUCCESS;
}
static ret list(process *all, unsigned count, unsigned *n, process *to) {
  unsigned room = *n;
  *n = count;
  if (count && (!to || room < count)) return INSUFFICIENT_SIZE;
  if (count) memcpy(to, all, count * sizeof *all);
  return SUCCESS;
}
ret nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *n, process *to) {
  process whole[] = {{100, MIB(30000), ~0u, ~0u}, {101, ~0ULL, ~0u, ~0u}}, second[] = {{200, MIB(4900), 1, 0}};
  if (is(d, "GPU-whole")) return list(whole, 2, n, to);
  return is(d, "MIG-second") ? list(second, 1, n, to) : list(0, 0, n, to);
}
ret nvmlDeviceGetGraphicsRunningProcesses_v3(device d, unsigned *n, process *to) {
  process whole[] = {{100, MIB(30000), ~0u, ~0u}, {102, MIB(400), ~0u, ~0u}};
  if (d->mig == 2) return NOT_SUPPORTED;
  return is(d, "GPU-whole") ? list(whole, 2, n, to) : list(0, 0, n, to);
}
ret nvmlDeviceGetMPSComputeRunningProcesses_v3(device d, unsigned *n, process *to) {
  process whole[] = {{103, MIB(300), ~0u, ~0u}};
  return is(d, "GPU-whole") ? list(whole, 1, n, to) : NOT_SUPPORTED;
}
