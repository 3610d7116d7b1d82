//! What a sequence of frame notices says: what is new, what was missed, where the stream broke
//! off, and how far frames are apart. No clock, no socket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

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
    /// The lowest age of a notice in each of the last pieces of time, and when the newest began.
    lowest_ages: [Option<i64>; Self::AGES],
    newest_age: usize,
    ages_since: Option<Instant>,
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
    const AGES: usize = 8;
    /// A producer that takes longer for good, as with a longer exposure, loses frames for this
    /// long at most.
    const AGES_EACH: Duration = Duration::from_millis(125);

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
        if let Some(age) = notice.age_ns {
            let since = *self.ages_since.get_or_insert(notice.arrival);
            if notice.arrival.saturating_duration_since(since) >= Self::AGES_EACH {
                self.ages_since = Some(notice.arrival);
                self.newest_age = (self.newest_age + 1) % Self::AGES;
                self.lowest_ages[self.newest_age] = None;
            }
            let lowest = &mut self.lowest_ages[self.newest_age];
            *lowest = Some(lowest.map_or(age, |lowest| lowest.min(age)));
        }
        self.last = Some(notice);
    }

    /// When the newest notice should have arrived by the rhythm of those before it, and by the
    /// age that they had at best in the last seconds.
    ///
    /// A producer that was held up publishes late, and writes the next frame at its own time all
    /// the same: at once, if it has to. So has a notice that we were too busy to see. Either way
    /// the time until the next frame is written counts from here, and not from the arrival. Later
    /// than an interval means that the next frame is due already.
    pub fn due(&self) -> Option<Instant> {
        let &(id, arrival) = self.rhythm.back()?;
        // The larger one: a stream that slows down is not late.
        let Some(step) = self.step().max(self.typical()) else {
            return Some(arrival);
        };
        let late = |&(earlier, at): &(u32, Instant)| {
            let expected = step * id.wrapping_sub(earlier);
            arrival
                .saturating_duration_since(at)
                .saturating_sub(expected)
        };
        let late = self.rhythm.iter().rev().take(Self::ONE_ON_TIME).map(late);
        let by_rhythm = late.max().unwrap_or_default();
        // Where we are late for every notice, for want of a core, the rhythm is that of our being
        // late. The age tells, and needs no even distances.
        let lowest = self.lowest_ages.iter().flatten().min();
        let age = self.last.and_then(|last| last.age_ns);
        let older = age
            .zip(lowest)
            .map_or(0, |(age, low)| age.saturating_sub(*low));
        let by_age = Duration::from_nanos(u64::try_from(older).unwrap_or(0));
        arrival.checked_sub(by_rhythm.max(by_age)).or(Some(arrival))
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
        self.rhythm.clear();
        self.lowest_ages = Default::default();
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
        (111..200).for_each(|id| _ = see(id, 7));
        assert_eq!(see(200, 7), Duration::ZERO);
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
