//! The arithmetic, and the rung that any machine runs: the twin of the vector kernels.
//!
//! BT.709 limited range with coefficients of 1/256, which fit the byte multiply of both vector
//! sets. Luma is 16 + (16 B + 157 G + 47 R) / 256; U is 128 + (112 B - 86 G - 26 R) / 256 and V is
//! 128 + (-10 B - 102 G + 112 R) / 256, of the mean of two by two pixels. The weights of U and V
//! sum to 0, so grey stays 128; white is 235 and black 16 to the bit. Chroma is rounded once,
//! after the sum of four; everything rounds half up. No result needs a clamp.

use super::super::PixelFormat;
use super::rows::{RowPair, copy_foreign};

/// Y of one pixel.
#[inline]
pub fn luma(b: u8, g: u8, r: u8) -> u8 {
    ((16 * u32::from(b) + 157 * u32::from(g) + 47 * u32::from(r) + LUMA_BIAS) >> 8) as u8
}

/// U and V of the sums of four pixels.
#[inline]
pub fn chroma(b: i32, g: i32, r: i32) -> (u8, u8) {
    let u = (112 * b - 86 * g - 26 * r + CHROMA_BIAS) >> 10;
    let v = (-10 * b - 102 * g + 112 * r + CHROMA_BIAS) >> 10;
    (u as u8, v as u8)
}

/// Every pair of rows through the strip.
///
/// # Safety
///
/// `pairs` must be the [`row_pairs`](super::rows::row_pairs) of a picture of this format and width.
pub unsafe fn convert<'a>(
    format: PixelFormat,
    width: usize,
    pairs: impl Iterator<Item = RowPair<'a>>,
) {
    let mut strip = Strip::new(format.bytes_per_pixel());
    for pair in pairs {
        // SAFETY: the caller's.
        unsafe { strip.convert(format, width, pair) };
    }
}

/// A part of two rows in private memory.
struct Strip {
    bytes: [[u8; Strip::PIXELS * 4]; 2],
    bpp: usize,
}

impl Strip {
    /// Small enough for the first-level cache, long enough that the copy's start does not count.
    const PIXELS: usize = 1024;

    fn new(bpp: usize) -> Self {
        Self {
            bytes: [[0; _]; 2],
            bpp,
        }
    }

    /// # Safety
    ///
    /// As the function above, for one pair.
    unsafe fn convert(&mut self, format: PixelFormat, width: usize, pair: RowPair<'_>) {
        let [y0, y1] = pair.y;
        let parts = (y0.chunks_mut(Self::PIXELS).zip(y1.chunks_mut(Self::PIXELS)))
            .zip((pair.u.chunks_mut(Self::PIXELS / 2)).zip(pair.v.chunks_mut(Self::PIXELS / 2)));
        for (i, ((y0, y1), (u, v))) in parts.enumerate() {
            let start = i * Self::PIXELS;
            let pixels = Self::PIXELS.min(width - start);
            let skip = start * self.bpp;
            // SAFETY: `row_pairs` promises width * bpp bytes in each row; start + pixels <= width.
            unsafe {
                self.fill(0, pair.top.add(skip), pixels);
                if let Some(bottom) = pair.bottom {
                    self.fill(1, bottom.add(skip), pixels);
                }
            }
            let bottom = usize::from(pair.bottom.is_some());
            let rows = [&self.bytes[0][..], &self.bytes[bottom][..]];
            rows_to_planes(format, rows, [y0, y1], u, v);
        }
    }

    /// # Safety
    ///
    /// As [`copy_foreign`], for `pixels` pixels.
    unsafe fn fill(&mut self, row: usize, from: *const u8, pixels: usize) {
        let bytes = pixels * self.bpp;
        // SAFETY: the caller's.
        unsafe { copy_foreign(from, &mut self.bytes[row][..bytes]) };
        if pixels % 2 == 1 {
            self.bytes[row].copy_within(bytes - self.bpp..bytes, bytes);
        }
    }
}

