//! The picture that every producer without a camera shows (contract `cv-mmap.md` section 7), as a pure
//! formula, so that any consumer can check each byte that it got.
//!
//! Frame `n`, pixel `(x, y)`, all modulo 256, integer division:
//!
//! ```text
//! B = x + 3n      G = 2y + 5n      R = x/2 + y/3 + 7n
//! ```
//!
//! The layouts carry the same three numbers: alpha is 255, GRAY is G, YUV is `Y U V = G B R`, and YUYV
//! has Y = G of each pixel with U = B and V = R of the even pixel of its pair. The last two are
//! numbers to compare, not a colour conversion. The real dummy writes a text box over its corner; this one does not.

use std::str::FromStr;

use thiserror::Error;

/// Packed layouts, in the order of their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PixelFormat {
    Rgb = 0,
    Bgr = 1,
    Rgba = 2,
    Bgra = 3,
    Gray = 4,
    Yuv = 5,
    Yuyv = 6,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("pixel format '{0}' is none of rgb, bgr, rgba, bgra, gray, yuv, yuyv")]
pub struct UnknownPixelFormat(String);

impl PixelFormat {
    pub const ALL: [(PixelFormat, &'static str); 7] = [
        (PixelFormat::Rgb, "rgb"),
        (PixelFormat::Bgr, "bgr"),
        (PixelFormat::Rgba, "rgba"),
        (PixelFormat::Bgra, "bgra"),
        (PixelFormat::Gray, "gray"),
        (PixelFormat::Yuv, "yuv"),
        (PixelFormat::Yuyv, "yuyv"),
    ];

    /// Bytes per pixel at U8.
    pub fn channels(self) -> usize {
        match self {
            PixelFormat::Rgb | PixelFormat::Bgr | PixelFormat::Yuv => 3,
            PixelFormat::Rgba | PixelFormat::Bgra => 4,
            PixelFormat::Gray => 1,
            PixelFormat::Yuyv => 2,
        }
    }
}

impl FromStr for PixelFormat {
    type Err = UnknownPixelFormat;

    fn from_str(name: &str) -> Result<Self, UnknownPixelFormat> {
        PixelFormat::ALL
            .iter()
            .find(|(_, known)| name.eq_ignore_ascii_case(known))
            .map(|(format, _)| *format)
            .ok_or_else(|| UnknownPixelFormat(name.to_owned()))
    }
}

/// `[B, G, R]` of one pixel.
pub fn bgr(frame: u32, x: usize, y: usize) -> [u8; 3] {
    // Reduced first: the products then stay small for every frame number.
    let n = (frame % 256) as usize;
    [
        (x + 3 * n) as u8,
        (2 * y + 5 * n) as u8,
        (x / 2 + y / 3 + 7 * n) as u8,
    ]
}

/// Fills `rows`, tight, with frame `frame` of the pattern. Its length must be `width * height * channels`.
pub fn fill(format: PixelFormat, frame: u32, width: usize, height: usize, rows: &mut [u8]) {
    let row_bytes = width * format.channels();
    assert_eq!(rows.len(), row_bytes * height, "a tight picture");
    // Every byte is what x gives plus what row and frame give, so a row is one addition over bytes: a
    // live producer draws beside the encoder that it feeds.
    let mut columns = Vec::with_capacity(row_bytes);
    for x in 0..width {
        let (pixel, bytes) = layout(format, x, bgr(0, x, 0), 255);
        columns.extend_from_slice(&pixel[..bytes]);
    }
    for (y, row) in rows.chunks_exact_mut(row_bytes).enumerate() {
        let mut offsets = [0_u8; PERIOD];
        for (x, pixel) in offsets.chunks_exact_mut(format.channels()).enumerate() {
            let (offset, bytes) = layout(format, x, bgr(frame, 0, y), 0);
            pixel.copy_from_slice(&offset[..bytes]);
        }
        let (pieces, tail) = row.as_chunks_mut::<PERIOD>();
        let (sources, source_tail) = columns.as_chunks::<PERIOD>();
        for (piece, source) in pieces.iter_mut().zip(sources) {
            for index in 0..PERIOD {
                piece[index] = source[index].wrapping_add(offsets[index]);
            }
        }
        for ((byte, source), offset) in tail.iter_mut().zip(source_tail).zip(offsets) {
            *byte = source.wrapping_add(offset);
        }
    }
}

/// Whole pixels, and whole pairs of them, of every layout.
const PERIOD: usize = 48;

/// The bytes of pixel `x` and their number.
fn layout(format: PixelFormat, x: usize, [b, g, r]: [u8; 3], alpha: u8) -> ([u8; 4], usize) {
    let bytes = match format {
        PixelFormat::Rgb => [r, g, b, 0],
        PixelFormat::Bgr => [b, g, r, 0],
        PixelFormat::Rgba => [r, g, b, alpha],
        PixelFormat::Bgra => [b, g, r, alpha],
        PixelFormat::Gray => [g, 0, 0, 0],
        PixelFormat::Yuv => [g, b, r, 0],
        // R is the same for both pixels of a pair: x/2 drops the difference.
        PixelFormat::Yuyv if x.is_multiple_of(2) => [g, b, 0, 0],
        PixelFormat::Yuyv => [g, r, 0, 0],
    };
    (bytes, format.channels())
}

/// Depth in millimetres, `1000 + x + y + n`, with the three values in the first row that a consumer
/// must live with: NaN, +inf, -inf.
pub fn fill_depth(frame: u32, width: usize, plane: &mut [f32]) {
    fill_f32(width, plane, |x, y| {
        (1000 + x + y + (frame % 256) as usize) as f32
    });
    for (value, odd) in plane
        .iter_mut()
        .zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY])
    {
        *value = odd;
    }
}

