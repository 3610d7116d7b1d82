//! The clock in the corner of a grid: white digits of a built-in font on a dark box.

use super::picture::{BLACK, NEUTRAL, WHITE};
use crate::frame::surface::I420PlanesMut;

/// The text for an instant: `SSSSSSSSSS.mmm`, cut and not rounded.
pub fn clock_text(time_ns: u64) -> String {
    format!(
        "{}.{:03}",
        time_ns / 1_000_000_000,
        time_ns / 1_000_000 % 1000
    )
}

/// How many times the font is enlarged on a picture `height` pixels high: glyphs of about a
/// thirtieth of it.
pub fn scale_for(height: usize) -> usize {
    ((height as f64 / 30.0 / GLYPH_HEIGHT as f64).round() as usize).max(1)
}

/// Draws `text` (digits, point and minus) into the top-left corner; what does not fit is cut off.
pub fn draw(planes: &mut I420PlanesMut<'_>, text: &str) {
    let (width, height) = (planes.width as usize, planes.height as usize);
    let scale = scale_for(height);
    let (right, bottom) = (
        (MARGIN + text.len() * GLYPH_WIDTH * scale).min(width),
        (MARGIN + GLYPH_HEIGHT * scale).min(height),
    );
    for y in MARGIN..bottom {
        let row = &mut planes.y[y * planes.luma_stride..][..right];
        let glyph_row = (y - MARGIN) / scale;
        for (x, pixel) in row.iter_mut().enumerate().skip(MARGIN) {
            let column = (x - MARGIN) / scale;
            let character = text.as_bytes()[column / GLYPH_WIDTH];
            let bits = glyph(character)[glyph_row];
            let lit = bits >> (GLYPH_WIDTH - 1 - column % GLYPH_WIDTH) & 1 == 1;
            *pixel = if lit { WHITE } else { BLACK };
        }
    }
    for plane in [&mut *planes.u, &mut *planes.v] {
        for y in MARGIN / 2..bottom.div_ceil(2) {
            let row = &mut plane[y * planes.chroma_stride..];
            row[MARGIN / 2..right.div_ceil(2).max(MARGIN / 2)].fill(NEUTRAL);
        }
    }
}

/// The rows of a character, the leftmost pixel in the highest bit; blank for others than digits
/// and point.
pub fn glyph(character: u8) -> &'static [u8; GLYPH_HEIGHT] {
    match character {
        b'0'..=b'9' => &DIGITS[usize::from(character - b'0')],
        b'.' => &POINT,
        _ => &BLANK,
    }
}

pub const GLYPH_WIDTH: usize = 8;
pub const GLYPH_HEIGHT: usize = 16;
/// Pixels from the edges of the picture to the box.
pub const MARGIN: usize = 8;

const BLANK: [u8; GLYPH_HEIGHT] = [0; GLYPH_HEIGHT];
const POINT: [u8; GLYPH_HEIGHT] = rows([0, 0, 0, 0, 0, 0, 0, 0, 0b0001_1000, 0b0001_1000]);

