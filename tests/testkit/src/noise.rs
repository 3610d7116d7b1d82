//! Numbers without a pattern, the same in every run of one seed.

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        // Never 0, or it stands still.
        Noise(seed | 1)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Less than `end`, and 0 for none. The upper half of a number: its lowest bits are its worst.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next_u64() >> 32) % end.max(1)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.next_u64().to_be_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_seed_stands_still_and_one_seed_gives_the_same_again() {
        for seed in [0, 1, 2, u64::MAX] {
            let (mut first, mut again) = (Noise::new(seed), Noise::new(seed));
            let numbers: Vec<_> = (0..100).map(|_| first.next_u64()).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]), "{seed}");
            assert_eq!(
                numbers,
                (0..100).map(|_| again.next_u64()).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn numbers_below_an_end_reach_all_of_them() {
        let mut noise = Noise::new(7);
        let mut seen = [0; 6];
        (0..600).for_each(|_| seen[noise.below(6) as usize] += 1);
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
        assert_eq!(noise.below(0), 0);
    }
}
