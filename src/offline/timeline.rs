//! The common time of several recordings: where a grid starts and ends, and which frame of each
//! it shows (contract section 5).

use super::clock::LARGEST_STEP;
use super::error::OfflineError;
use super::overlay;
use crate::encode::FrameRate;

/// The output frames of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridTimeline {
    start_ns: u64,
    rate: FrameRate,
    frames: u64,
}

impl GridTimeline {
    /// Starts at the latest first frame and ends at the earliest last one, or after `seconds`.
    ///
    /// # Errors
    ///
    /// If the recordings, of which none is empty, have no time in common, or the clock of one was
    /// set while it recorded; `names` are for the message.
    pub fn new(
        times: &[Vec<u64>],
        names: &[String],
        rate: FrameRate,
        seconds: Option<f64>,
    ) -> Result<Self, OfflineError> {
        for (times, name) in times.iter().zip(names) {
            if let Some(at) = clock_was_set(times) {
                let (before, after) = (times[at - 1], times[at]);
                return Err(OfflineError::Clock(format!(
                    "{name}: frame {at} was taken at {} and the one before it at {}",
                    overlay::clock_text(after),
                    overlay::clock_text(before)
                )));
            }
        }
        let first = |times: &Vec<u64>| times.first().copied().unwrap_or(u64::MAX);
        let last = |times: &Vec<u64>| times.last().copied().unwrap_or(0);
        let start_ns = times.iter().map(first).max().unwrap_or(0);
        let end_ns = times.iter().map(last).min().unwrap_or(0);
        if end_ns < start_ns {
            let pick = |wanted: u64, of: &dyn Fn(&Vec<u64>) -> u64| -> Vec<&str> {
                let found = times
                    .iter()
                    .zip(names)
                    .filter(|(times, _)| of(times) == wanted);
                found.map(|(_, name)| name.as_str()).collect()
            };
            return Err(OfflineError::NoOverlap(format!(
                "{} ends before {} begins",
                pick(end_ns, &last).join(", "),
                pick(start_ns, &first).join(", ")
            )));
        }
        let mut timeline = Self {
            start_ns,
            rate,
            frames: u64::MAX,
        };
        let whole = timeline.frames_until(end_ns);
        let wanted = seconds.map_or(u64::MAX, |seconds| {
            (seconds * rate.per_second()).ceil() as u64
        });
        timeline.frames = whole.min(wanted.max(1));
        if timeline.frames > MOST_FRAMES {
            return Err(OfflineError::Usage(format!(
                "{} frames are more than a grid can have ({MOST_FRAMES}): lower --fps or set \
                 --duration-seconds",
                timeline.frames
            )));
        }
        Ok(timeline)
    }

    /// How many output frames there are; at least one.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The instant of output frame `k`, on the recordings' clock.
    pub fn time_ns(&self, k: u64) -> u64 {
        self.start_ns.saturating_add(offset_ns(self.rate, k))
    }

    /// Up to here a frame may be shown at output frame `k`: half a period behind it.
    fn limit_ns(&self, k: u64) -> u64 {
        let half = 500_000_000 * u64::from(self.rate.den) / u64::from(self.rate.num);
        self.time_ns(k).saturating_add(half)
    }

    fn frames_until(&self, end_ns: u64) -> u64 {
        let span = u128::from(end_ns - self.start_ns);
        let (num, den) = (u128::from(self.rate.num), u128::from(self.rate.den));
        let mut count = (span * num / (den * 1_000_000_000)) as u64;
        // Rounding can move one frame to either side.
        while self.time_ns(count) <= end_ns {
            count += 1;
        }
        while count > 1 && self.time_ns(count - 1) > end_ns {
            count -= 1;
        }
        count
    }

    /// The frame that a recording with these `times` shows at each output frame: the latest one
    /// up to half a period behind the instant. Never goes back, and holds over a gap.
    pub fn shown<'t>(&'t self, times: &'t [u64]) -> impl Iterator<Item = usize> + 't {
        let mut index = 0;
        (0..self.frames).map(move |k| {
            let limit = self.limit_ns(k);
            while times.get(index + 1).is_some_and(|time| *time <= limit) {
                index += 1;
            }
            index
        })
    }
}

/// The first frame whose time does not follow from the one before by any pause or reordering, but
/// by a clock that was set: there is no telling when it was taken beside the other cameras'.
fn clock_was_set(times: &[u64]) -> Option<usize> {
    let set = |pair: &[u64]| match pair[1].checked_sub(pair[0]) {
        Some(ahead) => ahead > LARGEST_STEP,
        None => pair[0] - pair[1] > LARGEST_STEP_BACK,
    };
    Some(times.windows(2).position(set)? + 1)
}

