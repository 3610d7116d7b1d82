//! The encoder that the pipeline drives: the best candidate that opens, and the next one when
//! it breaks. One way: hardware that broke is not tried again in this run, nor for pictures of
//! another size ([`Broken`]).

use crate::frame::SurfacePool;
use crate::time::MediaTime;

use super::registry::{Announce, CANDIDATES, Candidate, EncoderChoice, Kind};
use super::{EncodeError, EncodedQueue, EncoderBackend, EncoderConfig, Picture, RateControl};

/// A backend that was given this many pictures in a row and gave no access unit is broken.
///
/// Pictures, not time: a stopped camera is no broken encoder. A backend whose normal delay is
/// longer gets that.
pub const SILENT_PICTURES: usize = 60;

/// Hardware that broke in this run: handed from one encoder to the next, as when the pictures change
/// their size.
///
/// A driver that hung or lost its GPU would cost every such change the time that it takes to find out again.
/// A refusal at open is none of this: another size may be one that the GPU codes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Broken(Vec<&'static str>);

impl Broken {
    fn add(&mut self, candidate: &Candidate) {
        // A library's state ends with the encoder that held it.
        if candidate.kind == Kind::Hardware && !self.has(candidate) {
            self.0.push(candidate.name);
        }
    }

    fn has(&self, candidate: &Candidate) -> bool {
        self.0.contains(&candidate.name)
    }
}

/// An open encoder, whichever candidate it is at the moment.
///
/// When [`Encoder::encode`] gives [`Outcome::Replaced`] the surfaces are others: take them from
/// [`Encoder::surfaces`] again. Lives on one thread; a driver may insist on that.
pub struct Encoder {
    choice: EncoderChoice,
    config: EncoderConfig,
    /// The candidates that were not tried yet.
    rest: std::vec::IntoIter<Candidate>,
    broken: Broken,
    backend: Box<dyn EncoderBackend>,
    /// The one that the backend is of.
    candidate: Candidate,
    /// Pictures in a row without access unit.
    silent: usize,
    /// Pictures that the backend took and has not given back.
    held: u64,
    last_dts: Option<MediaTime>,
    force_key: bool,
    counters: EncoderCounters,
}

/// What became of a picture that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The backend took it; the queue has what is ready, which may be nothing yet.
    Taken,
    /// No access unit, on purpose: passthrough waits for a key frame.
    LeftOut,
    /// Its surface is of an encoder that is gone. Dropped.
    Stale,
    /// The backend broke and the next candidate has its place. This picture and those that the
    /// backend still held are lost; the next one becomes an IDR. New surfaces.
    Replaced,
}

/// What the encoder has counted. Every picture is in `units`, `left_out`, `stale` or `lost`, or
/// still held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct EncoderCounters {
    /// Pictures handed in.
    pub pictures: u64,
    /// Access units given out.
    pub units: u64,
    /// Key frames among them.
    pub keys: u64,
    /// Pictures that passthrough left out.
    pub left_out: u64,
    /// Pictures whose surface was of an encoder that is gone.
    pub stale: u64,
    /// Pictures that went with a broken backend.
    pub lost: u64,
    /// Times a broken backend was replaced.
    pub fallbacks: u64,
    /// Candidates that were refused, at open or later.
    pub refused: u64,
}

impl Encoder {
    /// Opens the best candidate of this build that `choice` allows.
    ///
    /// # Errors
    ///
    /// [`EncodeError::Open`] of the last candidate if none opens.
    pub fn open(choice: EncoderChoice, config: EncoderConfig) -> Result<Self, EncodeError> {
        Self::open_announcing(choice, config, &Broken::default(), &mut |_| ())
    }

    /// As [`Encoder::open`], without what is `broken`; `announce` is told surfaces as soon as a
    /// candidate has them. They are those of the encoder that opens in the end, unless it fails
    /// later than that: the next candidate announces its own.
    ///
    /// # Errors
    ///
    /// As [`Encoder::open`].
    pub fn open_announcing(
        choice: EncoderChoice,
        config: EncoderConfig,
        broken: &Broken,
        announce: &mut Announce<'_>,
    ) -> Result<Self, EncodeError> {
        if choice == EncoderChoice::Auto && !CANDIDATES.iter().any(|c| c.kind == Kind::Hardware) {
            log::info!("encoder: wanted nvenc, this build has none: coding in software");
        }
        Self::open_first(choice, config, CANDIDATES, broken, announce)
    }

