//! H.265 in software.
//!
//! libx265 is GPL: this module is a cargo feature, and a binary with it is covered by the GPL.

#[allow(unsafe_code)] // calls into libx265; a safe handle wraps each
mod ffi;

use std::collections::VecDeque;
use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Duration;

use ffi::Handle;

use crate::frame::SurfacePool;
use crate::frame::surface::I420Surface;
use crate::time::MediaTime;

use super::registry::Announce;
use super::{
    Codec, EncodeError, EncodedPicture, EncodedQueue, EncoderBackend, EncoderConfig, Picture,
    Preset, RateControl, Tuning,
};

/// The name that the operator knows it by.
pub const NAME: &str = "x265";

/// More than these x265 refuses itself (`X265_BFRAME_MAX`).
pub const MOST_B_FRAMES: u32 = 16;

/// One block of the smallest size that can be chosen.
const SMALLEST: u32 = 16;

/// Of the highest level (H.265 table A.8, level 6.2). Above it x265 does not refuse, it allocates.
const MOST_PIXELS: u64 = 35_651_584;

/// libx265. With [`Tuning::LowLatency`] and no B-frames an access unit comes for each picture at
/// once; else some pictures later.
pub struct X265 {
    handle: Handle,
    /// Takes over at the next picture, with another bit rate.
    successor: Option<Handle>,
    pool: SurfacePool,
    config: EncoderConfig,
    delay: usize,
    next_number: i64,
    /// Pictures without their access unit yet, by number.
    held: VecDeque<(i64, EncodedPicture)>,
    decoding: DecodingTimes,
}

/// Opens it.
///
/// # Errors
///
/// [`EncodeError::Open`] if the codec, the size or a setting is refused, or the library at hand is
/// not the one that the program was built for.
pub fn open(
    config: &EncoderConfig,
    announce: &mut Announce<'_>,
) -> Result<Box<dyn EncoderBackend>, EncodeError> {
    Ok(Box::new(X265::open(config, announce)?))
}

/// The version of the library at hand.
pub fn version() -> Option<String> {
    ffi::version()
}

impl X265 {
    /// # Errors
    ///
    /// As [`open`].
    pub fn open(config: &EncoderConfig, announce: &mut Announce<'_>) -> Result<Self, EncodeError> {
        let mut config = *config;
        if config.codec != Codec::H265 {
            return Err(refused(format!("it cannot code {}", config.codec)));
        }
        if config.rate == RateControl::Bitrate(0) {
            return Err(refused("--bitrate 0 leaves no bits".to_owned()));
        }
        let (width, height) = config.coded_size();
        if width.min(height) < SMALLEST || u64::from(width) * u64::from(height) > MOST_PIXELS {
            return Err(refused(format!(
                "{width}x{height} is beyond it: it takes pictures from {SMALLEST}x{SMALLEST} up \
                 to 8192x4352"
            )));
        }
        if config.b_frames > MOST_B_FRAMES {
            log::warn!(
                "x265 makes at most {MOST_B_FRAMES} B-frames in a row: --b-frames {} is taken as \
                 {MOST_B_FRAMES}",
                config.b_frames
            );
            config.b_frames = MOST_B_FRAMES;
        }
        // The library copies a picture when it is handed in, so it keeps no surface: one more than
        // may be on their way.
        let pool = SurfacePool::on_host(config.shape, config.surfaces_in_flight + 1);
        announce(&pool);
        let mut handle = open_handle(&config)?;
        let depth = handle.depth();
        let delay = match (config.tuning, depth.b_frames) {
            (Tuning::LowLatency, 0) => 0,
            // Measured 2 * b + 5; the frames in the lookahead, one mini-group that is decided
            // together, those in the frame threads, and their hand-over.
            _ => depth.lookahead + 2 * depth.b_frames + depth.frame_threads + 8,
        };
        Ok(Self {
            handle,
            successor: None,
            pool,
            config,
            delay,
            next_number: 0,
            held: VecDeque::with_capacity(delay + 8),
            decoding: DecodingTimes::new(&config, delay + 8),
        })
    }

    /// One call of the library; true if it gave a picture.
    fn step(
        &mut self,
        input: Option<(&I420Surface, i64, bool)>,
        out: &mut EncodedQueue,
    ) -> Result<bool, EncodeError> {
        let planes = input.map(|(surface, number, force)| (surface.planes(), number, force));
        let input = planes
            .as_ref()
            .map(|(planes, n, force)| (planes, *n, *force));
        let coded = self
            .handle
            .encode(input)
            .map_err(|status| failed("encoder_encode", status))?;
        let Some(coded) = coded else { return Ok(false) };
        let at = self
            .held
            .iter()
            .position(|(number, _)| *number == coded.number);
        let Some((_, mut picture)) = at.and_then(|at| self.held.remove(at)) else {
            return Err(failed(
                "encoder_encode: unknown picture number",
                coded.number,
            ));
        };
        picture.data = out.buffer();
        coded.append_to(&mut picture.data);
        picture.key = coded.key;
        picture.dts = self.decoding.next(picture.pts);
        out.push(picture);
        Ok(true)
    }

