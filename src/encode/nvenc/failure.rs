//! What can go wrong in a session, in words, and the names of its calls.

use nvenc_sys::{LoadError, NVENCSTATUS, StatusInfo};

use super::cuda::CudaError;
use super::driver::DeviceError;

macro_rules! calls {
    ($($name:ident = $text:literal,)*) => {
        /// The calls of a session.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Call { $($name,)* }

        impl Call {
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

calls! {
    Open = "nvEncOpenEncodeSessionEx",
    GetGuids = "nvEncGetEncodeGUIDs",
    GetCaps = "nvEncGetEncodeCaps",
    GetFormats = "nvEncGetInputFormats",
    GetPreset = "nvEncGetEncodePresetConfigEx",
    Initialize = "nvEncInitializeEncoder",
    SetStreams = "nvEncSetIOCudaStreams",
    CreateBitstream = "nvEncCreateBitstreamBuffer",
    DestroyBitstream = "nvEncDestroyBitstreamBuffer",
    Register = "nvEncRegisterResource",
    Unregister = "nvEncUnregisterResource",
    Map = "nvEncMapInputResource",
    Unmap = "nvEncUnmapInputResource",
    Encode = "nvEncEncodePicture",
    Lock = "nvEncLockBitstream",
    Unlock = "nvEncUnlockBitstream",
    Reconfigure = "nvEncReconfigureEncoder",
    Destroy = "nvEncDestroyEncoder",
}

/// A call that failed, with what a person needs to find out why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {detail}")]
pub struct Failure {
    pub call: &'static str,
    /// The driver's number.
    pub status: i64,
    pub detail: String,
}

/// Why a session could not be opened. None of these is unusual.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Load(#[from] LoadError),
    #[error("{0}")]
    Device(#[from] DeviceError),
    #[error("{gpu}: {0}", gpu = .1)]
    Cuda(CudaError, String),
    #[error("{gpu} has no encoder ({failure})")]
    NoEngine { gpu: String, failure: Failure },
    #[error(
        "{gpu}: all encoder sessions are in use (other programs count too), or it is out of memory ({failure})"
    )]
    SessionLimit { gpu: String, failure: Failure },
    #[error("{gpu} does not encode {codec}")]
    Codec { gpu: String, codec: &'static str },
    #[error("{gpu}: {reason}")]
    Size { gpu: String, reason: String },
    #[error("{gpu}: {failure} (wanted {wanted})")]
    Call {
        gpu: String,
        failure: Failure,
        wanted: String,
    },
}

/// The failure of a call, with the driver's own words where it has any.
///
/// # Errors
///
/// If the status is not success.
pub fn check(call: Call, status: NVENCSTATUS, words: Option<String>) -> Result<(), Failure> {
    if status.0 == 0 {
        return Ok(());
    }
    let info = StatusInfo::of(status);
    let words = words.map_or_else(String::new, |words| format!(": {words}"));
    Err(Failure {
        call: call.name(),
        status: i64::from(status.0),
        detail: format!("{info}{words}; {}", info.meaning),
    })
}

/// A CUDA call that failed on the encode path.
pub fn cuda_failure(error: &CudaError) -> Failure {
    Failure {
        call: error.call,
        status: i64::from(error.code),
        detail: format!("{} ({})", error.name, error.code),
    }
}

/// Something that cannot happen while driver and program keep their promises.
pub fn bug(what: &str) -> Failure {
    Failure {
        call: "encode",
        status: 0,
        detail: what.to_owned(),
    }
}

pub const NO_ENCODE_DEVICE: i64 = 1;
pub const UNSUPPORTED_DEVICE: i64 = 2;
pub const DEVICE_NOT_EXIST: i64 = 5;
pub const INVALID_PARAM: i64 = 8;
pub const OUT_OF_MEMORY: i64 = 10;
pub const UNSUPPORTED_PARAM: i64 = 12;
pub const NOT_ENOUGH_BUFFER: i64 = 14;
pub const NEED_MORE_INPUT: i64 = 17;
pub const ENCODER_BUSY: i64 = 18;
pub const INCOMPATIBLE_CLIENT_KEY: i64 = 21;
