//! H.265 through `rust_h265`, which gives every picture of a stream that starts in mid-GOP.

use std::collections::VecDeque;

use rust_h265::{Decoder, Frame, PixelData, parse_annex_b};

use super::samples::{Chroma, assemble, to_eight_bits};
use super::{DecodeError, DecodedPicture, Pending, PictureDecoder, Pixels};

pub struct H265Decoder {
    decoder: Decoder,
    pending: Pending,
}

impl H265Decoder {
    pub fn new(threads: usize) -> Self {
        Self {
            decoder: Decoder::new().with_display_order().with_threads(threads),
            pending: Pending::default(),
        }
    }

    fn give(&mut self, frame: Frame, out: &mut VecDeque<DecodedPicture>) {
        let Some(index) = self.pending.pop() else {
            return;
        };
        let chroma = match frame.chroma_format_idc {
            1 => Chroma::Yuv420,
            2 => Chroma::Yuv422,
            _ => Chroma::Yuv444,
        };
        let depth = frame.bit_depth;
        let planes = [frame.y, frame.u, frame.v].map(|plane| match plane {
            PixelData::U8(bytes) => bytes,
            PixelData::U16(words) => words
                .into_iter()
                .map(|word| to_eight_bits(word, depth))
                .collect(),
        });
        let size = (frame.width as usize, frame.height as usize);
        if let Some(picture) = assemble(size, chroma, planes) {
            let pixels = Pixels::Host(picture);
            out.push_back(DecodedPicture { index, pixels });
        }
    }
}

impl PictureDecoder for H265Decoder {
    fn decode(
        &mut self,
        index: usize,
        payload: &[u8],
        out: &mut VecDeque<DecodedPicture>,
    ) -> Result<(), DecodeError> {
        self.pending.push(index);
        let mut result = Ok(());
        for nal in parse_annex_b(payload) {
            if let Err(error) = self.decoder.decode_nal(&nal) {
                let detail = error.to_string();
                result = Err(match error {
                    rust_h265::DecodeError::Unsupported(_)
                    | rust_h265::DecodeError::ResourceLimit(_) => {
                        DecodeError::Unsupported { index, detail }
                    }
                    _ => DecodeError::Damaged { index, detail },
                });
            }
        }
        while let Some(frame) = self.decoder.next_output() {
            self.give(frame, out);
        }
        result
    }

    fn flush(&mut self, out: &mut VecDeque<DecodedPicture>) {
        while let Some(frame) = self.decoder.flush() {
            self.give(frame, out);
        }
        while self.decoder.next_error().is_some() {}
        self.pending.clear();
    }
}
