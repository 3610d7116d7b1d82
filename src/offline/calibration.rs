//! `SN<serial>.conf`: where it is found, and what it says about a pair of eyes (contract section
//! 4).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One camera: focal lengths and centre in pixels, and the coefficients of its distortion.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Eye {
    pub fx: f64,
    pub fy: f64,
    pub cx: f64,
    pub cy: f64,
    pub distortion: Distortion,
}

/// The rational model; `k4` to `k6` are 0 where a file has only five coefficients.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Distortion {
    pub k: [f64; 6],
    pub p: [f64; 2],
}

/// Both eyes of a camera at one picture size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StereoCalibration {
    pub width: usize,
    pub height: usize,
    pub left: Eye,
    pub right: Eye,
    /// Rotation vector and translation (mm) that take left-camera coordinates to right-camera
    /// ones: `(RX, CV, RZ)` and `(-Baseline, TY, TZ)`.
    pub rotation: [f64; 3],
    pub translation: [f64; 3],
}

/// Why a calibration cannot be used; all of these mean "no calibration".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    #[error("no calibration SN{serial}.conf was found (looked for {searched})")]
    NotFound { serial: String, searched: String },
    #[error("{path}: cannot be read: {detail}", path = path.display())]
    Unreadable { path: PathBuf, detail: String },
    #[error("{path}: nothing in it leads to pictures of {width}x{height}", path = path.display())]
    NoMode {
        path: PathBuf,
        width: usize,
        height: usize,
    },
    #[error("{path}: [{section}] {key} is missing or not a sensible number", path = path.display())]
    Value {
        path: PathBuf,
        section: String,
        key: String,
    },
    #[error("{path}: a fisheye calibration (k1 to k4 only), which is not understood", path = path.display())]
    Fisheye { path: PathBuf },
}

/// The places where the calibration of the camera `serial` may be, in order: `given`, the
/// `--calibration` of the user, which is a file or a folder; the recording's folder and its parent;
/// the settings of the ZED SDK.
pub fn places(given: Option<&Path>, recording: &Path, serial: Option<u32>) -> Vec<PathBuf> {
    let name = serial.map(|serial| format!("SN{serial}.conf"));
    let mut places = Vec::new();
    match (given, &name) {
        (Some(given), Some(name)) if given.is_dir() => places.push(given.join(name)),
        (Some(given), _) => places.push(given.to_owned()),
        (None, _) => {}
    }
    let Some(name) = name else { return places };
    let folder = recording.parent().unwrap_or(Path::new(""));
    let parent = folder
        .canonicalize()
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned));
    places.push(folder.join(&name));
    places.extend(parent.map(|parent| parent.join(&name)));
    places.push(Path::new(SDK_SETTINGS).join(&name));
    places
}

impl StereoCalibration {
    /// The first of `places` that exists, read for eyes of `width` by `height`.
    ///
    /// # Errors
    ///
    /// If there is none, or the first one cannot be used.
    pub fn find(
        places: &[PathBuf],
        serial: Option<u32>,
        (width, height): (usize, usize),
    ) -> Result<Self, CalibrationError> {
        let Some(path) = places.iter().find(|path| path.is_file()) else {
            let searched: Vec<_> = places
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return Err(CalibrationError::NotFound {
                serial: serial.map_or("<unknown serial>".to_owned(), |serial| serial.to_string()),
                searched: searched.join(", "),
            });
        };
        let unreadable = |detail: String| CalibrationError::Unreadable {
            path: path.clone(),
            detail,
        };
        let size = fs::metadata(path)
            .map_err(|error| unreadable(error.to_string()))?
            .len();
        if size > LARGEST_FILE {
            return Err(unreadable(format!(
                "{size} bytes are too many for a calibration"
            )));
        }
        let bytes = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        Self::parse(path, &bytes, (width, height))
    }

    /// # Errors
    ///
    /// If the text does not describe eyes of `width` by `height`.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        (width, height): (usize, usize),
    ) -> Result<Self, CalibrationError> {
        let ini = Ini::parse(path, &String::from_utf8_lossy(bytes));
        let no_mode = || CalibrationError::NoMode {
            path: path.to_owned(),
            width,
            height,
        };
        let (wanted, source, family) = ini.choose_mode(width, height).ok_or_else(no_mode)?;
        let eye = |side: &str| ini.eye(side, family, source, wanted);
        let (left, right) = (eye("LEFT")?, eye("RIGHT")?);
        let turn = |key: &str| ini.stereo(key, [wanted, source]);
        let baseline = ini.number("STEREO", "BASELINE")?;
        if baseline.abs() < 1e-3 {
            return Err(ini.bad("STEREO", "BASELINE"));
        }
        Ok(Self {
            width,
            height,
            left,
            right,
            rotation: [turn("RX")?, turn("CV")?, turn("RZ")?],
            translation: [-baseline, turn("TY")?, turn("TZ")?],
        })
    }
}

