//! Time as it travels through the streamer: the producer's clock, made continuous, and the two
//! clocks that go on the wire.
//!
//! Nothing here reads a clock. [`Timeline`] turns the capture times of frames, which may start
//! anywhere, jump and start again, into [`MediaTime`], which only grows.

use std::time::Duration;

/// Nanoseconds since the first picture of the stream; strictly increasing in presentation order.
///
/// Signed because decoding times of a stream with B-frames start before zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MediaTime(pub i64);

impl MediaTime {
    pub const ZERO: Self = Self(0);

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// This time on RTP's 90 kHz clock, counted from `base` and cut to 32 bits.
    ///
    /// One rounding from the origin, never a sum of rounded steps, so it does not drift
    /// (RFC 3550 section 5.1; RFC 6184 section 8.2.1 and RFC 7798 section 7.1 for the rate).
    pub fn to_rtp(self, base: u32) -> u32 {
        let ticks = div_round(i128::from(self.0) * 9, 100_000);
        base.wrapping_add(ticks as u32)
    }

    /// This time in RTMP's milliseconds, one rounding from the origin (RTMP 1.0 section 5.3.1).
    pub fn to_millis(self) -> i64 {
        div_round(i128::from(self.0), 1_000_000)
    }

    pub fn saturating_add(self, step: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(step.as_nanos()).unwrap_or(i64::MAX)),
        )
    }
}

/// Rounds half up, towards positive infinity, also for negative numerators.
fn div_round(numerator: i128, denominator: i128) -> i64 {
    (numerator * 2 + denominator).div_euclid(denominator * 2) as i64
}

/// Makes one continuous time out of the capture times of successive frames.
///
/// Inside an epoch the distance between pictures is the producer's. Where the producer's clock
/// goes back, stands still or jumps by more than [`Timeline::LARGEST_STEP`], or a new epoch
/// begins, the distance on our own clock (arrival of the notices) is taken instead. The result is
/// strictly increasing.
#[derive(Debug, Default)]
pub struct Timeline {
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    epoch: u32,
    capture_ns: u64,
    arrival_ns: u64,
    media: i64,
}

impl Timeline {
    /// A larger step of the producer's clock is a jump, not a pause.
    pub const LARGEST_STEP: Duration = Duration::from_secs(5);
    /// The least distance of two pictures: one tick of RTMP's millisecond clock, so that times
    /// stay strictly increasing on both wires.
    pub const SMALLEST_STEP: Duration = Duration::from_millis(1);

    pub fn new() -> Self {
        Self::default()
    }

    /// The media time of the frame captured at `capture_ns` on the producer's clock, which was
    /// announced at `arrival_ns` on a monotonic clock of ours.
    pub fn place(&mut self, epoch: u32, capture_ns: u64, arrival_ns: u64) -> MediaTime {
        let media = match self.last {
            None => 0,
            Some(last) => {
                let producer = capture_ns.checked_sub(last.capture_ns);
                let ours = arrival_ns.saturating_sub(last.arrival_ns);
                let largest = Self::LARGEST_STEP.as_nanos() as u64;
                let smallest = Self::SMALLEST_STEP.as_nanos() as u64;
                let step = match producer {
                    Some(step) if epoch == last.epoch && step > 0 && step <= largest => step,
                    _ => ours,
                };
                // Times that a producer invents may go a long way ahead of the clock.
                last.media.saturating_add(step.max(smallest) as i64)
            }
        };
        self.last = Some(Last {
            epoch,
            capture_ns,
            arrival_ns,
            media,
        });
        MediaTime(media)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn rtp_time_is_rounded_once_from_the_origin_and_wraps() {
        // 1/30 s = 3000 ticks exactly; 33_333_333 ns = 2999.99997 ticks.
        assert_eq!(MediaTime(33_333_333).to_rtp(0), 3000);
        assert_eq!(MediaTime(33_333_333).to_rtp(u32::MAX), 2999);
        assert_eq!(MediaTime(-11_111).to_rtp(0), u32::MAX);
        // RFC 3550: 13 h 15 min 21 s is where 32 bits of 90 kHz end (2^32 / 90000 = 47721.86 s).
        let wrap = MediaTime(47_721_858_844_445);
        assert_eq!(wrap.to_rtp(0), 0);
    }

    #[test]
    fn milliseconds_round_half_up() {
        assert_eq!(MediaTime(1_499_999).to_millis(), 1);
        assert_eq!(MediaTime(1_500_000).to_millis(), 2);
        assert_eq!(MediaTime(-1_500_000).to_millis(), -1);
    }

    #[test]
    fn the_producers_distances_are_kept_inside_an_epoch() {
        let mut timeline = Timeline::new();
        assert_eq!(timeline.place(0, 500 * MS, 0), MediaTime(0));
        assert_eq!(timeline.place(0, 540 * MS, 35 * MS), MediaTime(40_000_000));
    }

    #[test]
    fn a_new_epoch_continues_by_our_own_clock() {
        let mut timeline = Timeline::new();
        timeline.place(0, 500 * MS, 0);
        assert_eq!(timeline.place(1, 0, 33 * MS), MediaTime(33_000_000));
        assert_eq!(timeline.place(1, 40 * MS, 70 * MS), MediaTime(73_000_000));
    }

    #[test]
    fn jumps_and_standstill_never_go_back() {
        let mut timeline = Timeline::new();
        timeline.place(0, 10_000 * MS, 0);
        // back by an hour inside the epoch
        assert_eq!(timeline.place(0, 0, 33 * MS), MediaTime(33_000_000));
        // forward by an hour
        let t = timeline.place(0, 3_600_000 * MS, 66 * MS);
        assert_eq!(t, MediaTime(66_000_000));
        // the same instant twice, at the same arrival
        let t = timeline.place(0, 3_600_000 * MS, 66 * MS);
        assert_eq!(t, MediaTime(67_000_000));
    }
}
