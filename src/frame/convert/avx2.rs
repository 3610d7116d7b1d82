//! The AVX2 rung: 32 pixels of two rows at a time, 16 in each half of a register.
//!
//! The parts are taken apart first (all blue, all green, all red), for both luma and the sums over
//! two by two pixels are then a few multiplications of neighbours. The sums are exact, so the
//! result is that of the other rungs. The last pixels of a row go through a strip, because
//! AVX2 cannot load a part of a register byte by byte.

use core::arch::asm;
use core::arch::x86_64::*;
use std::array::from_fn;

use super::super::PixelFormat;
use super::rows::{RowPair, copy_foreign};
use super::vector::{self, UNIT, kind};

/// Every pair of rows.
///
/// # Safety
///
/// The CPU must have AVX2. `pairs` must be the
/// [`row_pairs`](super::rows::row_pairs) of a picture of this format and width.
#[target_feature(enable = "avx2")]
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

#[target_feature(enable = "avx2")]
fn run<'a, const BPP: usize, const KIND: u8>(
    offsets: [usize; 3],
    width: usize,
    pairs: impl Iterator<Item = RowPair<'a>>,
) {
    let (full, rest) = (width / UNIT, width % UNIT);
    let unit = Unit::<BPP, KIND>::new(offsets);
    let mut strip = [[0; UNIT * 4]; 2];
    for pair in pairs {
        let (top_row, bottom_row, ahead) = (pair.top, pair.bottom, pair.ahead);
        let (places, edge) = pair.places(full);
        for (i, place) in places.enumerate() {
            ahead.prefetch::<BPP, KIND>(i);
            let at = i * UNIT * BPP;
            // SAFETY: `row_pairs` promises width * BPP bytes in each row, and unit i ends at or
            // before pixel `width`.
            let (top, bottom) = unsafe {
                let top = load::<BPP>(top_row.add(at));
                (top, bottom_row.map_or(top, |row| load::<BPP>(row.add(at))))
            };
            place.put::<KIND>(unit.compute(top, bottom));
        }
        if rest > 0 {
            let (at, bytes) = (full * UNIT * BPP, rest * BPP);
            let rows = [Some(top_row), bottom_row].into_iter().flatten();
            for (row, strip) in rows.zip(&mut strip) {
                // SAFETY: as above, for the `rest` pixels behind the last whole unit.
                unsafe { copy_foreign(row.add(at), &mut strip[..bytes]) };
                if rest % 2 == 1 {
                    strip.copy_within(bytes - BPP..bytes, bytes);
                }
            }
            let below = usize::from(bottom_row.is_some());
            // SAFETY: a strip is as long as a unit.
            let (top, bottom) = unsafe {
                let top = load::<BPP>(strip[0].as_ptr());
                (top, load::<BPP>(strip[below].as_ptr()))
            };
            edge.put::<KIND>(unit.compute(top, bottom));
        }
    }
}

/// The tables by which 16 pixels of `BPP` bytes are taken apart.
struct Unit<const BPP: usize, const KIND: u8> {
    /// Three bytes: which positions of a register come from the second load, and from the third.
    from_second: [__m256i; 3],
    from_third: [__m256i; 3],
    /// Three bytes: from pixel order to the order of the result, part by part. Four: within a
    /// load, the four pixels' parts side by side (the first table only).
    gather: [__m256i; 3],
}

