//! The payloads of a recording to pictures, in software.
//!
//! A decoder gives its pictures in display order, some units late. Recordings have no B-frames,
//! so that is also the order of their frames: each unit waits in a queue, and each picture takes
//! the oldest. A hardware decoder fits behind [`PictureDecoder`] with another kind of
//! [`DecodedPicture::pixels`].

mod ffmpeg;
mod h264;
mod h265;
mod jpeg;
mod samples;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::picture::Yuv420;
use super::svo::PayloadKind;

/// One frame of the recording, decoded.
#[derive(Debug)]
pub struct DecodedPicture {
    /// Of the frame in the recording.
    pub index: usize,
    pub pixels: Pixels,
}

/// Where the pixels of a picture are.
#[derive(Debug)]
pub enum Pixels {
    /// Both eyes, or one where the backend gives no more.
    Host(Yuv420),
}

impl Pixels {
    /// The pixels in host memory.
    pub fn on_host(&self) -> &Yuv420 {
        match self {
            Self::Host(picture) => picture,
        }
    }
}

/// Decodes the payloads of one recording, one after the other.
pub trait PictureDecoder: Send {
    /// Takes the payload of frame `index` and puts the pictures that are ready into `out`.
    ///
    /// # Errors
    ///
    /// The frame has no picture, and those behind it build on what is not there. A decoder that is
    /// not [`Exactness::Exact`] may also mean a frame that it took before.
    fn decode(
        &mut self,
        index: usize,
        payload: &[u8],
        out: &mut VecDeque<DecodedPicture>,
    ) -> Result<(), DecodeError>;

    /// Gives out what is still held back. Decoding can start again at a key frame, with parameter
    /// sets.
    ///
    /// # Errors
    ///
    /// A frame that was taken before has no picture. Nothing of what was held comes out then, for
    /// it is not known which frame each picture is of. Not from an exact decoder.
    fn flush(&mut self, out: &mut VecDeque<DecodedPicture>) -> Result<(), DecodeError>;
}

/// Whether a decoder tells which of the frames it was given is the damaged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    /// It works on several frames at once, on so many threads, and errors come late.
    Late(usize),
    /// It is done with each frame before it takes the next.
    Exact,
}

impl Exactness {
    fn threads(self) -> usize {
        match self {
            Self::Late(threads) => threads.max(1),
            Self::Exact => 1,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// This unit only.
    #[error("frame {index}: {detail}")]
    Damaged { index: usize, detail: String },
    /// No frame of this recording can be decoded.
    #[error("frame {index}: {detail}")]
    Unsupported { index: usize, detail: String },
}

/// A decoder for payloads of `kind`.
pub fn open(kind: PayloadKind, exactness: Exactness) -> Box<dyn PictureDecoder> {
    match kind {
        PayloadKind::H264 => Box::new(h264::H264Decoder::new(exactness)),
        PayloadKind::H265 => Box::new(h265::H265Decoder::new(exactness)),
        PayloadKind::JpegStrips => Box::new(jpeg::StripDecoder::default()),
    }
}

/// The frames whose pictures have not come out yet.
#[derive(Debug, Default)]
struct Pending(VecDeque<usize>);

impl Pending {
    fn push(&mut self, index: usize) {
        self.0.push_back(index);
    }

    /// The frame that the next picture belongs to.
    fn pop(&mut self) -> Option<usize> {
        self.0.pop_front()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// What comes out from here on is of no known frame.
    fn clear(&mut self) {
        self.0.clear();
    }

    /// The error of the oldest of them.
    fn damaged(&self, detail: &str) -> DecodeError {
        DecodeError::Damaged {
            index: self.0.front().copied().unwrap_or(0),
            detail: detail.to_owned(),
        }
    }
}
