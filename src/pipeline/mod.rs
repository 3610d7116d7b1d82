//! 9. Assembly: builds the line, starts it, waits for its end.

pub mod bitrate;
pub mod encode;
pub mod ingest;
pub mod keyframe;
mod reader;
pub mod report;
pub mod sinks;
mod stage;
pub mod status;
pub mod stop;
pub mod surfaces;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::config::{BodyOutput, Dummy, Input, Names, StreamConfig, StreamerConfig};
use crate::control::jsonl::{JsonlCounters, JsonlWriter};
use crate::control::plane::{self, PlaneConfig, PlaneHandles, PlaneState};
use crate::control::pose::{self, PoseCounters, PoseSender, PoseStore};
use crate::control::service::PipelineHandles;
use crate::encode::registry::EncoderChoice;
use crate::encode::{EncodeError, FrameRate, RateControl};
use crate::exit::Exit;
use crate::fanout::Fanout;
use crate::frame::{FrameInfo, PictureShape, SurfaceLease, SurfacePool};
use crate::queue::gop_queue;
use crate::sink::rtmp::{RtmpSink, RtmpSinkConfig};
use crate::sink::rtp::{RtpSink, RtpSinkConfig};
use crate::sink::{Sink, SinkContext, SinkError, SinkStats};
use crate::source::annexb::AnnexBSource;
use crate::source::cvmmap::{CvMmapConfig, CvMmapSource};
use crate::source::dummy::{DummyConfig, DummyProducer};
use crate::source::hints::StatusHints;
use crate::source::{SourceCounters, SourceError, SurfaceSource};

use bitrate::BitrateRequests;
use encode::{EncodeStage, EncodeStats};
use ingest::{IngestLimits, IngestState};
use keyframe::KeyFrameRequests;
use reader::{Ended, Reader, Source, Surfaces};
use report::Report;
use stop::{StopReason, StopToken};

/// What ended a run early; the report is written all the same.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("the {stage} thread could not be started: {error}")]
    Thread {
        stage: &'static str,
        error: std::io::Error,
    },
    #[error("the {stage} stage panicked: this is a defect, please report it with the log")]
    Panicked { stage: &'static str },
    #[error(
        "the ingest thread does not come back and is left behind: a driver keeps it, or the machine has no time for it"
    )]
    Kept,
    #[error("--body-output jsonl:{path}: {error}")]
    BodyFile { path: String, error: std::io::Error },
    #[error("no frame came within --ingest-idle-timeout-ms {millis}")]
    NeverAFrame { millis: u128 },
}

impl PipelineError {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Sink(SinkError::Protocol { .. }) => Exit::Protocol,
            Self::NeverAFrame { .. } => Exit::Timeout,
            _ => Exit::Pipeline,
        }
    }
}

/// Everything that a run counts, shared between the stages, the status line and the report.
#[derive(Debug)]
pub struct Stats {
    pub started: Instant,
    pub source: Arc<SourceCounters>,
    pub ingest: Arc<IngestState>,
    pub encode: EncodeStats,
    pub key_frames: KeyFrameRequests,
    pub bitrate: BitrateRequests,
    pub sinks: Vec<(String, Arc<SinkStats>)>,
    pub control: ControlStats,
}

/// What came over NATS, and what became of the bodies.
#[derive(Debug, Default)]
pub struct ControlStats {
    /// `None`: NATS is not used.
    pub plane: Option<Arc<PlaneState>>,
    pub poses: Arc<PoseCounters>,
    pub jsonl: Arc<JsonlCounters>,
}

