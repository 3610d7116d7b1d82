//! The CUDA driver as a plain table of functions, every one of them looked up before any is called.
//!
//! Types and constants are cudarc's. Its functions are not used: they resolve symbols one by one at
//! the first call and panic where one is missing, and its result type is a Rust enum, which an
//! unknown code of a dying device or a newer driver would make undefined. A table also lets unit
//! tests put fakes in the driver's place.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUdevice_attribute, CUmemorytype};
use nvenc_sys::loader::CUDA_LIBRARY;
use nvenc_sys::{LoadError, SharedLibrary};

use super::watch::named;

/// A `CUresult` as the number it is.
pub type CuResult = c_uint;
/// A CUDA handle of whatever kind.
pub type Handle = *mut c_void;
/// A device address.
pub type DevicePtr = u64;

macro_rules! cuda_api {
    ($($(#[$meta:meta])* $field:ident = $symbol:literal fn($($argument:ty),*);)*) => {
        /// The functions of `libcuda.so.1` that are called, all there. Plain data.
        #[derive(Debug, Clone, Copy)]
        pub struct CudaApi {
            $($(#[$meta])* pub $field: unsafe extern "C" fn($($argument),*) -> CuResult,)*
        }

        impl CudaApi {
            /// The names that must be in the library.
            pub const SYMBOLS: &'static [&'static str] = &[$($symbol),*];

            /// Opens the CUDA driver's library and takes every function out of it.
            ///
            /// # Errors
            ///
            /// If it is not there, or lacks a function.
            pub fn load() -> Result<Self, LoadError> {
                let library = SharedLibrary::open(CUDA_LIBRARY)?;
                Ok(Self {
                    $($field: {
                        let address = library.symbol($symbol)?;
                        // SAFETY: the CUDA driver API declares this function with these argument
                        // types and a CUresult, a C enum, as its result.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) -> CuResult,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}

cuda_api! {
    init = "cuInit" fn(c_uint);
    driver_version = "cuDriverGetVersion" fn(*mut c_int);
    device_count = "cuDeviceGetCount" fn(*mut c_int);
    device_get = "cuDeviceGet" fn(*mut c_int, c_int);
    device_name = "cuDeviceGetName" fn(*mut c_char, c_int, c_int);
    device_uuid = "cuDeviceGetUuid" fn(*mut [u8; 16], c_int);
    device_attribute = "cuDeviceGetAttribute" fn(*mut c_int, c_uint, c_int);
    primary_retain = "cuDevicePrimaryCtxRetain" fn(*mut Handle, c_int);
    primary_release = "cuDevicePrimaryCtxRelease_v2" fn(c_int);
    set_current = "cuCtxSetCurrent" fn(Handle);
    stream_create = "cuStreamCreate" fn(*mut Handle, c_uint);
    stream_wait_event = "cuStreamWaitEvent" fn(Handle, Handle, c_uint);
    stream_query = "cuStreamQuery" fn(Handle);
    stream_destroy = "cuStreamDestroy_v2" fn(Handle);
    event_create = "cuEventCreate" fn(*mut Handle, c_uint);
    event_record = "cuEventRecord" fn(Handle, Handle);
    event_query = "cuEventQuery" fn(Handle);
    event_destroy = "cuEventDestroy_v2" fn(Handle);
    mem_alloc = "cuMemAlloc_v2" fn(*mut DevicePtr, usize);
    mem_alloc_pitch = "cuMemAllocPitch_v2" fn(*mut DevicePtr, *mut usize, usize, usize, c_uint);
    mem_free = "cuMemFree_v2" fn(DevicePtr);
    host_alloc = "cuMemHostAlloc" fn(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" fn(*mut c_void);
    host_register = "cuMemHostRegister_v2" fn(*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister" fn(*mut c_void);
    memcpy_2d_async = "cuMemcpy2DAsync_v2" fn(*const CUDA_MEMCPY2D, Handle);
    memcpy_htod_async = "cuMemcpyHtoDAsync_v2" fn(DevicePtr, *const c_void, usize, Handle);
    memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2" fn(*mut c_void, DevicePtr, usize, Handle);
    memset_d8_async = "cuMemsetD8Async" fn(DevicePtr, u8, usize, Handle);
    module_load_data = "cuModuleLoadData" fn(*mut Handle, *const c_void);
    module_get_function = "cuModuleGetFunction" fn(*mut Handle, Handle, *const c_char);
    module_unload = "cuModuleUnload" fn(Handle);
    launch_kernel = "cuLaunchKernel" fn(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
    error_name = "cuGetErrorName" fn(CuResult, *mut *const c_char);
}

/// A CUDA call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaError {
    pub call: &'static str,
    pub code: CuResult,
    pub name: String,
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {} ({})", self.call, self.name, self.code)
    }
}

impl std::error::Error for CudaError {}

impl CudaApi {
    /// Makes a call under its name, which is what a watched thread is found in, and in the error.
    ///
    /// # Errors
    ///
    /// If its result is not 0.
    pub fn call(
        &self,
        call: &'static str,
        run: impl FnOnce() -> CuResult,
    ) -> Result<(), CudaError> {
        self.check(call, named(call, run))
    }

    /// Turns a result into an error with the driver's name for it.
    ///
    /// # Errors
    ///
    /// If `code` is not 0.
    pub fn check(&self, call: &'static str, code: CuResult) -> Result<(), CudaError> {
        if code == SUCCESS {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the pointer is to a live variable; the driver sets it to a static string or null.
        let found = unsafe { (self.error_name)(code, &raw mut name) };
        let name = if found == SUCCESS && !name.is_null() {
            // SAFETY: the driver's names are static NUL-terminated strings.
            unsafe { CStr::from_ptr(name) }
                .to_string_lossy()
                .into_owned()
        } else {
            "unknown".to_owned()
        };
        Err(CudaError { call, code, name })
    }
}

/// What is known of a device without a context on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As CUDA counts, after `CUDA_VISIBLE_DEVICES`.
    pub index: usize,
    pub ordinal: c_int,
    pub name: String,
    /// As `nvidia-smi -L` prints it: `GPU-` and the UUID.
    pub uuid: String,
    pub compute: (c_int, c_int),
    /// Whether a read-only mapping of ours can be registered for DMA.
    pub read_only_register: bool,
}

/// The driver is started and its devices are listed; `None` of them is an ordinary outcome.
///
/// # Errors
///
/// If the driver refuses, which it also does where there is no device at all.
pub fn devices(api: &CudaApi) -> Result<Vec<DeviceInfo>, CudaError> {
    // SAFETY: for all calls below, every pointer is to a live local variable of the documented type,
    // and the length passed with a buffer is the buffer's.
    unsafe {
        api.call("cuInit", || (api.init)(0))?;
        let mut count = 0;
        api.call("cuDeviceGetCount", || (api.device_count)(&raw mut count))?;
        (0..count)
            .map(|index| {
                let (mut ordinal, mut uuid, mut name) = (0, [0_u8; 16], [0_u8; 128]);
                api.call("cuDeviceGet", || (api.device_get)(&raw mut ordinal, index))?;
                let length = name.len() as c_int - 1;
                api.call("cuDeviceGetName", || {
                    (api.device_name)(name.as_mut_ptr().cast(), length, ordinal)
                })?;
                api.call("cuDeviceGetUuid", || {
                    (api.device_uuid)(&raw mut uuid, ordinal)
                })?;
                let attribute = |which: CUdevice_attribute| {
                    let mut value = 0;
                    // An attribute that an old driver does not know counts as absent.
                    let got = named("cuDeviceGetAttribute", || {
                        (api.device_attribute)(&raw mut value, which as c_uint, ordinal)
                    });
                    if got == SUCCESS { value } else { 0 }
                };
                use CUdevice_attribute as A;
                Ok(DeviceInfo {
                    index: index as usize,
                    ordinal,
                    name: CStr::from_bytes_until_nul(&name)
                        .map(|name| name.to_string_lossy().into_owned())
                        .unwrap_or_default(),
                    uuid: uuid_text(&uuid),
                    compute: (
                        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
                    ),
                    read_only_register: attribute(
                        A::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED,
                    ) == 1,
                })
            })
            .collect()
    }
}

/// The newest CUDA version that the driver serves, as `1000 * major + 10 * minor`.
pub fn driver_version(api: &CudaApi) -> Option<i32> {
    let mut version = 0;
    // SAFETY: the pointer is to a live variable; the call needs no initialised driver.
    let got = unsafe { (api.driver_version)(&raw mut version) };
    (got == SUCCESS).then_some(version)
}

fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "GPU-{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// A copy of `height` rows of `width_bytes` bytes from the host to the device.
pub fn rows_to_device(
    source: (*const u8, usize),
    target: (DevicePtr, usize),
    width_bytes: usize,
    height: usize,
) -> CUDA_MEMCPY2D {
    CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: source.0.cast(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: source.1,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: target.0,
        dstArray: std::ptr::null_mut(),
        dstPitch: target.1,
        WidthInBytes: width_bytes,
        Height: height,
    }
}

pub const SUCCESS: CuResult = 0;
/// `CUDA_ERROR_NOT_READY`: not an error, the event is still ahead.
pub const NOT_READY: CuResult = 600;
/// `CU_STREAM_NON_BLOCKING`: no ordering against the default stream.
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`: cheaper to record and to wait for.
pub const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_READ_ONLY`.
pub const REGISTER_PORTABLE_READ_ONLY: c_uint = 1 | 8;
/// `CU_MEMHOSTALLOC_PORTABLE`.
pub const HOST_ALLOC_PORTABLE: c_uint = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_reads_as_nvidia_smi_prints_it() {
        let bytes: [u8; 16] = std::array::from_fn(|at| at as u8 * 0x11);
        assert_eq!(
            uuid_text(&bytes),
            "GPU-00112233-4455-6677-8899-aabbccddeeff"
        );
    }

    #[test]
    fn every_function_has_a_name_of_its_own() {
        let mut names = CudaApi::SYMBOLS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CudaApi::SYMBOLS.len());
    }
}
