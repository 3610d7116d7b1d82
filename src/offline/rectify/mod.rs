//! The raw view of an eye to its rectified view: undistorted, and with rows that match the other
//! eye's (contract section 4). The maths is stereo rectification with zero disparity and no black
//! borders.

mod map;
mod matrix;

use super::calibration::{Distortion, Eye, StereoCalibration};
pub use map::{EyeArea, PlaneKind, RectifyMap};
use matrix::{Matrix, Vector};

/// Left or right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// What turns positions in the rectified view of an eye into positions in its raw view.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rectification {
    rotation: Matrix,
    eye: Eye,
    focal: f64,
    centre: (f64, f64),
}

impl Rectification {
    /// The rectification of one eye; `None` if the numbers of the calibration, though sensible
    /// one by one, do not describe a pair of eyes.
    pub fn of(calibration: &StereoCalibration, side: Side) -> Option<Self> {
        // 1. Both eyes are turned by half of the rotation between them ...
        let half = calibration.rotation.map(|angle| -angle / 2.0);
        let r = Matrix::from_rotation_vector(half);
        let t = r.times(calibration.translation);
        // 2. ... and then so that the line between them is horizontal.
        let length = matrix::length(t);
        let horizontal = [t[0].signum(), 0.0, 0.0];
        let angle = (t[0].abs() / length).min(1.0).acos();
        let axis = matrix::with_length(matrix::cross(t, horizontal), angle);
        let a = Matrix::from_rotation_vector(axis);
        // 3.
        let rotations = [a.multiply(r.transposed()), a.multiply(r)];
        let eyes = [calibration.left, calibration.right];
        let (w, h) = (
            (calibration.width - 1) as f64,
            (calibration.height - 1) as f64,
        );

        // 4. The same centre for both: the mean of what keeps each one's corners centred.
        let f0 = (eyes[0].fy + eyes[1].fy) / 2.0;
        let mut centre = (0.0, 0.0);
        for (eye, rotation) in eyes.iter().zip(&rotations) {
            for (u, v) in [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h)] {
                let (x, y) = project(rotation, eye.undistorted(u, v), f0);
                centre.0 += (w / 2.0 - x) / 8.0;
                centre.1 += (h / 2.0 - y) / 8.0;
            }
        }

        // 5. The smallest zoom that leaves no pixel without a source.
        let mut zoom = f64::MIN;
        for (eye, rotation) in eyes.iter().zip(&rotations) {
            let at = |i: f64, j: f64| {
                let (x, y) = project(rotation, eye.undistorted(i * w / 8.0, j * h / 8.0), f0);
                (x + centre.0, y + centre.1)
            };
            let (mut x0, mut y0, mut x1, mut y1) = (f64::MIN, f64::MIN, f64::MAX, f64::MAX);
            for step in 0..=8 {
                let step = f64::from(step);
                x0 = x0.max(at(0.0, step).0);
                y0 = y0.max(at(step, 0.0).1);
                x1 = x1.min(at(8.0, step).0);
                y1 = y1.min(at(step, 8.0).1);
            }
            let (cx, cy) = centre;
            for ratio in [
                cx / (cx - x0),
                cy / (cy - y0),
                (w - cx) / (x1 - cx),
                (h - cy) / (y1 - cy),
            ] {
                zoom = zoom.max(ratio);
            }
        }
        let focal = zoom * f0;
        let index = match side {
            Side::Left => 0,
            Side::Right => 1,
        };
        let sound =
            focal.is_finite() && focal > 0.0 && centre.0.is_finite() && centre.1.is_finite();
        sound.then_some(Self {
            rotation: rotations[index],
            eye: eyes[index],
            focal,
            centre,
        })
    }

    /// The position in the raw view that the rectified view shows at (`u`, `v`).
    pub fn source(&self, u: f64, v: f64) -> (f64, f64) {
        let direction = [
            (u - self.centre.0) / self.focal,
            (v - self.centre.1) / self.focal,
            1.0,
        ];
        let p = self.rotation.transposed().times(direction);
        let (x, y) = self.eye.distortion.apply(p[0] / p[2], p[1] / p[2]);
        (self.eye.fx * x + self.eye.cx, self.eye.fy * y + self.eye.cy)
    }
}

/// A normalised point, turned and projected with focal length `f` and centre 0.
fn project(rotation: &Matrix, (x, y): (f64, f64), f: f64) -> (f64, f64) {
    let p: Vector = rotation.times([x, y, 1.0]);
    (f * p[0] / p[2], f * p[1] / p[2])
}

impl Eye {
    /// The normalised point that is seen at pixel (`u`, `v`).
    fn undistorted(&self, u: f64, v: f64) -> (f64, f64) {
        let (x0, y0) = ((u - self.cx) / self.fx, (v - self.cy) / self.fy);
        let d = &self.distortion;
        let (mut x, mut y) = (x0, y0);
        for _ in 0..UNDISTORT_ROUNDS {
            let (gain, dx, dy) = d.parts(x, y);
            (x, y) = ((x0 - dx) / gain, (y0 - dy) / gain);
        }
        (x, y)
    }
}

