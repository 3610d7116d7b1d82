//! A picture made smaller or larger, as a tile of a grid.

use super::picture::{BLACK, NEUTRAL, Plane, Yuv420};
use crate::frame::surface::I420Planes;

/// Fits pictures of one size into tiles of another, with black bars where the aspects differ.
///
/// Bilinear with pixel centres aligned; at one half that is the mean of four pixels.
#[derive(Debug, Clone)]
pub struct TileScaler {
    tile: (usize, usize),
    planes: [PlaneScaler; 2],
}

#[derive(Debug, Clone)]
struct PlaneScaler {
    left: usize,
    top: usize,
    columns: Vec<Tap>,
    rows: Vec<Tap>,
}

/// The first of two source positions, the second, and the second's share in 256ths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tap {
    first: usize,
    second: usize,
    share: u32,
}

impl TileScaler {
    /// `source` and `tile` are widths and heights, those of the tile even.
    pub fn new(source: (usize, usize), tile: (usize, usize)) -> Self {
        let ratio = f64::min(
            tile.0 as f64 / source.0 as f64,
            tile.1 as f64 / source.1 as f64,
        );
        let even =
            |side: f64, most: usize| (((side / 2.0).round() as usize) * 2).clamp(2, most.max(2));
        let inner = (
            even(source.0 as f64 * ratio, tile.0),
            even(source.1 as f64 * ratio, tile.1),
        );
        // Even offsets, so that chroma stays aligned.
        let (left, top) = ((tile.0 - inner.0) / 4 * 2, (tile.1 - inner.1) / 4 * 2);
        let half = |n: usize| n.div_ceil(2);
        Self {
            tile,
            planes: [
                PlaneScaler {
                    left,
                    top,
                    columns: taps(source.0, inner.0),
                    rows: taps(source.1, inner.1),
                },
                PlaneScaler {
                    left: left / 2,
                    top: top / 2,
                    columns: taps(half(source.0), inner.0 / 2),
                    rows: taps(half(source.1), inner.1 / 2),
                },
            ],
        }
    }

    /// A tile of `source`, whose rows have the strides of a surface.
    pub fn scale(&self, source: &I420Planes<'_>) -> Yuv420 {
        let mut tile = Yuv420::black(self.tile.0, self.tile.1);
        let (width, chroma) = (tile.width, tile.chroma_width());
        let [luma, other] = &self.planes;
        luma.apply(source.y, source.luma_stride, &mut tile.y, width);
        other.apply(source.u, source.chroma_stride, &mut tile.u, chroma);
        other.apply(source.v, source.chroma_stride, &mut tile.v, chroma);
        tile
    }
}

impl PlaneScaler {
    fn apply(&self, source: &[u8], stride: usize, out: &mut [u8], width: usize) {
        for (row, tap) in out.chunks_mut(width).skip(self.top).zip(&self.rows) {
            let (upper, lower) = (
                &source[tap.first * stride..],
                &source[tap.second * stride..],
            );
            let below = tap.share;
            for (pixel, tap) in row[self.left..].iter_mut().zip(&self.columns) {
                let mix = |row: &[u8]| {
                    u32::from(row[tap.first]) * (256 - tap.share)
                        + u32::from(row[tap.second]) * tap.share
                };
                let sum = mix(upper) * (256 - below) + mix(lower) * below;
                *pixel = ((sum + (1 << 15)) >> 16) as u8;
            }
        }
    }
}

fn taps(source: usize, target: usize) -> Vec<Tap> {
    let ratio = source as f64 / target as f64;
    let last = source - 1;
    let tap = |at: usize| {
        let position = ((at as f64 + 0.5) * ratio - 0.5).clamp(0.0, last as f64);
        let first = position as usize;
        Tap {
            first,
            second: (first + 1).min(last),
            share: ((position - first as f64) * 256.0).round() as u32,
        }
    };
    (0..target).map(tap).collect()
}

/// Puts a tile into the planes of a surface, its upper left corner at an even position.
pub fn place(
    tile: &Yuv420,
    (x, y): (usize, usize),
    planes: &mut crate::frame::surface::I420PlanesMut<'_>,
) {
    let [luma, u, v] = tile.planes();
    copy(luma, planes.y, planes.luma_stride, (x, y));
    copy(u, planes.u, planes.chroma_stride, (x / 2, y / 2));
    copy(v, planes.v, planes.chroma_stride, (x / 2, y / 2));
}

fn copy(tile: Plane<'_>, out: &mut [u8], stride: usize, (x, y): (usize, usize)) {
    let rows = tile.bytes.chunks_exact(tile.width);
    for (row, from) in out.chunks_mut(stride).skip(y).zip(rows) {
        row[x..x + tile.width].copy_from_slice(from);
    }
}

/// Fills a surface with black.
pub fn blacken(planes: &mut crate::frame::surface::I420PlanesMut<'_>) {
    planes.y.fill(BLACK);
    planes.u.fill(NEUTRAL);
    planes.v.fill(NEUTRAL);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PixelFormat;
    use crate::frame::surface::I420Surface;

    fn surface(width: usize, height: usize, luma: impl Fn(usize, usize) -> u8) -> I420Surface {
        let mut surface = I420Surface::new(width as u32, height as u32, PixelFormat::Yuyv);
        let planes = surface.planes_mut();
        for y in 0..height {
            for x in 0..width {
                planes.y[y * planes.luma_stride + x] = luma(x, y);
            }
        }
        surface
    }

    #[test]
    fn one_half_is_the_mean_of_four_pixels() {
        let source = surface(8, 4, |x, y| (x * 10 + y * 40) as u8);
        let tile = TileScaler::new((8, 4), (4, 2)).scale(&source.planes());
        // (0 + 10 + 40 + 50) / 4 = 25, then 20 more for each two columns
        assert_eq!(tile.y[..4], [25, 45, 65, 85]);
        assert_eq!(tile.y[4], 25 + 80);
    }

    #[test]
    fn the_same_size_is_a_copy() {
        let source = surface(6, 6, |x, y| (x * 7 + y * 31) as u8);
        let tile = TileScaler::new((6, 6), (6, 6)).scale(&source.planes());
        assert_eq!(tile.y[..6], [0, 7, 14, 21, 28, 35]);
        assert_eq!(tile.y[30..], [155, 162, 169, 176, 183, 190]);
    }

    #[test]
    fn another_aspect_gets_bars() {
        let source = surface(8, 8, |_, _| 200);
        let tile = TileScaler::new((8, 8), (16, 8)).scale(&source.planes());
        assert_eq!(
            tile.y[..16],
            [
                16, 16, 16, 16, 200, 200, 200, 200, 200, 200, 200, 200, 16, 16, 16, 16
            ]
        );
        let tall = TileScaler::new((8, 8), (4, 12)).scale(&source.planes());
        let column: Vec<_> = tall.y.iter().step_by(4).copied().collect();
        assert_eq!(column, [16, 16, 16, 16, 200, 200, 200, 200, 16, 16, 16, 16]);
    }
}
