//! Lossless recordings of the CPU: four grayscale JPEG strips which, stacked, are packed YUYV
//! rows of the side-by-side picture (contract section 2).

use std::collections::VecDeque;
use std::io::Cursor;

use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::samples::average_rows;
use super::{DecodeError, DecodedPicture, PictureDecoder, Pixels};
use crate::offline::picture::Yuv420;
use crate::offline::svo::strip_ranges;

#[derive(Debug, Default)]
pub struct StripDecoder {
    packed: Vec<u8>,
}

impl StripDecoder {
    fn picture(&mut self, payload: &[u8]) -> Result<Yuv420, String> {
        let ranges = strip_ranges(payload).ok_or("its payload is not four strips")?;
        self.packed.clear();
        let mut row = 0;
        for range in ranges {
            let options = DecoderOptions::default()
                .jpeg_set_out_colorspace(ColorSpace::Luma)
                .set_max_width(LARGEST_SIDE)
                .set_max_height(LARGEST_SIDE);
            let mut decoder = JpegDecoder::new_with_options(Cursor::new(&payload[range]), options);
            let strip = decoder.decode().map_err(|error| error.to_string())?;
            let (width, height) = decoder.dimensions().ok_or("a strip has no size")?;
            if (row != 0 && width != row) || strip.len() != width * height {
                return Err("its strips differ in width".to_owned());
            }
            row = width;
            self.packed.extend(strip);
        }
        unpack(&self.packed, row).ok_or_else(|| "its strips have no sound size".to_owned())
    }
}

/// Rows of `row` bytes, Y0 U Y1 V, as planes; chroma lines are averaged in pairs.
fn unpack(packed: &[u8], row: usize) -> Option<Yuv420> {
    if row == 0 || !row.is_multiple_of(4) {
        return None;
    }
    let (width, height) = (row / 2, packed.len() / row);
    let mut y = Vec::with_capacity(width * height);
    let (mut u, mut v) = (
        Vec::with_capacity(y.capacity() / 2),
        Vec::with_capacity(y.capacity() / 2),
    );
    for pixels in packed.chunks_exact(4) {
        y.extend([pixels[0], pixels[2]]);
        u.push(pixels[1]);
        v.push(pixels[3]);
    }
    let (u, v) = (
        average_rows(&u, width / 2, height),
        average_rows(&v, width / 2, height),
    );
    let picture = Yuv420 {
        width,
        height,
        y,
        u,
        v,
    };
    picture.is_sound().then_some(picture)
}

impl PictureDecoder for StripDecoder {
    fn decode(
        &mut self,
        index: usize,
        payload: &[u8],
        out: &mut VecDeque<DecodedPicture>,
    ) -> Result<(), DecodeError> {
        let picture = self
            .picture(payload)
            .map_err(|detail| DecodeError::Damaged { index, detail })?;
        out.push_back(DecodedPicture {
            index,
            pixels: Pixels::Host(picture),
        });
        Ok(())
    }

    fn flush(&mut self, _out: &mut VecDeque<DecodedPicture>) -> Result<(), DecodeError> {
        Ok(())
    }
}

/// Twice the largest side-by-side width of the contract, 2 x 3840, as YUYV bytes.
const LARGEST_SIDE: usize = 4 * 3840;
