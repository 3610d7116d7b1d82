//! `bench_row`: one program, one run, for `scripts/bench_peers.sh`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Parser;
use testkit::bench::child::Program;
use testkit::bench::pace::{Clip, Destination};
use testkit::bench::receive::{Heard, Receiver};
use testkit::bench::{Given, Input, Output, Row, pace};
use testkit::bitstream::Codec;
use testkit::exit;
use testkit::names::{NameRequest, Names};
use testkit::pattern::PixelFormat;
use testkit::producer::{FrameRate, MetadataVersion, Producer, Shape};

/// Feeds a program raw BGR pictures at a camera's pace, receives what it sends, and prints as JSON
/// when each frame was given, when its last byte came, and what the program used.
///
/// In the program's arguments {port}, {url}, {shm} and {zmq} stand for where to send and where the
/// pictures are.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  bench_row --clip clip.bgr --width 1280 --height 720 --frames 150 --input pipe --output rtp --codec h264 -- \\\n    \
    ffmpeg -f rawvideo -pix_fmt bgr24 -video_size 1280x720 -framerate 30 -i pipe:0 -c:v libx264 -f rtp rtp://127.0.0.1:{port}"
)]
struct Arguments {
    /// Raw BGR frames, tight rows; played to and fro. Not used with --input own
    #[arg(
        long,
        value_name = "FILE",
        required_if_eq_any([("input", "shm"), ("input", "pipe")])
    )]
    clip: Option<PathBuf>,
    #[arg(long, default_value_t = 1280)]
    width: u16,
    #[arg(long, default_value_t = 720)]
    height: u16,
    #[arg(long, default_value_t = 30)]
    fps: u16,
    #[arg(long, default_value_t = 150)]
    frames: u32,
    /// Waits so long before the first frame
    #[arg(long, default_value_t = 0, value_name = "MS")]
    phase_ms: u64,
    #[arg(long, value_enum)]
    input: Input,
    #[arg(long, value_enum)]
    output: Output,
    /// h264 or h265
    #[arg(long)]
    codec: String,
    /// The receiver does not ask the kernel for packets in one piece (UDP_GRO)
    #[arg(long)]
    no_gro: bool,
    /// The stream that came, as Annex B
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// The program's output
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// A program that runs longer is killed
    #[arg(long, default_value_t = 60, value_name = "S")]
    limit: u64,
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

/// Without a packet for so long, a program that was given everything has sent everything.
const SILENCE: Duration = Duration::from_millis(1500);

fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    let codec: Codec = match arguments.codec.parse() {
        Ok(codec) => codec,
        Err(error) => {
            eprintln!("error: --codec: {error}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    let row = run(&arguments, codec).unwrap_or_else(|error| Row {
        failure: Some(error.to_string()),
        ..Row::default()
    });
    match serde_json::to_writer(io::stdout().lock(), &row) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(_) => ExitCode::from(exit::INITIALIZATION),
    }
}

