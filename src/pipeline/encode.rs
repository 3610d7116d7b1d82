//! The encode stage: snapshots in, access units out to every sink. Owns the encoder.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::bitstream::{AccessUnitPool, BitstreamError, sei};
use crate::config::EncoderSettings;
use crate::control::pose::{PictureRef, PoseStore};
use crate::encode::fallback::{Broken, Encoder, EncoderCounters, Outcome};
use crate::encode::registry::{EncoderChoice, default_bitrate};
use crate::encode::{
    EncodeError, EncodedQueue, EncoderConfig, FrameRate, Picture, RateControl, Tuning,
};
use crate::fanout::Fanout;
use crate::frame::{Snapshot, SurfacePool};
use crate::queue::{LatestQueue, Popped};
use crate::trace::{LatencyHistogram, Percentiles, Stage};

use super::bitrate::{BitrateAnswer, BitrateRequests};
use super::keyframe::KeyFrameRequests;
use super::reader::Reader;
use super::stop::{StopReason, StopToken};
use super::surfaces::{SurfaceExchange, Wish};

/// What the stage counts and measures.
#[derive(Debug, Default)]
pub struct EncodeStats {
    /// Access units handed to the fan-out.
    pub units: AtomicU64,
    pub key_frames: AtomicU64,
    /// Bytes of access units.
    pub bytes: AtomicU64,
    /// Largest access unit.
    pub largest: AtomicU64,
    /// Snapshots whose surface belonged to an encoder that was replaced.
    pub stale: AtomicU64,
    /// Access units of the producer that passthrough left out while it waited for a key frame.
    pub left_out: AtomicU64,
    /// Pictures that went with an encoder that broke.
    pub lost: AtomicU64,
    /// What came out of an encoder and is no access unit.
    pub refused: AtomicU64,
    /// Encoders opened.
    pub opened: AtomicU64,
    /// Times an encoder was lost and the next candidate took over.
    pub fallbacks: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default, Clone)]
struct Inner {
    encoder: Option<EncoderReport>,
    wait_for_read: LatencyHistogram,
    snapshot: LatencyHistogram,
    queue: LatencyHistogram,
    encode: LatencyHistogram,
    notice_to_encoded: LatencyHistogram,
}

/// Which encoder runs, and how.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct EncoderReport {
    pub name: String,
    pub width: u32,
    pub height: u32,
    pub pixel_format: &'static str,
    pub b_frames: u32,
    pub intra_refresh: bool,
    /// bit/s; `None` with a constant quality or passthrough.
    pub bitrate: Option<u32>,
    pub quality: Option<u8>,
    pub nominal_fps: f64,
}

/// Microseconds by stage, as a report shows them.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct StageLatencyReport {
    /// Notice to the first byte read.
    pub notice_to_read: Percentiles,
    /// The coherent read into the encoder's surface.
    pub snapshot: Percentiles,
    /// In the queue.
    pub queued: Percentiles,
    /// Inside the encoder, access unit indexed.
    pub encode: Percentiles,
    pub notice_to_encoded: Percentiles,
}

impl EncodeStats {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn encoder(&self) -> Option<EncoderReport> {
        self.inner().encoder.clone()
    }

    pub fn latency(&self) -> StageLatencyReport {
        let inner = self.inner();
        StageLatencyReport {
            notice_to_read: inner.wait_for_read.percentiles(),
            snapshot: inner.snapshot.percentiles(),
            queued: inner.queue.percentiles(),
            encode: inner.encode.percentiles(),
            notice_to_encoded: inner.notice_to_encoded.percentiles(),
        }
    }

    /// Adds what an encoder has counted since `counted`. Encoders come and go, the sums stay.
    fn add(&self, counted: &mut EncoderCounters, now: EncoderCounters) {
        for (sum, before, now) in [
            (&self.stale, counted.stale, now.stale),
            (&self.left_out, counted.left_out, now.left_out),
            (&self.lost, counted.lost, now.lost),
            (&self.fallbacks, counted.fallbacks, now.fallbacks),
        ] {
            // Relaxed: a counter for reports.
            sum.fetch_add(now - before, Ordering::Relaxed);
        }
        *counted = now;
    }

