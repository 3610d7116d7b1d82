//! What can end a conversion, and the exit code of the tools for it.

use std::io;
use std::path::{Path, PathBuf};

use super::calibration::CalibrationError;
use super::decode::DecodeError;
use super::svo::SvoError;
use crate::encode::EncodeError;

#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The arguments make no sense with these recordings.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Svo(#[from] SvoError),
    #[error("{0}")]
    Calibration(#[from] CalibrationError),
    #[error("{path}: {source}", path = path.display())]
    Decode { path: PathBuf, source: DecodeError },
    #[error("{path}: none of the frames could be decoded ({skipped} are damaged)", path = path.display())]
    NoPictures { path: PathBuf, skipped: usize },
    #[error("{0}")]
    NoEncoder(EncodeError),
    #[error("the encoder broke after {frames} frames: {source}")]
    EncoderBroke { frames: u64, source: EncodeError },
    #[error("{path}: {source}", path = path.display())]
    Output { path: PathBuf, source: io::Error },
    #[error("{path}: another process is writing it", path = path.display())]
    Busy { path: PathBuf },
    #[error("{path}: {detail}", path = path.display())]
    Mux { path: PathBuf, detail: String },
    #[error("the recordings have no time in common: {0}")]
    NoOverlap(String),
    #[error(
        "a clock was set during the recording, so its frames have no place beside the others: {0}"
    )]
    Clock(String),
    #[error("the ZED SDK cannot be used: {0}")]
    Sdk(String),
    #[error("interrupted")]
    Interrupted,
    /// A thread ended without saying why.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl OfflineError {
    /// The contract's section 5.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::NoEncoder(_)
            | Self::Decode {
                source: DecodeError::Unsupported { .. },
                ..
            } => exit::NO_CODEC,
            Self::Interrupted => exit::INTERRUPTED,
            _ => exit::FAILED,
        }
    }

    pub(super) fn output(path: &Path, source: io::Error) -> Self {
        Self::Output {
            path: path.to_owned(),
            source,
        }
    }
}

/// The exit codes of the three tools; the streamer has its own table.
pub mod exit {
    pub const SUCCESS: u8 = 0;
    /// Unreadable input, no frames, a write error, a failed item of a batch.
    pub const FAILED: u8 = 1;
    /// Bad arguments or configuration.
    pub const USAGE: u8 = 2;
    /// No usable encoder or decoder.
    pub const NO_CODEC: u8 = 5;
    pub const INTERRUPTED: u8 = 130;
}
