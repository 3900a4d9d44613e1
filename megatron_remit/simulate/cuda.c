// The CUDA driver as far as torch asks it: one device with a context that is there already. Built as libcuda.so.1.
#include <cuda.h>
#undef cuDevicePrimaryCtxRetain
#define ANSWER(call, ...) CUresult call { __VA_ARGS__; return CUDA_SUCCESS; }

ANSWER(cuInit(unsigned flags))
ANSWER(cuDriverGetVersion(int *version), *version = 13000)
ANSWER(cuDeviceGetCount(int *count), *count = 1)
ANSWER(cuDeviceGet(CUdevice *device, int index), *device = index)
ANSWER(cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active), *flags = 0; *active = 1)
ANSWER(cuCtxGetCurrent(CUcontext *context), *context = (CUcontext)1)
ANSWER(cuGetErrorString(CUresult error, const char **text), *text = "simulated")
