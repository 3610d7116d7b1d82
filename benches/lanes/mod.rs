//! The two pipelines of the end-to-end bench, and the camera in front of each.

use std::fs::File;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cvmmap_streamer::bitstream::{AccessUnit, AccessUnitPool};
use cvmmap_streamer::config::EncoderSettings;
use cvmmap_streamer::encode::{
    Codec, EncodedQueue, Encoder, EncoderChoice, EncoderConfig, FrameRate, Picture, Preset,
    RateControl, Tuning,
};
use cvmmap_streamer::fanout::Fanout;
use cvmmap_streamer::frame::{FrameInfo, FrameView, PixelFormat, Snapshot};
use cvmmap_streamer::pipeline::bitrate::BitrateRequests;
use cvmmap_streamer::pipeline::encode::{EncodeStage, EncodeStats};
use cvmmap_streamer::pipeline::ingest::{self, IngestLimits, IngestState};
use cvmmap_streamer::pipeline::keyframe::KeyFrameRequests;
use cvmmap_streamer::pipeline::sinks;
use cvmmap_streamer::pipeline::stop::StopToken;
use cvmmap_streamer::pipeline::surfaces::{SurfaceClient, SurfaceExchange};
use cvmmap_streamer::queue::{LatestQueue, gop_queue};
use cvmmap_streamer::sink::rtp::{Pacing, RtpSink, RtpSinkConfig};
use cvmmap_streamer::sink::{Sent, Sink, SinkContext, SinkError};
use cvmmap_streamer::source::contract::{Label, METADATA_LEN, Metadata, SyncMessage, v2_left_only};
use cvmmap_streamer::source::cvmmap::{CvMmapConfig, CvMmapSource};
use cvmmap_streamer::source::region::Region;
use cvmmap_streamer::source::sync::SyncSubscriber;
use cvmmap_streamer::time::MediaTime;
use cvmmap_streamer::trace::{FrameTrace, Stage};

use crate::bare::bare_send;
use crate::{BIT_RATE, HEIGHT, WIDTH};

const PICTURES: usize = 8;

/// A producer of one lane: pictures drawn once, and published when asked for.
pub struct Camera {
    pub shm_name: String,
    pub endpoint: String,
    file: File,
    socket: zmq::Socket,
    pictures: Arc<Vec<Vec<u8>>>,
    next: u32,
}

impl Camera {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let shm_name = format!("cvmmapbench_{}_{number}", std::process::id());
        let endpoint = format!("ipc://{}/{shm_name}", std::env::temp_dir().display());
        let flags = rustix::shm::OFlags::CREATE | rustix::shm::OFlags::RDWR;
        let file = rustix::shm::open(&*shm_name, flags, 0o600.into()).unwrap();
        let socket = zmq::Context::new().socket(zmq::PUB).unwrap();
        socket.bind(&endpoint).unwrap();
        let mut camera = Self {
            shm_name,
            endpoint,
            file: File::from(file),
            socket,
            pictures: Arc::new((0..PICTURES).map(picture).collect()),
            next: 0,
        };
        camera.write();
        camera
    }

    pub fn publish(&mut self) {
        let (frame_id, timestamp_ns) = self.write();
        let label = Label::new("bench").unwrap();
        let message = SyncMessage {
            frame_id,
            timestamp_ns,
            label,
        };
        self.socket.send(&message.to_bytes()[..], 0).unwrap();
    }

    fn write(&mut self) -> (u32, u64) {
        let id = self.next;
        self.next += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let picture = &self.pictures[id as usize % PICTURES];
        let block = v2_left_only(id, now.as_nanos() as u64, PixelFormat::Bgr, WIDTH, HEIGHT);
        self.file
            .write_all_at(picture, METADATA_LEN as u64)
            .unwrap();
        self.file.write_all_at(&block, 0).unwrap();
        (id, now.as_nanos() as u64)
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        let _ = rustix::shm::unlink(&*self.shm_name);
        let _ = std::fs::remove_file(self.endpoint.trim_start_matches("ipc://"));
    }
}

/// A texture that drifts by four pixels a frame.
fn picture(number: usize) -> Vec<u8> {
    let mut picture = Vec::with_capacity((WIDTH * HEIGHT * 3) as usize);
    for y in 0..HEIGHT as usize {
        for x in 0..WIDTH as usize {
            let (x, noise) = (x + 4 * number, (x * 31 + y * 17 + number * 7) % 23);
            let wave = ((x as f32 / 17.0).sin() + (y as f32 / 23.0).cos()) * 40.0 + 90.0;
            picture.extend([
                (wave as usize + noise) as u8,
                (x / 8) as u8,
                (y / 8 + noise) as u8,
            ]);
        }
    }
    picture
}

