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
mod tests;
