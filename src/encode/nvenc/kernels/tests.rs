//! The reference against unrounded BT.709, the CUDA source against the reference, the committed
//! PTX against the CUDA source. None of this needs a GPU; the last two need clang and say so.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

fn one_pixel(format: PixelFormat, pixel: &[u8]) -> (u8, u8, u8) {
    let source = pixel.repeat(4);
    let stride = pixel.len() * 2;
    let picture = reference(format, (2, 2), &source, stride, 4);
    (picture.bytes[0], picture.bytes[8], picture.bytes[9])
}

/// BT.709 colour bars in limited range, as ITU-R BT.709 tables give them.
#[test]
fn primaries_are_those_of_bt_709() {
    let bars: [([u8; 3], (u8, u8, u8)); 6] = [
        ([255, 255, 255], (235, 128, 128)),
        ([0, 0, 0], (16, 128, 128)),
        ([255, 0, 0], (63, 102, 240)),
        ([0, 255, 0], (173, 42, 26)),
        ([0, 0, 255], (32, 240, 118)),
        ([128, 128, 128], (126, 128, 128)),
    ];
    for ([r, g, b], yuv) in bars {
        assert_eq!(one_pixel(PixelFormat::Rgb, &[r, g, b]), yuv);
        assert_eq!(one_pixel(PixelFormat::Bgr, &[b, g, r]), yuv);
        assert_eq!(one_pixel(PixelFormat::Rgba, &[r, g, b, 7]), yuv);
        assert_eq!(one_pixel(PixelFormat::Bgra, &[b, g, r, 7]), yuv);
    }
}

#[test]
fn greys_stay_grey_and_coefficients_sum_exactly() {
    assert_eq!(Y.iter().sum::<i32>(), GRAY);
    assert_eq!((U.iter().sum::<i32>(), V.iter().sum::<i32>()), (0, 0));
    for level in 0..=255 {
        let rgb = one_pixel(PixelFormat::Rgb, &[level; 3]);
        assert_eq!(rgb, one_pixel(PixelFormat::Gray, &[level]));
        assert_eq!((rgb.1, rgb.2), (128, 128));
    }
}

#[test]
fn no_pixel_is_further_than_rounding_from_unrounded_bt_709() {
    for r in (0..=255).step_by(15) {
        for g in (0..=255).step_by(15) {
            for b in (0..=255).step_by(15) {
                let (y, u, v) = one_pixel(PixelFormat::Rgb, &[r, g, b]);
                let [r, g, b] = [r, g, b].map(f64::from);
                let luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
                let exact = [
                    16.0 + 219.0 / 255.0 * luma,
                    128.0 + 224.0 / 255.0 * (b - luma) / 1.8556,
                    128.0 + 224.0 / 255.0 * (r - luma) / 1.5748,
                ];
                for (got, exact) in [y, u, v].into_iter().zip(exact) {
                    assert!((f64::from(got) - exact).abs() < 0.51, "{got} {exact}");
                }
            }
        }
    }
}

#[test]
fn odd_edges_repeat_and_yuyv_averages_both_rows() {
    // 3 x 1 grey: the fourth column and the second row repeat.
    let picture = reference(PixelFormat::Gray, (3, 1), &[0, 100, 255], 3, 4);
    assert_eq!(picture.bytes[..8], [16, 102, 235, 235, 16, 102, 235, 235]);
    // 2 x 2 YUYV: U 10 and 20 average to 15, V 30 and 41 to 36 (half up).
    let source = [1, 10, 2, 30, 3, 20, 4, 41];
    let picture = reference(PixelFormat::Yuyv, (2, 2), &source, 4, 4);
    assert_eq!(picture.bytes[..2], [1, 2]);
    assert_eq!(picture.bytes[4..6], [3, 4]);
    assert_eq!(picture.bytes[8..10], [15, 36]);
}

/// The bytes of the converter's own test: a half pair at the end keeps its U and repeats the V before it.
#[test]
fn an_odd_yuyv_row_ends_as_the_software_converter_ends_it() {
    let rows = [10, 100, 20, 200, 30, 50, 40, 103, 50, 201, 60, 52];
    let picture = reference(PixelFormat::Yuyv, (3, 2), &rows, 6, 4);
    let expected = [10, 20, 30, 30, 40, 50, 60, 60, 102, 201, 51, 201];
    assert_eq!(picture.bytes, expected);
    let lone = reference(PixelFormat::Yuyv, (1, 1), &[10, 100], 2, 2);
    assert_eq!(lone.bytes, [10, 10, 10, 10, 100, 128]);
}

fn clang() -> Option<&'static str> {
    ["clang-14", "clang"].into_iter().find(|name| {
        let found = Command::new(name).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    })
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/encode/nvenc")
}

