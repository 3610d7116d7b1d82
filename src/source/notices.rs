//! What a sequence of frame notices says: what is new, what was missed, where the stream broke
//! off, and how far frames are apart. No clock, no socket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::captures::Captures;
use super::lately::Lately;

/// "Frame N is in the segment, taken at T", announced at `arrival`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameNotice {
    pub frame_id: u32,
    /// Nanoseconds on the producer's clock.
    pub timestamp_ns: u64,
    pub arrival: Instant,
    /// From capture to arrival, ns, where `timestamp_ns` is wall-clock time.
    pub age_ns: Option<i64>,
}

/// What a notice is in its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A frame behind all before it; `missed` ids in between were never announced to us.
    Newer { missed: u64 },
    /// Announced before, and not taken then.
    Again,
    /// Announced before, and taken.
    Taken,
    /// Id or time went back: the producer has started anew.
    Back,
}

/// The ids and times that were announced.
#[derive(Debug, Default)]
pub struct Sequence {
    last: Option<(u32, u64)>,
    taken: Option<(u32, u64)>,
}

impl Sequence {
    /// Places the next notice. Ids wrap at 2^32 and go on as long as time goes forward.
    pub fn place(&mut self, frame_id: u32, timestamp_ns: u64) -> Seen {
        let this = (frame_id, timestamp_ns);
        let seen = match self.last {
            None => Seen::Newer { missed: 0 },
            Some(_) if self.taken == Some(this) => Seen::Taken,
            Some(last) if last == this => Seen::Again,
            Some((id, time)) => {
                let step = frame_id.wrapping_sub(id);
                // The half of the number circle that lies ahead is forward.
                if step == 0 || step > u32::MAX / 2 || timestamp_ns < time {
                    Seen::Back
                } else {
                    Seen::Newer {
                        missed: u64::from(step - 1),
                    }
                }
            }
        };
        if seen != Seen::Taken {
            self.last = Some(this);
        }
        seen
    }

    /// Notes that the frame was read.
    pub fn take(&mut self, frame_id: u32, timestamp_ns: u64) {
        self.taken = Some((frame_id, timestamp_ns));
    }

    pub fn last_id(&self) -> Option<u32> {
        self.last.map(|(id, _)| id)
    }

    pub fn last_time(&self) -> Option<u64> {
        self.last.map(|(_, time)| time)
    }
}

/// The distance of frames as it was observed lately, and the rhythm that they keep.
#[derive(Debug, Default)]
pub struct FrameInterval {
    last: Option<FrameNotice>,
    samples: [u64; Self::SAMPLES],
    count: usize,
    /// The last notices without a break between them, oldest first.
    rhythm: VecDeque<(u32, Instant)>,
    /// Where they are on our own clock.
    captures: Captures,
    /// Ages of notices, ns.
    ages: Lately,
}

impl FrameInterval {
    const SAMPLES: usize = 9;
    /// With fewer, one late wake-up would decide.
    const LEAST: usize = 3;
    /// Notices that the rhythm is known from.
    const RHYTHM: usize = 32;
    /// Notices of which one at least was on time. A producer that counts its pauses from its last
    /// frame shifts its rhythm when it is late: so many frames later that is known.
    const ONE_ON_TIME: usize = 4;
    /// A read may end within so many tenths of the frame interval (contract section 4.5).
    const LATEST_TENTHS: u32 = 7;
    /// Of the shortest distance, while they are not alike.
    const LATEST_TENTHS_UNEVEN: u32 = 5;