/// A picture size of a sensor: its name in section titles, and its scale against the full sensor,
/// in whose middle all of them are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mode {
    name: &'static str,
    width: usize,
    height: usize,
    scale: f64,
}

const fn mode(name: &'static str, width: usize, height: usize, scale: f64) -> Mode {
    Mode {
        name,
        width,
        height,
        scale,
    }
}

/// Cameras whose modes are parts of the same sensor; a mode can be had from any other of its
/// family. Both halves of the table's relations are the contract's.
const FAMILIES: [&[Mode]; 3] = [
    // USB cameras
    &[
        mode("2K", 2208, 1242, 1.0),
        mode("FHD", 1920, 1080, 1.0),
        mode("HD", 1280, 720, 0.5),
        mode("VGA", 672, 376, 0.25),
    ],
    // 1200-line sensor
    &[
        mode("FHD1200", 1920, 1200, 1.0),
        mode("FHD", 1920, 1080, 1.0),
        mode("SVGA", 960, 600, 0.5),
    ],
    // 4K sensor
    &[
        mode("4K", 3840, 2160, 1.0),
        mode("QHDPLUS", 3200, 1800, 1.0),
        mode("FHD", 1920, 1080, 0.5),
        mode("FHD1200", 1920, 1200, 1.0),
        mode("SVGA", 960, 600, 0.5),
    ],
];

/// Sections and keys in capitals, values as they are.
struct Ini<'p> {
    path: &'p Path,
    values: HashMap<(String, String), String>,
}

impl<'p> Ini<'p> {
    fn parse(path: &'p Path, text: &str) -> Self {
        let mut section = String::new();
        let mut values = HashMap::new();
        for line in text.trim_start_matches('\u{FEFF}').lines().map(str::trim) {
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|rest| rest.split(']').next())
            {
                section = name.trim().to_uppercase();
            } else if let Some((key, value)) = line.split_once('=')
                && !line.starts_with(['#', ';'])
            {
                let value = value.split(['#', ';']).next().unwrap_or("").trim();
                values.insert(
                    (section.clone(), key.trim().to_uppercase()),
                    value.to_owned(),
                );
            }
        }
        Self { path, values }
    }

    fn has_mode(&self, mode: Mode) -> bool {
        ["LEFT", "RIGHT"]
            .iter()
            .all(|side| self.text(&section_name(side, mode), "FX").is_some())
    }

    /// The mode of the size, the mode to take it from, and their family.
    fn choose_mode(&self, width: usize, height: usize) -> Option<(Mode, Mode, &'static [Mode])> {
        let has = |name: &str| {
            let all = FAMILIES.iter().flat_map(|family| family.iter());
            all.clone()
                .any(|mode| mode.name == name && self.has_mode(*mode))
        };
        let order = if has("2K") || has("HD") || has("VGA") {
            [0, 1, 2]
        } else if has("4K") || has("QHDPLUS") {
            [2, 1, 0]
        } else {
            [1, 0, 2]
        };
        order.iter().find_map(|at| {
            let family = FAMILIES[*at];
            let wanted = family
                .iter()
                .find(|mode| (mode.width, mode.height) == (width, height))?;
            let same = self.has_mode(*wanted).then_some(wanted);
            let source = same.or_else(|| family.iter().find(|mode| self.has_mode(**mode)))?;
            Some((*wanted, *source, family))
        })
    }

    fn eye(
        &self,
        side: &str,
        _family: &[Mode],
        source: Mode,
        wanted: Mode,
    ) -> Result<Eye, CalibrationError> {
        let section = section_name(side, source);
        let value = |key: &str| self.number(&section, key);
        let ratio = wanted.scale / source.scale;
        let centre =
            |c: f64, from: usize, to: usize| (c - from as f64 / 2.0) * ratio + to as f64 / 2.0;
        let (fx, fy) = (value("FX")? * ratio, value("FY")? * ratio);
        for (f, key) in [(fx, "FX"), (fy, "FY")] {
            if !(1.0..1e6).contains(&f) {
                return Err(self.bad(&section, key));
            }
        }
        Ok(Eye {
            fx,
            fy,
            cx: centre(value("CX")?, source.width, wanted.width),
            cy: centre(value("CY")?, source.height, wanted.height),
            distortion: self.distortion(side, &section)?,
        })
    }

    fn distortion(&self, side: &str, mode_section: &str) -> Result<Distortion, CalibrationError> {
        let common = format!("{side}_DISTO");
        let all = COEFFICIENTS
            .iter()
            .all(|key| self.text(&common, key).is_some());
        let section = if all || self.text(&common, "K4").is_some() {
            common.as_str()
        } else {
            mode_section
        };
        let value = |key: &str| match self.text(section, key) {
            None => Ok(0.0),
            Some(_) => self.number(section, key),
        };
        let k = [
            value("K1")?,
            value("K2")?,
            value("K3")?,
            value("K4")?,
            value("K5")?,
            value("K6")?,
        ];
        let p = [value("P1")?, value("P2")?];
        if p == [0.0; 2] && k[4] == 0.0 && k[5] == 0.0 && k[3] != 0.0 {
            return Err(CalibrationError::Fisheye {
                path: self.path.to_owned(),
            });
        }
        // A section of its own counts only as a whole; per-mode values have five coefficients.
        Ok(if all {
            Distortion { k, p }
        } else {
            let value = |key: &str| match self.text(mode_section, key) {
                None => Ok(0.0),
                Some(_) => self.number(mode_section, key),
            };
            Distortion {
                k: [value("K1")?, value("K2")?, value("K3")?, 0.0, 0.0, 0.0],
                p: [value("P1")?, value("P2")?],
            }
        })
    }

    /// `KEY_<MODE>` of one of the modes, else `KEY`; 0 if there is none.
    fn stereo(&self, key: &str, modes: [Mode; 2]) -> Result<f64, CalibrationError> {
        let named = modes.iter().map(|mode| format!("{key}_{}", mode.name));
        let found = named
            .chain([key.to_owned()])
            .find(|key| self.text("STEREO", key).is_some());
        match found {
            Some(key) => self.number("STEREO", &key),
            None => Ok(0.0),
        }
    }

    fn text(&self, section: &str, key: &str) -> Option<&str> {
        self.values
            .get(&(section.to_owned(), key.to_owned()))
            .map(String::as_str)
    }

    fn number(&self, section: &str, key: &str) -> Result<f64, CalibrationError> {
        let value = self
            .text(section, key)
            .and_then(|text| text.parse::<f64>().ok());
        value
            .filter(|value| value.is_finite() && value.abs() < 1e9)
            .ok_or_else(|| self.bad(section, key))
    }

    fn bad(&self, section: &str, key: &str) -> CalibrationError {
        CalibrationError::Value {
            path: self.path.to_owned(),
            section: section.to_owned(),
            key: key.to_lowercase(),
        }
    }
}

