//! One encoding session: every call to the driver's encoder, all on the thread that opened it.
//!
//! Handles are destroyed once, children before parents: maps, registrations, bitstream buffers, the
//! session, surfaces, stream, context.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use nvenc_sys::*;

use self::calls::Calls;
use super::NvencOptions;
use super::cuda::Handle;
use super::device::{Device, Nv12Memory};
use super::driver::{self, Driver};
use super::failure::*;
use super::params::{Caps, Plan};
use super::surface::CudaSurface;
use super::watch::named;
use crate::encode::{EncodedPicture, EncodedQueue, EncoderConfig, Picture, RateControl};
use crate::frame::{Snapshot, SurfacePool};
use crate::time::MediaTime;

pub(super) mod calls;
mod open;

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
    calls: Calls,
    device: Arc<Device>,
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
    ) -> Result<Self, Refusal> {
        let info = driver::choose(&driver.cuda, &options.gpu)?;
        let gpu = format!("GPU {} ({})", info.index, info.name);
        let device = Device::open(driver.cuda, info, config.shape)
            .map_err(|error| Refusal::Cuda(error, gpu.clone()))?;
        let (plan, caps) = (Plan::new(config, &Caps::default()), Caps::default());
        let mut session = Self {
            calls: Calls::new(driver.encode),
            device: Arc::new(device),
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
                detail: reason.to_owned(),
            });
        }
        if self.in_flight.len() == self.outputs.len() {
            // The driver keeps every slot and gives nothing back. Waiting would be a standstill; the
            // picture is left out, and whoever counts silent pictures decides.
            self.force_next |= picture.force_key;
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
        if self.opened.io_streams {
            let api = &self.device.api;
            // SAFETY: stream and event live until `close`.
            let got = api.call("cuStreamWaitEvent", || unsafe {
                (api.stream_wait_event)(*self.stream, memory.ready, 0)
            });
            return got.map_err(|error| cuda_failure(&error));
        }
        match self.device.wait_ready(memory) {
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
        if self.calls.is_open() {
            if !self.surfaces.is_empty() && self.next_number > 0 && self.end_of_stream().is_ok() {
                let mut unwanted = EncodedQueue::new();
                let _ = self.take_ready(&mut unwanted);
            }
            self.destroy_session();
        }
        if !stopped || !self.device.drain_upload_stream(patience) {
            log::warn!("nvenc: uploads do not end; their memory is left to the driver");
            return;
        }
        for surface in std::mem::take(&mut self.surfaces) {
            self.device.free_surface(surface.memory);
        }
        if !self.stream.is_null() {
            // SAFETY: made by `set_streams`; the session that used it is destroyed.
            named("cuStreamDestroy", || unsafe {
                (self.device.api.stream_destroy)(*self.stream)
            });
        }
        self.device.close(patience);
    }

    fn destroy_session(&mut self) {
        let ignore = |_: Result<(), Failure>| ();
        for picture in std::mem::take(&mut self.in_flight) {
            // SAFETY: mapped by this session, once, and given up here.
            ignore(self.call(Call::Unmap, |api, session| unsafe {
                (api.unmap_input)(session, picture.mapped)
            }));
        }
        for at in 0..self.surfaces.len() {
            let registered = self.surfaces[at].registered;
            if !registered.is_null() {
                // SAFETY: registered by this session; its maps are gone.
                ignore(self.call(Call::Unregister, |api, session| unsafe {
                    (api.unregister_resource)(session, registered)
                }));
            }
        }
        for output in std::mem::take(&mut self.outputs) {
            // SAFETY: made by this session, given up once.
            ignore(self.call(Call::DestroyBitstream, |api, session| unsafe {
                (api.destroy_bitstream)(session, output)
            }));
        }
        self.calls.destroy();
    }

    /// One call in this session.
    fn call(
        &self,
        call: Call,
        run: impl FnOnce(&EncodeApi, *mut c_void) -> NVENCSTATUS,
    ) -> Result<(), Failure> {
        self.calls.call(call, run)
    }
}

/// A busy encoder is asked again after this pause, so many times.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const BUSY_ATTEMPTS: u32 = 100;
