//! H.264 in software.
//!
//! Through `openh264-sys2` and not the safe crate above it: that one fixes a single slice, with
//! which the library's threads have nothing to do.

#[allow(unsafe_code)] // calls into libopenh264; a safe handle wraps each
mod ffi;

use std::num::NonZero;
use std::sync::Once;
use std::thread::available_parallelism;

use ffi::{Coded, Complexity, Failure, Handle, Rate, Settings};

use crate::frame::SurfacePool;
use crate::frame::surface::I420Surface;

use super::registry::Announce;
use super::{
    Codec, EncodeError, EncodedPicture, EncodedQueue, EncoderBackend, EncoderConfig, Picture,
    Preset, RateControl, Tuning,
};

/// The name that the operator knows it by.
pub const NAME: &str = "openh264";

/// The library opens for smaller ones and then refuses each picture.
const SMALLEST: u32 = 16;

/// Pixels of the largest picture: `MaxFS` of level 5.1, 36,864 macroblocks (H.264 table A-1).
const LARGEST: u64 = 36_864 * 256;

/// libopenh264, set for real time: one access unit for each picture, at once.
pub struct OpenH264 {
    handle: Handle,
    pool: SurfacePool,
    rate: RateControl,
    /// What the library is told instead of one bit per second, see [`rate_factor`].
    rate_factor: f64,
}

/// Opens it.
///
/// # Errors
///
/// [`EncodeError::Open`] if the codec, the size or the rate is beyond the library.
pub fn open(
    config: &EncoderConfig,
    announce: &mut Announce<'_>,
) -> Result<Box<dyn EncoderBackend>, EncodeError> {
    Ok(Box::new(OpenH264::open(config, announce)?))
}

impl OpenH264 {
    /// # Errors
    ///
    /// As [`open`].
    pub fn open(config: &EncoderConfig, announce: &mut Announce<'_>) -> Result<Self, EncodeError> {
        if config.codec != Codec::H264 {
            return Err(refused(format!("it cannot code {}", config.codec)));
        }
        let rate_factor = rate_factor(config);
        let mut settings = settings(config, rate_factor)?;
        // One more than may be on their way: the picture in `encode`.
        let pool = SurfacePool::on_host(config.shape, config.surfaces_in_flight + 1);
        announce(&pool);
        let handle = match Handle::open(&settings) {
            // Small and flat pictures have no room for several slices under rate control.
            Err(_) if settings.slices > 1 => {
                settings.slices = 1;
                Handle::open(&settings)
            }
            other => other,
        };
        let handle = handle.map_err(|failure| refused(describe(config, &failure)))?;
        if config.b_frames > 0 {
            log::warn!(
                "openh264 makes no B-frames: --b-frames {} is taken as 0",
                config.b_frames
            );
        }
        if config.intra_refresh {
            log::warn!(
                "openh264 has no intra refresh: a key frame every {} pictures in its place",
                config.gop
            );
        }
        warn_without_assembler(&handle);
        Ok(Self {
            handle,
            pool,
            rate: config.rate,
            rate_factor,
        })
    }

    /// Whether the library has its assembler, without which it takes three times the time; `None`
    /// where it did not say.
    pub fn has_assembler(&self) -> Option<bool> {
        self.handle.cpu_features().map(|features| features != 0)
    }
}

impl EncoderBackend for OpenH264 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn surfaces(&self) -> SurfacePool {
        self.pool.clone()
    }

    fn encode(&mut self, picture: Picture, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        let snapshot = &picture.snapshot;
        let surface = (snapshot.surface.pool_id() == self.pool.id())
            .then(|| snapshot.surface.get::<I420Surface>())
            .flatten()
            .ok_or(EncodeError::ForeignSurface { encoder: NAME })?;
        let mut coded = EncodedPicture::of(snapshot, out.buffer());
        let millis = snapshot.time.to_millis();
        let force = picture.force_key;
        let kind = self
            .handle
            .encode(&surface.planes(), millis, force, &mut coded.data)
            .map_err(failed)?;
        if kind == Coded::Skipped {
            // Cannot be asked for (frame skip is off); were it to happen, the rule about silent
            // encoders sees it.
            log::debug!("openh264 coded nothing for frame {}", coded.frame_id);
            out.recycle(coded.data);
            return Ok(());
        }
        coded.key = kind == Coded::Key;
        out.push(coded);
        Ok(())
    }

    fn flush(&mut self, _out: &mut EncodedQueue) -> Result<(), EncodeError> {
        Ok(()) // it holds nothing back
    }

    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), EncodeError> {
        let RateControl::Bitrate(now) = self.rate else {
            return Err(EncodeError::Unsupported {
                encoder: NAME,
                what: "a bit rate beside a constant quality".to_owned(),
            });
        };
        let scale = |bits: u32| scaled(bits, self.rate_factor);
        let (from, to) = (scale(now), scale(bits_per_second));
        self.handle.set_bitrate(from, to).map_err(failed)?;
        self.rate = RateControl::Bitrate(bits_per_second);
        Ok(())
    }

    fn b_frames(&self) -> u32 {
        0
    }

    fn delay(&self) -> usize {
        0
    }
}