    /// As [`Encoder::open`], with other candidates.
    ///
    /// # Errors
    ///
    /// As [`Encoder::open`].
    pub fn open_among(
        choice: EncoderChoice,
        config: EncoderConfig,
        candidates: &[Candidate],
    ) -> Result<Self, EncodeError> {
        Self::open_first(choice, config, candidates, &Broken::default(), &mut |_| ())
    }

    fn open_first(
        choice: EncoderChoice,
        config: EncoderConfig,
        candidates: &[Candidate],
        broken: &Broken,
        announce: &mut Announce<'_>,
    ) -> Result<Self, EncodeError> {
        let fitting = |c: &&Candidate| choice.allows(c) && c.codecs.contains(&config.codec);
        let fitting = candidates.iter().filter(fitting);
        let (out, rest): (Vec<_>, Vec<_>) = fitting.copied().partition(|c| broken.has(c));
        for candidate in out {
            log::info!(
                "encoder: {} broke earlier in this run and is not opened again",
                candidate.name
            );
        }
        let mut rest = rest.into_iter();
        let mut counters = EncoderCounters::default();
        let mut broken = broken.clone();
        let first = next(
            &mut rest,
            &config,
            &mut counters,
            &mut broken,
            None,
            announce,
        );
        let (backend, candidate) =
            first.map_err(|why| why.unwrap_or(choice.nothing_for(config.codec)))?;
        Ok(Self {
            choice,
            config,
            rest,
            broken,
            backend,
            candidate,
            silent: 0,
            held: 0,
            last_dts: None,
            force_key: false,
            counters,
        })
    }