/// Runs until the source ends, a limit is reached or `stop` is set; the first error counts.
///
/// The report comes in any case in which the run began.
pub fn run(
    config: &StreamerConfig,
    stop: &StopToken,
) -> (Option<Report>, Result<(), PipelineError>) {
    let key_frames = KeyFrameRequests::new();
    let hints = StatusHints::new();
    let Opened {
        source,
        again,
        producer,
    } = match open_source(config, &hints, stop) {
        Ok(opened) => opened,
        Err(error) => return (None, Err(error)),
    };
    let sinks = match open_sinks(config.stream.as_ref(), &key_frames, stop) {
        Ok(sinks) => sinks,
        Err(error) => return (None, Err(error.into())),
    };
    let mut control = ControlStats::default();
    let bodies = match open_bodies(config, &control) {
        Ok(bodies) => bodies,
        Err(error) => return (None, Err(error)),
    };
    if config.nats.is_some() && config.input.names().is_some() {
        control.plane = Some(Arc::default());
    }
    let stats = Arc::new(Stats {
        started: Instant::now(),
        source: Arc::clone(source.counters()),
        ingest: Arc::default(),
        encode: EncodeStats::default(),
        key_frames,
        sinks: sinks
            .iter()
            .map(|(sink, context)| (sink.name().to_owned(), Arc::clone(&context.stats)))
            .collect(),
        bitrate: BitrateRequests::new(),
        control,
    });
    start_control(config, &stats, hints, bodies.sender, stop);
    let sources = (source, again);
    let result = drive(config, stop, &stats, sources, sinks, bodies.store);
    if let Some(writer) = bodies.writer {
        writer.finish();
    }
    if let Some(producer) = producer {
        producer.join();
    }
    let reason = stop.reason().unwrap_or(StopReason::SourceEnded);
    let result = match (result, reason, config.idle_timeout) {
        (Ok(()), StopReason::Idle, Some(timeout))
            if stats.ingest.frames.load(Ordering::Relaxed) == 0 =>
        {
            Err(PipelineError::NeverAFrame {
                millis: timeout.as_millis(),
            })
        }
        (result, ..) => result,
    };
    (Some(Report::new(config, &stats, Some(reason))), result)
}

type OpenSink = (Box<dyn Sink>, SinkContext);

fn open_sinks(
    stream: Option<&StreamConfig>,
    key_frames: &KeyFrameRequests,
    stop: &StopToken,
) -> Result<Vec<OpenSink>, SinkError> {
    let Some(stream) = stream else {
        return Ok(Vec::new());
    };
    let context = || SinkContext {
        key_frames: key_frames.clone(),
        stop: stop.clone(),
        stats: Arc::default(),
    };
    let encoder = &stream.encoder;
    let bitrate = match encoder.rate {
        Some(RateControl::Bitrate(rate)) => Some(rate),
        _ => None,
    };
    let mut sinks: Vec<OpenSink> = Vec::new();
    for output in &stream.rtp {
        let config = RtpSinkConfig {
            payload_type: output.payload_type,
            mtu: output.mtu,
            pacing: output.pacing,
            sdp_path: output.sdp_path.clone(),
            bitrate,
            frame_rate: encoder.frame_rate,
            ..RtpSinkConfig::new(&output.endpoint, encoder.codec)
        };
        let context = context();
        let sink = RtpSink::open(config, context.clone())?;
        sinks.push((Box::new(sink), context));
    }
    let alike = |url: &str| {
        stream
            .rtmp
            .iter()
            .filter(|o| o.url.to_string() == url)
            .count()
    };
    for (n, output) in stream.rtmp.iter().enumerate() {
        let config = RtmpSinkConfig {
            number: (alike(&output.url.to_string()) > 1).then_some(n + 1),
            max_retries: output.max_retries,
            backoff_cap: output.max_backoff,
            tls: output.tls.clone(),
            frame_rate: encoder.frame_rate.map(FrameRate::per_second),
            bitrate,
            ..RtmpSinkConfig::new(output.url.clone(), output.packaging)
        };
        let context = context();
        let sink = RtmpSink::open(config, context.clone())?;
        sinks.push((Box::new(sink), context));
    }
    if sinks.is_empty() {
        log::warn!("neither --rtp nor --rtmp is given: the stream is encoded and thrown away");
    }
    Ok(sinks)
}

/// Both ends of the way that bodies take, and what waits at its end.
#[derive(Default)]
struct Bodies {
    sender: Option<PoseSender>,
    store: Option<PoseStore>,
    writer: Option<JsonlWriter>,
}

fn open_bodies(config: &StreamerConfig, stats: &ControlStats) -> Result<Bodies, PipelineError> {
    let mut bodies = Bodies::default();
    let jsonl = match &config.body_output {
        BodyOutput::None => return Ok(bodies),
        BodyOutput::Sei => None,
        BodyOutput::Jsonl(path) => {
            let (writer, sender) = JsonlWriter::start(path, &stats.jsonl).map_err(|error| {
                PipelineError::BodyFile {
                    path: path.display().to_string(),
                    error,
                }
            })?;
            bodies.writer = Some(writer);
            Some(sender)
        }
    };
    let with_record = config.body_output == BodyOutput::Sei;
    let (sender, store) = pose::channel(with_record, jsonl, &stats.poses);
    bodies.sender = Some(sender);
    bodies.store = Some(store);
    Ok(bodies)
}

