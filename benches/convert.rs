//! From each pixel format to I420, on each rung, against a plain memcpy of the same source bytes.
//!
//! Before each measured pass another thread writes the frame anew into a shared mapping, as a
//! producer does, and the destinations take turns, as a pool's surfaces do: the caches are then as
//! they are in the streamer. The table compares medians of passes that alternate, because absolute
//! times of a shared machine move by half from one hour to the next; `low` compares the lower
//! quartiles, which is what is left to trust while other programs want the cores. Criterion's figures after it
//! are for comparing one commit with another.
//!
//! ```text
//! cargo bench --bench convert                  # the table, then criterion
//! CONVERT_ROUNDS=301 CONVERT_ONLY=1080p/bgr cargo bench --bench convert -- none
//! ```

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use cvmmap_streamer::frame::convert::Converter;
use cvmmap_streamer::frame::surface::I420Surface;
use cvmmap_streamer::frame::{FrameInfo, FrameView, PixelFormat, PlaneLayout};
use memmap2::{MmapMut, MmapRaw};

fn main() {
    // `cargo test --benches` only wants to see that it runs.
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let rounds = std::env::var("CONVERT_ROUNDS").ok();
    let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(101);
    if measuring {
        table(&SIZES, rounds);
    } else {
        table(&[("64p", 96, 64)], 1);
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    criterion_1080p(&mut criterion);
    criterion.final_summary();
}

const SIZES: [(&str, u32, u32); 3] = [
    ("720p", 1280, 720),
    ("1080p", 1920, 1080),
    ("2160p", 3840, 2160),
];

fn table(sizes: &[(&str, u32, u32)], rounds: usize) {
    let rungs: Vec<Converter> = Converter::available().collect();
    println!("median of {rounds} alternating passes over a frame just written by another thread");
    print!("{:<6} {:<5} {:>11}", "size", "from", "memcpy us");
    for rung in &rungs {
        print!(" {:>9} {:>6} {:>6}", rung.rung().name(), "ratio", "low");
    }
    println!();
    let only = std::env::var("CONVERT_ONLY").unwrap_or_default();
    for &(name, width, height) in sizes {
        let wanted = |format: &PixelFormat| format!("{name}/{}", format.name()).starts_with(&only);
        for format in PixelFormat::ALL.into_iter().filter(wanted) {
            let mut scene = Scene::new(format, width, height);
            let mut times = vec![Vec::with_capacity(rounds); 1 + rungs.len()];
            // The first rounds touch every page and are not counted.
            for round in 0..rounds + 4 {
                let copied = scene.time_memcpy();
                let converted = rungs.iter().map(|&rung| scene.time_convert(rung));
                let row: Vec<_> = std::iter::once(copied).chain(converted).collect();
                if round >= 4 {
                    times
                        .iter_mut()
                        .zip(row)
                        .for_each(|(all, one)| all.push(one));
                }
            }
            times.iter_mut().for_each(|all| all.sort_unstable());
            let us = |all: &[Duration], part: usize| all[all.len() / part].as_secs_f64() * 1e6;
            let (copied, converted) = times.split_at(1);
            print!("{name:<6} {:<5} {:>11.0}", format.name(), us(&copied[0], 2));
            for all in converted {
                let ratio = |part| us(all, part) / us(&copied[0], part);
                print!(" {:>9.0} {:>6.2} {:>6.2}", us(all, 2), ratio(2), ratio(4));
            }
            println!();
        }
    }
}

fn criterion_1080p(criterion: &mut Criterion) {
    for format in PixelFormat::ALL {
        let mut group = criterion.benchmark_group(format!("convert/1080p/{}", format.name()));
        let mut scene = Scene::new(format, 1920, 1080);
        group.throughput(Throughput::Bytes(scene.bytes as u64));
        group.bench_function("memcpy", |bencher| {
            bencher.iter_custom(|n| (0..n).map(|_| scene.time_memcpy()).sum());
        });
        for rung in Converter::available() {
            let id = BenchmarkId::from_parameter(rung.rung().name());
            group.bench_with_input(id, &rung, |bencher, &rung| {
                bencher.iter_custom(|n| (0..n).map(|_| scene.time_convert(rung)).sum());
            });
        }
        group.finish();
    }
}

/// A frame in a shared mapping, the thread that writes it, and where it goes.
struct Scene {
    info: FrameInfo,
    bytes: usize,
    mapping: Arc<MmapRaw>,
    producer: Producer,
    surfaces: Vec<I420Surface>,
    copies: Vec<Vec<u8>>,
}

impl Scene {
    /// As many as a pool has.
    const DESTINATIONS: usize = 4;

    fn new(format: PixelFormat, width: u32, height: u32) -> Self {
        let stride = width * format.bytes_per_pixel() as u32;
        let size = stride * height;
        let info = FrameInfo {
            frame_id: 1,
            capture_ts_ns: 0,
            format,
            left: PlaneLayout {
                width,
                height,
                stride,
                offset: 0,
                size,
            },
            encoded: None,
            frame_rate: None,
            payload_size: size,
        };
        let bytes = size as usize;
        let file = tempfile::tempfile_in("/dev/shm").expect("a file in shared memory");
        file.set_len(bytes as u64).expect("room for a frame");
        // SAFETY: the file has no name: nobody else can change it.
        let mapping = unsafe { MmapMut::map_mut(&file) }.expect("a mapping of it");
        let mapping = Arc::new(MmapRaw::from(mapping));
        Self {
            info,
            bytes,
            producer: Producer::start(Arc::clone(&mapping), bytes),
            mapping,
            surfaces: (0..Self::DESTINATIONS)
                .map(|_| I420Surface::new(width, height, format))
                .collect(),
            copies: vec![vec![1; bytes]; Self::DESTINATIONS],
        }
    }

    fn time_memcpy(&mut self) -> Duration {
        self.producer.write_a_frame();
        self.copies.rotate_left(1);
        let copy = &mut self.copies[0];
        let start = Instant::now();
        // SAFETY: both are `bytes` long and apart, and the producer waits for its next turn.
        unsafe {
            let from: *const u8 = black_box(self.mapping.as_ptr());
            std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), self.bytes);
        }
        black_box(copy);
        start.elapsed()
    }

    fn time_convert(&mut self, converter: Converter) -> Duration {
        self.producer.write_a_frame();
        self.surfaces.rotate_left(1);
        let mut planes = self.surfaces[0].planes_mut();
        let start = Instant::now();
        // SAFETY: the mapping is as long as `info` says and lives as long as `self`.
        let view = unsafe { FrameView::new(self.info, self.mapping.as_ptr()) };
        converter.to_i420(&black_box(view), &mut planes);
        black_box(&mut planes);
        start.elapsed()
    }
}

