//! What the flags mean: checked once, and in a form in which nonsense cannot be written down.

use std::path::PathBuf;
use std::time::Duration;

use crate::cli::streamer::{
    CodecArg, EncoderArg, InputModeArg, NatsArgs, PacingArg, PresetArg, RtmpModeArg, RunModeArg,
    StreamerArgs,
};
use crate::control::server::ServerConfig;
use crate::encode::registry::EncoderChoice;
use crate::encode::{Codec, FrameRate, Preset, RateControl};
use crate::flv::packaging::{Packaging, PackagingError, RtmpMode};
use crate::rtmp::url::RtmpUrl;
use crate::sink::rtmp::TlsOptions;
use crate::sink::rtp::Pacing;
use crate::source::contract::Label;
use crate::source::target::{Target, nats_key_of};

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
    /// `None`: a default from the picture's size and rate.
    pub rate: Option<RateControl>,
    pub preset: Preset,
    /// `None`: what the producer says, else what is measured.
    pub frame_rate: Option<FrameRate>,
    pub gpu: Option<String>,
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
/// What a coder of either kind takes; the metadata allows 65535.
const LARGEST_SIDE: u32 = 16384;

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
        })
    }
}

/// The producer's default server (contract section 1).
pub const NATS_URL: &str = "nats://localhost:4222";
/// As `--input-uri`: the one producer that is there.
const DISCOVER: &str = "discover:";

fn nats(args: &StreamerArgs, input: &Input) -> Result<Option<ServerConfig>, ConfigError> {
    let given = &args.nats;
    if args.input.no_nats {
        let other = [
            ("--nats-url", given.nats_url.is_some()),
            ("--nats-creds", given.nats_creds.is_some()),
            ("--nats-ca", given.nats_ca.is_some()),
            ("--input-uri discover:", *input == Input::Discover),
        ];
        return match other.iter().find(|(_, given)| *given) {
            Some((other, _)) => Err(ConfigError::Conflict {
                flag: "--no-nats",
                other,
                instead: "leave one of them out",
            }),
            None => Ok(None),
        };
    }
    server(given).map(Some)
}

/// The server that the flags name.
///
/// # Errors
///
/// If the URL is none, or a file cannot be read.
pub fn server(given: &NatsArgs) -> Result<ServerConfig, ConfigError> {
    let url = given.nats_url.as_deref().unwrap_or(NATS_URL);
    // The value is not repeated: it may hold a password.
    let mut server = ServerConfig::parse(url)
        .map_err(|error| value("--nats-url", "(not shown)", error.to_string()))?;
    for (flag, path) in [
        ("--nats-creds", &given.nats_creds),
        ("--nats-ca", &given.nats_ca),
    ] {
        if let Some(path) = path
            && let Err(error) = std::fs::File::open(path)
        {
            return Err(ConfigError::File {
                flag,
                path: path.display().to_string(),
                reason: error.to_string(),
            });
        }
    }
    server.credentials = given.nats_creds.clone();
    server.authorities = given.nats_ca.clone();
    Ok(server)
}

fn body_output(args: &StreamerArgs, input: &Input, nats: bool) -> Result<BodyOutput, ConfigError> {
    let output = match args.input.body_output.as_deref() {
        None | Some("none") => return Ok(BodyOutput::None),
        Some("sei") => BodyOutput::Sei,
        Some(other) => match other.strip_prefix("jsonl:") {
            Some(path) if !path.is_empty() => BodyOutput::Jsonl(path.into()),
            _ => {
                return Err(value("--body-output", other, "use none, sei or jsonl:PATH"));
            }
        },
    };
    let conflict = |other, instead| {
        Err(ConfigError::Conflict {
            flag: "--body-output",
            other,
            instead,
        })
    };
    if !nats {
        return conflict("--no-nats", "bodies come over NATS: leave one of them out");
    }
    if matches!(input, Input::Annexb { .. }) {
        return conflict("--input-mode annexb", "a file has no bodies: leave it out");
    }
    if args.run_mode == Some(RunModeArg::Ingest) {
        return conflict(
            "--run-mode ingest",
            "bodies are paired with encoded pictures: use --run-mode pipeline",
        );
    }
    Ok(output)
}

