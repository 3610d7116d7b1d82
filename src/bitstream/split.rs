//! Where one access unit ends and the next begins in a byte stream (Annex B).
//!
//! H.264 section 7.4.1.2.3 and H.265 section 7.4.2.4.4: behind the slices of a picture, the next
//! access unit begins with a delimiter, a parameter set, an SEI message or the first slice of
//! another picture. Which slice is the first of a picture is read from its first bit
//! (`first_mb_in_slice` is 0, `first_slice_segment_in_pic_flag` is 1), so pictures whose slices
//! come in arbitrary order (H.264 Extended profile) or whose first slice is lost are not told
//! apart. The two fields of an interlaced H.264 frame are two access units, as the standard says.

use std::ops::Range;

use memchr::memmem;

use super::{NalKind, NalUnit};
use crate::encode::Codec;

/// The access units of a whole stream, in order, start codes included; together they are all of
/// `data`.
pub fn access_units(codec: Codec, data: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut splitter = Splitter::new(codec);
    let mut start = 0;
    std::iter::from_fn(move || {
        let len = splitter.next_len(&data[start..], true)?;
        let range = start..start + len;
        start = range.end;
        Some(range)
    })
}

/// The same for a stream of which more arrives: looks at no byte twice.
#[derive(Debug)]
pub struct Splitter {
    codec: Codec,
    /// How far the present access unit has been looked at.
    scanned: usize,
    /// It has a slice already.
    has_picture: bool,
}

impl Splitter {
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            scanned: 0,
            has_picture: false,
        }
    }

    /// The length of the access unit that `data` starts with, once its end can be seen; the next
    /// call wants what follows it. Else `None`: the next call wants the same bytes and more.
    /// `last` says that there are no more, which ends the last access unit.
    pub fn next_len(&mut self, data: &[u8], last: bool) -> Option<usize> {
        // Header, and the byte behind it that holds the first bit of a slice.
        let needed = 3 + NalUnit::header_len(self.codec) + 1;
        while let Some(at) = memmem::find(&data[self.scanned..], &[0, 0, 1]) {
            let code = self.scanned + at;
            if data.len() < code + needed && !last {
                self.scanned = code;
                return None;
            }
            let nal = NalUnit(&data[code + 3..]);
            if self.has_picture && self.begins_access_unit(nal) {
                // The zero in front of a four-byte start code belongs to it.
                let zero = code > 0 && data[code - 1] == 0;
                return Some(self.end_at(code - usize::from(zero)));
            }
            self.has_picture |= nal.kind(self.codec).is_vcl();
            self.scanned = code + 3;
        }
        if last && !data.is_empty() {
            return Some(self.end_at(data.len()));
        }
        // A start code may be cut in two by the end of what is there.
        self.scanned = self.scanned.max(data.len().saturating_sub(2));
        None
    }

    fn end_at(&mut self, len: usize) -> usize {
        self.scanned = 0;
        self.has_picture = false;
        len
    }

    /// Whether `nal`, behind the slices of a picture, belongs to the next access unit.
    fn begins_access_unit(&self, nal: NalUnit<'_>) -> bool {
        let byte = |at: usize| nal.bytes().get(at).copied().unwrap_or(0);
        let code = nal.type_code(self.codec);
        match (self.codec, nal.kind(self.codec)) {
            // Partitions B and C of a slice have no slice header of their own.
            (Codec::H264, NalKind::Slice) if code == 3 || code == 4 => false,
            (Codec::H264, NalKind::Slice | NalKind::KeySlice) => byte(1) & 0x80 != 0,
            (Codec::H264, _) => matches!(code, 6..=9 | 14..=18),
            // Other layers (`nuh_layer_id`) are part of the base layer's access unit.
            (Codec::H265, _) if byte(0) & 1 != 0 || byte(1) & 0xF8 != 0 => false,
            (Codec::H265, NalKind::Slice | NalKind::KeySlice) => byte(2) & 0x80 != 0,
            // 39 is the SEI in front of a picture, 40 the one behind it.
            (Codec::H265, _) => matches!(code, 32..=35 | 39 | 41..=44 | 48..=55),
        }
    }
}

#[cfg(test)]
mod tests;
