// As much of a driver as cuDNN needs to make plans where there is none: modules "load", and nothing else works.
// Built as libcuda.so.1 by `deviceless.py`.

static long there[64];
enum { DONE = 0, NO_DEVICE = 100 };

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return DONE;
}

#define MAKES(name) \
    int name(void** made) { \
        *made = there; \
        return DONE; \
    }
#define DOES(name) \
    int name(void) { return DONE; }
#define CANNOT(name) \
    int name(void) { return NO_DEVICE; }

MAKES(cuLibraryLoadData)
MAKES(cuLibraryLoadFromFile)
MAKES(cuLibraryGetKernel)
MAKES(cuKernelGetFunction)
DOES(cuLibraryUnload)
DOES(cuKernelGetAttribute)
DOES(cuKernelSetAttribute)

CANNOT(cuInit)
CANNOT(cuGetErrorString)
CANNOT(cuGetErrorName)
CANNOT(cuDeviceGet)
CANNOT(cuDeviceGetCount)
CANNOT(cuDeviceGetAttribute)
CANNOT(cuDevicePrimaryCtxRetain)
CANNOT(cuDevicePrimaryCtxRelease)
CANNOT(cuDevicePrimaryCtxReset)
CANNOT(cuCtxGetCurrent)
CANNOT(cuCtxGetDevice)
CANNOT(cuCtxGetLimit)
CANNOT(cuCtxPushCurrent)
CANNOT(cuCtxPopCurrent)
CANNOT(cuLaunchKernel)
CANNOT(cuLaunchKernelEx)
CANNOT(cuLaunchCooperativeKernel)
CANNOT(cuLinkCreate)
CANNOT(cuLinkCreate_v2)
CANNOT(cuLinkAddData)
CANNOT(cuLinkAddData_v2)
CANNOT(cuLinkAddFile_v2)
CANNOT(cuLinkComplete)
CANNOT(cuLinkDestroy)
CANNOT(cuStreamGetCtx)
CANNOT(cuStreamSynchronize)
CANNOT(cuOccupancyMaxPotentialClusterSize)
CANNOT(cuOccupancyMaxActiveBlocksPerMultiprocessor)
CANNOT(cuTensorMapEncodeTiled)
CANNOT(cuModuleLoadData)
CANNOT(cuModuleLoadDataEx)
CANNOT(cuModuleLoadFatBinary)
CANNOT(cuModuleUnload)
CANNOT(cuModuleGetFunction)
CANNOT(cuModuleGetGlobal_v2)
CANNOT(cuMemcpyDtoH_v2)
CANNOT(cuFuncGetAttribute)
CANNOT(cuFuncSetAttribute)