    fn drain(&mut self, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        while self.step(None, out)? {}
        match self.held.len() {
            0 => Ok(()),
            left => Err(failed("flush: pictures without access unit", left as i64)),
        }
    }
}

impl EncoderBackend for X265 {
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
        if let Some(successor) = self.successor.take() {
            self.drain(out)?;
            self.handle = successor;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.held
            .push_back((number, EncodedPicture::of(snapshot, Vec::new())));
        self.decoding.submitted(snapshot.time);
        self.step(Some((surface, number, picture.force_key)), out)?;
        Ok(())
    }

    fn flush(&mut self, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        self.drain(out)
    }

    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), EncodeError> {
        let unsupported = |what: &str| EncodeError::Unsupported {
            encoder: NAME,
            what: what.to_owned(),
        };
        if !matches!(self.config.rate, RateControl::Bitrate(_)) {
            return Err(unsupported("a bit rate beside a constant quality"));
        }
        if bits_per_second == 0 {
            return Err(unsupported("a bit rate of 0"));
        }
        if self.config.rate == RateControl::Bitrate(bits_per_second) {
            return Ok(());
        }
        // `encoder_reconfig` of libx265 3.5 accepts another rate and goes on with the old one
        // (the contract test measures it), so the way is another encoder: it costs an IDR.
        let changed = EncoderConfig {
            rate: RateControl::Bitrate(bits_per_second),
            ..self.config
        };
        self.successor = Some(open_handle(&changed)?);
        self.config = changed;
        Ok(())
    }

    fn b_frames(&self) -> u32 {
        self.config.b_frames
    }

    fn intra_refresh(&self) -> bool {
        self.config.intra_refresh
    }

    fn delay(&self) -> usize {
        self.delay
    }
}

/// Decoding times for access units that come in coding order.
///
/// Without a pyramid a picture is decoded at most one picture ahead of its turn, so the n-th
/// access unit gets the time of the picture submitted before the n-th, and the first a time one
/// frame period before the first picture: never after its own presentation, strictly increasing.
#[derive(Debug)]
struct DecodingTimes {
    reordered: bool,
    period: Duration,
    submitted: VecDeque<MediaTime>,
    started: bool,
}

impl DecodingTimes {
    fn new(config: &EncoderConfig, capacity: usize) -> Self {
        Self {
            reordered: config.b_frames > 0,
            period: Duration::from_secs_f64(1.0 / config.frame_rate.per_second()),
            submitted: VecDeque::with_capacity(capacity),
            started: false,
        }
    }

    fn submitted(&mut self, time: MediaTime) {
        if self.reordered {
            if !self.started {
                self.started = true;
                let before = time.as_nanos() - self.period.as_nanos() as i64;
                self.submitted.push_back(MediaTime(before));
            }
            self.submitted.push_back(time);
        }
    }

    /// The decoding time of the next access unit, which is shown at `pts`.
    fn next(&mut self, pts: MediaTime) -> MediaTime {
        if !self.reordered {
            return pts;
        }
        self.submitted.pop_front().map_or(pts, |dts| dts.min(pts))
    }
}

fn open_handle(config: &EncoderConfig) -> Result<Handle, EncodeError> {
    let preset = preset(config.preset, config.tuning);
    let tuning = match config.tuning {
        Tuning::LowLatency => Some("zerolatency"),
        Tuning::Quality => None,
    };
    Handle::open(preset, tuning, &settings(config)).map_err(|reason| {
        let (width, height) = config.coded_size();
        refused(format!("{width}x{height}, preset {preset}: {reason}"))
    })
}

/// What the four words mean here.
fn preset(preset: Preset, tuning: Tuning) -> &'static str {
    match (preset, tuning) {
        (Preset::Fastest, _) => "ultrafast",
        (Preset::Fast, Tuning::LowLatency) => "superfast",
        (Preset::Fast, Tuning::Quality) => "veryfast",
        (Preset::Balanced, _) => "medium",
        (Preset::Quality, _) => "slow",
    }
}

