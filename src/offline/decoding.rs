//! A range of a recording's frames to pictures, past what is damaged.
//!
//! A picture that builds on one that is lost is not shown: behind a damaged frame the video goes
//! on at the next key frame, or where a stream without key frames says that its picture is whole
//! again (recovery points). Decoders that work on several frames at once tell of damage late and
//! not where it was; the frames since the last picture are then decoded once more, one by one.

use std::collections::VecDeque;
use std::ops::Range;
use std::thread::available_parallelism;

use super::decode::{self, DecodeError, DecodedPicture, Exactness};
use super::error::OfflineError;
use super::input::SourcePicture;
use super::svo::{FrameFault, FrameReader, PayloadKind, Recording, SvoError};
use crate::bitstream::annexb::nal_ranges;
use crate::bitstream::{NalUnit, ParameterSets};
use crate::encode::Codec;
use crate::pipeline::stop::StopToken;

/// Reads and decodes a range of frames, past what is damaged.
pub(super) struct Decoding<'r> {
    recording: &'r Recording,
    reader: FrameReader<'r>,
    decoder: Box<dyn decode::PictureDecoder>,
    threads: usize,
    /// The decoder has had no frame yet.
    fresh: bool,
    /// The decoder takes one frame at a time, up to and with this one. `None`: it does not.
    exact_until: Option<usize>,
    has_keys: bool,
    /// The recording says at some frames that the picture is whole there.
    heals: bool,
    ready: VecDeque<DecodedPicture>,
    /// The first frame that is not done: its picture has not been sent, nor is it known to be lost.
    next: usize,
    /// Frames that are decoded for those behind them and not shown.
    hidden: Range<usize>,
    /// A loss in front of this frame is dealt with.
    passed: Option<usize>,
    /// Pictures that were sent.
    sent: usize,
    /// Pictures that came, shown or not.
    given: bool,
    unsupported: Option<DecodeError>,
    refusals: usize,
}

impl<'r> Decoding<'r> {
    pub(super) fn new(recording: &'r Recording, threads: usize) -> Self {
        let exactness = Exactness::Late(threads);
        let has_keys = recording.frames().iter().any(|frame| frame.key);
        Self {
            recording,
            reader: FrameReader::new(recording),
            decoder: decode::open(recording.kind(), exactness),
            threads,
            fresh: true,
            exact_until: None,
            has_keys,
            heals: has_keys || recording.recovered(0).is_some(),
            ready: VecDeque::new(),
            next: 0,
            hidden: 0..0,
            passed: None,
            sent: 0,
            given: false,
            unsupported: None,
            refusals: 0,
        }
    }

    /// Gives the pictures of the frames `first` to `last` to `send` until it refuses one or
    /// `stop` is set, and returns how many of those frames there are no pictures of.
    ///
    /// In front of the first key frame pictures are shown as far as they can be made. Where neither
    /// a key frame nor a recovery point follows a damaged frame, the rest is given up as the
    /// unreadable end of the recording; where it has neither at all, everything builds on the past
    /// anyway and decoding just goes on.
    ///
    /// # Errors
    ///
    /// If nothing of this recording can be decoded.
    pub(super) fn run(
        mut self,
        first: usize,
        last: usize,
        send: &dyn Fn(SourcePicture) -> bool,
        stop: &StopToken,
    ) -> Result<usize, OfflineError> {
        let frames = self.recording.frames();
        let start = self.recording.decode_start(first);
        self.next = start;
        let mut clean = frames[start].key;
        if !clean {
            self.take_one_by_one(start);
        }
        let mut index = start;
        while !stop.is_stopped() {
            if index > last {
                match self.drain() {
                    Ok(()) if self.send(first, last, send) => break,
                    Ok(()) => return Ok(0),
                    Err(error) => {
                        index = self.look_again(last, &error);
                        continue;
                    }
                }
            }
            let frame = frames[index];
            if frame.key && self.exact_until.is_some_and(|until| index > until) {
                // Nothing is late in a decoder that is exact.
                let _ = self.drain();
                self.take_many();
            }
            clean |= frame.key;
            let lost =
                if frame.after_loss && !frame.key && index > start && self.passed != Some(index) {
                    self.passed = Some(index);
                    Some(index)
                } else {
                    match self.decode(index)? {
                        Decoded::Taken => None,
                        Decoded::Late(error) => {
                            if !self.send(first, last, send) {
                                return Ok(0);
                            }
                            index = self.look_again(index, &error);
                            continue;
                        }
                        Decoded::Unreadable => Some(index + 1),
                        // In front of the first key frame errors are expected.
                        Decoded::Damaged if !clean && (self.has_keys || !self.given) => None,
                        Decoded::Damaged => Some(index + 1),
                    }
                };
            let mut done = None;
            index = match lost {
                None => index + 1,
                Some(behind) => match self.resume(behind) {
                    Ok(resumed) => *done.insert(resumed.unwrap_or(last + 1)),
                    Err(error) => self.look_again(index, &error),
                },
            };
            if !self.send(first, last, send) {
                return Ok(0);
            }
            // What is passed over is done once the pictures in front of it are sent.
            self.next = self.next.max(done.unwrap_or(0));
        }
        if stop.is_stopped() {
            return Ok(0);
        }
        if let (false, Some(source)) = (self.given, self.unsupported) {
            let path = self.recording.path().to_owned();
            return Err(OfflineError::Decode { path, source });
        }
        Ok(last - first + 1 - self.sent)
    }

