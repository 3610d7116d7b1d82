//! What a coherent read into a surface costs, against memcpy of the same bytes.
//!
//! Two ways to see it: criterion's groups, each measured by itself with the frame in the caches,
//! and a table of medians measured alternately in one loop, each time on a frame that another
//! thread has just written. Ratios travel between machines, times do not.

use std::any::Any;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use cvmmap_streamer::frame::surface::I420Surface;
use cvmmap_streamer::frame::{
    FillError, FrameInfo, FrameView, PixelFormat, Surface, SurfaceLease, SurfaceMemory, SurfacePool,
};
use cvmmap_streamer::source::contract::{METADATA_LEN, Metadata, v2_left_only};
use cvmmap_streamer::source::notices::FrameNotice;
use cvmmap_streamer::source::region::Region;
use cvmmap_streamer::source::snapshot::SnapshotReader;
use cvmmap_streamer::source::{SourceCounters, SurfaceSource};

const SIZES: [(&str, u32, u32); 3] = [
    ("360p", 640, 360),
    ("1080p", 1920, 1080),
    ("2160p", 3840, 2160),
];

/// Keeps the payload as it is: what remains of a coherent read without a conversion.
struct Copy(Vec<u8>);

impl SurfaceMemory for Copy {
    fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError> {
        // SAFETY: the view promises that many bytes; nobody writes them during the read here.
        unsafe {
            std::ptr::copy_nonoverlapping(view.payload(), self.0.as_mut_ptr(), self.0.len());
        }
        black_box(&mut self.0);
        Ok(())
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

struct Bench {
    name: String,
    file: File,
    payload: Vec<u8>,
    region: Region,
    reader: SnapshotReader,
    counters: SourceCounters,
    copy: Pool,
    i420: Pool,
    plain: (Vec<u8>, Vec<u8>),
}

impl Bench {
    fn new(width: u32, height: u32) -> Self {
        let name = format!("cvmmapbench_{}_{width}", std::process::id());
        let flags = rustix::shm::OFlags::CREATE | rustix::shm::OFlags::RDWR;
        let file = File::from(rustix::shm::open(&*name, flags, 0o600.into()).unwrap());
        let payload: Vec<u8> = (0..width * height * 3).map(|n| (n * 31) as u8).collect();
        let block = v2_left_only(1, 1, PixelFormat::Bgr, width, height);
        file.write_all_at(&block, 0).unwrap();
        file.write_all_at(&payload, METADATA_LEN as u64).unwrap();
        let pool = |surface| Pool(SurfacePool::new(vec![surface]));
        let len = payload.len();
        Self {
            region: Region::open(&name).unwrap().unwrap(),
            reader: SnapshotReader::default(),
            counters: SourceCounters::default(),
            copy: pool(Box::new(Copy(vec![1; len])) as Surface),
            i420: pool(Box::new(I420Surface::new(width, height, PixelFormat::Bgr)) as Surface),
            plain: (payload.clone(), vec![1; len]),
            name,
            file,
            payload,
        }
    }

    fn memcpy(&mut self) {
        self.plain.1.copy_from_slice(black_box(&self.plain.0));
        black_box(&mut self.plain.1);
    }

    /// The same, out of the mapping: on a frame that was just written, that is what to compare
    /// with.
    fn memcpy_mapped(&mut self) {
        let block = self.region.metadata().unwrap();
        let metadata = Metadata::parse(&block, self.region.len()).unwrap();
        let view = self.region.view(metadata.frame_info().unwrap()).unwrap();
        let target = &mut self.plain.1;
        // SAFETY: the view promises that many bytes; the writer is waiting.
        unsafe {
            std::ptr::copy_nonoverlapping(view.payload(), target.as_mut_ptr(), target.len());
        }
        black_box(target);
    }

    fn snapshot(&mut self, i420: bool) {
        let notice = FrameNotice {
            frame_id: 1,
            timestamp_ns: 1,
            arrival: Instant::now(),
            age_ns: None,
        };
        let pool = if i420 { &mut self.i420 } else { &mut self.copy };
        let read = self
            .reader
            .read(&mut self.region, &notice, None, pool, &self.counters);
        black_box(read.unwrap());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = rustix::shm::unlink(&*self.name);
    }
}

fn groups(criterion: &mut Criterion) {
    for (size, width, height) in SIZES {
        let mut bench = Bench::new(width, height);
        let mut group = criterion.benchmark_group("snapshot");
        group.throughput(Throughput::Bytes(bench.payload.len() as u64));
        group.bench_function(BenchmarkId::new("memcpy", size), |b| {
            b.iter(|| bench.memcpy());
        });
        group.bench_function(BenchmarkId::new("coherent_copy", size), |b| {
            b.iter(|| bench.snapshot(false));
        });
        group.bench_function(BenchmarkId::new("coherent_i420", size), |b| {
            b.iter(|| bench.snapshot(true));
        });
    }
}

/// Alternating, each on a frame that another thread has just written.
fn table(rounds: usize) {
    println!("frame just written by another thread; medians of {rounds}, us, and ratio to memcpy");
    for (size, width, height) in SIZES {
        let mut bench = Bench::new(width, height);
        let (go, gone) = mpsc::channel::<()>();
        let (done, written) = mpsc::channel();
        let (file, payload) = (bench.file.try_clone().unwrap(), bench.payload.clone());
        let writer = std::thread::spawn(move || {
            while gone.recv().is_ok() {
                file.write_all_at(&payload, METADATA_LEN as u64).unwrap();
                if done.send(()).is_err() {
                    break;
                }
            }
        });
        let mut times = [const { Vec::new() }; 3];
        for round in 0..rounds * 3 {
            go.send(()).unwrap();
            written.recv().unwrap();
            let start = Instant::now();
            match round % 3 {
                0 => bench.memcpy_mapped(),
                1 => bench.snapshot(false),
                _ => bench.snapshot(true),
            }
            times[round % 3].push(start.elapsed());
        }
        drop(go);
        writer.join().unwrap();
        let [memcpy, copy, i420] = times.map(median);
        let ratio = |time: Duration| time.as_secs_f64() / memcpy.as_secs_f64();
        println!(
            "{size:>6}  memcpy {:>6}  coherent copy {:>6} ({:.2})  coherent I420 {:>6} ({:.2})",
            memcpy.as_micros(),
            copy.as_micros(),
            ratio(copy),
            i420.as_micros(),
            ratio(i420),
        );
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    // Run as a test, once, it only has to work.
    // `cargo test` gives no argument; `cargo bench` says so.
    let once = !std::env::args().any(|arg| arg == "--bench");
    table(if once { 1 } else { 150 });
    let mut criterion = Criterion::default()
        .sample_size(30)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500))
        .configure_from_args();
    groups(&mut criterion);
    criterion.final_summary();
}