/// Plays every thread of the CUDA source on the host.
#[test]
fn the_cuda_source_computes_what_the_reference_computes() {
    let Some(clang) = clang() else {
        eprintln!("not run: no clang to compile kernels.cu for the host");
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let library = temporary.path().join("kernels.so");
    let made = Command::new(clang)
        .args(["-x", "c++", "-O1", "-shared", "-fPIC", "-o"])
        .args([&library, &folder().join("kernels.cu")])
        .status()
        .unwrap();
    assert!(made.success());
    let host = host::Kernels::open(&library);
    let mut seed = 0x1234_5678_u32;
    for format in PixelFormat::ALL {
        for (width, height) in [(2, 2), (3, 3), (1, 1), (64, 48), (65, 31), (130, 2)] {
            let stride = width * format.bytes_per_pixel() + 5;
            let source: Vec<u8> = std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .take(stride * height + 8)
            .collect();
            let pitch = width.next_multiple_of(2).next_multiple_of(4) + 4;
            let wanted = reference(format, (width, height), &source, stride, pitch);
            let mut got = vec![128_u8; wanted.bytes.len()];
            host.run(format, (width, height), &source, stride, &mut got, pitch);
            // Bytes between the width and the pitch belong to nobody.
            for (row, (got, wanted)) in got
                .chunks(pitch)
                .zip(wanted.bytes.chunks(pitch))
                .enumerate()
            {
                let used = width.next_multiple_of(2);
                assert_eq!(
                    got[..used],
                    wanted[..used],
                    "{format:?} {width}x{height} row {row}"
                );
            }
        }
    }
}

#[test]
fn the_committed_ptx_is_what_the_script_makes() {
    if Command::new("clang-14").arg("--version").output().is_err() {
        eprintln!("not run: no clang-14 to make the PTX with");
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let made = temporary.path().join("kernels.ptx");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make_ptx.sh");
    let status = Command::new(script).arg(&made).status().unwrap();
    assert!(status.success());
    let (made, committed) = (
        std::fs::read_to_string(made).unwrap(),
        std::fs::read_to_string(folder().join("kernels.ptx")).unwrap(),
    );
    assert!(
        made == committed,
        "run scripts/make_ptx.sh and commit both files"
    );
    assert!(committed.contains(".version 4.0\n.target sm_50\n"));
    for kernel in Kernel::ALL {
        let entry = format!(".visible .entry {}(", kernel.symbol().to_str().unwrap());
        assert!(committed.contains(&entry), "{entry}");
    }
}

mod host {
    //! The kernels compiled for the host.
    #![allow(unsafe_code)]

    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;

    pub struct Kernels(*mut libc::c_void);

    type Common = unsafe extern "C" fn(*const u8, u32, *mut u8, u32, u32, u32);

    impl Kernels {
        pub fn open(path: &Path) -> Self {
            let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
            // SAFETY: the library was made a moment ago and has no initialisers.
            let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
            assert!(!handle.is_null());
            Self(handle)
        }

        fn symbol<T: Copy>(&self, name: &std::ffi::CStr) -> T {
            // SAFETY: the handle is open; T is the function's type as kernels.cu declares it.
            unsafe {
                let address = libc::dlsym(self.0, name.as_ptr());
                assert!(!address.is_null(), "{name:?}");
                std::mem::transmute_copy(&address)
            }
        }

        pub fn run(
            &self,
            format: PixelFormat,
            (width, height): (usize, usize),
            source: &[u8],
            stride: usize,
            target: &mut [u8],
            pitch: usize,
        ) {
            let set: unsafe extern "C" fn(u32, u32) = self.symbol(c"host_thread");
            let kernel = Kernel::of(format);
            let [y, u, v] = coefficients(format);
            for ty in 0..height.div_ceil(2) as u32 + 1 {
                for tx in 0..width.div_ceil(2) as u32 + 1 {
                    let (from, to) = (source.as_ptr(), target.as_mut_ptr());
                    let (stride, pitch) = (stride as u32, pitch as u32);
                    let (w, h) = (width as u32, height as u32);
                    // SAFETY: both buffers are as long as the kernels' conventions ask for.
                    unsafe {
                        set(tx, ty);
                        match kernel {
                            Kernel::Packed => {
                                type F = unsafe extern "C" fn(
                                    *const u8,
                                    u32,
                                    *mut u8,
                                    u32,
                                    u32,
                                    u32,
                                    u32,
                                    i32,
                                    i32,
                                    i32,
                                    i32,
                                    i32,
                                    i32,
                                    i32,
                                    i32,
                                    i32,
                                );
                                let bpp = format.bytes_per_pixel() as u32;
                                self.symbol::<F>(kernel.symbol())(
                                    from, stride, to, pitch, w, h, bpp, y[0], y[1], y[2], u[0],
                                    u[1], u[2], v[0], v[1], v[2],
                                );
                            }
                            Kernel::Gray => {
                                type F = unsafe extern "C" fn(
                                    *const u8,
                                    u32,
                                    *mut u8,
                                    u32,
                                    u32,
                                    u32,
                                    i32,
                                );
                                self.symbol::<F>(kernel.symbol())(
                                    from, stride, to, pitch, w, h, GRAY,
                                );
                            }
                            _ => self.symbol::<Common>(kernel.symbol())(
                                from, stride, to, pitch, w, h,
                            ),
                        }
                    }
                }
            }
        }
    }
}