    fn record(&self, trace: &crate::trace::FrameTrace) {
        let mut inner = self.inner();
        let mut put = |from, to, into: fn(&mut Inner) -> &mut LatencyHistogram| {
            if let Some(micros) = trace.micros_between(from, to) {
                into(&mut inner).record(micros);
            }
        };
        put(Stage::Notice, Stage::SnapshotStart, |i| {
            &mut i.wait_for_read
        });
        put(Stage::SnapshotStart, Stage::SnapshotEnd, |i| {
            &mut i.snapshot
        });
        put(Stage::SnapshotEnd, Stage::Dequeued, |i| &mut i.queue);
        put(Stage::Dequeued, Stage::Encoded, |i| &mut i.encode);
        put(Stage::Notice, Stage::Encoded, |i| &mut i.notice_to_encoded);
    }
}

/// What the stage works with.
pub struct EncodeStage<'a> {
    pub settings: &'a EncoderSettings,
    pub embed_timestamps: bool,
    pub surfaces_in_flight: usize,
    pub exchange: &'a SurfaceExchange,
    pub queue: &'a LatestQueue<Snapshot>,
    pub key_frames: &'a KeyFrameRequests,
    pub bitrate: &'a BitrateRequests,
    pub stats: &'a EncodeStats,
    pub stop: &'a StopToken,
    /// Who fills the surfaces, where another thread may go on with it.
    pub reader: Option<&'a Arc<Reader>>,
}

impl EncodeStage<'_> {
    /// Runs until the queue is closed and drained. The fan-out ends with it, and so do the sinks'
    /// queues.
    ///
    /// # Errors
    ///
    /// If no encoder opens, or the last one is lost.
    pub fn run(self, fanout: Fanout, poses: Option<PoseStore>) -> Result<(), EncodeError> {
        let result = Line {
            poses,
            pool: AccessUnitPool::new(self.settings.codec),
            encoded: EncodedQueue::new(),
            fanout: &fanout,
            encoder: None,
            broken: Broken::default(),
            epoch: None,
            rate: RateEstimate::default(),
            wanted_bitrate: None,
            coded_since_open: 0,
            stage: &self,
        }
        .run();
        self.exchange.close();
        if result.is_err() {
            self.stop.stop(StopReason::Error);
            // Snapshots that still wait go back to their pool.
            self.queue.close();
        }
        result
    }
}

struct Line<'a> {
    stage: &'a EncodeStage<'a>,
    pool: AccessUnitPool,
    encoded: EncodedQueue,
    fanout: &'a Fanout,
    encoder: Option<Open>,
    broken: Broken,
    epoch: Option<u32>,
    rate: RateEstimate,
    /// Bodies on their way to their pictures.
    poses: Option<PoseStore>,
    /// Asked for while running; also for the encoder of another picture size.
    wanted_bitrate: Option<u32>,
    coded_since_open: u32,
}

/// Coding the first ones takes longer than those that follow: cold caches, and a key frame.
const FIRST_PICTURES: u32 = 8;

struct Open {
    encoder: Encoder,
    /// What of its counters is in [`EncodeStats`] already.
    counted: EncoderCounters,
    config: EncoderConfig,
    /// The nominal rate is a guess: the bit rate is corrected once the real one is known.
    guessed_rate: bool,
    /// What a bit rate is multiplied with, as the encoder was opened for another frame rate than
    /// the source has.
    correction: f64,
}

