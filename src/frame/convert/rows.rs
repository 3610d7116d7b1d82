//! The walk over a picture by pairs of rows, and the way from foreign bytes to private ones.

use super::super::FrameView;
use super::super::surface::I420PlanesMut;

/// Two rows of the source, and the rows of the planes that they become.
pub struct RowPair<'a> {
    pub top: *const u8,
    /// `None` at the end of an odd picture: the top row counts twice and is read once.
    pub bottom: Option<*const u8>,
    /// Where the pair after this one is and goes, to prefetch; at the end this pair's own.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only vector kernels prefetch
    pub ahead: Ahead,
    /// Even width.
    pub y: [&'a mut [u8]; 2],
    /// Half of that.
    pub u: &'a mut [u8],
    pub v: &'a mut [u8],
}

/// The starts of rows that will be wanted soon. Hints only: nothing is read through them.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    pub source: [*const u8; 2],
    pub y: [*const u8; 2],
    pub uv: [*const u8; 2],
}

/// Every pair of rows; from each source row `width * bytes_per_pixel` bytes may be read.
pub fn row_pairs<'a>(
    view: &'a FrameView<'_>,
    planes: &'a mut I420PlanesMut<'_>,
) -> impl Iterator<Item = RowPair<'a>> {
    let height = view.left().height;
    let (width, stride) = (planes.width as usize, planes.luma_stride);
    let chroma_stride = planes.chroma_stride;
    let luma = planes.y.chunks_mut(2 * stride);
    let chroma = (planes.u.chunks_mut(chroma_stride)).zip(planes.v.chunks_mut(chroma_stride));
    let rows = (0..height).step_by(2).zip(luma.zip(chroma));
    rows.map(move |(row, (luma, (u, v)))| {
        let existing = |row: u32| (row < height).then(|| view.row(row));
        let (top, bottom) = (view.row(row), existing(row + 1));
        let later = usize::from(row + 2 < height);
        let (first, second) = luma.split_at_mut(stride);
        let below = |row: &[u8], stride: usize| row.as_ptr().wrapping_add(later * stride);
        RowPair {
            top,
            bottom,
            ahead: Ahead {
                source: [
                    existing(row + 2).unwrap_or(top),
                    existing(row + 3).or(bottom).unwrap_or(top),
                ],
                y: [below(first, 2 * stride), below(second, 2 * stride)],
                uv: [below(u, chroma_stride), below(v, chroma_stride)],
            },
            y: [&mut first[..width], &mut second[..width]],
            u: &mut u[..width / 2],
            v: &mut v[..width / 2],
        }
    })
}

/// # Panics
///
/// If the planes do not fit a picture of this size, or are shorter than they say.
pub fn check(width: u32, height: u32, planes: &I420PlanesMut<'_>) {
    let even = |n: u32| n.next_multiple_of(2);
    assert_eq!(
        (planes.width, planes.height),
        (even(width), even(height)),
        "planes for a picture of {width}x{height}"
    );
    let holds = |plane: &[u8], stride: usize, width: u32, height: u32| {
        width as usize <= stride && plane.len() >= stride * (height as usize - 1) + width as usize
    };
    assert!(width > 0 && height > 0, "a picture of {width}x{height}");
    let (w, h) = (planes.width, planes.height);
    assert!(holds(planes.y, planes.luma_stride, w, h), "short Y plane");
    for plane in [&planes.u, &planes.v] {
        let fits = holds(plane, planes.chroma_stride, w / 2, h / 2);
        assert!(fits, "short chroma plane");
    }
}

/// Copies `to.len()` bytes out of foreign memory, reading each once.
///
/// # Safety
///
/// `from` must point at that many bytes that are mapped readable (or whose faults are handled).
/// They may change meanwhile.
pub unsafe fn copy_foreign(from: *const u8, to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's for `from`; `to` is exclusively ours. The direction flag is clear by
    // the ABI. What other threads write meanwhile, the compiler does not see.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") to.len() => _,
            inout("rsi") from => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let head = from.align_offset(align_of::<u64>()).min(to.len());
        let (first, rest) = to.split_at_mut(head);
        let (words, last) = rest.as_chunks_mut::<8>();
        let tail = head + words.len() * 8;
        for (i, byte) in first.iter_mut().enumerate() {
            // SAFETY: the caller's: inside the range.
            *byte = unsafe { from.add(i).read_volatile() };
        }
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: the caller's: inside the range; aligned behind `head`.
            *word = unsafe { from.add(head + i * 8).cast::<u64>().read_volatile() }.to_ne_bytes();
        }
        for (i, byte) in last.iter_mut().enumerate() {
            // SAFETY: the caller's: inside the range.
            *byte = unsafe { from.add(tail + i).read_volatile() };
        }
    }
}
