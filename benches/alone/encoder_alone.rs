//! The encoder with nothing around it, on a raw clip at a camera's pace: what it costs and takes.
//! `scripts/bench_peers.sh` takes that from what a whole program used; the rest is the pipeline's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use cvmmap_streamer::encode::{
    Codec, EncodedQueue, Encoder, EncoderChoice, EncoderConfig, FrameRate, Picture, Preset,
    RateControl, Tuning,
};
use cvmmap_streamer::frame::{FrameInfo, FrameView, PixelFormat, PlaneLayout, Snapshot};
use cvmmap_streamer::time::MediaTime;
use cvmmap_streamer::trace::FrameTrace;

/// Prints CPU seconds per 100 pictures inside the encoder, its threads included, and the times of
/// its calls, as JSON.
#[derive(Debug, Parser)]
struct Arguments {
    /// Raw BGR frames, played to and fro
    #[arg(long)]
    clip: PathBuf,
    #[arg(long)]
    width: u32,
    #[arg(long)]
    height: u32,
    #[arg(long, value_enum)]
    codec: Codec,
    #[arg(long)]
    bitrate: u32,
    #[arg(long, default_value_t = 30)]
    gop: u32,
    #[arg(long, default_value_t = 30)]
    fps: u32,
    #[arg(long, default_value_t = 150)]
    frames: u32,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let info = info(&arguments);
    let clip = File::open(&arguments.clip)?;
    let frames = clip.metadata()?.len() / u64::from(info.payload_size).max(1);
    if frames == 0 || arguments.fps == 0 || arguments.frames == 0 {
        return Err("the clip holds no frame of that size, or --fps or --frames is 0".into());
    }
    let mut encoder = Encoder::open(
        EncoderChoice::Software,
        EncoderConfig {
            codec: arguments.codec,
            shape: info.shape(),
            frame_rate: FrameRate {
                num: arguments.fps,
                den: 1,
            },
            rate: RateControl::Bitrate(arguments.bitrate),
            gop: arguments.gop,
            b_frames: 0,
            intra_refresh: false,
            preset: Preset::Fastest,
            tuning: Tuning::LowLatency,
            surfaces_in_flight: 2,
        },
    )?;
    let (pool, mut out) = (encoder.surfaces(), EncodedQueue::new());
    let mut raw = vec![0; info.payload_size as usize];
    let (mut cpu, mut bytes) = (0.0, 0_usize);
    let mut times = Vec::new();
    let interval = Duration::from_secs(1) / arguments.fps;
    let start = Instant::now();
    for number in 0..arguments.frames {
        let at = to_and_fro(number.into(), frames) * raw.len() as u64;
        clip.read_exact_at(&mut raw, at)?;
        let mut surface = pool.take().ok_or("no surface is free")?;
        surface.fill(&FrameView::from_slice(info, &raw))?;
        let picture = Picture {
            snapshot: Snapshot {
                info,
                surface,
                epoch: 0,
                gap: false,
                time: MediaTime((interval * number).as_nanos() as i64),
                trace: FrameTrace::default(),
            },
            force_key: false,
        };
        // A camera's pace: an encoder that is called without a pause has warmer caches.
        std::thread::sleep((start + interval * number).saturating_duration_since(Instant::now()));
        let (before, call) = (process_cpu(), Instant::now());
        encoder.encode(picture, &mut out)?;
        times.push(call.elapsed());
        cpu += process_cpu() - before;
        while let Some(picture) = out.pop() {
            bytes += picture.data.len();
            out.recycle(picture.data);
        }
    }
    times.sort_unstable();
    let ms = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!(
        "{{\"encoder\": \"{}\", \"cpu_per_100\": {:.5}, \"p50_ms\": {:.3}, \"p99_ms\": {:.3}, \"mbit\": {:.3}}}",
        encoder.name(),
        cpu * 100.0 / f64::from(arguments.frames),
        ms(50).as_secs_f64() * 1e3,
        ms(99).as_secs_f64() * 1e3,
        bytes as f64 * 8.0 * f64::from(arguments.fps) / f64::from(arguments.frames) / 1e6,
    );
    Ok(())
}

fn info(arguments: &Arguments) -> FrameInfo {
    let stride = arguments.width * 3;
    let size = stride * arguments.height;
    FrameInfo {
        frame_id: 0,
        capture_ts_ns: 0,
        format: PixelFormat::Bgr,
        left: PlaneLayout {
            width: arguments.width,
            height: arguments.height,
            stride,
            offset: 0,
            size,
        },
        encoded: None,
        frame_rate: None,
        payload_size: size,
    }
}

/// As the pacer of `bench_row` counts.
fn to_and_fro(number: u64, frames: u64) -> u64 {
    let round = (2 * (frames - 1)).max(1);
    let within = number % round;
    within.min(round - within)
}

fn process_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
