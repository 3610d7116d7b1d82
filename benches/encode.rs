//! What one picture costs in each encoder, and what of that is ours: `copy` is the time to take
//! the same access unit out of a buffer, the least that any wrapper around an encoder does.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};

use cvmmap_streamer::encode::registry::{CANDIDATES, Kind};
use cvmmap_streamer::encode::{
    Codec, EncodedQueue, Encoder, EncoderChoice, EncoderConfig, FrameRate, Picture, Preset,
    RateControl, Tuning, default_bitrate,
};
use cvmmap_streamer::frame::surface::I420Surface;
use cvmmap_streamer::frame::{
    FrameInfo, PictureShape, PixelFormat, PlaneLayout, Snapshot, SurfaceLease,
};
use cvmmap_streamer::time::MediaTime;
use cvmmap_streamer::trace::FrameTrace;

fn encode(criterion: &mut Criterion) {
    let software = CANDIDATES.iter().filter(|c| c.kind == Kind::Software);
    for candidate in software {
        for (width, height) in [(640, 360), (1280, 720), (1920, 1080)] {
            for codec in candidate.codecs {
                let mut bench = Bench::new(*codec, width, height);
                let mut group = criterion.benchmark_group("encode");
                group.sample_size(20);
                let name = format!("{}/{height}p", candidate.name);
                group.bench_function(&name, |b| b.iter(|| bench.picture()));
                let (mut kept, unit) = (Vec::new(), bench.last_unit());
                group.bench_function(format!("{name}/copy"), |b| {
                    b.iter(|| {
                        kept.clear();
                        kept.extend_from_slice(black_box(&unit));
                        kept.len()
                    });
                });
                group.finish();
            }
        }
    }
}

/// An encoder with a few pictures that move, in its own surfaces.
struct Bench {
    encoder: Encoder,
    out: EncodedQueue,
    shape: PictureShape,
    n: u32,
    all: Vec<SurfaceLease>,
    unit: Vec<u8>,
}

impl Bench {
    fn new(codec: Codec, width: u32, height: u32) -> Self {
        let shape = PictureShape {
            width,
            height,
            format: PixelFormat::Bgr,
            encoded: None,
        };
        let rate = FrameRate::THIRTY;
        let config = EncoderConfig {
            codec,
            shape,
            frame_rate: rate,
            rate: RateControl::Bitrate(default_bitrate(width, height, rate, codec)),
            gop: 30,
            b_frames: 0,
            intra_refresh: false,
            preset: Preset::Fastest,
            tuning: Tuning::LowLatency,
            surfaces_in_flight: 7,
        };
        let encoder = Encoder::open(EncoderChoice::Software, config).expect("software opens");
        let pool = encoder.surfaces();
        let mut leases: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        for (n, lease) in leases.iter_mut().enumerate() {
            draw(lease, n);
        }
        drop(leases);
        Self {
            encoder,
            out: EncodedQueue::new(),
            shape,
            n: 0,
            all: Vec::with_capacity(16),
            unit: Vec::new(),
        }
    }

    /// Codes one picture; gives the bytes of its access unit.
    fn picture(&mut self) -> usize {
        // The pool gives the one used last, which would be a still picture: take all, keep the
        // bottom one, and give the others back in the order in which they lay.
        let pool = self.encoder.surfaces();
        self.all.extend(std::iter::from_fn(|| pool.take()));
        let surface = self.all.pop().expect("one is free");
        self.all.reverse();
        self.all.clear();
        let picture = Picture {
            snapshot: Snapshot {
                info: self.info(),
                surface,
                epoch: 0,
                gap: false,
                time: MediaTime(i64::from(self.n) * 33_333_333),
                trace: FrameTrace::default(),
            },
            force_key: false,
        };
        self.n += 1;
        self.encoder
            .encode(picture, &mut self.out)
            .expect("it codes");
        let unit = self.out.pop().expect("one out for one in");
        let len = unit.data.len();
        self.out
            .recycle(std::mem::replace(&mut self.unit, unit.data));
        len
    }

    fn last_unit(&self) -> Vec<u8> {
        self.unit.clone()
    }

    fn info(&self) -> FrameInfo {
        let stride = self.shape.width * 3;
        FrameInfo {
            frame_id: self.n,
            capture_ts_ns: 0,
            format: self.shape.format,
            left: PlaneLayout {
                width: self.shape.width,
                height: self.shape.height,
                stride,
                offset: 0,
                size: stride * self.shape.height,
            },
            encoded: None,
            frame_rate: None,
            payload_size: stride * self.shape.height,
        }
    }
}

/// A texture that drifts by three pixels from surface to surface.
fn draw(lease: &mut SurfaceLease, n: usize) {
    let surface = lease
        .get_mut::<I420Surface>()
        .expect("software reads planes");
    let planes = surface.planes_mut();
    for (y, row) in planes.y.chunks_mut(planes.luma_stride).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            let wave = ((x + 3 * n) as f32 / 17.0).sin() + (y as f32 / 23.0).cos();
            let noise = (x * 31 + y * 17 + n * 7) % 13;
            *pixel = (110.0 + 40.0 * wave) as u8 + noise as u8;
        }
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