fn run(arguments: &Arguments, codec: Codec) -> io::Result<Row> {
    let keep = arguments.input != Input::Own;
    let receiver = match arguments.output {
        Output::Rtp => Receiver::rtp(!arguments.no_gro, keep)?,
        Output::Rtmp => Receiver::rtmp(keep)?,
    };
    let names = names()?;
    let command = filled_in(&arguments.program, receiver.port, &names);
    let producer = (arguments.input == Input::Shm)
        .then(|| open_producer(arguments, &names))
        .transpose()?;
    let limit = Duration::from_secs(arguments.limit);
    let pipe = arguments.input == Input::Pipe;
    let mut program = Program::start(&command, &arguments.log, pipe, limit)?;
    let deadline = Instant::now() + limit;
    let mut row = Row::default();
    let mut into = match (producer, program.take_stdin()) {
        (Some(producer), _) => Some(Destination::Shm(Box::new(producer))),
        (None, Some(stdin)) => Some(Destination::Pipe(stdin)),
        (None, None) => None,
    };
    let given = match &mut into {
        Some(into) => give(arguments, into, &mut row),
        None => Vec::new(),
    };
    if keep {
        wait_for_silence(&receiver, given.len() as u64, deadline);
        row.peak_kib = program.peak_kib();
        if arguments.input == Input::Shm {
            program.interrupt();
        }
        // A pipe's end is the program's.
        drop(into);
    } else {
        while !program.has_ended() && Instant::now() < deadline {
            row.peak_kib = row.peak_kib.max(program.peak_kib());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let usage = program.finish(left.min(Duration::from_secs(10)))?;
    let heard = receiver.finish()?;
    let units = units(arguments, codec, &heard)?;
    row.frames_given = given.len() as u32;
    row.cpu_seconds = usage.cpu_seconds;
    row.seconds = usage.seconds;
    row.wire_bytes = heard.wire_bytes;
    row.overflows = heard.overflows;
    row.match_units(&given, &units, arguments.output, arguments.fps.into());
    let nothing = heard.wire_bytes == 0;
    let overran = usage.overran.then(|| {
        let given = row.failure.as_deref().unwrap_or("it went on and on");
        format!("killed after --limit {} s: {given}", arguments.limit)
    });
    row.failure = overran.or(row.failure.take()).or(heard.broken).or_else(|| {
        nothing.then(|| format!("nothing came; the program ended with {}", usage.status))
    });
    Ok(row)
}

fn give(arguments: &Arguments, into: &mut Destination, row: &mut Row) -> Vec<Given> {
    let frame_bytes = usize::from(arguments.width) * usize::from(arguments.height) * 3;
    let clip = arguments.clip.as_deref().unwrap_or_else(|| "".as_ref());
    let result = Clip::open(clip, frame_bytes).and_then(|clip| {
        if let Destination::Shm(producer) = into {
            wait_for_reader(producer)?;
        }
        std::thread::sleep(Duration::from_millis(arguments.phase_ms));
        let interval = Duration::from_nanos(1_000_000_000 / u64::from(arguments.fps));
        pace::run(&clip, into, arguments.frames, interval)
    });
    result.unwrap_or_else(|error| {
        row.failure = Some(format!("the pictures could not be given: {error}"));
        Vec::new()
    })
}

fn wait_for_reader(producer: &mut Producer) -> io::Result<()> {
    let limit = Some(Duration::from_secs(10));
    match producer.wait_for_reader(limit, &AtomicBool::new(false)) {
        Ok(true) => producer.initialise().map_err(io::Error::other),
        Ok(false) => Err(io::Error::other("nobody subscribed within 10 s")),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn wait_for_silence(receiver: &Receiver, frames: u64, deadline: Instant) {
    let (mut seen, mut since) = (receiver.bytes(), Instant::now());
    while receiver.units() < frames && since.elapsed() < SILENCE && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        let now = receiver.bytes();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

fn units(
    arguments: &Arguments,
    codec: Codec,
    heard: &Heard,
) -> io::Result<Vec<testkit::bench::Unit>> {
    let dump = arguments.dump.as_deref();
    match arguments.output {
        _ if arguments.input == Input::Own => Ok(Vec::new()),
        Output::Rtp => heard.rtp_units(codec, dump),
        Output::Rtmp => heard.rtmp_units(codec, dump),
    }
}

fn names() -> io::Result<Names> {
    let label = format!("bench{}", std::process::id());
    let folder = std::env::temp_dir();
    NameRequest {
        label: &label,
        prefix: folder.to_str(),
        ..NameRequest::default()
    }
    .resolve()
    .map_err(io::Error::other)
}

fn filled_in(program: &[String], port: u16, names: &Names) -> Vec<String> {
    let url = format!("rtmp://127.0.0.1:{port}/live/bench");
    program
        .iter()
        .map(|word| {
            word.replace("{port}", &port.to_string())
                .replace("{url}", &url)
                .replace("{shm}", &names.shm_name)
                .replace("{zmq}", &names.zmq_endpoint)
        })
        .collect()
}

fn open_producer(arguments: &Arguments, names: &Names) -> io::Result<Producer> {
    let shape = Shape {
        format: PixelFormat::Bgr,
        width: arguments.width,
        height: arguments.height,
        row_padding: 0,
        metadata: MetadataVersion::V2,
        frame_rate: FrameRate {
            numerator: arguments.fps,
            denominator: 1,
        },
        depth: false,
        confidence: false,
    };
    Producer::open(names, shape).map_err(io::Error::other)
}
