//! Checks on a machine with a real driver (`scripts/gpu_check.sh`): are the kernels bit-exact, how fast is
//! the upload next to a plain pinned copy in the same run, what does the encoder say. Needs no encode engine.

#[cfg(not(feature = "nvenc"))]
fn main() {
    eprintln!("built without the feature nvenc");
}

#[cfg(feature = "nvenc")]
fn main() -> std::process::ExitCode {
    check::main()
}

#[cfg(feature = "nvenc")]
mod check {
    use std::process::ExitCode;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use cvmmap_streamer::encode::nvenc::cuda::CudaApi;
    use cvmmap_streamer::encode::nvenc::cuda::{self, DeviceInfo};
    use cvmmap_streamer::encode::nvenc::device::Device;
    use cvmmap_streamer::encode::nvenc::driver::{GpuChoice, choose};
    use cvmmap_streamer::encode::nvenc::kernels::{self, Kernel};
    use cvmmap_streamer::encode::nvenc::{NvencEncoder, NvencOptions};
    use cvmmap_streamer::encode::{Codec, EncoderConfig, FrameRate, Preset, RateControl, Tuning};
    use cvmmap_streamer::frame::{
        FillError, FrameInfo, FrameView, MappedMemory, PictureShape, PixelFormat, PlaneLayout,
    };
    use cvmmap_streamer::gpu_info::GpuInfo;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap};

    pub fn main() -> ExitCode {
        env_logger::init();
        match GpuInfo::collect() {
            Ok(info) => print!("{info}"),
            Err(reason) => println!("gpu-info: {reason}"),
        }
        let ready = CudaApi::load()
            .map_err(|error| error.to_string())
            .and_then(|api| {
                choose(&api, &GpuChoice::First)
                    .map(|info| (api, info))
                    .map_err(|error| error.to_string())
            });
        let (api, info) = match ready {
            Ok(ready) => ready,
            Err(reason) => {
                println!("no GPU to check: {reason}");
                return ExitCode::from(3);
            }
        };
        // tests/nvenc-emu names its GPUs so.
        let emulated = info.name.starts_with("Emulated");
        if emulated {
            println!(
                "EMULATOR: this is tests/nvenc-emu and no GPU. What follows checks this program; its times mean nothing."
            );
        }
        let frames = if emulated { 10 } else { 200 };
        let mut good = true;
        for format in PixelFormat::ALL {
            for size in [(641, 361), (1920, 1080)] {
                good &= exact(&api, &info, format, size).unwrap_or_else(|error| {
                    println!("{format:?} {size:?}: {error}");
                    false
                });
            }
        }
        for (format, size) in [
            (PixelFormat::Bgr, (1920, 1080)),
            (PixelFormat::Bgr, (3840, 2160)),
            (PixelFormat::Bgra, (3840, 2160)),
        ] {
            if let Err(error) = speed(&api, &info, format, size, frames) {
                println!("{format:?} {size:?}: {error}");
                good = false;
            }
        }
        for codec in [Codec::H264, Codec::H265] {
            let config = EncoderConfig {
                codec,
                shape: shape(PixelFormat::Bgr, (1920, 1080)),
                frame_rate: FrameRate::THIRTY,
                rate: RateControl::Bitrate(8_000_000),
                gop: 60,
                b_frames: 0,
                intra_refresh: false,
                preset: Preset::Fastest,
                tuning: Tuning::LowLatency,
                surfaces_in_flight: 3,
            };
            match NvencEncoder::open(&config, &NvencOptions::default()) {
                Ok(encoder) => println!("{codec}: opens on {}", encoder.opened().gpu),
                Err(error) => println!("{codec}: {error}"),
            }
        }
        let where_ = if emulated { " on the emulator" } else { "" };
        println!("{}{where_}", if good { "PASS" } else { "FAIL" });
        ExitCode::from(u8::from(!good))
    }

    const fn shape(format: PixelFormat, (width, height): (u32, u32)) -> PictureShape {
        PictureShape {
            width,
            height,
            format,
            encoded: None,
        }
    }

    /// A frame in a read-only mapping, as the streamer has it.
    struct Mapped(*mut u8, usize);

    impl MappedMemory for Mapped {
        fn base(&self) -> *const u8 {
            self.0
        }
        fn len(&self) -> usize {
            self.1
        }
    }

    // SAFETY: an address and a length; the pages are never unmapped here.
    unsafe impl Send for Mapped {}
    // SAFETY: as above.
    unsafe impl Sync for Mapped {}

    const METADATA: usize = 256;

    fn segment(payload: &[u8]) -> Arc<dyn MappedMemory> {
        let len = (METADATA + payload.len()).next_multiple_of(4096);
        let file = memfd_create("gpu-check", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, len as u64).expect("memory for a frame");
        // SAFETY: new mappings; the writer's ends with the process like the reader's.
        unsafe {
            let writer = mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
            .expect("memory for a frame");
            std::ptr::copy_nonoverlapping(
                payload.as_ptr(),
                writer.cast::<u8>().add(METADATA),
                payload.len(),
            );
            let reader = mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                0,
            )
            .expect("memory for a frame");
            Arc::new(Mapped(reader.cast(), len))
        }
    }

    fn info_of(shape: PictureShape, frame_id: u32) -> FrameInfo {
        let stride = shape.width * shape.format.bytes_per_pixel() as u32;
        FrameInfo {
            frame_id,
            capture_ts_ns: 1,
            format: shape.format,
            left: PlaneLayout {
                width: shape.width,
                height: shape.height,
                stride,
                offset: 0,
                size: stride * shape.height,
            },
            encoded: None,
            frame_rate: None,
            payload_size: stride * shape.height,
        }
    }

    /// Both upload paths against the plain arithmetic.
    fn exact(
        api: &CudaApi,
        info: &DeviceInfo,
        format: PixelFormat,
        size: (u32, u32),
    ) -> Result<bool, String> {
        let words = |error: cuda::CudaError| error.to_string();
        let shape = shape(format, size);
        let frame = info_of(shape, 0);
        let mut seed = 7_u32;
        let payload: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        })
        .take(frame.payload_size as usize)
        .collect();
        let mapping = segment(&payload);
        let device = Device::open(*api, info.clone(), shape).map_err(words)?;
        let surface = device.new_surface().map_err(words)?;
        let mut results = Vec::new();
        for pinned in [true, false] {
            // SAFETY: the payload lies behind the metadata of a mapping that stays.
            let view = unsafe { FrameView::new(frame, mapping.base().add(METADATA)) };
            let view = if pinned {
                view.with_mapping(&mapping)
            } else {
                view
            };
            device
                .fill(&view, surface)
                .map_err(|error| error.to_string())?;
            if let Some(reason) = device.broken() {
                return Err(reason.to_owned());
            }
            let got = device.read_back(surface).map_err(words)?;
            let stride = frame.left.stride as usize;
            let dimensions = (size.0 as usize, size.1 as usize);
            let wanted = kernels::reference(format, dimensions, &payload, stride, surface.pitch);
            let far = got
                .chunks(surface.pitch)
                .zip(wanted.bytes.chunks(surface.pitch))
                .flat_map(|(a, b)| a[..wanted.width].iter().zip(&b[..wanted.width]))
                .map(|(a, b)| a.abs_diff(*b))
                .max()
                .unwrap_or(0);
            results.push(far);
        }
        device.free_surface(surface);
        device.stop_uploads(Duration::from_secs(1));
        let pinned = device
            .counters
            .pinned
            .load(std::sync::atomic::Ordering::Relaxed);
        device.close(Duration::from_secs(1));
        // The converter of the CPU rounds differently from the kernels.
        let good = results[1] <= 2 && (pinned == 0 || results[0] == 0);
        println!(
            "{format:?} {}x{}: {} (worst difference: {} {}, staged {})",
            size.0,
            size.1,
            if good { "ok" } else { "DIFFERS" },
            if pinned > 0 {
                "pinned"
            } else {
                "pinning refused, staged"
            },
            results[0],
            results[1],
        );
        Ok(good)
    }

    /// The upload against a copy of as many bytes out of pinned memory, alternating.
    fn speed(
        api: &CudaApi,
        info: &DeviceInfo,
        format: PixelFormat,
        size: (u32, u32),
        frames: u32,
    ) -> Result<(), String> {
        let words = |error: cuda::CudaError| error.to_string();
        let shape = shape(format, size);
        let payload = vec![100; info_of(shape, 0).payload_size as usize];
        let mapping = segment(&payload);
        let started = Instant::now();
        let device = Device::open(*api, info.clone(), shape).map_err(words)?;
        let opened = started.elapsed();
        let surface = device.new_surface().map_err(words)?;
        let stream = device.new_stream().map_err(words)?;
        let (mut host, mut target) = (std::ptr::null_mut(), 0);
        // SAFETY: live pointers; the context is current since `open`.
        unsafe {
            let got = (api.host_alloc)(&raw mut host, payload.len(), cuda::HOST_ALLOC_PORTABLE);
            api.check("cuMemHostAlloc", got).map_err(words)?;
            std::ptr::copy_nonoverlapping(payload.as_ptr(), host.cast(), payload.len());
            let got = (api.mem_alloc)(&raw mut target, payload.len());
            api.check("cuMemAlloc", got).map_err(words)?;
        }
        let (mut fills, mut whole, mut copies, mut late) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for frame in 0..frames {
            // SAFETY: the payload lies behind the metadata of a mapping that stays.
            let view =
                unsafe { FrameView::new(info_of(shape, frame), mapping.base().add(METADATA)) };
            let started = Instant::now();
            let filled = device.fill(&view.with_mapping(&mapping), surface);
            let read = started.elapsed();
            // No more than one picture is on its way, however slow the kernels are.
            let mut patience = 100;
            while !device.wait_ready(surface).map_err(words)? && patience > 0 {
                patience -= 1;
            }
            match filled {
                Ok(()) => (),
                // The streamer leaves such a frame out; three in a row break the device, which is asked below.
                Err(FillError::Upload(_)) => {
                    late += 1;
                    continue;
                }
                Err(error) => return Err(error.to_string()),
            }
            fills.push(read);
            whole.push(started.elapsed());
            let started = Instant::now();
            // SAFETY: as many bytes on both sides; the stream is polled until the copy is over.
            unsafe {
                let got = (api.memcpy_htod_async)(target, host, payload.len(), stream);
                api.check("cuMemcpyHtoDAsync", got).map_err(words)?;
                while (api.stream_query)(stream) == cuda::NOT_READY {
                    std::hint::spin_loop();
                }
            }
            copies.push(started.elapsed());
        }
        if let Some(reason) = device.broken() {
            return Err(reason.to_owned());
        }
        if fills.is_empty() {
            return Err(format!("{late} uploads, and all of them late"));
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let (fill, whole, copy) = (median(&mut fills), median(&mut whole), median(&mut copies));
        let rate = |time: Duration| payload.len() as f64 / time.as_secs_f64() / 1e9;
        println!(
            "{format:?} {}x{}: open with JIT {opened:?}; segment read in {fill:?} ({:.1} GB/s), pinned copy {copy:?} ({:.1} GB/s), \
             ratio {:.2}; {} kernel and events {:?} behind it; {late} late",
            size.0,
            size.1,
            rate(fill),
            rate(copy),
            copy.as_secs_f64() / fill.as_secs_f64(),
            Kernel::of(format).symbol().to_string_lossy(),
            whole.saturating_sub(fill),
        );
        // SAFETY: made above; nothing is under way.
        unsafe {
            (api.host_free)(host);
            (api.mem_free)(target);
            (api.stream_destroy)(stream);
        }
        device.free_surface(surface);
        device.stop_uploads(Duration::from_secs(1));
        device.close(Duration::from_secs(1));
        Ok(())
    }
}
