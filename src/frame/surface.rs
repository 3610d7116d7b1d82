//! What an encoder reads from, made by the encoder, filled by ingest, recycled.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use super::FrameView;

/// The memory of a surface in the form that one kind of encoder reads.
///
/// `fill` is the one pass over the producer's payload. It must have finished reading the payload
/// when it returns (an upload has completed), for the coherence check follows at once.
pub trait SurfaceMemory: Send + Any {
    /// # Errors
    ///
    /// If this surface cannot take such a frame; the frame is dropped and counted.
    fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError>;

    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

#[derive(Debug, thiserror::Error)]
pub enum FillError {
    #[error("the surface was made for another picture size or format")]
    Shape,
    #[error("the frame carries no encoded access unit of the wanted codec")]
    NoAccessUnit,
    #[error("the upload failed: {0}")]
    Upload(String),
}

/// One surface of a pool.
pub type Surface = Box<dyn SurfaceMemory>;

/// The few surfaces that an encoder made at open. Cloning shares the pool.
#[derive(Clone)]
pub struct SurfacePool {
    shared: Arc<Shared>,
}

struct Shared {
    id: u64,
    total: usize,
    free: Mutex<Vec<Surface>>,
}

static NEXT_POOL: AtomicU64 = AtomicU64::new(1);

impl SurfacePool {
    pub fn new(surfaces: Vec<Surface>) -> Self {
        Self {
            shared: Arc::new(Shared {
                // Relaxed: only uniqueness is wanted, nothing is published through it.
                id: NEXT_POOL.fetch_add(1, Ordering::Relaxed),
                total: surfaces.len(),
                free: Mutex::new(surfaces),
            }),
        }
    }

    /// `count` surfaces of planes on the host, for pictures of `shape`.
    ///
    /// The few that are in use while nothing queues up have their pages from the start. The
    /// others get them when they are first filled: touching all of a deep queue's would keep the
    /// first frame waiting.
    pub fn on_host(shape: super::PictureShape, count: usize) -> Self {
        const IN_USE: usize = 4;
        let later = count.saturating_sub(IN_USE);
        let surface = |n: usize| {
            let touch = n >= later; // the last ones are taken first
            Box::new(I420Surface::make(
                shape.width,
                shape.height,
                shape.format,
                touch,
            )) as Surface
        };
        Self::new((0..count).map(surface).collect())
    }

    /// Tells pools apart: a snapshot whose surface is of another pool is of another encoder.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    pub fn total(&self) -> usize {
        self.shared.total
    }

    pub fn free(&self) -> usize {
        self.shared.lock().len()
    }

    /// A free surface, if there is one; it comes back when the lease is dropped.
    pub fn take(&self) -> Option<SurfaceLease> {
        let surface = self.shared.lock().pop()?;
        Some(SurfaceLease {
            surface: Some(surface),
            pool: Arc::clone(&self.shared),
        })
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Surface>> {
        // A panic of another thread cannot have left the list half changed: push and pop only.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SurfacePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SurfacePool")
            .field("id", &self.shared.id)
            .field("total", &self.shared.total)
            .field("free", &self.free())
            .finish()
    }
}

/// A surface out of its pool; returned on drop.
pub struct SurfaceLease {
    surface: Option<Surface>,
    pool: Arc<Shared>,
}

impl SurfaceLease {
    pub fn pool_id(&self) -> u64 {
        self.pool.id
    }

    /// The surface as the backend's own type; `None` if another backend made it.
    pub fn get<T: SurfaceMemory>(&self) -> Option<&T> {
        self.surface.as_ref()?.as_any().downcast_ref()
    }

    pub fn get_mut<T: SurfaceMemory>(&mut self) -> Option<&mut T> {
        self.surface.as_mut()?.as_any_mut().downcast_mut()
    }

    /// One pass over the payload into this surface.
    ///
    /// # Errors
    ///
    /// As [`SurfaceMemory::fill`].
    pub fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError> {
        self.surface
            .as_mut()
            .expect("a lease holds its surface until drop")
            .fill(view)
    }
}

impl Drop for SurfaceLease {
    fn drop(&mut self) {
        if let Some(surface) = self.surface.take() {
            self.pool.lock().push(surface);
        }
    }
}

impl fmt::Debug for SurfaceLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SurfaceLease")
            .field("pool", &self.pool.id)
            .finish()
    }
}

/// A picture in 4:2:0 planes on the host, BT.709 limited range: what the software encoders read.
///
/// Sizes are rounded up to even; rows start at multiples of 64 bytes, so that vector stores do
/// not cross cache lines.
pub struct I420Surface {
    width: u32,
    height: u32,
    luma_stride: usize,
    chroma_stride: usize,
    /// Pages of its own, not of the heap: a surface that outlives the encoder of a former picture
    /// size leaves no hole there that is never given back.
    bytes: MmapMut,
    converter: super::convert::Converter,
    source: (u32, u32, super::PixelFormat),
}

