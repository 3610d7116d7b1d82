//! The oracle is the unrounded formula in floating point, with its own idea of each format.

use proptest::prelude::*;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::super::surface::{I420Planes, I420Surface};
use super::super::{FrameInfo, PlaneLayout};
use super::*;

/// As asked of every path: levels between a byte and the unrounded formula.
const ALLOWED: f64 = 1.25;

#[test]
fn every_rung_is_within_1_25_levels_of_the_formula_on_random_and_corner_pictures() {
    let sizes = [
        (1, 1),
        (2, 2),
        (3, 7),
        (64, 6),
        (97, 5),
        (200, 9),
        (1921, 3),
    ];
    for (i, (width, height)) in sizes.into_iter().enumerate() {
        for format in PixelFormat::ALL {
            let len = width * height * format.bytes_per_pixel();
            let noise: Vec<u8> = noise(i as u64).take(len).collect();
            let corners = noise.iter().map(|byte| if byte & 1 == 0 { 0 } else { 255 });
            for bytes in [noise.clone(), corners.collect()] {
                let picture = Picture::tight(format, width, height, bytes);
                for converter in rungs() {
                    picture.assert_near_formula(converter);
                }
            }
        }
    }
}

#[test]
fn every_colour_of_a_flat_picture_is_within_1_25_levels_of_the_formula() {
    for (b, g, r) in (0..=255_u8)
        .flat_map(|b| (0..=255_u8).flat_map(move |g| (0..=255_u8).map(move |r| (b, g, r))))
    {
        let [y, u, v] = bt709(f64::from(r), f64::from(g), f64::from(b));
        let sum = |part: u8| 4 * i32::from(part);
        let (got_u, got_v) = plain::chroma(sum(b), sum(g), sum(r));
        for (got, want) in [(plain::luma(b, g, r), y), (got_u, u), (got_v, v)] {
            let error = (f64::from(got) - want).abs();
            assert!(error <= ALLOWED, "b {b} g {g} r {r}: {got} for {want}");
        }
    }
}

#[test]
fn vector_rungs_equal_their_plain_twin_for_every_width_to_200_and_odd_heights() {
    let plain = Converter::with(Rung::Plain).unwrap();
    for format in PixelFormat::ALL {
        for (width, height) in (1..=200).flat_map(|w| [(w, 1), (w, 2), (w, 3), (w, 5)]) {
            let stride = width * format.bytes_per_pixel() + width % 7;
            let bytes = noise(width as u64).take(stride * height).collect();
            let picture = Picture {
                format,
                width,
                height,
                stride,
                bytes,
            };
            let want = picture.convert(plain);
            for converter in rungs() {
                let got = picture.convert(converter);
                assert!(
                    same(&got, &want),
                    "{converter:?} {format:?} {width}x{height}"
                );
            }
        }
    }
}

