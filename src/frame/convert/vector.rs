//! What both vector rungs share: a row pair cut into units, stores, and prefetches.

use core::arch::x86_64::*;

use super::super::PixelFormat;
use super::rows::{Ahead, RowPair};

/// Pixels of a row that are computed at once.
pub const UNIT: usize = 32;

/// The arithmetic of a kernel, as a const generic parameter.
pub mod kind {
    /// Blue, green and red through the BT.709 matrix.
    pub const MATRIX: u8 = 0;
    /// Luma by range; chroma is left alone.
    pub const GRAY: u8 = 1;
    /// Already Y, U and V: only taken apart, chroma averaged.
    pub const SPLIT: u8 = 2;
}

/// Where a pixel keeps blue, green and red, or Y, U and V: bytes from its start (chroma of YUYV:
/// from the start of the pair). The vector kernels build their permutations from it.
pub const fn offsets(format: PixelFormat) -> [usize; 3] {
    match format {
        PixelFormat::Bgr | PixelFormat::Bgra => [0, 1, 2],
        PixelFormat::Rgb | PixelFormat::Rgba => [2, 1, 0],
        PixelFormat::Gray => [0, 0, 0],
        PixelFormat::Yuv => [0, 1, 2],
        PixelFormat::Yuyv => [0, 1, 3],
    }
}

/// What a unit gives: 32 bytes of Y of the top row and of the bottom row, then 16 of U and 16 of V.
pub type Result = [__m256i; 3];

/// Where a whole unit goes.
pub struct Place<'a> {
    y: [&'a mut [u8; UNIT]; 2],
    u: &'a mut [u8; UNIT / 2],
    v: &'a mut [u8; UNIT / 2],
}

impl Place<'_> {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn put<const KIND: u8>(self, [top, bottom, uv]: Result) {
        let [first, second] = self.y;
        put32(first, top);
        put32(second, bottom);
        if KIND != kind::GRAY {
            put16(self.u, _mm256_castsi256_si128(uv));
            put16(self.v, _mm256_extracti128_si256::<1>(uv));
        }
    }
}

/// Where the pixels behind the last whole unit go; even, less than a unit and a pixel.
pub struct Edge<'a> {
    y: [&'a mut [u8]; 2],
    u: &'a mut [u8],
    v: &'a mut [u8],
}

impl Edge<'_> {
    #[target_feature(enable = "avx2")]
    pub fn put<const KIND: u8>(self, [top, bottom, uv]: Result) {
        let mut bytes = [0; UNIT];
        for (to, from) in self.y.into_iter().zip([top, bottom]) {
            put32(&mut bytes, from);
            to.copy_from_slice(&bytes[..to.len()]);
        }
        if KIND != kind::GRAY {
            put32(&mut bytes, uv);
            self.u.copy_from_slice(&bytes[..self.u.len()]);
            self.v.copy_from_slice(&bytes[UNIT / 2..][..self.v.len()]);
        }
    }
}

impl<'a> RowPair<'a> {
    /// The places of the first `full` units, and of what is left.
    #[inline]
    pub fn places(self, full: usize) -> (impl Iterator<Item = Place<'a>>, Edge<'a>) {
        let [y0, y1] = self.y;
        let (y0, y0_edge) = y0.split_at_mut(full * UNIT);
        let (y1, y1_edge) = y1.split_at_mut(full * UNIT);
        let (u, u_edge) = self.u.split_at_mut(full * UNIT / 2);
        let (v, v_edge) = self.v.split_at_mut(full * UNIT / 2);
        let luma = y0.as_chunks_mut().0.iter_mut().zip(y1.as_chunks_mut().0);
        let chroma = u.as_chunks_mut().0.iter_mut().zip(v.as_chunks_mut().0);
        let places = luma
            .zip(chroma)
            .map(|((y0, y1), (u, v))| Place { y: [y0, y1], u, v });
        let edge = Edge {
            y: [y0_edge, y1_edge],
            u: u_edge,
            v: v_edge,
        };
        (places, edge)
    }
}

impl Ahead {
    /// Asks for the cache lines that the next pair of rows needs at the place of unit `i`, of the
    /// source and of the planes. On a frame that another core has just written either halves the
    /// time: the hardware's prefetchers follow neither two rows at once nor stores. Stores past
    /// the cache would save as much traffic, but the encoder reads the planes at once.
    #[inline]
    #[target_feature(enable = "sse")]
    pub fn prefetch<const BPP: usize, const KIND: u8>(&self, i: usize) {
        let pixel = i * UNIT;
        for row in self.source {
            for line in (0..UNIT * BPP).step_by(LINE) {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(pixel * BPP + line).cast());
            }
        }
        if pixel.is_multiple_of(LINE) {
            for row in self.y {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(pixel).cast());
            }
        }
        if KIND != kind::GRAY && pixel.is_multiple_of(2 * LINE) {
            for row in self.uv {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(pixel / 2).cast());
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx")]
fn put32(to: &mut [u8; 32], value: __m256i) {
    // SAFETY: 32 bytes are writable there; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn put16(to: &mut [u8; 16], value: __m128i) {
    // SAFETY: 16 bytes are writable there; the store needs no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), value) }
}

/// Bytes of a cache line.
const LINE: usize = 64;
