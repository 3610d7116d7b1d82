//! What the flags mean: checked once, and in a form in which nonsense cannot be written down.

mod input;
mod output;
mod value;

use std::path::PathBuf;
use std::time::Duration;

pub use input::{NATS_URL, server};

use crate::cli::streamer::{InputModeArg, RunModeArg, StreamerArgs};
use crate::control::server::ServerConfig;
use crate::encode::registry::EncoderChoice;
use crate::encode::{Codec, FrameRate, Preset, RateControl};
use crate::flv::packaging::{Packaging, PackagingError};
use crate::rtmp::url::RtmpUrl;
use crate::sink::rtmp::TlsOptions;
use crate::sink::rtp::Pacing;
use crate::source::contract::Label;
use input::{body_output, input, nats};
use output::stream;
use value::value;

/// A run of the streamer.
#[derive(Debug, Clone)]
pub struct StreamerConfig {
    pub input: Input,
    /// `None`: NATS is not used.
    pub nats: Option<ServerConfig>,
    pub body_output: BodyOutput,
    /// Snapshots that may wait for the encoder.
    pub queue_size: usize,
    pub max_frames: Option<u64>,
    pub idle_timeout: Option<Duration>,
    /// Wait for frames awake.
    pub busy_poll: bool,
    /// SCHED_FIFO priority, 1 to 99.
    pub realtime: Option<u8>,
    /// `None` in ingest mode.
    pub stream: Option<StreamConfig>,
    pub report_json: Option<PathBuf>,
    pub status_line: bool,
    /// Flags that were given and mean nothing here; accepted, as scripts pass them.
    pub ignored: Vec<&'static str>,
}

/// What becomes of the bodies that a producer tracks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BodyOutput {
    /// Counted and dropped.
    #[default]
    None,
    /// A record in the access unit of their picture.
    Sei,
    /// A line of JSON each.
    Jsonl(PathBuf),
}

/// Where frames come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The one producer that discovery finds; `main` replaces it before a run.
    Discover,
    Cvmmap(Names),
    Dummy(Names, Dummy),
    Annexb {
        path: PathBuf,
        /// `None`: as fast as it goes.
        pace: Option<FrameRate>,
    },
}

impl Input {
    /// The producer's names, if there is one.
    pub fn names(&self) -> Option<&Names> {
        match self {
            Self::Cvmmap(names) | Self::Dummy(names, _) => Some(names),
            Self::Discover | Self::Annexb { .. } => None,
        }
    }
}

/// The names under which a producer is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Without a leading slash.
    pub shm_name: String,
    pub zmq_endpoint: String,
    /// In the sync messages; `None` takes any.
    pub label: Option<Label>,
    /// Key of the producer's NATS subjects.
    pub nats_key: String,
}

/// The built-in producer.
#[derive(Debug, Clone, PartialEq)]
pub struct Dummy {
    pub label: String,
    /// 0 = endless.
    pub frames: u64,
    pub fps: FrameRate,
    pub width: u32,
    pub height: u32,
}

/// From the encoder on.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    pub encoder: EncoderSettings,
    pub embed_timestamps: bool,
    pub rtp: Vec<RtpOutput>,
    pub rtmp: Vec<RtmpOutput>,
}

