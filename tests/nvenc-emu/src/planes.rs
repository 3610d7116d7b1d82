//! Where a picture lies in memory, to the planes that the encoders take.

use crate::codec::I420;
use crate::config::config;
use crate::session::Init;

/// Reads a picture out of "device" memory.
pub fn planes(address: usize, pitch: usize, format: u32, init: Init) -> I420 {
    let (width, height) = (init.width, init.height);
    if config().idle && init.coded_before {
        return I420::new(0, 0);
    }
    let mut picture = I420::new(width, height);
    let row = |offset: usize, length: usize| {
        // SAFETY: registration or creation checked that pitch and rows lie inside a live block.
        unsafe { std::slice::from_raw_parts((address + offset) as *const u8, length) }
    };
    match format {
        0x1 => {
            for y in 0..height {
                picture.y[y * width..(y + 1) * width].copy_from_slice(row(y * pitch, width));
            }
            for y in 0..height / 2 {
                let source = row((height + y) * pitch, width);
                for x in 0..width / 2 {
                    picture.u[y * width / 2 + x] = source[2 * x];
                    picture.v[y * width / 2 + x] = source[2 * x + 1];
                }
            }
        }
        0x10 | 0x100 => {
            for y in 0..height {
                picture.y[y * width..(y + 1) * width].copy_from_slice(row(y * pitch, width));
            }
            let half = pitch / 2;
            let (first, second) = (pitch * height, pitch * height + half * height / 2);
            let (u, v) = if format == 0x100 {
                (first, second)
            } else {
                (second, first)
            };
            for y in 0..height / 2 {
                let at = y * width / 2..(y + 1) * width / 2;
                picture.u[at.clone()].copy_from_slice(row(u + y * half, width / 2));
                picture.v[at].copy_from_slice(row(v + y * half, width / 2));
            }
        }
        _ => rgb(&mut picture, format, |y, x| {
            let pixel = row(y * pitch + x * 4, 4);
            [
                f32::from(pixel[0]),
                f32::from(pixel[1]),
                f32::from(pixel[2]),
            ]
        }),
    }
    picture
}

/// The driver's own conversion: BT.601, limited range.
fn rgb(picture: &mut I420, format: u32, pixel: impl Fn(usize, usize) -> [f32; 3]) {
    let (width, height) = (picture.width, picture.height);
    for y in 0..height {
        for x in 0..width {
            let [a, g, c] = pixel(y, x);
            let (r, b) = if format == 0x0100_0000 {
                (c, a)
            } else {
                (a, c)
            };
            let luma = 16.0 + 0.257 * r + 0.504 * g + 0.098 * b;
            picture.y[y * width + x] = luma.round() as u8;
            if x % 2 == 0 && y % 2 == 0 {
                let at = y / 2 * (width / 2) + x / 2;
                picture.u[at] = (128.0 - 0.148 * r - 0.291 * g + 0.439 * b).round() as u8;
                picture.v[at] = (128.0 + 0.439 * r - 0.368 * g - 0.071 * b).round() as u8;
            }
        }
    }
}
