//! Emulation prevention and bit fields (ITU-T H.264 7.3.1, 7.2 and 9.1; H.265 the same).

/// Removes each `03` that follows two zero bytes.
pub fn unescape(nal: &[u8]) -> Vec<u8> {
    let mut rbsp = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        rbsp.push(byte);
    }
    rbsp
}

/// Reads bits, most significant first. Every method gives `None` past the end.
#[derive(Debug, Clone)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        BitReader { bytes, at: 0 }
    }

    pub fn bit(&mut self) -> Option<u32> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(u32::from(bit))
    }

    /// Up to 32 bits.
    pub fn bits(&mut self, count: u32) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            value = value << 1 | self.bit()?;
        }
        Some(value)
    }

    pub fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count)?;
        (self.at <= self.bytes.len() * 8).then_some(())
    }

    /// Exp-Golomb, `ue(v)`.
    pub fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.bit()? == 0 {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        let suffix = self.bits(zeros)?;
        // 2^zeros - 1 + suffix, at most 2^32 - 2.
        Some(((1_u64 << zeros) - 1 + u64::from(suffix)) as u32)
    }

    /// Signed Exp-Golomb, `se(v)`.
    pub fn se(&mut self) -> Option<i64> {
        let code = i64::from(self.ue()?);
        Some(if code % 2 == 0 {
            -(code / 2)
        } else {
            code / 2 + 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_bytes_are_removed_and_no_others() {
        assert_eq!(
            unescape(&[0, 0, 3, 1, 3, 0, 0, 0, 3, 0, 0, 3]),
            [0, 0, 1, 3, 0, 0, 0, 0, 0]
        );
        // The start of an SPS in contract rtp-rtmp.md section 15.
        let sps = [0x42, 1, 1, 1, 0x60, 0, 0, 3, 0, 0x90, 0, 0, 3, 0, 0, 3, 0];
        assert_eq!(
            unescape(&sps),
            [0x42, 1, 1, 1, 0x60, 0, 0, 0, 0x90, 0, 0, 0, 0, 0]
        );
    }

    // Table 9-2 of ITU-T H.264: 1, 010, 011, 00100 are 0, 1, 2, 3; as se(v) 0, 1, -1, 2.
    #[test]
    fn exp_golomb_follows_its_table() {
        // 1, 010, 011, 00100 and padding.
        let bits = [0b1010_0110, 0b0100_0000];
        let mut unsigned = BitReader::new(&bits);
        assert_eq!(
            [(); 4].map(|()| unsigned.ue()),
            [Some(0), Some(1), Some(2), Some(3)]
        );
        let mut signed = BitReader::new(&bits);
        assert_eq!(
            [(); 4].map(|()| signed.se()),
            [Some(0), Some(1), Some(-1), Some(2)]
        );
        assert_eq!(BitReader::new(&[0, 0, 0, 0, 0]).ue(), None);
    }
}