    /// The candidate in use, as the operator knows it.
    pub fn name(&self) -> &'static str {
        self.backend.name()
    }

    pub fn kind(&self) -> Kind {
        self.candidate.kind
    }

    /// The surfaces that ingest fills.
    pub fn surfaces(&self) -> SurfacePool {
        self.backend.surfaces()
    }

    /// B-frames really in use.
    pub fn b_frames(&self) -> u32 {
        self.backend.b_frames()
    }

    /// See [`EncoderBackend::intra_refresh`].
    pub fn intra_refresh(&self) -> bool {
        self.backend.intra_refresh()
    }

    /// Pictures that may be held back.
    pub fn delay(&self) -> usize {
        self.backend.delay()
    }

    /// Times that a broken backend was replaced.
    pub fn fallbacks(&self) -> u64 {
        self.counters.fallbacks
    }

    pub fn counters(&self) -> EncoderCounters {
        self.counters
    }

    /// Hardware that broke, here or in an encoder before.
    pub fn broken(&self) -> &Broken {
        &self.broken
    }

    /// What it was opened with, with the bit rate in force.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Codes one picture and puts what is ready into `out`.
    ///
    /// # Errors
    ///
    /// Only if the backend broke and no candidate is left, as with an explicit `--encoder nvenc`.
    pub fn encode(
        &mut self,
        mut picture: Picture,
        out: &mut EncodedQueue,
    ) -> Result<Outcome, EncodeError> {
        self.counters.pictures += 1;
        picture.force_key |= std::mem::take(&mut self.force_key);
        let force_key = picture.force_key;
        let (ready, left_out) = (out.len(), out.left_out());
        self.held += 1;
        let result = self.backend.encode(picture, out);
        let given = self.take_stock(out, ready);
        match result {
            Err(EncodeError::ForeignSurface { .. }) => {
                self.counters.stale += 1;
                self.held = self.held.saturating_sub(1);
                // Somebody wanted this picture to be a key frame: the next one has to be.
                self.force_key = force_key;
                return Ok(Outcome::Stale);
            }
            Err(why) => return self.replace(why),
            Ok(()) if out.left_out() > left_out => {
                self.counters.left_out += 1;
                self.held = self.held.saturating_sub(1);
                return Ok(Outcome::LeftOut);
            }
            Ok(()) if given > 0 => self.silent = 0,
            Ok(()) => {
                self.silent += 1;
                let limit = SILENT_PICTURES.max(self.backend.delay() + 1);
                if self.silent >= limit {
                    return self.replace(EncodeError::Failed {
                        encoder: self.backend.name(),
                        call: "encode",
                        status: 0,
                        detail: format!("{limit} pictures went in and nothing came out"),
                    });
                }
            }
        }
        Ok(Outcome::Taken)
    }

    /// [`EncoderBackend::keeps_the_reader`].
    pub fn keeps_the_reader(&self) -> Option<EncodeError> {
        self.backend.keeps_the_reader()
    }

    /// Leaves a backend that broke without a picture; the next candidate has its place, and other surfaces.
    ///
    /// # Errors
    ///
    /// `why`, or the next one's reason, if no candidate is left.
    pub fn leave(&mut self, why: EncodeError) -> Result<(), EncodeError> {
        self.replace(why).map(drop)
    }

    /// Gives out what is held back; nothing may be encoded afterwards.
    ///
    /// # Errors
    ///
    /// If the backend breaks and the choice allows no other. Where it allows others there is
    /// nothing left for them to do: what was held is counted as lost.
    pub fn flush(&mut self, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        let ready = out.len();
        let result = self.backend.flush(out);
        self.take_stock(out, ready);
        if result.is_err() {
            self.broken.add(&self.candidate);
        }
        let lost = std::mem::take(&mut self.held);
        self.counters.lost += lost;
        match result {
            Err(why) if self.choice == EncoderChoice::Auto => {
                log::warn!("encoder: {why}; {lost} pictures at the end are lost");
                Ok(())
            }
            other => other,
        }
    }

    /// Changes the bit rate from the next picture on, also for a candidate that comes later.
    ///
    /// # Errors
    ///
    /// If the backend cannot; it goes on with the rate that it has.
    pub fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), EncodeError> {
        self.backend.set_bitrate(bits_per_second)?;
        self.config.rate = RateControl::Bitrate(bits_per_second);
        Ok(())
    }

    /// Counts what came out behind the first `ready` of `out`, and keeps decoding times
    /// increasing across a change of backend. Gives their number.
    fn take_stock(&mut self, out: &mut EncodedQueue, ready: usize) -> u64 {
        let mut given = 0;
        for picture in out.iter_mut().skip(ready) {
            given += 1;
            self.counters.keys += u64::from(picture.key);
            // With B-frames a backend starts before its first picture, where the one before it
            // may have been already.
            if let Some(last) = self.last_dts {
                picture.dts = picture.dts.max(MediaTime(last.as_nanos() + 1));
            }
            self.last_dts = Some(picture.dts);
        }
        self.counters.units += given;
        self.held = self.held.saturating_sub(given);
        given
    }

    /// The next candidate in place of a broken backend.
    fn replace(&mut self, why: EncodeError) -> Result<Outcome, EncodeError> {
        self.counters.lost += std::mem::take(&mut self.held);
        self.silent = 0;
        self.counters.refused += 1;
        self.broken.add(&self.candidate);
        let next = next(
            &mut self.rest,
            &self.config,
            &mut self.counters,
            &mut self.broken,
            Some((why, self.candidate.help)),
            &mut |_| (),
        );
        let (backend, candidate) = next.map_err(|why| why.expect("a reason went in"))?;
        self.backend = backend;
        self.candidate = candidate;
        self.counters.fallbacks += 1;
        self.force_key = true;
        Ok(Outcome::Replaced)
    }
}

/// Opens the first of `rest` that opens, and says in one line what was wanted, what was found
/// and what helps. `left` is the reason for leaving the one before, and what helps there; the last
/// reason comes back if there is none.
fn next(
    rest: &mut std::vec::IntoIter<Candidate>,
    config: &EncoderConfig,
    counters: &mut EncoderCounters,
    broken: &mut Broken,
    left: Option<(EncodeError, &'static str)>,
    announce: &mut Announce<'_>,
) -> Result<(Box<dyn EncoderBackend>, Candidate), Option<EncodeError>> {
    let mut story = String::new();
    let mut tell = |reason: &EncodeError, help: &str| {
        for part in [reason.to_string().as_str(), help] {
            if !part.is_empty() {
                story.push_str(if story.is_empty() { "" } else { "; " });
                story.push_str(part);
            }
        }
    };
    let mut why = left.map(|(reason, help)| {
        tell(&reason, help);
        reason
    });
    for candidate in rest.by_ref() {
        match (candidate.open)(config, announce) {
            Ok(backend) => {
                if !story.is_empty() {
                    log::warn!("encoder: {story}; using {} from here on", candidate.name);
                }
                return Ok((backend, candidate));
            }
            Err(reason) => {
                counters.refused += 1;
                if matches!(reason, EncodeError::NoAnswer { .. }) {
                    broken.add(&candidate);
                }
                tell(&reason, candidate.help);
                why = Some(reason);
            }
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests;
