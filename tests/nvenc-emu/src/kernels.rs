//! What the kernels of the streamer compute, by name, written from their documentation: the emulator's
//! GPU. Slow and plain. The streamer's own reference is another copy; both must agree.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::{Allocation, memory};
use crate::report::{Class, violation};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Packed,
    Gray,
    Yuv444,
    Yuyv,
    Interleave,
}

pub fn by_name(name: &str) -> Option<Which> {
    Some(match name {
        "packed_to_nv12" => Which::Packed,
        "gray_to_nv12" => Which::Gray,
        "yuv444_to_nv12" => Which::Yuv444,
        "yuyv_to_nv12" => Which::Yuyv,
        "interleave_chroma" => Which::Interleave,
        _ => return None,
    })
}

pub struct Launch {
    which: Which,
    source: [usize; 2],
    source_pitch: usize,
    target: usize,
    target_pitch: usize,
    width: usize,
    height: usize,
    bpp: usize,
    coefficients: [i64; 9],
    blocks: Vec<Arc<Allocation>>,
    written: Arc<Allocation>,
}

/// Reads the arguments and checks them against grid and allocations.
///
/// # Safety
///
/// `arguments` must be what the client passed to `cuLaunchKernel`.
pub unsafe fn prepare(
    which: Which,
    threads: (usize, usize),
    arguments: *mut *mut c_void,
) -> Option<Launch> {
    // SAFETY: the client passes one pointer per parameter of the kernel.
    let word = |at: usize| unsafe { (*arguments.add(at)).cast::<u32>().read_unaligned() };
    // SAFETY: as above.
    let address =
        |at: usize| unsafe { (*arguments.add(at)).cast::<u64>().read_unaligned() } as usize;
    let refuse = |detail: String| {
        violation(Class::E, "kernel", "cuLaunchKernel", None, detail);
        None
    };
    let interleave = which == Which::Interleave;
    let shift = usize::from(interleave);
    let (source_pitch, target, target_pitch) = (
        word(1 + shift) as usize,
        address(2 + shift),
        word(3 + shift) as usize,
    );
    let (width, height) = (word(4 + shift) as usize, word(5 + shift) as usize);
    let bpp = match which {
        Which::Packed => word(6) as usize,
        Which::Gray | Which::Interleave => 1,
        Which::Yuv444 => 3,
        Which::Yuyv => 2,
    };
    let mut coefficients = [0_i64; 9];
    match which {
        Which::Packed => {
            for (at, value) in coefficients.iter_mut().enumerate() {
                *value = i64::from(word(7 + at).cast_signed());
            }
        }
        Which::Gray => coefficients[0] = i64::from(word(6).cast_signed()),
        _ => (),
    }
    let (needed_x, needed_y, rows, bytes) = if interleave {
        (width, height, height, width * 2)
    } else {
        (
            width.div_ceil(2),
            height.div_ceil(2),
            height.next_multiple_of(2) * 3 / 2,
            width.next_multiple_of(2),
        )
    };
    if threads.0 < needed_x || threads.1 < needed_y {
        return refuse(format!("{threads:?} threads for {width}x{height}"));
    }
    if width == 0 || height == 0 || target_pitch < bytes || target_pitch % 4 != 0 || target % 4 != 0
    {
        return refuse(format!("{width}x{height} into pitch {target_pitch}"));
    }
    let memory = memory();
    let source_bytes = source_pitch * (height - 1) + width * bpp;
    let sources = [address(0), if interleave { address(1) } else { address(0) }];
    let mut blocks = Vec::new();
    for source in sources {
        let Some(block) = memory.find(source, source_bytes) else {
            return refuse(format!(
                "source {source:#x} and {source_bytes} bytes are in no allocation"
            ));
        };
        blocks.push(block);
    }
    let target_bytes = target_pitch * (rows - 1) + bytes;
    let Some(written) = memory.find(target, target_bytes) else {
        return refuse(format!(
            "target {target:#x} and {target_bytes} bytes are in no allocation"
        ));
    };
    written.pending.fetch_add(1, Ordering::AcqRel);
    Some(Launch {
        which,
        source: sources,
        source_pitch,
        target,
        target_pitch,
        width,
        height,
        bpp,
        coefficients,
        blocks,
        written,
    })
}