impl<const BPP: usize, const KIND: u8> Unit<BPP, KIND> {
    #[target_feature(enable = "avx2")]
    fn new(offsets: [usize; 3]) -> Self {
        // Three loads of 16 bytes hold 16 pixels of three bytes, and the 16 bytes of one part
        // fall on 16 different positions, because 3 has an inverse modulo 16.
        let of_load = |offset: usize, load: usize| {
            let mut mask = [0; 16];
            for position in (0..16).map(|pixel| 3 * pixel + offset) {
                if position / 16 == load {
                    mask[position % 16] = 0xFF;
                }
            }
            twice(mask)
        };
        let gather = |part: usize| {
            let offset = offsets[part];
            twice(if BPP == 4 {
                let parts = [offsets[0], offsets[1], offsets[2], 3];
                from_fn(|i| (i % 4 * 4 + parts[i / 4]) as u8)
            } else {
                from_fn(|pixel| ((3 * pixel + offset) % 16) as u8)
            })
        };
        Self {
            from_second: offsets.map(|offset| of_load(offset, 1)),
            from_third: offsets.map(|offset| of_load(offset, 2)),
            gather: [gather(0), gather(1), gather(2)],
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn compute(&self, top: [__m256i; 4], bottom: [__m256i; 4]) -> vector::Result {
        match (KIND, BPP) {
            (kind::GRAY, _) => gray([top[0], bottom[0]]),
            (kind::MATRIX, _) => matrix([self.apart(top), self.apart(bottom)]),
            (_, 3) => yuv([self.apart(top), self.apart(bottom)]),
            (_, _) => yuyv([[top[0], top[1]], [bottom[0], bottom[1]]]),
        }
    }

    /// The three parts of 32 pixels, each in pixel order.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn apart(&self, row: [__m256i; 4]) -> [__m256i; 3] {
        if BPP == 4 {
            let gather = |load: usize| _mm256_shuffle_epi8(row[load], self.gather[0]);
            let (a, b, c, d) = (gather(0), gather(1), gather(2), gather(3));
            let (low_ab, high_ab) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (low_cd, high_cd) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            return [
                _mm256_unpacklo_epi64(low_ab, low_cd),
                _mm256_unpackhi_epi64(low_ab, low_cd),
                _mm256_unpacklo_epi64(high_ab, high_cd),
            ];
        }
        let part = |part: usize| {
            let two = _mm256_blendv_epi8(row[0], row[1], self.from_second[part]);
            let all = _mm256_blendv_epi8(two, row[2], self.from_third[part]);
            _mm256_shuffle_epi8(all, self.gather[part])
        };
        [part(0), part(1), part(2)]
    }
}

/// Blue, green and red of two rows through the matrix of `plain`.
#[inline]
#[target_feature(enable = "avx2")]
fn matrix(rows: [[__m256i; 3]; 2]) -> [__m256i; 3] {
    let luma = |[b, g, r]: [__m256i; 3]| {
        // Green twice: its weight does not fit a signed byte. Neither sum reaches 2^15, and
        // both together stay below 2^16.
        let half = |bg, rg| {
            let bg = _mm256_maddubs_epi16(bg, pair8(16, 79));
            let rg = _mm256_maddubs_epi16(rg, pair8(47, 78));
            let sum = _mm256_add_epi16(_mm256_add_epi16(bg, rg), _mm256_set1_epi16(LUMA_BIAS));
            _mm256_srli_epi16::<8>(sum)
        };
        _mm256_packus_epi16(
            half(_mm256_unpacklo_epi8(b, g), _mm256_unpacklo_epi8(r, g)),
            half(_mm256_unpackhi_epi8(b, g), _mm256_unpackhi_epi8(r, g)),
        )
    };
    let [b, g, r] = sums(rows);
    // 257 times this is the bias of 128 and a half in 1/1024; it rides along beside red.
    let one = _mm256_set1_epi16(512);
    let bg = [_mm256_unpacklo_epi16(b, g), _mm256_unpackhi_epi16(b, g)];
    let r1 = [_mm256_unpacklo_epi16(r, one), _mm256_unpackhi_epi16(r, one)];
    let chroma = |blue: i16, green: i16, red: i16| {
        let half = |i: usize| {
            let bg = _mm256_madd_epi16(bg[i], pair16(blue, green));
            let r1 = _mm256_madd_epi16(r1[i], pair16(red, 257));
            _mm256_srli_epi32::<10>(_mm256_add_epi32(bg, r1))
        };
        _mm256_packs_epi32(half(0), half(1))
    };
    let uv = joined(chroma(112, -86, -26), chroma(-10, -102, 112));
    [luma(rows[0]), luma(rows[1]), uv]
}

#[inline]
#[target_feature(enable = "avx2")]
fn gray(rows: [__m256i; 2]) -> [__m256i; 3] {
    let luma = |row| {
        let half = |gray| {
            let scaled = _mm256_mullo_epi16(gray, _mm256_set1_epi16(220));
            _mm256_srli_epi16::<8>(_mm256_add_epi16(scaled, _mm256_set1_epi16(LUMA_BIAS)))
        };
        let zero = _mm256_setzero_si256();
        _mm256_packus_epi16(
            half(_mm256_unpacklo_epi8(row, zero)),
            half(_mm256_unpackhi_epi8(row, zero)),
        )
    };
    [luma(rows[0]), luma(rows[1]), _mm256_set1_epi8(128_u8 as i8)]
}

/// Y, U and V apart.
#[inline]
#[target_feature(enable = "avx2")]
fn yuv(rows: [[__m256i; 3]; 2]) -> [__m256i; 3] {
    let [_, u, v] = sums(rows);
    let mean = |sum| _mm256_srli_epi16::<2>(_mm256_add_epi16(sum, _mm256_set1_epi16(2)));
    [rows[0][0], rows[1][0], joined(mean(u), mean(v))]
}

/// Y0 U Y1 V.
#[inline]
#[target_feature(enable = "avx2")]
fn yuyv(rows: [[__m256i; 2]; 2]) -> [__m256i; 3] {
    let low = _mm256_set1_epi16(0xFF);
    let luma = |[a, b]: [__m256i; 2]| {
        _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low))
    };
    let chroma = |[a, b]: [__m256i; 2]| {
        _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b))
    };
    let mean = _mm256_avg_epu8(chroma(rows[0]), chroma(rows[1]));
    let uv = joined(_mm256_and_si256(mean, low), _mm256_srli_epi16::<8>(mean));
    [luma(rows[0]), luma(rows[1]), uv]
}

