//! A recording and what reads it: our own reader, or the ZED SDK.

use std::path::Path;

use super::colour::{BT709, colour_of};
use super::decode::Pixels;
use super::decoding::Decoding;
use super::error::OfflineError;
use super::sdk::{self, SdkRecording};
use super::svo::{Recording, SvoError, Version, version_of};
use super::view::{View, ViewChoice, ViewRequest};
use crate::bitstream::sps::Colour;
use crate::pipeline::stop::StopToken;

/// `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum BackendChoice {
    /// Our own reader for SVO2; the ZED SDK for SVO1, where it is installed
    #[default]
    Auto,
    /// Our own reader
    Native,
    /// The ZED SDK
    Sdk,
}

/// An open recording.
pub enum Input {
    Native(Recording),
    Sdk(SdkRecording),
}

/// One picture of a recording.
#[derive(Debug)]
pub struct SourcePicture {
    /// Of the frame in the recording.
    pub index: usize,
    /// Of the image, on the recorder's clock.
    pub timestamp_ns: u64,
    pub pixels: Pixels,
}

impl Input {
    /// Opens the recording at `path` for the view that will be asked for.
    ///
    /// # Errors
    ///
    /// If the backend is not there, cannot read the file, or cannot give such a view.
    pub fn open(
        path: &Path,
        backend: BackendChoice,
        request: &ViewRequest,
    ) -> Result<Self, OfflineError> {
        let version = version_of(path);
        let by_sdk = match backend {
            BackendChoice::Auto => matches!(version, Ok(Version::One)),
            BackendChoice::Native => false,
            BackendChoice::Sdk => true,
        };
        if !by_sdk {
            return Ok(Self::Native(Recording::open(path)?));
        }
        version?;
        if let (BackendChoice::Auto, Err(reason)) = (backend, sdk::available()) {
            let path = path.to_owned();
            return Err(SvoError::Version1 { path, reason }.into());
        }
        if request.choice.is_raw() {
            return Err(OfflineError::Usage(format!(
                "{}: the ZED SDK gives rectified single eyes only: take --view left or right",
                path.display()
            )));
        }
        let settings = request
            .calibration
            .as_deref()
            .map(|path| match path.is_dir() {
                true => path,
                false => path.parent().unwrap_or(path),
            });
        Ok(Self::Sdk(SdkRecording::open(path, settings)?))
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Native(recording) => recording.path(),
            Self::Sdk(recording) => recording.path(),
        }
    }

    /// How many frames there are; at least one.
    pub fn frames(&self) -> usize {
        match self {
            Self::Native(recording) => recording.frames().len(),
            Self::Sdk(recording) => recording.frames(),
        }
    }

    /// Nominal frames per second.
    pub fn fps(&self) -> u32 {
        match self {
            Self::Native(recording) => recording.fps(),
            Self::Sdk(recording) => recording.fps(),
        }
    }

    /// What a person should know about the state of the file.
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::Native(recording) => recording.warnings(),
            Self::Sdk(_) => &[],
        }
    }

    /// The colours of the pictures.
    pub fn colour(&self) -> Colour {
        match self {
            Self::Native(recording) => colour_of(recording),
            // Made from BGRA by our own conversion.
            Self::Sdk(_) => BT709,
        }
    }

    /// When each frame was taken.
    ///
    /// # Errors
    ///
    /// If the SDK stops at a frame.
    pub fn timestamps(&self) -> Result<Vec<u64>, OfflineError> {
        match self {
            Self::Native(recording) => Ok(recording
                .frames()
                .iter()
                .map(|frame| frame.timestamp_ns)
                .collect()),
            Self::Sdk(recording) => recording.timestamps(),
        }
    }

    /// The view of pictures of `size`, and a warning where it is not what was wished for.
    ///
    /// # Errors
    ///
    /// If the choice insists on a calibration and there is none.
    pub fn view(
        &self,
        request: &ViewRequest,
        size: (usize, usize),
    ) -> Result<(View, Option<String>), OfflineError> {
        match self {
            Self::Native(recording) => Ok(View::open(
                request,
                recording.path(),
                recording.serial(),
                size,
            )?),
            Self::Sdk(_) => Ok((View::whole(size), None)),
        }
    }

    /// The size of the pictures, found by decoding the one at `index`.
    ///
    /// # Errors
    ///
    /// If nothing from there on can be decoded.
    pub fn picture_size(&self, index: usize) -> Result<(usize, usize), OfflineError> {
        let recording = match self {
            Self::Native(recording) => recording,
            Self::Sdk(recording) => return Ok(recording.size()),
        };
        let found = std::cell::Cell::new(None);
        let take = |picture: SourcePicture| {
            let picture = picture.pixels.on_host();
            found.set(Some((picture.width, picture.height)));
            false
        };
        let last = recording.frames().len() - 1;
        let skipped = Decoding::new(recording, 1).run(index, last, &take, &StopToken::new())?;
        found.get().ok_or_else(|| OfflineError::NoPictures {
            path: recording.path().to_owned(),
            skipped,
        })
    }

    /// Gives the pictures of the frames from `first` to `last` to `send`, until it refuses one or
    /// `stop` is set, and returns of how many of them there is no picture.
    ///
    /// # Errors
    ///
    /// If nothing can be decoded, or the SDK stops at a frame.
    pub fn pictures(
        &self,
        (first, last): (usize, usize),
        view: ViewChoice,
        threads: usize,
        send: &dyn Fn(SourcePicture) -> bool,
        stop: &StopToken,
    ) -> Result<usize, OfflineError> {
        match self {
            Self::Native(recording) => {
                Decoding::new(recording, threads).run(first, last, send, stop)
            }
            Self::Sdk(recording) => recording.pictures((first, last), view.is_right(), send, stop),
        }
    }
}
