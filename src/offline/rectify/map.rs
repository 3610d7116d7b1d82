//! The rectification as a table, made once for a recording, and its use on each picture.

use super::Rectification;
use crate::offline::picture::Plane;

/// For each pixel of a plane: the four source pixels around a position, and their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RectifyMap {
    luma: PlaneMap,
    chroma: PlaneMap,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PlaneMap {
    width: usize,
    /// Size of the source plane that the offsets were made for.
    source: (usize, usize),
    taps: Vec<Tap>,
}

/// The upper left of four source pixels, and the share of the right and lower ones in 256ths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tap {
    offset: u32,
    right: u16,
    below: u16,
}

/// The part of a side-by-side picture that is one eye, in luma pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EyeArea {
    pub left: usize,
    pub width: usize,
    pub height: usize,
    /// Of the whole picture.
    pub picture_width: usize,
}

impl RectifyMap {
    /// A table for the eye at `area`; `None` if that is too small for four pixels.
    pub fn new(rectification: &Rectification, area: EyeArea) -> Option<Self> {
        if area.width < 4 || area.height < 4 {
            return None;
        }
        let luma = PlaneMap::new(
            Target {
                x: area.left,
                width: area.width,
                height: area.height,
                stride: area.picture_width,
            },
            |u, v| rectification.source(u as f64, v as f64),
        );
        // H.26x: chroma sits on the even columns and half way between two rows.
        let half = |n: usize| n.div_ceil(2);
        let chroma = PlaneMap::new(
            Target {
                x: area.left / 2,
                width: half(area.width),
                height: half(area.height),
                stride: half(area.picture_width),
            },
            |u, v| {
                let (x, y) = rectification.source(2.0 * u as f64, 2.0 * v as f64 + 0.5);
                (x / 2.0, (y - 0.5) / 2.0)
            },
        );
        Some(Self { luma, chroma })
    }

    /// Fills rows of `stride` bytes in `out` from a plane of the side-by-side picture.
    ///
    /// # Panics
    ///
    /// If `source` is not of the size that the table was made for.
    pub fn apply(&self, plane: PlaneKind, source: Plane<'_>, out: &mut [u8], stride: usize) {
        match plane {
            PlaneKind::Luma => self.luma.apply(source, out, stride),
            PlaneKind::Chroma => self.chroma.apply(source, out, stride),
        }
    }
}

/// Which table a plane needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaneKind {
    Luma,
    Chroma,
}

impl PlaneKind {
    /// Of Y, U and V.
    pub const ALL: [Self; 3] = [Self::Luma, Self::Chroma, Self::Chroma];
}

struct Target {
    x: usize,
    width: usize,
    height: usize,
    stride: usize,
}

impl PlaneMap {
    fn new(target: Target, source: impl Fn(usize, usize) -> (f64, f64)) -> Self {
        let mut taps = Vec::with_capacity(target.width * target.height);
        for v in 0..target.height {
            for u in 0..target.width {
                let (x, y) = source(u, v);
                let (x, right) = split(x, target.width);
                let (y, below) = split(y, target.height);
                let offset = (y * target.stride + target.x + x) as u32;
                taps.push(Tap {
                    offset,
                    right,
                    below,
                });
            }
        }
        Self {
            width: target.width,
            source: (target.stride, target.height),
            taps,
        }
    }

    fn apply(&self, source: Plane<'_>, out: &mut [u8], stride: usize) {
        assert_eq!(
            (source.width, source.height),
            self.source,
            "a table for another picture"
        );
        let below_by = source.width;
        for (row, taps) in out.chunks_mut(stride).zip(self.taps.chunks(self.width)) {
            for (pixel, tap) in row.iter_mut().zip(taps) {
                let at = tap.offset as usize;
                let four = &source.bytes[at..at + below_by + 2];
                let (right, below) = (u32::from(tap.right), u32::from(tap.below));
                let upper = u32::from(four[0]) * (256 - right) + u32::from(four[1]) * right;
                let lower = u32::from(four[below_by]) * (256 - right)
                    + u32::from(four[below_by + 1]) * right;
                *pixel = ((upper * (256 - below) + lower * below + (1 << 15)) >> 16) as u8;
            }
        }
    }
}

/// A position as the first of two neighbouring pixels and the share of the second in 256ths;
/// outside, the nearest edge.
fn split(position: f64, len: usize) -> (usize, u16) {
    let last = (len - 1) as f64;
    let position = if position.is_finite() {
        position.clamp(0.0, last)
    } else {
        0.0
    };
    let first = (position as usize).min(len - 2);
    (first, ((position - first as f64) * 256.0).round() as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_split_into_pixel_and_share_and_clamp_to_the_edge() {
        assert_eq!(split(3.25, 10), (3, 64));
        assert_eq!(split(-5.0, 10), (0, 0));
        assert_eq!(split(9.0, 10), (8, 256));
        assert_eq!(split(1e9, 10), (8, 256));
        assert_eq!(split(f64::NAN, 10), (0, 0));
    }

    #[test]
    fn a_shift_by_a_quarter_pixel_mixes_two_neighbours() {
        let target = Target {
            x: 4,
            width: 4,
            height: 4,
            stride: 8,
        };
        let map = PlaneMap::new(target, |u, v| (u as f64 + 0.25, v as f64));
        let bytes: Vec<u8> = (0..32).map(|n| (n % 8) * 16).collect();
        let mut out = [0; 4 * 6];
        map.apply(
            Plane {
                width: 8,
                height: 4,
                bytes: &bytes,
            },
            &mut out,
            6,
        );
        // Columns 4 to 7 hold 64, 80, 96, 112; the last one has no right neighbour in its eye.
        assert_eq!(out[..4], [68, 84, 100, 112]);
        assert_eq!(out[6 * 3..6 * 3 + 4], [68, 84, 100, 112]);
    }

    #[test]
    fn the_table_follows_the_rectification_within_its_precision() {
        use crate::offline::calibration::StereoCalibration;
        use crate::offline::rectify::Side;
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/svo2/calib/SN40735594.conf"
        );
        let calibration = StereoCalibration::find(&[path.into()], None, (960, 600)).unwrap();
        let rectification = Rectification::of(&calibration, Side::Left).unwrap();
        let area = EyeArea {
            left: 0,
            width: 960,
            height: 600,
            picture_width: 1920,
        };
        let map = RectifyMap::new(&rectification, area).unwrap();
        // A picture whose luma is half of its column: bilinear mixing must give x / 2 back.
        let bytes: Vec<u8> = (0..1920 * 600).map(|n| (n % 1920 / 4) as u8).collect();
        let plane = Plane {
            width: 1920,
            height: 600,
            bytes: &bytes,
        };
        let mut out = vec![0; 960 * 600];
        map.apply(PlaneKind::Luma, plane, &mut out, 960);
        for (u, v) in [(10, 10), (480, 300), (900, 590), (200, 77)] {
            let (x, _) = rectification.source(u as f64, v as f64);
            let value = f64::from(out[v * 960 + u]);
            assert!(
                (value - (x - 1.5) / 4.0).abs() <= 1.0,
                "{u} {v}: {value} {x}"
            );
        }
    }
}