/// The RTP sink, and how long the frame took without the encoder.
struct Timed {
    sink: RtpSink,
    sent: Sender<Duration>,
}

impl Sink for Timed {
    fn name(&self) -> &str {
        self.sink.name()
    }

    fn send(&mut self, unit: &AccessUnit) -> Result<Sent, SinkError> {
        let sent = self.sink.send(unit);
        let now = Instant::now();
        let at = |stage| unit.trace.at(stage).unwrap();
        let inside = at(Stage::Encoded) - at(Stage::Dequeued);
        let _ = self.sent.send(now - at(Stage::Notice) - inside);
        sent
    }

    fn poll(&mut self) -> Result<Duration, SinkError> {
        self.sink.poll()
    }

    fn close(&mut self) {
        self.sink.close();
    }
}

/// The stages as `pipeline::run` joins them, with the sink timed.
pub fn our_lane(
    camera: &Camera,
    endpoint: &str,
    pacing: Pacing,
    sent: Sender<Duration>,
    stop: StopToken,
) -> Vec<JoinHandle<()>> {
    let config = CvMmapConfig {
        shm_name: camera.shm_name.clone(),
        zmq_endpoint: camera.endpoint.clone(),
        ..CvMmapConfig::default()
    };
    let mut source = CvMmapSource::new(config).unwrap();
    let context = SinkContext {
        key_frames: KeyFrameRequests::new(),
        stop: stop.clone(),
        stats: Arc::default(),
    };
    let config = RtpSinkConfig {
        pacing,
        bitrate: Some(BIT_RATE),
        frame_rate: Some(FrameRate::THIRTY),
        ..RtpSinkConfig::new(endpoint, Codec::H264)
    };
    let sink = RtpSink::open(config, context.clone()).unwrap();
    let run = move || {
        let settings = settings();
        let (exchange, queue) = (SurfaceExchange::default(), LatestQueue::new(1));
        let (stats, state) = (EncodeStats::default(), Arc::<IngestState>::default());
        let bitrate = BitrateRequests::new();
        let (sender, receiver) = gop_queue(sinks::QUEUE);
        let mut fanout = Fanout::new(context.key_frames.clone());
        fanout.add(sender, Arc::clone(&context.stats));
        let stage = EncodeStage {
            settings: &settings,
            embed_timestamps: false,
            surfaces_in_flight: 3,
            exchange: &exchange,
            queue: &queue,
            key_frames: &context.key_frames,
            bitrate: &bitrate,
            stats: &stats,
            stop: &stop,
            reader: None,
        };
        let alive = AtomicUsize::new(1);
        std::thread::scope(|scope| {
            scope.spawn(|| sinks::run(Box::new(Timed { sink, sent }), receiver, &context, &alive));
            scope.spawn(|| stage.run(fanout, None).unwrap());
            let limits = IngestLimits {
                max_frames: None,
                idle_timeout: None,
                lossless: false,
            };
            let mut surfaces = SurfaceClient::new(&exchange, &queue, &stop, false);
            ingest::run(
                &mut source,
                &mut surfaces,
                Some(&queue),
                limits,
                &state,
                &stop,
            )
            .unwrap();
        });
    };
    vec![std::thread::spawn(run)]
}

fn settings() -> EncoderSettings {
    EncoderSettings {
        codec: Codec::H264,
        choice: EncoderChoice::Software,
        gop: 30,
        b_frames: 0,
        intra_refresh: false,
        rate: Some(RateControl::Bitrate(BIT_RATE)),
        preset: Preset::Fastest,
        frame_rate: Some(FrameRate::THIRTY),
    }
}

/// A frame on its way through the bare lane.
struct Raw {
    info: FrameInfo,
    bytes: Vec<u8>,
    notice: Instant,
}

struct Coded {
    unit: Arc<AccessUnit>,
    notice: Instant,
    inside: Duration,
}

/// The least that hands a frame from one thread to another; `None` ends it.
struct Slot<T>(Mutex<Option<Option<T>>>, Condvar);

impl<T> Slot<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None), Condvar::new()))
    }

    /// Gives back what nobody has taken.
    fn put(&self, item: Option<T>) -> Option<T> {
        let left = self.0.lock().unwrap().replace(item);
        self.1.notify_one();
        left.flatten()
    }

    fn take(&self) -> Option<T> {
        let mut state = self.0.lock().unwrap();
        loop {
            match state.take() {
                Some(item) => return item,
                None => state = self.1.wait(state).unwrap(),
            }
        }
    }
}