impl Line<'_> {
    fn run(mut self) -> Result<(), EncodeError> {
        loop {
            if let Some(wish) = self.stage.exchange.take_wish() {
                self.open(wish)?;
            }
            if let Some(wanted) = self.stage.bitrate.take() {
                let result = self.change_bitrate(wanted);
                self.stage.bitrate.answer(BitrateAnswer { wanted, result });
            }
            let deadline = Instant::now() + Duration::from_millis(500);
            match self.stage.queue.pop(deadline) {
                Popped::Item(snapshot) => self.encode(snapshot)?,
                Popped::Nudged => {}
                Popped::TimedOut => self.look_after_reader()?,
                Popped::Closed => break,
            }
        }
        self.finish_encoder()
    }

    /// No frame comes: perhaps since the encoder's driver keeps the thread that reads them.
    fn look_after_reader(&mut self) -> Result<(), EncodeError> {
        let (Some(open), Some(reader)) = (&mut self.encoder, self.stage.reader) else {
            return Ok(());
        };
        let Some(why) = open.encoder.keeps_the_reader() else {
            return Ok(());
        };
        let left = open.encoder.leave(why);
        let stats = self.stage.stats;
        stats.add(&mut open.counted, open.encoder.counters());
        if let Err(error) = left {
            reader.give_up();
            return Err(error);
        }
        let (shape, surfaces) = (open.config.shape, open.encoder.surfaces());
        self.stage.exchange.offer(shape, surfaces);
        self.show_encoder();
        reader.replace();
        Ok(())
    }

    fn open(&mut self, wish: Wish) -> Result<(), EncodeError> {
        self.finish_encoder()?;
        let settings = self.stage.settings;
        let told = wish
            .frame_rate
            .filter(|(num, den)| *num > 0 && *den > 0)
            .map(|(num, den)| FrameRate {
                num: num.into(),
                den: den.into(),
            });
        let known = settings.frame_rate.or(told);
        let frame_rate = known.unwrap_or(FrameRate::THIRTY);
        let shape = wish.shape;
        let wanted = self.wanted_bitrate.map(RateControl::Bitrate);
        let rate = wanted.or(settings.rate).unwrap_or_else(|| {
            RateControl::Bitrate(default_bitrate(
                shape.width,
                shape.height,
                frame_rate,
                settings.codec,
            ))
        });
        let config = EncoderConfig {
            codec: settings.codec,
            shape,
            frame_rate,
            rate,
            gop: settings.gop,
            b_frames: settings.b_frames,
            intra_refresh: settings.intra_refresh,
            preset: settings.preset,
            tuning: Tuning::LowLatency,
            surfaces_in_flight: self.stage.surfaces_in_flight,
        };
        let exchange = self.stage.exchange;
        // The segment holds a frame no longer than opening may take: ingest goes on as soon as there
        // are surfaces, and its first frames wait until the encoder has found its pace.
        exchange.set_starting(true);
        self.coded_since_open = 0;
        let mut offer = |surfaces: &SurfacePool| exchange.offer(shape, surfaces.clone());
        let opened = Encoder::open_announcing(settings.choice, config, &self.broken, &mut offer);
        let stats = self.stage.stats;
        let encoder = match opened {
            Err(EncodeError::Open { encoder, reason })
                if settings.choice != EncoderChoice::Nvenc
                    && stats.opened.load(Ordering::Relaxed) > 0 =>
            {
                // Whoever writes the segment says how large pictures are: that must not end a stream which
                // another size brings back. Ingest counts these as without a surface.
                log::warn!(
                    "{}x{} pictures are left out until they have another size: {encoder}: {reason}",
                    shape.width,
                    shape.height
                );
                exchange.set_starting(false);
                exchange.offer(shape, SurfacePool::new(Vec::new()));
                return Ok(());
            }
            other => other?,
        };
        stats.opened.fetch_add(1, Ordering::Relaxed);
        exchange.offer(shape, encoder.surfaces());
        self.rate = RateEstimate::default();
        self.encoder = Some(Open {
            encoder,
            counted: EncoderCounters::default(),
            config,
            guessed_rate: known.is_none(),
            correction: 1.0,
        });
        self.show_encoder();
        Ok(())
    }

    fn show_encoder(&self) {
        let Some(open) = &self.encoder else { return };
        let (config, passthrough) = (
            &open.config,
            self.stage.settings.choice == EncoderChoice::Passthrough,
        );
        let (bitrate, quality) = match config.rate {
            _ if passthrough => (None, None),
            RateControl::Bitrate(rate) => (Some(rate), None),
            RateControl::Quality(quality) => (None, Some(quality)),
        };
        let report = EncoderReport {
            name: open.encoder.name().to_owned(),
            width: config.shape.width,
            height: config.shape.height,
            pixel_format: config.shape.format.name(),
            b_frames: open.encoder.b_frames(),
            intra_refresh: open.encoder.intra_refresh(),
            bitrate,
            quality,
            nominal_fps: config.frame_rate.per_second(),
        };
        if passthrough {
            log::info!(
                "encoder {}: the producer's own {} stream",
                report.name,
                config.codec
            );
        } else {
            log::info!(
                "encoder {}: {} {}x{} from {}, {}, {:.2} fps{}, {} every {}, {} B-frames",
                report.name,
                config.codec,
                report.width,
                report.height,
                report.pixel_format,
                match (bitrate, quality) {
                    (Some(rate), _) => format!("{:.3} Mbit/s", f64::from(rate) / 1e6),
                    (_, Some(quality)) => format!("quality {quality}"),
                    _ => "no rate control".to_owned(),
                },
                report.nominal_fps,
                if open.guessed_rate { " (a guess)" } else { "" },
                if report.intra_refresh {
                    "intra refresh"
                } else {
                    "key frame"
                },
                config.gop,
                report.b_frames,
            );
        }
        self.stage.stats.inner().encoder = Some(report);
    }

    fn encode(&mut self, mut snapshot: Snapshot) -> Result<(), EncodeError> {
        let stats = self.stage.stats;
        snapshot.trace.stamp(Stage::Dequeued, Instant::now());
        self.correct_rate(&snapshot);
        let Some(open) = &mut self.encoder else {
            stats.stale.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let new_epoch = self.epoch != Some(snapshot.epoch);
        let force_key = self.stage.key_frames.take() || new_epoch;
        let epoch = snapshot.epoch;
        let picture = Picture {
            snapshot,
            force_key,
        };
        let outcome = open.encoder.encode(picture, &mut self.encoded)?;
        stats.add(&mut open.counted, open.encoder.counters());
        self.coded_since_open += 1;
        if self.coded_since_open == FIRST_PICTURES {
            self.stage.exchange.set_starting(false);
        }
        match outcome {
            Outcome::Taken => self.epoch = Some(epoch),
            Outcome::LeftOut | Outcome::Stale => {}
            Outcome::Replaced => {
                let (shape, surfaces) = (open.config.shape, open.encoder.surfaces());
                self.stage.exchange.offer(shape, surfaces);
                self.show_encoder();
            }
        }
        self.hand_out();
        Ok(())
    }

    /// A wrong nominal rate is a wrong bit rate, as each picture gets its share of a second. Once
    /// the real rate is known the share is corrected, without a key frame.
    fn correct_rate(&mut self, snapshot: &Snapshot) {
        let Some(measured) = self.rate.add(snapshot) else {
            return;
        };
        let Some(open) = self.encoder.as_mut().filter(|open| open.guessed_rate) else {
            return;
        };
        open.guessed_rate = false;
        let nominal = open.config.frame_rate.per_second();
        if let RateControl::Bitrate(rate) = open.config.rate
            && (measured / nominal - 1.0).abs() > 0.05
        {
            let correction = nominal / measured;
            match open
                .encoder
                .set_bitrate((f64::from(rate) * correction) as u32)
            {
                Ok(()) => {
                    open.correction = correction;
                    log::info!(
                        "the source runs at {measured:.2} fps, not {nominal:.2}: rate control adjusted"
                    );
                }
                Err(error) => log::warn!(
                    "the source runs at {measured:.2} fps, not {nominal:.2}, and the bit rate is \
                     off by as much ({error}): give --fps"
                ),
            }
        }
    }

    /// Gives the encoder's name, or why it keeps its rate.
    fn change_bitrate(&mut self, wanted: u32) -> Result<String, String> {
        let Some(open) = &mut self.encoder else {
            return Err("no encoder is open: no frame has come yet".to_owned());
        };
        if let RateControl::Quality(quality) = open.config.rate {
            return Err(format!(
                "the encoder runs at the constant quality {quality}, which has no bit rate"
            ));
        }
        let corrected = (f64::from(wanted) * open.correction) as u32;
        let name = open.encoder.name().to_owned();
        open.encoder
            .set_bitrate(corrected)
            .map_err(|error| error.to_string())?;
        open.config.rate = RateControl::Bitrate(wanted);
        self.wanted_bitrate = Some(wanted);
        log::info!(
            "{name}: {:.3} Mbit/s from here on, as asked for",
            f64::from(wanted) / 1e6
        );
        if let Some(report) = &mut self.stage.stats.inner().encoder {
            report.bitrate = Some(wanted);
        }
        Ok(name)
    }

    fn hand_out(&mut self) {
        let stats = self.stage.stats;
        while let Some(mut picture) = self.encoded.pop() {
            picture.trace.stamp(Stage::Encoded, Instant::now());
            if self.stage.embed_timestamps {
                picture.trace.encoded_unix_ns = unix_now();
            }
            let (embed, codec) = (self.stage.embed_timestamps, self.stage.settings.codec);
            let mut poses = self.poses.as_mut();
            let pose = poses
                .as_deref_mut()
                .and_then(|poses| poses.pair(picture.capture_ts_ns));
            let records = poses.as_ref().is_some_and(|poses| poses.with_record());
            let made = self.pool.make(picture, &mut self.encoded, |unit| {
                if embed {
                    let stamps = sei::FrameStamp {
                        capture_unix_ns: unit.trace.capture_unix_ns.unwrap_or(0),
                        encoded_unix_ns: unit.trace.encoded_unix_ns.unwrap_or(0),
                        frame_id: unit.frame_id,
                    };
                    unit.insert_before_picture(|out| stamps.write(codec, out));
                }
                if let Some((pose, pairing)) = pose.as_ref().filter(|_| records) {
                    unit.insert_before_picture(|out| pose.write_sei(codec, *pairing, out));
                }
            });
            match made {
                Ok(unit) => {
                    stats.units.fetch_add(1, Ordering::Relaxed);
                    if unit.key {
                        stats.key_frames.fetch_add(1, Ordering::Relaxed);
                    }
                    let len = unit.payload_len() as u64;
                    stats.bytes.fetch_add(len, Ordering::Relaxed);
                    stats.largest.fetch_max(len, Ordering::Relaxed);
                    stats.record(&unit.trace);
                    self.fanout.send(&unit);
                    if let (Some(poses), Some((pose, pairing))) = (poses, pose) {
                        let picture = PictureRef {
                            frame_id: unit.frame_id,
                            capture_ts_ns: unit.capture_ts_ns,
                            pts_ns: unit.pts.as_nanos(),
                            pairing,
                        };
                        poses.file(pose, picture);
                    }
                }
                Err(error) => {
                    let refused = stats.refused.fetch_add(1, Ordering::Relaxed) + 1;
                    // Ever more rarely: a producer's own stream may be spoilt picture by picture.
                    if error != BitstreamError::NoParameterSets && refused.is_power_of_two() {
                        log::warn!("the encoder's output is no access unit: {error}");
                    }
                    self.stage.key_frames.ask();
                }
            }
        }
    }

    fn finish_encoder(&mut self) -> Result<(), EncodeError> {
        if let Some(mut open) = self.encoder.take() {
            let flushed = open.encoder.flush(&mut self.encoded);
            self.broken = open.encoder.broken().clone();
            let stats = self.stage.stats;
            stats.add(&mut open.counted, open.encoder.counters());
            flushed?;
            self.hand_out();
        }
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if let Some(poses) = &mut self.poses {
            poses.close();
        }
    }
}