const DIGITS: [[u8; GLYPH_HEIGHT]; 10] = [
    rows([
        0b0011_1100,
        0b0110_0110,
        0b0110_0110,
        0b0110_1110,
        0b0110_1110,
        0b0111_0110,
        0b0111_0110,
        0b0110_0110,
        0b0110_0110,
        0b0011_1100,
    ]),
    rows([
        0b0001_1000,
        0b0011_1000,
        0b0111_1000,
        0b0001_1000,
        0b0001_1000,
        0b0001_1000,
        0b0001_1000,
        0b0001_1000,
        0b0001_1000,
        0b0111_1110,
    ]),
    rows([
        0b0011_1100,
        0b0110_0110,
        0b0000_0110,
        0b0000_0110,
        0b0000_1100,
        0b0001_1000,
        0b0011_0000,
        0b0110_0000,
        0b0110_0000,
        0b0111_1110,
    ]),
    rows([
        0b0011_1100,
        0b0110_0110,
        0b0000_0110,
        0b0000_0110,
        0b0001_1100,
        0b0000_0110,
        0b0000_0110,
        0b0000_0110,
        0b0110_0110,
        0b0011_1100,
    ]),
    rows([
        0b0000_1100,
        0b0001_1100,
        0b0011_1100,
        0b0010_1100,
        0b0110_1100,
        0b0100_1100,
        0b0111_1110,
        0b0000_1100,
        0b0000_1100,
        0b0000_1100,
    ]),
    rows([
        0b0111_1110,
        0b0110_0000,
        0b0110_0000,
        0b0110_0000,
        0b0111_1100,
        0b0000_0110,
        0b0000_0110,
        0b0000_0110,
        0b0110_0110,
        0b0011_1100,
    ]),
    rows([
        0b0001_1100,
        0b0011_0000,
        0b0110_0000,
        0b0110_0000,
        0b0111_1100,
        0b0110_0110,
        0b0110_0110,
        0b0110_0110,
        0b0110_0110,
        0b0011_1100,
    ]),
    rows([
        0b0111_1110,
        0b0000_0110,
        0b0000_0110,
        0b0000_1100,
        0b0000_1100,
        0b0001_1000,
        0b0001_1000,
        0b0011_0000,
        0b0011_0000,
        0b0011_0000,
    ]),
    rows([
        0b0011_1100,
        0b0110_0110,
        0b0110_0110,
        0b0110_0110,
        0b0011_1100,
        0b0110_0110,
        0b0110_0110,
        0b0110_0110,
        0b0110_0110,
        0b0011_1100,
    ]),
    rows([
        0b0011_1100,
        0b0110_0110,
        0b0110_0110,
        0b0110_0110,
        0b0110_0110,
        0b0011_1110,
        0b0000_0110,
        0b0000_0110,
        0b0000_1100,
        0b0011_1000,
    ]),
];

/// Ten rows in the middle of a cell, with three blank ones above and below.
const fn rows(inner: [u8; 10]) -> [u8; GLYPH_HEIGHT] {
    let mut all = [0; GLYPH_HEIGHT];
    let mut at = 0;
    while at < inner.len() {
        all[at + 3] = inner[at];
        at += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PixelFormat;
    use crate::frame::surface::I420Surface;

    #[test]
    fn the_text_is_seconds_and_cut_milliseconds() {
        assert_eq!(clock_text(1_773_806_381_040_999_999), "1773806381.040");
        assert_eq!(clock_text(5_145_757_361_000), "5145.757");
    }

    #[test]
    fn glyphs_are_about_a_thirtieth_of_the_height() {
        assert_eq!([376, 720, 1200, 2160].map(scale_for), [1, 2, 3, 5]);
    }

    #[test]
    fn every_digit_differs_from_every_other() {
        for (n, digit) in DIGITS.iter().enumerate() {
            assert!(DIGITS[..n].iter().all(|other| other != digit));
        }
    }

    #[test]
    fn a_one_is_white_on_a_box_without_colour() {
        let mut surface = I420Surface::new(64, 32, PixelFormat::Yuyv);
        surface.planes_mut().y.fill(90);
        surface.planes_mut().u.fill(10);
        draw(&mut surface.planes_mut(), "1");
        let planes = surface.planes();
        let row = &planes.y[(8 + 3 + 9) * planes.luma_stride..];
        assert_eq!(
            row[6..18],
            [90, 90, 16, 235, 235, 235, 235, 235, 235, 16, 90, 90]
        );
        assert_eq!(planes.y[7 * planes.luma_stride + 8], 90);
        let chroma = &planes.u[4 * planes.chroma_stride..];
        assert_eq!(chroma[3..9], [10, 128, 128, 128, 128, 10]);
        // Too small a picture for all of it.
        let mut small = I420Surface::new(16, 16, PixelFormat::Yuyv);
        draw(&mut small.planes_mut(), "123456");
        let mut tiny = I420Surface::new(4, 4, PixelFormat::Yuyv);
        draw(&mut tiny.planes_mut(), "123456");
    }
}
