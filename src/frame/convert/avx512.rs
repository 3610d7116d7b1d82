//! The AVX-512 rung: 32 pixels of two rows at a time.
//!
//! Two loads bring a row's 32 pixels. One two-source byte permutation lays out the even pixels,
//! another the odd ones, each as B, G, R, G: green twice, for its weight of 157/256 does not fit a
//! signed byte. A dot product of four bytes then is a whole pixel, and because even and odd pixels
//! lie in the same lanes, four of them in a row are the sum over a two by two block. Other byte
//! orders, and the end of a row, change only the permutation: a lane beyond the last pixel repeats it.

use core::arch::asm;
use core::arch::x86_64::*;
use std::array::from_fn;

use super::super::PixelFormat;
use super::rows::RowPair;
use super::vector::{self, UNIT, kind};

/// Every pair of rows.
///
/// # Safety
///
/// The CPU must have the features named here. `pairs` must be the
/// [`row_pairs`](super::rows::row_pairs) of a picture of this format and width.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub unsafe fn convert<'a>(
    format: PixelFormat,
    width: usize,
    pairs: impl Iterator<Item = RowPair<'a>>,
) {
    let offsets = vector::offsets(format);
    match format {
        PixelFormat::Rgb | PixelFormat::Bgr => run::<3, { kind::MATRIX }>(offsets, width, pairs),
        PixelFormat::Rgba | PixelFormat::Bgra => run::<4, { kind::MATRIX }>(offsets, width, pairs),
        PixelFormat::Gray => run::<1, { kind::GRAY }>(offsets, width, pairs),
        PixelFormat::Yuv => run::<3, { kind::SPLIT }>(offsets, width, pairs),
        PixelFormat::Yuyv => run::<2, { kind::SPLIT }>(offsets, width, pairs),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn run<'a, const BPP: usize, const KIND: u8>(
    offsets: [usize; 3],
    width: usize,
    pairs: impl Iterator<Item = RowPair<'a>>,
) {
    let (full, rest) = (width / UNIT, width % UNIT);
    let whole = Unit::<BPP, KIND>::new(offsets, UNIT);
    let last = Unit::<BPP, KIND>::new(offsets, rest.max(1));
    for pair in pairs {
        let (top_row, bottom_row, ahead) = (pair.top, pair.bottom, pair.ahead);
        let (places, edge) = pair.places(full);
        for (i, place) in places.enumerate() {
            ahead.prefetch::<BPP, KIND>(i);
            let at = i * UNIT * BPP;
            // SAFETY: `row_pairs` promises width * BPP bytes in each row, and unit i ends at or
            // before pixel `width`.
            let (top, bottom) = unsafe {
                let top = whole.load(top_row.add(at));
                (top, bottom_row.map_or(top, |row| whole.load(row.add(at))))
            };
            place.put::<KIND>(whole.compute(top, bottom));
        }
        if rest > 0 {
            let at = full * UNIT * BPP;
            // SAFETY: as above; the masks of `last` cover `rest` pixels.
            let (top, bottom) = unsafe {
                let top = last.load(top_row.add(at));
                (top, bottom_row.map_or(top, |row| last.load(row.add(at))))
            };
            edge.put::<KIND>(last.compute(top, bottom));
        }
    }
}

/// Up to 32 pixels of `BPP` bytes: how they are loaded, laid out and computed.
struct Unit<const BPP: usize, const KIND: u8> {
    /// The bytes of the two loads.
    masks: [u64; 2],
    /// MATRIX, GRAY: the even pixels as four bytes each, and the odd ones. SPLIT: 32 luma bytes,
    /// and 32 of U followed by 32 of V.
    layout: [__m512i; 2],
}

impl<const BPP: usize, const KIND: u8> Unit<BPP, KIND> {
    /// Pixels of one load.
    const PER_LOAD: usize = if BPP > 2 { 16 } else { 32 };

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn new(offsets: [usize; 3], pixels: usize) -> Self {
        let ones = |bytes: usize| u64::MAX.checked_shr(64 - bytes as u32).unwrap_or(0);
        let first = pixels.min(Self::PER_LOAD);
        // Where byte `offset` of a pixel lies in the two registers: bit 6 tells the second.
        let place = |pixel: usize, offset: usize| {
            let pixel = pixel.min(pixels - 1);
            let (load, within) = (pixel / Self::PER_LOAD, pixel % Self::PER_LOAD);
            // Chroma of YUYV counts from the start of its pair.
            let within = if BPP == 2 && offset > 0 {
                within & !1
            } else {
                within
            };
            (load * 64 + within * BPP + offset) as u8
        };
        let [o0, o1, o2] = offsets;
        let layout = if KIND == kind::SPLIT {
            [
                from_fn(|i| place(i, o0)),
                from_fn(|i| place(i % UNIT, if i < UNIT { o1 } else { o2 })),
            ]
        } else {
            let quads = |odd: usize| from_fn(|i| place(2 * (i / 4) + odd, [o0, o1, o2, o1][i % 4]));
            [quads(0), quads(1)]
        };
        Self {
            masks: [ones(first * BPP), ones((pixels - first) * BPP)],
            layout: layout.map(|bytes: [u8; 64]| bytes_of(&bytes)),
        }
    }

    /// Reads each byte of the unit once, and none beside.
    ///
    /// # Safety
    ///
    /// `from` must point at the unit's pixels, mapped readable or with faults handled. They may
    /// change meanwhile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    unsafe fn load(&self, from: *const u8) -> [__m512i; 2] {
        // SAFETY: a masked load touches only the bytes of its mask, which the caller vouches for.
        unsafe {
            let first = load_masked(from, self.masks[0]);
            let second = if self.masks[1] == 0 {
                _mm512_setzero_si512()
            } else {
                load_masked(from.wrapping_add(Self::PER_LOAD * BPP), self.masks[1])
            };
            [first, second]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn compute(&self, top: [__m512i; 2], bottom: [__m512i; 2]) -> vector::Result {
        let lay =
            |row: [__m512i; 2], i: usize| _mm512_permutex2var_epi8(row[0], self.layout[i], row[1]);
        // Written out, not by `map`: a closure with vectors in it is inlined by luck only.
        let rows = [[lay(top, 0), lay(top, 1)], [lay(bottom, 0), lay(bottom, 1)]];
        if KIND == kind::SPLIT {
            return split(rows);
        }
        let luma = |quads: [__m512i; 2]| {
            let bias = _mm512_set1_epi32(16 * 256 + 128);
            let even = _mm512_dpbusd_epi32(bias, quads[0], four(LUMA));
            let odd = _mm512_dpbusd_epi32(bias, quads[1], four(LUMA));
            pick(even, bytes_of(&PICK_ZIPPED), odd)
        };
        let uv = if KIND == kind::GRAY {
            _mm256_set1_epi8(128_u8 as i8)
        } else {
            let chroma = |weights| {
                let weights = four(weights);
                let mut sum = _mm512_set1_epi32(128 * 1024 + 512);
                for quads in rows.as_flattened() {
                    sum = _mm512_dpbusd_epi32(sum, *quads, weights);
                }
                // The result then is the second byte of each lane.
                _mm512_srli_epi32::<2>(sum)
            };
            pick(chroma(BLUE), bytes_of(&PICK_JOINED), chroma(RED))
        };
        [luma(rows[0]), luma(rows[1]), uv]
    }
}

/// Luma as it is; the mean of two by two of U and V.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split(rows: [[__m512i; 2]; 2]) -> vector::Result {
    let ones = _mm512_set1_epi8(1);
    let top = _mm512_maddubs_epi16(rows[0][1], ones);
    let bottom = _mm512_maddubs_epi16(rows[1][1], ones);
    let sum = _mm512_add_epi16(_mm512_add_epi16(top, bottom), _mm512_set1_epi16(2));
    [
        _mm512_castsi512_si256(rows[0][0]),
        _mm512_castsi512_si256(rows[1][0]),
        _mm512_cvtepi16_epi8(_mm512_srli_epi16::<2>(sum)),
    ]
}

/// 32 bytes out of two registers.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn pick(a: __m512i, which: __m512i, b: __m512i) -> __m256i {
    _mm512_castsi512_si256(_mm512_permutex2var_epi8(a, which, b))
}