/// The yardstick.
pub fn bare_lane(
    camera: &Camera,
    endpoint: &str,
    sent: Sender<Duration>,
    stop: StopToken,
) -> Vec<JoinHandle<()>> {
    let mut sync = SyncSubscriber::connect(&camera.endpoint).unwrap();
    let mut region = Region::open(&camera.shm_name).unwrap().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(endpoint).unwrap();
    let (raw, coded, spare) = (Slot::<Raw>::new(), Slot::<Coded>::new(), Slot::new());
    let read = {
        let (raw, spare) = (Arc::clone(&raw), Arc::clone(&spare));
        // One is copied into while the other is converted.
        spare.put(Some(vec![1_u8; (WIDTH * HEIGHT * 3) as usize]));
        let mut own = vec![1_u8; (WIDTH * HEIGHT * 3) as usize];
        move || {
            while !stop.is_stopped() {
                let soon = Instant::now() + Duration::from_millis(100);
                if !sync.wait(soon).unwrap() {
                    continue;
                }
                let notice = Instant::now();
                while sync.receive().unwrap().is_some() {}
                let block = region.metadata().unwrap();
                let metadata = Metadata::parse(&block, region.len()).unwrap();
                let info = metadata.frame_info().unwrap();
                let view = region.view(info).unwrap();
                // SAFETY: the view promises that many bytes; the camera writes the next frame
                // only when this one has gone through.
                unsafe {
                    std::ptr::copy_nonoverlapping(view.payload(), own.as_mut_ptr(), own.len());
                }
                let bytes = std::mem::take(&mut own);
                let left = raw.put(Some(Raw {
                    info,
                    bytes,
                    notice,
                }));
                own = left.map_or_else(|| spare.take().unwrap(), |left| left.bytes);
            }
            raw.put(None);
        }
    };
    let encode = {
        let (raw, coded) = (Arc::clone(&raw), Arc::clone(&coded));
        move || encode(&raw, &coded, &spare)
    };
    let send = move || {
        let mut sequence = 0;
        while let Some(Coded {
            unit,
            notice,
            inside,
        }) = coded.take()
        {
            for nal in unit.nals() {
                bare_send(&socket, nal.bytes(), &mut sequence);
            }
            let _ = sent.send(Instant::now() - notice - inside);
        }
    };
    vec![
        std::thread::spawn(read),
        std::thread::spawn(encode),
        std::thread::spawn(send),
    ]
}

fn encode(raw: &Slot<Raw>, coded: &Slot<Coded>, spare: &Slot<Vec<u8>>) {
    let (mut out, mut pool) = (EncodedQueue::new(), AccessUnitPool::new(Codec::H264));
    let mut encoder: Option<Encoder> = None;
    let mut number = 0_i64;
    while let Some(Raw {
        info,
        bytes,
        notice,
    }) = raw.take()
    {
        let start = Instant::now();
        let encoder = encoder.get_or_insert_with(|| open(info));
        let mut surface = encoder.surfaces().take().unwrap();
        surface.fill(&FrameView::from_slice(info, &bytes)).unwrap();
        spare.put(Some(bytes));
        let snapshot = Snapshot {
            info,
            surface,
            epoch: 0,
            gap: false,
            time: MediaTime(number * 33_333_333),
            trace: FrameTrace::default(),
        };
        number += 1;
        let picture = Picture {
            snapshot,
            force_key: false,
        };
        encoder.encode(picture, &mut out).unwrap();
        while let Some(picture) = out.pop() {
            let unit = pool.make(picture, &mut out, |_| ()).unwrap();
            let inside = start.elapsed();
            coded.put(Some(Coded {
                unit,
                notice,
                inside,
            }));
        }
    }
    coded.put(None);
}

fn open(info: FrameInfo) -> Encoder {
    let settings = settings();
    let config = EncoderConfig {
        codec: settings.codec,
        shape: info.shape(),
        frame_rate: FrameRate::THIRTY,
        rate: RateControl::Bitrate(BIT_RATE),
        gop: settings.gop,
        b_frames: 0,
        intra_refresh: false,
        preset: settings.preset,
        tuning: Tuning::LowLatency,
        surfaces_in_flight: 3,
    };
    Encoder::open(EncoderChoice::Software, config).unwrap()
}