fn unix_now() -> Option<u64> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    u64::try_from(now.as_nanos()).ok()
}

/// The source's rate over its first second or so, from frame ids and media times. Frames that were
/// lost on the way here count too: they are the encoder's to drop, not the source's.
#[derive(Debug, Default)]
struct RateEstimate {
    first: Option<First>,
    done: bool,
}

#[derive(Debug, Clone, Copy)]
struct First {
    frame_id: u32,
    epoch: u32,
    nanos: i64,
}

impl RateEstimate {
    const FRAMES: u32 = 30;

    /// Gives the rate once, when enough frames have passed.
    fn add(&mut self, snapshot: &Snapshot) -> Option<f64> {
        if self.done {
            return None;
        }
        let now = First {
            frame_id: snapshot.info.frame_id,
            epoch: snapshot.epoch,
            nanos: snapshot.time.as_nanos(),
        };
        let first = *self.first.get_or_insert(now);
        if first.epoch != now.epoch {
            self.first = Some(now);
            return None;
        }
        let frames = now.frame_id.wrapping_sub(first.frame_id);
        if frames < Self::FRAMES {
            return None;
        }
        self.done = true;
        let seconds = (now.nanos - first.nanos) as f64 / 1e9;
        (seconds > 0.0).then(|| f64::from(frames) / seconds)
    }
}