/// What the user wants of the encoder; the picture's shape comes with the first frame.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSettings {
    pub codec: Codec,
    pub choice: EncoderChoice,
    pub gop: u32,
    pub b_frames: u32,
    /// [`crate::encode::EncoderConfig::intra_refresh`].
    pub intra_refresh: bool,
    /// `None`: a default from the picture's size and rate.
    pub rate: Option<RateControl>,
    pub preset: Preset,
    /// `None`: what the producer says, else what is measured.
    pub frame_rate: Option<FrameRate>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RtpOutput {
    pub endpoint: String,
    pub payload_type: u8,
    pub mtu: usize,
    pub pacing: Pacing,
    pub sdp_path: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct RtmpOutput {
    pub url: RtmpUrl,
    pub packaging: Packaging,
    /// 0 = for ever.
    pub max_retries: u32,
    pub max_backoff: Duration,
    pub tls: TlsOptions,
}

/// A refusal: which flag, which value, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{flag} is required{why}; {instead}")]
    Missing {
        flag: &'static str,
        why: &'static str,
        instead: &'static str,
    },
    #[error("{flag} {value}: {reason}")]
    Value {
        flag: &'static str,
        value: String,
        reason: String,
    },
    #[error("{flag} does not go with {other}: {instead}")]
    Conflict {
        flag: &'static str,
        other: &'static str,
        instead: &'static str,
    },
    #[error("{flag} needs {switch}: add {switch}, or leave {flag} out")]
    SwitchOff {
        flag: &'static str,
        switch: &'static str,
    },
    #[error("{flag}: {path}: {reason}")]
    File {
        flag: &'static str,
        path: String,
        reason: String,
    },
    #[error(transparent)]
    Packaging(#[from] PackagingError),
    #[error("--dummy-label exceeds 24 bytes ({len})")]
    LongLabel { len: usize },
}

/// The label field of a sync message (contract section 3).
const LARGEST_LABEL: usize = 24;

impl StreamerConfig {
    /// # Errors
    ///
    /// The first thing that makes no sense, in the words of the command line.
    pub fn from_args(args: &StreamerArgs) -> Result<Self, ConfigError> {
        let ingest_only = args.run_mode == Some(RunModeArg::Ingest);
        let stream = if ingest_only {
            None
        } else {
            Some(stream(args)?)
        };
        if let Some(label) = &args.dummy.dummy_label
            && label.len() > LARGEST_LABEL
        {
            return Err(ConfigError::LongLabel { len: label.len() });
        }
        let input = input(args, stream.as_ref())?;
        let queue_size = args.input.queue_size.unwrap_or(1);
        if !(1..=64).contains(&queue_size) {
            return Err(value("--queue-size", queue_size, "use 1 to 64 frames"));
        }
        let nats = nats(args, &input)?;
        if args.input.ingest_max_frames == Some(0) {
            return Err(value(
                "--ingest-max-frames",
                0,
                "give at least 1, or leave it out for no limit",
            ));
        }
        if args.scheduling.busy_poll && matches!(input, Input::Annexb { .. }) {
            return Err(ConfigError::Conflict {
                flag: "--busy-poll",
                other: "--input-mode annexb",
                instead: "a file is read when its time has come; leave --busy-poll out",
            });
        }
        let realtime = match args.scheduling.realtime {
            None => None,
            Some(priority @ 1..=99) => Some(priority as u8),
            Some(priority) => return Err(value("--realtime", priority, "use 1 to 99")),
        };
        Ok(Self {
            busy_poll: args.scheduling.busy_poll,
            realtime,
            body_output: body_output(args, &input, nats.is_some())?,
            input,
            nats,
            queue_size: queue_size as usize,
            max_frames: args.input.ingest_max_frames,
            idle_timeout: match args.input.ingest_idle_timeout_ms {
                None | Some(0) => None,
                Some(ms) => Some(Duration::from_millis(ms)),
            },
            stream,
            report_json: args.report.report_json.clone(),
            status_line: !args.report.no_status,
            ignored: ignored(args),
        })
    }
}

/// The original takes the built-in producer's flags in every mode, and uses them in one.
fn ignored(args: &StreamerArgs) -> Vec<&'static str> {
    if args.input.input_mode == Some(InputModeArg::Dummy) {
        return Vec::new();
    }
    let dummy = &args.dummy;
    [
        ("--dummy-label", dummy.dummy_label.is_some()),
        ("--dummy-frames", dummy.dummy_frames.is_some()),
        ("--dummy-fps", dummy.dummy_fps.is_some()),
        ("--dummy-width", dummy.dummy_width.is_some()),
        ("--dummy-height", dummy.dummy_height.is_some()),
    ]
    .into_iter()
    .filter_map(|(flag, given)| given.then_some(flag))
    .collect()
}