    /// Reads and decodes one frame.
    fn decode(&mut self, index: usize) -> Result<Decoded, OfflineError> {
        let path = self.recording.path();
        let sets = match std::mem::take(&mut self.fresh) {
            true => self.parameter_sets(index),
            false => Vec::new(),
        };
        let payload = match self.reader.payload(index) {
            Ok(payload) => payload,
            Err(FrameFault::Io(source)) => {
                let path = path.to_owned();
                return Err(SvoError::Io { path, source }.into());
            }
            Err(fault) => {
                log::debug!("{} frame {index}: {fault}", path.display());
                return Ok(Decoded::Unreadable);
            }
        };
        let result = if sets.is_empty() {
            self.decoder.decode(index, payload, &mut self.ready)
        } else {
            let unit = [&sets[..], payload].concat();
            self.decoder.decode(index, &unit, &mut self.ready)
        };
        let Err(error) = result else {
            return Ok(Decoded::Taken);
        };
        log::debug!("{}: {error}", path.display());
        if self.exact_until.is_none() {
            return Ok(Decoded::Late(error));
        }
        if matches!(error, DecodeError::Unsupported { .. }) && !self.given {
            self.refusals += 1;
            let source = self.unsupported.get_or_insert(error);
            if self.refusals >= MOST_REFUSALS {
                let (path, source) = (path.to_owned(), source.clone());
                return Err(OfflineError::Decode { path, source });
            }
        }
        Ok(Decoded::Damaged)
    }

    /// Where decoding goes on if what is in front of frame `behind` is lost; `None`: nowhere.
    ///
    /// # Errors
    ///
    /// If frames in front of the loss turn out to be damaged too.
    fn resume(&mut self, behind: usize) -> Result<Option<usize>, DecodeError> {
        let key = match self.recording.frames().get(behind) {
            Some(frame) if frame.key => Some(behind),
            _ => self.recording.next_key(behind.saturating_sub(1)),
        };
        let whole = self.recording.recovered(behind);
        let by_key = key.filter(|key| whole.is_none_or(|whole| *key <= whole));
        if let Some(key) = by_key {
            self.drain()?;
            return Ok(Some(key));
        }
        if whole.is_none() && self.heals {
            self.drain()?;
            return Ok(None);
        }
        if self.exact_until.is_none() {
            // What the decoder holds is needed, and which pictures it is of must be known.
            let index = behind.saturating_sub(1);
            let detail = "a frame behind it is lost".to_owned();
            return Err(DecodeError::Damaged { index, detail });
        }
        self.exact_until = Some(usize::MAX);
        if let Some(whole) = whole {
            let from = match self.hidden.contains(&behind) {
                true => self.hidden.start,
                false => behind,
            };
            self.hidden = from..whole;
        }
        Ok(Some(behind))
    }

