//! Functions that ffmpeg's loader insists on and nobody here calls. Each answers "not supported".

#![allow(non_snake_case)]

use crate::report::count_call;

macro_rules! stubs {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> u32 {
            count_call(stringify!($name));
            801
        }
    )*};
}

stubs! {
    cuMemAllocManaged
    cuMemcpy
    cuMemcpyAsync
    cuMemcpyHtoD_v2
    cuMemcpyDtoH_v2
    cuMemcpyDtoD_v2
    cuMemcpyDtoDAsync_v2
    cuDevicePrimaryCtxGetState
    cuDevicePrimaryCtxReset
    cuStreamAddCallback
    cuLinkCreate
    cuLinkAddData
    cuLinkComplete
    cuLinkDestroy
    cuModuleGetGlobal
    cuTexObjectCreate
    cuTexObjectDestroy
    cuGLGetDevices_v2
    cuGraphicsGLRegisterImage
    cuGraphicsUnregisterResource
    cuGraphicsMapResources
    cuGraphicsUnmapResources
    cuGraphicsSubResourceGetMappedArray
    cuGraphicsResourceGetMappedPointer_v2
    cuImportExternalMemory
    cuDestroyExternalMemory
    cuExternalMemoryGetMappedBuffer
    cuExternalMemoryGetMappedMipmappedArray
    cuMipmappedArrayGetLevel
    cuMipmappedArrayDestroy
    cuImportExternalSemaphore
    cuDestroyExternalSemaphore
    cuSignalExternalSemaphoresAsync
    cuWaitExternalSemaphoresAsync
    cuArray3DCreate_v2
    cuArrayDestroy
    cuEGLStreamProducerConnect
    cuEGLStreamProducerDisconnect
    cuEGLStreamConsumerDisconnect
    cuEGLStreamProducerPresentFrame
    cuEGLStreamProducerReturnFrame
}