/// The same four weights in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(weights: [i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(weights.map(|w| w as u8)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bytes_of(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable there; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// # Safety
///
/// The bytes that `mask` names must be mapped readable or have their faults handled.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_masked(from: *const u8, mask: u64) -> __m512i {
    let value: __m512i;
    // SAFETY: the caller's. Bytes outside the mask are neither read nor can they fault. Being
    // assembly that is not `pure`, it runs once where it stands.
    unsafe {
        asm!(
            "vmovdqu8 {value}{{{mask}}}{{z}}, [{from}]",
            value = lateout(zmm_reg) value,
            mask = in(kreg) mask,
            from = in(reg) from,
            options(nostack, preserves_flags, readonly),
        );
    }
    value
}

/// Weights of B, G, R, G in 1/256, as in `plain`.
const LUMA: [i8; 4] = [16, 79, 47, 78];
const BLUE: [i8; 4] = [112, -43, -26, -43];
const RED: [i8; 4] = [-10, -51, 112, -51];

/// The second byte of each 32-bit lane: of both registers by turns (even and odd pixels).
const PICK_ZIPPED: [u8; 64] = pick_table(true);
/// The same, of the first register and then of the second.
const PICK_JOINED: [u8; 64] = pick_table(false);

const fn pick_table(zipped: bool) -> [u8; 64] {
    let mut table = [0; 64];
    let mut i = 0;
    while i < UNIT {
        let (register, lane) = if zipped {
            (i % 2, i / 2)
        } else {
            (i / 16, i % 16)
        };
        table[i] = (register * 64 + lane * 4 + 1) as u8;
        i += 1;
    }
    table
}
