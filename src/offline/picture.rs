//! A decoded picture on the host.

/// Planes in 4:2:0, eight bits, rows without padding: `width * height` bytes of luma and
/// `chroma_width * chroma_height` of each chroma plane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Yuv420 {
    pub width: usize,
    pub height: usize,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
}

impl Yuv420 {
    /// Black in limited range.
    pub fn black(width: usize, height: usize) -> Self {
        let chroma = width.div_ceil(2) * height.div_ceil(2);
        Self {
            width,
            height,
            y: vec![BLACK; width * height],
            u: vec![NEUTRAL; chroma],
            v: vec![NEUTRAL; chroma],
        }
    }

    pub fn chroma_width(&self) -> usize {
        self.width.div_ceil(2)
    }

    pub fn chroma_height(&self) -> usize {
        self.height.div_ceil(2)
    }

    /// The three planes with their widths and heights.
    pub fn planes(&self) -> [Plane<'_>; 3] {
        let (w, h) = (self.chroma_width(), self.chroma_height());
        [
            Plane {
                width: self.width,
                height: self.height,
                bytes: &self.y,
            },
            Plane {
                width: w,
                height: h,
                bytes: &self.u,
            },
            Plane {
                width: w,
                height: h,
                bytes: &self.v,
            },
        ]
    }

    /// Whether the planes have the lengths that their sizes ask for.
    pub fn is_sound(&self) -> bool {
        let chroma = self.chroma_width() * self.chroma_height();
        let luma = self.width * self.height;
        luma > 0 && (self.y.len(), self.u.len(), self.v.len()) == (luma, chroma, chroma)
    }
}

/// A plane of rows without padding.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    pub width: usize,
    pub height: usize,
    pub bytes: &'a [u8],
}

/// Luma 16 is black and 235 is white in limited range (ITU-R BT.709 section 3).
pub const BLACK: u8 = 16;
pub const WHITE: u8 = 235;
/// Chroma without colour.
pub const NEUTRAL: u8 = 128;
