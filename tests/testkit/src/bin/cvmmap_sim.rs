//! `cvmmap_sim`: a cv-mmap producer for tests and demonstrations.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testkit::bitstream::{Codec, annexb};
use testkit::exit;
use testkit::names::{NameRequest, Names};
use testkit::nats_body;
use testkit::nats_producer::{NatsProducer, Source, SourceKind, told};
use testkit::pattern::PixelFormat;
use testkit::producer::{
    Encoded, MetadataVersion, PatternBuffers, Producer, ProducerError, Shape, unix_ns,
};

/// Publishes pictures as a cv-mmap producer does: frames in POSIX shared memory, one sync message
/// each over ZeroMQ.
///
/// Without --stdin the pictures are the upstream dummy's pattern. SIGINT removes segment and socket and exits 0 (a
/// second one exits 1 at once); SIGTERM leaves both behind, as the real producer does.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  cvmmap_sim --label cam --width 1280 --height 720 --fps 30\n  \
    ffmpeg -i clip.mp4 -f rawvideo -pix_fmt bgr24 - | \\\n    cvmmap_sim --stdin --pace --label cam --width 1280 --height 720 --pixel-format bgr --fps 30\n  \
    cvmmap_sim --label cam --width 640 --height 360 --annexb clip.h264 --codec h264"
)]
struct Arguments {
    /// Instance name, at most 24 bytes; derives segment, socket and NATS names
    #[arg(long, default_value = "dummy", help_heading = "Names")]
    label: String,
    /// Segment name instead of the derived one
    #[arg(long, value_name = "NAME", help_heading = "Names")]
    shm_name: Option<String>,
    /// Address of the sync socket instead of the derived one
    #[arg(long, value_name = "URI", help_heading = "Names")]
    zmq_endpoint: Option<String>,
    /// Folder of the derived socket [default: /tmp]
    #[arg(long, value_name = "PATH", help_heading = "Names")]
    prefix: Option<String>,
    /// First part of the derived names [default: cvmmap]
    #[arg(long, value_name = "NAME", help_heading = "Names")]
    namespace: Option<String>,

    /// Pixels
    #[arg(long, default_value_t = 640, help_heading = "Picture")]
    width: u32,
    /// Pixels
    #[arg(long, default_value_t = 360, help_heading = "Picture")]
    height: u32,
    /// rgb, bgr, rgba, bgra, gray, yuv or yuyv
    #[arg(
        long,
        default_value = "bgr",
        value_name = "FORMAT",
        help_heading = "Picture"
    )]
    pixel_format: String,
    /// Bytes after each row
    #[arg(
        long,
        default_value_t = 0,
        value_name = "BYTES",
        help_heading = "Picture"
    )]
    row_padding: u32,
    /// Adds a depth plane (millimetres; its first cells are NaN, +inf, -inf)
    #[arg(long, help_heading = "Picture")]
    depth: bool,
    /// Adds a confidence plane
    #[arg(long, help_heading = "Picture")]
    confidence: bool,
    /// v1, v2.0 or v2.1. With v2.0 the frames that carry an access unit are v2.1, as the real
    /// producer writes them
    #[arg(
        long,
        default_value = "v2.0",
        value_name = "VERSION",
        help_heading = "Picture"
    )]
    metadata: String,

    /// Frames per second, as a number or a fraction such as 30000/1001
    #[arg(long, default_value = "30", help_heading = "Time")]
    fps: String,
    /// Ends after so many frames; 0 is endless
    #[arg(long, default_value_t = 0, help_heading = "Time")]
    frames: u64,
    /// Number of the first frame
    #[arg(long, default_value_t = 0, value_name = "ID", help_heading = "Time")]
    first_frame_id: u32,
    /// Capture times count from 0 by --fps, as for a finite stream, instead of the system clock
    #[arg(long, help_heading = "Time")]
    media_time: bool,
    /// With --media-time: capture time of frame 0, as of a recording that keeps its Unix time
    #[arg(
        long,
        default_value_t = 0,
        value_name = "NS",
        requires = "media_time",
        help_heading = "Time"
    )]
    first_capture_ns: u64,
    /// Paces --stdin by --fps
    #[arg(long, requires = "stdin", help_heading = "Time")]
    pace: bool,
    /// Holds the first frame until somebody subscribes
    #[arg(long, help_heading = "Time")]
    wait_for_reader: bool,

    /// What happens after --frames: stop, loop (told as STREAM_RESET) or loop-silent
    #[arg(
        long,
        default_value = "stop",
        value_name = "ENDING",
        help_heading = "Time"
    )]
    ending: String,

    /// NATS server for status, requests, bodies and discovery, nats://host:port
    #[arg(long, value_name = "URL", help_heading = "NATS")]
    nats_url: Option<String>,
    /// Bodies per frame: stick figures that walk
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        requires = "nats_url",
        help_heading = "NATS"
    )]
    bodies: u16,
    /// Camera settings exposure and gain can be read and written
    #[arg(long, requires = "nats_url", help_heading = "NATS")]
    camera: bool,
    /// What source.info says of the source: live, finite or unknown [default: by --frames]
    #[arg(
        long,
        value_name = "KIND",
        requires = "nats_url",
        help_heading = "NATS"
    )]
    told_kind: Option<String>,
    /// What source.info says of capture times: unix-epoch, media-time or unknown [default: by
    /// --media-time]
    #[arg(
        long,
        value_name = "CLOCK",
        requires = "nats_url",
        help_heading = "NATS"
    )]
    told_clock: Option<String>,
    /// As the real producer at a loop's end: late-reset (frame 0 before STREAM_RESET) and
    /// double-reset (both twice); repeatable
    #[arg(
        long,
        value_name = "QUIRK",
        requires = "nats_url",
        help_heading = "NATS"
    )]
    quirk: Vec<String>,

    /// Raw frames from standard input, tight rows; each is published as soon as it is read
    #[arg(long, help_heading = "Input")]
    stdin: bool,
    /// Elementary stream whose access units are published beside the pictures; repeated at its end
    #[arg(long, value_name = "FILE", requires = "codec", help_heading = "Input")]
    annexb: Option<std::path::PathBuf>,
    /// h264 or h265: what --annexb holds
    #[arg(long, requires = "annexb", help_heading = "Input")]
    codec: Option<String>,
}

