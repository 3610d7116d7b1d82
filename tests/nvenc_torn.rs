//! A producer that writes on while the GPU still copies: the frame is refused. On the emulator, whose copies take as long as
//! they are told to.

#![cfg(feature = "nvenc")]

mod nvenc_support;
mod source_support;

use std::any::Any;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cvmmap_streamer::encode::nvenc::{NvencEncoder, NvencOptions};
use cvmmap_streamer::encode::{
    Codec, EncoderBackend, EncoderConfig, FrameRate, Preset, RateControl, Tuning,
};
use cvmmap_streamer::frame::{
    FillError, FrameInfo, FrameView, PictureShape, PixelFormat, Surface, SurfaceLease,
    SurfaceMemory, SurfacePool,
};
use cvmmap_streamer::source::notices::FrameNotice;
use cvmmap_streamer::source::region::Region;
use cvmmap_streamer::source::snapshot::{Refused, SnapshotReader};
use cvmmap_streamer::source::{SourceCounters, SurfaceSource};
use nvenc_support::Emulator;
use serde_json::{Value, json};
use source_support::{Place, Producer, picture, time_of, v2_left};

const WIDTH: u32 = 320;
const HEIGHT: u32 = 180;
const FRAMES: u32 = 20;

/// What the producer does during the upload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// Begins the next frame.
    Payload,
    /// Completes the next frame.
    Frame,
}

/// A surface of NVENC's whose uploads race a writer. The sentinels have been taken when `fill` is called.
struct Raced {
    lease: SurfaceLease,
    file: Arc<File>,
    meanwhile: Meanwhile,
    /// Writes that were over while the upload was not.
    under_copy: Arc<AtomicU64>,
}

impl SurfaceMemory for Raced {
    fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError> {
        let next = view.info().frame_id + 1;
        let (file, meanwhile) = (&self.file, self.meanwhile);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                if meanwhile != Meanwhile::Nothing {
                    let payload = picture(next, WIDTH, HEIGHT);
                    file.write_all_at(&payload, 256).unwrap();
                }
                if meanwhile == Meanwhile::Frame {
                    let metadata = v2_left(next, time_of(next), WIDTH, HEIGHT);
                    file.write_all_at(&metadata, 0).unwrap();
                }
                Instant::now()
            });
            let filled = self.lease.fill(view);
            let ended = Instant::now();
            if writer.join().unwrap() < ended {
                self.under_copy.fetch_add(1, Ordering::Relaxed);
            }
            filled
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

struct Pool(SurfacePool);

impl SurfaceSource for Pool {
    fn surface_for(&mut self, _: &FrameInfo) -> Option<SurfaceLease> {
        self.0.take()
    }
}

/// Not a test of its own: what the others start with the emulator in the driver's place.
#[test]
fn torn_child() {
    let meanwhile = match std::env::var("NVENC_TORN").as_deref() {
        Ok("nothing") => Meanwhile::Nothing,
        Ok("payload") => Meanwhile::Payload,
        Ok("frame") => Meanwhile::Frame,
        _ => return,
    };
    let config = EncoderConfig {
        codec: Codec::H264,
        shape: PictureShape {
            width: WIDTH,
            height: HEIGHT,
            format: PixelFormat::Bgr,
            encoded: None,
        },
        frame_rate: FrameRate::THIRTY,
        rate: RateControl::Bitrate(1_000_000),
        gop: 30,
        b_frames: 0,
        intra_refresh: false,
        preset: Preset::Fastest,
        tuning: Tuning::LowLatency,
        surfaces_in_flight: 1,
    };
    let encoder = NvencEncoder::open(&config, &NvencOptions::default()).unwrap();
    let place = Place::new("torn");
    let producer = Producer::of_size(&place, WIDTH, HEIGHT);
    let under_copy = Arc::new(AtomicU64::new(0));
    let raced = Raced {
        lease: encoder.surfaces().take().unwrap(),
        file: Arc::clone(&producer.file),
        meanwhile,
        under_copy: Arc::clone(&under_copy),
    };
    let mut pool = Pool(SurfacePool::new(vec![Box::new(raced) as Surface]));
    let mut region = Region::open(&place.shm_name).unwrap().unwrap();
    let (mut reader, counters) = (SnapshotReader::default(), SourceCounters::default());
    let (mut taken, mut payload, mut metadata, mut other) = (0, 0, 0, Vec::new());
    for id in 0..FRAMES {
        producer.write(id, time_of(id));
        let notice = FrameNotice {
            frame_id: id,
            timestamp_ns: time_of(id),
            arrival: Instant::now(),
            age_ns: None,
        };
        match reader.read(&mut region, &notice, None, &mut pool, &counters) {
            Ok(_) => taken += 1,
            Err(Refused::TornPayload) => payload += 1,
            Err(Refused::TornMetadata) => metadata += 1,
            Err(refused) => other.push(refused.to_string()),
        }
    }
    let pinned = encoder.uploads().pinned.load(Ordering::Relaxed);
    let under_copy = under_copy.load(Ordering::Relaxed);
    let report = json!({
        "taken": taken, "payload": payload, "metadata": metadata, "other": other,
        "pinned": pinned, "under_copy": under_copy,
    });
    drop((region, pool, encoder, producer, place));
    println!("\ntorn: {report}");
    // Not a return: the handlers of the emulator run at exit.
    std::process::exit(0);
}

/// Reads twenty frames by NVENC, each copy delayed, and tells what became of them.
fn read(meanwhile: &str, switches: &[(&str, &str)]) -> Value {
    let emulator = Emulator::new();
    let slow = [&[("COPY_DELAY_US", "15000")], switches].concat();
    let program = std::env::current_exe().unwrap();
    let output = emulator
        .command(&program, "stats.json", &slow)
        .args(["--exact", "torn_child", "--nocapture"])
        .env("NVENC_TORN", meanwhile)
        .output()
        .unwrap();
    let (text, log) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let report = text.lines().find_map(|line| line.strip_prefix("torn: "));
    let report = report.unwrap_or_else(|| panic!("no report\n{text}\n{log}"));
    let stats = emulator.stats("stats.json").unwrap();
    assert_eq!(stats["violations"], Value::Array(vec![]), "{log}");
    assert_eq!(stats["leaks"], Value::Array(vec![]), "{log}");
    serde_json::from_str(report).unwrap()
}

#[test]
fn a_frame_that_changes_under_a_delayed_copy_is_refused_on_both_upload_paths() {
    for (path, switches) in [("pinned", &[][..]), ("staged", &[("HOSTREG_RO", "0")][..])] {
        for (meanwhile, refusal) in [("payload", "payload"), ("frame", "metadata")] {
            let report = read(meanwhile, switches);
            let what = format!("{path}, {meanwhile}: {report}");
            assert_eq!(
                (&report[refusal], &report["taken"]),
                (&FRAMES.into(), &0.into()),
                "{what}"
            );
            assert_eq!(report["pinned"] != 0, path == "pinned", "{what}");
            // With a copy in flight; how many of them is the scheduler's to say.
            assert_ne!(report["under_copy"], 0, "{what}");
        }
    }
}

/// What the test above sees is the writer's doing, not the delay's.
#[test]
fn a_frame_that_stays_is_taken_however_long_its_copy_takes() {
    let report = read("nothing", &[]);
    assert_eq!(
        (&report["payload"], &report["metadata"]),
        (&0.into(), &0.into()),
        "{report}"
    );
    // A machine without a core for the copy makes single ones late.
    assert_ne!(report["taken"], 0, "{report}");
    assert_ne!(report["pinned"], 0, "{report}");
}
