//! From the segment into an NV12 surface on the GPU, by the ingest thread. See [`super`] for the two paths.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::super::cuda::{self, CudaError, Handle};
use super::super::kernels::{self, Kernel};
use super::super::watch::{CallWatch, GRACE, named};
use super::{Device, Nv12Memory, POLL};
use crate::frame::convert::Converter;
use crate::frame::surface::I420PlanesMut;
use crate::frame::{FillError, FrameView, MappedMemory};

/// What only the ingest thread touches, under a lock that nobody else wants.
pub(super) struct Uploader {
    pub(super) converter: Converter,
    pub(super) copied: Handle,
    pub(super) host: HostStaging,
    pub(super) pin: Pin,
    pub(super) last_frame: Option<u32>,
    pub(super) probe_host: *mut u8,
    pub(super) late: u32,
    /// The path that the log was told of last.
    pub(super) path: Option<Path>,
}

/// How a frame gets from the segment to the GPU, see [`super`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Pinned,
    Staged,
}

/// Two sets of pinned planes, used in turn: one is converted into while the other is on its way.
/// Null until the staged path is taken.
pub(super) struct HostStaging {
    pub(super) planes: [*mut u8; 2],
    pub(super) copied: [Handle; 2],
    pub(super) in_use: [bool; 2],
    pub(super) next: usize,
}

impl Default for HostStaging {
    fn default() -> Self {
        Self {
            planes: [std::ptr::null_mut(); 2],
            copied: [std::ptr::null_mut(); 2],
            in_use: [false; 2],
            next: 0,
        }
    }
}

pub(super) enum Pin {
    /// The driver cannot, or will not.
    Never,
    /// Nothing registered; attempts again after so many frames.
    After(u32),
    /// Registered until dropped here; the mapping cannot go away before.
    Held(Arc<dyn MappedMemory>),
}

