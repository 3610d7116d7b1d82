//! What the driver's status numbers mean.

use crate::NVENCSTATUS;

/// One row of the table of `NVENCSTATUS` values, with what it means in practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusInfo {
    pub code: u32,
    /// The header's name without its prefix.
    pub name: &'static str,
    /// What it means to a person.
    pub meaning: &'static str,
}

impl StatusInfo {
    /// The row of `status`; a number of a newer driver has the name `UNKNOWN`.
    pub fn of(status: NVENCSTATUS) -> Self {
        TABLE
            .iter()
            .find(|row| row.code == status.0)
            .copied()
            .unwrap_or(Self {
                code: status.0,
                name: "UNKNOWN",
                meaning: "a status of a newer driver",
            })
    }
}

impl core::fmt::Display for StatusInfo {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({})", self.name, self.code)
    }
}

/// Every status of the header (0 to 25; 26 came with API 12).
pub const TABLE: &[StatusInfo] = &[
    row(0, "SUCCESS", "success"),
    row(1, "NO_ENCODE_DEVICE", "this GPU has no encoder"),
    row(
        2,
        "UNSUPPORTED_DEVICE",
        "this GPU has no encoder that the driver supports",
    ),
    row(3, "INVALID_ENCODERDEVICE", "the CUDA context was refused"),
    row(4, "INVALID_DEVICE", "the device handle is not valid"),
    row(5, "DEVICE_NOT_EXIST", "the GPU is lost or was reset"),
    row(6, "INVALID_PTR", "a pointer was refused"),
    row(7, "INVALID_EVENT", "an event was refused"),
    row(8, "INVALID_PARAM", "a field or the picture size is refused"),
    row(9, "INVALID_CALL", "the call is not allowed now"),
    row(
        10,
        "OUT_OF_MEMORY",
        "all encoder sessions of this GPU are in use, or it is out of memory",
    ),
    row(
        11,
        "ENCODER_NOT_INITIALIZED",
        "the session is not initialised",
    ),
    row(
        12,
        "UNSUPPORTED_PARAM",
        "this GPU lacks a feature that was asked for",
    ),
    row(13, "LOCK_BUSY", "the output is not ready"),
    row(14, "NOT_ENOUGH_BUFFER", "a buffer is too small"),
    row(
        15,
        "INVALID_VERSION",
        "the driver is too old for this program, or a structure version is wrong",
    ),
    row(16, "MAP_FAILED", "the input could not be mapped"),
    row(17, "NEED_MORE_INPUT", "the encoder holds the picture back"),
    row(18, "ENCODER_BUSY", "the encoder is busy"),
    row(19, "EVENT_NOT_REGISTERD", "the event is not registered"),
    row(20, "GENERIC", "the driver failed without saying why"),
    row(
        21,
        "INCOMPATIBLE_CLIENT_KEY",
        "all encoder sessions of this GPU are in use",
    ),
    row(22, "UNIMPLEMENTED", "the driver lacks this function"),
    row(
        23,
        "RESOURCE_REGISTER_FAILED",
        "the surface could not be registered",
    ),
    row(
        24,
        "RESOURCE_NOT_REGISTERED",
        "the surface is not registered",
    ),
    row(25, "RESOURCE_NOT_MAPPED", "the surface is not mapped"),
    row(
        26,
        "NEED_MORE_OUTPUT",
        "the encoder wants another output buffer",
    ),
];

const fn row(code: u32, name: &'static str, meaning: &'static str) -> StatusInfo {
    StatusInfo {
        code,
        name,
        meaning,
    }
}