/// What the arguments mean, checked.
struct Plan {
    names: Names,
    shape: Shape,
    units: Option<Units>,
    ending: Ending,
    /// `source_kind` and `timestamp_domain` of source.info.
    told: (u64, u64),
    late_reset: bool,
    double_reset: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Stop,
    Loop,
    LoopSilent,
}

/// The access units of `--annexb`.
struct Units {
    codec: Codec,
    bytes: Vec<u8>,
    units: Vec<(Range<usize>, bool)>,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    exit::main(plan, |arguments, plan| {
        run(arguments, &plan).map(|()| exit::OK)
    })
}

fn plan(arguments: &Arguments) -> Result<Plan, String> {
    let request = NameRequest {
        label: &arguments.label,
        shm_name: arguments.shm_name.as_deref(),
        zmq_endpoint: arguments.zmq_endpoint.as_deref(),
        prefix: arguments.prefix.as_deref(),
        namespace: arguments.namespace.as_deref(),
    };
    let names = request.resolve().map_err(|e| e.to_string())?;
    let side = |flag: &str, value: u32| {
        u16::try_from(value)
            .ok()
            .filter(|&v| v > 0)
            .ok_or_else(|| format!("{flag} {value} is not within 1 to 65535"))
    };
    let shape = Shape {
        format: arguments
            .pixel_format
            .parse::<PixelFormat>()
            .map_err(|e| format!("--pixel-format: {e}"))?,
        width: side("--width", arguments.width)?,
        height: side("--height", arguments.height)?,
        row_padding: arguments.row_padding,
        metadata: arguments
            .metadata
            .parse()
            .map_err(|e| format!("--metadata {e}"))?,
        frame_rate: arguments.fps.parse().map_err(|e| format!("--fps {e}"))?,
        depth: arguments.depth,
        confidence: arguments.confidence,
    };
    let planes = shape.depth || shape.confidence || arguments.annexb.is_some();
    match shape.metadata {
        MetadataVersion::V1 if planes => {
            return Err("--metadata v1 has no place for --depth, --confidence or --annexb: use v2.0 or v2.1".into());
        }
        MetadataVersion::V2 if shape.confidence && !shape.depth => {
            return Err(
                "--confidence without --depth needs --metadata v2.1: planes of v2.0 leave no gap"
                    .into(),
            );
        }
        _ => {}
    }
    let ending = match arguments.ending.as_str() {
        "stop" => Ending::Stop,
        "loop" => Ending::Loop,
        "loop-silent" => Ending::LoopSilent,
        other => {
            return Err(format!(
                "--ending '{other}' is none of stop, loop, loop-silent"
            ));
        }
    };
    if ending != Ending::Stop && arguments.frames == 0 {
        return Err(format!("--ending {} needs --frames", arguments.ending));
    }
    if let Some(other) = arguments
        .quirk
        .iter()
        .find(|quirk| !["late-reset", "double-reset"].contains(&quirk.as_str()))
    {
        return Err(format!(
            "--quirk '{other}' is neither late-reset nor double-reset"
        ));
    }
    let told = (
        told(
            "--told-kind",
            arguments.told_kind.as_deref(),
            ["unknown", "live", "finite"],
            1 + u64::from(arguments.frames > 0),
        )?,
        told(
            "--told-clock",
            arguments.told_clock.as_deref(),
            ["unknown", "unix-epoch", "media-time"],
            1 + u64::from(arguments.media_time),
        )?,
    );
    let has = |quirk: &str| arguments.quirk.iter().any(|given| given == quirk);
    Ok(Plan {
        names,
        shape,
        units: units(arguments)?,
        ending,
        told,
        late_reset: has("late-reset"),
        double_reset: has("double-reset"),
    })
}