/// Confidence in percent, `(x + y + n) mod 101`.
pub fn fill_confidence(frame: u32, width: usize, plane: &mut [f32]) {
    fill_f32(width, plane, |x, y| {
        ((x + y + (frame % 256) as usize) % 101) as f32
    });
}

fn fill_f32(width: usize, plane: &mut [f32], value: impl Fn(usize, usize) -> f32) {
    for (y, row) in plane.chunks_mut(width.max(1)).enumerate() {
        for (x, cell) in row.iter_mut().enumerate() {
            *cell = value(x, y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // By hand from the formula in contract section 7: frame 2, pixel (5, 7) is
    // B = 5 + 6 = 11, G = 14 + 10 = 24, R = 2 + 2 + 14 = 18.
    #[test]
    fn each_layout_carries_the_same_numbers() {
        let pixel = |format: PixelFormat| {
            let mut rows = vec![0; 6 * 8 * format.channels()];
            fill(format, 2, 6, 8, &mut rows);
            let at = (7 * 6 + 5) * format.channels();
            rows[at..at + format.channels()].to_vec()
        };
        assert_eq!(pixel(PixelFormat::Bgr), [11, 24, 18]);
        assert_eq!(pixel(PixelFormat::Rgb), [18, 24, 11]);
        assert_eq!(pixel(PixelFormat::Rgba), [18, 24, 11, 255]);
        assert_eq!(pixel(PixelFormat::Bgra), [11, 24, 18, 255]);
        assert_eq!(pixel(PixelFormat::Gray), [24]);
        assert_eq!(pixel(PixelFormat::Yuv), [24, 11, 18]);
        // The odd pixel of a pair carries V, which is R of (4, 7): 2 + 2 + 14.
        assert_eq!(pixel(PixelFormat::Yuyv), [24, 18]);
    }

    #[test]
    fn the_fast_loop_draws_what_the_formula_says() {
        let (width, height) = (301, 97);
        let mut rows = vec![0; width * height * 3];
        fill(PixelFormat::Bgr, 4_000_000_123, width, height, &mut rows);
        for (index, pixel) in rows.chunks(3).enumerate() {
            assert_eq!(pixel, bgr(4_000_000_123, index % width, index / width));
        }
    }

    #[test]
    fn the_pattern_wraps_at_the_last_frame_number() {
        // 2^32 - 1 is 255 mod 256: B = 3 * 255 = 765 = 253, G = 1275 = 251, R = 1785 = 249.
        assert_eq!(bgr(u32::MAX, 0, 0), [253, 251, 249]);
    }
}
