//! One encoding session: every call to the driver's encoder, all on the thread that opened it.
//!
//! Handles are destroyed once, children before parents: maps, registrations, bitstream buffers, the
//! session, surfaces, stream, context.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nvenc_sys::*;

use super::NvencOptions;
use super::cuda::{CudaError, Handle};
use super::device::{Device, Nv12Memory};
use super::driver::{self, DeviceError, Driver};
use super::params::{Caps, Plan, codec_guid};
use super::surface::CudaSurface;
use crate::encode::{EncodedPicture, EncodedQueue, EncoderConfig, Picture, RateControl};
use crate::frame::{Snapshot, Surface, SurfacePool};
use crate::time::MediaTime;

/// The driver call that the thread is in, for whoever waits for it.
#[derive(Debug, Default)]
pub struct CallWatch(AtomicU8);

macro_rules! calls {
    ($($name:ident = $text:literal,)*) => {
        /// The calls that are watched.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Call { $($name,)* }

        impl Call {
            const ALL: &'static [Self] = &[$(Self::$name,)*];
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

calls! {
    None = "no driver call",
    Load = "loading the driver",
    Cuda = "cuDevicePrimaryCtxRetain",
    Open = "nvEncOpenEncodeSessionEx",
    GetGuids = "nvEncGetEncodeGUIDs",
    GetCaps = "nvEncGetEncodeCaps",
    GetFormats = "nvEncGetInputFormats",
    GetPreset = "nvEncGetEncodePresetConfigEx",
    Initialize = "nvEncInitializeEncoder",
    SetStreams = "nvEncSetIOCudaStreams",
    CreateBitstream = "nvEncCreateBitstreamBuffer",
    DestroyBitstream = "nvEncDestroyBitstreamBuffer",
    Register = "nvEncRegisterResource",
    Unregister = "nvEncUnregisterResource",
    Wait = "cuStreamWaitEvent",
    Map = "nvEncMapInputResource",
    Unmap = "nvEncUnmapInputResource",
    Encode = "nvEncEncodePicture",
    Lock = "nvEncLockBitstream",
    Unlock = "nvEncUnlockBitstream",
    Reconfigure = "nvEncReconfigureEncoder",
    Destroy = "nvEncDestroyEncoder",
    Free = "cuMemFree",
}

impl CallWatch {
    fn enter(&self, call: Call) {
        // Relaxed: read only to name the call in a message, after the thread is long stuck in it.
        self.0.store(call as u8, Ordering::Relaxed);
    }

    pub fn current(&self) -> Call {
        let at = usize::from(self.0.load(Ordering::Relaxed));
        Call::ALL.get(at).copied().unwrap_or(Call::None)
    }
}

/// A call that failed, with what a person needs to find out why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {detail}")]
pub struct Failure {
    pub call: &'static str,
    /// The driver's number.
    pub status: i64,
    pub detail: String,
    /// The device is gone: the driver is not called again.
    pub lost: bool,
}

/// Why a session could not be opened. None of these is unusual.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Load(#[from] LoadError),
    #[error("{0}")]
    Device(#[from] DeviceError),
    #[error("{gpu}: {0}", gpu = .1)]
    Cuda(CudaError, String),
    #[error("{gpu} has no encoder ({failure})")]
    NoEngine { gpu: String, failure: Failure },
    #[error(
        "{gpu}: all encoder sessions are in use (other programs count too), or it is out of memory ({failure})"
    )]
    SessionLimit { gpu: String, failure: Failure },
    #[error("{gpu} does not encode {codec}")]
    Codec { gpu: String, codec: &'static str },
    #[error("{gpu}: {reason}")]
    Size { gpu: String, reason: String },
    #[error("{gpu}: {failure} (wanted {wanted})")]
    Call {
        gpu: String,
        failure: Failure,
        wanted: String,
    },
}

/// What a session was opened as.
#[derive(Debug, Clone)]
pub struct Opened {
    pub gpu: String,
    pub api: ApiVersion,
    pub plan: Plan,
    pub caps: Caps,
    /// Pictures are ordered behind their upload on the GPU, not by waiting for it here.
    pub io_streams: bool,
}

struct RegisteredSurface {
    memory: Nv12Memory,
    registered: NV_ENC_REGISTERED_PTR,
}

struct InFlight {
    number: u64,
    snapshot: Snapshot,
    mapped: NV_ENC_INPUT_PTR,
    /// Which of the outputs was handed in with it.
    output: usize,
}

/// An open session.
pub struct Session {
    encode: EncodeApi,
    device: Arc<Device>,
    watch: Arc<CallWatch>,
    handle: *mut c_void,
    opened: Opened,
    initialize: Box<NV_ENC_INITIALIZE_PARAMS>,
    config: Box<NV_ENC_CONFIG>,
    /// The driver keeps the address of this variable, not the stream.
    stream: Box<Handle>,
    picture: Box<NV_ENC_PIC_PARAMS>,
    surfaces: Vec<RegisteredSurface>,
    outputs: Vec<NV_ENC_OUTPUT_PTR>,
    pool: SurfacePool,
    /// Pictures whose output has not been locked, in the order in which they were submitted.
    in_flight: VecDeque<InFlight>,
    /// Outputs that were handed in and not locked, likewise.
    submitted: VecDeque<usize>,
    /// Times of submitted pictures that are still to become decoding times.
    decode_times: VecDeque<MediaTime>,
    next_number: u64,
    next_output: usize,
    given: u64,
    force_next: bool,
    ended: bool,
    /// Pictures that found no slot because the driver keeps all of them.
    pub starved: u64,
}

#[allow(unsafe_code)] // calls through the driver's tables; each block says why the arguments hold
impl Session {
    /// Opens everything for `config`.
    ///
    /// # Errors
    ///
    /// Any [`Refusal`]; everything taken before is given back.
    pub fn open(
        driver: &Driver,
        config: &EncoderConfig,
        options: &NvencOptions,
        watch: Arc<CallWatch>,
    ) -> Result<Self, Refusal> {
        watch.enter(Call::Cuda);
        let info = driver::choose(&driver.cuda, &options.gpu)?;
        let gpu = format!("GPU {} ({})", info.index, info.name);
        let device = Device::open(driver.cuda, info, config.shape)
            .map_err(|error| Refusal::Cuda(error, gpu.clone()))?;
        let (plan, caps) = (Plan::new(config, &Caps::default()), Caps::default());
        let mut session = Self {
            encode: driver.encode,
            device: Arc::new(device),
            watch,
            handle: std::ptr::null_mut(),
            opened: Opened {
                gpu,
                api: driver.encode.max_supported,
                plan,
                caps,
                io_streams: false,
            },
            initialize: Box::default(),
            config: Box::default(),
            stream: Box::new(std::ptr::null_mut()),
            picture: Box::default(),
            surfaces: Vec::new(),
            outputs: Vec::new(),
            pool: SurfacePool::new(Vec::new()),
            in_flight: VecDeque::new(),
            submitted: VecDeque::new(),
            decode_times: VecDeque::new(),
            next_number: 0,
            next_output: 0,
            given: 0,
            force_next: false,
            ended: false,
            starved: 0,
        };
        match session.prepare(config) {
            Ok(()) => Ok(session),
            Err(refusal) => {
                session.close(Duration::from_secs(1));
                Err(refusal)
            }
        }
    }

    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    pub fn pool(&self) -> &SurfacePool {
        &self.pool
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn prepare(&mut self, config: &EncoderConfig) -> Result<(), Refusal> {
        self.open_handle()?;
        let guid = codec_guid(config.codec);
        let codecs = self.codecs().map_err(|failure| self.refused(failure))?;
        if !codecs.contains(&guid) {
            return Err(Refusal::Codec {
                gpu: self.opened.gpu.clone(),
                codec: config.codec.name(),
            });
        }
        let caps = self.caps(guid);
        let plan = Plan::new(config, &caps);
        if let Some(reason) = caps.refusal(plan.width, plan.height) {
            return Err(Refusal::Size {
                gpu: self.opened.gpu.clone(),
                reason,
            });
        }
        if plan.b_frames < config.b_frames {
            log::warn!(
                "nvenc: --b-frames {} becomes {}: {} allows {} with this codec, and the GOP has {} pictures",
                config.b_frames,
                plan.b_frames,
                self.opened.gpu,
                caps.max_b_frames,
                config.gop,
            );
        }
        (self.opened.caps, self.opened.plan) = (caps, plan);
        let rest = |session: &mut Self| -> Result<(), Failure> {
            session.need_nv12(guid)?;
            session.initialize()?;
            session.set_streams()?;
            session.make_ring(config.surfaces_in_flight)
        };
        rest(self).map_err(|failure| self.refused(failure))
    }

    /// A failure at open, in words that say what would help.
    fn refused(&self, failure: Failure) -> Refusal {
        let gpu = self.opened.gpu.clone();
        match failure.status {
            NO_ENCODE_DEVICE | UNSUPPORTED_DEVICE => Refusal::NoEngine { gpu, failure },
            OUT_OF_MEMORY | INCOMPATIBLE_CLIENT_KEY => Refusal::SessionLimit { gpu, failure },
            _ => {
                let plan = &self.opened.plan;
                let wanted = format!(
                    "{} {}x{}, {:?}, {:?}",
                    plan.codec, plan.width, plan.height, plan.preset, plan.tuning
                );
                Refusal::Call {
                    gpu,
                    failure,
                    wanted,
                }
            }
        }
    }

    fn open_handle(&mut self) -> Result<(), Refusal> {
        let mut params = NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS {
            version: NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER,
            deviceType: NV_ENC_DEVICE_TYPE::NV_ENC_DEVICE_TYPE_CUDA,
            device: self.device.context,
            apiVersion: NVENCAPI_VERSION,
            ..Default::default()
        };
        self.watch.enter(Call::Open);
        // SAFETY: the structure has its version, the context is current; the handle is a live field.
        // A handle that comes back with a failure is destroyed by `close`, as the header asks.
        let status =
            unsafe { (self.encode.open_session_ex)(&raw mut params, &raw mut self.handle) };
        self.watch.enter(Call::None);
        // The driver's words need a session, and a failed open is not one.
        check(Call::Open, status, None).map_err(|failure| self.refused(failure))
    }

    fn codecs(&self) -> Result<Vec<GUID>, Failure> {
        let mut count = 0;
        // SAFETY (both): pointers to live variables; the list holds `count` GUIDs.
        self.call(Call::GetGuids, |api, session| unsafe {
            (api.get_guid_count)(session, &raw mut count)
        })?;
        let mut list = vec![GUID::default(); count as usize];
        let mut given = 0;
        self.call(Call::GetGuids, |api, session| unsafe {
            (api.get_guids)(session, list.as_mut_ptr(), count, &raw mut given)
        })?;
        list.truncate(given as usize);
        Ok(list)
    }

    fn caps(&self, codec: GUID) -> Caps {
        Caps::ask(|cap| {
            let mut params = NV_ENC_CAPS_PARAM {
                version: NV_ENC_CAPS_PARAM_VER,
                capsToQuery: cap,
                ..Default::default()
            };
            let mut value = 0;
            // SAFETY: the structure has its version; both pointers are to live variables.
            let got = self.call(Call::GetCaps, |api, session| unsafe {
                (api.get_caps)(session, codec, &raw mut params, &raw mut value)
            });
            // A capability that the driver does not know is one that the GPU has not.
            got.map_or(0, |()| value)
        })
    }

    fn need_nv12(&self, codec: GUID) -> Result<(), Failure> {
        let mut count = 0;
        // SAFETY (both): pointers to live variables; the list holds `count` formats.
        self.call(Call::GetFormats, |api, session| unsafe {
            (api.get_input_format_count)(session, codec, &raw mut count)
        })?;
        let nv12 = NV_ENC_BUFFER_FORMAT::NV_ENC_BUFFER_FORMAT_NV12;
        let mut list = vec![NV_ENC_BUFFER_FORMAT(0); count as usize];
        let mut given = 0;
        self.call(Call::GetFormats, |api, session| unsafe {
            (api.get_input_formats)(session, codec, list.as_mut_ptr(), count, &raw mut given)
        })?;
        if list
            .iter()
            .take(given as usize)
            .any(|format| *format == nv12)
        {
            return Ok(());
        }
        Err(Failure {
            call: Call::GetFormats.name(),
            status: 0,
            detail: "NV12 is not among the input formats".to_owned(),
            lost: false,
        })
    }

    /// Preset, our edits, initialise; then with less where the chip refuses more.
    fn initialize(&mut self) -> Result<(), Failure> {
        loop {
            let plan = self.opened.plan;
            let mut preset = Box::new(NV_ENC_PRESET_CONFIG {
                version: NV_ENC_PRESET_CONFIG_VER,
                ..Default::default()
            });
            preset.presetCfg.version = NV_ENC_CONFIG_VER;
            // SAFETY: both versions are set; the pointer is to a live structure.
            self.call(Call::GetPreset, |api, session| unsafe {
                (api.get_preset_config_ex)(
                    session,
                    plan.codec_guid(),
                    plan.preset_guid(),
                    plan.tuning_info(),
                    &raw mut *preset,
                )
            })?;
            *self.config = preset.presetCfg;
            plan.apply(&mut self.config, &self.opened.caps);
            *self.initialize = plan.initialize_params();
            self.initialize.encodeConfig = &raw mut *self.config;
            let params = &raw mut *self.initialize;
            // SAFETY: the structures have their versions and live as long as the session.
            let got = self.call(Call::Initialize, |api, session| unsafe {
                (api.initialize)(session, params)
            });
            let failure = match got {
                Ok(()) => break,
                Err(failure) => failure,
            };
            let refused = matches!(failure.status, INVALID_PARAM | UNSUPPORTED_PARAM);
            let plan = &mut self.opened.plan;
            if refused && plan.multi_pass {
                plan.multi_pass = false;
                log::warn!("nvenc: {failure}; again without the quarter-resolution pass");
            } else if refused && plan.custom_vbv {
                plan.custom_vbv = false;
                log::warn!("nvenc: {failure}; again with the driver's own buffer size");
            } else {
                return Err(failure);
            }
        }
        *self.picture = self.opened.plan.picture_params();
        Ok(())
    }

    /// Lets the encoder run on a stream of ours, behind the uploads.
    fn set_streams(&mut self) -> Result<(), Failure> {
        *self.stream = self
            .device
            .new_stream()
            .map_err(|error| cuda_failure(&error))?;
        let Some(set) = self.encode.set_io_cuda_streams else {
            return Ok(());
        };
        let stream: *mut Handle = &raw mut *self.stream;
        // SAFETY: the boxed variable stays where it is until the session is destroyed.
        let got = self.call(Call::SetStreams, |_, session| unsafe {
            set(session, stream.cast(), stream.cast())
        });
        match got {
            Ok(()) => self.opened.io_streams = true,
            Err(failure) => log::debug!("nvenc: {failure}; uploads are waited for instead"),
        }
        Ok(())
    }

    fn make_ring(&mut self, surfaces_in_flight: usize) -> Result<(), Failure> {
        let ring = self.opened.plan.ring();
        for _ in 0..ring {
            let mut params = NV_ENC_CREATE_BITSTREAM_BUFFER {
                version: NV_ENC_CREATE_BITSTREAM_BUFFER_VER,
                ..Default::default()
            };
            // SAFETY: the structure has its version.
            self.call(Call::CreateBitstream, |api, session| unsafe {
                (api.create_bitstream)(session, &raw mut params)
            })?;
            self.outputs.push(params.bitstreamBuffer);
        }
        let total = ring + surfaces_in_flight;
        for _ in 0..total {
            let memory = self
                .device
                .new_surface()
                .map_err(|error| cuda_failure(&error))?;
            self.surfaces.push(RegisteredSurface {
                memory,
                registered: std::ptr::null_mut(),
            });
            let (plan, at) = (self.opened.plan, self.surfaces.len() - 1);
            let mut params = NV_ENC_REGISTER_RESOURCE {
                version: NV_ENC_REGISTER_RESOURCE_VER,
                resourceType: NV_ENC_INPUT_RESOURCE_TYPE::NV_ENC_INPUT_RESOURCE_TYPE_CUDADEVICEPTR,
                width: plan.width,
                height: plan.height,
                pitch: memory.pitch as u32,
                resourceToRegister: memory.luma as usize as *mut c_void,
                bufferFormat: NV_ENC_BUFFER_FORMAT::NV_ENC_BUFFER_FORMAT_NV12,
                bufferUsage: NV_ENC_BUFFER_USAGE::NV_ENC_INPUT_IMAGE,
                ..Default::default()
            };
            // SAFETY: the structure has its version and names a live allocation of that pitch.
            self.call(Call::Register, |api, session| unsafe {
                (api.register_resource)(session, &raw mut params)
            })?;
            self.surfaces[at].registered = params.registeredResource;
        }
        self.in_flight.reserve(ring + 1);
        self.submitted.reserve(ring + 1);
        self.decode_times.reserve(2 * ring + 1);
        self.pool = SurfacePool::new(
            self.surfaces
                .iter()
                .enumerate()
                .map(|(index, surface)| {
                    let device = Arc::clone(&self.device);
                    Box::new(CudaSurface::new(device, surface.memory, index)) as Surface
                })
                .collect(),
        );
        Ok(())
    }

    /// Submits one picture and gives out what is ready.
    ///
    /// # Errors
    ///
    /// The session is of no further use.
    pub fn encode(&mut self, picture: Picture, out: &mut EncodedQueue) -> Result<(), Failure> {
        if let Some(reason) = self.device.broken() {
            return Err(Failure {
                call: "upload",
                status: 0,
                detail: reason,
                lost: true,
            });
        }
        if self.in_flight.len() == self.outputs.len() {
            // The driver keeps every slot and gives nothing back. Waiting would be a standstill; the
            // picture is left out, and whoever counts silent pictures decides.
            self.starved += 1;
            return Ok(());
        }
        let index = picture
            .snapshot
            .surface
            .get::<CudaSurface>()
            .map(CudaSurface::index)
            .ok_or_else(|| bug("a surface of another encoder"))?;
        let memory = self.surfaces[index].memory;
        self.order_behind_upload(memory)?;
        let mapped = self.map(index, memory.pitch)?;
        let output = self.next_output;
        let number = self.next_number;
        let flags = if picture.force_key || self.force_next || number == 0 {
            NV_ENC_PIC_FLAGS::NV_ENC_PIC_FLAG_FORCEIDR.0
                | NV_ENC_PIC_FLAGS::NV_ENC_PIC_FLAG_OUTPUT_SPSPPS.0
        } else {
            0
        };
        self.picture.encodePicFlags = flags;
        self.picture.inputTimeStamp = number;
        self.picture.frameIdx = number as u32;
        self.picture.inputBuffer = mapped;
        self.picture.outputBitstream = self.outputs[output];
        let time = picture.snapshot.time;
        // Before the call: should it fail, closing finds the map here.
        self.in_flight.push_back(InFlight {
            number,
            snapshot: picture.snapshot,
            mapped,
            output,
        });
        let more = self.submit()?;
        self.force_next = false;
        self.next_number += 1;
        self.next_output = (output + 1) % self.outputs.len();
        self.submitted.push_back(output);
        self.decode_times.push_back(time);
        if more { Ok(()) } else { self.take_ready(out) }
    }

    /// The encoder reads the surface after the upload has written it.
    fn order_behind_upload(&self, memory: Nv12Memory) -> Result<(), Failure> {
        self.watch.enter(Call::Wait);
        if self.opened.io_streams {
            // SAFETY: stream and event live until `close`.
            let code =
                unsafe { (self.device.api.stream_wait_event)(*self.stream, memory.ready, 0) };
            let got = self.device.api.check("cuStreamWaitEvent", code);
            self.watch.enter(Call::None);
            return got.map_err(|error| cuda_failure(&error));
        }
        let got = self.device.wait_ready(memory);
        self.watch.enter(Call::None);
        match got {
            Ok(true) => Ok(()),
            Ok(false) => Err(bug("the upload of a picture did not end")),
            Err(error) => Err(cuda_failure(&error)),
        }
    }

    fn map(&mut self, index: usize, pitch: usize) -> Result<NV_ENC_INPUT_PTR, Failure> {
        let mut params = NV_ENC_MAP_INPUT_RESOURCE {
            version: NV_ENC_MAP_INPUT_RESOURCE_VER,
            registeredResource: self.surfaces[index].registered,
            ..Default::default()
        };
        // SAFETY: the structure has its version; the surface is registered and not mapped: its
        // lease came with the picture, so it is in no other picture.
        self.call(Call::Map, |api, session| unsafe {
            (api.map_input)(session, &raw mut params)
        })?;
        self.picture.bufferFmt = params.mappedBufferFmt;
        self.picture.inputPitch = pitch as u32;
        Ok(params.mappedResource)
    }

    /// True if the driver wants more input before it gives output.
    fn submit(&mut self) -> Result<bool, Failure> {
        let params = &raw mut *self.picture;
        for _ in 0..BUSY_ATTEMPTS {
            // SAFETY: the structure has its version; input is mapped, output is free, both of this session.
            let got = self.call(Call::Encode, |api, session| unsafe {
                (api.encode_picture)(session, params)
            });
            match got {
                Ok(()) => return Ok(false),
                Err(failure) if failure.status == NEED_MORE_INPUT => return Ok(true),
                Err(failure) if failure.status == ENCODER_BUSY => std::thread::sleep(BUSY_PAUSE),
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure {
            call: Call::Encode.name(),
            status: ENCODER_BUSY,
            detail: format!("ENCODER_BUSY (18): still busy after {BUSY_ATTEMPTS} attempts"),
            lost: false,
        })
    }

    /// After a success every output that was handed in may be locked, in that order.
    fn take_ready(&mut self, out: &mut EncodedQueue) -> Result<(), Failure> {
        while let Some(output) = self.submitted.pop_front() {
            self.take_one(output, out)?;
        }
        Ok(())
    }

    fn take_one(&mut self, output: usize, out: &mut EncodedQueue) -> Result<(), Failure> {
        let mut lock = NV_ENC_LOCK_BITSTREAM {
            version: NV_ENC_LOCK_BITSTREAM_VER,
            outputBitstream: self.outputs[output],
            ..Default::default()
        };
        // SAFETY: the structure has its version; the output was submitted and not locked yet.
        let got = self.call(Call::Lock, |api, session| unsafe {
            (api.lock_bitstream)(session, &raw mut lock)
        });
        let overflow = match got {
            Ok(()) => false,
            // The picture did not fit the driver's buffer: it is lost, and what refers to it with it.
            Err(failure) if failure.status == NOT_ENOUGH_BUFFER => {
                log::warn!("nvenc: {failure}; the picture is dropped");
                self.force_next = true;
                true
            }
            Err(failure) => return Err(failure),
        };
        let mut buffer = out.buffer();
        if !overflow {
            let bytes = lock.bitstreamSizeInBytes as usize;
            if bytes > 0 && !lock.bitstreamBufferPtr.is_null() {
                // SAFETY: the driver gives that many bytes there until the output is unlocked.
                let data = unsafe {
                    std::slice::from_raw_parts(lock.bitstreamBufferPtr.cast::<u8>(), bytes)
                };
                buffer.extend_from_slice(data);
            }
            let output = self.outputs[output];
            // SAFETY: locked above.
            self.call(Call::Unlock, |api, session| unsafe {
                (api.unlock_bitstream)(session, output)
            })?;
        }
        // Which picture it is: with B-frames outputs come in coding order.
        let at = self.in_flight.iter().position(|picture| {
            if overflow {
                picture.output == output
            } else {
                picture.number == lock.outputTimeStamp
            }
        });
        let picture = at.and_then(|at| self.in_flight.remove(at)).ok_or_else(|| {
            bug(&format!(
                "output for picture {}, which is not there",
                lock.outputTimeStamp
            ))
        })?;
        let dts = self.next_decode_time(picture.snapshot.time);
        // SAFETY: mapped at submission, and its output is done with.
        self.call(Call::Unmap, |api, session| unsafe {
            (api.unmap_input)(session, picture.mapped)
        })?;
        if buffer.is_empty() {
            out.recycle(buffer);
            return Ok(());
        }
        let mut encoded = EncodedPicture::of(&picture.snapshot, buffer);
        encoded.dts = dts;
        encoded.key = lock.pictureType == NV_ENC_PIC_TYPE::NV_ENC_PIC_TYPE_IDR;
        out.push(encoded);
        Ok(())
    }

    /// The decoding time of the next picture in coding order: the n-th takes the time of the
    /// (n - b)-th submitted one, the first b lie one frame period apart before the first.
    fn next_decode_time(&mut self, pts: MediaTime) -> MediaTime {
        let plan = &self.opened.plan;
        if plan.b_frames == 0 {
            self.decode_times.clear();
            return pts;
        }
        let ahead = u64::from(plan.b_frames);
        let n = self.given;
        self.given += 1;
        if n >= ahead {
            return self.decode_times.pop_front().unwrap_or(pts).min(pts);
        }
        let period =
            1_000_000_000 * u64::from(plan.frame_rate.den) / u64::from(plan.frame_rate.num);
        let first = self.decode_times.front().copied().unwrap_or(pts);
        MediaTime::from_nanos(first.as_nanos() - ((ahead - n) * period) as i64)
    }

    /// Ends the stream and gives out what the encoder held back.
    ///
    /// # Errors
    ///
    /// The session is of no further use.
    pub fn flush(&mut self, out: &mut EncodedQueue) -> Result<(), Failure> {
        self.end_of_stream()?;
        self.take_ready(out)
    }

    fn end_of_stream(&mut self) -> Result<(), Failure> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let mut params = Box::new(NV_ENC_PIC_PARAMS {
            version: NV_ENC_PIC_PARAMS_VER,
            encodePicFlags: NV_ENC_PIC_FLAGS::NV_ENC_PIC_FLAG_EOS.0,
            ..Default::default()
        });
        let params = &raw mut *params;
        // SAFETY: the structure has its version; an end of stream has neither input nor output.
        let got = self.call(Call::Encode, |api, session| unsafe {
            (api.encode_picture)(session, params)
        });
        match got {
            Err(failure) if failure.status == NEED_MORE_INPUT => Ok(()),
            other => other,
        }
    }

    /// A new bit rate from the next picture on, without a key frame.
    ///
    /// # Errors
    ///
    /// If the driver refuses; the old rate stays in force.
    pub fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), Failure> {
        let old = self.opened.plan.rate;
        self.opened.plan.rate = RateControl::Bitrate(bits_per_second);
        let plan = self.opened.plan;
        plan.apply_rate(&mut self.config.rcParams);
        // resetEncoder and forceIDR stay 0: a change that nobody sees.
        let mut params = Box::new(NV_ENC_RECONFIGURE_PARAMS {
            version: NV_ENC_RECONFIGURE_PARAMS_VER,
            reInitEncodeParams: *self.initialize,
            ..Default::default()
        });
        let params = &raw mut *params;
        // SAFETY: the structures have their versions; encodeConfig points at the session's own.
        let got = self.call(Call::Reconfigure, |api, session| unsafe {
            (api.reconfigure)(session, params)
        });
        got.inspect_err(|_| {
            self.opened.plan.rate = old;
            let plan = self.opened.plan;
            plan.apply_rate(&mut self.config.rcParams);
        })
    }

    /// Gives everything back, in order; failures on the way change nothing.
    pub fn close(mut self, patience: Duration) {
        let stopped = self.device.stop_uploads(patience);
        if self.device.make_current().is_err() {
            log::debug!("nvenc: the context is gone");
        }
        if !self.handle.is_null() {
            if !self.surfaces.is_empty() && self.next_number > 0 && self.end_of_stream().is_ok() {
                let mut unwanted = EncodedQueue::new();
                let _ = self.take_ready(&mut unwanted);
            }
            self.destroy_session();
        }
        if !stopped {
            log::warn!("nvenc: an upload does not end; its memory is left to the driver");
            return;
        }
        self.watch.enter(Call::Free);
        self.device.drain_upload_stream(patience);
        for surface in std::mem::take(&mut self.surfaces) {
            self.device.free_surface(surface.memory);
        }
        if !self.stream.is_null() {
            // SAFETY: made by `set_streams`; the session that used it is destroyed.
            unsafe { (self.device.api.stream_destroy)(*self.stream) };
        }
        self.device.close(patience);
        self.watch.enter(Call::None);
    }

    fn destroy_session(&mut self) {
        let ignore = |_: Result<(), Failure>| ();
        // SAFETY (all): each handle was given by this session and is given up exactly once; maps go
        // before registrations, everything before the session.
        for picture in std::mem::take(&mut self.in_flight) {
            ignore(self.call(Call::Unmap, |api, session| unsafe {
                (api.unmap_input)(session, picture.mapped)
            }));
        }
        for at in 0..self.surfaces.len() {
            let registered = self.surfaces[at].registered;
            if !registered.is_null() {
                ignore(self.call(Call::Unregister, |api, session| unsafe {
                    (api.unregister_resource)(session, registered)
                }));
            }
        }
        for output in std::mem::take(&mut self.outputs) {
            ignore(self.call(Call::DestroyBitstream, |api, session| unsafe {
                (api.destroy_bitstream)(session, output)
            }));
        }
        ignore(self.call(Call::Destroy, |api, session| unsafe {
            (api.destroy_encoder)(session)
        }));
        self.handle = std::ptr::null_mut();
    }

    /// One call, watched, its status turned into words.
    fn call(
        &self,
        call: Call,
        run: impl FnOnce(&EncodeApi, *mut c_void) -> NVENCSTATUS,
    ) -> Result<(), Failure> {
        self.watch.enter(call);
        let status = run(&self.encode, self.handle);
        self.watch.enter(Call::None);
        let code = i64::from(status.0);
        // Both are part of ordinary work, and words for them would allocate.
        if code == NEED_MORE_INPUT || code == ENCODER_BUSY {
            return Err(Failure {
                call: call.name(),
                status: code,
                detail: String::new(),
                lost: false,
            });
        }
        if code == 0 {
            return Ok(());
        }
        // A lost device may hang in any call, also in that for its last words.
        let words = if code == DEVICE_NOT_EXIST || call == Call::Destroy {
            None
        } else {
            // SAFETY: the session is live and this is its thread.
            unsafe { self.encode.last_error(self.handle) }
        };
        check(call, status, words)
    }
}

fn check(call: Call, status: NVENCSTATUS, words: Option<String>) -> Result<(), Failure> {
    if status.0 == 0 {
        return Ok(());
    }
    let info = StatusInfo::of(status);
    let words = words.map_or_else(String::new, |words| format!(": {words}"));
    Err(Failure {
        call: call.name(),
        status: i64::from(status.0),
        detail: format!("{info}{words}; {}", info.meaning),
        lost: i64::from(status.0) == DEVICE_NOT_EXIST,
    })
}

fn cuda_failure(error: &CudaError) -> Failure {
    Failure {
        call: error.call,
        status: i64::from(error.code),
        detail: format!("{} ({})", error.name, error.code),
        lost: true,
    }
}

fn bug(what: &str) -> Failure {
    Failure {
        call: "encode",
        status: 0,
        detail: what.to_owned(),
        lost: false,
    }
}

const NO_ENCODE_DEVICE: i64 = 1;
const UNSUPPORTED_DEVICE: i64 = 2;
const DEVICE_NOT_EXIST: i64 = 5;
const INVALID_PARAM: i64 = 8;
const OUT_OF_MEMORY: i64 = 10;
const UNSUPPORTED_PARAM: i64 = 12;
const NOT_ENOUGH_BUFFER: i64 = 14;
const NEED_MORE_INPUT: i64 = 17;
const ENCODER_BUSY: i64 = 18;
const INCOMPATIBLE_CLIENT_KEY: i64 = 21;

/// A busy encoder is asked again after this pause, so many times.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const BUSY_ATTEMPTS: u32 = 100;
