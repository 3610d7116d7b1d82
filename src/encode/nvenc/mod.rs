//! NVENC, called directly: the program's first choice where there is an NVIDIA GPU with an encoder.
//!
//! - [`driver`], [`cuda`]: the driver's libraries as tables of functions, and the choice of a GPU;
//! - [`params`]: `EncoderConfig` into NVENC structures;
//! - [`device`], [`surface`], [`kernels`]: from the segment into an NV12 surface on the GPU;
//! - [`session`]: the calls; [`probe`]: what a GPU says of itself, for `gpu-info`;
//! - `worker`: the one thread that makes them, and the [`watch`] over it. A driver that hangs costs this
//!   backend, never the program: its thread is left behind and the caller gets an error.

#[allow(unsafe_code)] // the CUDA driver's function table
pub mod cuda;
pub mod device;
pub mod driver;
pub mod failure;
pub mod kernels;
pub mod params;
pub mod probe;
pub mod session;
pub mod surface;
pub mod watch;
mod worker;

#[cfg(test)]
#[allow(unsafe_code)] // plays the driver
mod fake;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::device::Device;
use self::driver::{Driver, GpuChoice};
use self::failure::Failure;
use self::session::Opened;
use self::worker::{Reply, Request, Worker};
use super::registry::Announce;
use super::{EncodeError, EncodedQueue, EncoderBackend, EncoderConfig, Picture};
use crate::frame::SurfacePool;

/// The name of this backend for operators.
pub const NAME: &str = "nvenc";

/// What the operator may say about NVENC beyond [`EncoderConfig`].
#[derive(Debug, Clone)]
pub struct NvencOptions {
    pub gpu: GpuChoice,
    /// A call that takes longer is taken for a driver that hangs.
    pub call_limit: Duration,
    /// Opening starts the driver, which may take seconds on a cold machine.
    pub open_limit: Duration,
    /// A driver to use in place of the machine's, for tests.
    pub driver: Option<Driver>,
}

impl Default for NvencOptions {
    fn default() -> Self {
        Self {
            gpu: GpuChoice::First,
            call_limit: Duration::from_secs(2),
            open_limit: Duration::from_secs(15),
            driver: None,
        }
    }
}

static GPU: OnceLock<GpuChoice> = OnceLock::new();

/// Says which GPU is meant (`--gpu`), once, before the first encoder is opened.
pub fn choose_gpu(choice: GpuChoice) {
    if GPU.set(choice).is_err() {
        log::debug!("nvenc: the GPU was chosen before");
    }
}

/// Opens NVENC on the chosen GPU, as the registry wants it.
///
/// # Errors
///
/// As [`NvencEncoder::open`].
pub fn open(
    config: &EncoderConfig,
    _announce: &mut Announce<'_>,
) -> Result<Box<dyn EncoderBackend>, EncodeError> {
    let options = NvencOptions {
        gpu: GPU.get().cloned().unwrap_or_default(),
        ..NvencOptions::default()
    };
    Ok(Box::new(NvencEncoder::open(config, &options)?))
}

/// An open NVENC encoder.
pub struct NvencEncoder {
    worker: Worker,
    pool: SurfacePool,
    device: Arc<Device>,
    opened: Opened,
}

impl NvencEncoder {
    /// Opens the driver, a GPU and a session.
    ///
    /// # Errors
    ///
    /// [`EncodeError::Open`] with one line that says what was wanted, what was found and what would help;
    /// [`EncodeError::NoAnswer`] with the call that a driver hangs in.
    pub fn open(config: &EncoderConfig, options: &NvencOptions) -> Result<Self, EncodeError> {
        let refused = |reason: String| EncodeError::Open {
            encoder: NAME,
            reason,
        };
        let worker = Worker::start(*config, options.clone()).map_err(refused)?;
        let answer = worker
            .wait_until_open()
            .map_err(|failure| EncodeError::NoAnswer {
                encoder: NAME,
                reason: failure.to_string(),
            })?;
        let (worker, ready) = answer.map_err(refused)?;
        let plan = &ready.opened.plan;
        log::info!(
            "nvenc: {} {}x{} on {}, driver API {}, {} b-frames, {}",
            plan.codec,
            plan.width,
            plan.height,
            ready.opened.gpu,
            ready.opened.api,
            plan.b_frames,
            if ready.opened.io_streams {
                "ordered on the GPU"
            } else {
                "ordered by waiting"
            },
        );
        Ok(Self {
            worker,
            pool: ready.pool,
            device: ready.device,
            opened: ready.opened,
        })
    }

    /// What was opened, for reports.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Uploads so far, for reports.
    pub fn uploads(&self) -> &device::UploadCounters {
        &self.device.counters
    }

    fn failed(&self, failure: Failure) -> EncodeError {
        EncodeError::Failed {
            encoder: NAME,
            call: failure.call,
            status: failure.status,
            detail: failure.detail,
        }
    }
}

impl EncoderBackend for NvencEncoder {
    fn name(&self) -> &'static str {
        NAME
    }

    fn surfaces(&self) -> SurfacePool {
        self.pool.clone()
    }

    fn encode(&mut self, picture: Picture, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        if picture.snapshot.surface.pool_id() != self.pool.id() {
            return Err(EncodeError::ForeignSurface { encoder: NAME });
        }
        let queue = std::mem::take(out);
        match self.worker.ask(Request::Encode(picture, queue)) {
            Ok(Reply::Encoded(queue, result)) => {
                *out = queue;
                result.map_err(|failure| self.failed(failure))
            }
            Ok(_) => unreachable!("the worker answers in kind"),
            Err(failure) => Err(self.failed(failure)),
        }
    }

    fn flush(&mut self, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        let queue = std::mem::take(out);
        match self.worker.ask(Request::Flush(queue)) {
            Ok(Reply::Encoded(queue, result)) => {
                *out = queue;
                result.map_err(|failure| self.failed(failure))
            }
            Ok(_) => unreachable!("the worker answers in kind"),
            Err(failure) => Err(self.failed(failure)),
        }
    }

    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), EncodeError> {
        if !matches!(self.opened.plan.rate, super::RateControl::Bitrate(_)) {
            return Err(EncodeError::Unsupported {
                encoder: NAME,
                what: "a bit rate in a stream of constant quality".to_owned(),
            });
        }
        if !self.opened.caps.dynamic_bitrate {
            let gpu = &self.opened.gpu;
            return Err(EncodeError::Unsupported {
                encoder: NAME,
                what: format!("another bit rate than --bitrate in a running stream on {gpu}"),
            });
        }
        match self.worker.ask(Request::Bitrate(bits_per_second)) {
            Ok(Reply::Done(result)) => result.map_err(|failure| self.failed(failure)),
            Ok(_) => unreachable!("the worker answers in kind"),
            Err(failure) => Err(self.failed(failure)),
        }
    }

    fn b_frames(&self) -> u32 {
        self.opened.plan.b_frames
    }

    fn intra_refresh(&self) -> bool {
        self.opened.plan.intra_refresh
    }

    fn delay(&self) -> usize {
        self.opened.plan.b_frames as usize
    }

    fn keeps_the_reader(&self) -> Option<EncodeError> {
        let call = self.device.stuck_upload(self.worker.call_limit())?;
        Some(EncodeError::Failed {
            encoder: NAME,
            call,
            status: -1,
            detail: "did not return, and keeps the thread that reads frames; the driver hangs"
                .to_owned(),
        })
    }
}
