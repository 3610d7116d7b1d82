//! Sequence numbers, loss and jitter (RFC 3550 appendices A.1, A.3 and A.8).

use std::collections::BTreeSet;

/// What a packet's number says next to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    First,
    Next,
    /// So many packets are missing ahead of this one.
    AfterGap(u16),
    /// Overtaken by a later one.
    Late,
    /// Seen already, or so late that nobody waits for it.
    Twice,
}

/// Counts one source's packets.
#[derive(Debug, Default, Clone)]
pub struct SequenceTracker {
    first: Option<u16>,
    highest: u16,
    cycles: u32,
    received: u64,
    lost: u64,
    /// Numbers that a gap left out lately.
    missing: BTreeSet<u16>,
}

/// Numbers further behind than this are no longer waited for.
const MEMORY: u16 = 2048;

impl SequenceTracker {
    pub fn accept(&mut self, sequence: u16) -> Arrival {
        if self.first.is_none() {
            self.received = 1;
            self.first = Some(sequence);
            self.highest = sequence;
            return Arrival::First;
        }
        // Signed 16-bit difference: right across the wrap.
        let step = sequence.wrapping_sub(self.highest) as i16;
        if step <= 0 {
            if !self.missing.remove(&sequence) {
                return Arrival::Twice;
            }
            self.lost -= 1;
            self.received += 1;
            return Arrival::Late;
        }
        self.received += 1;
        if sequence < self.highest {
            self.cycles += 1;
        }
        let before = self.highest;
        self.highest = sequence;
        if step == 1 {
            return Arrival::Next;
        }
        let gap = step as u16 - 1;
        self.lost += u64::from(gap);
        let newest = (1..=gap).rev().take(usize::from(MEMORY));
        self.missing
            .extend(newest.map(|ahead| before.wrapping_add(ahead)));
        self.missing
            .retain(|number| sequence.wrapping_sub(*number) <= MEMORY);
        Arrival::AfterGap(gap)
    }

    /// `cycles << 16 | highest`, as a receiver report states it.
    pub fn extended_highest(&self) -> u32 {
        self.cycles << 16 | u32::from(self.highest)
    }

    /// Packets that the numbers seen so far span.
    pub fn expected(&self) -> u64 {
        self.first.map_or(0, |first| {
            (u64::from(self.cycles) << 16) + u64::from(self.highest) - u64::from(first) + 1
        })
    }

    /// Never came; a packet that came late is not lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Different packets.
    pub fn received(&self) -> u64 {
        self.received
    }
}

/// Interarrival jitter of RFC 3550 appendix A.8, in units of the RTP clock.
#[derive(Debug, Default, Clone)]
pub struct Jitter {
    transit: Option<i64>,
    value: f64,
}

const CLOCK_HZ: i128 = 90_000;

impl Jitter {
    /// `arrival_ns` by any clock that does not jump.
    pub fn accept(&mut self, arrival_ns: u64, timestamp: u32) {
        let arrival = (i128::from(arrival_ns) * CLOCK_HZ / 1_000_000_000) as i64;
        // Modulo 2^32, so that a wrap of the timestamp is no jump.
        let transit = i64::from((arrival as u32).wrapping_sub(timestamp));
        if let Some(before) = self.transit {
            let difference = (transit as u32).wrapping_sub(before as u32) as i32;
            self.value += (f64::from(difference.unsigned_abs()) - self.value) / 16.0;
        }
        self.transit = Some(transit);
    }

    pub fn units(&self) -> f64 {
        self.value
    }

    pub fn milliseconds(&self) -> f64 {
        self.value / 90.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_across_the_wrap() {
        let mut tracker = SequenceTracker::default();
        let arrivals = [65534, 65535, 0, 3, 2, 2, 4].map(|n| tracker.accept(n));
        assert_eq!(
            arrivals,
            [
                Arrival::First,
                Arrival::Next,
                Arrival::Next,
                Arrival::AfterGap(2),
                Arrival::Late,
                Arrival::Twice,
                Arrival::Next
            ]
        );
        // 65534 to 65540 are seven; one (number 1) never came.
        assert_eq!(
            (tracker.expected(), tracker.lost(), tracker.received()),
            (7, 1, 6)
        );
        assert_eq!(tracker.extended_highest(), 0x0001_0004);
    }

    // By hand from J += (|D| - J) / 16: packets each 3000 units; the third comes 90 units (1 ms) late, so
    // D is 0, 90, -90 and J is 0, 5.625, 5.625 + (90 - 5.625) / 16 = 10.8984375.
    #[test]
    fn jitter_follows_appendix_a_8() {
        let mut jitter = Jitter::default();
        let frame = 1_000_000_000 / 30;
        for (index, late_ns) in [0, 0, 1_000_000, 0].into_iter().enumerate() {
            // 3000 units are exactly 1/30 s; one ns is added against rounding down.
            let arrival = 5_000_000_000 + frame * index as u64 + late_ns + 1 + index as u64;
            jitter.accept(arrival, 0xFFFF_F000_u32.wrapping_add(3000 * index as u32));
        }
        assert!(
            (jitter.units() - 10.898_437_5).abs() < 0.2,
            "{}",
            jitter.units()
        );
    }
}