fn input(args: &StreamerArgs, stream: Option<&StreamConfig>) -> Result<Input, ConfigError> {
    let mode = args.input.input_mode.unwrap_or(InputModeArg::Cvmmap);
    if mode == InputModeArg::Annexb {
        let path = args.input.input_file.clone().ok_or(ConfigError::Missing {
            flag: "--input-file",
            why: " with --input-mode annexb",
            instead: "give the elementary stream to replay",
        })?;
        let fps = args.encoder.fps;
        let pace = match fps {
            Some(0.0) => None,
            _ => Some(frame_rate("--fps", fps)?.unwrap_or(FrameRate::THIRTY)),
        };
        if let Some(stream) = stream
            && !matches!(
                stream.encoder.choice,
                EncoderChoice::Auto | EncoderChoice::Passthrough
            )
        {
            return Err(ConfigError::Conflict {
                flag: "--encoder",
                other: "--input-mode annexb",
                instead: "a recorded stream is forwarded as it is: use --encoder passthrough",
            });
        }
        return Ok(Input::Annexb { path, pace });
    }
    if args.input.input_file.is_some() {
        return Err(ConfigError::Conflict {
            flag: "--input-file",
            other: "--input-mode cvmmap",
            instead: "add --input-mode annexb to replay a file",
        });
    }
    if args.input.input_uri.as_deref() == Some(DISCOVER) {
        if mode == InputModeArg::Dummy {
            return Err(ConfigError::Conflict {
                flag: "--input-uri discover:",
                other: "--input-mode dummy",
                instead: "a producer of one's own has a name: give it",
            });
        }
        refuse_names(
            args,
            "--input-uri discover:",
            "discovery finds both: leave it out",
        )?;
        return Ok(Input::Discover);
    }
    let names = names(args)?;
    if mode == InputModeArg::Dummy {
        return Ok(Input::Dummy(names, dummy(args)?));
    }
    Ok(Input::Cvmmap(names))
}

fn names(args: &StreamerArgs) -> Result<Names, ConfigError> {
    let input = &args.input;
    if let Some(uri) = &input.input_uri {
        refuse_names(
            args,
            "--input-uri",
            "the URI names both: leave the other out",
        )?;
        let target =
            Target::parse(uri).map_err(|error| value("--input-uri", uri, error.to_string()))?;
        return Ok(Names {
            shm_name: target.shm_name(),
            zmq_endpoint: target.zmq_endpoint(),
            label: Label::new(target.instance()).ok(),
            nats_key: target.nats_key(),
        });
    }
    let missing = |flag| ConfigError::Missing {
        flag,
        why: "",
        instead: "give --shm-name and --zmq-endpoint, or --input-uri NAME, which derives both",
    };
    let given = input.shm_name.as_deref().ok_or(missing("--shm-name"))?;
    let zmq_endpoint = input
        .zmq_endpoint
        .as_deref()
        .ok_or(missing("--zmq-endpoint"))?;
    let shm_name = given.strip_prefix('/').unwrap_or(given);
    // shm_open(3): one component of at most NAME_MAX bytes.
    if shm_name.is_empty() || shm_name.len() > 255 || shm_name.contains(['/', '\0']) {
        return Err(value(
            "--shm-name",
            given,
            "a segment's name is one path component of 1 to 255 bytes, a leading / apart",
        ));
    }
    let scheme = zmq_endpoint.split_once("://");
    match scheme {
        Some(("ipc" | "tcp" | "inproc", rest)) if !rest.is_empty() => {}
        _ => {
            return Err(value(
                "--zmq-endpoint",
                zmq_endpoint,
                "an endpoint looks like ipc:///path/of/socket or tcp://127.0.0.1:5555",
            ));
        }
    }
    Ok(Names {
        shm_name: shm_name.to_owned(),
        zmq_endpoint: zmq_endpoint.to_owned(),
        label: None,
        nats_key: nats_key_of(shm_name),
    })
}

