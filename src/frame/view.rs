//! The producer's pixels as they are now.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::{EncodedPlane, FrameInfo, PlaneLayout};

/// The whole mapping that a frame lies in, for an encoder that reads it by DMA.
///
/// It is shared: a mapping that is registered with a driver is kept by whoever registered it, so it
/// cannot be unmapped before it is unregistered. Two frames lie in one mapping exactly if their
/// `Arc`s are the same one; a source that maps anew makes a new one.
pub trait MappedMemory: Send + Sync {
    /// The page-aligned start. The producer's metadata block is here.
    fn base(&self) -> *const u8;
    /// Bytes from there that are mapped readable.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for dyn MappedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:p}", self.len(), self.base())
    }
}

/// A frame in foreign memory: it may change while it is read, so there is never a Rust reference
/// to its bytes, only pointers whose range is guaranteed.
///
/// A reader goes over the payload once, through raw pointers, with loads that the compiler can
/// neither repeat nor split (inline assembly or `read_volatile`). What it read is worth nothing
/// until the coherence check around it has passed.
#[derive(Debug, Clone, Copy)]
pub struct FrameView<'a> {
    info: FrameInfo,
    payload: *const u8,
    mapping: Option<&'a Arc<dyn MappedMemory>>,
    lifetime: PhantomData<&'a ()>,
}

impl<'a> FrameView<'a> {
    /// # Safety
    ///
    /// For all of `'a`, `payload` must point at `info.payload_size` bytes that are mapped
    /// readable (or whose faults are handled by the mapping's guard), and `info` must have been
    /// validated: every plane lies inside the payload.
    pub unsafe fn new(info: FrameInfo, payload: *const u8) -> Self {
        Self {
            info,
            payload,
            mapping: None,
            lifetime: PhantomData,
        }
    }

    /// The same view, which also knows the mapping that it lies in.
    pub fn with_mapping(self, mapping: &'a Arc<dyn MappedMemory>) -> Self {
        Self {
            mapping: Some(mapping),
            ..self
        }
    }

    /// The mapping that the payload lies in, where the source says so.
    pub fn mapping(&self) -> Option<&'a Arc<dyn MappedMemory>> {
        self.mapping
    }

    /// A view of memory of our own, for tests and benches.
    ///
    /// # Panics
    ///
    /// If a plane of `info` does not lie inside `payload`.
    pub fn from_slice(info: FrameInfo, payload: &'a [u8]) -> Self {
        let inside = |offset: u32, size: u32| {
            (offset as usize)
                .checked_add(size as usize)
                .is_some_and(|end| end <= payload.len())
        };
        assert!(info.payload_size as usize <= payload.len());
        assert!(inside(info.left.offset, info.left.size));
        assert!(
            u64::from(info.left.stride) * u64::from(info.left.height) <= u64::from(info.left.size)
        );
        assert!(
            u64::from(info.left.width) * info.format.bytes_per_pixel() as u64
                <= u64::from(info.left.stride)
        );
        assert!(
            info.encoded
                .is_none_or(|plane| inside(plane.offset, plane.size))
        );
        // SAFETY: the slice is borrowed for 'a and every plane was checked against it.
        unsafe { Self::new(info, payload.as_ptr()) }
    }

    pub fn info(&self) -> &FrameInfo {
        &self.info
    }

    pub fn left(&self) -> PlaneLayout {
        self.info.left
    }

    /// The first byte of row `y` of the picture; `width * bytes_per_pixel` bytes from there are
    /// in range.
    ///
    /// # Panics
    ///
    /// If `y` is not a row of the picture.
    pub fn row(&self, y: u32) -> *const u8 {
        assert!(y < self.info.left.height, "row {y} of {:?}", self.info.left);
        let offset = self.info.left.offset as usize + y as usize * self.info.left.stride as usize;
        // SAFETY: `new` demands that the plane lies inside the payload, and y < height.
        unsafe { self.payload.add(offset) }
    }

    /// The producer's access unit: where it starts and what it is.
    pub fn encoded(&self) -> Option<(*const u8, EncodedPlane)> {
        let plane = self.info.encoded?;
        // SAFETY: `new` demands that the plane lies inside the payload.
        let start = unsafe { self.payload.add(plane.offset as usize) };
        Some((start, plane))
    }

    /// Copies the producer's access unit into `out`, one pass, each byte read once; what `out`
    /// held is gone. `None`, and `out` untouched, if the frame has none.
    pub fn copy_access_unit(&self, out: &mut Vec<u8>) -> Option<EncodedPlane> {
        let (start, plane) = self.encoded()?;
        // SAFETY: `new` demands that the plane lies inside the payload, readable for 'a; `out` is
        // memory of our own, so they do not overlap.
        unsafe { super::foreign::copy_from_foreign(out, start, plane.size as usize) };
        Some(plane)
    }

    /// The whole payload of the frame, `info().payload_size` bytes.
    pub fn payload(&self) -> *const u8 {
        self.payload
    }
}
