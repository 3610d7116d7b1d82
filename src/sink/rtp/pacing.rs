//! When the packets of an access unit go out. Times come in as arguments; nothing waits here.

use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::time::MediaTime;

/// How bursts are kept from overflowing receive buffers: with default settings a receiver holds
/// 92 packets (contract section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pacing {
    /// Access units of more than 64 packets are spread over half of the frame's interval at most;
    /// others go at once.
    #[default]
    Auto,
    Off,
    /// Never faster than so many bits per second, in bursts of eight packets.
    Rate(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--rtp-pacing {0}: neither auto nor off nor a rate in bit/s such as 20M")]
pub struct PacingError(String);

impl FromStr for Pacing {
    type Err = PacingError;

    fn from_str(text: &str) -> Result<Self, PacingError> {
        let refuse = || PacingError(text.to_owned());
        match text {
            "auto" => return Ok(Self::Auto),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let (digits, unit) = match text.as_bytes().last() {
            Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
            Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
            Some(b'g' | b'G') => (&text[..text.len() - 1], 1_000_000_000),
            _ => (text, 1),
        };
        let number: u64 = digits.parse().map_err(|_| refuse())?;
        match number.checked_mul(unit) {
            Some(rate) if rate >= SLOWEST => Ok(Self::Rate(rate)),
            _ => Err(refuse()),
        }
    }
}

/// Decides the steps of one access unit after another.
#[derive(Debug)]
pub(super) struct Pacer {
    pacing: Pacing,
    bitrate: Option<u32>,
    last_dts: Option<MediaTime>,
    /// Until when the rate is used up by earlier access units.
    busy_until: Option<Instant>,
}

/// The next packets to be sent: not before `at`, where one is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub packets: usize,
    pub at: Option<Instant>,
}

/// The steps of one access unit: a burst, then equal steps at equal distances from the start, so
/// that a late wake-up is caught up with.
#[derive(Debug)]
pub(super) struct Steps {
    burst: usize,
    step: usize,
    gap: Duration,
    start: Instant,
    given: u32,
}

impl Pacer {
    pub(super) fn new(pacing: Pacing, bitrate: Option<u32>) -> Self {
        Self {
            pacing,
            bitrate,
            last_dts: None,
            busy_until: None,
        }
    }

    /// The steps of an access unit of so many packets and bytes that is to be sent from `now` on.
    pub(super) fn start(
        &mut self,
        packets: usize,
        bytes: usize,
        dts: MediaTime,
        now: Instant,
    ) -> Steps {
        let interval = self.interval(dts);
        match self.pacing {
            Pacing::Auto if packets > UNPACED => {
                let steps = (packets - BURST).div_ceil(STEP) as u32;
                let by_rate = self.bitrate.map(|rate| {
                    let bits = bytes as f64 * 8.0;
                    Duration::from_secs_f64(bits / (2.0 * f64::from(rate.max(1))))
                });
                let span = by_rate.map_or(interval / 2, |span| span.min(interval / 2));
                Steps::new(BURST, STEP, span / steps, now)
            }
            Pacing::Rate(rate) => {
                let bits = bytes as f64 * 8.0 * STEP as f64 / packets.max(1) as f64;
                let gap = Duration::from_secs_f64(bits / rate as f64);
                let start = self.busy_until.map_or(now, |until| until.max(now));
                Steps::new(STEP, STEP, gap, start)
            }
            Pacing::Auto | Pacing::Off => Steps::new(usize::MAX, 1, Duration::ZERO, now),
        }
    }

    /// Takes the steps back when their access unit is sent.
    pub(super) fn finish(&mut self, steps: Steps) {
        if let Pacing::Rate(_) = self.pacing {
            self.busy_until = Some(steps.start + steps.gap * steps.given);
        }
    }

    /// The distance to the access unit before.
    fn interval(&mut self, dts: MediaTime) -> Duration {
        let last = self.last_dts.replace(dts);
        let step = last.map_or(0, |last| dts.0.saturating_sub(last.0));
        match u64::try_from(step) {
            Ok(nanos @ 1..) => Duration::from_nanos(nanos).min(LONGEST_INTERVAL),
            _ => USUAL_INTERVAL,
        }
    }
}

impl Steps {
    fn new(burst: usize, step: usize, gap: Duration, start: Instant) -> Self {
        Self {
            burst,
            step,
            gap,
            start,
            given: 0,
        }
    }

    pub(super) fn next(&mut self) -> Step {
        let packets = if self.given == 0 {
            self.burst
        } else {
            self.step
        };
        let at = (!self.gap.is_zero()).then(|| self.start + self.gap * self.given);
        self.given += 1;
        Step { packets, at }
    }
}

/// Access units up to this many packets go at once.
const UNPACED: usize = 64;
/// Sent at once of a larger one: a third of what a receiver holds with default settings.
const BURST: usize = 32;
const STEP: usize = 8;
/// Below this the pace could not carry one packet a second.
const SLOWEST: u64 = 16_000;
const USUAL_INTERVAL: Duration = Duration::from_millis(33);
/// A pause of the source is not a reason to be slow after it.
const LONGEST_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    /// Steps of an access unit: packets and microseconds from the start.
    fn steps(pacer: &mut Pacer, packets: usize, dts_ms: i64, now: Instant) -> Vec<(usize, u128)> {
        let mut steps = pacer.start(packets, packets * 1000, MediaTime(dts_ms * MS), now);
        let (mut all, mut left) = (Vec::new(), packets);
        while left > 0 {
            let step = steps.next();
            let count = step.packets.min(left);
            let wait = step.at.map_or(0, |at| (at - now).as_micros());
            all.push((count, wait));
            left -= count;
        }
        pacer.finish(steps);
        all
    }

    #[test]
    fn auto_spreads_over_half_of_the_interval_what_has_over_64_packets() {
        let now = Instant::now();
        let mut pacer = Pacer::new(Pacing::Auto, None);
        assert_eq!(steps(&mut pacer, 64, 0, now), [(64, 0)]);
        // 20 ms interval: 10 ms for 33 packets in 5 steps
        assert_eq!(
            steps(&mut pacer, 65, 20, now),
            [
                (32, 0),
                (8, 2000),
                (8, 4000),
                (8, 6000),
                (8, 8000),
                (1, 10_000)
            ]
        );
    }

    #[test]
    fn auto_is_faster_than_half_an_interval_where_twice_the_bit_rate_is() {
        let now = Instant::now();
        let mut pacer = Pacer::new(Pacing::Auto, Some(57_600_000));
        pacer.start(1, 1, MediaTime(0), now);
        // 72 kB are 576 kbit, 5 ms at 115.2 Mbit/s, in (72 - 32) / 8 = 5 steps
        let all = steps(&mut pacer, 72, 100, now);
        assert_eq!(all[..2], [(32, 0), (8, 1000)]);
        assert_eq!(*all.last().unwrap(), (8, 5000));
    }

    #[test]
    fn a_rate_holds_across_access_units() {
        let now = Instant::now();
        let mut pacer = Pacer::new(Pacing::Rate(8_000_000), None);
        // 8 packets of 1000 bytes take 8 ms at 8 Mbit/s
        assert_eq!(
            steps(&mut pacer, 20, 0, now),
            [(8, 0), (8, 8000), (4, 16_000)]
        );
        assert_eq!(steps(&mut pacer, 1, 33, now), [(1, 24_000)]);
        let later = now + Duration::from_secs(1);
        assert_eq!(steps(&mut pacer, 1, 66, later), [(1, 0)]);
    }

    #[test]
    fn off_sends_everything_at_once() {
        let mut pacer = Pacer::new(Pacing::Off, Some(1));
        assert_eq!(steps(&mut pacer, 5000, 0, Instant::now()), [(5000, 0)]);
    }

    #[test]
    fn a_pacing_is_parsed_or_refused_with_its_flag() {
        assert_eq!("auto".parse(), Ok(Pacing::Auto));
        assert_eq!("off".parse(), Ok(Pacing::Off));
        assert_eq!("20M".parse(), Ok(Pacing::Rate(20_000_000)));
        assert_eq!("500k".parse(), Ok(Pacing::Rate(500_000)));
        assert_eq!("123456".parse(), Ok(Pacing::Rate(123_456)));
        for text in ["", "fast", "1", "-5M", "M", "99999999999G", "1.5M", "ü"] {
            let error = text.parse::<Pacing>().unwrap_err().to_string();
            assert!(error.contains("--rtp-pacing"), "{error}");
        }
    }
}
