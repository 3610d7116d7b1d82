//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubles from attempt to attempt up to a cap, and draws from the upper half of that, so that
/// many publishers do not come back to a restarted server in step.
#[derive(Debug)]
pub struct Backoff {
    cap: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(cap: Duration) -> Self {
        Self { cap, failures: 0 }
    }

    /// Attempts that have failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure; `random` decides about the jitter.
    pub fn next(&mut self, random: u32) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let whole = doubled.min(self.cap);
        whole.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

const FIRST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_draw_from_the_upper_half() {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let longest: Vec<_> = (0..6).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(longest, [500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(backoff.failures(), 6);
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(250));
        (0..100).for_each(|_| assert!(backoff.next(0) <= Duration::from_secs(5)));
        assert_eq!(backoff.next(0), Duration::from_millis(2500));
    }
}
