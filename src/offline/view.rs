//! `--view`: which eye of the side-by-side picture is shown, and whether it is rectified.

use std::path::{Path, PathBuf};

use super::calibration::{CalibrationError, StereoCalibration, places};
use super::picture::{Plane, Yuv420};
use super::rectify::{EyeArea, PlaneKind, Rectification, RectifyMap, Side};
use crate::frame::surface::I420PlanesMut;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ViewChoice {
    /// Rectified if a calibration is found, else raw
    #[default]
    Left,
    /// Rectified, or an error
    LeftRectified,
    /// As recorded
    LeftRaw,
    /// As `left`, the other eye
    Right,
    RightRectified,
    RightRaw,
    /// Both eyes as recorded
    SideBySide,
}

impl ViewChoice {
    fn side(self) -> Option<Side> {
        match self {
            Self::Left | Self::LeftRectified | Self::LeftRaw => Some(Side::Left),
            Self::Right | Self::RightRectified | Self::RightRaw => Some(Side::Right),
            Self::SideBySide => None,
        }
    }

    fn wants_calibration(self) -> bool {
        !matches!(self, Self::LeftRaw | Self::RightRaw | Self::SideBySide)
    }

    /// Shows pixels as they were recorded.
    pub fn is_raw(self) -> bool {
        !self.wants_calibration()
    }

    pub fn is_right(self) -> bool {
        self.side() == Some(Side::Right)
    }

    fn needs_calibration(self) -> bool {
        matches!(self, Self::LeftRectified | Self::RightRectified)
    }
}

/// What a view is made for.
#[derive(Debug, Clone)]
pub struct ViewRequest {
    pub choice: ViewChoice,
    /// `--calibration`.
    pub calibration: Option<PathBuf>,
}

/// A view for pictures of one size.
#[derive(Debug)]
pub struct View {
    area: EyeArea,
    map: Option<RectifyMap>,
    source: (usize, usize),
}

impl View {
    /// The view of the recording at `path` whose pictures are `source` pixels wide and high,
    /// both eyes together, and a warning where the eye is shown raw for want of a calibration.
    ///
    /// # Errors
    ///
    /// If the choice insists on a calibration and there is none.
    pub fn open(
        request: &ViewRequest,
        path: &Path,
        serial: Option<u32>,
        source: (usize, usize),
    ) -> Result<(Self, Option<String>), CalibrationError> {
        let (picture_width, height) = source;
        let Some(side) = request.choice.side() else {
            let area = EyeArea {
                left: 0,
                width: picture_width,
                height,
                picture_width,
            };
            return Ok((
                Self {
                    area,
                    map: None,
                    source,
                },
                None,
            ));
        };
        let width = picture_width / 2;
        let left = match side {
            Side::Left => 0,
            Side::Right => width,
        };
        let area = EyeArea {
            left,
            width,
            height,
            picture_width,
        };
        let raw = Self {
            area,
            map: None,
            source,
        };
        if !request.choice.wants_calibration() {
            return Ok((raw, None));
        }
        let places = places(request.calibration.as_deref(), path, serial);
        // A file that the user names must be there; a folder may hold those of other cameras.
        let named = request
            .calibration
            .as_ref()
            .is_some_and(|path| !path.is_dir());
        let named_places = match named {
            true => &places[..1],
            false => &places[..],
        };
        let found = StereoCalibration::find(named_places, serial, (width, height));
        let insists = request.choice.needs_calibration() || named;
        let map = match found {
            Ok(calibration) => Rectification::of(&calibration, side)
                .and_then(|rectification| RectifyMap::new(&rectification, area)),
            Err(error) if insists => return Err(error),
            Err(error) => {
                let warning = format!("{error}; the {} view is not rectified", name(side));
                return Ok((raw, Some(warning)));
            }
        };
        let no_pair = || CalibrationError::NoMode {
            path: places.into_iter().next().unwrap_or_default(),
            width,
            height,
        };
        Ok((
            Self {
                map: Some(map.ok_or_else(no_pair)?),
                ..raw
            },
            None,
        ))
    }

    /// All of pictures that are a rectified eye already.
    pub fn whole((width, height): (usize, usize)) -> Self {
        let area = EyeArea {
            left: 0,
            width,
            height,
            picture_width: width,
        };
        Self {
            area,
            map: None,
            source: (width, height),
        }
    }

    /// Size of what is shown.
    pub fn size(&self) -> (usize, usize) {
        (self.area.width, self.area.height)
    }

    pub fn is_rectified(&self) -> bool {
        self.map.is_some()
    }

    /// Whether the view was made for pictures like this one.
    pub fn fits(&self, picture: &Yuv420) -> bool {
        (picture.width, picture.height) == self.source
    }

