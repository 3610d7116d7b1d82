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

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use self::upload::{HostStaging, PROBE_BYTES, Pin, Uploader};
use super::cuda::{self, CudaApi, CudaError, DeviceInfo, DevicePtr, Handle};
use super::kernels::{self, Kernel};
use super::watch::{CallWatch, named};
use crate::frame::PictureShape;
use crate::frame::convert::Converter;

mod upload;

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
    uploader: Mutex<Uploader>,
    /// Over the thread that uploads.
    uploads: Arc<CallWatch>,
    /// An upload failed for good: the next picture that is encoded says so.
    broken: OnceLock<String>,
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
        api.call("cuDevicePrimaryCtxRetain", || unsafe {
            (api.primary_retain)(&raw mut context, info.ordinal)
        })?;
        let (width, height) = shape.coded_size();
        let null = std::ptr::null_mut();
        let mut device = Self {
            api,
            context,
            counters: UploadCounters::default(),
            shape,
            width: width as usize,
            height: height as usize,
            upload: null,
            module: null,
            functions: [null; Kernel::ALL.len()],
            staging: 0,
            staging_pitch: 0,
            probe: 0,
            open: RwLock::new(true),
            uploader: Mutex::new(Uploader {
                converter: Converter::best(),
                copied: null,
                host: HostStaging::default(),
                pin: if info.read_only_register {
                    Pin::After(0)
                } else {
                    Pin::Never
                },
                last_frame: None,
                probe_host: std::ptr::null_mut(),
                late: 0,
                path: None,
            }),
            uploads: Arc::default(),
            broken: OnceLock::new(),
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
        self.upload = self.new_stream()?;
        // SAFETY: every pointer is to a live field; the PTX text ends with a NUL.
        unsafe {
            api.call("cuModuleLoadData", || {
                (api.module_load_data)(&raw mut self.module, kernels::PTX.as_ptr().cast())
            })?;
            for (kernel, function) in Kernel::ALL.into_iter().zip(&mut self.functions) {
                let name = kernel.symbol().as_ptr();
                api.call("cuModuleGetFunction", || {
                    (api.module_get_function)(function, self.module, name)
                })?;
            }
            let row = self.shape.width as usize * self.shape.format.bytes_per_pixel();
            self.staging_pitch = row.next_multiple_of(ROW_ALIGN);
            let raw = self.staging_pitch * self.shape.height as usize;
            let bytes = raw.max(self.chroma_stride() * self.height);
            api.call("cuMemAlloc", || {
                (api.mem_alloc)(&raw mut self.staging, bytes)
            })?;
            api.call("cuMemAlloc", || {
                (api.mem_alloc)(&raw mut self.probe, PROBE_BYTES)
            })?;
        }
        let mut uploader = self.uploader.lock().unwrap_or_else(PoisonError::into_inner);
        uploader.copied = self.new_event()?;
        uploader.probe_host = self.new_host(PROBE_BYTES)?;
        if matches!(uploader.pin, Pin::Never) {
            self.take_host_staging(&mut uploader)?;
        }
        Ok(())
    }

    /// # Errors
    ///
    /// If the context is not usable any more.
    pub fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until `close`.
        self.api.call("cuCtxSetCurrent", || unsafe {
            (self.api.set_current)(self.context)
        })
    }

    /// # Errors
    ///
    /// As CUDA says.
    pub fn new_event(&self) -> Result<Handle, CudaError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is live, the context current.
        self.api.call("cuEventCreate", || unsafe {
            (self.api.event_create)(&raw mut event, cuda::EVENT_DISABLE_TIMING)
        })?;
        Ok(event)
    }

    /// # Errors
    ///
    /// As CUDA says.
    pub fn new_stream(&self) -> Result<Handle, CudaError> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is live, the context current.
        self.api.call("cuStreamCreate", || unsafe {
            (self.api.stream_create)(&raw mut stream, cuda::STREAM_NON_BLOCKING)
        })?;
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
            self.api.call("cuMemAllocPitch", || {
                (self.api.mem_alloc_pitch)(&raw mut luma, &raw mut pitch, self.width, rows, 16)
            })?;
            let ready = self.new_event().inspect_err(|_| {
                named("cuMemFree", || (self.api.mem_free)(luma));
            })?;
            let memory = Nv12Memory { luma, pitch, ready };
            self.api
                .call("cuMemsetD8Async", || {
                    (self.api.memset_d8_async)(luma, 128, pitch * rows, self.upload)
                })
                .inspect_err(|_| self.free_surface(memory))?;
            Ok(memory)
        }
    }

    /// What is in a surface once its upload is complete, `pitch` bytes a row, chroma behind luma. For
    /// checks only: the streamer never reads pictures back.
    ///
    /// # Errors
    ///
    /// As CUDA says, or if the upload does not end.
    pub fn read_back(&self, memory: Nv12Memory) -> Result<Vec<u8>, CudaError> {
        let len = memory.pitch * self.height * 3 / 2;
        let mut bytes = vec![0_u8; len];
        let host = self.new_host(len)?;
        // SAFETY: `new_host` gave as many bytes as the surface has, and they are freed once here.
        let got = unsafe {
            let to = host.cast();
            let got = (self.api.memcpy_dtoh_async)(to, memory.luma, len, self.upload);
            let done = self.drain_upload_stream(Duration::from_secs(10));
            if done {
                bytes.copy_from_slice(std::slice::from_raw_parts(host, len));
                (self.api.host_free)(to);
            }
            if done { got } else { cuda::NOT_READY }
        };
        self.api.check("cuMemcpyDtoHAsync", got).map(|()| bytes)
    }

    /// Gives a surface back. It must not be registered with an encoder any more.
    pub fn free_surface(&self, memory: Nv12Memory) {
        // SAFETY: `new_surface` made both; the caller gives them up. Results are of no use here.
        unsafe {
            named("cuMemFree", || (self.api.mem_free)(memory.luma));
            named("cuEventDestroy", || (self.api.event_destroy)(memory.ready));
        }
    }

    fn new_host(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: the pointer is live, the context current.
        self.api.call("cuMemHostAlloc", || unsafe {
            (self.api.host_alloc)(&raw mut memory, bytes, cuda::HOST_ALLOC_PORTABLE)
        })?;
        Ok(memory.cast())
    }

    /// Takes what is missing of the planes for the staged path. What was taken before a failure is
    /// in the uploader, where `close` finds it.
    fn take_host_staging(&self, uploader: &mut Uploader) -> Result<(), CudaError> {
        let bytes = self.luma_stride() * self.height + self.chroma_stride() * self.height;
        let host = &mut uploader.host;
        for at in 0..host.planes.len() {
            if host.planes[at].is_null() {
                let plane = self.new_host(bytes)?;
                // SAFETY: `bytes` bytes were just taken there. 128 is grey: chroma of grey pictures
                // is never written again.
                unsafe { plane.write_bytes(128, bytes) };
                host.planes[at] = plane;
            }
            if host.copied[at].is_null() {
                host.copied[at] = self.new_event()?;
            }
        }
        Ok(())
    }

    fn luma_stride(&self) -> usize {
        self.width.next_multiple_of(ROW_ALIGN)
    }

    fn chroma_stride(&self) -> usize {
        (self.width / 2).next_multiple_of(ROW_ALIGN)
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

    /// Gives everything back that `open` took, once. Uploads must have been stopped and surfaces freed.
    pub fn close(&self, patience: Duration) {
        let mut uploader = self.lock_uploader();
        let api = self.api;
        // A device that is lost refuses everything below, and is told all the same.
        let _ = self.make_current();
        if !self.drain_upload_stream(patience) {
            log::warn!("nvenc: uploads do not end; their memory is left to the driver");
            return;
        }
        self.unpin(&mut uploader);
        let host = std::mem::take(&mut uploader.host);
        // SAFETY: everything below was made by `prepare` or `take_host_staging`, is not null
        // then, and is not used by anyone: uploads are refused and the stream is empty.
        unsafe {
            for plane in host.planes {
                if !plane.is_null() {
                    named("cuMemFreeHost", || (api.host_free)(plane.cast()));
                }
            }
            for event in host.copied {
                if !event.is_null() {
                    named("cuEventDestroy", || (api.event_destroy)(event));
                }
            }
            if !uploader.probe_host.is_null() {
                let memory = uploader.probe_host.cast();
                named("cuMemFreeHost", || (api.host_free)(memory));
            }
            for memory in [self.staging, self.probe] {
                if memory != 0 {
                    named("cuMemFree", || (api.mem_free)(memory));
                }
            }
            if !uploader.copied.is_null() {
                named("cuEventDestroy", || (api.event_destroy)(uploader.copied));
            }
            if !self.module.is_null() {
                named("cuModuleUnload", || (api.module_unload)(self.module));
            }
            if !self.upload.is_null() {
                named("cuStreamDestroy", || (api.stream_destroy)(self.upload));
            }
        }
        // SAFETY: retained once by `open`; no handle of it is used from here on.
        unsafe {
            named(
                "cuCtxSetCurrent",
                || (api.set_current)(std::ptr::null_mut()),
            );
            named("cuDevicePrimaryCtxRelease", || {
                (api.primary_release)(self.info.ordinal)
            });
        }
    }

    /// Refuses uploads from now on without touching the driver: for a device that is lost.
    pub fn abandon(&self) {
        self.break_off("the encoder was given up".to_owned());
        self.stop_uploads(Duration::from_millis(200));
    }

    /// Waits until the upload stream is empty; false if that takes too long. A device that is lost
    /// does nothing more, so its stream counts as empty.
    pub fn drain_upload_stream(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let busy = || {
            // SAFETY: the stream lives until `close` destroys it.
            let state = named("cuStreamQuery", || unsafe {
                (self.api.stream_query)(self.upload)
            });
            state == cuda::NOT_READY
        };
        while !self.upload.is_null() && busy() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

/// Rows on either side start at multiples of this.
const ROW_ALIGN: usize = 64;
/// Between two looks at something that takes its time.
const POLL: Duration = Duration::from_micros(50);
