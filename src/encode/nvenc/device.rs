//! One GPU, opened: its primary context, the upload stream, the conversion kernels and the memory
//! that all surfaces share. The ingest thread uploads through it, the driver thread opens and closes it.
//!
//! Two paths lead from the segment to an NV12 surface:
//!
//! ```text
//! pinned:  segment == DMA ==> staging on the GPU -- kernel --> NV12        (no host copy)
//! staged:  segment -- CPU converts --> pinned planes == DMA ==> GPU -- interleave --> NV12
//! ```
//!
//! Which one is taken depends on whether the driver can register a read-only mapping. Both read
//! the segment once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, Instant};

use super::cuda::{self, CudaApi, CudaError, DeviceInfo, DevicePtr, Handle};
use super::kernels::{self, Kernel};
use crate::frame::convert::Converter;
use crate::frame::surface::I420PlanesMut;
use crate::frame::{FillError, FrameView, MappedMemory, PictureShape};

/// Where a surface's NV12 picture lies on the GPU.
#[derive(Debug, Clone, Copy)]
pub struct Nv12Memory {
    pub luma: DevicePtr,
    pub pitch: usize,
    /// Recorded on the upload stream when the picture is complete.
    pub ready: Handle,
}

/// Uploads so far, by path.
#[derive(Debug, Default)]
pub struct UploadCounters {
    pub pinned: AtomicU64,
    pub staged: AtomicU64,
    /// Mappings registered again because DMA and CPU read different bytes.
    pub stale_pins: AtomicU64,
    /// Copies that were not done in time.
    pub timeouts: AtomicU64,
}

/// An opened GPU.
pub struct Device {
    pub api: CudaApi,
    pub info: DeviceInfo,
    pub context: Handle,
    pub counters: UploadCounters,
    shape: PictureShape,
    /// Even.
    width: usize,
    /// Even.
    height: usize,
    upload: Handle,
    module: Handle,
    functions: [Handle; Kernel::ALL.len()],
    /// The picture as it came, or the two chroma planes of one that the host converted.
    staging: DevicePtr,
    staging_pitch: usize,
    /// 256 bytes of metadata on their way from the mapping back to the host.
    probe: DevicePtr,
    /// Held for reading during an upload; stopping uploads takes it for writing.
    open: RwLock<bool>,
    closed: AtomicBool,
    uploader: Mutex<Uploader>,
    /// An upload failed for good: the next picture that is encoded says so.
    broken: AtomicBool,
    broken_by: Mutex<Option<String>>,
}

/// What only the ingest thread touches, under a lock that nobody else wants.
struct Uploader {
    converter: Converter,
    copied: Handle,
    host: Option<HostStaging>,
    pin: Pin,
    last_frame: Option<u32>,
    probe_host: *mut u8,
    late: u32,
}

/// Two sets of pinned planes, used in turn: one is converted into while the other is on its way.
struct HostStaging {
    planes: [*mut u8; 2],
    copied: [Handle; 2],
    in_use: [bool; 2],
    next: usize,
}

enum Pin {
    /// The driver cannot, or will not.
    Never,
    /// Nothing registered; attempts again after so many frames.
    After(u32),
    /// Registered until dropped here; the mapping cannot go away before.
    Held(Arc<dyn MappedMemory>),
}

// SAFETY: CUDA handles may be used from any thread that has made the context current, and every
// user does so first. The raw host pointers are to memory that `open` took and only the uploader,
// behind its mutex, and `close`, behind the write lock, touch.
#[allow(unsafe_code)]
unsafe impl Send for Device {}
// SAFETY: as above; the fields that change are behind locks.
#[allow(unsafe_code)]
unsafe impl Sync for Device {}

