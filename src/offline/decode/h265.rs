//! H.265 through `rust_h265`, which gives every picture of a stream that starts in mid-GOP.

use std::collections::VecDeque;

use rust_h265::{Decoder, Frame, PixelData, parse_annex_b};

use super::samples::{Chroma, assemble, to_eight_bits};
use super::{DecodeError, DecodedPicture, Exactness, Pending, PictureDecoder, Pixels};

pub struct H265Decoder {
    decoder: Decoder,
    exactness: Exactness,
    pending: Pending,
}

impl H265Decoder {
    pub fn new(exactness: Exactness) -> Self {
        Self {
            decoder: fresh(exactness),
            exactness,
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
        let mut nals = parse_annex_b(payload);
        if self.exactness == Exactness::Exact {
            // It ends the picture, which would else wait for the next one.
            nals.extend(parse_annex_b(&DELIMITER));
        }
        for nal in nals {
            if let Err(error) = self.decoder.decode_nal(&nal) {
                let detail = error.to_string();
                let error = match error {
                    rust_h265::DecodeError::Unsupported(_)
                    | rust_h265::DecodeError::ResourceLimit(_) => {
                        DecodeError::Unsupported { index, detail }
                    }
                    _ => DecodeError::Damaged { index, detail },
                };
                result = result.and(Err(error));
            }
        }
        if self.exactness == Exactness::Exact && result.is_err() {
            // A concealed picture comes out all the same, behind those that are owed.
            while self.pending.len() > 1
                && let Some(frame) = self.decoder.next_output()
            {
                self.give(frame, out);
            }
        }
        let mut frames = Vec::new();
        while let Some(frame) = self.decoder.next_output() {
            frames.push(frame);
        }
        // Pictures come with their errors, which are asked for last.
        if let Some(error) = self.decoder.next_error() {
            let detail = error.to_string();
            result = result.and(Err(DecodeError::Damaged { index, detail }));
        }
        match result {
            Ok(()) => frames.into_iter().for_each(|frame| self.give(frame, out)),
            Err(_) => self.pending.clear(),
        }
        result
    }

    fn flush(&mut self, out: &mut VecDeque<DecodedPicture>) -> Result<(), DecodeError> {
        let mut frames = Vec::new();
        while let Some(frame) = self.decoder.flush() {
            frames.push(frame);
        }
        let sure = self.decoder.next_error().is_none() && frames.len() == self.pending.len();
        let result = if sure || self.exactness == Exactness::Exact {
            frames.into_iter().for_each(|frame| self.give(frame, out));
            Ok(())
        } else {
            Err(self
                .pending
                .damaged("one of the frames from here on has no picture"))
        };
        self.pending.clear();
        self.decoder = fresh(self.exactness);
        result
    }
}

fn fresh(exactness: Exactness) -> Decoder {
    Decoder::new()
        .with_display_order()
        .with_threads(exactness.threads())
}

/// An access unit delimiter of any picture type (H.265 section 7.3.2.5).
const DELIMITER: [u8; 7] = [0, 0, 0, 1, 35 << 1, 1, 0x50];
