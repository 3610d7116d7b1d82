//! Every pixel format to I420, BT.709 limited range, in one pass over the segment.
//!
//! The source is memory that another process may be writing, so no Rust reference to it exists.
//! Three rungs read it, and give the same bytes to the last bit:
//!
//! | rung | reads by | needs |
//! | --- | --- | --- |
//! | [`Rung::Avx512`] | vector loads in inline assembly, masked at the edge | F, BW, VL, VBMI, VNNI |
//! | [`Rung::Avx2`] | vector loads in inline assembly; the last pixels of a row through a strip | AVX2 |
//! | [`Rung::Plain`] | a strip: a small private copy of a part of two rows | nothing |
//!
//! The compiler can neither split nor repeat such a load, and a torn value is only a wrong pixel,
//! which the coherence check around the pass rejects. A conversion crate takes slices, so it would
//! always need the strip: that costs 1.3 to 3 times a memcpy of the frame, the AVX-512 kernel
//! about one.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vector;

use std::sync::OnceLock;

use super::surface::I420PlanesMut;
use super::{FrameView, PixelFormat};
use rows::row_pairs;

/// How the pixels are read and computed; the fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rung {
    Avx512,
    Avx2,
    Plain,
}

impl Rung {
    /// Every rung, the fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Plain];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Plain => "plain",
        }
    }

    /// The rung of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rung| rung.name() == name)
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Plain => true,
        }
    }
}

/// The conversion kernels of one rung. A value that exists can run on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converter {
    rung: Rung,
}

impl Converter {
    /// Names a rung to use in place of the fastest (`avx512`, `avx2` or `plain`): for comparing
    /// them in the whole program.
    pub const ENV: &str = "CVMMAP_CONVERTER";

    /// The fastest that this machine runs, or the one that [`Self::ENV`] names; chosen once.
    pub fn best() -> Self {
        static BEST: OnceLock<Converter> = OnceLock::new();
        *BEST.get_or_init(|| {
            let fastest = || {
                Self::available()
                    .next()
                    .unwrap_or(Self { rung: Rung::Plain })
            };
            let Some(wanted) = std::env::var_os(Self::ENV) else {
                return fastest();
            };
            let named = wanted.to_str().and_then(Rung::from_name);
            named.and_then(Self::with).unwrap_or_else(|| {
                let fastest = fastest();
                log::warn!(
                    "{}={} is none of avx512, avx2 and plain, or this machine lacks it; using {}",
                    Self::ENV,
                    wanted.display(),
                    fastest.rung.name()
                );
                fastest
            })
        })
    }

    /// The kernels of `rung`, if this machine can run them.
    pub fn with(rung: Rung) -> Option<Self> {
        rung.is_available().then_some(Self { rung })
    }

    /// Every rung that this machine can run, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Rung::ALL.into_iter().filter_map(Self::with)
    }

    pub fn rung(self) -> Rung {
        self.rung
    }

    /// Reads the picture once and writes the three planes.
    ///
    /// Alpha is ignored. Gray leaves U and V alone, because they are 128 since the surface was made:
    /// writing them again would be a third of all it writes. Planes of an odd picture repeat its last column and row. A YUYV row of
    /// odd width ends before its last V: the V before it is repeated, 128 if there is none. Of the
    /// bytes between a plane's width and its stride none is written.
    ///
    /// # Panics
    ///
    /// If `planes` are not the picture's size rounded up to even, or shorter than they say.
    pub fn to_i420(self, view: &FrameView<'_>, planes: &mut I420PlanesMut<'_>) {
        let left = view.left();
        rows::check(left.width, left.height, planes);
        let (format, width) = (view.info().format, left.width as usize);
        let pairs = row_pairs(view, planes);
        // SAFETY: the pairs are those of this view, and `with` makes a rung only where the CPU has
        // its features.
        unsafe {
            match self.rung {
                #[cfg(target_arch = "x86_64")]
                Rung::Avx512 => avx512::convert(format, width, pairs),
                #[cfg(target_arch = "x86_64")]
                Rung::Avx2 => avx2::convert(format, width, pairs),
                _ => plain::convert(format, width, pairs),
            }
        }
        if format == PixelFormat::Yuyv && width % 2 == 1 {
            repeat_last_v(width / 2, planes);
        }
    }
}

/// Gives the half pair at the end of an odd YUYV row its V, which the source does not have.
fn repeat_last_v(last: usize, planes: &mut I420PlanesMut<'_>) {
    for row in planes.v.chunks_mut(planes.chroma_stride) {
        row[last] = last.checked_sub(1).map_or(128, |before| row[before]);
    }
}