/// Any read beside the picture is a segmentation fault here.
#[test]
fn nothing_is_read_before_or_behind_the_picture() {
    const PAGE: usize = 4096;
    let guarded = Guarded::new(PAGE);
    for format in PixelFormat::ALL {
        for (width, height) in (1..=140).flat_map(|w| [(w, 1), (w, 3), (w, 4)]) {
            let len = width * height * format.bytes_per_pixel();
            let bytes: Vec<u8> = noise(7).take(len.min(PAGE)).collect();
            if len > PAGE {
                continue;
            }
            let info = info(format, width, height, width * format.bytes_per_pixel());
            let want = Picture::tight(format, width, height, bytes.clone());
            for start in [0, PAGE - len] {
                for converter in rungs() {
                    let got = guarded.with(start, &bytes, |payload| {
                        let mut surface = marked_surface(width, height, format);
                        let view = FrameView::from_slice(info, payload);
                        converter.to_i420(&view, &mut surface.planes_mut());
                        surface
                    });
                    assert!(
                        same(&got, &want.convert(converter)),
                        "{converter:?} {format:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn nothing_is_written_beside_the_rows_of_the_planes() {
    for format in PixelFormat::ALL {
        for (width, height) in (1..=130).map(|w| (w, 3)) {
            let len = width * height * format.bytes_per_pixel();
            let picture = Picture::tight(format, width, height, vec![200; len]);
            for converter in rungs() {
                let surface = picture.convert(converter);
                let planes = surface.planes();
                let w = planes.width as usize;
                let of = |plane: &[u8], stride: usize, width: usize| {
                    plane
                        .chunks(stride)
                        .all(|row| row[width..].iter().all(|&b| b == MARK))
                };
                assert!(
                    of(planes.y, planes.luma_stride, w),
                    "{converter:?} {format:?} {width}"
                );
                // Gray has nothing to write there at all: the 128 of the new surface stays.
                let (mark, from) = match format {
                    PixelFormat::Gray => (128, 0),
                    _ => (MARK, w / 2),
                };
                for plane in [planes.u, planes.v] {
                    let mut rows = plane.chunks(planes.chroma_stride);
                    let untouched = rows.all(|row| row[from..].iter().all(|&b| b == mark));
                    assert!(untouched, "{converter:?} {format:?} {width}");
                }
            }
        }
    }
}

#[test]
fn every_grey_is_exactly_grey_and_black_and_white_are_16_and_235() {
    let with_grey = [
        PixelFormat::Rgb,
        PixelFormat::Bgr,
        PixelFormat::Rgba,
        PixelFormat::Bgra,
        PixelFormat::Gray,
    ];
    for format in with_grey {
        for grey in 0..=255_u8 {
            let mut pixel = [grey; 4];
            pixel[3] = !grey; // alpha, where there is one
            let bytes = pixel[..format.bytes_per_pixel()].repeat(34 * 2);
            let picture = Picture::tight(format, 34, 2, bytes);
            for converter in rungs() {
                let surface = picture.convert(converter);
                let name = format!("{converter:?} {format:?} {grey}");
                let (lumas, us, vs) = content(surface.planes());
                assert!(us.iter().chain(&vs).all(|&byte| byte == 128), "{name}");
                assert!(lumas.iter().all(|&y| y == lumas[0]), "{name}");
                match grey {
                    0 => assert_eq!(lumas[0], 16, "{name}"),
                    255 => assert_eq!(lumas[0], 235, "{name}"),
                    _ => assert!((16..=235).contains(&lumas[0]), "{name}"),
                }
            }
        }
    }
}

/// The 100 % colour bars of BT.709, 8 bits: Y, Cb, Cr.
#[test]
fn pure_red_green_and_blue_become_the_bars_of_bt_709() {
    let bars = [
        ([255, 0, 0], [63, 102, 240]),
        ([0, 255, 0], [173, 42, 26]),
        ([0, 0, 255], [32, 240, 118]),
    ];
    for ([r, g, b], want) in bars {
        let formats = [
            (PixelFormat::Rgb, vec![r, g, b]),
            (PixelFormat::Bgr, vec![b, g, r]),
            (PixelFormat::Rgba, vec![r, g, b, 9]),
            (PixelFormat::Bgra, vec![b, g, r, 9]),
        ];
        for (format, pixel) in formats {
            let picture = Picture::tight(format, 70, 4, pixel.repeat(70 * 4));
            for converter in rungs() {
                let surface = picture.convert(converter);
                let (y, u, v) = content(surface.planes());
                for (plane, want) in [y, u, v].iter().zip(want) {
                    let near = plane.iter().all(|&byte| byte.abs_diff(want) <= 1);
                    assert!(near, "{converter:?} {format:?} {want}: {:?}", plane[0]);
                }
            }
        }
    }
}

/// Bytes written out by hand: two rows, chroma differing in both, a half pair at the end.
#[test]
fn yuyv_averages_both_rows_and_repeats_the_v_before_a_half_pair() {
    let rows = [
        [10, 100, 20, 200, 30, 50], // Y0 U0 Y1 V0, Y2 U1
        [40, 103, 50, 201, 60, 52],
    ];
    let picture = Picture::tight(PixelFormat::Yuyv, 3, 2, rows.concat());
    for converter in rungs() {
        let surface = picture.convert(converter);
        let (y, u, v) = content(surface.planes());
        assert_eq!(y, [10, 20, 30, 30, 40, 50, 60, 60], "{converter:?}");
        assert_eq!((u, v), (vec![102, 51], vec![201, 201]), "{converter:?}");
    }
}

#[test]
fn a_rung_is_found_by_its_name() {
    for rung in Rung::ALL {
        assert_eq!(Rung::from_name(rung.name()), Some(rung));
    }
    assert_eq!(Rung::from_name("sse9"), None);
    assert_eq!(
        Converter::available().last().map(Converter::rung),
        Some(Rung::Plain)
    );
}

#[test]
#[should_panic(expected = "planes for a picture of 64x2")]
fn planes_of_another_size_are_refused() {
    let picture = Picture::tight(PixelFormat::Gray, 64, 2, vec![0; 128]);
    let mut surface = I420Surface::new(62, 2, PixelFormat::Gray);
    let view = FrameView::from_slice(picture.info(), &picture.bytes);
    Converter::best().to_i420(&view, &mut surface.planes_mut());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_picture_is_near_the_formula_and_the_same_on_every_rung(
        format in prop::sample::select(PixelFormat::ALL.to_vec()),
        (width, height) in (1_usize..=300, 1_usize..=8),
        padding in 0_usize..=70,
        seed: u64,
    ) {
        let stride = width * format.bytes_per_pixel() + padding;
        let bytes = noise(seed).take(stride * height).collect();
        let picture = Picture { format, width, height, stride, bytes };
        let plain = picture.convert(Converter::with(Rung::Plain).unwrap());
        for converter in rungs() {
            picture.assert_near_formula(converter);
            prop_assert!(same(&picture.convert(converter), &plain), "{:?}", converter);
        }
    }
}

struct Picture {
    format: PixelFormat,
    width: usize,
    height: usize,
    stride: usize,
    bytes: Vec<u8>,
}

impl Picture {
    fn tight(format: PixelFormat, width: usize, height: usize, bytes: Vec<u8>) -> Self {
        let stride = width * format.bytes_per_pixel();
        Self {
            format,
            width,
            height,
            stride,
            bytes,
        }
    }

    fn info(&self) -> FrameInfo {
        info(self.format, self.width, self.height, self.stride)
    }

    fn convert(&self, converter: Converter) -> I420Surface {
        let mut surface = marked_surface(self.width, self.height, self.format);
        let view = FrameView::from_slice(self.info(), &self.bytes);
        converter.to_i420(&view, &mut surface.planes_mut());
        surface
    }

    fn assert_near_formula(&self, converter: Converter) {
        let surface = self.convert(converter);
        let planes = surface.planes();
        let near = |got: u8, want: f64, what: &str, x: usize, y: usize| {
            let name = format!(
                "{converter:?} {:?} {}x{}",
                self.format, self.width, self.height
            );
            let error = (f64::from(got) - want).abs();
            assert!(
                error <= ALLOWED,
                "{name} {what} at {x},{y}: {got} for {want}"
            );
        };
        let (width, height) = (planes.width as usize, planes.height as usize);
        for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
            near(
                planes.y[y * planes.luma_stride + x],
                self.unrounded(x, y)[0],
                "Y",
                x,
                y,
            );
        }
        for (x, y) in (0..height / 2).flat_map(|y| (0..width / 2).map(move |x| (x, y))) {
            let four = [(0, 0), (1, 0), (0, 1), (1, 1)]
                .map(|(dx, dy)| self.unrounded(2 * x + dx, 2 * y + dy));
            let mean = |part: usize| four.iter().map(|pixel| pixel[part]).sum::<f64>() / 4.0;
            let at = y * planes.chroma_stride + x;
            near(planes.u[at], mean(1), "U", x, y);
            near(planes.v[at], mean(2), "V", x, y);
        }
    }

    /// Y, U and V of a pixel; the last column and row go on for ever.
    fn unrounded(&self, x: usize, y: usize) -> [f64; 3] {
        let (x, y) = (x.min(self.width - 1), y.min(self.height - 1));
        let byte = |i: usize| f64::from(self.bytes[y * self.stride + i]);
        match self.format {
            PixelFormat::Rgb => bt709(byte(3 * x), byte(3 * x + 1), byte(3 * x + 2)),
            PixelFormat::Bgr => bt709(byte(3 * x + 2), byte(3 * x + 1), byte(3 * x)),
            PixelFormat::Rgba => bt709(byte(4 * x), byte(4 * x + 1), byte(4 * x + 2)),
            PixelFormat::Bgra => bt709(byte(4 * x + 2), byte(4 * x + 1), byte(4 * x)),
            PixelFormat::Gray => bt709(byte(x), byte(x), byte(x)),
            PixelFormat::Yuv => [byte(3 * x), byte(3 * x + 1), byte(3 * x + 2)],
            PixelFormat::Yuyv => {
                let pair = x / 2;
                let v = match (x == self.width - 1 && x % 2 == 0, pair) {
                    (false, _) => byte(4 * pair + 3),
                    (true, 0) => 128.0,
                    (true, _) => byte(4 * (pair - 1) + 3),
                };
                [byte(2 * x), byte(4 * pair + 1), v]
            }
        }
    }
}

/// ITU-R BT.709, 8 bits, limited range, not rounded.
fn bt709(r: f64, g: f64, b: f64) -> [f64; 3] {
    let luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    [
        16.0 + 219.0 / 255.0 * luma,
        128.0 + 224.0 / 255.0 * (b - luma) / 1.8556,
        128.0 + 224.0 / 255.0 * (r - luma) / 1.5748,
    ]
}

fn info(format: PixelFormat, width: usize, height: usize, stride: usize) -> FrameInfo {
    let size = (stride * height) as u32;
    FrameInfo {
        frame_id: 1,
        capture_ts_ns: 0,
        format,
        left: PlaneLayout {
            width: width as u32,
            height: height as u32,
            stride: stride as u32,
            offset: 0,
            size,
        },
        encoded: None,
        frame_rate: None,
        payload_size: size,
    }
}

/// What a surface's bytes are before, so that a byte left out is seen.
const MARK: u8 = 0xA5;

/// Gray keeps the chroma that the surface was made with: so it is as in the streamer.
fn marked_surface(width: usize, height: usize, format: PixelFormat) -> I420Surface {
    let mut surface = I420Surface::new(width as u32, height as u32, format);
    let planes = surface.planes_mut();
    planes.y.fill(MARK);
    if format != PixelFormat::Gray {
        planes.u.fill(MARK);
        planes.v.fill(MARK);
    }
    surface
}

/// The planes without padding.
fn content(planes: I420Planes<'_>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let cut = |plane: &[u8], stride: usize, width: usize| -> Vec<u8> {
        plane
            .chunks(stride)
            .flat_map(|row| &row[..width])
            .copied()
            .collect()
    };
    let width = planes.width as usize;
    (
        cut(planes.y, planes.luma_stride, width),
        cut(planes.u, planes.chroma_stride, width / 2),
        cut(planes.v, planes.chroma_stride, width / 2),
    )
}

fn same(a: &I420Surface, b: &I420Surface) -> bool {
    let (a, b) = (a.planes(), b.planes());
    (a.y, a.u, a.v) == (b.y, b.u, b.v)
}

/// What this machine can run; says once what it cannot.
fn rungs() -> impl Iterator<Item = Converter> {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        for rung in Rung::ALL.into_iter().filter(|rung| !rung.is_available()) {
            println!("not tested: {}, this machine does not have it", rung.name());
        }
    });
    Converter::available()
}

/// Bytes without a pattern (xorshift64*).
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    })
}