fn units(arguments: &Arguments) -> Result<Option<Units>, String> {
    let (Some(path), Some(codec)) = (&arguments.annexb, &arguments.codec) else {
        return Ok(None);
    };
    let codec: Codec = codec.parse().map_err(|e| format!("--codec: {e}"))?;
    let bytes = std::fs::read(path).map_err(|e| format!("--annexb {}: {e}", path.display()))?;
    let units: Vec<_> = annexb::access_units(codec, &bytes)
        .into_iter()
        .map(|unit| (unit.bytes, unit.key_frame))
        .collect();
    if units.is_empty() {
        return Err(format!(
            "--annexb {}: no {codec} access unit in it",
            path.display()
        ));
    }
    Ok(Some(Units {
        codec,
        bytes,
        units,
    }))
}

fn run(arguments: &Arguments, plan: &Plan) -> Result<(), Box<dyn std::error::Error>> {
    // SIGTERM keeps its default: the process ends where it stands and leaves its names.
    let stop = exit::stop_on(&[signal_hook::consts::SIGINT])?;

    let mut producer = Producer::open(&plan.names, plan.shape.clone())?;
    log::info!(
        "segment {}, sync {}, label {}, NATS key {}",
        plan.names.shm_name,
        plan.names.zmq_endpoint,
        plan.names.label,
        plan.names.nats_key
    );
    if arguments.wait_for_reader && !producer.wait_for_reader(None, &stop)? {
        return Ok(());
    }
    producer.initialise()?;
    let published = publish_all(arguments, plan, &mut producer, &stop)?;
    log::info!("{published} frames published");
    // The last frame stays for a frame interval, as long as the real producer needs to see its end.
    let interval = Duration::from_nanos(plan.shape.frame_rate.interval_ns());
    sleep_until(
        Instant::now() + interval.min(Duration::from_millis(100)),
        &stop,
    );
    Ok(())
}

fn publish_all(
    arguments: &Arguments,
    plan: &Plan,
    producer: &mut Producer,
    stop: &AtomicBool,
) -> Result<u64, Box<dyn std::error::Error>> {
    let mut shape = plan.shape.clone();
    let mut buffers = PatternBuffers::new(&shape);
    let source = Arc::new(Source::default());
    let mut nats: Option<NatsProducer> = None;
    let mut run = Run::default();
    let mut input = arguments.stdin.then(|| File::from(dup_stdin()));
    let interval = plan.shape.frame_rate.interval_ns();
    let start = Instant::now();
    let mut published = 0_u64;
    loop {
        if arguments.frames > 0 && published - run.start >= arguments.frames {
            if plan.ending == Ending::Stop {
                break;
            }
            run.begin(published, u32::from(plan.ending == Ending::Loop));
            // The real one notices the end twice before it has counted back.
            run.repeats = u32::from(plan.double_reset);
        } else if run.repeats > 0 && published > run.start {
            run.repeats -= 1;
            run.begin(published, 1);
        }
        if source.take_reset() {
            run.begin(published, 0);
        }
        if let Some(paths) = source.take_playlist() {
            run.begin(published, 1);
            run.late = true;
            if let Some((width, height)) = paths.first().and_then(|path| size(path)) {
                (shape.width, shape.height) = (width, height);
                buffers = PatternBuffers::new(&shape);
            }
            producer.reconfigure(shape.clone())?;
        }
        let told_before = run.to_tell > 0 && !(plan.late_reset || run.late);
        if told_before && let Some(nats) = &nats {
            run.to_tell = 0;
            nats.stream_reset();
        }
        let number = published - run.start;
        let id = arguments.first_frame_id.wrapping_add(number as u32);
        buffers.draw(&shape, id, input.is_none());
        if let Some(input) = &mut input {
            match read_frame(input, &mut buffers.left, stop)? {
                Input::Frame => {}
                Input::End => break,
                Input::Partial(bytes) => {
                    log::warn!("the input ended within a frame: {bytes} bytes left out");
                    break;
                }
            }
        }
        if input.is_none() || arguments.pace {
            sleep_until(
                start + Duration::from_nanos(published.saturating_mul(interval)),
                stop,
            );
        }
        // Relaxed: the flag guards no other data.
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let encoded = plan.units.as_ref().map(|all| {
            let (range, key_frame) = &all.units[(published % all.units.len() as u64) as usize];
            Encoded {
                bytes: &all.bytes[range.clone()],
                codec: all.codec,
                key_frame: *key_frame,
            }
        });
        let capture_ns = if arguments.media_time {
            let since = number.saturating_mul(interval);
            arguments.first_capture_ns.saturating_add(since)
        } else {
            unix_ns()
        };
        if let Some(nats) = nats.as_ref().filter(|_| arguments.bodies > 0) {
            nats.body(&nats_body::packet(
                &plan.names.label,
                id,
                capture_ns,
                arguments.bodies,
                (shape.width, shape.height),
            ));
        }
        publish(producer, &buffers, id, capture_ns, encoded)?;
        published += 1;
        source.note(id, capture_ns);
        // After the first frame, as the real one.
        match (&nats, &arguments.nats_url) {
            (Some(nats), _) if run.to_tell > 0 => nats.stream_reset(),
            (None, Some(url)) => nats = Some(connect(arguments, plan, url, &source)?),
            _ => {}
        }
        run.to_tell = 0;
    }
    if let Some(nats) = &nats {
        nats.offline();
    }
    Ok(published)
}