/// The planes of an [`I420Surface`], for whoever reads.
#[derive(Debug, Clone, Copy)]
pub struct I420Planes<'a> {
    pub width: u32,
    pub height: u32,
    pub y: &'a [u8],
    pub u: &'a [u8],
    pub v: &'a [u8],
    pub luma_stride: usize,
    pub chroma_stride: usize,
}

/// The planes of an [`I420Surface`], for the converter.
#[derive(Debug)]
pub struct I420PlanesMut<'a> {
    pub width: u32,
    pub height: u32,
    pub y: &'a mut [u8],
    pub u: &'a mut [u8],
    pub v: &'a mut [u8],
    pub luma_stride: usize,
    pub chroma_stride: usize,
}

impl I420Surface {
    const ALIGN: usize = 64;

    /// A surface for pictures of `width` by `height` pixels in `format`; its planes are the next
    /// even size. Every page is touched here, and chroma is set to 128.
    pub fn new(width: u32, height: u32, format: super::PixelFormat) -> Self {
        Self::make(width, height, format, true)
    }

    fn make(width: u32, height: u32, format: super::PixelFormat, touch: bool) -> Self {
        let even = |n: u32| n.next_multiple_of(2);
        let (w, h) = (even(width), even(height));
        let luma_stride = (w as usize).next_multiple_of(Self::ALIGN);
        let chroma_stride = (w as usize / 2).next_multiple_of(Self::ALIGN);
        let len = luma_stride * h as usize + chroma_stride * h as usize;
        let mut bytes = MmapMut::map_anon(len.max(1)).expect("memory for a picture");
        // The system gives zeros without a page behind them. A grey picture's chroma is never
        // written again, so it has to be there.
        if touch || format == super::PixelFormat::Gray {
            bytes.fill(128);
        }
        Self {
            width: w,
            height: h,
            luma_stride,
            chroma_stride,
            bytes,
            converter: super::convert::Converter::best(),
            source: (width, height, format),
        }
    }

    pub fn planes(&self) -> I420Planes<'_> {
        let (luma, chroma) = self.lengths();
        let (y, rest) = self.bytes.split_at(luma);
        let (u, rest) = rest.split_at(chroma);
        I420Planes {
            width: self.width,
            height: self.height,
            y,
            u,
            v: &rest[..chroma],
            luma_stride: self.luma_stride,
            chroma_stride: self.chroma_stride,
        }
    }

    pub fn planes_mut(&mut self) -> I420PlanesMut<'_> {
        let (luma, chroma) = self.lengths();
        let (y, rest) = self.bytes.split_at_mut(luma);
        let (u, rest) = rest.split_at_mut(chroma);
        I420PlanesMut {
            width: self.width,
            height: self.height,
            y,
            u,
            v: &mut rest[..chroma],
            luma_stride: self.luma_stride,
            chroma_stride: self.chroma_stride,
        }
    }

    fn lengths(&self) -> (usize, usize) {
        (
            self.luma_stride * self.height as usize,
            self.chroma_stride * (self.height as usize / 2),
        )
    }
}

impl SurfaceMemory for I420Surface {
    fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError> {
        let info = view.info();
        if (info.left.width, info.left.height, info.format) != self.source {
            return Err(FillError::Shape);
        }
        let converter = self.converter;
        converter.to_i420(view, &mut self.planes_mut());
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PixelFormat;

    #[test]
    fn planes_are_even_aligned_and_disjoint() {
        let mut surface = I420Surface::new(641, 361, PixelFormat::Bgr);
        let planes = surface.planes_mut();
        assert_eq!((planes.width, planes.height), (642, 362));
        assert_eq!((planes.luma_stride, planes.chroma_stride), (704, 384));
        assert_eq!(planes.y.as_ptr().align_offset(64), 0);
        assert_eq!(planes.u.as_ptr().align_offset(64), 0);
        assert_eq!(planes.y.len(), 704 * 362);
        assert_eq!((planes.u.len(), planes.v.len()), (384 * 181, 384 * 181));
    }

    #[test]
    fn a_lease_comes_back_on_drop_and_knows_its_pool() {
        let make = || Box::new(I420Surface::new(16, 16, PixelFormat::Gray)) as Surface;
        let (pool, other) = (SurfacePool::new(vec![make()]), SurfacePool::new(vec![]));
        let lease = pool.take().unwrap();
        assert!(pool.take().is_none());
        assert_eq!(lease.pool_id(), pool.id());
        assert_ne!(lease.pool_id(), other.id());
        assert!(lease.get::<I420Surface>().is_some());
        drop(lease);
        assert_eq!((pool.free(), pool.total()), (1, 1));
    }
}