    /// The newest notice of those that were received together.
    pub fn observe(&mut self, notice: FrameNotice) {
        if let Some(last) = self.last {
            let ids = notice.frame_id.wrapping_sub(last.frame_id);
            let time = notice.arrival.saturating_duration_since(last.arrival);
            if (1..=1000).contains(&ids) {
                let sample = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / u64::from(ids);
                self.samples[self.count % Self::SAMPLES] = sample;
                self.count += 1;
            } else {
                self.rhythm.clear();
            }
        }
        if self.rhythm.capacity() < Self::RHYTHM {
            // Once, with the first notice: a warm source allocates nothing.
            self.rhythm.reserve_exact(Self::RHYTHM);
        }
        if self.rhythm.len() == Self::RHYTHM {
            self.rhythm.pop_front();
        }
        self.rhythm.push_back((notice.frame_id, notice.arrival));
        let capture = notice.age_ns.map(|_| notice.timestamp_ns);
        self.captures
            .observe(notice.frame_id, capture, notice.arrival);
        if let Some(age) = notice.age_ns {
            self.ages.note(age, notice.arrival);
        }
        self.last = Some(notice);
    }

    /// When the newest notice should have arrived: by the rhythm of those before it, by the capture times, and
    /// by the age that notices had at best in the last seconds.
    ///
    /// A producer that was held up publishes late, and writes the next frame at its own time all
    /// the same: at once, if it has to. So has a notice that we were too busy to see. Either way
    /// the time until the next frame is written counts from here, and not from the arrival. Later
    /// than an interval means that the next frame is due already.
    pub fn due(&self) -> Option<Instant> {
        let &(id, arrival) = self.rhythm.back()?;
        let (mut by_rhythm, mut taken_late) = (Duration::ZERO, Duration::ZERO);
        if let Some(step) = self.kept() {
            let late = |&(earlier, at): &(u32, Instant)| {
                let expected = step * id.wrapping_sub(earlier);
                arrival
                    .saturating_duration_since(at)
                    .saturating_sub(expected)
            };
            let late = self.rhythm.iter().rev().take(Self::ONE_ON_TIME).map(late);
            by_rhythm = late.max().unwrap_or_default();
            taken_late = self.captures.late(step, Self::ONE_ON_TIME);
        }
        // Where we are late for every notice, for want of a core, the rhythm is that of our being
        // late. Capture and age tell, and need no even distances.
        let by_clock = taken_late + self.older();
        arrival
            .checked_sub(by_rhythm.max(by_clock))
            .or(Some(arrival))
    }

    /// When a read of the newest frame has to be over, since the next may be being written by then; `None` while
    /// nothing is known.
    pub fn latest_end(&self) -> Option<Instant> {
        let arrival = self.last?.arrival;
        let shortest = self.shortest()?;
        let end = self.due()?.min(arrival) + shortest * Self::LATEST_TENTHS / 10;
        // Whether the frame itself was taken late shows only if one of the last was in time.
        match self.captures.least_of_uneven() {
            Some(least) => {
                let older = self.older();
                let left = (least * Self::LATEST_TENTHS_UNEVEN / 10).saturating_sub(older);
                // Two frames at once are no reason to let a second of prompt reads go, unless the notice is late.
                let prompt = if older < shortest / 4 {
                    shortest / 8
                } else {
                    Duration::ZERO
                };
                Some(end.min(arrival + left.max(prompt)))
            }
            None => Some(end),
        }
    }

    /// How soon after a notice that was on time the next frame may be written.
    fn shortest(&self) -> Option<Duration> {
        let both = [self.typical(), self.captures.soonest()];
        both.into_iter().flatten().min()
    }

    /// The distance that notices keep while they are on time.
    fn kept(&self) -> Option<Duration> {
        // The larger one: a stream that slows down is not late.
        let observed = self.step().max(self.typical())?;
        match self.captures.meant() {
            // But one whose distances are not alike does not get its time.
            Some(meant) if !self.captures.even() => Some(observed.min(meant)),
            _ => Some(observed),
        }
    }

    /// By how much the newest notice is older than the best lately.
    ///
    /// A producer that takes longer for good, as with a longer exposure, loses frames for a second. Where ages
    /// are not alike, somebody has no core, and it may take longer than that until a notice is on time.
    fn older(&self) -> Duration {
        let Some(age) = self.last.and_then(|last| last.age_ns) else {
            return Duration::ZERO;
        };
        let second = self.ages.range(Lately::SECOND);
        let alike = second
            .zip(self.shortest())
            .is_some_and(|((least, most), interval)| {
                i128::from(most) - i128::from(least) <= interval.as_nanos() as i128 / 10
            });
        let best = if alike {
            second
        } else {
            self.ages.range(Lately::PIECES)
        };
        let older = best.map_or(0, |(least, _)| age.saturating_sub(least));
        Duration::from_nanos(u64::try_from(older).unwrap_or(0))
    }