    /// Puts the view of `picture` into the planes of a surface; a last odd row or column of the
    /// surface repeats its neighbour.
    ///
    /// # Panics
    ///
    /// If the picture does not fit.
    pub fn render(&self, picture: &Yuv420, out: &mut I420PlanesMut<'_>) {
        assert!(self.fits(picture), "a view for another picture size");
        let (w, h) = self.size();
        let rows = (out.height as usize).min(h.next_multiple_of(2));
        let (luma, chroma) = (out.luma_stride, out.chroma_stride);
        let [y, u, v] = picture.planes();
        self.plane(PlaneKind::Luma, y, (out.y, luma), (w, h, rows));
        let (w, h) = (w.div_ceil(2), h.div_ceil(2));
        self.plane(PlaneKind::Chroma, u, (out.u, chroma), (w, h, h));
        self.plane(PlaneKind::Chroma, v, (out.v, chroma), (w, h, h));
    }

    fn plane(
        &self,
        kind: PlaneKind,
        source: Plane<'_>,
        (out, stride): (&mut [u8], usize),
        (width, height, rows): (usize, usize, usize),
    ) {
        match &self.map {
            Some(map) => map.apply(kind, source, &mut out[..height * stride], stride),
            None => {
                let left = match kind {
                    PlaneKind::Luma => self.area.left,
                    PlaneKind::Chroma => self.area.left / 2,
                };
                let source = source.bytes.chunks_exact(source.width);
                for (row, from) in out.chunks_mut(stride).zip(source) {
                    row[..width].copy_from_slice(&from[left..left + width]);
                }
            }
        }
        if width % 2 == 1 && width < stride && kind == PlaneKind::Luma {
            for row in out.chunks_mut(stride).take(height) {
                row[width] = row[width - 1];
            }
        }
        for row in height..rows {
            out.copy_within((row - 1) * stride..row * stride, row * stride);
        }
    }
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Left => "left",
        Side::Right => "right",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PixelFormat;
    use crate::frame::surface::I420Surface;

    fn numbered(width: usize, height: usize) -> Yuv420 {
        let mut picture = Yuv420::black(width, height);
        let cw = picture.chroma_width();
        picture
            .y
            .iter_mut()
            .enumerate()
            .for_each(|(n, p)| *p = (n % width) as u8);
        picture
            .u
            .iter_mut()
            .enumerate()
            .for_each(|(n, p)| *p = 100 + (n % cw) as u8);
        picture
            .v
            .iter_mut()
            .enumerate()
            .for_each(|(n, p)| *p = 200 + (n % cw) as u8);
        picture
    }

    fn rendered(choice: ViewChoice, picture: &Yuv420) -> (I420Surface, (usize, usize)) {
        let request = ViewRequest {
            choice,
            calibration: None,
        };
        let size = (picture.width, picture.height);
        let (view, warning) = View::open(&request, Path::new("/x/a.svo2"), Some(1), size).unwrap();
        assert_eq!(warning, None);
        let (w, h) = view.size();
        let mut surface = I420Surface::new(w as u32, h as u32, PixelFormat::Yuyv);
        view.render(picture, &mut surface.planes_mut());
        (surface, (w, h))
    }

    #[test]
    fn each_eye_is_its_half() {
        let picture = numbered(16, 4);
        let (surface, size) = rendered(ViewChoice::RightRaw, &picture);
        assert_eq!(size, (8, 4));
        let planes = surface.planes();
        assert_eq!(planes.y[..8], [8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(planes.u[..4], [104, 105, 106, 107]);
        let (surface, _) = rendered(ViewChoice::LeftRaw, &picture);
        assert_eq!(surface.planes().v[..4], [200, 201, 202, 203]);
        let (_, size) = rendered(ViewChoice::SideBySide, &picture);
        assert_eq!(size, (16, 4));
    }

    #[test]
    fn odd_sizes_repeat_their_last_row_and_column() {
        let picture = numbered(10, 5);
        let (surface, size) = rendered(ViewChoice::LeftRaw, &picture);
        assert_eq!(size, (5, 5));
        let planes = surface.planes();
        assert_eq!(planes.y[..6], [0, 1, 2, 3, 4, 4]);
        assert_eq!(planes.y[5 * planes.luma_stride..][..6], [0, 1, 2, 3, 4, 4]);
    }

    #[test]
    fn a_missing_calibration_is_a_warning_or_an_error_as_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.svo2");
        let open = |choice, calibration: Option<PathBuf>| {
            let request = ViewRequest {
                choice,
                calibration,
            };
            View::open(&request, &path, Some(31), (1344, 376))
        };
        let (view, warning) = open(ViewChoice::Left, None).unwrap();
        assert!(!view.is_rectified());
        let warning = warning.unwrap();
        assert!(
            warning.contains("SN31.conf") && warning.contains("not rectified"),
            "{warning}"
        );
        assert!(open(ViewChoice::LeftRectified, None).is_err());
        assert!(
            open(ViewChoice::Left, Some(dir.path().to_owned()))
                .unwrap()
                .1
                .is_some()
        );
        assert!(open(ViewChoice::Left, Some(dir.path().join("typo.conf"))).is_err());
        let conf = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/svo2/calib/SN31000001.conf"
        );
        let (view, warning) = open(ViewChoice::Right, Some(conf.into())).unwrap();
        assert!(view.is_rectified() && warning.is_none());
    }
}
