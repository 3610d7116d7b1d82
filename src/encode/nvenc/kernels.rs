//! The conversion kernels as the host sees them: names, arguments, and the same integer arithmetic
//! once more in plain Rust, which the kernels must match bit by bit.
//!
//! BT.709, limited range, 8 bits. With `L = 0.2126 R + 0.7152 G + 0.0722 B`:
//! `Y = 16 + 219/255 L`, `Cb = 128 + 224/255 (B - L) / 1.8556`, `Cr = 128 + 224/255 (R - L) / 1.5748`
//! (ITU-R BT.709-6 sections 3.2 to 3.5). In 16.16 fixed point, rounded so that each chroma row sums to zero
//! and the luma row to 219/255: greys are exactly grey.

use crate::frame::PixelFormat;

/// The kernels as PTX text; the driver compiles it for its chip.
pub const PTX: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(
    concat!(include_str!("kernels.ptx"), "\0").as_bytes(),
) {
    Ok(text) => text,
    Err(_) => panic!("the PTX text holds no NUL"),
};

/// Coefficients of red, green and blue.
pub const Y: [i32; 3] = [11966, 40254, 4064];
pub const U: [i32; 3] = [-6596, -22189, 28785];
pub const V: [i32; 3] = [28785, -26146, -2639];
/// 219/255, for grey.
pub const GRAY: i32 = 56284;

/// Threads of a block.
pub const BLOCK: (u32, u32) = (32, 8);

/// Which kernel converts a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    Packed,
    Gray,
    Yuv444,
    Yuyv,
    /// For pictures that the host has converted: two chroma planes into one.
    Interleave,
}

impl Kernel {
    pub const ALL: [Self; 5] = [
        Self::Packed,
        Self::Gray,
        Self::Yuv444,
        Self::Yuyv,
        Self::Interleave,
    ];

    pub const fn of(format: PixelFormat) -> Self {
        match format {
            PixelFormat::Rgb | PixelFormat::Bgr | PixelFormat::Rgba | PixelFormat::Bgra => {
                Self::Packed
            }
            PixelFormat::Gray => Self::Gray,
            PixelFormat::Yuv => Self::Yuv444,
            PixelFormat::Yuyv => Self::Yuyv,
        }
    }

    pub const fn symbol(self) -> &'static std::ffi::CStr {
        match self {
            Self::Packed => c"packed_to_nv12",
            Self::Gray => c"gray_to_nv12",
            Self::Yuv444 => c"yuv444_to_nv12",
            Self::Yuyv => c"yuyv_to_nv12",
            Self::Interleave => c"interleave_chroma",
        }
    }
}

/// The nine coefficients in the order of the bytes of a pixel.
pub const fn coefficients(format: PixelFormat) -> [[i32; 3]; 3] {
    match format {
        PixelFormat::Bgr | PixelFormat::Bgra => [reversed(Y), reversed(U), reversed(V)],
        _ => [Y, U, V],
    }
}

const fn reversed(row: [i32; 3]) -> [i32; 3] {
    [row[2], row[1], row[0]]
}

/// One picture in NV12: `pitch` bytes a row, chroma behind `height` rows of luma.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nv12 {
    pub pitch: usize,
    /// Even.
    pub width: usize,
    /// Even.
    pub height: usize,
    pub bytes: Vec<u8>,
}

/// What the kernels compute, pixel by pixel.
pub fn reference(
    format: PixelFormat,
    (width, height): (usize, usize),
    source: &[u8],
    stride: usize,
    pitch: usize,
) -> Nv12 {
    let (even_width, even_height) = (width.next_multiple_of(2), height.next_multiple_of(2));
    let mut bytes = vec![128; pitch * even_height * 3 / 2];
    let bpp = format.bytes_per_pixel();
    let at = |x: usize, y: usize, channel: usize| {
        let (x, y) = (x.min(width - 1), y.min(height - 1));
        i32::from(source[y * stride + x * bpp + channel])
    };
    let [ys, us, vs] = coefficients(format);
    let dot = |row: [i32; 3], c: [i32; 3]| row[0] * c[0] + row[1] * c[1] + row[2] * c[2];
    for y in 0..even_height {
        for x in 0..even_width {
            let value = match Kernel::of(format) {
                Kernel::Packed => {
                    let pixel = [at(x, y, 0), at(x, y, 1), at(x, y, 2)];
                    (dot(ys, pixel) + (16 << 16) + (1 << 15)) >> 16
                }
                Kernel::Gray => (GRAY * at(x, y, 0) + (16 << 16) + (1 << 15)) >> 16,
                _ => at(x, y, 0),
            };
            bytes[y * pitch + x] = value.clamp(0, 255) as u8;
        }
    }
    for y in (0..even_height).step_by(2) {
        for x in (0..even_width).step_by(2) {
            let sum = |channel| {
                at(x, y, channel)
                    + at(x + 1, y, channel)
                    + at(x, y + 1, channel)
                    + at(x + 1, y + 1, channel)
            };
            let (u, v) = match Kernel::of(format) {
                Kernel::Packed => {
                    let sums = [sum(0), sum(1), sum(2)];
                    let round = |value: i32| (value + (128 << 18) + (1 << 17)) >> 18;
                    (round(dot(us, sums)), round(dot(vs, sums)))
                }
                Kernel::Yuv444 => ((sum(1) + 2) >> 2, (sum(2) + 2) >> 2),
                Kernel::Yuyv => {
                    let mean = |pair, part| (at(pair, y, part) + at(pair, y + 1, part) + 1) >> 1;
                    // The half pair at the end of an odd row has no V: that before it is repeated.
                    let v = match x {
                        _ if x + 1 < width => mean(x, 3),
                        0 => 128,
                        _ => mean(x - 2, 3),
                    };
                    (mean(x, 1), v)
                }
                _ => (128, 128),
            };
            let chroma = (even_height + y / 2) * pitch + x;
            bytes[chroma] = u.clamp(0, 255) as u8;
            bytes[chroma + 1] = v.clamp(0, 255) as u8;
        }
    }
    Nv12 {
        pitch,
        width: even_width,
        height: even_height,
        bytes,
    }
}

#[cfg(test)]
mod tests;