#[allow(unsafe_code)] // calls through the CUDA table; each block says why the arguments hold
impl Device {
    /// Takes the primary context of a GPU, makes it current on this thread, loads the kernels and
    /// takes the memory for uploads of `shape`.
    ///
    /// # Errors
    ///
    /// If any call fails; what was taken before is given back.
    pub fn open(api: CudaApi, info: DeviceInfo, shape: PictureShape) -> Result<Self, CudaError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer is live; the ordinal is one that the driver gave.
        let got = unsafe { (api.primary_retain)(&raw mut context, info.ordinal) };
        api.check("cuDevicePrimaryCtxRetain", got)?;
        let (width, height) = (
            shape.width.next_multiple_of(2) as usize,
            shape.height.next_multiple_of(2) as usize,
        );
        let null = std::ptr::null_mut();
        let mut device = Self {
            api,
            context,
            counters: UploadCounters::default(),
            shape,
            width,
            height,
            upload: null,
            module: null,
            functions: [null; Kernel::ALL.len()],
            staging: 0,
            staging_pitch: 0,
            probe: 0,
            open: RwLock::new(true),
            closed: AtomicBool::new(false),
            uploader: Mutex::new(Uploader {
                converter: Converter::best(),
                copied: null,
                host: None,
                pin: if info.read_only_register {
                    Pin::After(0)
                } else {
                    Pin::Never
                },
                last_frame: None,
                probe_host: std::ptr::null_mut(),
                late: 0,
            }),
            broken: AtomicBool::new(false),
            broken_by: Mutex::new(None),
            info,
        };
        if let Err(error) = device.prepare() {
            device.stop_uploads(Duration::ZERO);
            device.close(Duration::from_secs(1));
            return Err(error);
        }
        Ok(device)
    }

    fn prepare(&mut self) -> Result<(), CudaError> {
        let api = self.api;
        self.make_current()?;
        // SAFETY: every pointer is to a live field; the PTX text ends with a NUL.
        unsafe {
            let got = (api.stream_create)(&raw mut self.upload, cuda::STREAM_NON_BLOCKING);
            api.check("cuStreamCreate", got)?;
            let got = (api.module_load_data)(&raw mut self.module, kernels::PTX.as_ptr().cast());
            api.check("cuModuleLoadData", got)?;
            for (kernel, function) in Kernel::ALL.into_iter().zip(&mut self.functions) {
                let name = kernel.symbol().as_ptr();
                let got = (api.module_get_function)(function, self.module, name);
                api.check("cuModuleGetFunction", got)?;
            }
            let row = self.shape.width as usize * self.shape.format.bytes_per_pixel();
            self.staging_pitch = row.next_multiple_of(ROW_ALIGN);
            let raw = self.staging_pitch * self.shape.height as usize;
            let bytes = raw.max(self.chroma_stride() * self.height);
            let got = (api.mem_alloc)(&raw mut self.staging, bytes);
            api.check("cuMemAlloc", got)?;
            let got = (api.mem_alloc)(&raw mut self.probe, PROBE_BYTES);
            api.check("cuMemAlloc", got)?;
        }
        let mut uploader = self.uploader.lock().unwrap_or_else(PoisonError::into_inner);
        uploader.copied = self.new_event()?;
        uploader.probe_host = self.new_host(PROBE_BYTES)?;
        if matches!(uploader.pin, Pin::Never) {
            uploader.host = Some(self.new_host_staging()?);
        }
        Ok(())
    }

    /// # Errors
    ///
    /// If the context is not usable any more.
    pub fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until `close`.
        let got = unsafe { (self.api.set_current)(self.context) };
        self.api.check("cuCtxSetCurrent", got)
    }

    /// # Errors
    ///
    /// As CUDA says.
    pub fn new_event(&self) -> Result<Handle, CudaError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is live, the context current.
        let got = unsafe { (self.api.event_create)(&raw mut event, cuda::EVENT_DISABLE_TIMING) };
        self.api.check("cuEventCreate", got)?;
        Ok(event)
    }

    /// # Errors
    ///
    /// As CUDA says.
    pub fn new_stream(&self) -> Result<Handle, CudaError> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is live, the context current.
        let got = unsafe { (self.api.stream_create)(&raw mut stream, cuda::STREAM_NON_BLOCKING) };
        self.api.check("cuStreamCreate", got)?;
        Ok(stream)
    }

    /// An NV12 surface, all chroma 128.
    ///
    /// # Errors
    ///
    /// As CUDA says; nothing is kept then.
    pub fn new_surface(&self) -> Result<Nv12Memory, CudaError> {
        let (mut luma, mut pitch) = (0, 0);
        // SAFETY: the pointers are live, the context current; the fill stays inside the allocation.
        unsafe {
            let rows = self.height * 3 / 2;
            let got =
                (self.api.mem_alloc_pitch)(&raw mut luma, &raw mut pitch, self.width, rows, 16);
            self.api.check("cuMemAllocPitch", got)?;
            let ready = self.new_event().inspect_err(|_| {
                (self.api.mem_free)(luma);
            })?;
            let memory = Nv12Memory { luma, pitch, ready };
            let got = (self.api.memset_d8_async)(luma, 128, pitch * rows, self.upload);
            self.api
                .check("cuMemsetD8Async", got)
                .inspect_err(|_| self.free_surface(memory))?;
            Ok(memory)
        }
    }

    /// Gives a surface back. It must not be registered with an encoder any more.
    pub fn free_surface(&self, memory: Nv12Memory) {
        // SAFETY: `new_surface` made both; the caller gives them up. Results are of no use here.
        unsafe {
            (self.api.mem_free)(memory.luma);
            (self.api.event_destroy)(memory.ready);
        }
    }

    fn new_host(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: the pointer is live, the context current.
        let got =
            unsafe { (self.api.host_alloc)(&raw mut memory, bytes, cuda::HOST_ALLOC_PORTABLE) };
        self.api.check("cuMemHostAlloc", got)?;
        Ok(memory.cast())
    }

    fn new_host_staging(&self) -> Result<HostStaging, CudaError> {
        let bytes = self.luma_stride() * self.height + self.chroma_stride() * self.height;
        let planes = [self.new_host(bytes)?, self.new_host(bytes)?];
        for plane in planes {
            // SAFETY: `bytes` bytes were just taken there. 128 is grey: chroma of grey pictures is
            // never written again.
            unsafe { plane.write_bytes(128, bytes) };
        }
        Ok(HostStaging {
            planes,
            copied: [self.new_event()?, self.new_event()?],
            in_use: [false; 2],
            next: 0,
        })
    }

    fn luma_stride(&self) -> usize {
        self.width.next_multiple_of(ROW_ALIGN)
    }

    fn chroma_stride(&self) -> usize {
        (self.width / 2).next_multiple_of(ROW_ALIGN)
    }

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
        if self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
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

    fn lock_uploader(&self) -> MutexGuard<'_, Uploader> {
        self.uploader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_off(&self, reason: String) {
        *self
            .broken_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(reason);
        // Release: the reason is there for whoever sees the flag.
        self.broken.store(true, Ordering::Release);
    }

    /// Why uploads have failed for good, if they have.
    pub fn broken(&self) -> Option<String> {
        self.broken
            .load(Ordering::Acquire)
            .then(|| self.broken_by.lock().ok()?.clone())
            .flatten()
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

    /// DMA out of the mapping, conversion on the GPU; waits for the DMA only.
    fn upload_pinned(
        &self,
        uploader: &Uploader,
        view: &FrameView<'_>,
        target: Nv12Memory,
    ) -> Result<bool, CudaError> {
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
            let got = (self.api.memcpy_2d_async)(&raw const copy, self.upload);
            self.api.check("cuMemcpy2DAsync", got)?;
            let got = (self.api.event_record)(uploader.copied, self.upload);
            self.api.check("cuEventRecord", got)?;
            self.convert(target)?;
            let got = (self.api.event_record)(target.ready, self.upload);
            self.api.check("cuEventRecord", got)?;
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
        if uploader.host.is_none() {
            uploader.host = Some(self.new_host_staging()?);
        }
        let converter = uploader.converter;
        let host = uploader.host.as_mut().expect("made above");
        let at = host.next;
        if host.in_use[at] && !self.wait_for(host.copied[at])? {
            return Ok(false);
        }
        host.next = 1 - at;
        let (luma, chroma) = (self.luma_stride(), self.chroma_stride());
        let (luma_bytes, chroma_bytes) = (luma * self.height, chroma * self.height / 2);
        let base = host.planes[at];
        // SAFETY: `new_host_staging` took luma and two chroma planes there; the last copy out of
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
            let got = (self.api.memcpy_2d_async)(&raw const copy, self.upload);
            self.api.check("cuMemcpy2DAsync", got)?;
            let planes = base.add(luma_bytes).cast_const().cast();
            let got =
                (self.api.memcpy_htod_async)(self.staging, planes, 2 * chroma_bytes, self.upload);
            self.api.check("cuMemcpyHtoDAsync", got)?;
            let got = (self.api.event_record)(host.copied[at], self.upload);
            self.api.check("cuEventRecord", got)?;
            host.in_use[at] = true;
            self.interleave(target)?;
            let got = (self.api.event_record)(target.ready, self.upload);
            self.api.check("cuEventRecord", got)?;
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
            match unsafe { (self.api.event_query)(event) } {
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
        let code = unsafe {
            (self.api.host_register)(
                mapping.base().cast_mut().cast(),
                length,
                cuda::REGISTER_PORTABLE_READ_ONLY,
            )
        };
        match self.api.check("cuMemHostRegister", code) {
            Ok(()) => {
                log::info!("nvenc: frames are read by DMA out of the producer's segment");
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
                log::info!("nvenc: {error}; frames are converted by the CPU and then uploaded");
                uploader.pin = Pin::Never;
                false
            }
        }
    }

    /// Unregisters the mapping, once nothing reads it any more.
    fn unpin(&self, uploader: &mut Uploader) {
        let Pin::Held(mapping) = std::mem::replace(&mut uploader.pin, Pin::After(0)) else {
            return;
        };
        if !matches!(self.wait_for(uploader.copied), Ok(true)) {
            // A copy that never ends still reads the mapping: it stays for the life of the process.
            std::mem::forget(mapping);
            return;
        }
        // SAFETY: registered at this address by `pin`; the last copy out of it is done.
        let code = unsafe { (self.api.host_unregister)(mapping.base().cast_mut().cast()) };
        if let Err(error) = self.api.check("cuMemHostUnregister", code) {
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
                let got =
                    (self.api.memcpy_htod_async)(self.probe, base.cast(), PROBE_BYTES, self.upload);
                self.api.check("cuMemcpyHtoDAsync", got)?;
                let got = (self.api.memcpy_dtoh_async)(
                    uploader.probe_host.cast(),
                    self.probe,
                    PROBE_BYTES,
                    self.upload,
                );
                self.api.check("cuMemcpyDtoHAsync", got)?;
                let got = (self.api.event_record)(uploader.copied, self.upload);
                self.api.check("cuEventRecord", got)?;
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
        let got = unsafe {
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
        };
        self.api.check("cuLaunchKernel", got)
    }

    /// Refuses uploads from now on and waits for one that is under way. False if that does not end:
    /// then what it uses must be left to the end of the process.
    pub fn stop_uploads(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            match self.open.try_write() {
                Ok(mut open) => *open = false,
                Err(TryLockError::Poisoned(guard)) => *guard.into_inner() = false,
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    std::thread::sleep(POLL);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return false,
            }
            return true;
        }
    }

    /// Gives everything back that `open` took. Uploads must have been stopped and surfaces freed.
    pub fn close(&self, patience: Duration) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut uploader = self.lock_uploader();
        let api = self.api;
        // Without a current context the calls below would only fail one by one.
        if self.make_current().is_ok() {
            self.unpin(&mut uploader);
            self.drain_upload_stream(patience);
            // SAFETY: everything below was made by `prepare` or `new_host_staging`, is not null
            // then, and is not used by anyone: uploads are refused and the stream is empty.
            unsafe {
                if let Some(host) = uploader.host.take() {
                    for plane in host.planes {
                        (api.host_free)(plane.cast());
                    }
                    for event in host.copied {
                        (api.event_destroy)(event);
                    }
                }
                if !uploader.probe_host.is_null() {
                    (api.host_free)(uploader.probe_host.cast());
                }
                for memory in [self.staging, self.probe] {
                    if memory != 0 {
                        (api.mem_free)(memory);
                    }
                }
                if !uploader.copied.is_null() {
                    (api.event_destroy)(uploader.copied);
                }
                if !self.module.is_null() {
                    (api.module_unload)(self.module);
                }
                if !self.upload.is_null() {
                    (api.stream_destroy)(self.upload);
                }
            }
        }
        // SAFETY: retained once by `open`; no handle of it is used from here on.
        unsafe {
            (api.set_current)(std::ptr::null_mut());
            (api.primary_release)(self.info.ordinal);
        }
    }

    /// Refuses uploads from now on without touching the driver: for a device that is lost.
    pub fn abandon(&self) {
        self.break_off("the encoder was given up".to_owned());
        self.stop_uploads(Duration::from_millis(200));
    }

    /// Waits until the upload stream is empty, but not for ever.
    pub fn drain_upload_stream(&self, patience: Duration) {
        let end = Instant::now() + patience;
        // SAFETY: the stream lives until `close` destroys it.
        while !self.upload.is_null()
            && unsafe { (self.api.stream_query)(self.upload) } == cuda::NOT_READY
            && Instant::now() < end
        {
            std::thread::sleep(POLL);
        }
    }
}

/// The kernel's page size.
fn page_size() -> usize {
    rustix::param::page_size()
}

/// Rows on either side start at multiples of this.
const ROW_ALIGN: usize = 64;
/// The metadata block of a segment.
const PROBE_BYTES: usize = 256;
/// A copy takes a few milliseconds at most; one that takes this long concerns a sick device.
const COPY_LIMIT: Duration = Duration::from_millis(100);
/// So many late copies in a row are a failure.
const LATE_COPIES: u32 = 3;
const SPIN: Duration = Duration::from_micros(20);
const POLL: Duration = Duration::from_micros(50);
/// `CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED`.
const ALREADY_REGISTERED: cuda::CuResult = 712;
/// Frames until a registration that found the mapping taken is tried again.
const PIN_AGAIN: u32 = 30;