fn refuse_names(
    args: &StreamerArgs,
    other: &'static str,
    instead: &'static str,
) -> Result<(), ConfigError> {
    let given = [
        ("--shm-name", args.input.shm_name.is_some()),
        ("--zmq-endpoint", args.input.zmq_endpoint.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(ConfigError::Conflict {
            flag,
            other,
            instead,
        }),
        None => Ok(()),
    }
}

fn dummy(args: &StreamerArgs) -> Result<Dummy, ConfigError> {
    let given = &args.dummy;
    let label = given.dummy_label.clone().unwrap_or_else(|| "dummy".into());
    if label.len() > LARGEST_LABEL {
        return Err(ConfigError::LongLabel { len: label.len() });
    }
    if label.is_empty() || !label.is_ascii() {
        return Err(value(
            "--dummy-label",
            label,
            "a label is 1 to 24 ASCII bytes",
        ));
    }
    let fps = frame_rate("--dummy-fps", given.dummy_fps)?.unwrap_or(FrameRate::THIRTY);
    let side = |flag, given: Option<u32>, default| {
        let side = given.unwrap_or(default);
        if (2..=LARGEST_SIDE).contains(&side) {
            Ok(side)
        } else {
            Err(value(flag, side, "use 2 to 16384 pixels"))
        }
    };
    Ok(Dummy {
        label,
        frames: given.dummy_frames.unwrap_or(0),
        fps,
        width: side("--dummy-width", given.dummy_width, 640)?,
        height: side("--dummy-height", given.dummy_height, 360)?,
    })
}

fn stream(args: &StreamerArgs) -> Result<StreamConfig, ConfigError> {
    let codec = match args.encoder.codec {
        Some(CodecArg::H264) => Codec::H264,
        Some(CodecArg::H265) => Codec::H265,
        None => {
            return Err(ConfigError::Missing {
                flag: "--codec",
                why: "",
                instead: "give --codec h264 or --codec h265, or --run-mode ingest to encode nothing",
            });
        }
    };
    Ok(StreamConfig {
        encoder: encoder(args, codec)?,
        embed_timestamps: args.encoder.embed_timestamps,
        rtp: rtp(args)?,
        rtmp: rtmp(args, codec)?,
    })
}

fn encoder(args: &StreamerArgs, codec: Codec) -> Result<EncoderSettings, ConfigError> {
    let given = &args.encoder;
    let rate = match (given.bitrate, given.quality) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::Conflict {
                flag: "--quality",
                other: "--bitrate",
                instead: "a constant quality has no bit rate: choose one",
            });
        }
        (Some(rate), None) => Some(RateControl::Bitrate(bit_rate("--bitrate", rate)?)),
        (None, Some(quality @ 0..=51)) => Some(RateControl::Quality(quality as u8)),
        (None, Some(quality)) => {
            return Err(value("--quality", quality, "use 0 (best) to 51"));
        }
        (None, None) => None,
    };
    let gop = given.gop.unwrap_or(30);
    if gop == 0 || gop > 1_000_000 {
        return Err(value(
            "--gop",
            gop,
            "use 1 (key frames only) to 1000000 pictures",
        ));
    }
    let b_frames = given.b_frames.unwrap_or(0);
    if b_frames > 16 {
        return Err(value("--b-frames", b_frames, "use 0 to 16"));
    }
    let annexb = args.input.input_mode == Some(InputModeArg::Annexb);
    let choice = match given.encoder {
        None | Some(EncoderArg::Auto) if annexb => EncoderChoice::Passthrough,
        None | Some(EncoderArg::Auto) => EncoderChoice::Auto,
        Some(EncoderArg::Nvenc) => EncoderChoice::Nvenc,
        Some(EncoderArg::Software) => EncoderChoice::Software,
        Some(EncoderArg::Passthrough) => EncoderChoice::Passthrough,
    };
    if choice == EncoderChoice::Passthrough && rate.is_some() {
        return Err(ConfigError::Conflict {
            flag: if given.bitrate.is_some() {
                "--bitrate"
            } else {
                "--quality"
            },
            other: "--encoder passthrough",
            instead: "the producer decides how its stream is coded: leave it out",
        });
    }
    Ok(EncoderSettings {
        codec,
        choice,
        gop,
        b_frames,
        rate,
        preset: match given.preset.unwrap_or(PresetArg::Fastest) {
            PresetArg::Fastest => Preset::Fastest,
            PresetArg::Fast => Preset::Fast,
            PresetArg::Balanced => Preset::Balanced,
            PresetArg::Quality => Preset::Quality,
        },
        frame_rate: if annexb {
            None
        } else {
            frame_rate("--fps", given.fps)?
        },
        gpu: given.gpu.clone(),
    })
}

