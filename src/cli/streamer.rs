//! The flags of `cvmmap_streamer`, as typed.
//!
//! Depends on nothing but clap: `build.rs` includes this file to make the man page and the shell
//! completions. Options whose absence must be told from their default are `Option`s here; the
//! defaults stand in the help texts and in `config`, and a test compares the two.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Takes camera frames out of cv-mmap shared memory and publishes them as RTP and RTMP with the
/// lowest latency this machine allows.
#[derive(Debug, Parser)]
#[command(
    name = "cvmmap_streamer",
    version = VERSION,
    args_conflicts_with_subcommands = true,
    max_term_width = 100,
    after_help = EXAMPLES,
    after_long_help = EXAMPLES
)]
pub struct StreamerArgs {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// `pipeline` streams; `ingest` reads and counts frames without encoding [default: pipeline]
    #[arg(long, value_enum, help_heading = "Run")]
    pub run_mode: Option<RunModeArg>,

    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub nats: NatsArgs,
    #[command(flatten)]
    pub dummy: DummyArgs,
    #[command(flatten)]
    pub encoder: EncoderArgs,
    #[command(flatten)]
    pub rtp: RtpArgs,
    #[command(flatten)]
    pub rtmp: RtmpArgs,
    #[command(flatten)]
    pub scheduling: SchedulingArgs,
    #[command(flatten)]
    pub report: ReportArgs,
}