fn section_name(side: &str, mode: Mode) -> String {
    format!("{side}_CAM_{}", mode.name)
}

const COEFFICIENTS: [&str; 8] = ["K1", "K2", "P1", "P2", "K3", "K4", "K5", "K6"];
const SDK_SETTINGS: &str = "/usr/local/zed/settings";
const LARGEST_FILE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "
        [LEFT_CAM_2K]\nfx=1059.4\nfy = 1058.9\ncx=1110.2\ncy=621.7\nk1=-0.0431\nk2=0.0133\np1=0.00014\np2=-0.0004\nk3=-0.0057
        [right_cam_2k]\nFX=1061.2\nFY=1060.6\nCX=1098.9\nCY=626.4\nk1=-0.0425
        [STEREO]\nBaseline=119.87\nTY=-0.194\nTZ_2K=0.175\nCV_2K=-0.0039\nRX_2K=0.0021\nRZ_2K=0.0011
    ";

    fn parse(text: &str, size: (usize, usize)) -> Result<StereoCalibration, CalibrationError> {
        StereoCalibration::parse(Path::new("SN1.conf"), text.as_bytes(), size)
    }

    fn about(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn keys_are_found_in_any_case_and_with_spaces() {
        let calibration = parse(FILE, (2208, 1242)).unwrap();
        assert_eq!(calibration.left.fy, 1058.9);
        assert_eq!(calibration.right.cx, 1098.9);
        assert_eq!(
            calibration.left.distortion.k,
            [-0.0431, 0.0133, -0.0057, 0.0, 0.0, 0.0]
        );
        assert_eq!(calibration.left.distortion.p, [0.00014, -0.0004]);
        assert_eq!(calibration.rotation, [0.0021, -0.0039, 0.0011]);
        assert_eq!(calibration.translation, [-119.87, -0.194, 0.175]);
    }

    /// Expected values: the sections of the fixture SN31000001.conf, which has all four modes.
    #[test]
    fn a_missing_mode_is_taken_from_its_family() {
        for (size, fx, cx, cy) in [
            ((1920, 1080), 1059.4, 966.2, 540.7),
            ((1280, 720), 529.7, 643.1, 360.35),
            ((672, 376), 264.85, 337.55, 188.175),
        ] {
            let left = parse(FILE, size).unwrap().left;
            assert!(
                about(left.fx, fx) && about(left.cx, cx) && about(left.cy, cy),
                "{size:?} {left:?}"
            );
        }
        assert!(matches!(
            parse(FILE, (960, 600)),
            Err(CalibrationError::NoMode { .. })
        ));
        let sensor_1200 = FILE.replace("2K", "FHD1200").replace("2k", "fhd1200");
        let fhd = parse(&sensor_1200, (1920, 1080)).unwrap().left;
        assert!(about(fhd.cx, 1110.2) && about(fhd.cy, 621.7 - 60.0));
        let half = parse(&sensor_1200, (960, 600)).unwrap().left;
        assert!(about(half.fx, 1059.4 / 2.0) && about(half.cx, 1110.2 / 2.0));
        let sensor_4k = FILE.replace("2K", "4k").replace("2k", "4k");
        let fhd = parse(&sensor_4k, (1920, 1080)).unwrap().left;
        assert!(about(fhd.cx, 1110.2 / 2.0) && about(fhd.cy, 621.7 / 2.0));
    }

    #[test]
    fn a_whole_disto_section_wins_and_half_of_one_does_not() {
        let whole = "[LEFT_DISTO]\nk1=1\nk2=2\np1=3\np2=4\nk3=5\nk4=6\nk5=7\nk6=8\n";
        let left = parse(&format!("{FILE}\n{whole}"), (2208, 1242))
            .unwrap()
            .left
            .distortion;
        assert_eq!(
            (left.k, left.p),
            ([1.0, 2.0, 5.0, 6.0, 7.0, 8.0], [3.0, 4.0])
        );
        let half = "[LEFT_DISTO]\nk1=1\nk2=2\n";
        let left = parse(&format!("{FILE}\n{half}"), (2208, 1242))
            .unwrap()
            .left
            .distortion;
        assert_eq!(left.k[0], -0.0431);
    }

    #[test]
    fn fisheye_and_nonsense_are_no_calibration() {
        let fisheye = "[LEFT_DISTO]\nk1=0.1\nk2=0.2\nk3=0.3\nk4=0.4\n";
        let error = parse(&format!("{FILE}\n{fisheye}"), (2208, 1242)).unwrap_err();
        assert!(matches!(error, CalibrationError::Fisheye { .. }));
        for (from, to) in [
            ("fx=1059.4", "fx=abc"),
            ("fx=1059.4", "fx=0"),
            ("Baseline=119.87", "Baseline=0"),
            ("cx=1110.2", "cx=nan"),
            ("cy=621.7", "cy=1e300"),
        ] {
            let error = parse(&FILE.replace(from, to), (2208, 1242)).unwrap_err();
            assert!(
                matches!(error, CalibrationError::Value { .. }),
                "{to}: {error}"
            );
        }
        assert!(parse("", (2208, 1242)).is_err());
    }

    #[test]
    fn the_recordings_folder_comes_before_its_parent_and_the_sdk() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("segment");
        std::fs::create_dir(&inner).unwrap();
        let recording = inner.join("a.svo2");
        let found = places(None, &recording, Some(7));
        assert_eq!(found[0], inner.join("SN7.conf"));
        assert!(found[1].ends_with("SN7.conf") && !found[1].starts_with(&inner));
        assert_eq!(found[2], Path::new("/usr/local/zed/settings/SN7.conf"));
        let given = places(Some(dir.path()), &recording, Some(7));
        assert_eq!(given[0], dir.path().join("SN7.conf"));
        assert_eq!(given[1..], found);
        let missing = StereoCalibration::find(&given, Some(7), (1280, 720))
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("SN7.conf") && missing.contains(&dir.path().display().to_string())
        );
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_finite(bytes in proptest::collection::vec(any::<u8>(), 0..400), keep in 0..FILE.len()) {
            let mut text = FILE.as_bytes()[..keep].to_vec();
            text.extend(bytes);
            if let Ok(calibration) = StereoCalibration::parse(Path::new("x"), &text, (1280, 720)) {
                prop_assert!(calibration.left.fx.is_finite() && calibration.translation[0] != 0.0);
            }
        }
    }
}
