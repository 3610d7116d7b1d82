//! Raw byte sequence payloads: emulation prevention and the bit reader of parameter sets.
//!
//! Inside a NAL unit the bytes `00 00 03` stand for `00 00` wherever a start code would otherwise
//! appear (H.264 section 7.4.1, H.265 section 7.4.2).

use super::BitstreamError;

/// Reads bits of a NAL unit and passes over its emulation prevention bytes; copies nothing.
#[derive(Debug, Clone)]
pub struct BitReader<'a> {
    bytes: RbspBytes<'a>,
    current: u8,
    /// Bits of `current` that were not read yet.
    left: u32,
}

impl<'a> BitReader<'a> {
    /// `nal` is the NAL unit from the byte on that is to be read first, usually behind its header.
    pub fn new(nal: &'a [u8]) -> Self {
        Self {
            bytes: unescaped(nal),
            current: 0,
            left: 0,
        }
    }

    /// One bit.
    ///
    /// # Errors
    ///
    /// If the NAL unit ends here, as for all the others.
    pub fn flag(&mut self) -> Result<bool, BitstreamError> {
        if self.left == 0 {
            self.current = self.bytes.next().ok_or_else(|| BitstreamError::Syntax {
                what: "parameter set",
                detail: "ends in the middle of a field".to_owned(),
            })?;
            self.left = 8;
        }
        self.left -= 1;
        Ok((self.current >> self.left) & 1 == 1)
    }

    /// `u(n)` for n of at most 32.
    ///
    /// # Errors
    ///
    /// If the NAL unit ends first.
    pub fn bits(&mut self, n: u32) -> Result<u32, BitstreamError> {
        let mut value = 0;
        for _ in 0..n {
            value = (value << 1) | u32::from(self.flag()?);
        }
        Ok(value)
    }

    /// # Errors
    ///
    /// If the NAL unit ends first.
    pub fn skip(&mut self, n: u32) -> Result<(), BitstreamError> {
        for _ in 0..n {
            self.flag()?;
        }
        Ok(())
    }

    /// `ue(v)`: unsigned Exp-Golomb (H.264 section 9.1, H.265 section 9.2).
    ///
    /// # Errors
    ///
    /// If the NAL unit ends first or the code has more than the 32 bits that the standards allow.
    pub fn ue(&mut self) -> Result<u32, BitstreamError> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
            if zeros > 31 {
                return Err(BitstreamError::Syntax {
                    what: "parameter set",
                    detail: "an Exp-Golomb code is longer than 32 bits".to_owned(),
                });
            }
        }
        Ok(((1_u32 << zeros) - 1) + self.bits(zeros)?)
    }

    /// `ue(v)` that the standard limits to `largest`.
    ///
    /// # Errors
    ///
    /// As [`BitReader::ue`], and if the value is larger.
    pub fn ue_up_to(&mut self, largest: u32, what: &'static str) -> Result<u32, BitstreamError> {
        let value = self.ue()?;
        if value > largest {
            return Err(BitstreamError::Syntax {
                what,
                detail: format!("is {value}, and at most {largest} is legal"),
            });
        }
        Ok(value)
    }

    /// `se(v)`: signed Exp-Golomb.
    ///
    /// # Errors
    ///
    /// As [`BitReader::ue`].
    pub fn se(&mut self) -> Result<i32, BitstreamError> {
        let code = i64::from(self.ue()?);
        let magnitude = (code + 1) / 2;
        let value = if code % 2 == 1 { magnitude } else { -magnitude };
        Ok(value as i32)
    }
}

/// The bytes of a NAL unit without its emulation prevention bytes.
pub fn unescaped(nal: &[u8]) -> RbspBytes<'_> {
    RbspBytes { nal, zeros: 0 }
}

/// Iterator of [`unescaped`].
#[derive(Debug, Clone)]
pub struct RbspBytes<'a> {
    nal: &'a [u8],
    zeros: u32,
}

impl Iterator for RbspBytes<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&first, mut rest) = self.nal.split_first()?;
        let mut byte = first;
        if byte == 3 && self.zeros >= 2 {
            self.zeros = 0;
            // A 03 at the very end protects trailing zeros and stands for nothing.
            let (&second, behind) = rest.split_first()?;
            byte = second;
            rest = behind;
        }
        self.nal = rest;
        self.zeros = if byte == 0 { self.zeros + 1 } else { 0 };
        Some(byte)
    }
}

/// Appends bytes to a NAL unit and puts emulation prevention bytes between them where needed.
#[derive(Debug)]
pub struct RbspWriter<'a> {
    out: &'a mut Vec<u8>,
    zeros: u32,
}

impl<'a> RbspWriter<'a> {
    /// `out` ends with the NAL unit header, which is never escaped: its last byte is not zero.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, zeros: 0 }
    }

    pub fn push(&mut self, byte: u8) {
        if self.zeros >= 2 && byte <= 3 {
            self.out.push(3);
            self.zeros = 0;
        }
        self.out.push(byte);
        self.zeros = if byte == 0 { self.zeros + 1 } else { 0 };
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.push(byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exp_golomb_codes_of_table_9_2() {
        // H.264 table 9-2: 1, 010, 011, 00100, 00101, 00110 are 0 to 5.
        let mut reader = BitReader::new(&[0b1010_0110, 0b0100_0010, 0b1001_1000]);
        let codes: Vec<_> = (0..6).map(|_| reader.ue().unwrap()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5]);
        // table 9-3: codes 0 to 5 are 0, 1, -1, 2, -2, 3
        let mut reader = BitReader::new(&[0b1010_0110, 0b0100_0010, 0b1001_1000]);
        let values: Vec<_> = (0..6).map(|_| reader.se().unwrap()).collect();
        assert_eq!(values, [0, 1, -1, 2, -2, 3]);
    }

    #[test]
    fn the_longest_code_is_read_and_a_longer_one_is_refused() {
        // 31 zeros, a one, 31 ones: 2^32 - 2
        let mut bytes = vec![0x00, 0x00, 0x03, 0x00, 0x01, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(BitReader::new(&bytes).ue().unwrap(), u32::MAX - 1);
        bytes[4] = 0;
        assert!(BitReader::new(&bytes).ue().is_err());
    }

    #[test]
    fn emulation_prevention_bytes_are_passed_over() {
        let read = |nal: &[u8]| unescaped(nal).collect::<Vec<_>>();
        assert_eq!(read(&[0, 0, 3, 1]), [0, 0, 1]);
        assert_eq!(read(&[0, 0, 3, 0, 0, 3, 0]), [0, 0, 0, 0, 0]);
        assert_eq!(read(&[0, 0, 3]), [0, 0]);
        assert_eq!(read(&[0, 3, 0, 3]), [0, 3, 0, 3]);
    }

    proptest! {
        #[test]
        fn what_is_written_holds_no_start_code_and_reads_back(
            payload in prop::collection::vec(prop_oneof![Just(0_u8), 0_u8..=4, any::<u8>()], 0..200)
        ) {
            let mut nal = vec![6];
            RbspWriter::new(&mut nal).extend(&payload);
            prop_assert!(nal.windows(3).all(|w| w[0] != 0 || w[1] != 0 || w[2] > 2));
            prop_assert_eq!(unescaped(&nal[1..]).collect::<Vec<_>>(), payload);
        }
    }
}