/// Each part summed over two by two pixels.
#[inline]
#[target_feature(enable = "avx2")]
fn sums([top, bottom]: [[__m256i; 3]; 2]) -> [__m256i; 3] {
    let pairs = |part| _mm256_maddubs_epi16(part, _mm256_set1_epi8(1));
    let sum = |i: usize| _mm256_add_epi16(pairs(top[i]), pairs(bottom[i]));
    [sum(0), sum(1), sum(2)]
}

/// 16 bytes of U, then 16 of V.
#[inline]
#[target_feature(enable = "avx2")]
fn joined(u: __m256i, v: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(u, v))
}

#[inline]
#[target_feature(enable = "avx2")]
fn pair8(even: i8, odd: i8) -> __m256i {
    _mm256_set1_epi16(i16::from_le_bytes([even as u8, odd as u8]))
}

#[inline]
#[target_feature(enable = "avx2")]
fn pair16(even: i16, odd: i16) -> __m256i {
    _mm256_set1_epi32(i32::from(even) & 0xFFFF | i32::from(odd) << 16)
}

/// The same 16 bytes in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn twice(bytes: [u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are readable there; the load needs no alignment.
    let half = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    _mm256_broadcastsi128_si256(half)
}

/// A unit's 32 pixels: of `BPP` registers, each has 16 bytes of the first 16 pixels and 16 bytes
/// of the others. Each byte is read once, and none beside.
///
/// # Safety
///
/// `from` must point at the unit's `32 * BPP` bytes, mapped readable or with faults handled. They
/// may change meanwhile.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const BPP: usize>(from: *const u8) -> [__m256i; 4] {
    let mut loads = [_mm256_setzero_si256(); 4];
    // Not `from_fn`: a closure with vectors in it is inlined by luck only.
    for (i, load) in loads.iter_mut().enumerate().take(BPP) {
        // SAFETY: the caller's: both halves lie inside the unit.
        *load = unsafe { load_halves(from.add(16 * i), from.add(16 * (BPP + i))) };
    }
    loads
}

/// # Safety
///
/// As [`load`], for 16 bytes at each pointer.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_halves(low: *const u8, high: *const u8) -> __m256i {
    let value: __m256i;
    // SAFETY: the caller's. Being assembly that is not `pure`, it runs once where it stands.
    unsafe {
        asm!(
            "vmovdqu {value:x}, [{low}]",
            "vinserti128 {value:y}, {value:y}, [{high}], 1",
            value = out(ymm_reg) value,
            low = in(reg) low,
            high = in(reg) high,
            options(nostack, preserves_flags, readonly),
        );
    }
    value
}

/// 16 and a half, in 1/256.
const LUMA_BIAS: i16 = 16 * 256 + 128;
