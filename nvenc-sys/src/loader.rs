//! Opens the driver's libraries and takes every function out of them, before anything is called.
//!
//! No library, an old driver and a missing function are ordinary outcomes with words of their
//! own. A library that was opened stays open: the driver keeps threads that run its code.

use core::ffi::{CStr, c_char, c_void};
use core::mem;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::*;

/// The library of the encoder, as the driver package names it.
pub const ENCODE_LIBRARY: &str = "libnvidia-encode.so.1";
/// The library of the CUDA driver. Without `.1` a toolkit's stub could be found first.
pub const CUDA_LIBRARY: &str = "libcuda.so.1";

/// Why a driver cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The library is not there, or cannot be opened.
    Missing {
        library: &'static str,
        /// The dynamic loader's words.
        detail: String,
    },
    /// The library lacks a function: an old driver, or no driver's library at all.
    Symbol {
        library: &'static str,
        symbol: &'static str,
    },
    /// The driver serves only older versions of the API.
    TooOld {
        needed: ApiVersion,
        found: ApiVersion,
    },
    /// The driver would not give its functions.
    Refused {
        call: &'static str,
        status: NVENCSTATUS,
    },
    /// The driver's function list lacks one that cannot be done without.
    NoFunction { function: &'static str },
}

impl core::fmt::Display for LoadError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Missing { library, detail } if *library == ENCODE_LIBRARY => write!(
                f,
                "{library} cannot be opened ({detail}); install the driver's encode library, and in a \
                 container set NVIDIA_DRIVER_CAPABILITIES to include video"
            ),
            Self::Missing { library, detail } => {
                write!(
                    f,
                    "{library} cannot be opened ({detail}); no NVIDIA driver here"
                )
            }
            Self::Symbol { library, symbol } => {
                write!(
                    f,
                    "{library} has no {symbol}; the driver is too old or incomplete"
                )
            }
            Self::TooOld { needed, found } => write!(
                f,
                "driver too old: needs NVENC API {needed} (driver {} or newer), found {found}",
                needed.least_driver()
            ),
            Self::Refused { call, status } => {
                let info = StatusInfo::of(*status);
                write!(f, "{call} failed: {info}: {}", info.meaning)
            }
            Self::NoFunction { function } => {
                write!(f, "the driver's function list has no {function}")
            }
        }
    }
}

impl core::error::Error for LoadError {}

/// A library of the driver, opened once and never closed.
#[derive(Debug)]
pub struct SharedLibrary {
    name: &'static str,
    library: mem::ManuallyDrop<Library>,
}

impl SharedLibrary {
    /// Opens the library that the dynamic loader finds under `name`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Missing`].
    pub fn open(name: &'static str) -> Result<Self, LoadError> {
        // SAFETY: running the initialisers of the NVIDIA driver's libraries is what a caller asks
        // for here; they have no precondition. The library is never closed (ManuallyDrop).
        let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
        match library {
            Ok(library) => Ok(Self {
                name,
                library: mem::ManuallyDrop::new(library),
            }),
            Err(error) => Err(LoadError::Missing {
                library: name,
                detail: root_cause(&error),
            }),
        }
    }

    /// The address of a function.
    ///
    /// # Errors
    ///
    /// [`LoadError::Symbol`].
    pub fn symbol(&self, symbol: &'static str) -> Result<*mut c_void, LoadError> {
        // SAFETY: the symbol is taken as an untyped address; whoever gives it a type answers for that.
        let found = unsafe { self.library.get::<*mut c_void>(symbol) };
        found
            .ok()
            .map(|address| address.as_raw_ptr())
            .filter(|address| !address.is_null())
            .ok_or(LoadError::Symbol {
                library: self.name,
                symbol,
            })
    }
}