    /// The mean distance over many frames: several of them make a jitter of arrivals small.
    /// `None` while there are too few.
    fn step(&self) -> Option<Duration> {
        let mut steps = [0; Self::RHYTHM / 2];
        let pairs = self.rhythm.iter().zip(self.rhythm.iter().skip(steps.len()));
        let mut count = 0;
        for ((from, start), (to, end)) in pairs {
            let time = end.saturating_duration_since(*start).as_nanos();
            let ids = u128::from(to.wrapping_sub(*from)).max(1);
            steps[count] = u64::try_from(time / ids).unwrap_or(u64::MAX);
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let steps = &mut steps[..count];
        steps.sort_unstable();
        Some(Duration::from_nanos(steps[count / 2]))
    }

    /// The next notice is of another sequence; the distance stays.
    pub fn break_off(&mut self) {
        self.last = None;
        self.forget();
    }

    /// What was remembered of rhythm, capture times and ages is not true any more: larger pictures take longer to
    /// write, so that all would be late beside the best of the small ones.
    pub fn forget(&mut self) {
        self.rhythm.clear();
        self.captures.break_off();
        self.ages = Lately::default();
    }

    /// The median of the last few distances, once there are enough.
    pub fn typical(&self) -> Option<Duration> {
        let filled = self.count.min(Self::SAMPLES);
        if filled < Self::LEAST {
            return None;
        }
        let mut sorted = self.samples;
        let sorted = &mut sorted[..filled];
        sorted.sort_unstable();
        Some(Duration::from_nanos(sorted[filled / 2]))
    }

    /// When a notice that was found waiting at `found` has probably arrived, since nobody saw it:
    /// as far behind the last one as frames are apart, but after `empty`, when there was none.
    pub fn probable_arrival(&self, frame_id: u32, empty: Instant, found: Instant) -> Instant {
        let (Some(last), Some(typical)) = (self.last, self.typical()) else {
            return found;
        };
        let ids = frame_id.wrapping_sub(last.frame_id);
        if !(1..=1000).contains(&ids) {
            return found;
        }
        (last.arrival + typical * ids).clamp(empty.min(found), found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_were_left_out_are_counted() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.place(5, 100), Seen::Newer { missed: 0 });
        assert_eq!(sequence.place(6, 200), Seen::Newer { missed: 0 });
        assert_eq!(sequence.place(10, 300), Seen::Newer { missed: 3 });
        assert_eq!(sequence.last_id(), Some(10));
    }

    #[test]
    fn a_wrap_of_the_id_with_time_going_forward_is_no_discontinuity() {
        let mut sequence = Sequence::default();
        sequence.place(u32::MAX - 1, 100);
        assert_eq!(sequence.place(u32::MAX, 200), Seen::Newer { missed: 0 });
        assert_eq!(sequence.place(1, 300), Seen::Newer { missed: 1 });
    }

    #[test]
    fn an_id_or_a_time_that_goes_back_is_one() {
        for (id, time) in [(0, 900), (500, 900), (u32::MAX, 900), (501, 99)] {
            let mut sequence = Sequence::default();
            sequence.place(500, 100);
            assert_eq!(sequence.place(id, time), Seen::Back, "{id} at {time}");
        }
        let mut wrapped = Sequence::default();
        wrapped.place(u32::MAX, 100);
        assert_eq!(wrapped.place(0, 0), Seen::Back, "wrap with time going back");
    }

    #[test]
    fn a_frame_is_taken_once_but_may_be_tried_again() {
        let mut sequence = Sequence::default();
        sequence.place(0, 0);
        assert_eq!(sequence.place(0, 0), Seen::Again);
        sequence.take(0, 0);
        assert_eq!(sequence.place(0, 0), Seen::Taken);
        assert_eq!(
            sequence.place(1, 0),
            Seen::Newer { missed: 0 },
            "time may stand still"
        );
    }

    fn notice(frame_id: u32, arrival: Instant) -> FrameNotice {
        FrameNotice {
            frame_id,
            timestamp_ns: 0,
            arrival,
            age_ns: None,
        }
    }

    #[test]
    fn the_interval_is_a_median_per_id_and_unknown_at_first() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut interval = FrameInterval::default();
        for (id, ms) in [(1, 0), (2, 40), (3, 80)] {
            interval.observe(notice(id, at(ms)));
            assert_eq!(interval.typical(), None);
        }
        // two ids apart
        interval.observe(notice(5, at(160)));
        assert_eq!(interval.typical(), Some(Duration::from_millis(40)));
        // a pause of a minute is one sample; a restart is none
        interval.observe(notice(6, at(60_160)));
        interval.break_off();
        interval.observe(notice(0, at(60_161)));
        assert_eq!(interval.typical(), Some(Duration::from_millis(40)));
    }

