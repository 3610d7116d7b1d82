//! Pictures to encode: deterministic, moving, with noise.

use cvmmap_streamer::frame::surface::I420Surface;
use cvmmap_streamer::frame::{FrameInfo, FrameView, PixelFormat, PlaneLayout, SurfaceLease};

/// A picture of `width` by `height` (as shown, maybe odd) in planes of the next even size.
#[derive(Debug, Clone, PartialEq)]
pub struct Yuv {
    pub width: u32,
    pub height: u32,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
}

impl Yuv {
    fn new(width: u32, height: u32) -> Self {
        let (w, h) = (even(width), even(height));
        Self {
            width,
            height,
            y: vec![16; w * h],
            u: vec![128; w * h / 4],
            v: vec![128; w * h / 4],
        }
    }

    /// Of luma and chroma together, in dB.
    pub fn psnr(&self, other: &Self) -> f64 {
        let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
        let sum = |a: &[u8], b: &[u8]| -> f64 {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).map(square).sum()
        };
        let total = sum(&self.y, &other.y) + sum(&self.u, &other.u) + sum(&self.v, &other.v);
        let mean = total / (self.y.len() + self.u.len() + self.v.len()) as f64;
        10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10()
    }
}

/// What is seen.
#[derive(Debug)]
enum Content {
    /// A drifting texture, with so much noise in it.
    Moving { noise: u32 },
    /// Upright patches of RGB colours, standing still.
    Patches(Vec<[u8; 3]>),
}

#[derive(Debug)]
pub struct Scene {
    width: u32,
    height: u32,
    content: Content,
    n: u32,
    seed: u32,
}

impl Scene {
    /// Hard to code: noise takes bits at any rate.
    pub fn new(width: u32, height: u32) -> Self {
        Self::of(width, height, Content::Moving { noise: 24 })
    }

    /// Motion alone.
    pub fn quiet(width: u32, height: u32) -> Self {
        Self::of(width, height, Content::Moving { noise: 0 })
    }

    pub fn patches(width: u32, height: u32, colours: &[[u8; 3]]) -> Self {
        Self::of(width, height, Content::Patches(colours.to_vec()))
    }

    fn of(width: u32, height: u32, content: Content) -> Self {
        Self {
            width,
            height,
            content,
            n: 0,
            seed: 1,
        }
    }

    pub fn next(&mut self) -> Yuv {
        let mut yuv = Yuv::new(self.width, self.height);
        match &self.content {
            Content::Moving { noise } => {
                moving(&mut yuv, self.n, *noise, &mut self.seed);
            }
            Content::Patches(colours) => patches(&mut yuv, colours),
        }
        self.n += 1;
        yuv
    }
}

/// Puts `yuv` into a surface: directly where its planes can be reached, else by the way that a
/// frame takes.
pub fn fill(surface: &mut SurfaceLease, yuv: &Yuv) {
    let (w, h) = (even(yuv.width), even(yuv.height));
    if let Some(surface) = surface.get_mut::<I420Surface>() {
        let planes = surface.planes_mut();
        assert_eq!((planes.width as usize, planes.height as usize), (w, h));
        for (target, stride, source, width) in [
            (planes.y, planes.luma_stride, &yuv.y, w),
            (planes.u, planes.chroma_stride, &yuv.u, w / 2),
            (planes.v, planes.chroma_stride, &yuv.v, w / 2),
        ] {
            for (target, source) in target.chunks_mut(stride).zip(source.chunks(width)) {
                target[..width].copy_from_slice(source);
            }
        }
        return;
    }
    let mut packed = Vec::with_capacity((yuv.width * yuv.height * 3) as usize);
    for y in 0..yuv.height as usize {
        for x in 0..yuv.width as usize {
            let at = y / 2 * (w / 2) + x / 2;
            packed.extend([yuv.y[y * w + x], yuv.u[at], yuv.v[at]]);
        }
    }
    let size = packed.len() as u32;
    let info = FrameInfo {
        frame_id: 0,
        capture_ts_ns: 0,
        format: PixelFormat::Yuv,
        left: PlaneLayout {
            width: yuv.width,
            height: yuv.height,
            stride: yuv.width * 3,
            offset: 0,
            size,
        },
        encoded: None,
        frame_rate: None,
        payload_size: size,
    };
    surface
        .fill(&FrameView::from_slice(info, &packed))
        .expect("the surface was made for such pictures");
}

fn even(n: u32) -> usize {
    n.next_multiple_of(2) as usize
}

fn moving(yuv: &mut Yuv, n: u32, noise: u32, seed: &mut u32) {
    let (w, h) = (even(yuv.width), even(yuv.height));
    let wave = |at: f32| (at.sin() * 40.0) as i32;
    for y in 0..h {
        for x in 0..w {
            let drift = (x as f32 + n as f32 * 3.0) / 17.0;
            let mut value = 120 + wave(drift) + wave(y as f32 / 23.0 + n as f32 / 11.0);
            if noise > 0 {
                value += (random(seed) % noise) as i32 - noise as i32 / 2;
            }
            yuv.y[y * w + x] = value.clamp(16, 235) as u8;
        }
    }
    for y in 0..h / 2 {
        for x in 0..w / 2 {
            let at = y * (w / 2) + x;
            yuv.u[at] = (128 + wave((x as f32 + n as f32) / 40.0)) as u8;
            yuv.v[at] = (128 + wave((y as f32 - n as f32) / 30.0)) as u8;
        }
    }
}

fn patches(yuv: &mut Yuv, colours: &[[u8; 3]]) {
    let (w, h) = (even(yuv.width), even(yuv.height));
    let patch = w / colours.len();
    for y in 0..h {
        for x in 0..w {
            let [luma, cb, cr] = bt709(colours[(x / patch).min(colours.len() - 1)]);
            yuv.y[y * w + x] = luma;
            if x % 2 == 0 && y % 2 == 0 {
                let at = y / 2 * (w / 2) + x / 2;
                (yuv.u[at], yuv.v[at]) = (cb, cr);
            }
        }
    }
}

/// ITU-R BT.709, limited range, unrounded formula rounded once.
fn bt709([r, g, b]: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = [r, g, b].map(|value| f64::from(value) / 255.0);
    let luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    [
        16.0 + 219.0 * luma,
        128.0 + 224.0 * (b - luma) / 1.8556,
        128.0 + 224.0 * (r - luma) / 1.5748,
    ]
    .map(|value| value.round() as u8)
}

/// xorshift32.
fn random(seed: &mut u32) -> u32 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    *seed
}
