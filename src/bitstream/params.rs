//! The parameter sets in force.

use crate::encode::Codec;

use super::{NalKind, NalUnit};

/// VPS (H.265), SPS and PPS, each without start code, and a number that grows when any of them
/// changes. Immutable; shared by `Arc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParameterSets {
    /// 0 before the first complete set.
    pub generation: u32,
    pub vps: Vec<Vec<u8>>,
    pub sps: Vec<Vec<u8>>,
    pub pps: Vec<Vec<u8>>,
}

impl ParameterSets {
    /// All that a decoder of this codec needs is there.
    pub fn is_complete(&self, codec: Codec) -> bool {
        !self.sps.is_empty()
            && !self.pps.is_empty()
            && (codec == Codec::H264 || !self.vps.is_empty())
    }

    /// The sets of `nals` equal these, in the same order.
    pub fn same_as<'a>(&self, codec: Codec, nals: impl Iterator<Item = NalUnit<'a>>) -> bool {
        let (mut vps, mut sps, mut pps) = (self.vps.iter(), self.sps.iter(), self.pps.iter());
        for nal in nals {
            let expected = match nal.kind(codec) {
                NalKind::Vps => vps.next(),
                NalKind::Sps => sps.next(),
                NalKind::Pps => pps.next(),
                _ => continue,
            };
            if expected.map(Vec::as_slice) != Some(nal.bytes()) {
                return false;
            }
        }
        vps.next().is_none() && sps.next().is_none() && pps.next().is_none()
    }

    /// The sets among `nals`, as generation `generation`.
    pub fn collect<'a>(
        codec: Codec,
        generation: u32,
        nals: impl Iterator<Item = NalUnit<'a>>,
    ) -> Self {
        let mut sets = Self {
            generation,
            ..Self::default()
        };
        for nal in nals {
            let list = match nal.kind(codec) {
                NalKind::Vps => &mut sets.vps,
                NalKind::Sps => &mut sets.sps,
                NalKind::Pps => &mut sets.pps,
                _ => continue,
            };
            list.push(nal.bytes().to_vec());
        }
        sets
    }
}
