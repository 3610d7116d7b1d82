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
    /// The frame has no picture; decoding can go on with the next unit.
    fn decode(
        &mut self,
        index: usize,
        payload: &[u8],
        out: &mut VecDeque<DecodedPicture>,
    ) -> Result<(), DecodeError>;

    /// Gives out what is still held back. Decoding can start again at a key frame.
    fn flush(&mut self, out: &mut VecDeque<DecodedPicture>);
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

/// A decoder for payloads of `kind` on up to `threads` threads.
pub fn open(kind: PayloadKind, threads: usize) -> Box<dyn PictureDecoder> {
    match kind {
        PayloadKind::H264 => Box::new(h264::H264Decoder::new(threads)),
        PayloadKind::H265 => Box::new(h265::H265Decoder::new(threads)),
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

    /// The unit gave no picture.
    fn forget(&mut self, index: usize) {
        self.0.retain(|pending| *pending != index);
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
