// The CUDA runtime as far as torch asks it, preloaded before the real one: a single H100 that computes nothing.
// Streams and events are handles that are always done. Memory is the host's, reserved but not touched.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#define ANSWER(call, ...) cudaError_t call { __VA_ARGS__; return cudaSuccess; }
#define MEMORY ((size_t)80 << 30)

static __thread int current_device;
static char handles[1 << 16];
static void *new_handle(void) {
  static size_t last;
  last = (last + 64) % (sizeof handles - 64);
  return handles + last + 64;
}

ANSWER(cudaGetDeviceCount(int *count), *count = 1)
ANSWER(cudaGetDevice(int *device), *device = current_device)
ANSWER(cudaSetDevice(int device), current_device = device)
ANSWER(cudaDriverGetVersion(int *version), *version = 13000)
ANSWER(cudaRuntimeGetVersion(int *version), *version = 13000)
ANSWER(cudaGetLastError(void))
ANSWER(cudaPeekAtLastError(void))
ANSWER(cudaDeviceSynchronize(void))
ANSWER(cudaDeviceCanAccessPeer(int *can, int device, int peer), *can = 0)
ANSWER(cudaDeviceGetPCIBusId(char *id, int size, int device), strncpy(id, "0000:00:00.0", size))
ANSWER(cudaDeviceGetStreamPriorityRange(int *least, int *greatest), *least = 0; *greatest = -5)
ANSWER(cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device),
       *value = name == cudaDevAttrComputeCapabilityMajor ? 9 : name == cudaDevAttrMultiProcessorCount ? 132
              : name == cudaDevAttrMaxThreadsPerBlock ? 1024 : 0)
ANSWER(cudaMemGetInfo(size_t *unused, size_t *total), *unused = *total = MEMORY)

// H100 SXM: the sizes that torch and Triton choose their launches by.
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) {
  memset(of, 0, sizeof *of);
  strcpy(of->name, "NVIDIA H100 80GB HBM3 (simulated)");
  of->major = 9;
  of->totalGlobalMem = MEMORY;
  of->multiProcessorCount = 132;
  of->warpSize = 32;
  of->maxThreadsPerMultiProcessor = 2048;
  of->maxThreadsPerBlock = 1024;
  of->sharedMemPerBlock = 48 << 10;
  of->sharedMemPerBlockOptin = 227 << 10;
  of->sharedMemPerMultiprocessor = 228 << 10;
  of->regsPerBlock = of->regsPerMultiprocessor = 64 << 10;
  of->l2CacheSize = 50 << 20;
  of->maxGridSize[0] = 2147483647;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *of, int device) {
  return cudaGetDeviceProperties(of, device);
}

ANSWER(cudaStreamCreate(cudaStream_t *stream), *stream = new_handle())
ANSWER(cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags), *stream = new_handle())
ANSWER(cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority), *stream = new_handle())
ANSWER(cudaStreamDestroy(cudaStream_t stream))
ANSWER(cudaStreamQuery(cudaStream_t stream))
ANSWER(cudaStreamSynchronize(cudaStream_t stream))
ANSWER(cudaStreamGetPriority(cudaStream_t stream, int *priority), *priority = 0)
ANSWER(cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags))
ANSWER(cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status),
       *status = cudaStreamCaptureStatusNone)
ANSWER(cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                size_t *count),
       if (status) *status = cudaStreamCaptureStatusNone)
ANSWER(cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode))
ANSWER(cudaEventCreate(cudaEvent_t *event), *event = new_handle())
ANSWER(cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags), *event = new_handle())
ANSWER(cudaEventDestroy(cudaEvent_t event))
ANSWER(cudaEventRecord(cudaEvent_t event, cudaStream_t stream))
ANSWER(cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags))
ANSWER(cudaEventQuery(cudaEvent_t event))
ANSWER(cudaEventSynchronize(cudaEvent_t event))
ANSWER(cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end), *milliseconds = 1)

cudaError_t cudaMalloc(void **at, size_t size) {
  *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *at == MAP_FAILED ? cudaErrorMemoryAllocation : cudaSuccess;
}
ANSWER(cudaFree(void *at))
ANSWER(cudaMallocAsync(void **at, size_t size, cudaStream_t stream), *at = calloc(1, size))
ANSWER(cudaFreeAsync(void *at, cudaStream_t stream))
ANSWER(cudaHostAlloc(void **at, size_t size, unsigned flags), *at = calloc(1, size))
ANSWER(cudaFreeHost(void *at), free(at))
ANSWER(cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind), memcpy(to, from, size))
ANSWER(cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream),
       memcpy(to, from, size))
ANSWER(cudaMemset(void *at, int value, size_t size), memset(at, value, size))
ANSWER(cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream), memset(at, value, size))
ANSWER(cudaPointerGetAttributes(struct cudaPointerAttributes *of, const void *at), memset(of, 0, sizeof *of);
       of->type = cudaMemoryTypeDevice)
ANSWER(cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                        cudaStream_t stream))
ANSWER(cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                        unsigned long long flags, enum cudaDriverEntryPointQueryResult *result),
       void *driver = dlopen("libcuda.so.1", RTLD_LAZY); *function = driver ? dlsym(driver, name) : 0;
       if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound)