impl Distortion {
    fn apply(&self, x: f64, y: f64) -> (f64, f64) {
        let (gain, dx, dy) = self.parts(x, y);
        (x * gain + dx, y * gain + dy)
    }

    /// The radial factor and the two tangential offsets at a point.
    fn parts(&self, x: f64, y: f64) -> (f64, f64, f64) {
        let [k1, k2, k3, k4, k5, k6] = self.k;
        let [p1, p2] = self.p;
        let r2 = x * x + y * y;
        let gain =
            (1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1.0 + r2 * (k4 + r2 * (k5 + r2 * k6)));
        let dx = 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x);
        let dy = p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y;
        (gain, dx, dy)
    }
}

/// Of the fixed-point iteration; the reference does as many.
const UNDISTORT_ROUNDS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::path::PathBuf;

    #[derive(Deserialize)]
    struct Golden {
        tolerance_px: f64,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        conf: String,
        mode: String,
        width: usize,
        height: usize,
        #[serde(rename = "R1")]
        r1: [[f64; 3]; 3],
        f: f64,
        cx: f64,
        cy: f64,
        map: Vec<Point>,
    }

    #[derive(Deserialize)]
    struct Point {
        u: f64,
        v: f64,
        src_x: f64,
        src_y: f64,
    }

    fn folder() -> PathBuf {
        PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/svo2/calib"
        ))
    }

    #[test]
    fn the_left_eye_equals_the_reference_in_every_case() {
        let golden = std::fs::read(folder().join("rectify_golden.json")).unwrap();
        let golden: Golden = serde_json::from_slice(&golden).unwrap();
        assert_eq!(golden.cases.len(), 6);
        for case in golden.cases {
            let name = format!("{} {}", case.conf, case.mode);
            let path = folder().join(&case.conf);
            let size = (case.width, case.height);
            let calibration = StereoCalibration::find(&[path], None, size).unwrap();
            let rectification = Rectification::of(&calibration, Side::Left).unwrap();
            for (row, expected) in rectification.rotation.0.iter().zip(case.r1) {
                for (value, expected) in row.iter().zip(expected) {
                    assert!(
                        (value - expected).abs() < 1e-9,
                        "{name} R1 {value} {expected}"
                    );
                }
            }
            assert!(
                (rectification.focal - case.f).abs() < 1e-3,
                "{name} {}",
                rectification.focal
            );
            let (cx, cy) = rectification.centre;
            assert!(
                (cx - case.cx).abs() < 1e-3 && (cy - case.cy).abs() < 1e-3,
                "{name} {cx} {cy}"
            );
            assert_eq!(case.map.len(), 25);
            for point in case.map {
                let (x, y) = rectification.source(point.u, point.v);
                let error = (x - point.src_x).abs().max((y - point.src_y).abs());
                assert!(
                    error < golden.tolerance_px,
                    "{name} ({}, {}): {x} {y}",
                    point.u,
                    point.v
                );
            }
        }
    }

    /// A point in front of the cameras is projected by hand into both raw pictures; the rectified
    /// views must show it in the same row.
    #[test]
    fn both_eyes_show_a_point_in_the_same_row() {
        let path = folder().join("SN40735595.conf");
        let calibration = StereoCalibration::find(&[path], None, (1920, 1200)).unwrap();
        let left = Rectification::of(&calibration, Side::Left).unwrap();
        let right = Rectification::of(&calibration, Side::Right).unwrap();
        let between = Matrix::from_rotation_vector(calibration.rotation);
        for point in [
            [100.0, 200.0, 2000.0],
            [-700.0, -300.0, 1500.0],
            [900.0, 500.0, 3000.0],
        ] {
            let other = between.times(point);
            let other: Vector = std::array::from_fn(|i| other[i] + calibration.translation[i]);
            let row = |rectification: &Rectification, p: Vector| {
                let q = rectification.rotation.times(p);
                rectification.focal * q[1] / q[2] + rectification.centre.1
            };
            let (a, b) = (row(&left, point), row(&right, other));
            assert!((a - b).abs() < 1e-6, "{a} {b}");
            let q = left.rotation.times(point);
            let u = left.focal * q[0] / q[2] + left.centre.0;
            let (x, y) = left.source(u, a);
            let eye = calibration.left;
            let (dx, dy) = eye
                .distortion
                .apply(point[0] / point[2], point[1] / point[2]);
            assert!((eye.fx * dx + eye.cx - x).abs() < 1e-6);
            assert!((eye.fy * dy + eye.cy - y).abs() < 1e-6);
        }
    }
}