fn settings(config: &EncoderConfig, rate_factor: f64) -> Result<Settings, EncodeError> {
    let (width, height) = config.coded_size();
    if width.min(height) < SMALLEST {
        return Err(refused(format!(
            "{width}x{height} is too small: it takes pictures from {SMALLEST}x{SMALLEST} on"
        )));
    }
    if u64::from(width) * u64::from(height) > LARGEST {
        return Err(refused(format!(
            "{width}x{height} is too large: it takes up to {LARGEST} pixels, 4096x2304"
        )));
    }
    let rate = match config.rate {
        RateControl::Bitrate(0) => return Err(refused("--bitrate 0 leaves no bits".to_owned())),
        RateControl::Bitrate(bits) => Rate::BitsPerSecond(scaled(bits, rate_factor)),
        RateControl::Quality(quality) => Rate::Quantiser(quality.min(51)),
    };
    let (complexity, cabac) = speed(config.preset, config.tuning);
    Ok(Settings {
        width,
        height,
        frames_per_second: (config.frame_rate.per_second() as f32).min(Settings::LARGEST_RATE),
        rate,
        gop: config.gop,
        slices: threads(),
        complexity,
        cabac,
    })
}

/// What the four words mean here. CABAC gives 0.0015 SSIM for a tenth of the time, medium
/// complexity 0.0005 for a sixth.
fn speed(preset: Preset, tuning: Tuning) -> (Complexity, bool) {
    match (preset, tuning) {
        (Preset::Fastest, Tuning::LowLatency) => (Complexity::Low, false),
        (Preset::Fast, Tuning::LowLatency) | (Preset::Fastest, Tuning::Quality) => {
            (Complexity::Low, true)
        }
        (Preset::Balanced, Tuning::LowLatency) | (Preset::Fast, Tuning::Quality) => {
            (Complexity::Medium, true)
        }
        (Preset::Quality, _) | (Preset::Balanced, Tuning::Quality) => (Complexity::High, true),
    }
}

/// Slices and threads: gains end at four, which is also the library's limit.
fn threads() -> u16 {
    available_parallelism().map_or(1, NonZero::get).min(4) as u16
}

/// The library knows no more than 60 pictures per second and divides the bit rate by that; at
/// twice the rate it is told half the bits, so that each picture gets its share.
fn rate_factor(config: &EncoderConfig) -> f64 {
    let fps = config.frame_rate.per_second();
    (f64::from(Settings::LARGEST_RATE) / fps).min(1.0)
}

fn scaled(bits: u32, factor: f64) -> i32 {
    // `MAX_BIT_RATE` of the library is i32::MAX.
    (f64::from(bits) * factor).clamp(1.0, f64::from(i32::MAX)) as i32
}

fn describe(config: &EncoderConfig, failure: &Failure) -> String {
    format!(
        "{}x{} is refused by {} with {}: {}",
        config.shape.width, config.shape.height, failure.call, failure.status, failure.detail
    )
}

fn refused(reason: String) -> EncodeError {
    EncodeError::Open {
        encoder: NAME,
        reason,
    }
}

fn failed(failure: Failure) -> EncodeError {
    EncodeError::Failed {
        encoder: NAME,
        call: failure.call,
        status: failure.status,
        detail: failure.detail,
    }
}

/// The build drops the assembler without a word if `nasm` is not there, so the word is said here.
fn warn_without_assembler(handle: &Handle) {
    static SAID: Once = Once::new();
    if handle.cpu_features() == Some(0) {
        SAID.call_once(|| {
            log::warn!(
                "openh264 was built without its assembler and takes three times the time: \
                 install nasm and build again"
            );
        });
    }
}