    /// Frames 10 ms apart, with the lateness that `late` gives to some.
    fn rhythm(frames: u32, late: &[(u32, u64)]) -> (FrameInterval, Instant) {
        let start = Instant::now();
        let mut interval = FrameInterval::default();
        for id in 0..frames {
            let late = late
                .iter()
                .find(|(of, _)| *of == id)
                .map_or(0, |(_, ms)| *ms);
            let at = start + Duration::from_millis(u64::from(id) * 10 + late);
            interval.observe(notice(id, at));
        }
        (
            interval,
            start + Duration::from_millis(u64::from(frames - 1) * 10),
        )
    }

    #[test]
    fn a_late_notice_was_due_when_the_rhythm_says() {
        let (interval, on_time) = rhythm(40, &[(39, 8)]);
        assert_eq!(interval.due(), Some(on_time));
        let (interval, on_time) = rhythm(40, &[(35, 6), (36, 9), (38, 5), (39, 4)]);
        assert_eq!(interval.due(), Some(on_time));
        let (interval, on_time) = rhythm(40, &[(20, 9)]);
        assert_eq!(interval.due(), Some(on_time));
        // known as soon as the interval is
        let (interval, on_time) = rhythm(6, &[(5, 7)]);
        assert_eq!(interval.due(), Some(on_time));
    }

    #[test]
    fn behind_a_missed_frame_the_next_one_is_due() {
        let (interval, on_time) = rhythm(40, &[(39, 23)]);
        assert_eq!(interval.due(), Some(on_time));
    }

    #[test]
    fn a_rhythm_that_has_shifted_for_good_is_the_new_one_after_a_few_frames() {
        let shifted: Vec<_> = (37..40).map(|id| (id, 12)).collect();
        let (interval, on_time) = rhythm(40, &shifted);
        assert_eq!(interval.due(), Some(on_time), "one of four was on time");
        let shifted: Vec<_> = (36..40).map(|id| (id, 12)).collect();
        let (interval, on_time) = rhythm(40, &shifted);
        assert_eq!(interval.due(), Some(on_time + Duration::from_millis(12)));
    }

    #[test]
    fn a_camera_that_slows_down_is_on_time_again_after_five_frames() {
        let slower: Vec<_> = (30..36).map(|id| (id, u64::from(id - 29) * 10)).collect();
        let (interval, _) = rhythm(36, &slower);
        let (_, arrival) = interval.rhythm.back().expect("a notice was seen");
        assert_eq!(interval.due(), Some(*arrival));
    }