fn rtp(args: &StreamerArgs) -> Result<Vec<RtpOutput>, ConfigError> {
    let given = &args.rtp;
    if !given.rtp {
        let dangling = [
            ("--rtp-endpoint", !given.rtp_endpoint.is_empty()),
            ("--rtp-payload-type", given.rtp_payload_type.is_some()),
            ("--rtp-sdp", !given.rtp_sdp.is_empty()),
            ("--rtp-mtu", given.rtp_mtu.is_some()),
            ("--rtp-pacing", given.rtp_pacing.is_some()),
        ];
        return match dangling.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(ConfigError::SwitchOff {
                flag,
                switch: "--rtp",
            }),
            None => Ok(Vec::new()),
        };
    }
    if given.rtp_endpoint.is_empty() {
        return Err(ConfigError::Missing {
            flag: "--rtp-endpoint",
            why: " with --rtp",
            instead: "give the receiver as HOST:PORT",
        });
    }
    if given.rtp_sdp.len() > given.rtp_endpoint.len() {
        return Err(value(
            "--rtp-sdp",
            given.rtp_sdp.len(),
            "there are more files than --rtp-endpoint; give at most one for each",
        ));
    }
    let payload_type = given.rtp_payload_type.unwrap_or(96);
    if !(96..=127).contains(&payload_type) {
        return Err(value(
            "--rtp-payload-type",
            payload_type,
            "use a dynamic payload type, 96 to 127",
        ));
    }
    let mtu = given.rtp_mtu.unwrap_or(1200);
    if !(300..=65_000).contains(&mtu) {
        return Err(value("--rtp-mtu", mtu, "use 300 to 65000 bytes"));
    }
    let pacing = match given.rtp_pacing {
        None | Some(PacingArg::Auto) => Pacing::Auto,
        Some(PacingArg::Off) => Pacing::Off,
        Some(PacingArg::Rate(rate)) => Pacing::Rate(u64::from(bit_rate("--rtp-pacing", rate)?)),
    };
    given
        .rtp_endpoint
        .iter()
        .enumerate()
        .map(|(n, endpoint)| {
            check_endpoint(endpoint)?;
            Ok(RtpOutput {
                endpoint: endpoint.clone(),
                payload_type: payload_type as u8,
                mtu: mtu as usize,
                pacing,
                sdp_path: given.rtp_sdp.get(n).cloned(),
            })
        })
        .collect()
}

/// The form only: whether the host exists is known when the sink opens.
fn check_endpoint(endpoint: &str) -> Result<(), ConfigError> {
    let refuse = |reason| Err(value("--rtp-endpoint", endpoint, reason));
    let Some((host, port)) = endpoint.rsplit_once(':') else {
        return refuse("give HOST:PORT, such as 127.0.0.1:5004");
    };
    if host.is_empty() || (host.contains(':') && !(host.starts_with('[') && host.ends_with(']'))) {
        return refuse("give HOST:PORT; an IPv6 address stands in brackets, such as [::1]:5004");
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => refuse("the port is a number from 1 to 65535"),
    }
}

/// Keeps the stream key off the command line.
const RTMP_URL_VARIABLE: &str = "CVMMAP_RTMP_URL";

fn rtmp(args: &StreamerArgs, codec: Codec) -> Result<Vec<RtmpOutput>, ConfigError> {
    let given = &args.rtmp;
    if !given.rtmp {
        let dangling = [
            ("--rtmp-url", !given.rtmp_url.is_empty()),
            ("--rtmp-url-file", given.rtmp_url_file.is_some()),
            ("--rtmp-mode", given.rtmp_mode.is_some()),
            ("--rtmp-max-retries", given.rtmp_max_retries.is_some()),
            ("--rtmp-max-backoff-ms", given.rtmp_max_backoff_ms.is_some()),
            ("--rtmp-tls-ca", given.rtmp_tls_ca.is_some()),
            ("--rtmp-tls-insecure", given.rtmp_tls_insecure),
        ];
        return match dangling.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(ConfigError::SwitchOff {
                flag,
                switch: "--rtmp",
            }),
            None => Ok(Vec::new()),
        };
    }
    let mode = given.rtmp_mode.map(|mode| match mode {
        RtmpModeArg::Enhanced => RtmpMode::Enhanced,
        RtmpModeArg::Domestic => RtmpMode::Domestic,
    });
    let packaging = Packaging::new(codec, mode)?;
    let mut urls: Vec<(&'static str, String)> = given
        .rtmp_url
        .iter()
        .map(|url| ("--rtmp-url", url.clone()))
        .collect();
    if let Some(path) = &given.rtmp_url_file {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File {
            flag: "--rtmp-url-file",
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        let lines = text.lines().map(str::trim);
        urls.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(|line| ("--rtmp-url-file", line.to_owned())),
        );
    }
    if urls.is_empty()
        && let Ok(url) = std::env::var(RTMP_URL_VARIABLE)
    {
        urls.push((RTMP_URL_VARIABLE, url));
    }
    if urls.is_empty() {
        return Err(ConfigError::Missing {
            flag: "--rtmp-url",
            why: " with --rtmp",
            instead: "give rtmp://host/app/key, --rtmp-url-file, or the variable CVMMAP_RTMP_URL",
        });
    }
    urls.into_iter()
        .map(|(flag, text)| {
            // The value is not repeated: it may hold a key.
            let url = text
                .parse::<RtmpUrl>()
                .map_err(|error| ConfigError::Value {
                    flag,
                    value: "(not shown)".to_owned(),
                    reason: error.to_string(),
                })?;
            Ok(RtmpOutput {
                url,
                packaging,
                max_retries: given.rtmp_max_retries.unwrap_or(0),
                max_backoff: Duration::from_millis(
                    given.rtmp_max_backoff_ms.unwrap_or(5000).max(100),
                ),
                tls: TlsOptions {
                    ca_file: given.rtmp_tls_ca.clone(),
                    insecure: given.rtmp_tls_insecure,
                },
            })
        })
        .collect()
}