#[allow(unsafe_code)] // calls through the CUDA table; each block says why the arguments hold
impl Device {
    /// Reads the frame out of the segment and queues its conversion into `target`. Returns when the
    /// segment has been read.
    ///
    /// An upload that fails for good is not an error of this frame: the surface is handed on, so
    /// that the encoder gets to say what happened and fallback is decided in one place.
    ///
    /// # Errors
    ///
    /// If the frame does not fit, the device is closed, or a copy was late.
    pub fn fill(&self, view: &FrameView<'_>, target: Nv12Memory) -> Result<(), FillError> {
        let info = view.info();
        if (info.left.width, info.left.height, info.format)
            != (self.shape.width, self.shape.height, self.shape.format)
        {
            return Err(FillError::Shape);
        }
        let open: RwLockReadGuard<'_, bool> =
            self.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(FillError::Upload("the encoder is closed".to_owned()));
        }
        if self.broken().is_some() {
            return Ok(());
        }
        CallWatch::over_this_thread(&self.uploads);
        let mut uploader = self.lock_uploader();
        match self.upload_frame(&mut uploader, view, target) {
            Ok(true) => {
                uploader.late = 0;
                Ok(())
            }
            Ok(false) => {
                self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
                uploader.late += 1;
                if uploader.late >= LATE_COPIES {
                    self.break_off(format!(
                        "{LATE_COPIES} copies in a row took over {COPY_LIMIT:?}"
                    ));
                    return Ok(());
                }
                Err(FillError::Upload(format!(
                    "not copied within {COPY_LIMIT:?}"
                )))
            }
            Err(error) => {
                self.break_off(error.to_string());
                Ok(())
            }
        }
    }

    pub(super) fn lock_uploader(&self) -> MutexGuard<'_, Uploader> {
        self.uploader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn break_off(&self, reason: String) {
        // What comes after the first reason is a consequence of it.
        let _ = self.broken.set(reason);
    }

    /// Why uploads have failed for good, if they have.
    pub fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// Gives uploads up if the thread that makes them has been in one call for `limit`. Nobody can
    /// take it from there: this says what it is in, and has another encoder take over should it
    /// come back.
    pub fn look_after_uploads(&self, limit: Duration) {
        if self.broken().is_some() || self.uploads.longer_than(limit).is_none() {
            return;
        }
        std::thread::sleep(GRACE);
        if let Some(call) = self.uploads.longer_than(limit) {
            let reason = format!("{call} did not return within {limit:?}; the driver hangs");
            log::error!("nvenc: {reason}, and the thread that reads frames with it");
            self.break_off(reason);
        }
    }

    /// The call that the uploading thread is still in after uploads were given up for it.
    pub fn stuck_upload(&self, limit: Duration) -> Option<&'static str> {
        self.broken()?;
        self.uploads.longer_than(limit)
    }

    fn upload_frame(
        &self,
        uploader: &mut Uploader,
        view: &FrameView<'_>,
        target: Nv12Memory,
    ) -> Result<bool, CudaError> {
        self.make_current()?;
        let frame = view.info().frame_id;
        let follows = uploader
            .last_frame
            .replace(frame)
            .map(|id| id.wrapping_add(1))
            == Some(frame);
        if !self.pin(uploader, view) {
            return self.upload_staged(uploader, view, target);
        }
        if !follows && self.pin_is_stale(uploader)? {
            self.counters.stale_pins.fetch_add(1, Ordering::Relaxed);
            self.unpin(uploader);
            if !self.pin(uploader, view) {
                return self.upload_staged(uploader, view, target);
            }
        }
        self.upload_pinned(uploader, view, target)
    }

    /// Says which path frames take from now on, where that is another one than before.
    fn say(&self, uploader: &mut Uploader, path: Path) {
        if uploader.path.replace(path) == Some(path) {
            return;
        }
        let why = match path {
            Path::Pinned => "pinned: frames are read by DMA out of the producer's segment",
            Path::Staged if !self.info.read_only_register => {
                "staged: frames are converted by the CPU and then uploaded, since this driver \
                 registers no read-only memory"
            }
            Path::Staged => {
                "staged: frames are converted by the CPU and then uploaded, since their mapping is \
                 not registered"
            }
        };
        log::info!("nvenc: {why}");
    }

    /// DMA out of the mapping, conversion on the GPU; waits for the DMA only.
    fn upload_pinned(
        &self,
        uploader: &mut Uploader,
        view: &FrameView<'_>,
        target: Nv12Memory,
    ) -> Result<bool, CudaError> {
        self.say(uploader, Path::Pinned);
        let plane = view.left();
        let row = plane.width as usize * self.shape.format.bytes_per_pixel();
        let copy = cuda::rows_to_device(
            (view.row(0), plane.stride as usize),
            (self.staging, self.staging_pitch),
            row,
            plane.height as usize,
        );
        // SAFETY: the view guarantees its rows for the time of the call, and the mapping is kept by
        // the pin until `copied` is done; staging holds `height` rows of its pitch; the kernel gets
        // the arguments that kernels.cu declares.
        unsafe {
            self.api.call("cuMemcpy2DAsync", || {
                (self.api.memcpy_2d_async)(&raw const copy, self.upload)
            })?;
            self.api.call("cuEventRecord", || {
                (self.api.event_record)(uploader.copied, self.upload)
            })?;
            self.convert(target)?;
            self.api.call("cuEventRecord", || {
                (self.api.event_record)(target.ready, self.upload)
            })?;
        }
        self.counters.pinned.fetch_add(1, Ordering::Relaxed);
        self.wait_for(uploader.copied)
    }

    /// One converting pass by the CPU into pinned planes, then DMA of those; does not wait.
    fn upload_staged(
        &self,
        uploader: &mut Uploader,
        view: &FrameView<'_>,
        target: Nv12Memory,
    ) -> Result<bool, CudaError> {
        self.say(uploader, Path::Staged);
        self.take_host_staging(uploader)?;
        let converter = uploader.converter;
        let host = &mut uploader.host;
        let at = host.next;
        if host.in_use[at] && !self.wait_for(host.copied[at])? {
            return Ok(false);
        }
        host.next = 1 - at;
        let (luma, chroma) = (self.luma_stride(), self.chroma_stride());
        let (luma_bytes, chroma_bytes) = (luma * self.height, chroma * self.height / 2);
        let base = host.planes[at];
        // SAFETY: `take_host_staging` took luma and two chroma planes there; the last copy out of
        // them is done, and nobody else has the pointers.
        let (y, u, v) = unsafe {
            (
                std::slice::from_raw_parts_mut(base, luma_bytes),
                std::slice::from_raw_parts_mut(base.add(luma_bytes), chroma_bytes),
                std::slice::from_raw_parts_mut(base.add(luma_bytes + chroma_bytes), chroma_bytes),
            )
        };
        converter.to_i420(
            view,
            &mut I420PlanesMut {
                width: self.width as u32,
                height: self.height as u32,
                y,
                u,
                v,
                luma_stride: luma,
                chroma_stride: chroma,
            },
        );
        let copy = cuda::rows_to_device(
            (base.cast_const(), luma),
            (target.luma, target.pitch),
            self.width,
            self.height,
        );
        // SAFETY: the planes live until `close`, which waits for the stream; the sizes are those of
        // the allocations; the kernel gets the arguments that kernels.cu declares.
        unsafe {
            self.api.call("cuMemcpy2DAsync", || {
                (self.api.memcpy_2d_async)(&raw const copy, self.upload)
            })?;
            let planes = base.add(luma_bytes).cast_const().cast();
            self.api.call("cuMemcpyHtoDAsync", || {
                (self.api.memcpy_htod_async)(self.staging, planes, 2 * chroma_bytes, self.upload)
            })?;
            self.api.call("cuEventRecord", || {
                (self.api.event_record)(host.copied[at], self.upload)
            })?;
            host.in_use[at] = true;
            self.interleave(target)?;
            self.api.call("cuEventRecord", || {
                (self.api.event_record)(target.ready, self.upload)
            })?;
        }
        self.counters.staged.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Waits until the picture in a surface is complete; false if that takes too long.
    ///
    /// # Errors
    ///
    /// As CUDA says.
    pub fn wait_ready(&self, memory: Nv12Memory) -> Result<bool, CudaError> {
        self.wait_for(memory.ready)
    }

    /// Polls an event until it is done, [`COPY_LIMIT`] at most; never a wait without an end.
    fn wait_for(&self, event: Handle) -> Result<bool, CudaError> {
        let start = Instant::now();
        loop {
            // SAFETY: the event lives until `close`.
            match named("cuEventQuery", || unsafe { (self.api.event_query)(event) }) {
                cuda::SUCCESS => return Ok(true),
                cuda::NOT_READY => (),
                code => return self.api.check("cuEventQuery", code).map(|()| true),
            }
            let waited = start.elapsed();
            if waited > COPY_LIMIT {
                return Ok(false);
            }
            // A short copy is met spinning; a long one costs little CPU and 60 us of delay at most.
            if waited > SPIN {
                std::thread::sleep(POLL);
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// True if the frame's mapping is registered for DMA now.
    fn pin(&self, uploader: &mut Uploader, view: &FrameView<'_>) -> bool {
        let Some(mapping) = view.mapping() else {
            return false;
        };
        match &mut uploader.pin {
            Pin::Never => return false,
            Pin::Held(held) if Arc::ptr_eq(held, mapping) => return true,
            Pin::Held(_) => self.unpin(uploader),
            Pin::After(frames) if *frames > 0 => {
                *frames -= 1;
                return false;
            }
            Pin::After(_) => (),
        }
        let length = mapping.len().next_multiple_of(page_size());
        // SAFETY: the mapping exists as long as its Arc, which is kept until it is unregistered; it
        // begins at a page and the kernel maps whole pages. The driver only reads (READ_ONLY).
        let code = named("cuMemHostRegister", || unsafe {
            (self.api.host_register)(
                mapping.base().cast_mut().cast(),
                length,
                cuda::REGISTER_PORTABLE_READ_ONLY,
            )
        });
        match self.api.check("cuMemHostRegister", code) {
            Ok(()) => {
                uploader.pin = Pin::Held(Arc::clone(mapping));
                true
            }
            Err(error) if code == ALREADY_REGISTERED => {
                // An encoder that is being replaced still holds it.
                log::debug!("nvenc: {error}");
                uploader.pin = Pin::After(PIN_AGAIN);
                false
            }
            Err(error) => {
                log::info!("nvenc: {error}; it is not tried again");
                uploader.pin = Pin::Never;
                false
            }
        }
    }

    /// Unregisters the mapping, once nothing reads it any more.
    pub(super) fn unpin(&self, uploader: &mut Uploader) {
        let Pin::Held(mapping) = std::mem::replace(&mut uploader.pin, Pin::After(0)) else {
            return;
        };
        // An error is a device that is gone, and its copies with it.
        if let Ok(false) = self.wait_for(uploader.copied) {
            // A copy that never ends still reads the mapping: it stays for the life of the process.
            std::mem::forget(mapping);
            return;
        }
        // SAFETY: registered at this address by `pin`; the last copy out of it is done.
        let unregistered = self.api.call("cuMemHostUnregister", || unsafe {
            (self.api.host_unregister)(mapping.base().cast_mut().cast())
        });
        if let Err(error) = unregistered {
            log::warn!("nvenc: {error}");
            std::mem::forget(mapping);
        }
    }

    /// Pinned pages outlive a truncation: after the producer has shrunk and grown its segment, DMA
    /// would read the old pages for ever. So the first frame after a gap compares what DMA and CPU
    /// see of the metadata block.
    fn pin_is_stale(&self, uploader: &mut Uploader) -> Result<bool, CudaError> {
        let Pin::Held(mapping) = &uploader.pin else {
            return Ok(false);
        };
        let base = mapping.base();
        // A producer that is just writing looks different too; it has done so by the next attempt.
        for _ in 0..3 {
            // SAFETY: the mapping holds at least the metadata block, which the frame was found by;
            // both probe buffers hold PROBE_BYTES.
            unsafe {
                self.api.call("cuMemcpyHtoDAsync", || {
                    (self.api.memcpy_htod_async)(self.probe, base.cast(), PROBE_BYTES, self.upload)
                })?;
                self.api.call("cuMemcpyDtoHAsync", || {
                    let host = uploader.probe_host.cast();
                    (self.api.memcpy_dtoh_async)(host, self.probe, PROBE_BYTES, self.upload)
                })?;
                self.api.call("cuEventRecord", || {
                    (self.api.event_record)(uploader.copied, self.upload)
                })?;
            }
            if !self.wait_for(uploader.copied)? {
                return Ok(false);
            }
            let equal = (0..PROBE_BYTES).all(|at| {
                // SAFETY: inside both; the mapping may change at any time, so it is read as volatile.
                unsafe { base.add(at).read_volatile() == uploader.probe_host.add(at).read() }
            });
            if equal {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Queues the conversion of staging into a surface.
    ///
    /// # Safety
    ///
    /// `target` must be a live surface of this device.
    unsafe fn convert(&self, target: Nv12Memory) -> Result<(), CudaError> {
        let kernel = Kernel::of(self.shape.format);
        let (mut source, mut source_pitch) = (self.staging, self.staging_pitch as u32);
        let (mut luma, mut pitch) = (target.luma, target.pitch as u32);
        let (mut width, mut height) = (self.shape.width, self.shape.height);
        let mut bpp = self.shape.format.bytes_per_pixel() as u32;
        let mut rows = kernels::coefficients(self.shape.format);
        let mut gray = kernels::GRAY;
        let mut arguments: [*mut std::ffi::c_void; 16] = [std::ptr::null_mut(); 16];
        arguments[0] = (&raw mut source).cast();
        arguments[1] = (&raw mut source_pitch).cast();
        arguments[2] = (&raw mut luma).cast();
        arguments[3] = (&raw mut pitch).cast();
        arguments[4] = (&raw mut width).cast();
        arguments[5] = (&raw mut height).cast();
        match kernel {
            Kernel::Packed => {
                arguments[6] = (&raw mut bpp).cast();
                let all = rows.as_flattened_mut();
                for (argument, value) in arguments[7..].iter_mut().zip(all) {
                    *argument = std::ptr::from_mut(value).cast();
                }
            }
            Kernel::Gray => arguments[6] = (&raw mut gray).cast(),
            Kernel::Yuv444 | Kernel::Yuyv | Kernel::Interleave => (),
        }
        // SAFETY: as the caller promises; every argument is a live variable of the kernel's type.
        unsafe {
            self.launch(
                kernel,
                (width.div_ceil(2), height.div_ceil(2)),
                &mut arguments,
            )
        }
    }

    /// Queues the interleaving of the chroma planes in staging into a surface.
    ///
    /// # Safety
    ///
    /// `target` must be a live surface of this device.
    unsafe fn interleave(&self, target: Nv12Memory) -> Result<(), CudaError> {
        let stride = self.chroma_stride();
        let mut u = self.staging;
        let mut v = self.staging + (stride * self.height / 2) as u64;
        let (mut stride, mut pitch) = (stride as u32, target.pitch as u32);
        let mut chroma = target.luma + (target.pitch * self.height) as u64;
        let (mut width, mut height) = ((self.width / 2) as u32, (self.height / 2) as u32);
        let mut arguments: [*mut std::ffi::c_void; 7] = [
            (&raw mut u).cast(),
            (&raw mut v).cast(),
            (&raw mut stride).cast(),
            (&raw mut chroma).cast(),
            (&raw mut pitch).cast(),
            (&raw mut width).cast(),
            (&raw mut height).cast(),
        ];
        // SAFETY: as the caller promises; every argument is a live variable of the kernel's type.
        unsafe { self.launch(Kernel::Interleave, (width, height), &mut arguments) }
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        threads: (u32, u32),
        arguments: &mut [*mut std::ffi::c_void],
    ) -> Result<(), CudaError> {
        let at = Kernel::ALL.iter().position(|other| *other == kernel);
        let function = self.functions[at.expect("ALL has every kernel")];
        let (block_x, block_y) = kernels::BLOCK;
        let grid = (threads.0.div_ceil(block_x), threads.1.div_ceil(block_y));
        // SAFETY: as the callers say; the driver copies the arguments before it returns.
        self.api.call("cuLaunchKernel", || unsafe {
            (self.api.launch_kernel)(
                function,
                grid.0,
                grid.1,
                1,
                block_x,
                block_y,
                1,
                0,
                self.upload,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }
}

/// The kernel's page size.
fn page_size() -> usize {
    rustix::param::page_size()
}

/// The metadata block of a segment.
pub(super) const PROBE_BYTES: usize = 256;
/// A copy takes a few milliseconds at most; one that takes this long concerns a sick device.
const COPY_LIMIT: Duration = Duration::from_millis(100);
/// So many late copies in a row are a failure.
const LATE_COPIES: u32 = 3;
const SPIN: Duration = Duration::from_micros(20);
/// `CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED`.
const ALREADY_REGISTERED: cuda::CuResult = 712;
/// Frames until a registration that found the mapping taken is tried again.
const PIN_AGAIN: u32 = 30;