/// `build.rs` compiles this file too, before the revision is known.
pub const VERSION: &str = match option_env!("CVMMAP_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

const EXAMPLES: &str = "\
Examples:
  A camera named front, as H.264 over RTP to this machine (then: ffplay -protocol_whitelist file,udp,rtp -i front.sdp):
    cvmmap_streamer --input-uri front --codec h264 --rtp --rtp-endpoint 127.0.0.1:5004 --rtp-sdp front.sdp

  The same as H.265 over Enhanced RTMP, the key kept out of the process list:
    CVMMAP_RTMP_URL=rtmp://server/live/KEY cvmmap_streamer --input-uri front --codec h265 --rtmp --rtmp-mode enhanced

  Without any camera: a built-in moving pattern through real shared memory:
    cvmmap_streamer --input-mode dummy --shm-name demo --zmq-endpoint ipc:///tmp/demo \\
        --codec h264 --rtp --rtp-endpoint 127.0.0.1:5004

  Is the producer healthy? Read and count 300 frames, encode nothing:
    cvmmap_streamer --run-mode ingest --input-uri front --ingest-max-frames 300

  Who is there, and what is it (over NATS)?
    cvmmap_streamer discover; cvmmap_streamer ctl info --input-uri front

  Send a recorded elementary stream again:
    cvmmap_streamer --input-mode annexb --input-file clip.h264 --fps 25 --codec h264 --rtp --rtp-endpoint 127.0.0.1:5004

Exit codes: 0 done; 1 arguments cannot be parsed; 2 arguments make no sense; 5 the pipeline could not
start or its encoder was lost; 7 a peer broke its protocol; 124 idle timeout before the first frame.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunModeArg {
    Pipeline,
    Ingest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputModeArg {
    /// Attach to a cv-mmap producer
    Cvmmap,
    /// Be a producer of a moving pattern and attach to it
    Dummy,
    /// Replay an elementary stream from a file, as it is
    Annexb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub struct InputArgs {
    /// Where frames come from [default: cvmmap]
    #[arg(long, value_enum)]
    pub input_mode: Option<InputModeArg>,

    /// POSIX shared memory segment of the producer; a leading / is accepted. Goes with --zmq-endpoint
    #[arg(long, value_name = "NAME")]
    pub shm_name: Option<String>,

    /// ZeroMQ endpoint on which the producer announces frames, such as ipc:///tmp/cvmmap_front
    #[arg(long, value_name = "URI")]
    pub zmq_endpoint: Option<String>,

    /// Instance name, or cvmmap://name[@prefix][?namespace=ns]: derives segment, endpoint and label.
    /// Instead of --shm-name and --zmq-endpoint. discover: attaches to the one producer that NATS
    /// knows
    #[arg(long, value_name = "URI")]
    pub input_uri: Option<String>,

    /// Elementary stream (Annex B) for --input-mode annexb
    #[arg(long, value_name = "PATH")]
    pub input_file: Option<PathBuf>,

    /// Do not use NATS at all
    #[arg(long)]
    pub no_nats: bool,

    /// What becomes of tracked bodies: none; sei: a record in the access unit of their picture;
    /// jsonl:PATH: a line each [default: none]
    #[arg(long, value_name = "none|sei|jsonl:PATH")]
    pub body_output: Option<String>,

    /// Frames that may wait for the encoder; with 1 the newest frame wins at once [default: 1]
    #[arg(long, value_name = "N")]
    pub queue_size: Option<u32>,

    /// Process at most N frames, then exit 0 [default: no limit]
    #[arg(long, value_name = "N")]
    pub ingest_max_frames: Option<u64>,

    /// Exit when no frame came for that long: 0, or 124 if none ever came; 0 = never [default: 0]
    #[arg(long, value_name = "MS")]
    pub ingest_idle_timeout_ms: Option<u64>,
}

/// Of the streamer and of the commands that talk to a producer.
#[derive(Debug, Args)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// NATS server of the producer's control plane, nats:// or tls://; several separated by commas.
    /// CVMMAP_NATS_URL does the same [default: nats://localhost:4222]
    #[arg(long, value_name = "URL")]
    pub nats_url: Option<String>,

    /// File with the user's JWT and seed for the NATS server
    #[arg(long, value_name = "PATH")]
    pub nats_creds: Option<PathBuf>,

    /// Certificate authorities (PEM) to trust for tls:// instead of the system's
    #[arg(long, value_name = "PATH")]
    pub nats_ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Built-in producer (--input-mode dummy)")]
pub struct DummyArgs {
    /// Label in its sync messages, at most 24 bytes [default: dummy]
    #[arg(long, value_name = "LABEL")]
    pub dummy_label: Option<String>,

    /// Frames to publish; 0 = endless [default: 0]
    #[arg(long, value_name = "N")]
    pub dummy_frames: Option<u64>,

    /// Frames per second [default: 30]
    #[arg(long, value_name = "FPS")]
    pub dummy_fps: Option<f64>,

    /// Picture width [default: 640]
    #[arg(long, value_name = "PIXELS")]
    pub dummy_width: Option<u32>,

    /// Picture height [default: 360]
    #[arg(long, value_name = "PIXELS")]
    pub dummy_height: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CodecArg {
    H264,
    H265,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EncoderArg {
    /// NVENC if it opens, else software
    Auto,
    /// NVENC or nothing
    #[value(alias = "nvidia")]
    Nvenc,
    /// openh264 for H.264, x265 for H.265
    Software,
    /// The producer's own access units, as they are
    Passthrough,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PresetArg {
    Fastest,
    Fast,
    Balanced,
    Quality,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Encoder")]
pub struct EncoderArgs {
    /// Codec; required unless --run-mode ingest
    #[arg(long, value_enum)]
    pub codec: Option<CodecArg>,

    /// Which encoder [default: auto]
    #[arg(long, value_enum, alias = "encoder-device")]
    pub encoder: Option<EncoderArg>,

    /// Pictures from one key frame to the next [default: 30]
    #[arg(long, value_name = "N")]
    pub gop: Option<u32>,

    /// B-frames between two others; more than the encoder has are clamped with a warning [default: 0]
    #[arg(long, value_name = "N")]
    pub b_frames: Option<u32>,

    /// Spread a key frame over the pictures of a GOP: each codes a strip anew, none is a burst.
    /// Key frames come at the start and where one is asked for, so who joins late waits for one
    #[arg(long)]
    pub intra_refresh: bool,

    /// Bits per second; k and M are understood (800k, 4M) [default: from picture size and rate]
    #[arg(long, value_name = "RATE", value_parser = bit_rate)]
    pub bitrate: Option<f64>,

    /// Constant quality instead of a bit rate: 0 (best) to 51
    #[arg(long, value_name = "Q")]
    pub quality: Option<u32>,

    /// Speed against quality [default: fastest]
    #[arg(long, value_enum)]
    pub preset: Option<PresetArg>,

    /// Nominal frames per second, for rate control [default: what the producer says, else measured].
    /// With --input-mode annexb: the replay rate, 0 = as fast as it goes
    #[arg(long, value_name = "FPS")]
    pub fps: Option<f64>,

    /// GPU for NVENC: an index (after CUDA_VISIBLE_DEVICES) or a UUID [default: 0]
    #[arg(long, value_name = "INDEX|UUID")]
    pub gpu: Option<String>,

    /// Put capture and encode-end time of each picture into a user-data SEI, so that a receiver can
    /// measure latency
    #[arg(long)]
    pub embed_timestamps: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PacingArg {
    Auto,
    Off,
    /// Bits per second.
    Rate(f64),
}

#[derive(Debug, Args)]
#[command(next_help_heading = "RTP output")]
pub struct RtpArgs {
    /// Send RTP
    #[arg(long)]
    pub rtp: bool,

    /// Destination: HOST:PORT or [IPv6]:PORT; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    pub rtp_endpoint: Vec<String>,

    /// Dynamic payload type, 96 to 127 [default: 96]
    #[arg(long, value_name = "PT")]
    pub rtp_payload_type: Option<u32>,

    /// Write the session description to this file; repeatable in the order of the endpoints.
    /// Without it the description is logged once
    #[arg(long, value_name = "PATH")]
    pub rtp_sdp: Vec<PathBuf>,

    /// Largest RTP packet in bytes, header included [default: 1200]
    #[arg(long, value_name = "BYTES")]
    pub rtp_mtu: Option<u32>,

    /// auto: spread pictures of more than 64 packets; off: send at once; or bits per second
    /// [default: auto]
    #[arg(long, value_name = "auto|off|RATE", value_parser = pacing)]
    pub rtp_pacing: Option<PacingArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RtmpModeArg {
    /// Enhanced RTMP, FourCC hvc1 (H.264 stays legacy codec id 7)
    Enhanced,
    /// H.265 under FLV codec id 12
    Domestic,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "RTMP output")]
pub struct RtmpArgs {
    /// Publish RTMP
    #[arg(long)]
    pub rtmp: bool,

    /// rtmp[s]://host[:port]/app/key[?query]; repeatable. Quote it: ? and & mean something to shells
    #[arg(long, value_name = "URL")]
    pub rtmp_url: Vec<String>,

    /// File with one URL a line, so that no key stands on the command line; the environment variable
    /// CVMMAP_RTMP_URL does the same for one
    #[arg(long, value_name = "PATH")]
    pub rtmp_url_file: Option<PathBuf>,

    /// How H.265 is packaged; required for H.265
    #[arg(long, value_enum)]
    pub rtmp_mode: Option<RtmpModeArg>,

    /// Give up on a server after N failed connections in a row; 0 = never [default: 0]
    #[arg(long, value_name = "N")]
    pub rtmp_max_retries: Option<u32>,

    /// Longest pause between two connection attempts [default: 5000]
    #[arg(long, value_name = "MS")]
    pub rtmp_max_backoff_ms: Option<u64>,

    /// Certificate authorities (PEM) to trust for rtmps:// instead of the built-in ones
    #[arg(long, value_name = "PATH")]
    pub rtmp_tls_ca: Option<PathBuf>,

    /// Accept any certificate of an rtmps:// server. Anyone in between can read the stream key
    #[arg(long)]
    pub rtmp_tls_insecure: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Scheduling")]
pub struct SchedulingArgs {
    /// Run under the real-time scheduler (SCHED_FIFO, 1 to 99; 10 is a good one), so that other work
    /// on this machine does not delay a frame. Needs CAP_SYS_NICE or a limit (ulimit -r). An encoder
    /// that fills all cores then leaves nothing to others. For cores of its own: taskset -c LIST
    #[arg(long, value_name = "PRIORITY")]
    pub realtime: Option<u32>,

    /// Look for the next frame without a pause instead of sleeping until it comes: no core has to be
    /// woken for it. Takes one core whole: for machines that have one to spare
    #[arg(long)]
    pub busy_poll: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Reports")]
pub struct ReportArgs {
    /// Write the final report as JSON to this file
    #[arg(long, value_name = "PATH")]
    pub report_json: Option<PathBuf>,

    /// No status line, also on a terminal
    #[arg(long)]
    pub no_status: bool,

    /// More log output; -vv for everything. The RUST_LOG variable overrides it
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the producers that announce themselves over NATS
    Discover(DiscoverArgs),
    /// Talk to a running producer, or to a streamer that runs beside it
    Ctl(CtlArgs),
    /// Print the completions for a shell, such as: cvmmap_streamer completions bash > FILE
    Completions {
        #[arg(value_enum)]
        shell: ShellArg,
    },
    /// Print the man page, such as: cvmmap_streamer man | man -l -
    Man,
    /// Print what NVIDIA drivers, GPUs and encoders are here, what would be chosen, and why
    GpuInfo,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 found; 4 nobody is there; 5 no NATS server; 7 only malformed answers."
)]
pub struct DiscoverArgs {
    #[command(flatten)]
    pub nats: NatsArgs,

    /// How long to listen for answers
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub timeout_ms: u64,

    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done; 4 nobody serves it; 5 no NATS server; 7 refused, or the answer is malformed; 124 no answer in time.",
    subcommand_required = true
)]
pub struct CtlArgs {
    /// The producer: an instance name, or cvmmap://name[@prefix][?namespace=ns]. Without it and
    /// --shm-name: the one that discovery finds
    #[arg(long, value_name = "URI", global = true)]
    pub input_uri: Option<String>,

    /// The producer's segment instead
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "input_uri")]
    pub shm_name: Option<String>,

    /// NATS server, nats:// or tls://; CVMMAP_NATS_URL does the same
    /// [default: nats://localhost:4222]
    #[arg(long, value_name = "URL", global = true)]
    pub nats_url: Option<String>,

    /// File with the user's JWT and seed for the NATS server
    #[arg(long, value_name = "PATH", global = true)]
    pub nats_creds: Option<PathBuf>,

    /// Certificate authorities (PEM) to trust for tls:// instead of the system's
    #[arg(long, value_name = "PATH", global = true)]
    pub nats_ca: Option<PathBuf>,

    /// How long to wait for an answer
    #[arg(long, value_name = "MS", default_value_t = 1000, global = true)]
    pub timeout_ms: u64,

    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub action: CtlAction,
}

#[derive(Debug, Subcommand)]
pub enum CtlAction {
    /// What the producer is: live or finite, its clock, where it stands
    Info,
    /// Start the producer's stream anew
    Reset,
    /// Show or change the producer's playlist
    Playlist {
        #[command(subcommand)]
        action: Option<PlaylistAction>,
    },
    /// The camera's settings
    Camera {
        #[command(subcommand)]
        action: CameraAction,
    },
    /// Counters and latency of the streamer that runs beside the producer
    Stats {
        #[command(flatten)]
        which: WhichStreamer,
    },
    /// Have the streamer make a key frame
    Keyframe {
        #[command(flatten)]
        which: WhichStreamer,
    },
    /// Change the streamer's bit rate
    Bitrate {
        /// Bits per second; k and M are understood
        #[arg(value_parser = bit_rate)]
        rate: f64,
        #[command(flatten)]
        which: WhichStreamer,
    },
}

#[derive(Debug, Args)]
pub struct WhichStreamer {
    /// Id of one streamer, when several run beside one producer
    #[arg(long, value_name = "ID")]
    pub streamer: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum PlaylistAction {
    /// Show it
    Info,
    /// Play these files
    Apply {
        #[arg(required = true)]
        paths: Vec<String>,
        /// In the order in which they were recorded
        #[arg(long)]
        sort_by_recording_time: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum CameraAction {
    /// Which settings there are
    Capabilities,
    /// Read a setting
    Get { setting: String },
    /// Write a setting: a number, or auto
    Set {
        setting: String,
        #[arg(value_name = "NUMBER|auto", allow_negative_numbers = true)]
        value: String,
    },
    /// Write a setting that is a range
    SetRange {
        setting: String,
        #[arg(allow_negative_numbers = true)]
        min: i32,
        #[arg(allow_negative_numbers = true)]
        max: i32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShellArg {
    Bash,
    Zsh,
    Fish,
}

/// `800000`, `800k`, `2.5M` as bits per second; the range is checked later.
pub fn bit_rate(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(rate) if rate.is_finite() => Ok(rate * factor),
        _ => Err("not a number of bits per second (k and M may follow it)".to_owned()),
    }
}

fn pacing(text: &str) -> Result<PacingArg, String> {
    match text {
        "auto" => Ok(PacingArg::Auto),
        "off" => Ok(PacingArg::Off),
        rate => bit_rate(rate)
            .map(PacingArg::Rate)
            .map_err(|reason| format!("neither auto nor off, and {reason}")),
    }
}
