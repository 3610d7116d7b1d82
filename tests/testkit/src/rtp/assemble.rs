//! Access units from the NAL units of one timestamp.

use std::ops::Range;

use crate::bitstream::{Codec, NalClass};

/// The NAL units between two markers.
#[derive(Debug, Default)]
pub struct Assembler {
    bytes: Vec<u8>,
    nals: Vec<Range<usize>>,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    timestamp: u32,
    first_arrival_ns: u64,
    packets: u32,
    damaged: bool,
}

/// A finished unit, borrowed from its assembler.
#[derive(Debug, Clone)]
pub struct AccessUnit<'a> {
    pub timestamp: u32,
    /// NAL units without start codes, in the order they came.
    pub nals: Vec<&'a [u8]>,
    /// When its first and its last packet came, ns since 1970 by the kernel's stamp.
    pub first_arrival_ns: u64,
    pub last_arrival_ns: u64,
    pub packets: u32,
    /// Something is missing, or was wrong.
    pub damaged: bool,
}

impl AccessUnit<'_> {
    pub fn is_key_frame(&self, codec: Codec) -> bool {
        self.nals
            .iter()
            .any(|nal| codec.classify(nal) == NalClass::KeySlice)
    }

    /// Bytes of its NAL units, start codes not counted.
    pub fn bytes(&self) -> usize {
        self.nals.iter().map(|nal| nal.len()).sum()
    }
}

impl Assembler {
    /// The timestamp of the unit that is being put together.
    pub fn timestamp(&self) -> Option<u32> {
        self.open.map(|open| open.timestamp)
    }

    /// A packet of `timestamp` has come. Any other unit must have been taken before.
    pub fn packet(&mut self, timestamp: u32, arrival_ns: u64) {
        let open = self.open.get_or_insert(Open {
            timestamp,
            first_arrival_ns: arrival_ns,
            packets: 0,
            damaged: false,
        });
        open.packets += 1;
    }

    pub fn nal(&mut self, nal: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(nal);
        self.nals.push(start..self.bytes.len());
    }

    pub fn damage(&mut self) {
        if let Some(open) = &mut self.open {
            open.damaged = true;
        }
    }

    /// The unit as it is now; `None` if there is none. To be followed by [`Assembler::clear`].
    pub fn finish(&self, arrival_ns: u64) -> Option<AccessUnit<'_>> {
        let open = self.open?;
        Some(AccessUnit {
            timestamp: open.timestamp,
            nals: self
                .nals
                .iter()
                .map(|range| &self.bytes[range.clone()])
                .collect(),
            first_arrival_ns: open.first_arrival_ns,
            last_arrival_ns: arrival_ns,
            packets: open.packets,
            damaged: open.damaged,
        })
    }

    pub fn clear(&mut self) {
        self.open = None;
        self.bytes.clear();
        self.nals.clear();
    }
}