fn bit_rate(flag: &'static str, rate: f64) -> Result<u32, ConfigError> {
    if (1e4..=1e9).contains(&rate) {
        Ok(rate as u32)
    } else {
        Err(value(flag, rate, "use 10k to 1000M bits per second"))
    }
}

/// As a fraction: whole rates and the NTSC ones exactly, others in thousandths.
fn frame_rate(flag: &'static str, fps: Option<f64>) -> Result<Option<FrameRate>, ConfigError> {
    let Some(fps) = fps else { return Ok(None) };
    if !(0.1..=1000.0).contains(&fps) {
        return Err(value(flag, fps, "use 0.1 to 1000 frames per second"));
    }
    let ntsc = (fps * 1001.0 / 1000.0).round();
    let rate = if (fps - fps.round()).abs() < 1e-9 {
        FrameRate {
            num: fps as u32,
            den: 1,
        }
    } else if (ntsc * 1000.0 / 1001.0 - fps).abs() < 0.005 {
        FrameRate {
            num: ntsc as u32 * 1000,
            den: 1001,
        }
    } else {
        FrameRate {
            num: (fps * 1000.0).round() as u32,
            den: 1000,
        }
    };
    Ok(Some(rate))
}

fn value(
    flag: &'static str,
    value: impl std::fmt::Display,
    reason: impl Into<String>,
) -> ConfigError {
    ConfigError::Value {
        flag,
        value: value.to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_rates_understand_suffixes_and_refuse_nonsense() {
        use crate::cli::streamer::bit_rate as parse;
        assert_eq!(parse("4000000"), Ok(4e6));
        assert_eq!(parse("800k"), Ok(8e5));
        assert_eq!(parse("2.5M"), Ok(2.5e6));
        for bad in ["", "k", "4G", "NaN", "inf", "--"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for out_of_range in [5.0, -1e6, 1e30] {
            assert!(bit_rate("--bitrate", out_of_range).is_err());
        }
    }

    #[test]
    fn frame_rates_become_exact_fractions() {
        let rate = |fps| frame_rate("--fps", Some(fps)).unwrap().unwrap();
        assert_eq!(rate(25.0), FrameRate { num: 25, den: 1 });
        assert_eq!(
            rate(29.97),
            FrameRate {
                num: 30000,
                den: 1001
            }
        );
        assert_eq!(
            rate(12.5),
            FrameRate {
                num: 12500,
                den: 1000
            }
        );
        assert!(frame_rate("--fps", Some(f64::NAN)).is_err());
        assert!(frame_rate("--fps", Some(0.0)).is_err());
    }

    #[test]
    fn endpoints_have_a_host_and_a_port() {
        for good in ["127.0.0.1:5004", "localhost:1", "[::1]:65535"] {
            assert_eq!(check_endpoint(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "5004",
            ":5004",
            "::1:5004",
            "host:",
            "host:0",
            "host:65536",
            "host:x",
        ] {
            assert!(check_endpoint(bad).is_err(), "{bad}");
        }
    }
}
