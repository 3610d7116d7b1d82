//! A driver of fakes that notes the order of calls and answers as told. One at a time.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUDA_MEMCPY2D;
use nvenc_sys::*;

use super::cuda::{CudaApi, DevicePtr, Handle};
use super::driver::Driver;

static LOG: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
static ALONE: Mutex<()> = Mutex::new(());
static NEXT: AtomicU64 = AtomicU64::new(0x1000);
static TIMESTAMP: AtomicU64 = AtomicU64::new(0);
pub static FLAGS: Mutex<Vec<u32>> = Mutex::new(Vec::new());
/// Status of a call, by name; 0 where none is set.
static STATUS: Mutex<Vec<(&'static str, u32)>> = Mutex::new(Vec::new());
pub static BYTES: AtomicU32 = AtomicU32::new(8);

/// The driver, for as long as this lives; everything noted before is forgotten.
pub struct Fake(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Fake {
    pub fn take() -> Self {
        let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        LOG.lock().unwrap().clear();
        STATUS.lock().unwrap().clear();
        FLAGS.lock().unwrap().clear();
        BYTES.store(8, Ordering::Relaxed);
        Self(guard)
    }

    pub fn refuse(&self, call: &'static str, status: u32) {
        STATUS.lock().unwrap().push((call, status));
    }

    /// The calls so far, runs of the same one once; only those of the encoder and those that free.
    pub fn calls(&self) -> Vec<&'static str> {
        let mut calls = LOG.lock().unwrap().clone();
        let telling = ["nvEnc", "Free", "Destroy", "Release", "Retain", "Unload"];
        calls.retain(|call| telling.iter().any(|word| call.contains(word)));
        calls.dedup();
        calls
    }

    pub fn count(&self, call: &str) -> usize {
        LOG.lock()
            .unwrap()
            .iter()
            .filter(|other| **other == call)
            .count()
    }

    pub fn driver(&self) -> Driver {
        Driver {
            cuda: CUDA,
            encode: ENCODE,
        }
    }
}

fn note(call: &'static str) -> u32 {
    LOG.lock().unwrap().push(call);
    let status = STATUS.lock().unwrap();
    status
        .iter()
        .find(|(name, _)| *name == call)
        .map_or(0, |(_, status)| *status)
}

fn nv(call: &'static str) -> NVENCSTATUS {
    NVENCSTATUS(note(call))
}

fn handle() -> Handle {
    NEXT.fetch_add(16, Ordering::Relaxed) as usize as Handle
}

/// A fake that only notes its name.
macro_rules! plain {
    ($name:literal, $($type:ty),*) => {{
        unsafe extern "C" fn fake($(_: $type),*) -> c_uint {
            note($name)
        }
        fake
    }};
}

/// A fake that gives a new handle.
macro_rules! maker {
    ($name:literal, $($type:ty),*) => {{
        unsafe extern "C" fn fake(to: *mut Handle $(, _: $type)*) -> c_uint {
            // SAFETY: callers pass live variables.
            unsafe { *to = handle() };
            note($name)
        }
        fake
    }};
}

/// A call of the encoder that only notes its name.
macro_rules! encoder {
    ($name:literal, $($type:ty),*) => {{
        unsafe extern "C" fn fake($(_: $type),*) -> NVENCSTATUS {
            nv($name)
        }
        fake
    }};
}

unsafe extern "C" fn one(count: *mut c_int) -> c_uint {
    // SAFETY: callers pass live variables (here and below).
    unsafe { *count = 1 };
    note("cuDeviceGetCount")
}

unsafe extern "C" fn device(to: *mut c_int, ordinal: c_int) -> c_uint {
    // SAFETY: as above.
    unsafe { *to = ordinal };
    note("cuDeviceGet")
}

unsafe extern "C" fn attribute(to: *mut c_int, _: c_uint, _: c_int) -> c_uint {
    // SAFETY: as above.
    unsafe { *to = 0 };
    note("cuDeviceGetAttribute")
}

unsafe extern "C" fn alloc(to: *mut DevicePtr, _: usize) -> c_uint {
    // SAFETY: as above.
    unsafe { *to = handle() as u64 };
    note("cuMemAlloc")
}

unsafe extern "C" fn alloc_pitch(
    to: *mut DevicePtr,
    pitch: *mut usize,
    width: usize,
    _: usize,
    _: c_uint,
) -> c_uint {
    // SAFETY: as above.
    unsafe {
        *to = handle() as u64;
        *pitch = width.next_multiple_of(512);
    }
    note("cuMemAllocPitch")
}

unsafe extern "C" fn host_alloc(to: *mut *mut c_void, bytes: usize, _: c_uint) -> c_uint {
    // SAFETY: as above; the host does write there, so the memory is real.
    unsafe { *to = libc::malloc(bytes) };
    note("cuMemHostAlloc")
}

unsafe extern "C" fn host_free(memory: *mut c_void) -> c_uint {
    // SAFETY: from `host_alloc`.
    unsafe { libc::free(memory) };
    note("cuMemFreeHost")
}

const CUDA: CudaApi = CudaApi {
    init: plain!("cuInit", c_uint),
    driver_version: plain!("cuDriverGetVersion", *mut c_int),
    device_count: one,
    device_get: device,
    device_name: plain!("cuDeviceGetName", *mut c_char, c_int, c_int),
    device_uuid: plain!("cuDeviceGetUuid", *mut [u8; 16], c_int),
    device_attribute: attribute,
    primary_retain: maker!("cuDevicePrimaryCtxRetain", c_int),
    primary_release: plain!("cuDevicePrimaryCtxRelease", c_int),
    set_current: plain!("cuCtxSetCurrent", Handle),
    stream_create: maker!("cuStreamCreate", c_uint),
    stream_wait_event: plain!("cuStreamWaitEvent", Handle, Handle, c_uint),
    stream_query: plain!("cuStreamQuery", Handle),
    stream_destroy: plain!("cuStreamDestroy", Handle),
    event_create: maker!("cuEventCreate", c_uint),
    event_record: plain!("cuEventRecord", Handle, Handle),
    event_query: plain!("cuEventQuery", Handle),
    event_destroy: plain!("cuEventDestroy", Handle),
    mem_alloc: alloc,
    mem_alloc_pitch: alloc_pitch,
    mem_free: plain!("cuMemFree", DevicePtr),
    host_alloc,
    host_free,
    host_register: plain!("cuMemHostRegister", *mut c_void, usize, c_uint),
    host_unregister: plain!("cuMemHostUnregister", *mut c_void),
    memcpy_2d_async: plain!("cuMemcpy2DAsync", *const CUDA_MEMCPY2D, Handle),
    memcpy_htod_async: plain!("cuMemcpyHtoDAsync", DevicePtr, *const c_void, usize, Handle),
    memcpy_dtoh_async: plain!("cuMemcpyDtoHAsync", *mut c_void, DevicePtr, usize, Handle),
    memset_d8_async: plain!("cuMemsetD8Async", DevicePtr, u8, usize, Handle),
    module_load_data: maker!("cuModuleLoadData", *const c_void),
    module_get_function: maker!("cuModuleGetFunction", Handle, *const c_char),
    module_unload: plain!("cuModuleUnload", Handle),
    launch_kernel: plain!(
        "cuLaunchKernel",
        Handle,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Handle,
        *mut Handle,
        *mut Handle
    ),
    error_name: plain!("cuGetErrorName", c_uint, *mut *const c_char),
};

type Session = *mut c_void;

unsafe extern "C" fn open(
    _: *mut NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS,
    session: *mut Session,
) -> NVENCSTATUS {
    // SAFETY: as above.
    unsafe { *session = handle() };
    nv("nvEncOpenEncodeSessionEx")
}

unsafe extern "C" fn two(_: Session, count: *mut u32) -> NVENCSTATUS {
    // SAFETY: as above.
    unsafe { *count = 2 };
    nv("nvEncGetEncodeGUIDCount")
}

unsafe extern "C" fn guids(_: Session, list: *mut GUID, _: u32, count: *mut u32) -> NVENCSTATUS {
    // SAFETY: as above; room for two.
    unsafe {
        list.write(NV_ENC_CODEC_HEVC_GUID);
        list.add(1).write(NV_ENC_CODEC_H264_GUID);
        *count = 2;
    }
    nv("nvEncGetEncodeGUIDs")
}

unsafe extern "C" fn caps(
    _: Session,
    _: GUID,
    _: *mut NV_ENC_CAPS_PARAM,
    to: *mut i32,
) -> NVENCSTATUS {
    // SAFETY: as above. 4096 is a legal answer to every question.
    unsafe { *to = 4096 };
    // The minima must be below a picture: unknown capabilities count as 0.
    nv("nvEncGetEncodeCaps")
}

unsafe extern "C" fn format(
    _: Session,
    _: GUID,
    list: *mut NV_ENC_BUFFER_FORMAT,
    _: u32,
    count: *mut u32,
) -> NVENCSTATUS {
    // SAFETY: as above; room for two.
    unsafe {
        list.write(NV_ENC_BUFFER_FORMAT(1));
        *count = 1;
    }
    nv("nvEncGetInputFormats")
}

unsafe extern "C" fn format_count(_: Session, _: GUID, count: *mut u32) -> NVENCSTATUS {
    // SAFETY: as above.
    unsafe { *count = 1 };
    nv("nvEncGetInputFormatCount")
}

unsafe extern "C" fn bitstream(
    _: Session,
    params: *mut NV_ENC_CREATE_BITSTREAM_BUFFER,
) -> NVENCSTATUS {
    // SAFETY: as above.
    unsafe { (*params).bitstreamBuffer = handle() };
    nv("nvEncCreateBitstreamBuffer")
}

unsafe extern "C" fn register(_: Session, params: *mut NV_ENC_REGISTER_RESOURCE) -> NVENCSTATUS {
    let status = nv("nvEncRegisterResource");
    // SAFETY: as above.
    unsafe {
        (*params).registeredResource = if status.0 == 0 {
            handle()
        } else {
            std::ptr::null_mut()
        }
    };
    status
}

unsafe extern "C" fn map(_: Session, params: *mut NV_ENC_MAP_INPUT_RESOURCE) -> NVENCSTATUS {
    // SAFETY: as above.
    unsafe {
        (*params).mappedResource = handle();
        (*params).mappedBufferFmt = NV_ENC_BUFFER_FORMAT(1);
    }
    nv("nvEncMapInputResource")
}

unsafe extern "C" fn encode(_: Session, params: *mut NV_ENC_PIC_PARAMS) -> NVENCSTATUS {
    // SAFETY: as above.
    let params = unsafe { &*params };
    TIMESTAMP.store(params.inputTimeStamp, Ordering::Relaxed);
    FLAGS.lock().unwrap().push(params.encodePicFlags);
    if params.encodePicFlags & 8 != 0 {
        return nv("nvEncEncodePicture(EOS)");
    }
    nv("nvEncEncodePicture")
}

unsafe extern "C" fn lock(_: Session, params: *mut NV_ENC_LOCK_BITSTREAM) -> NVENCSTATUS {
    static UNIT: [u8; 8] = [0, 0, 0, 1, 0x65, 1, 2, 3];
    // SAFETY: as above.
    unsafe {
        (*params).bitstreamBufferPtr = UNIT.as_ptr().cast_mut().cast();
        (*params).bitstreamSizeInBytes = BYTES.load(Ordering::Relaxed);
        (*params).outputTimeStamp = TIMESTAMP.load(Ordering::Relaxed);
        (*params).pictureType = NV_ENC_PIC_TYPE(3);
    }
    nv("nvEncLockBitstream")
}

const ENCODE: EncodeApi = EncodeApi {
    max_supported: ApiVersion {
        major: 13,
        minor: 0,
    },
    open_session_ex: open,
    get_guid_count: two,
    get_guids: guids,
    get_caps: caps,
    get_input_format_count: format_count,
    get_input_formats: format,
    get_preset_config_ex: encoder!(
        "nvEncGetEncodePresetConfigEx",
        Session,
        GUID,
        GUID,
        NV_ENC_TUNING_INFO,
        *mut NV_ENC_PRESET_CONFIG
    ),
    initialize: encoder!(
        "nvEncInitializeEncoder",
        Session,
        *mut NV_ENC_INITIALIZE_PARAMS
    ),
    reconfigure: encoder!(
        "nvEncReconfigureEncoder",
        Session,
        *mut NV_ENC_RECONFIGURE_PARAMS
    ),
    create_bitstream: bitstream,
    destroy_bitstream: encoder!("nvEncDestroyBitstreamBuffer", Session, NV_ENC_OUTPUT_PTR),
    register_resource: register,
    unregister_resource: encoder!("nvEncUnregisterResource", Session, NV_ENC_REGISTERED_PTR),
    map_input: map,
    unmap_input: encoder!("nvEncUnmapInputResource", Session, NV_ENC_INPUT_PTR),
    encode_picture: encode,
    lock_bitstream: lock,
    unlock_bitstream: encoder!("nvEncUnlockBitstream", Session, NV_ENC_OUTPUT_PTR),
    destroy_encoder: encoder!("nvEncDestroyEncoder", Session),
    set_io_cuda_streams: Some(encoder!(
        "nvEncSetIOCudaStreams",
        Session,
        NV_ENC_CUSTREAM_PTR,
        NV_ENC_CUSTREAM_PTR
    )),
    get_last_error: None,
};