    #[test]
    fn who_is_late_for_every_notice_sees_it_by_their_age() {
        let start = Instant::now();
        let mut interval = FrameInterval::default();
        let mut see = |id: u32, late_ms: u64| {
            let at = start + Duration::from_millis(u64::from(id) * 10 + late_ms);
            interval.observe(FrameNotice {
                age_ns: Some(2_000_000 + late_ms as i64 * 1_000_000),
                ..notice(id, at)
            });
            at - interval.due().expect("a notice was seen")
        };
        (0..40).for_each(|id| assert_eq!(see(id, 0), Duration::ZERO));
        // longer than any rhythm is remembered
        (40..110).for_each(|id| assert_eq!(see(id, 7), Duration::from_millis(7), "{id}"));
        assert_eq!(
            see(110, 35),
            Duration::from_millis(35),
            "frames are pending"
        );
        // A second later a producer that has become slower is taken for one.
        (111..240).for_each(|id| _ = see(id, 7));
        assert_eq!(see(240, 7), Duration::ZERO);
        // Where ages are not alike, what they are at best shows more rarely: remembered for four.
        (241..600).for_each(|id| _ = see(id, 9 + u64::from(id % 3)));
        assert_eq!(see(600, 9), Duration::from_millis(2));
        (601..800).for_each(|id| _ = see(id, 9 + u64::from(id % 3)));
        assert_eq!(see(800, 9), Duration::ZERO);
    }

    /// Notices on our clock, by id, ms when the frame was taken, and ms that its notice took.
    fn on_our_clock(notices: impl IntoIterator<Item = (u32, u64, u64)>) -> Vec<(u64, u64, u64)> {
        let start = Instant::now();
        let mut interval = FrameInterval::default();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        notices
            .into_iter()
            .map(|(frame_id, taken, took)| {
                let arrival = start + Duration::from_millis(taken + took);
                interval.observe(FrameNotice {
                    frame_id,
                    timestamp_ns: (1_700_000_000_000 + taken) * 1_000_000,
                    arrival,
                    age_ns: Some(took as i64 * 1_000_000),
                });
                let late = arrival - interval.due().expect("a notice was seen");
                let end = interval.latest_end().unwrap_or(arrival);
                let left = end.saturating_duration_since(arrival);
                (
                    ms(interval.shortest().unwrap_or_default()),
                    ms(late),
                    ms(left),
                )
            })
            .collect()
    }

    #[test]
    fn a_producer_without_a_core_is_not_given_the_time_of_two_frames() {
        let mut taken = 0;
        let frames = (0..250).map(|id| {
            // 10 ms apart while it has one, then with every other moment left out for three seconds.
            taken += if id < 20 || id % 2 == 0 { 10 } else { 20 };
            (id, taken, 3)
        });
        let seen = on_our_clock(frames);
        for (id, (shortest, ..)) in seen.iter().enumerate().skip(1) {
            assert_eq!(*shortest, 10, "{id}");
        }
        // Taken 8 ms late, behind frames of which each was behind a moment left out: the next one has 2 ms.
        let mut taken = 0;
        let frames = (0..41).map(|id| {
            taken += match id {
                40 => 18,
                0..20 => 10,
                id if id % 4 == 3 => 20,
                _ => 10,
            };
            (id, taken, 3)
        });
        let (_, late, _) = *on_our_clock(frames).last().unwrap();
        assert!(late >= 8, "{late} ms");
    }

    #[test]
    fn a_camera_on_our_clock_that_slows_down_is_on_time_again_after_eight_frames() {
        let slower = |id: u32| u64::from(id) * 10 + u64::from(id.saturating_sub(30)) * 10;
        let seen = on_our_clock((0..60).map(|id| (id, slower(id), 3)));
        for (id, (shortest, late, _)) in seen.into_iter().enumerate().skip(1) {
            assert_eq!(shortest, 10, "{id}: it may go back");
            assert_eq!(late > 0, (31..38).contains(&id), "{id}: {late}");
        }
    }

