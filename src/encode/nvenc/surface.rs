//! What ingest fills: one NV12 picture on the GPU, a member of the session's ring.

use std::any::Any;
use std::sync::Arc;

use super::device::{Device, Nv12Memory};
use crate::frame::{FillError, FrameView, SurfaceMemory};

/// An NV12 surface on the GPU. The session owns the memory and frees it; this is the right to fill it.
pub struct CudaSurface {
    device: Arc<Device>,
    memory: Nv12Memory,
    /// Its place in the session's list of registered surfaces.
    index: usize,
}

// SAFETY: the handles may be used from any thread with the context current, which `Device::fill`
// sees to; the memory outlives its use because uploads are refused before it is freed.
#[allow(unsafe_code)]
unsafe impl Send for CudaSurface {}

impl CudaSurface {
    pub fn new(device: Arc<Device>, memory: Nv12Memory, index: usize) -> Self {
        Self {
            device,
            memory,
            index,
        }
    }

    pub fn index(&self) -> usize {
        self.index
    }
}

impl SurfaceMemory for CudaSurface {
    fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError> {
        self.device.fill(view, self.memory)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