/// The control plane's thread is on its own from here: the run does not wait for it, and goes on
/// without it if there is no thread left.
fn start_control(
    config: &StreamerConfig,
    stats: &Arc<Stats>,
    hints: StatusHints,
    poses: Option<PoseSender>,
    stop: &StopToken,
) {
    let (Some(server), Some(names)) = (&config.nats, config.input.names()) else {
        return;
    };
    let Some(state) = &stats.control.plane else {
        return;
    };
    if !crate::control::is_subject_token(&names.nats_key) {
        log::warn!(
            "the segment's name {:?} gives no NATS key: the stream runs without NATS",
            names.shm_name
        );
        return;
    }
    let plane = PlaneConfig {
        server: server.clone(),
        nats_key: names.nats_key.clone(),
        instance: names.label.map(|label| label.to_string()),
        metadata: [
            ("nats_target_key".to_owned(), names.nats_key.clone()),
            ("shm_name".to_owned(), names.shm_name.clone()),
            ("pid".to_owned(), std::process::id().to_string()),
        ]
        .into(),
    };
    let handles = PlaneHandles {
        hints,
        poses,
        pipeline: PipelineHandles {
            report: {
                let (config, stats) = (config.clone(), Arc::clone(stats));
                Arc::new(move || report::live(&config, &stats))
            },
            key_frames: stats.key_frames.clone(),
            bitrate: stats.bitrate.clone(),
            encodes: config.stream.is_some(),
        },
        state: Arc::clone(state),
        stop: stop.clone(),
    };
    if let Err(error) = plane::start(plane, handles) {
        log::warn!("the control thread could not be started: {error}");
    }
}

/// Where frames come from.
struct Opened {
    source: Source,
    /// The same once more, of a producer that others may listen to as well.
    again: Option<CvMmapConfig>,
    producer: Option<DummyProducer>,
}

fn open_source(
    config: &StreamerConfig,
    hints: &StatusHints,
    stop: &StopToken,
) -> Result<Opened, PipelineError> {
    let listen = |config: CvMmapConfig, producer| -> Result<Opened, PipelineError> {
        Ok(Opened {
            source: Box::new(CvMmapSource::new(config.clone())?),
            again: Some(config),
            producer,
        })
    };
    match &config.input {
        Input::Cvmmap(names) => listen(attach(config, names, hints), None),
        Input::Dummy(names, dummy) => {
            let producer = DummyProducer::start(produce(names, dummy), stop.clone())?;
            let attached = CvMmapConfig {
                end: Some(producer.end()),
                ..attach(config, names, hints)
            };
            listen(attached, Some(producer))
        }
        Input::Discover => Err(SourceError::Name {
            flag: "--input-uri",
            value: "discover:".to_owned(),
            reason: "nobody has looked yet".to_owned(),
        }
        .into()),
        Input::Annexb { path, pace } => {
            let codec = config
                .stream
                .as_ref()
                .map_or(crate::encode::Codec::H264, |stream| stream.encoder.codec);
            Ok(Opened {
                source: Box::new(AnnexBSource::open(path, codec, *pace)?),
                again: None,
                producer: None,
            })
        }
    }
}

fn attach(config: &StreamerConfig, names: &Names, hints: &StatusHints) -> CvMmapConfig {
    CvMmapConfig {
        busy_poll: config.busy_poll,
        shm_name: names.shm_name.clone(),
        zmq_endpoint: names.zmq_endpoint.clone(),
        label: names.label,
        hints: hints.clone(),
        ..CvMmapConfig::default()
    }
}

fn produce(names: &Names, dummy: &Dummy) -> DummyConfig {
    DummyConfig {
        shm_name: names.shm_name.clone(),
        zmq_endpoint: names.zmq_endpoint.clone(),
        label: dummy.label.clone(),
        frames: dummy.frames,
        fps: dummy.fps,
        width: dummy.width,
        height: dummy.height,
    }
}

