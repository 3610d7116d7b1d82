//! The command lines of the three recording tools (contract section 5). Their exit codes are a
//! table of their own, [`crate::offline::error::exit`].

pub mod batch;
pub mod grid;
pub mod signals;
pub mod single;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::encode::{Codec, EncoderChoice, Preset};
use crate::offline::clock::Timing;
use crate::offline::encode::EncodeOptions;
use crate::offline::input::BackendChoice;
use crate::offline::view::{ViewChoice, ViewRequest};

/// The encoder options that the tools share.
#[derive(Debug, Clone, Args)]
pub struct EncoderArgs {
    #[arg(long, value_enum, default_value_t = Codec::H265)]
    pub codec: Codec,

    /// What codes the pictures
    #[arg(long, visible_alias = "encoder", value_enum, default_value_t)]
    pub encoder_device: EncoderDevice,

    /// Speed against quality
    #[arg(long, value_enum, default_value_t)]
    pub preset: OfflinePreset,

    /// Constant quality, 0 (best) to 51
    #[arg(long, value_name = "Q", default_value_t = 23, value_parser = clap::value_parser!(u8).range(0..=51))]
    pub quality: u8,

    /// Frames from one key frame to the next
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub gop: u32,

    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub b_frames: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum EncoderDevice {
    /// Hardware; software if that is missing or cannot be opened
    #[default]
    Auto,
    /// NVIDIA hardware, or exit code 5
    #[value(alias = "nvenc")]
    Nvidia,
    /// Software
    Software,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OfflinePreset {
    Fastest,
    Fast,
    #[default]
    Balanced,
    Quality,
}

impl EncoderArgs {
    pub fn options(&self) -> EncodeOptions {
        EncodeOptions {
            codec: self.codec,
            choice: match self.encoder_device {
                EncoderDevice::Auto => EncoderChoice::Auto,
                EncoderDevice::Nvidia => EncoderChoice::Nvenc,
                EncoderDevice::Software => EncoderChoice::Software,
            },
            preset: match self.preset {
                OfflinePreset::Fastest => Preset::Fastest,
                OfflinePreset::Fast => Preset::Fast,
                OfflinePreset::Balanced => Preset::Balanced,
                OfflinePreset::Quality => Preset::Quality,
            },
            quality: self.quality,
            gop: self.gop,
            b_frames: self.b_frames,
        }
    }

    /// The same options as words, for a child process.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        add("--codec", value_name(self.codec));
        add("--encoder-device", value_name(self.encoder_device));
        add("--preset", value_name(self.preset));
        add("--quality", self.quality.to_string());
        add("--gop", self.gop.to_string());
        add("--b-frames", self.b_frames.to_string());
        words
    }
}

/// How the recordings are read and shown.
#[derive(Debug, Clone, Args)]
pub struct ViewArgs {
    /// The view of the MP4
    #[arg(long, value_enum, default_value_t)]
    pub view: ViewChoice,

    /// Calibration of the camera: a file, or a folder with SN40735594.conf (its serial number). Else it is looked for
    /// beside the recording, in the folder above, and in /usr/local/zed/settings
    #[arg(long, value_name = "PATH")]
    pub calibration: Option<PathBuf>,

    /// What reads the recording
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
}

impl ViewArgs {
    pub fn request(&self) -> ViewRequest {
        ViewRequest {
            choice: self.view,
            calibration: self.calibration.clone(),
        }
    }

    /// The same options as words, for a child process.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec!["--view".to_owned(), value_name(self.view)];
        words.extend(["--backend".to_owned(), value_name(self.backend)]);
        if let Some(path) = &self.calibration {
            words.extend(["--calibration".to_owned(), path.display().to_string()]);
        }
        words
    }
}

/// Which frames, and at what times.
#[derive(Debug, Clone, Args)]
pub struct RangeArgs {
    /// First frame, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub start_frame: usize,

    /// Last frame, included; default: the last one
    #[arg(long, value_name = "N")]
    pub end_frame: Option<usize>,

    /// Where the times of the frames come from
    #[arg(long, value_enum, default_value_t)]
    pub timing: Timing,
}

impl RangeArgs {
    /// The same options as words, for a child process.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec!["--start-frame".to_owned(), self.start_frame.to_string()];
        if let Some(end) = self.end_frame {
            words.extend(["--end-frame".to_owned(), end.to_string()]);
        }
        words.extend(["--timing".to_owned(), value_name(self.timing)]);
        words
    }
}

/// The encoder in the last line of a tool.
fn device_name(encoder: &str) -> String {
    match encoder {
        "nvenc" => "nvidia (nvenc)".to_owned(),
        name => format!("software ({name})"),
    }
}

/// How a value is written on the command line.
fn value_name(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Log lines of the encoders on standard error; `RUST_LOG` changes what is shown.
pub fn init_log() {
    let _ = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .try_init();
}