fn root_cause(error: &dyn core::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

type Status = NVENCSTATUS;
type Session = *mut c_void;

/// `NvEncodeAPIGetMaxSupportedVersion`.
pub type GetMaxSupportedVersion = unsafe extern "C" fn(*mut u32) -> Status;
/// `NvEncodeAPICreateInstance`.
pub type CreateInstance = unsafe extern "C" fn(*mut NV_ENCODE_API_FUNCTION_LIST) -> Status;

/// The functions of the encoder that we call, all there; two may be absent. Plain data, so that
/// a test can build one from fakes.
#[derive(Debug, Clone, Copy)]
pub struct EncodeApi {
    /// The newest version that the driver serves.
    pub max_supported: ApiVersion,
    pub open_session_ex:
        unsafe extern "C" fn(*mut NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS, *mut Session) -> Status,
    pub get_guid_count: unsafe extern "C" fn(Session, *mut u32) -> Status,
    pub get_guids: unsafe extern "C" fn(Session, *mut GUID, u32, *mut u32) -> Status,
    pub get_caps: unsafe extern "C" fn(Session, GUID, *mut NV_ENC_CAPS_PARAM, *mut i32) -> Status,
    pub get_input_format_count: unsafe extern "C" fn(Session, GUID, *mut u32) -> Status,
    pub get_input_formats:
        unsafe extern "C" fn(Session, GUID, *mut NV_ENC_BUFFER_FORMAT, u32, *mut u32) -> Status,
    pub get_preset_config_ex: unsafe extern "C" fn(
        Session,
        GUID,
        GUID,
        NV_ENC_TUNING_INFO,
        *mut NV_ENC_PRESET_CONFIG,
    ) -> Status,
    pub initialize: unsafe extern "C" fn(Session, *mut NV_ENC_INITIALIZE_PARAMS) -> Status,
    pub reconfigure: unsafe extern "C" fn(Session, *mut NV_ENC_RECONFIGURE_PARAMS) -> Status,
    pub create_bitstream:
        unsafe extern "C" fn(Session, *mut NV_ENC_CREATE_BITSTREAM_BUFFER) -> Status,
    pub destroy_bitstream: unsafe extern "C" fn(Session, NV_ENC_OUTPUT_PTR) -> Status,
    pub register_resource: unsafe extern "C" fn(Session, *mut NV_ENC_REGISTER_RESOURCE) -> Status,
    pub unregister_resource: unsafe extern "C" fn(Session, NV_ENC_REGISTERED_PTR) -> Status,
    pub map_input: unsafe extern "C" fn(Session, *mut NV_ENC_MAP_INPUT_RESOURCE) -> Status,
    pub unmap_input: unsafe extern "C" fn(Session, NV_ENC_INPUT_PTR) -> Status,
    pub encode_picture: unsafe extern "C" fn(Session, *mut NV_ENC_PIC_PARAMS) -> Status,
    pub lock_bitstream: unsafe extern "C" fn(Session, *mut NV_ENC_LOCK_BITSTREAM) -> Status,
    pub unlock_bitstream: unsafe extern "C" fn(Session, NV_ENC_OUTPUT_PTR) -> Status,
    pub destroy_encoder: unsafe extern "C" fn(Session) -> Status,
    pub set_io_cuda_streams:
        Option<unsafe extern "C" fn(Session, NV_ENC_CUSTREAM_PTR, NV_ENC_CUSTREAM_PTR) -> Status>,
    pub get_last_error: Option<unsafe extern "C" fn(Session) -> *const c_char>,
}

impl EncodeApi {
    /// Opens the driver's encode library.
    ///
    /// # Errors
    ///
    /// Any [`LoadError`].
    pub fn load() -> Result<Self, LoadError> {
        let library = SharedLibrary::open(ENCODE_LIBRARY)?;
        let max_version = library.symbol("NvEncodeAPIGetMaxSupportedVersion")?;
        let create = library.symbol("NvEncodeAPICreateInstance")?;
        // SAFETY: the header declares the two exported functions of this library with these types.
        unsafe {
            Self::negotiate(
                mem::transmute::<*mut c_void, GetMaxSupportedVersion>(max_version),
                mem::transmute::<*mut c_void, CreateInstance>(create),
            )
        }
    }

    /// Asks for the version, then for the functions.
    ///
    /// # Safety
    ///
    /// The two functions must be the driver's, or behave as its header says.
    ///
    /// # Errors
    ///
    /// Any but [`LoadError::Missing`] and [`LoadError::Symbol`].
    pub unsafe fn negotiate(
        max_version: GetMaxSupportedVersion,
        create: CreateInstance,
    ) -> Result<Self, LoadError> {
        let mut packed = 0;
        // SAFETY: as the caller promises; the pointer is to a live u32.
        let status = unsafe { max_version(&raw mut packed) };
        if status.0 != 0 {
            return Err(LoadError::Refused {
                call: "NvEncodeAPIGetMaxSupportedVersion",
                status,
            });
        }
        let found = ApiVersion::from_max_supported(packed);
        if found < API_VERSION {
            return Err(LoadError::TooOld {
                needed: API_VERSION,
                found,
            });
        }
        let mut list = NV_ENCODE_API_FUNCTION_LIST {
            version: NV_ENCODE_API_FUNCTION_LIST_VER,
            ..Default::default()
        };
        // SAFETY: as the caller promises; the list is live, zeroed and has its version.
        let status = unsafe { create(&raw mut list) };
        if status.0 != 0 {
            return Err(LoadError::Refused {
                call: "NvEncodeAPICreateInstance",
                status,
            });
        }
        Self::from_list(&list, found)
    }

    fn from_list(
        list: &NV_ENCODE_API_FUNCTION_LIST,
        max_supported: ApiVersion,
    ) -> Result<Self, LoadError> {
        macro_rules! need {
            ($field:ident) => {
                list.$field.ok_or(LoadError::NoFunction {
                    function: stringify!($field),
                })?
            };
        }
        Ok(Self {
            max_supported,
            open_session_ex: need!(nvEncOpenEncodeSessionEx),
            get_guid_count: need!(nvEncGetEncodeGUIDCount),
            get_guids: need!(nvEncGetEncodeGUIDs),
            get_caps: need!(nvEncGetEncodeCaps),
            get_input_format_count: need!(nvEncGetInputFormatCount),
            get_input_formats: need!(nvEncGetInputFormats),
            get_preset_config_ex: need!(nvEncGetEncodePresetConfigEx),
            initialize: need!(nvEncInitializeEncoder),
            reconfigure: need!(nvEncReconfigureEncoder),
            create_bitstream: need!(nvEncCreateBitstreamBuffer),
            destroy_bitstream: need!(nvEncDestroyBitstreamBuffer),
            register_resource: need!(nvEncRegisterResource),
            unregister_resource: need!(nvEncUnregisterResource),
            map_input: need!(nvEncMapInputResource),
            unmap_input: need!(nvEncUnmapInputResource),
            encode_picture: need!(nvEncEncodePicture),
            lock_bitstream: need!(nvEncLockBitstream),
            unlock_bitstream: need!(nvEncUnlockBitstream),
            destroy_encoder: need!(nvEncDestroyEncoder),
            set_io_cuda_streams: list.nvEncSetIOCudaStreams,
            get_last_error: list.nvEncGetLastErrorString,
        })
    }

    /// The driver's own words about its last failure; they are often empty or stale.
    ///
    /// # Safety
    ///
    /// `session` must be a live session of this driver, and no other thread may be calling it.
    pub unsafe fn last_error(&self, session: Session) -> Option<String> {
        let get = self.get_last_error?;
        // SAFETY: as the caller promises.
        let words = unsafe { get(session) };
        if words.is_null() {
            return None;
        }
        // SAFETY: the driver gives a NUL-terminated string that lives until the next call.
        let words = unsafe { CStr::from_ptr(words) }.to_str().ok()?;
        let words = words.trim_start_matches(':').trim();
        (!words.is_empty()).then(|| words.to_owned())
    }
}