/// From one frame 0 to the next.
#[derive(Debug, Default)]
struct Run {
    /// Frames published before it.
    start: u64,
    /// STREAM_RESETs that it owes.
    to_tell: u32,
    /// It is told behind its first frame, whatever the quirks say.
    late: bool,
    /// Times that frame 0 comes again.
    repeats: u32,
}

impl Run {
    fn begin(&mut self, published: u64, to_tell: u32) {
        self.start = published;
        self.to_tell = to_tell;
        self.late = false;
    }
}

/// A playlist's entry that is a picture size, such as 320x180.
fn size(path: &str) -> Option<(u16, u16)> {
    let (width, height) = path.split_once('x')?;
    let side = |text: &str| text.parse::<u16>().ok().filter(|side| *side > 0);
    Some((side(width)?, side(height)?))
}

fn connect(
    arguments: &Arguments,
    plan: &Plan,
    url: &str,
    source: &Arc<Source>,
) -> Result<NatsProducer, String> {
    let kind = SourceKind {
        frames: arguments.frames,
        interval_ns: plan.shape.frame_rate.interval_ns(),
        first_capture_ns: arguments.first_capture_ns,
        told_kind: plan.told.0,
        told_clock: plan.told.1,
        loops: plan.ending != Ending::Stop,
        loops_silently: plan.ending == Ending::LoopSilent,
        has_depth: plan.shape.depth,
        has_bodies: arguments.bodies > 0,
        camera: arguments.camera,
    };
    NatsProducer::start(url, &plan.names, kind, source)
        .map_err(|e| format!("--nats-url {url}: {e}"))
}

/// The one place that hands a frame over; faults that damage single frames belong here.
fn publish(
    producer: &mut Producer,
    buffers: &PatternBuffers,
    id: u32,
    capture_ns: u64,
    encoded: Option<Encoded>,
) -> Result<(), ProducerError> {
    producer.publish(&buffers.frame(id, capture_ns, encoded))
}

enum Input {
    Frame,
    End,
    Partial(usize),
}

/// Fills `frame`. Waits in short polls, so that a signal is seen while a pipe is silent.
fn read_frame(input: &mut File, frame: &mut [u8], stop: &AtomicBool) -> io::Result<Input> {
    let mut filled = 0;
    while filled < frame.len() {
        if stop.load(Ordering::Relaxed) {
            return Ok(Input::End);
        }
        let mut wait = [PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN)];
        match poll(
            &mut wait,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            }),
        ) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match input.read(&mut frame[filled..]) {
            Ok(0) if filled == 0 => return Ok(Input::End),
            Ok(0) => return Ok(Input::Partial(filled)),
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Input::Frame)
}

/// Standard input without the standard library's buffer, which would copy every frame once more.
fn dup_stdin() -> std::os::fd::OwnedFd {
    io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("standard input is open: the runtime sees to it")
}

fn sleep_until(deadline: Instant, stop: &AtomicBool) {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.load(Ordering::Relaxed) {
            return;
        }
        // In pieces, so that a signal ends a long interval.
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}
