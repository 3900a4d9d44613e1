// NVIDIA's management library as far as torch asks it how many devices there are: then no process that only imports
// modules starts the CUDA runtime, after which it could not be forked. Built as libnvidia-ml.so.1.
int nvmlInit(void) { return 0; }
int nvmlDeviceGetCount_v2(int *count) { return *count = 1, 0; }