/// Memory between two pages that must not be touched.
struct Guarded {
    start: *mut u8,
    len: usize,
}

impl Guarded {
    const GUARD: usize = 65536; // a multiple of every page size

    fn new(len: usize) -> Self {
        let total = len.next_multiple_of(Self::GUARD) + 2 * Self::GUARD;
        // SAFETY: a new private mapping of our own; only its middle is made accessible.
        let start = unsafe {
            let all = rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                total,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
            .unwrap();
            let start = all.cast::<u8>().add(Self::GUARD);
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            rustix::mm::mprotect(start.cast(), len, access).unwrap();
            start
        };
        Self { start, len }
    }

    fn with<T>(&self, at: usize, bytes: &[u8], read: impl FnOnce(&[u8]) -> T) -> T {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: inside the accessible part, and nobody else uses it.
        let payload = unsafe { std::slice::from_raw_parts_mut(self.start.add(at), bytes.len()) };
        payload.copy_from_slice(bytes);
        read(payload)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let total = self.len.next_multiple_of(Self::GUARD) + 2 * Self::GUARD;
        // SAFETY: the mapping of `new`, whole, and no slice of it is left.
        unsafe { rustix::mm::munmap(self.start.sub(Self::GUARD).cast(), total) }.unwrap();
    }
}