/// `k` periods, rounded once.
pub fn offset_ns(rate: FrameRate, k: u64) -> u64 {
    let (num, den) = (u128::from(rate.num), u128::from(rate.den));
    let ns = (u128::from(k) * den * 2_000_000_000 + num) / (num * 2);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

const LARGEST_STEP_BACK: u64 = 1_000_000_000;
/// Nearly two days at 30 frames per second; what is kept for each is in memory.
const MOST_FRAMES: u64 = 5_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::svo::Recording;
    use std::path::Path;

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("zed{n}")).collect()
    }

    #[test]
    fn the_segment_fixture_has_the_tiles_of_the_manifest() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/svo2"));
        let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let segment = &manifest["segment"];
        let times: Vec<Vec<u64>> = (1..=4)
            .map(|n| {
                let name = format!("2026-03-18T11-59-41/2026-03-18T11-59-41_zed{n}.svo2");
                let recording = Recording::open(&folder.join(name)).unwrap();
                recording
                    .frames()
                    .iter()
                    .map(|frame| frame.timestamp_ns)
                    .collect()
            })
            .collect();
        let line = GridTimeline::new(&times, &names(4), FrameRate::THIRTY, None).unwrap();
        assert_eq!(segment["common_start_ns"], line.time_ns(0));
        assert_eq!(segment["output_frames"], line.frames());
        let expected: Vec<[usize; 4]> =
            serde_json::from_value(segment["frame_index_per_tile"].clone()).unwrap();
        let shown: Vec<Vec<usize>> = times
            .iter()
            .map(|times| line.shown(times).collect())
            .collect();
        for (k, tiles) in expected.iter().enumerate() {
            assert_eq!(
                [shown[0][k], shown[1][k], shown[2][k], shown[3][k]],
                *tiles,
                "frame {k}"
            );
        }
    }

    #[test]
    fn a_duration_is_rounded_up_to_whole_frames() {
        let times = vec![(0..100).map(|n| n * 40_000_000).collect::<Vec<u64>>(); 2];
        let rate = FrameRate { num: 25, den: 1 };
        let frames = |seconds| {
            GridTimeline::new(&times, &names(2), rate, seconds)
                .unwrap()
                .frames()
        };
        assert_eq!(frames(None), 100);
        assert_eq!(frames(Some(1.0)), 25);
        assert_eq!(frames(Some(1.01)), 26);
        assert_eq!(frames(Some(60.0)), 100);
        assert_eq!(frames(Some(0.0)), 1);
    }

    #[test]
    fn recordings_without_common_time_are_named() {
        let times = [vec![10, 20], vec![30, 40]];
        let error = GridTimeline::new(&times, &names(2), FrameRate::THIRTY, None).unwrap_err();
        assert!(
            error.to_string().ends_with("zed1 ends before zed2 begins"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_clock_that_was_set_and_a_grid_without_end_are_refused() {
        let even: Vec<u64> = (0..100).map(|n| UNIX + n * 40_000_000).collect();
        let grid = |second: Vec<u64>, num| {
            let rate = FrameRate { num, den: 1 };
            GridTimeline::new(&[even.clone(), second], &names(2), rate, None)
        };
        // Set by ten years, forward and back, and by an hour back.
        let years = 315_360_000_000_000_000;
        for (at, step) in [
            (50, years),
            (1, years),
            (99, -years),
            (50, -3_600_000_000_000),
        ] {
            let mut times = even.clone();
            times[at..]
                .iter_mut()
                .for_each(|time| *time = time.wrapping_add_signed(step));
            let error = grid(times, 25).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            let text = error.to_string();
            assert!(
                text.contains(&format!("zed2: frame {at} was taken at ")),
                "{text}"
            );
        }
        // A pause of an hour is none, nor are two frames that changed places.
        let mut pause = even.clone();
        pause[50..]
            .iter_mut()
            .for_each(|time| *time += 3_600_000_000_000);
        assert_eq!(grid(pause, 25).unwrap().frames(), 100);
        let mut swapped = even.clone();
        swapped.swap(10, 11);
        assert_eq!(grid(swapped, 25).unwrap().frames(), 100);
        // Within their bounds, but too often.
        let slow: Vec<u64> = (0..20).map(|n| UNIX + n * 18_000_000_000_000).collect();
        let rate = FrameRate { num: 1000, den: 1 };
        let error = GridTimeline::new(&[slow.clone(), slow], &names(2), rate, None).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }

    const UNIX: u64 = 1_773_806_381_000_000_000;

    #[test]
    fn periods_are_rounded_once() {
        let ntsc = FrameRate {
            num: 30_000,
            den: 1001,
        };
        assert_eq!(offset_ns(ntsc, 1), 33_366_667);
        assert_eq!(offset_ns(ntsc, 30_000), 1_001_000_000_000);
        assert_eq!(offset_ns(FrameRate::THIRTY, 2), 66_666_667);
    }
}