/// Everything by the names of x265's own command line, in the order in which it is set.
fn settings(config: &EncoderConfig) -> Vec<(&'static str, String)> {
    let (width, height) = config.coded_size();
    let rate = config.frame_rate;
    // x265 takes -1 for "never again"; the first picture is an IDR all the same.
    let gop = match config.gop {
        0 => "-1".to_owned(),
        gop => gop.to_string(),
    };
    let mut list = Vec::new();
    // No block may be larger than the picture.
    match width.min(height) {
        0..32 => list.push(("ctu", "16".to_owned())),
        32..64 => list.push(("ctu", "32".to_owned())),
        _ => {}
    }
    list.extend([
        ("log-level", "none".to_owned()),
        ("input-res", format!("{width}x{height}")),
        ("fps", format!("{}/{}", rate.num, rate.den)),
        ("bframes", config.b_frames.to_string()),
        ("b-pyramid", "0".to_owned()),
        ("keyint", gop.clone()),
        ("min-keyint", gop),
        ("scenecut", "0".to_owned()),
        ("open-gop", "0".to_owned()),
        ("pools", workers()),
        // Parameter sets in front of every IDR and nothing that RTP and FLV do not want.
        ("annexb", "1".to_owned()),
        ("repeat-headers", "1".to_owned()),
        ("aud", "0".to_owned()),
        ("info", "0".to_owned()),
        ("hrd", "0".to_owned()),
        ("range", "limited".to_owned()),
        ("colorprim", "bt709".to_owned()),
        ("transfer", "bt709".to_owned()),
        ("colormatrix", "bt709".to_owned()),
    ]);
    if config.tuning == Tuning::LowLatency {
        // Each frame thread is a picture of delay. A mini-group has to fit into the lookahead.
        let lookahead = match config.b_frames {
            0 => 0,
            b_frames => b_frames + 1,
        };
        list.extend([
            ("frame-threads", "1".to_owned()),
            ("rc-lookahead", lookahead.to_string()),
            ("b-adapt", "0".to_owned()),
        ]);
    } else {
        if matches!(cores(), 2..=3) {
            // By itself it takes one there, and a core waits at the end of each picture. On more
            // cores it takes two or more.
            list.push(("frame-threads", "2".to_owned()));
        }
        if config.preset == Preset::Balanced && config.b_frames == 0 {
            // Twenty by itself, each of 8 MB in 1080p. What the last five say of a picture's worth
            // to those behind it is little where nothing is reordered.
            list.push(("rc-lookahead", "15".to_owned()));
        }
    }
    if config.intra_refresh {
        // A column of blocks that walks over the picture once each `keyint` pictures. It must not be
        // predicted from its neighbours that are not yet fresh, or a loss never heals (the contract
        // test sees it).
        list.push(("intra-refresh", "1".to_owned()));
        list.push(("constrained-intra", "1".to_owned()));
    }
    list.extend(rate_settings(config));
    list
}

fn rate_settings(config: &EncoderConfig) -> Vec<(&'static str, String)> {
    let bits = match config.rate {
        RateControl::Quality(quality) => {
            return vec![("crf", quality.min(51).to_string())];
        }
        RateControl::Bitrate(bits) => f64::from(bits),
    };
    // How far the rate may swing: four pictures where latency counts, for a larger picture is a
    // later one; a second where it does not. With two, a real clip stays 12 % below what was
    // asked, with four 2 % (scripts/clip_check.sh).
    let buffer = match config.tuning {
        Tuning::LowLatency => 4.0 * bits / config.frame_rate.per_second(),
        Tuning::Quality => bits,
    };
    let kilobits = |bits: f64| ((bits / 1000.0).round() as u64).max(1).to_string();
    vec![
        ("bitrate", kilobits(bits)),
        ("vbv-maxrate", kilobits(bits)),
        ("vbv-bufsize", kilobits(buffer)),
    ]
}

/// Threads that code the rows of one picture side by side; they cost no delay.
fn workers() -> String {
    match cores() {
        1 => "none".to_owned(),
        cores => cores.min(16).to_string(),
    }
}

fn cores() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

fn refused(reason: String) -> EncodeError {
    EncodeError::Open {
        encoder: NAME,
        reason,
    }
}

fn failed(call: &'static str, status: i64) -> EncodeError {
    EncodeError::Failed {
        encoder: NAME,
        call,
        status,
        detail: "libx265 gives no words for it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_times_are_increasing_and_never_after_presentation() {
        let ms = |n: i64| MediaTime(n * 1_000_000);
        let mut times = DecodingTimes {
            reordered: true,
            period: Duration::from_millis(40),
            submitted: VecDeque::new(),
            started: false,
        };
        (0..5).for_each(|n| times.submitted(ms(n * 40)));
        // I0 P3 b1 b2 P4: the coding order of two B-frames
        let dts: Vec<_> = [0, 120, 40, 80, 160].map(|pts| times.next(ms(pts))).into();
        assert_eq!(dts, [-40, 0, 40, 80, 120].map(ms));
    }

    #[test]
    fn the_names_of_the_settings_are_known_to_the_library() {
        // A wrong name is an error of `open_handle`, for every combination of tables above.
        for tuning in [Tuning::LowLatency, Tuning::Quality] {
            for b_frames in [0, 2] {
                let config = EncoderConfig {
                    codec: Codec::H265,
                    shape: crate::frame::PictureShape {
                        width: 160,
                        height: 96,
                        format: crate::frame::PixelFormat::Bgr,
                        encoded: None,
                    },
                    frame_rate: super::super::FrameRate::THIRTY,
                    rate: RateControl::Bitrate(200_000),
                    gop: 30,
                    b_frames,
                    intra_refresh: b_frames == 0,
                    preset: Preset::Fastest,
                    tuning,
                    surfaces_in_flight: 1,
                };
                assert!(X265::open(&config, &mut |_| ()).is_ok());
            }
        }
        assert!(version().is_some());
    }
}