/// Writes frames on a thread of its own, each when asked.
struct Producer {
    /// Odd: a frame is wanted; even: it is there.
    turn: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Producer {
    const END: u64 = u64::MAX;

    fn start(mapping: Arc<MmapRaw>, bytes: usize) -> Self {
        let turn = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&turn);
        let frames = [3_u64, 5].map(|step| -> Vec<u8> {
            let hash = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15 + step) >> 56) as u8;
            (0..bytes as u64).map(hash).collect()
        });
        let run = move || {
            loop {
                match theirs.load(Ordering::Acquire) {
                    Self::END => return,
                    wanted if wanted % 2 == 1 => {
                        let frame = &frames[(wanted / 2 % 2) as usize];
                        // SAFETY: both are `bytes` long, and the reader waits for this turn's end.
                        unsafe {
                            let to = mapping.as_mut_ptr();
                            std::ptr::copy_nonoverlapping(frame.as_ptr(), to, bytes);
                        }
                        theirs.store(wanted + 1, Ordering::Release);
                    }
                    _ => wait(),
                }
            }
        };
        Self {
            turn,
            thread: Some(std::thread::spawn(run)),
        }
    }

    fn write_a_frame(&self) {
        let wanted = self.turn.load(Ordering::Relaxed) + 1;
        self.turn.store(wanted, Ordering::Release);
        while self.turn.load(Ordering::Acquire) == wanted {
            wait();
        }
    }
}

/// Neither asleep, for waking would count, nor in the way of the other thread.
fn wait() {
    spin_loop();
    std::thread::yield_now();
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.turn.store(Self::END, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the producer does not panic");
        }
    }
}
