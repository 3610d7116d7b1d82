//! How far frames are apart by their capture times: what the producer did, whenever we came to hear of it.
//!
//! A producer without a core leaves out moments but no ids: every distance that is observed grows, and a
//! reader that trusts it takes the time of two frames for one. But once the producer has its core it writes
//! the next frame at its own time. So the **shortest way over a few frames** counts here, of the last
//! seconds, and not the usual one. Where distances are even, the producer has its time: then the usual one is
//! right, also when the camera has just become slower.

use std::time::{Duration, Instant};

use super::lately::Lately;

/// The capture times of a producer that keeps our own clock. Others say nothing about now.
#[derive(Debug, Default)]
pub(super) struct Captures {
    /// Ids and times, ns, of the last notices, oldest first.
    recent: [(u32, u64); Self::MANY + 1],
    count: usize,
    /// Nanoseconds a frame, over so many distances.
    over_one: Lately,
    over_few: Lately,
    over_many: Lately,
}

impl Captures {
    /// Short enough that a producer which misses half of its moments makes as many without a miss now and then,
    /// long enough that one late frame does not make the way to the next look like the interval.
    const FEW: usize = 3;
    const MANY: usize = 8;

    /// A notice; `None` where its time is on another clock.
    pub fn observe(&mut self, frame_id: u32, capture_ns: Option<u64>, at: Instant) {
        let Some(capture_ns) = capture_ns else {
            self.count = 0;
            return;
        };
        if let Some((id, time)) = self.last() {
            if (id, time) == (frame_id, capture_ns) {
                return;
            }
            // A clock that stands still between frames is too coarse to tell them apart.
            if !(1..=1000).contains(&frame_id.wrapping_sub(id)) || capture_ns <= time {
                self.count = 0;
            }
        }
        if self.count == self.recent.len() {
            self.recent.copy_within(1.., 0);
            self.count -= 1;
        }
        self.recent[self.count] = (frame_id, capture_ns);
        self.count += 1;
        for (span, lately) in [
            (1, &mut self.over_one),
            (Self::FEW, &mut self.over_few),
            (Self::MANY, &mut self.over_many),
        ] {
            if self.count > span {
                let from = self.recent[self.count - 1 - span];
                lately.note(a_frame(from, (frame_id, capture_ns)), at);
            }
        }
    }

    fn last(&self) -> Option<(u32, u64)> {
        self.recent[..self.count].last().copied()
    }

    /// The next notice is of another sequence.
    pub fn break_off(&mut self) {
        *self = Self::default();
    }

    /// How soon after one frame the next may be taken, from the second one on.
    pub fn soonest(&self) -> Option<Duration> {
        match self.over_few.range(Lately::PIECES) {
            Some((least, _)) => Some(duration(least)),
            None => match self.recent[..self.count] {
                [first, .., last] => Some(duration(a_frame(first, last))),
                _ => None,
            },
        }
    }

    /// The shortest distance of two frames in the last second, where distances are not alike: after a late frame the next may
    /// come as soon as that, and which frame was late cannot always be told.
    pub fn least_of_uneven(&self) -> Option<Duration> {
        let (least, _) = self.over_one.range(Lately::SECOND)?;
        (!self.even()).then_some(duration(least))
    }

    /// The interval that the producer means to keep, if it could.
    pub fn meant(&self) -> Option<Duration> {
        let (least, _) = self.over_many.range(Lately::PIECES)?;
        Some(duration(least))
    }

    /// Whether the last distances are alike, within a quarter, as those of a producer that gets its time.
    pub fn even(&self) -> bool {
        let distances = self.recent[..self.count]
            .windows(2)
            .map(|pair| a_frame(pair[0], pair[1]));
        let range = distances.fold((i64::MAX, 0), |(least, most), distance| {
            (least.min(distance), most.max(distance))
        });
        self.count > Self::MANY && range.1 / 5 <= range.0 / 4
    }

    /// How late the newest frame was taken, if it is `step` from frame to frame and one of the `among` last
    /// ones was taken in time.
    pub fn late(&self, step: Duration, among: usize) -> Duration {
        let Some((id, time)) = self.last() else {
            return Duration::ZERO;
        };
        let late = |(earlier, at): &(u32, u64)| {
            let expected = step * id.wrapping_sub(*earlier);
            Duration::from_nanos(time.saturating_sub(*at)).saturating_sub(expected)
        };
        let last = self.recent[..self.count].iter().rev().take(among);
        last.map(late).max().unwrap_or_default()
    }
}

/// Nanoseconds a frame from one to another, which is later and of another id.
fn a_frame(from: (u32, u64), to: (u32, u64)) -> i64 {
    let ids = u64::from(to.0.wrapping_sub(from.0)).max(1);
    i64::try_from(to.1.saturating_sub(from.1) / ids).unwrap_or(i64::MAX)
}