    /// Goes back to where the first frame that is not done can be decoded from, and takes the
    /// frames one by one up to frame `until`.
    fn look_again(&mut self, until: usize, error: &DecodeError) -> usize {
        log::debug!("{error}; frames up to {until} are decoded one by one");
        let start = self.recording.decode_start(self.next);
        self.take_one_by_one(until);
        self.passed = None;
        start
    }

    fn take_one_by_one(&mut self, until: usize) {
        self.exact_until = Some(until);
        self.decoder = decode::open(self.recording.kind(), Exactness::Exact);
        self.fresh = true;
    }

    fn take_many(&mut self) {
        self.exact_until = None;
        self.decoder = decode::open(self.recording.kind(), Exactness::Late(self.threads));
        self.fresh = true;
    }

    /// Takes what the decoder still holds.
    fn drain(&mut self) -> Result<(), DecodeError> {
        self.fresh = true;
        self.decoder.flush(&mut self.ready)
    }

    /// The parameter sets that frame `index` needs and does not bring, as Annex B: those in force
    /// where the stream says them in front of some key frames only.
    fn parameter_sets(&mut self, index: usize) -> Vec<u8> {
        let codec = match self.recording.kind() {
            PayloadKind::H264 => Codec::H264,
            PayloadKind::H265 => Codec::H265,
            PayloadKind::JpegStrips => return Vec::new(),
        };
        let frames = self.recording.frames();
        let keys = (0..index).rev().filter(|at| frames[*at].key);
        let near = keys.take(LOOKED_AT_KEYS - 2);
        // The very first frames: many writers say them there and never again.
        let first = frames.iter().position(|frame| frame.key);
        let far = first.into_iter().chain([0]).filter(|at| *at < index);
        for at in [index].into_iter().chain(near).chain(far) {
            let Ok(payload) = self.reader.payload(at) else {
                continue;
            };
            let nals = nal_ranges(payload).map(|range| NalUnit(&payload[range]));
            let sets = ParameterSets::collect(codec, 1, nals);
            if sets.is_complete(codec) {
                if at == index {
                    return Vec::new();
                }
                let all = sets.vps.iter().chain(&sets.sps).chain(&sets.pps);
                return all
                    .flat_map(|set| [&[0, 0, 0, 1], &set[..]].concat())
                    .collect();
            }
        }
        Vec::new()
    }

    fn send(&mut self, first: usize, last: usize, send: &dyn Fn(SourcePicture) -> bool) -> bool {
        while let Some(DecodedPicture { index, pixels }) = self.ready.pop_front() {
            self.given = true;
            // What was decoded once more may have been sent before.
            if index < self.next {
                continue;
            }
            self.next = index + 1;
            if self.hidden.contains(&index) || !(first..=last).contains(&index) {
                continue;
            }
            self.sent += 1;
            let timestamp_ns = self.recording.frames()[index].timestamp_ns;
            if !send(SourcePicture {
                index,
                timestamp_ns,
                pixels,
            }) {
                return false;
            }
        }
        true
    }
}

/// What became of a frame.
enum Decoded {
    Taken,
    /// It, or one before it that the decoder was still at, is damaged.
    Late(DecodeError),
    /// Its bytes cannot be had, or are known to be wrong.
    Unreadable,
    /// It has no picture.
    Damaged,
}

/// Threads for one decoder beside one encoder: half of the machine, for coding takes more than
/// decoding, and each of them holds pictures.
pub(super) fn threads() -> usize {
    available_parallelism()
        .map_or(1, |n| n.get().div_ceil(2))
        .min(MOST_DECODE_THREADS)
}

/// More than the cores of the decoder's own threads rarely help, and each holds a picture.
const MOST_DECODE_THREADS: usize = 8;
/// So many are read, at most, to find parameter sets.
const LOOKED_AT_KEYS: usize = 64;
/// A recording of which so many frames are of an unsupported kind, and none was decoded, is one.
const MOST_REFUSALS: usize = 64;

#[cfg(test)]
mod tests;
