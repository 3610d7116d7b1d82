//! Drives the NVENC backend alone with a moving pattern out of a shared mapping and tells as JSON what
//! came back. The tests run it on the emulator; on a machine with a GPU it runs on that.
//!
//! ```text
//! cargo run --example nvenc_drive -- --frames 120 --codec h265 --width 1920 --height 1080 --out /tmp/a.h265
//! ```

#[cfg(not(feature = "nvenc"))]
fn main() {
    eprintln!("built without the feature nvenc");
    std::process::exit(2);
}

#[cfg(feature = "nvenc")]
fn main() -> std::process::ExitCode {
    drive::main(std::env::args())
}

#[cfg(feature = "nvenc")]
pub mod drive {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::io::Write;
    use std::process::ExitCode;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use clap::Parser;
    use cvmmap_streamer::encode::nvenc::{NvencEncoder, NvencOptions};
    use cvmmap_streamer::encode::{
        Codec, EncodeError, EncodedQueue, Encoder, EncoderBackend, EncoderChoice, EncoderConfig,
        FrameRate, Outcome, Picture, Preset, RateControl, Tuning,
    };
    use cvmmap_streamer::frame::{
        FillError, FrameInfo, FrameView, MappedMemory, PictureShape, PixelFormat, PlaneLayout,
        Snapshot, SurfacePool,
    };
    use cvmmap_streamer::time::MediaTime;
    use cvmmap_streamer::trace::FrameTrace;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use serde_json::json;

    /// In front of the report.
    pub const MARK: &str = "nvenc_drive: ";

    #[derive(Parser)]
    struct Arguments {
        /// Through the registry, with fallback, instead of the backend alone.
        #[arg(long)]
        through: Option<EncoderChoice>,
        #[arg(long, default_value = "h264")]
        codec: Codec,
        #[arg(long, default_value_t = 640)]
        width: u32,
        #[arg(long, default_value_t = 360)]
        height: u32,
        /// As cv-mmap numbers them.
        #[arg(long, default_value_t = 1)]
        format: u8,
        #[arg(long, default_value_t = 60)]
        frames: u64,
        #[arg(long, default_value_t = 30)]
        fps: u32,
        #[arg(long, default_value_t = 0)]
        gop: u32,
        #[arg(long, default_value_t = 0)]
        b_frames: u32,
        #[arg(long)]
        intra_refresh: bool,
        #[arg(long, default_value_t = 2_000_000)]
        bitrate: u32,
        /// Pictures that are asked to be key frames.
        #[arg(long, value_delimiter = ',')]
        key_at: Vec<u64>,
        /// Changes of the bit rate before each picture.
        #[arg(long, default_value_t = 0)]
        bitrate_changes: u64,
        /// Close and open again so often.
        #[arg(long, default_value_t = 1)]
        sessions: u32,
        /// A new mapping each so many pictures.
        #[arg(long, default_value_t = u64::MAX)]
        remap_each: u64,
        /// Do not say where the mapping is, so that nothing can be pinned.
        #[arg(long)]
        no_mapping: bool,
        /// A fixed picture of bars and a grey ramp in place of the moving pattern.
        #[arg(long)]
        bars: bool,
        /// Write something else into the segment as soon as a frame counts as read.
        #[arg(long)]
        scribble: bool,
        #[arg(long, default_value_t = 0)]
        gpu: usize,
        /// A copy that is late costs its frame at once; else the frame is read a second time.
        #[arg(long)]
        late_is_lost: bool,
        #[arg(long, default_value_t = 2000)]
        call_limit_ms: u64,
        #[arg(long, default_value_t = 15_000)]
        open_limit_ms: u64,
        /// Where the elementary stream goes.
        #[arg(long)]
        out: Option<std::path::PathBuf>,
    }

    pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
        env_logger::init();
        let arguments = Arguments::parse_from(arguments);
        let mut report = Report::default();
        for _ in 0..arguments.sessions {
            if let Err(error) = run(&arguments, &mut report) {
                report.error = Some(error);
                break;
            }
        }
        // On a line of its own, whatever a test harness has printed before.
        println!("\n{MARK}{}", report.json());
        ExitCode::from(u8::from(report.error.is_some()))
    }

    #[derive(Default)]
    struct Report {
        opened: Option<String>,
        error: Option<String>,
        submitted: u64,
        units: Vec<serde_json::Value>,
        /// Pictures whose access unit was not out when `encode` returned.
        late: u64,
        pinned: u64,
        staged: u64,
        stale_pins: u64,
        unfilled: Vec<String>,
        allocations: u64,
        cpu_us: u64,
        wall_us: u64,
        encode_us: Vec<u64>,
        fill_us: Vec<u64>,
        silent: u64,
        stuck_us: u64,
        replaced_at: Vec<u64>,
    }

    impl Report {
        fn json(&self) -> serde_json::Value {
            let median = |values: &[u64]| {
                let mut values = values.to_vec();
                values.sort_unstable();
                values.get(values.len() / 2).copied()
            };
            json!({
                "opened": self.opened, "error": self.error, "submitted": self.submitted,
                "units": self.units, "late": self.late, "pinned": self.pinned, "staged": self.staged,
                "stale_pins": self.stale_pins, "unfilled": self.unfilled, "silent": self.silent,
                "allocations_after_warm_up": self.allocations, "cpu_us": self.cpu_us, "wall_us": self.wall_us,
                "encode_us_median": median(&self.encode_us), "fill_us_median": median(&self.fill_us),
                "last_call_us": self.stuck_us, "replaced_at": self.replaced_at,
            })
        }
    }

    fn run(arguments: &Arguments, report: &mut Report) -> Result<(), String> {
        let format = PixelFormat::from_wire(arguments.format).ok_or("no such format")?;
        let shape = PictureShape {
            width: arguments.width,
            height: arguments.height,
            format,
            encoded: None,
        };
        let config = EncoderConfig {
            codec: arguments.codec,
            shape,
            frame_rate: FrameRate {
                num: arguments.fps,
                den: 1,
            },
            rate: RateControl::Bitrate(arguments.bitrate),
            gop: arguments.gop,
            b_frames: arguments.b_frames,
            intra_refresh: arguments.intra_refresh,
            preset: Preset::Fastest,
            tuning: Tuning::LowLatency,
            surfaces_in_flight: 3,
        };
        let options = NvencOptions {
            gpu: format!("{}", arguments.gpu).parse()?,
            call_limit: Duration::from_millis(arguments.call_limit_ms),
            open_limit: Duration::from_millis(arguments.open_limit_ms),
            ..NvencOptions::default()
        };
        let mut encoder = Subject::open(arguments.through, &config, &options)?;
        report.opened = Some(encoder.name());
        let mut pool = encoder.surfaces();
        let mut output = match &arguments.out {
            Some(path) => Some(std::fs::File::create(path).map_err(|error| error.to_string())?),
            None => None,
        };
        let mut segment = Segment::new(shape);
        let mut queue = EncodedQueue::new();
        let mut result = Ok(());
        let (cpu, wall, mut allocations) = (cpu_us(), Instant::now(), 0);
        report.units.reserve(arguments.frames as usize + 16);
        report.encode_us.reserve(arguments.frames as usize);
        report.fill_us.reserve(arguments.frames as usize);
        for number in 0..arguments.frames {
            if number > 0 && number % arguments.remap_each == 0 {
                segment = Segment::new(shape);
            }
            segment.draw(number, arguments);
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for change in 0..arguments.bitrate_changes {
                let bits = arguments.bitrate + (change % 7) as u32 * 1000;
                encoder.set_bitrate(bits)?;
            }
            let Some(mut surface) = pool.take() else {
                report.unfilled.push("no surface".to_owned());
                continue;
            };
            let info = segment.info(number as u32);
            let started = Instant::now();
            let view = segment.view(info);
            let view = if arguments.no_mapping {
                view
            } else {
                view.with_mapping(&segment.reader)
            };
            // The emulator's copies need a core; on a busy machine one may be late that is not meant to be.
            let filled = match surface.fill(&view) {
                Err(FillError::Upload(_)) if !arguments.late_is_lost => surface.fill(&view),
                filled => filled,
            };
            if let Err(error) = filled {
                report.unfilled.push(error.to_string());
                continue;
            }
            report.fill_us.push(started.elapsed().as_micros() as u64);
            if arguments.scribble {
                segment.scribble();
            }
            let snapshot = Snapshot {
                info,
                surface,
                epoch: 0,
                gap: false,
                time: MediaTime(number as i64 * 1_000_000_000 / i64::from(arguments.fps)),
                trace: FrameTrace::default(),
            };
            let picture = Picture {
                snapshot,
                force_key: arguments.key_at.contains(&number),
            };
            report.submitted += 1;
            let started = Instant::now();
            let got = encoder.encode(picture, &mut queue);
            report.stuck_us = started.elapsed().as_micros() as u64;
            match got {
                Ok(false) => (),
                Ok(true) => {
                    report.replaced_at.push(number);
                    pool = encoder.surfaces();
                    report.opened = Some(encoder.name());
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            report.encode_us.push(report.stuck_us);
            let after = ALLOCATIONS.load(Ordering::Relaxed);
            if number >= 10 {
                allocations += after - before;
            }
            if queue.is_empty() {
                report.silent += 1;
            }
            let mut own = false;
            while let Some(unit) = queue.pop() {
                own |= u64::from(unit.frame_id) == number;
                note(report, &unit, output.as_mut());
                queue.recycle(unit.data);
            }
            report.late += u64::from(!own);
        }
        report.cpu_us += cpu_us() - cpu;
        report.wall_us += wall.elapsed().as_micros() as u64;
        report.allocations += allocations;
        if result.is_ok() {
            result = encoder.flush(&mut queue);
            while let Some(unit) = queue.pop() {
                note(report, &unit, output.as_mut());
            }
        }
        if let Subject::Backend(encoder) = &encoder {
            let uploads = encoder.uploads();
            report.pinned += uploads.pinned.load(Ordering::Relaxed);
            report.staged += uploads.staged.load(Ordering::Relaxed);
            report.stale_pins += uploads.stale_pins.load(Ordering::Relaxed);
        }
        result
    }

    /// The backend alone, or the encoder that falls back.
    enum Subject {
        Backend(Box<NvencEncoder>),
        Encoder(Box<Encoder>),
    }

    impl Subject {
        fn open(
            through: Option<EncoderChoice>,
            config: &EncoderConfig,
            options: &NvencOptions,
        ) -> Result<Self, String> {
            let words = |error: EncodeError| error.to_string();
            Ok(match through {
                None => Self::Backend(Box::new(
                    NvencEncoder::open(config, options).map_err(words)?,
                )),
                Some(choice) => {
                    Self::Encoder(Box::new(Encoder::open(choice, *config).map_err(words)?))
                }
            })
        }

        fn name(&self) -> String {
            match self {
                Self::Backend(encoder) => encoder.opened().gpu.clone(),
                Self::Encoder(encoder) => encoder.name().to_owned(),
            }
        }

        fn surfaces(&self) -> SurfacePool {
            match self {
                Self::Backend(encoder) => encoder.surfaces(),
                Self::Encoder(encoder) => encoder.surfaces(),
            }
        }

        /// True if the encoder is another one now.
        fn encode(&mut self, picture: Picture, queue: &mut EncodedQueue) -> Result<bool, String> {
            match self {
                Self::Backend(encoder) => encoder.encode(picture, queue).map(|()| false),
                Self::Encoder(encoder) => encoder
                    .encode(picture, queue)
                    .map(|outcome| outcome == Outcome::Replaced),
            }
            .map_err(|error| error.to_string())
        }

        fn flush(&mut self, queue: &mut EncodedQueue) -> Result<(), String> {
            match self {
                Self::Backend(encoder) => encoder.flush(queue),
                Self::Encoder(encoder) => encoder.flush(queue),
            }
            .map_err(|error| error.to_string())
        }

        fn set_bitrate(&mut self, bits: u32) -> Result<(), String> {
            match self {
                Self::Backend(encoder) => encoder.set_bitrate(bits),
                Self::Encoder(encoder) => encoder.set_bitrate(bits),
            }
            .map_err(|error| error.to_string())
        }
    }

    fn note(
        report: &mut Report,
        unit: &cvmmap_streamer::encode::EncodedPicture,
        output: Option<&mut std::fs::File>,
    ) {
        report.units.push(json!([
            unit.frame_id,
            unit.pts.as_nanos(),
            unit.dts.as_nanos(),
            unit.key,
            unit.data.len()
        ]));
        if let Some(output) = output {
            output
                .write_all(&unit.data)
                .expect("the output file can be written");
        }
    }

    /// A segment as a producer has it, and the reader's mapping of it.
    struct Segment {
        shape: PictureShape,
        writer: *mut u8,
        len: usize,
        reader: Arc<dyn MappedMemory>,
    }

    struct Reader(usize, usize);

    impl MappedMemory for Reader {
        fn base(&self) -> *const u8 {
            self.0 as *const u8
        }

        fn len(&self) -> usize {
            self.1
        }
    }

    impl Drop for Reader {
        fn drop(&mut self) {
            // SAFETY: mapped by `Segment::new` with this length; views are gone.
            let _ = unsafe { munmap(self.0 as *mut _, self.1) };
        }
    }

    const METADATA: usize = 256;

    impl Segment {
        fn new(shape: PictureShape) -> Self {
            let payload =
                shape.width as usize * shape.height as usize * shape.format.bytes_per_pixel();
            let len = (METADATA + payload).next_multiple_of(4096);
            let file = memfd_create("nvenc-drive", MemfdFlags::CLOEXEC).expect("memfd");
            ftruncate(&file, len as u64).expect("memory for a frame");
            let map = |protection| {
                // SAFETY: a new mapping at an address of the kernel's choice.
                unsafe {
                    mmap(
                        std::ptr::null_mut(),
                        len,
                        protection,
                        MapFlags::SHARED,
                        &file,
                        0,
                    )
                }
                .expect("memory for a frame")
            };
            let writer = map(ProtFlags::READ | ProtFlags::WRITE).cast();
            let reader = map(ProtFlags::READ);
            Self {
                shape,
                writer,
                len,
                reader: Arc::new(Reader(reader as usize, len)),
            }
        }

        fn info(&self, frame_id: u32) -> FrameInfo {
            let stride = self.shape.width * self.shape.format.bytes_per_pixel() as u32;
            FrameInfo {
                frame_id,
                capture_ts_ns: u64::from(frame_id) * 1000,
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

        fn view(&self, info: FrameInfo) -> FrameView<'_> {
            // SAFETY: the reader's mapping holds the payload behind the metadata, and lives as long.
            unsafe { FrameView::new(info, self.reader.base().add(METADATA)) }
        }

        fn bytes(&mut self) -> &mut [u8] {
            // SAFETY: the writer's mapping has `len` bytes and is this process's own; the reader's
            // view of them is read between writes only.
            unsafe { std::slice::from_raw_parts_mut(self.writer, self.len) }
        }

        fn scribble(&mut self) {
            self.bytes()[METADATA..].fill(0x55);
        }

        fn draw(&mut self, number: u64, arguments: &Arguments) {
            let shape = self.shape;
            let bytes = self.bytes();
            bytes[..8].copy_from_slice(&number.to_ne_bytes());
            let (width, height) = (shape.width as usize, shape.height as usize);
            let bpp = shape.format.bytes_per_pixel();
            let bars = arguments.bars;
            if bars && number > 0 && !arguments.scribble {
                return;
            }
            for y in 0..height {
                let row = &mut bytes[METADATA + y * width * bpp..][..width * bpp];
                if bars {
                    for (x, pixel) in row.chunks_exact_mut(bpp).enumerate() {
                        bar(pixel, x, y, width, height, shape.format);
                    }
                } else {
                    let shade = (y * 255 / height) as u8;
                    row.fill(shade);
                    let at = (number as usize * 4 % width.max(64)).min(width - width.min(32));
                    row[at * bpp..(at + width.min(32)) * bpp].fill(255 - shade);
                }
            }
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            // SAFETY: mapped by `new` with this length.
            let _ = unsafe { munmap(self.writer.cast(), self.len) };
        }
    }

    /// Red, green, blue, white, black above a grey ramp.
    fn bar(pixel: &mut [u8], x: usize, y: usize, width: usize, height: usize, format: PixelFormat) {
        let rgb = if y < height / 2 {
            [
                [255, 0, 0],
                [0, 255, 0],
                [0, 0, 255],
                [255, 255, 255],
                [0, 0, 0],
            ][x * 5 / width]
        } else {
            [(x * 256 / width) as u8; 3]
        };
        match format {
            PixelFormat::Bgr | PixelFormat::Bgra => {
                pixel[..3].copy_from_slice(&[rgb[2], rgb[1], rgb[0]]);
            }
            PixelFormat::Rgb | PixelFormat::Rgba => pixel[..3].copy_from_slice(&rgb),
            PixelFormat::Gray => pixel[0] = (x * 256 / width) as u8,
            PixelFormat::Yuv | PixelFormat::Yuyv => pixel.fill(128),
        }
    }

    fn cpu_us() -> u64 {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the call fills the structure, which is valid zeroed.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init()
        };
        let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        micros(usage.ru_utime) + micros(usage.ru_stime)
    }

    struct Counting;

    static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

    // SAFETY: the system's allocator, counted.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;
}
