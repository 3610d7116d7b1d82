//! What fuzzers drive: bytes from outside, which must be refused or read, and never panic or ask
//! for memory beyond their own size. The tests drive the same functions with damaged recordings
//! in every run.

use std::path::Path;

use super::calibration::StereoCalibration;
use super::rectify::{Rectification, Side};
use super::svo::{FrameMessage, FrameReader, Recording, strip_ranges};

/// A whole recording: the walk over its records, its header, footer and frames.
///
/// # Panics
///
/// If the index contradicts itself.
pub fn recording(bytes: &[u8]) {
    let Ok(file) = tempfile::NamedTempFile::new() else {
        return;
    };
    if std::fs::write(file.path(), bytes).is_err() {
        return;
    }
    let Ok(recording) = Recording::open(file.path()) else {
        return;
    };
    assert!(!recording.frames().is_empty());
    assert!((1..=1000).contains(&recording.fps()));
    let mut reader = FrameReader::new(&recording);
    for index in 0..recording.frames().len() {
        let start = recording.decode_start(index);
        assert!(start <= index);
        let _ = reader.payload(index);
    }
}

/// One `side_by_side` message.
///
/// # Panics
///
/// If a part lies outside the message.
pub fn frame(bytes: &[u8]) {
    if let Some(message) = FrameMessage::parse(bytes) {
        assert!(message.payload.len() + 8 <= bytes.len());
        if let Some(strips) = strip_ranges(message.payload) {
            assert_eq!(strips[3].end, message.payload.len());
        }
    }
}

/// A calibration file, at a picture size of each family.
pub fn calibration(bytes: &[u8]) {
    for size in [(1280, 720), (1920, 1080), (960, 600), (3840, 2160)] {
        let parsed = StereoCalibration::parse(Path::new("fuzz.conf"), bytes, size);
        let Ok(calibration) = parsed else { continue };
        for side in [Side::Left, Side::Right] {
            if let Some(rectification) = Rectification::of(&calibration, side) {
                let _ = rectification.source(0.0, size.1 as f64);
            }
        }
    }
}