impl Launch {
    pub fn run(self) {
        if crate::config::config().idle {
            // Bookkeeping only.
        } else if self.which == Which::Packed {
            self.packed();
        } else if self.which == Which::Interleave {
            for y in 0..self.height {
                for x in 0..self.width {
                    for (at, plane) in self.source.into_iter().enumerate() {
                        let value = self.read(plane + y * self.source_pitch + x);
                        self.write(y, x * 2 + at, value);
                    }
                }
            }
        } else {
            self.luma();
            self.chroma();
        }
        debug_assert!(!self.blocks.is_empty());
        self.written.pending.fetch_sub(1, Ordering::AcqRel);
    }

    fn read(&self, address: usize) -> i64 {
        // SAFETY: `prepare` found the whole source inside allocations that self keeps.
        i64::from(unsafe { (address as *const u8).read_volatile() })
    }

    fn write(&self, row: usize, column: usize, value: i64) {
        let address = self.target + row * self.target_pitch + column;
        // SAFETY: `prepare` found the whole target inside an allocation that self keeps.
        unsafe { (address as *mut u8).write_volatile(value.clamp(0, 255) as u8) };
    }

    fn sample(&self, x: usize, y: usize, channel: usize) -> i64 {
        let (x, y) = (x.min(self.width - 1), y.min(self.height - 1));
        self.read(self.source[0] + y * self.source_pitch + x * self.bpp + channel)
    }

    /// The common formats, block by block: the general way is too slow for a driver with deadlines.
    fn packed(&self) {
        let c = &self.coefficients;
        let chroma_row = self.height.next_multiple_of(2);
        for y in (0..self.height).step_by(2) {
            for x in (0..self.width).step_by(2) {
                let mut sums = [0_i64; 3];
                for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    let pixel: [i64; 3] = std::array::from_fn(|at| self.sample(x + dx, y + dy, at));
                    let luma = c[0] * pixel[0] + c[1] * pixel[1] + c[2] * pixel[2];
                    self.write(y + dy, x + dx, (luma + 16 * 65536 + 32768) >> 16);
                    sums.iter_mut()
                        .zip(pixel)
                        .for_each(|(sum, value)| *sum += value);
                }
                for plane in 0..2 {
                    let row = &c[3 + plane * 3..6 + plane * 3];
                    let sum = row[0] * sums[0] + row[1] * sums[1] + row[2] * sums[2];
                    self.write(
                        chroma_row + y / 2,
                        x + plane,
                        (sum + 128 * 262_144 + 131_072) >> 18,
                    );
                }
            }
        }
    }

    fn luma(&self) {
        let c = &self.coefficients;
        for y in 0..self.height.next_multiple_of(2) {
            for x in 0..self.width.next_multiple_of(2) {
                let fixed = |sum: i64| (sum + 16 * 65536 + 32768).div_euclid(65536);
                let value = match self.which {
                    Which::Gray => fixed(c[0] * self.sample(x, y, 0)),
                    _ => self.sample(x, y, 0),
                };
                self.write(y, x, value);
            }
        }
    }

    fn chroma(&self) {
        let start = self.height.next_multiple_of(2);
        for by in 0..self.height.div_ceil(2) {
            for bx in 0..self.width.div_ceil(2) {
                let (x, y) = (bx * 2, by * 2);
                let four = |channel| -> i64 {
                    [(0, 0), (1, 0), (0, 1), (1, 1)]
                        .iter()
                        .map(|(dx, dy)| self.sample(x + dx, y + dy, channel))
                        .sum()
                };
                for plane in 0..2 {
                    let value = match self.which {
                        Which::Packed | Which::Gray | Which::Interleave => continue,
                        Which::Yuv444 => (four(1 + plane) + 2) / 4,
                        Which::Yuyv => {
                            // An odd last column has its own U, and the V of the pair before.
                            let lone = plane == 1 && x + 1 == self.width;
                            match x {
                                0 if lone => 128,
                                _ => {
                                    let pair = if lone { x - 2 } else { x };
                                    let channel = 1 + plane * 2;
                                    let both = self.sample(pair, y, channel)
                                        + self.sample(pair, y + 1, channel);
                                    (both + 1) / 2
                                }
                            }
                        }
                    };
                    self.write(start + by, x + plane, value);
                }
            }
        }
    }
}
