//! The times of the pictures in the MP4, from the times of the recording.

use super::timeline::offset_ns;
use crate::encode::FrameRate;
use crate::time::MediaTime;

/// `--timing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Timing {
    /// The distances of the recording, which need not be even.
    #[default]
    Timestamps,
    /// One picture each 1/fps.
    Constant,
}

/// Gives each picture its time: the first one 0, the others strictly later.
#[derive(Debug)]
pub struct FrameClock {
    timing: Timing,
    rate: FrameRate,
    last: Option<(u64, i64)>,
    count: u64,
    odd: usize,
}

impl FrameClock {
    pub fn new(timing: Timing, rate: FrameRate) -> Self {
        Self {
            timing,
            rate,
            last: None,
            count: 0,
            odd: 0,
        }
    }

    /// The time of the next picture, which the recording took at `timestamp_ns`.
    pub fn place(&mut self, timestamp_ns: u64) -> MediaTime {
        let period = offset_ns(self.rate, 1) as i64;
        let count = self.count;
        self.count += 1;
        if self.timing == Timing::Constant {
            return MediaTime(offset_ns(self.rate, count) as i64);
        }
        let time = match self.last {
            None => 0,
            Some((before, time)) => {
                let step = timestamp_ns
                    .checked_sub(before)
                    .filter(|step| *step >= SMALLEST_STEP);
                if step.is_none_or(|step| step > LARGEST_STEP) {
                    self.odd += 1;
                }
                let step = match step {
                    None => SMALLEST_STEP as i64,
                    Some(step) if step > LARGEST_STEP => period,
                    Some(step) => step as i64,
                };
                time + step
            }
        };
        self.last = Some((timestamp_ns, time));
        MediaTime(time)
    }

    /// Pictures whose timestamp did not follow the one before it.
    pub fn odd_steps(&self) -> usize {
        self.odd
    }
}

/// One tick of the 90 kHz that an MP4 counts in, rounded up.
const SMALLEST_STEP: u64 = 11_112;
/// A larger step is a clock that was set, not a pause, and more than a sample can last (2^32
/// ticks are 13 hours).
pub const LARGEST_STEP: u64 = 6 * 3600 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distances_of_the_recording_are_kept() {
        let mut clock = FrameClock::new(Timing::Timestamps, FrameRate { num: 30, den: 1 });
        let times = [1_000, 34_000_000, 70_000_000].map(|ns| clock.place(ns).as_nanos());
        assert_eq!(times, [0, 33_999_000, 69_999_000]);
        assert_eq!(clock.odd_steps(), 0);
    }

    #[test]
    fn a_step_back_is_one_tick_and_a_jump_one_period() {
        let mut clock = FrameClock::new(Timing::Timestamps, FrameRate { num: 10, den: 1 });
        let day = 86_400_000_000_000;
        let times = [day, day - 5, 0, day, day + 7_000_000].map(|ns| clock.place(ns).as_nanos());
        assert_eq!(times, [0, 11_112, 22_224, 100_022_224, 107_022_224]);
        assert_eq!(clock.odd_steps(), 3);
    }

    #[test]
    fn constant_timing_ignores_the_recording() {
        let mut clock = FrameClock::new(Timing::Constant, FrameRate { num: 25, den: 1 });
        let times = [9, 5, 7_000_000_000].map(|ns| clock.place(ns).as_nanos());
        assert_eq!(times, [0, 40_000_000, 80_000_000]);
    }
}
