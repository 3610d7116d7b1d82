//! H.264 through `rust_h264`; its threaded decoder is the one that gives the pictures of a
//! stream without any IDR.

use std::collections::VecDeque;

use rust_h264::decoder::{ChromaFormat, Frame};
use rust_h264::error;
use rust_h264::nal::{NalUnitType, parse_annex_b};
use rust_h264::threading::ThreadedDecoder;

use super::samples::{Chroma, assemble, to_eight_bits};
use super::{DecodeError, DecodedPicture, Pending, PictureDecoder, Pixels, ffmpeg};

pub struct H264Decoder {
    decoder: ThreadedDecoder,
    threads: usize,
    pending: Pending,
    /// For what the library does not decode.
    other: Option<ffmpeg::FfmpegDecoder>,
}

impl H264Decoder {
    pub fn new(threads: usize) -> Self {
        Self {
            decoder: ThreadedDecoder::new(threads),
            threads,
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
                Ok(frames) => frames.into_iter().for_each(|frame| self.give(frame, out)),
                Err(error) => {
                    let detail = error.to_string();
                    result = Err(match error {
                        error::DecodeError::Unsupported(_) => {
                            DecodeError::Unsupported { index, detail }
                        }
                        _ => DecodeError::Damaged { index, detail },
                    });
                }
            }
        }
        if result.is_err() {
            self.pending.forget(index);
        }
        result
    }

    fn flush(&mut self, out: &mut VecDeque<DecodedPicture>) {
        if let Some(other) = &mut self.other {
            return other.flush(out);
        }
        for frame in self.decoder.flush() {
            self.give(frame, out);
        }
        self.pending.clear();
        self.decoder = ThreadedDecoder::new(self.threads);
    }
}

/// `profile_idc` 244 (H.264 section A.2.7).
const HIGH_444_PREDICTIVE: u8 = 244;
