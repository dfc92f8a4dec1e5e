/* A stand-in for the driver's libnvidia-ml.so.1: $HPCLM_FAKE_NVML names the machine it pretends to be.
 *
 * Words, joined by commas: a100 h100 v100 (80, 80 and 32 GiB), xN (how many, 8 unless told), and of GPU 1 alone:
 * ecc, pending, remap, lost, busy, fabric (not set up yet); mig (GPU 0 has slices of 10 and 40 GiB); of the machine: old-driver, no-driver, mismatch, silent (answers NOT_SUPPORTED).
 * On a cluster `node2:lost` holds on node2 only. Layouts are those of nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, NO_DRIVER = 9, LOST = 15, MISMATCH = 18 };
typedef struct { unsigned index; } *device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned char cluster[16]; unsigned status, clique; unsigned char state; } fabric_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;

typedef struct { unsigned gpu, memory; } utilization_t;

enum { SLICES = 32 }; /* from this index on */
static struct { unsigned index; } devices[64];

static int has(const char *word) {
  const char *machine = getenv("HPCLM_FAKE_NVML"), *node = getenv("SLURMD_NODENAME");
  char text[256], *save = NULL;
  snprintf(text, sizeof text, "%s", machine ? machine : "");
  for (char *one = strtok_r(text, ",", &save); one; one = strtok_r(NULL, ",", &save)) {
    char *colon = strchr(one, ':');
    if (colon) {
      *colon = 0;
      if (!node || strcmp(node, one)) continue;
      one = colon + 1;
    }
    if (!strcmp(one, word)) return 1;
  }
  return 0;
}
static int sick(device_t d, const char *word) { return d->index == 1 && has(word); }
static int answer(device_t d) { return sick(d, "lost") ? LOST : has("silent") ? UNSUPPORTED : OK; }
static unsigned long long gib(void) { return has("v100") ? 32 : 80; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return has("no-driver") ? NO_DRIVER : has("mismatch") ? MISMATCH : OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "some error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
  snprintf(out, size, "%s", has("old-driver") ? "470.57.02" : "550.54.15");
  return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = has("old-driver") ? 11040 : 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) {
  char word[8];
  *out = 8;
  for (unsigned n = 0; n < 16; n++) {
    snprintf(word, sizeof word, "x%u", n);
    if (has(word)) *out = n;
  }
  return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *out) {
  devices[index].index = index;
  *out = (device_t)&devices[index];
  return sick(*out, "lost") ? LOST : OK;
}
int nvmlDeviceGetName(device_t d, char *out, unsigned size) {
  const char *name = has("v100") ? "Tesla V100-SXM2-32GB" : has("h100") ? "NVIDIA H100 80GB HBM3" : "NVIDIA A100-SXM4-80GB";
  snprintf(out, size, "%s", name);
  (void)d;
  return OK;
}
int nvmlDeviceGetUUID(device_t d, char *out, unsigned size) {
  if (d->index >= SLICES) snprintf(out, size, "MIG-0000-%u", d->index - SLICES);
  else snprintf(out, size, "GPU-0000-%u", d->index);
  return OK;
}
int nvmlDeviceGetPciInfo_v3(device_t d, pci_t *out) {
  memset(out, 0, sizeof *out);
  snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", d->index + 7);
  return OK;
}
int nvmlDeviceGetCudaComputeCapability(device_t d, int *major, int *minor) {
  *major = has("v100") ? 7 : has("h100") ? 9 : 8;
  *minor = 0;
  return answer(d);
}
int nvmlDeviceGetMemoryInfo(device_t d, memory_t *out) {
  out->total = (d->index >= SLICES ? (d->index == SLICES ? 10 : 40) : gib()) << 30;
  out->used = sick(d, "busy") ? out->total - (1ULL << 30) : 0;
  out->free = out->total - out->used;
  return answer(d);
}
int nvmlDeviceGetUtilizationRates(device_t d, utilization_t *out) {
  out->gpu = 50 + d->index;
  out->memory = 20;
  return answer(d);
}
int nvmlDeviceGetPowerUsage(device_t d, unsigned *out) { *out = 400500 + 1000 * d->index; return answer(d); }
int nvmlDeviceGetComputeRunningProcesses_v3(device_t d, unsigned *count, process_t *out) {
  unsigned room = *count;
  *count = sick(d, "busy") ? 1 : 0;
  if (answer(d) || !*count) return answer(d);
  if (room < 1) return SMALL;
  out[0] = (process_t){4711, (gib() - 1) << 30, 0xffffffff, 0xffffffff};
  return OK;
}
int nvmlDeviceGetTotalEccErrors(device_t d, int type, int counter, unsigned long long *out) {
  (void)counter;
  *out = type == 1 && sick(d, "ecc") ? 3 : 0;
  return answer(d);
}
#ifndef OLD_LIBRARY /* drivers before 450 have no such functions */
int nvmlDeviceGetRemappedRows(device_t d, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
  *corrected = 0;
  *uncorrected = *pending = sick(d, "pending");
  *failed = sick(d, "remap");
  return has("v100") ? UNSUPPORTED : answer(d);
}
int nvmlDeviceGetGpuFabricInfo(device_t d, fabric_t *out) {
  memset(out, 0, sizeof *out);
  out->state = sick(d, "fabric") ? 2 : 3;
  return has("h100") ? answer(d) : UNSUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(device_t d, unsigned *out) { (void)d; *out = has("mig") ? 7 : 0; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(device_t d, unsigned index, device_t *out) {
  if (d->index != 0 || index > 1) return NOT_FOUND;
  devices[SLICES + index].index = SLICES + index;
  *out = (device_t)&devices[SLICES + index];
  return OK;
}
int nvmlDeviceGetNvLinkState(device_t d, unsigned link, unsigned *out) {
  *out = !sick(d, "link-down") || link > 3;
  return link >= (has("v100") ? 6u : has("h100") ? 18u : 12u) ? INVALID : answer(d);
}
#endif
