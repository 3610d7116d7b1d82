//! Bindings to the NVIDIA Video Encoder API, loaded at run time.
//!
//! - [`bindings`]: the structures, constants and GUIDs of `nvEncodeAPI.h`, generated at build time
//!   from the header that the build found (11.0 to 13.0; nothing generated is committed);
//! - [`loader`]: opens a driver library and gives a table of functions or a reason, never a panic;
//! - [`compat`]: the few fields that are not the same in every header;
//! - [`status`]: what the driver's numbers mean.
//!
//! CUDA is not bound here; its handles cross as `*mut c_void`.

pub mod bindings;
pub mod compat;
pub mod loader;
pub mod status;

pub use bindings::*;
pub use loader::{EncodeApi, LoadError, SharedLibrary};
pub use status::StatusInfo;

/// The API version of the header that this crate was built with.
pub const API_VERSION: ApiVersion = ApiVersion {
    major: NVENCAPI_MAJOR_VERSION,
    minor: NVENCAPI_MINOR_VERSION,
};

/// A version of the NVENC API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    pub major: u32,
    pub minor: u32,
}

impl ApiVersion {
    /// As `NvEncodeAPIGetMaxSupportedVersion` packs it: `major << 4 | minor`. (`apiVersion` in
    /// structures is packed the other way, `major | minor << 24`.)
    pub const fn from_max_supported(packed: u32) -> Self {
        Self {
            major: packed >> 4,
            minor: packed & 0xF,
        }
    }

    /// The least Linux driver that serves this version, from the SDKs' release notes.
    pub const fn least_driver(self) -> &'static str {
        match (self.major, self.minor) {
            (..=10, _) | (11, 0) => "455.28",
            (11, _) => "470.57.02",
            (12, 0) => "520.56.06",
            (12, 1) => "530.41.03",
            (12, _) => "550.54.14",
            _ => "570",
        }
    }
}

impl core::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

macro_rules! debug_as_number {
    ($($name:ident),*) => { $(impl core::fmt::Debug for $name {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            write!(f, concat!(stringify!($name), "({:#x})"), self.0)
        }
    })* };
}

// Deriving Debug for every structure of the header would print kilobytes of reserved zeros.
debug_as_number!(
    NVENCSTATUS,
    NV_ENC_BUFFER_FORMAT,
    NV_ENC_PIC_TYPE,
    NV_ENC_CAPS,
    NV_ENC_TUNING_INFO
);

impl PartialEq for GUID {
    fn eq(&self, other: &Self) -> bool {
        (self.Data1, self.Data2, self.Data3, self.Data4)
            == (other.Data1, other.Data2, other.Data3, other.Data4)
    }
}

impl Eq for GUID {}

impl core::fmt::Debug for GUID {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let name = ALL_GUIDS.iter().find(|(_, guid)| guid == self);
        match name {
            Some((name, _)) => f.write_str(name),
            None => write!(
                f,
                "{{{:08X}-{:04X}-{:04X}-{:02X?}}}",
                self.Data1, self.Data2, self.Data3, self.Data4
            ),
        }
    }
}

#[cfg(test)]
mod tests;