fn duration(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    /// 2023, as a camera counts.
    const NOW: u64 = 1_700_000_000_000 * MS;

    /// Frames with these distances, ms, announced as they are taken.
    fn after(distances: &[u64]) -> Captures {
        let (mut captures, start) = (Captures::default(), Instant::now());
        let mut at = 0;
        captures.observe(7, Some(NOW), start);
        for (id, distance) in (8..).zip(distances) {
            at += distance;
            let arrival = start + Duration::from_millis(at);
            captures.observe(id, Some(NOW + at * MS), arrival);
        }
        captures
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_second_frame_tells_the_distance() {
        assert_eq!(after(&[]).soonest(), None);
        assert_eq!(after(&[20]).soonest(), Some(ms(20)));
        assert_eq!(after(&[20, 10]).soonest(), Some(ms(15)));
        assert_eq!(after(&[20, 20]).meant(), None, "not of two");
    }

    #[test]
    fn a_producer_that_misses_most_moments_is_known_by_when_it_did_not() {
        let mut distances = vec![10; 12];
        // Every second moment left out, for three seconds.
        distances.extend([20; 150]);
        let captures = after(&distances);
        assert_eq!(captures.soonest(), Some(ms(10)));
        assert_eq!(captures.meant(), Some(ms(10)));
        // Never three in time one after the other.
        let captures = after(&[10, 10, 20, 10, 20].repeat(60));
        assert_eq!(captures.soonest(), Some(ms(40) / 3));
        assert!(!captures.even());
    }

    #[test]
    fn one_late_frame_shortens_the_distance_by_a_part_alone() {
        let mut distances = vec![10; 20];
        distances.extend([18, 2, 10, 10, 10, 10, 10, 10, 10]);
        let captures = after(&distances);
        assert_eq!(captures.soonest(), Some(ms(22) / 3));
        assert_eq!(captures.meant(), Some(ms(9)));
    }

    #[test]
    fn the_shortest_distance_counts_while_they_are_not_alike() {
        let mut distances = vec![10; 20];
        assert_eq!(after(&distances).least_of_uneven(), None);
        distances.extend([18, 2]);
        for _ in 0..7 {
            assert_eq!(after(&distances).least_of_uneven(), Some(ms(2)));
            distances.push(10);
        }
        distances.push(10);
        assert_eq!(after(&distances).least_of_uneven(), None);
    }

    #[test]
    fn a_camera_that_has_become_slower_is_even_again_after_eight_frames() {
        let mut distances = vec![10; 20];
        assert!(after(&distances).even());
        for n in 1..10 {
            distances.push(20);
            assert_eq!(after(&distances).even(), n >= 8, "{n}");
        }
        // Night falls: each frame takes a little longer than the one before.
        let distances: Vec<_> = (33..66).collect();
        for n in 8..distances.len() {
            assert!(after(&distances[..n]).even(), "{n}");
        }
    }

    #[test]
    fn lateness_is_against_the_best_of_the_last_frames() {
        let mut distances = vec![10; 12];
        assert_eq!(after(&distances).late(ms(10), 4), Duration::ZERO);
        distances.push(17);
        assert_eq!(after(&distances).late(ms(10), 4), ms(7));
        distances.extend([9, 11]);
        assert_eq!(after(&distances).late(ms(10), 4), ms(7), "still late");
        distances.push(10);
        assert_eq!(after(&distances).late(ms(10), 4), ms(1), "none in time");
    }

    #[test]
    fn clocks_that_jump_or_stand_still_say_nothing_and_do_no_harm() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let hour = 3_600_000 * MS;
        let mut captures = after(&[10; 20]);
        // Forward by an hour: one distance more, which is not the least.
        for n in 0..20 {
            let time = NOW + hour + n * 10 * MS;
            captures.observe(28 + n as u32, Some(time), at(210 + n * 10));
        }
        assert_eq!(captures.soonest(), Some(ms(10)));
        assert!(captures.even());
        // Back: what was counted so far stays, and nothing is counted across.
        captures.observe(48, Some(NOW), at(420));
        assert_eq!(captures.soonest(), Some(ms(10)));
        assert_eq!(captures.late(ms(10), 4), Duration::ZERO);

        // Tens of milliseconds, at 200 frames a second.
        let mut coarse = Captures::default();
        for n in 0..100 {
            let time = NOW + n * 5 / 10 * 10 * MS;
            coarse.observe(n as u32, Some(time), at(n * 5));
            assert!(coarse.soonest().is_none_or(|soonest| soonest >= ms(10)));
        }

        let mut unknown = after(&[10; 20]);
        unknown.observe(28, None, at(210));
        assert!(!unknown.even());
        assert_eq!(unknown.late(ms(1), 4), Duration::ZERO);
        let mut another = after(&[10; 20]);
        another.break_off();
        assert_eq!((another.soonest(), another.meant()), (None, None));
    }

    #[test]
    fn ids_that_wrap_and_ids_that_were_missed_are_counted() {
        let start = Instant::now();
        let mut captures = Captures::default();
        for (id, ms) in [(u32::MAX - 1, 0), (u32::MAX, 10), (2, 40), (3, 50), (4, 60)] {
            let arrival = start + Duration::from_millis(ms);
            captures.observe(id, Some(NOW + ms * MS), arrival);
        }
        assert_eq!(captures.soonest(), Some(ms(10)));
        assert_eq!(captures.late(ms(10), 4), Duration::ZERO);
    }
}