    #[test]
    fn while_distances_are_not_alike_the_shortest_bounds_every_read() {
        // All late, one after the other less, and then the next 4 ms behind the last.
        let late = [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 8, 8, 7, 7, 1, 7, 7, 7, 7, 7,
        ];
        let frames = (0..22_u32).map(|id| (id, u64::from(id) * 10 + late[id as usize], 3));
        let seen = on_our_clock(frames);
        assert_eq!(seen[9], (10, 0, 7));
        // Nobody before it was in time by more than this one is, but 4 ms lie between some.
        assert_eq!(seen[21].2, 2);
    }

    #[test]
    fn two_frames_at_once_leave_prompt_reads_their_time() {
        // ms that are left where the writer is late by as much as this, again and again.
        let left = |late: &[u64]| -> Vec<u64> {
            let frames = (0..300_u32).map(|id| {
                let late = late[id as usize % late.len()];
                (id, u64::from(id) * 10 + late, 3)
            });
            let seen = on_our_clock(frames);
            seen.into_iter().skip(20).map(|(.., left)| left).collect()
        };
        assert!(left(&[0, 2, 1, 3, 0, 1]).into_iter().all(|left| left >= 2));
        let of_uneven = left(&[0, 6, 2, 5, 1, 4, 6, 0, 3, 2]);
        // Those that were late themselves have nothing left.
        let none = of_uneven.iter().filter(|left| **left == 0).count();
        assert!(none < of_uneven.len() / 3, "{none} of {}", of_uneven.len());
    }

    #[test]
    fn a_late_frame_and_its_late_notice_add_up() {
        let frames = (0..40).map(|id| match id {
            39 => (id, 394, 6),
            _ => (id, u64::from(id) * 10, 3),
        });
        assert_eq!(on_our_clock(frames).last(), Some(&(10, 7, 0)));
        // One late frame leaves the others in time.
        let frames = (0..60).map(|id| match id {
            39 => (id, 394, 3),
            _ => (id, u64::from(id) * 10, 3),
        });
        assert_eq!(on_our_clock(frames).last(), Some(&(8, 0, 6)));
    }

    #[test]
    fn what_larger_pictures_take_longer_is_no_lateness_once_the_smaller_ones_are_forgotten() {
        let start = Instant::now();
        let mut interval = FrameInterval::default();
        let see = |interval: &mut FrameInterval, id: u32, age_ms: u64| {
            let taken = u64::from(id) * 16;
            interval.observe(FrameNotice {
                timestamp_ns: 1_700_000_000_000_000_000 + taken * 1_000_000,
                age_ns: Some(age_ms as i64 * 1_000_000),
                ..notice(id, start + Duration::from_millis(taken + age_ms))
            });
            let arrival = interval.last.expect("just seen").arrival;
            interval
                .latest_end()
                .map(|end| end.saturating_duration_since(arrival))
        };
        (0..40).for_each(|id| _ = see(&mut interval, id, 1));
        assert!(see(&mut interval, 40, 13) < Some(Duration::from_millis(1)));
        interval.forget();
        assert!(see(&mut interval, 41, 13) > Some(Duration::from_millis(9)));
        assert!(see(&mut interval, 42, 13) > Some(Duration::from_millis(7)));
    }

    #[test]
    fn without_a_rhythm_a_notice_is_due_when_it_arrives() {
        let mut interval = FrameInterval::default();
        assert_eq!(interval.due(), None);
        let now = Instant::now();
        interval.observe(notice(7, now));
        assert_eq!(interval.due(), Some(now));
        let (mut interval, last) = rhythm(40, &[]);
        interval.break_off();
        let back = last + Duration::from_millis(4);
        interval.observe(notice(0, back));
        assert_eq!(interval.due(), Some(back), "another sequence");
    }

    #[test]
    fn a_notice_that_waited_has_probably_arrived_an_interval_after_the_last() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut interval = FrameInterval::default();
        for id in 0..4 {
            interval.observe(notice(id, at(u64::from(id) * 10)));
        }
        assert_eq!(interval.probable_arrival(5, at(31), at(59)), at(50));
        assert_eq!(interval.probable_arrival(5, at(55), at(59)), at(55));
        assert_eq!(interval.probable_arrival(9, at(31), at(59)), at(59));
    }
}