/// Two rows of an even number of pixels, of which the planes' slices say how many.
fn rows_to_planes(
    format: PixelFormat,
    rows: [&[u8]; 2],
    y: [&mut [u8]; 2],
    u: &mut [u8],
    v: &mut [u8],
) {
    match format {
        PixelFormat::Bgr => matrix::<3, 0, 2>(rows, y, u, v),
        PixelFormat::Rgb => matrix::<3, 2, 0>(rows, y, u, v),
        PixelFormat::Bgra => matrix::<4, 0, 2>(rows, y, u, v),
        PixelFormat::Rgba => matrix::<4, 2, 0>(rows, y, u, v),
        PixelFormat::Gray => gray(rows, y),
        PixelFormat::Yuv => yuv(rows, y, u, v),
        PixelFormat::Yuyv => yuyv(rows, y, u, v),
    }
}

/// Pixels of `BPP` bytes with blue at `B`, green at 1 and red at `R`.
fn matrix<const BPP: usize, const B: usize, const R: usize>(
    rows: [&[u8]; 2],
    y: [&mut [u8]; 2],
    u: &mut [u8],
    v: &mut [u8],
) {
    let pixels = rows.map(|row| row.as_chunks::<BPP>().0);
    for (row, y) in pixels.into_iter().zip(y) {
        for (pixel, y) in row.iter().zip(y) {
            *y = luma(pixel[B], pixel[1], pixel[R]);
        }
    }
    let blocks = pixels.map(|row| row.as_chunks::<2>().0);
    let uv = u.iter_mut().zip(v);
    for ((top, bottom), (u, v)) in blocks[0].iter().zip(blocks[1]).zip(uv) {
        let sum = |part: usize| {
            let four = [top[0], top[1], bottom[0], bottom[1]];
            four.map(|pixel| i32::from(pixel[part])).iter().sum::<i32>()
        };
        (*u, *v) = chroma(sum(B), sum(1), sum(R));
    }
}

/// Leaves chroma alone.
fn gray(rows: [&[u8]; 2], y: [&mut [u8]; 2]) {
    for (row, y) in rows.into_iter().zip(y) {
        for (&pixel, y) in row.iter().zip(y) {
            *y = luma(pixel, pixel, pixel);
        }
    }
}

fn yuv(rows: [&[u8]; 2], y: [&mut [u8]; 2], u: &mut [u8], v: &mut [u8]) {
    let pixels = rows.map(|row| row.as_chunks::<3>().0);
    for (row, y) in pixels.into_iter().zip(y) {
        for (pixel, y) in row.iter().zip(y) {
            *y = pixel[0];
        }
    }
    let blocks = pixels.map(|row| row.as_chunks::<2>().0);
    let uv = u.iter_mut().zip(v);
    for ((top, bottom), (u, v)) in blocks[0].iter().zip(blocks[1]).zip(uv) {
        let mean = |part: usize| {
            let four = [top[0], top[1], bottom[0], bottom[1]];
            let sum: u32 = four.map(|pixel| u32::from(pixel[part])).iter().sum();
            ((sum + 2) >> 2) as u8
        };
        (*u, *v) = (mean(1), mean(2));
    }
}

fn yuyv(rows: [&[u8]; 2], y: [&mut [u8]; 2], u: &mut [u8], v: &mut [u8]) {
    for (row, y) in rows.into_iter().zip(y) {
        for (pixel, y) in row.as_chunks::<2>().0.iter().zip(y) {
            *y = pixel[0];
        }
    }
    let blocks = rows.map(|row| row.as_chunks::<4>().0);
    let uv = u.iter_mut().zip(v);
    for ((top, bottom), (u, v)) in blocks[0].iter().zip(blocks[1]).zip(uv) {
        let mean = |part: usize| u16::midpoint(u16::from(top[part]) + u16::from(bottom[part]), 1);
        (*u, *v) = (mean(1) as u8, mean(3) as u8);
    }
}

/// 16 and a half, in 1/256.
const LUMA_BIAS: u32 = 16 * 256 + 128;
/// 128 and a half, in 1/1024.
const CHROMA_BIAS: i32 = 128 * 1024 + 512;
