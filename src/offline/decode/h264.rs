//! H.264 through `rust_h264`; its threaded decoder is the one that gives the pictures of a
//! stream without any IDR.

use std::collections::VecDeque;

use rust_h264::decoder::{ChromaFormat, Frame};
use rust_h264::error;
use rust_h264::nal::{NalUnitType, parse_annex_b};
use rust_h264::threading::ThreadedDecoder;

use super::samples::{Chroma, assemble, to_eight_bits};
use super::{DecodeError, DecodedPicture, Exactness, Pending, PictureDecoder, Pixels, ffmpeg};

pub struct H264Decoder {
    decoder: ThreadedDecoder,
    exactness: Exactness,
    pending: Pending,
    /// For what the library does not decode.
    other: Option<ffmpeg::FfmpegDecoder>,
}

impl H264Decoder {
    pub fn new(exactness: Exactness) -> Self {
        Self {
            decoder: fresh(exactness),
            exactness,
            pending: Pending::default(),
            other: None,
        }
    }

    fn give(&mut self, frame: Frame, out: &mut VecDeque<DecodedPicture>) {
        let Some(index) = self.pending.pop() else {
            return;
        };
        let chroma = match frame.chroma_format {
            ChromaFormat::Yuv422 => Chroma::Yuv422,
            _ => Chroma::Yuv420,
        };
        let depth = frame.bit_depth;
        let size = (frame.width as usize, frame.height as usize);
        let planes = [frame.y, frame.u, frame.v].map(|plane| {
            if depth <= 8 {
                return plane;
            }
            let words = plane
                .chunks_exact(2)
                .map(|word| u16::from_le_bytes([word[0], word[1]]));
            words.map(|word| to_eight_bits(word, depth)).collect()
        });
        if let Some(picture) = assemble(size, chroma, planes) {
            let pixels = Pixels::Host(picture);
            out.push_back(DecodedPicture { index, pixels });
        }
    }
}

impl PictureDecoder for H264Decoder {
    fn decode(
        &mut self,
        index: usize,
        payload: &[u8],
        out: &mut VecDeque<DecodedPicture>,
    ) -> Result<(), DecodeError> {
        if let Some(other) = &mut self.other {
            return other.decode(index, payload, out);
        }
        self.pending.push(index);
        let mut result = Ok(());
        for nal in parse_annex_b(payload) {
            // High 4:4:4 Predictive is what lossless recordings use; the library refuses it.
            let predictive_444 = nal.nal_unit_type == NalUnitType::Sps
                && nal.rbsp.first() == Some(&HIGH_444_PREDICTIVE);
            if predictive_444 {
                self.pending.clear();
                let other = self.other.insert(ffmpeg::FfmpegDecoder::open(index)?);
                return other.decode(index, payload, out);
            }
            match self.decoder.decode_nal(&nal) {
                Ok(frames) if result.is_ok() => {
                    frames.into_iter().for_each(|frame| self.give(frame, out));
                }
                // Behind an error it is not known which frame a picture is of.
                Ok(_) => {}
                Err(error) => {
                    let detail = error.to_string();
                    let error = match error {
                        error::DecodeError::Unsupported(_) => {
                            DecodeError::Unsupported { index, detail }
                        }
                        _ => DecodeError::Damaged { index, detail },
                    };
                    result = result.and(Err(error));
                }
            }
        }
        if self.exactness == Exactness::Exact {
            // The library's flush ends the picture and keeps what others build on. Its own error
            // is lost there, but not that there is no picture.
            let frames = self.decoder.flush();
            if frames.len() != 1 {
                result = result.and_then(|()| Err(self.pending.damaged("it has no picture")));
            }
            if result.is_ok() {
                frames.into_iter().for_each(|frame| self.give(frame, out));
            }
        }
        if result.is_err() {
            self.pending.clear();
        }
        result
    }

    fn flush(&mut self, out: &mut VecDeque<DecodedPicture>) -> Result<(), DecodeError> {
        let mut result = Ok(());
        if let Some(mut other) = self.other.take() {
            result = other.flush(out);
        } else {
            let frames = self.decoder.flush();
            if frames.len() == self.pending.len() || self.exactness == Exactness::Exact {
                frames.into_iter().for_each(|frame| self.give(frame, out));
            } else {
                result = Err(self
                    .pending
                    .damaged("one of the frames from here on has no picture"));
            }
        }
        self.pending.clear();
        self.decoder = fresh(self.exactness);
        result
    }
}

fn fresh(exactness: Exactness) -> ThreadedDecoder {
    ThreadedDecoder::with_max_depth(exactness.threads(), REORDERED)
}

/// Pictures that wait for others in front of them in display order. Recordings have no B-frames;
/// the usual structures of these take two. Left to itself the library keeps sixteen, which are
/// 100 MB of two eyes in 1080p.
const REORDERED: usize = 4;
/// `profile_idc` 244 (H.264 section A.2.7).
const HIGH_444_PREDICTIVE: u8 = 244;
