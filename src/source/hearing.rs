//! Whether frames are written that nobody announces to us.
//!
//! A subscription can be dead without a sign of it: ZeroMQ never connects again after a peer that
//! broke its protocol, or sent more than it may; a stranger may hold the connection and say
//! nothing; a producer that hangs keeps it while another has taken over path and segment. What all
//! have in common shows in the segment: frames that were never announced.

use std::time::{Duration, Instant};

/// Id and capture time of a frame.
pub type FrameKey = (u32, u64);

/// Compares what the segment holds with what was announced, while no notice comes.
#[derive(Debug, Default)]
pub struct Hearing {
    /// Held by the segment and not announced, but known: from before we listened, or the reason
    /// of the last verdict.
    known: Option<FrameKey>,
    /// Since when the segment has held what nobody announced.
    since: Option<Instant>,
    /// Verdicts since the last notice: each one makes the next one later.
    verdicts: u32,
}

impl Hearing {
    /// How often it is worth comparing.
    pub const LOOK_EVERY: Duration = Duration::from_millis(250);
    /// Between writing a frame and announcing it a producer has this long, and longer each time
    /// that subscribing anew did not help.
    pub const PATIENCE: Duration = Duration::from_millis(500);
    const MOST_DOUBLINGS: u32 = 4;

    /// A notice came.
    pub fn heard(&mut self) {
        self.since = None;
        self.verdicts = 0;
    }

    /// Whether the subscription is dead, told that the segment `holds` a frame, and which one was
    /// `announced` last. True once for each time that it is worth subscribing anew.
    pub fn is_deaf(&mut self, holds: FrameKey, announced: Option<FrameKey>, now: Instant) -> bool {
        if announced == Some(holds) || self.known == Some(holds) {
            self.since = None;
            return false;
        }
        if announced.is_none() && self.known.is_none() {
            self.known = Some(holds);
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let patience = Self::PATIENCE * (1 << self.verdicts.min(Self::MOST_DOUBLINGS));
        if now < since + patience {
            return false;
        }
        self.known = Some(holds);
        self.since = None;
        self.verdicts += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares each 250 ms, and gives the times of the verdicts in milliseconds.
    fn verdicts(
        hearing: &mut Hearing,
        millis: u64,
        holds: impl Fn(u64) -> FrameKey,
        announced: Option<FrameKey>,
    ) -> Vec<u64> {
        let start = Instant::now();
        let looks = (0..=millis).step_by(250);
        looks
            .filter(|at| {
                let now = start + Duration::from_millis(*at);
                hearing.is_deaf(holds(*at), announced, now)
            })
            .collect()
    }

    #[test]
    fn frames_that_nobody_announces_are_a_dead_subscription() {
        // Heard of frame 3, and now one follows the other in silence.
        let running = |at: u64| (4 + (at / 40) as u32, at);
        let mut hearing = Hearing::default();
        let found = verdicts(&mut hearing, 30_000, running, Some((3, 0)));
        // 0.5 s, then twice as long each time, up to 8 s; a look before each count begins.
        assert_eq!(found, [500, 1750, 4000, 8250, 16_500, 24_750]);
        hearing.heard();
        let again = verdicts(&mut hearing, 600, running, Some((3, 0)));
        assert_eq!(again, [500]);
    }

    #[test]
    fn one_frame_is_one_verdict() {
        let still = |_| (9, 360);
        let mut hearing = Hearing::default();
        assert_eq!(verdicts(&mut hearing, 60_000, still, Some((8, 320))), [500]);
    }

    #[test]
    fn what_was_there_before_we_listened_is_none() {
        let still = |_| (9, 360);
        let mut hearing = Hearing::default();
        assert!(verdicts(&mut hearing, 10_000, still, None).is_empty());
        // What follows it is.
        let next = |_| (10, 400);
        assert_eq!(verdicts(&mut hearing, 10_000, next, None), [500]);
    }

    #[test]
    fn a_frame_that_is_announced_in_time_is_none() {
        let mut hearing = Hearing::default();
        for id in 0..20 {
            let holds = |_| (id + 1, 0);
            assert!(verdicts(&mut hearing, 250, holds, Some((id, 0))).is_empty());
            hearing.heard();
        }
        assert!(verdicts(&mut hearing, 10_000, |_| (20, 0), Some((20, 0))).is_empty());
    }
}
