//! A range of a recording's frames to pictures, past what is damaged.

use std::collections::VecDeque;
use std::thread::available_parallelism;

use super::decode::{self, DecodeError, DecodedPicture};
use super::error::OfflineError;
use super::input::SourcePicture;
use super::svo::{FrameFault, FrameReader, Recording, SvoError};
use crate::pipeline::stop::StopToken;

/// Reads and decodes a range of frames, past what is damaged.
pub(super) struct Decoding<'r> {
    recording: &'r Recording,
    reader: FrameReader<'r>,
    decoder: Box<dyn decode::PictureDecoder>,
    ready: VecDeque<DecodedPicture>,
    /// Pictures that were sent.
    sent: usize,
    given: bool,
}

impl<'r> Decoding<'r> {
    pub(super) fn new(recording: &'r Recording, threads: usize) -> Self {
        Self {
            recording,
            reader: FrameReader::new(recording),
            decoder: decode::open(recording.kind(), threads),
            ready: VecDeque::new(),
            sent: 0,
            given: false,
        }
    }

    /// Gives the pictures of the frames `first` to `last` to `send` until it refuses one or
    /// `stop` is set, and returns how many of those frames there are no pictures of.
    ///
    /// Behind a damaged frame decoding goes on at the next key frame. Where a recording has key
    /// frames but none follows, the rest is given up as its unreadable end; where it has none at
    /// all, everything builds on the past anyway and decoding just goes on.
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
        let start = self.recording.decode_start(first);
        let has_keys = self.recording.frames().iter().any(|frame| frame.key);
        let mut clean = self.recording.frames()[start].key;
        let mut index = start;
        while index <= last && !stop.is_stopped() {
            clean |= self.recording.frames()[index].key;
            let fault = match self.reader.payload(index) {
                Ok(payload) => match self.decoder.decode(index, payload, &mut self.ready) {
                    Ok(()) => None,
                    Err(source @ DecodeError::Unsupported { .. }) if !self.given => {
                        let path = self.recording.path().to_owned();
                        return Err(OfflineError::Decode { path, source });
                    }
                    Err(error) => {
                        log::debug!("{}: {error}", self.recording.path().display());
                        // In front of the first key frame errors are expected.
                        clean.then_some(())
                    }
                },
                Err(FrameFault::Io(source)) => {
                    let path = self.recording.path().to_owned();
                    return Err(SvoError::Io { path, source }.into());
                }
                Err(fault) => {
                    log::debug!("{} frame {index}: {fault}", self.recording.path().display());
                    Some(())
                }
            };
            let next = match fault {
                None => index + 1,
                Some(()) if !has_keys => index + 1,
                Some(()) => {
                    let next = self.recording.next_key(index).unwrap_or(usize::MAX);
                    self.decoder.flush(&mut self.ready);
                    next
                }
            };
            if !self.send(first, last, send) {
                return Ok(0);
            }
            index = next;
        }
        if stop.is_stopped() {
            return Ok(0);
        }
        self.decoder.flush(&mut self.ready);
        let taken = self.send(first, last, send);
        Ok(if taken {
            last - first + 1 - self.sent
        } else {
            0
        })
    }

    fn send(&mut self, first: usize, last: usize, send: &dyn Fn(SourcePicture) -> bool) -> bool {
        while let Some(picture) = self.ready.pop_front() {
            self.given = true;
            if (first..=last).contains(&picture.index) {
                self.sent += 1;
                let DecodedPicture { index, pixels } = picture;
                let timestamp_ns = self.recording.frames()[index].timestamp_ns;
                if !send(SourcePicture {
                    index,
                    timestamp_ns,
                    pixels,
                }) {
                    return false;
                }
            }
        }
        true
    }
}

/// Threads for one decoder that has the machine to itself.
pub(super) fn threads() -> usize {
    available_parallelism()
        .map_or(1, |n| n.get())
        .min(MOST_DECODE_THREADS)
}

/// More than the cores of the decoder's own threads rarely help, and each holds a picture.
const MOST_DECODE_THREADS: usize = 8;
