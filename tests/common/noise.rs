//! Numbers without a pattern, the same in every run: a failure comes again.

#![allow(dead_code)] // each test uses its part

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// As many inputs as `CVMMAP_FUZZ_INPUTS` says, else `usual`, but for a minute at most: a slow machine is not kept for ever
/// by the long run.
pub fn rounds(usual: u64) -> impl Iterator<Item = u64> {
    part_of_rounds(usual, 1)
}

/// One of `parts` equal parts of these, each with its share of the minute.
fn part_of_rounds(usual: u64, parts: u64) -> impl Iterator<Item = u64> {
    let wanted = std::env::var("CVMMAP_FUZZ_INPUTS").ok();
    let wanted = wanted.and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (start, limit) = (Instant::now(), Duration::from_secs(60) / parts as u32);
    (0..wanted.div_ceil(parts)).take_while(move |_| start.elapsed() < limit)
}

/// Gives each of `names` its [`rounds`], on all cores: calls `round` with the name's place, and gives how
/// many there were and how long they took. In parts with noise of their own, as many on every machine: a
/// failure comes again wherever it is looked for.
pub fn on_all_cores(
    names: &[&str],
    seed: u64,
    usual: u64,
    round: impl Fn(usize, &mut Noise) + Sync,
) -> Vec<(u64, Duration)> {
    const PARTS: usize = 8;
    let next = AtomicUsize::new(0);
    let sums = Mutex::new(vec![(0, Duration::ZERO); names.len()]);
    let work = || {
        loop {
            // Relaxed: a number for each, and nothing else.
            let part = next.fetch_add(1, Ordering::Relaxed);
            let (place, part) = (part / PARTS, part % PARTS);
            let Some(name) = names.get(place) else { break };
            let mut noise = Noise::new(seed ^ (part as u64) << 32);
            let (start, mut done) = (Instant::now(), 0);
            let rounds = part_of_rounds(usual, PARTS as u64);
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in rounds {
                    round(place, &mut noise);
                    done += 1;
                }
            }));
            if let Err(panic) = told {
                eprintln!("{name}: input {done} of part {part}");
                std::panic::resume_unwind(panic);
            }
            let mut sums = sums.lock().expect("a count");
            sums[place].0 += done;
            sums[place].1 += start.elapsed();
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    sums.into_inner().expect("counts")
}

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        // Never 0, or it stands still.
        Self(seed | 1)
    }

    /// Less than `end`, and 0 for none. The upper half of a number: its lowest bits are its worst.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let upper = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        upper as usize % end.max(1)
    }

    pub fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    /// Fewer than `most` bytes.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most);
        (0..len).map(|_| self.byte()).collect()
    }

    /// Up to eight times: a byte changed, one set to an extreme, up to 64 doubled or lost, or the end cut off.
    /// What is before `from` stays.
    pub fn damage(&mut self, bytes: &mut Vec<u8>, from: usize) {
        for _ in 0..=self.below(8) {
            if bytes.len() <= from {
                return;
            }
            let at = from + self.below(bytes.len() - from);
            let most = [9, 64][self.below(2)];
            let end = (at + 1 + self.below(most)).min(bytes.len());
            match self.below(7) {
                0 => bytes[at] = self.byte(),
                1 | 2 => bytes[at] ^= 1 << self.below(8),
                3 => bytes[at] = [0, 0xFF, 0x7F, 0x80][self.below(4)],
                4 => {
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
                5 => {
                    bytes.drain(at..end);
                }
                // Rarely, or little would be left of anything.
                _ if self.below(4) == 0 => bytes.truncate(at),
                _ => {}
            }
        }
    }
}