/// Starts the stages from the sinks upwards and joins them in the order of the data path, so that
/// each drains what the one before it has left.
fn drive(
    config: &StreamerConfig,
    stop: &StopToken,
    stats: &Stats,
    (source, again): (Source, Option<CvMmapConfig>),
    sinks: Vec<OpenSink>,
    poses: Option<PoseStore>,
) -> Result<(), PipelineError> {
    let alive = AtomicUsize::new(sinks.len());
    let limits = IngestLimits {
        max_frames: config.max_frames,
        idle_timeout: config.idle_timeout,
        lossless: matches!(config.input, Input::Annexb { .. }),
    };
    let surfaces = match &config.stream {
        Some(stream) => Surfaces::Encoder {
            passthrough: stream.encoder.choice == EncoderChoice::Passthrough,
        },
        None => Surfaces::Counting,
    };
    let reader = Reader::new(
        config.queue_size,
        surfaces,
        limits,
        &stats.ingest,
        stop,
        again,
    );
    std::thread::scope(|scope| {
        let mut fanout = Fanout::new(stats.key_frames.clone());
        if limits.lossless {
            fanout = fanout.lossless(stop.clone());
        }
        let mut errors = Errors { first: None, stop };
        let mut sending = Vec::new();
        for (sink, context) in sinks {
            let (sender, receiver) = gop_queue(sinks::QUEUE);
            fanout.add(sender, Arc::clone(&context.stats));
            let kind = sink.name().split([' ', ':']).next().unwrap_or("sink");
            let (name, alive) = (kind.to_owned(), &alive);
            let work = move || sinks::run(sink, receiver, &context, alive);
            sending.extend(errors.keep("sink", stage::spawn(scope, &name, stop, work)));
        }
        let encoding = config.stream.as_ref().and_then(|stream| {
            let stage = EncodeStage {
                settings: &stream.encoder,
                embed_timestamps: stream.embed_timestamps,
                // One is filled, `queue_size` wait, and one more is on its way between the two.
                surfaces_in_flight: config.queue_size + 2,
                exchange: &reader.exchange,
                queue: &reader.queue,
                key_frames: &stats.key_frames,
                bitrate: &stats.bitrate,
                stats: &stats.encode,
                stop,
                reader: Some(&reader),
            };
            errors.keep(
                "encode",
                stage::spawn(scope, "encode", stop, || stage.run(fanout, poses)),
            )
        });
        let ingesting = errors.keep("ingest", reader.start(source));
        if ingesting.is_none() {
            reader.queue.close();
        }
        status::show_until(stop, config, stats);
        let mut kept = false;
        match ingesting.map(|()| reader.wait()) {
            None | Some(Ended::Well) => {}
            Some(Ended::Failed(error)) => errors.add(error.into()),
            Some(Ended::NoThread(error)) => errors.add(PipelineError::Thread {
                stage: "ingest",
                error,
            }),
            Some(Ended::Panicked) => errors.add(PipelineError::Panicked { stage: "ingest" }),
            Some(Ended::Kept) => kept = true,
        }
        if let Some(stage) = encoding {
            errors.join("encode", stage.join());
        }
        // Behind the encoder's own words, if it has some.
        if kept {
            errors.add(PipelineError::Kept);
        }
        let mut lost = Vec::new();
        for stage in sending {
            match stage.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => lost.push(error),
                Err(_) => errors.add(PipelineError::Panicked { stage: "sink" }),
            }
        }
        // A sink that is lost ends the run only if it was the last one.
        if !stats.sinks.is_empty() && lost.len() == stats.sinks.len() {
            errors.first = errors.first.or(lost.pop().map(PipelineError::Sink));
        }
        errors.first.map_or(Ok(()), Err)
    })
}

/// The first error is the one that is reported, and it stops the run.
struct Errors<'a> {
    first: Option<PipelineError>,
    stop: &'a StopToken,
}

impl Errors<'_> {
    fn add(&mut self, error: PipelineError) {
        self.stop.stop(StopReason::Error);
        self.first.get_or_insert(error);
    }

    fn keep<T>(&mut self, stage: &'static str, started: std::io::Result<T>) -> Option<T> {
        started
            .map_err(|error| self.add(PipelineError::Thread { stage, error }))
            .ok()
    }

    fn join<E: Into<PipelineError>>(
        &mut self,
        stage: &'static str,
        joined: std::thread::Result<Result<(), E>>,
    ) {
        match joined {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.add(error.into()),
            Err(_) => self.add(PipelineError::Panicked { stage }),
        }
    }
}

/// Surfaces for `--run-mode ingest`: the same one pass over the frame, and nothing behind it.
#[derive(Debug, Default)]
struct CountingSurfaces {
    pool: Option<(PictureShape, SurfacePool)>,
}

impl SurfaceSource for CountingSurfaces {
    fn surface_for(&mut self, info: &FrameInfo) -> Option<SurfaceLease> {
        let shape = PictureShape {
            encoded: None,
            ..info.shape()
        };
        if self.pool.as_ref().is_none_or(|(known, _)| *known != shape) {
            self.pool = Some((shape, SurfacePool::on_host(shape, 1)));
        }
        self.pool.as_ref()?.1.take()
    }
}
