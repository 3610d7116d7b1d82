//! What a sequence of frame notices says: what is new, what was missed, where the stream broke
//! off, and how far frames are apart. No clock, no socket.

use std::time::{Duration, Instant};

/// "Frame N is in the segment, taken at T", announced at `arrival`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameNotice {
    pub frame_id: u32,
    /// Nanoseconds on the producer's clock.
    pub timestamp_ns: u64,
    pub arrival: Instant,
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
}

/// The distance of frames as it was observed lately.
#[derive(Debug, Default)]
pub struct FrameInterval {
    last: Option<FrameNotice>,
    samples: [u64; Self::SAMPLES],
    count: usize,
}

impl FrameInterval {
    const SAMPLES: usize = 9;
    /// With fewer, one late wake-up would decide.
    const LEAST: usize = 3;

    /// The newest notice of those that were received together.
    pub fn observe(&mut self, notice: FrameNotice) {
        if let Some(last) = self.last {
            let ids = notice.frame_id.wrapping_sub(last.frame_id);
            let time = notice.arrival.saturating_duration_since(last.arrival);
            if (1..=1000).contains(&ids) {
                let sample = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / u64::from(ids);
                self.samples[self.count % Self::SAMPLES] = sample;
                self.count += 1;
            }
        }
        self.last = Some(notice);
    }

    /// The next notice is of another sequence; the distance stays.
    pub fn break_off(&mut self) {
        self.last = None;
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
