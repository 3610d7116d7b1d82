//! The start-code scan of Annex B (ITU-T H.264 and H.265, Annex B).

use std::ops::Range;

use memchr::memmem;

/// Byte ranges of the NAL units in `data`, without start codes and without the zero bytes that
/// follow a NAL unit (`trailing_zero_8bits`) or precede a four-byte start code.
///
/// Bytes before the first start code belong to no NAL unit and are passed over.
pub fn nal_ranges(data: &[u8]) -> NalRanges<'_> {
    let mut finder = NalRanges { data, start: None };
    finder.start = finder.next_start_code(0).map(|at| at + 3);
    finder
}

/// Iterator of [`nal_ranges`].
#[derive(Debug, Clone)]
pub struct NalRanges<'a> {
    data: &'a [u8],
    start: Option<usize>,
}

impl NalRanges<'_> {
    fn next_start_code(&self, from: usize) -> Option<usize> {
        memmem::find(&self.data[from..], &[0, 0, 1]).map(|at| from + at)
    }
}

impl Iterator for NalRanges<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        loop {
            let start = self.start?;
            let code = self.next_start_code(start);
            let mut end = code.unwrap_or(self.data.len());
            self.start = code.map(|at| at + 3);
            // A NAL unit never ends in a zero byte (section 7.4.1): zeros here are padding.
            while end > start && self.data[end - 1] == 0 {
                end -= 1;
            }
            if end > start {
                return Some(start..end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(data: &[u8]) -> Vec<&[u8]> {
        nal_ranges(data).map(|range| &data[range]).collect()
    }

    #[test]
    fn three_and_four_byte_codes_and_padding() {
        let data = [
            0, 0, 0, 1, 0x67, 1, 2, 0, 0, 1, 0x68, 3, 0, 0, 0, 0, 1, 0x65, 4, 0, 0,
        ];
        assert_eq!(
            all(&data),
            [&[0x67, 1, 2][..], &[0x68, 3][..], &[0x65, 4][..]]
        );
    }

    #[test]
    fn empty_units_and_leading_bytes_are_passed_over() {
        assert_eq!(all(&[9, 9, 0, 0, 1, 0, 0, 1, 0x41, 7]), [&[0x41_u8, 7][..]]);
        assert!(all(&[]).is_empty());
        assert!(all(&[0, 0]).is_empty());
        assert!(all(&[1, 2, 3]).is_empty());
    }

    #[test]
    fn emulation_prevention_is_not_a_start_code() {
        assert_eq!(
            all(&[0, 0, 1, 0x65, 0, 0, 3, 1]),
            [&[0x65_u8, 0, 0, 3, 1][..]]
        );
    }
}
