//! Recordings through the ZED SDK, where it is installed: the only way to read version 1.
//!
//! The SDK gives single eyes, rectified by its own calibration, as BGRA.

#[allow(unsafe_code)] // opens the SDK's C wrapper at run time; a safe handle wraps each camera
mod ffi;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use ffi::{Api, Camera};

use super::decode::Pixels;
use super::error::OfflineError;
use super::input::SourcePicture;
use super::picture::Yuv420;
use crate::frame::surface::I420Surface;
use crate::frame::{FrameInfo, FrameView, PixelFormat, PlaneLayout, SurfaceMemory};
use crate::pipeline::stop::StopToken;

/// A recording that the SDK has opened.
pub struct SdkRecording {
    path: PathBuf,
    camera: Mutex<Camera<'static>>,
    frames: usize,
    fps: u32,
    size: (usize, usize),
}

/// Whether the SDK can be used; if not, why.
///
/// # Errors
///
/// The reason, in words.
pub fn available() -> Result<String, String> {
    api().map(Api::version)
}

fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(Api::load).as_ref().map_err(Clone::clone)
}

impl SdkRecording {
    /// `settings` is a folder with calibrations to use instead of the SDK's own.
    ///
    /// # Errors
    ///
    /// If the SDK is not there or refuses the file.
    pub fn open(path: &Path, settings: Option<&Path>) -> Result<Self, OfflineError> {
        let refused = |detail: String| OfflineError::Sdk(format!("{}: {detail}", path.display()));
        let api = api().map_err(OfflineError::Sdk)?;
        let id = NEXT_CAMERA.fetch_add(1, Ordering::Relaxed);
        let camera = Camera::open(api, id, path, settings).map_err(refused)?;
        let frames = camera.frames().filter(|frames| *frames > 0);
        let frames = frames.ok_or_else(|| refused("it has no frames".to_owned()))?;
        let fps = camera.fps();
        Ok(Self {
            path: path.to_owned(),
            frames,
            fps: if (1.0..=1000.0).contains(&fps) {
                fps.round() as u32
            } else {
                30
            },
            size: (camera.width, camera.height),
            camera: Mutex::new(camera),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn frames(&self) -> usize {
        self.frames
    }

    pub fn fps(&self) -> u32 {
        self.fps
    }

    /// Of one eye.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The timestamps of all frames; the SDK tells one only when it has taken the frame.
    ///
    /// # Errors
    ///
    /// What the SDK says.
    pub fn timestamps(&self) -> Result<Vec<u64>, OfflineError> {
        let mut camera = self.camera.lock().unwrap_or_else(PoisonError::into_inner);
        camera.seek(0);
        let mut times = Vec::with_capacity(self.frames);
        while times.len() < self.frames {
            match camera.grab().map_err(|detail| self.error(detail))? {
                Some(time) => times.push(time),
                None => break,
            }
        }
        Ok(times)
    }

    /// Gives the pictures of the frames `first` to `last`, of the right or left eye, to `send`
    /// until it refuses one or `stop` is set; and how many of them there were not.
    ///
    /// # Errors
    ///
    /// What the SDK says.
    pub fn pictures(
        &self,
        (first, last): (usize, usize),
        right: bool,
        send: &dyn Fn(SourcePicture) -> bool,
        stop: &StopToken,
    ) -> Result<usize, OfflineError> {
        let mut camera = self.camera.lock().unwrap_or_else(PoisonError::into_inner);
        camera.seek(first);
        let (width, height) = (self.size.0 as u32, self.size.1 as u32);
        let mut surface = I420Surface::new(width, height, PixelFormat::Bgra);
        let info = bgra_info(width, height);
        let mut bytes = Vec::new();
        for index in first..=last {
            if stop.is_stopped() {
                break;
            }
            let Some(timestamp_ns) = camera.grab().map_err(|detail| self.error(detail))? else {
                return Ok(last + 1 - index);
            };
            camera
                .picture(right, &mut bytes)
                .map_err(|detail| self.error(detail))?;
            let view = FrameView::from_slice(info, &bytes);
            surface
                .fill(&view)
                .map_err(|error| self.error(error.to_string()))?;
            let pixels = Pixels::Host(picture_of(&surface, self.size));
            if !send(SourcePicture {
                index,
                timestamp_ns,
                pixels,
            }) {
                break;
            }
        }
        Ok(0)
    }

    fn error(&self, detail: String) -> OfflineError {
        OfflineError::Sdk(format!("{}: {detail}", self.path.display()))
    }
}

fn bgra_info(width: u32, height: u32) -> FrameInfo {
    let size = width * 4 * height;
    FrameInfo {
        frame_id: 0,
        capture_ts_ns: 0,
        format: PixelFormat::Bgra,
        left: PlaneLayout {
            width,
            height,
            stride: width * 4,
            offset: 0,
            size,
        },
        encoded: None,
        frame_rate: None,
        payload_size: size,
    }
}

fn picture_of(surface: &I420Surface, (width, height): (usize, usize)) -> Yuv420 {
    let planes = surface.planes();
    let rows = |plane: &[u8], stride: usize, width: usize, height: usize| -> Vec<u8> {
        plane
            .chunks(stride)
            .take(height)
            .flat_map(|row| row[..width].iter().copied())
            .collect()
    };
    let (w, h) = (width.div_ceil(2), height.div_ceil(2));
    Yuv420 {
        width,
        height,
        y: rows(planes.y, planes.luma_stride, width, height),
        u: rows(planes.u, planes.chroma_stride, w, h),
        v: rows(planes.v, planes.chroma_stride, w, h),
    }
}

/// Each recording is a camera of its own to the wrapper.
static NEXT_CAMERA: AtomicI32 = AtomicI32::new(0);
