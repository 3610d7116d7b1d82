//! One picture's NAL units, indexed once, shared by every sink.

use std::ops::Range;
use std::sync::Arc;

use crate::encode::{Codec, EncodedPicture, EncodedQueue};
use crate::time::MediaTime;
use crate::trace::FrameTrace;

use super::{BitstreamError, NalUnit, ParameterSets, annexb};

/// The NAL units of one picture in decoding order, as ranges of one buffer. Immutable once it is
/// shared; the payload bytes are never copied again.
///
/// SEI messages of our own (time stamps, body poses) live in a small buffer beside the encoder's
/// output and are threaded into the list in front of the first slice.
#[derive(Debug)]
pub struct AccessUnit {
    codec: Codec,
    data: Vec<u8>,
    extra: Vec<u8>,
    nals: Vec<NalRef>,
    first_vcl: usize,
    pub key: bool,
    pub pts: MediaTime,
    pub dts: MediaTime,
    pub frame_id: u32,
    pub epoch: u32,
    /// On the producer's clock.
    pub capture_ts_ns: u64,
    /// In force for this picture.
    pub parameters: Arc<ParameterSets>,
    pub trace: FrameTrace,
}

#[derive(Debug, Clone)]
enum NalRef {
    Data(Range<u32>),
    Extra(Range<u32>),
}

impl AccessUnit {
    fn empty(codec: Codec) -> Self {
        Self {
            codec,
            data: Vec::new(),
            extra: Vec::new(),
            nals: Vec::with_capacity(16),
            first_vcl: 0,
            key: false,
            pts: MediaTime::ZERO,
            dts: MediaTime::ZERO,
            frame_id: 0,
            epoch: 0,
            capture_ts_ns: 0,
            parameters: Arc::default(),
            trace: FrameTrace::default(),
        }
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The NAL units in decoding order.
    pub fn nals(&self) -> impl ExactSizeIterator<Item = NalUnit<'_>> + Clone {
        self.nals.iter().map(|nal| {
            NalUnit(match nal {
                NalRef::Data(range) => &self.data[range.start as usize..range.end as usize],
                NalRef::Extra(range) => &self.extra[range.start as usize..range.end as usize],
            })
        })
    }

    /// Bytes of all NAL units, without start codes.
    pub fn payload_len(&self) -> usize {
        self.nals().map(|nal| nal.bytes().len()).sum()
    }

    /// Puts a NAL unit of our own in front of the first slice. `write` appends the whole NAL
    /// unit, header included, emulation prevention done.
    pub fn insert_before_picture(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.extra.len();
        write(&mut self.extra);
        let range = start as u32..self.extra.len() as u32;
        if !range.is_empty() {
            self.nals.insert(self.first_vcl, NalRef::Extra(range));
            self.first_vcl += 1;
        }
    }
}

/// Makes access units out of encoded pictures and uses their memory again once every sink has
/// let go of them.
#[derive(Debug)]
pub struct AccessUnitPool {
    codec: Codec,
    slots: Vec<Arc<AccessUnit>>,
    parameters: Arc<ParameterSets>,
}

impl AccessUnitPool {
    /// Larger access units than this come from no encoder (RTMP's message length is 24 bits).
    pub const LARGEST: usize = (1 << 24) - 1024;
    /// NAL units of one: a picture that is cut into slices of an Ethernet frame each stays below it.
    pub const MOST_NALS: usize = 16_384;
    /// Parameter sets of one: more than there are numbers for (16 VPS, 32 SPS, 256 PPS). Descriptions
    /// and records repeat them, and are compared set by set.
    pub const MOST_SETS: usize = 512;
    /// Bytes of all these, which is what one of them may have in a configuration record.
    pub const MOST_SET_BYTES: usize = 65_535;

    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            slots: Vec::with_capacity(64),
            parameters: Arc::default(),
        }
    }

    /// The parameter sets in force.
    pub fn parameters(&self) -> &Arc<ParameterSets> {
        &self.parameters
    }

    /// Indexes `picture`, lets `finish` add to it, and shares it. Its buffer is taken over; the
    /// one it replaces goes back to `queue`.
    ///
    /// # Errors
    ///
    /// If the bytes are no access unit; the buffer goes back to `queue` all the same.
    pub fn make(
        &mut self,
        mut picture: EncodedPicture,
        queue: &mut EncodedQueue,
        finish: impl FnOnce(&mut AccessUnit),
    ) -> Result<Arc<AccessUnit>, BitstreamError> {
        let at = self.free_slot();
        let codec = self.codec;
        let unit = Arc::get_mut(&mut self.slots[at]).expect("free_slot gives an unshared one");
        std::mem::swap(&mut unit.data, &mut picture.data);
        queue.recycle(picture.data);
        unit.extra.clear();
        unit.nals.clear();
        unit.first_vcl = usize::MAX;
        unit.key = false;
        if unit.data.len() > Self::LARGEST {
            return Err(BitstreamError::TooLarge {
                len: unit.data.len(),
                limit: Self::LARGEST,
            });
        }
        let (mut sets, mut set_bytes) = (0, 0);
        for range in annexb::nal_ranges(&unit.data) {
            if range.len() < NalUnit::header_len(codec) + 1 {
                return Err(BitstreamError::ShortNal {
                    offset: range.start,
                    len: range.len(),
                });
            }
            let kind = NalUnit(&unit.data[range.clone()]).kind(codec);
            // Neither belongs into RTP or FLV (RFC 6184 and contract section 3 let a sender drop
            // them); a producer's own stream may hold them.
            if matches!(
                kind,
                super::NalKind::AccessUnitDelimiter | super::NalKind::Filler
            ) {
                continue;
            }
            if kind.is_parameter_set() {
                sets += 1;
                set_bytes += range.len();
            }
            if kind.is_vcl() && unit.first_vcl == usize::MAX {
                unit.first_vcl = unit.nals.len();
                unit.key = kind == super::NalKind::KeySlice;
            }
            for (what, count, most) in [
                ("NAL units", unit.nals.len() + 1, Self::MOST_NALS),
                ("parameter sets", sets, Self::MOST_SETS),
                ("bytes of parameter sets", set_bytes, Self::MOST_SET_BYTES),
            ] {
                if count > most {
                    return Err(BitstreamError::TooMany { what, most });
                }
            }
            unit.nals
                .push(NalRef::Data(range.start as u32..range.end as u32));
        }
        if unit.nals.is_empty() {
            return Err(BitstreamError::NoStartCode {
                len: unit.data.len(),
            });
        }
        if unit.first_vcl == usize::MAX {
            return Err(BitstreamError::NoPicture);
        }
        if sets > 0 && !self.parameters.same_as(codec, unit.nals()) {
            let sets = ParameterSets::collect(codec, self.parameters.generation + 1, unit.nals());
            if sets.is_complete(codec) {
                self.parameters = Arc::new(sets);
            }
        }
        if unit.key && self.parameters.generation == 0 {
            return Err(BitstreamError::NoParameterSets);
        }
        unit.pts = picture.pts;
        unit.dts = picture.dts;
        unit.frame_id = picture.frame_id;
        unit.epoch = picture.epoch;
        unit.capture_ts_ns = picture.capture_ts_ns;
        unit.trace = picture.trace;
        unit.parameters = Arc::clone(&self.parameters);
        finish(unit);
        Ok(Arc::clone(&self.slots[at]))
    }

    fn free_slot(&mut self) -> usize {
        let free = self
            .slots
            .iter_mut()
            .position(|slot| Arc::get_mut(slot).is_some());
        free.unwrap_or_else(|| {
            self.slots.push(Arc::new(AccessUnit::empty(self.codec)));
            self.slots.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(data: &[u8]) -> EncodedPicture {
        EncodedPicture {
            data: data.to_vec(),
            ..EncodedPicture::default()
        }
    }

    const KEY: &[u8] = &[
        0, 0, 0, 1, 0x67, 1, 2, 0, 0, 0, 1, 0x68, 3, 0, 0, 1, 0x65, 4, 5,
    ];

    #[test]
    fn a_key_picture_is_indexed_and_its_sets_are_kept() {
        let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
        let unit = pool
            .make(picture(KEY), &mut queue, |unit| {
                unit.insert_before_picture(|out| out.extend([0x06, 0x05, 0x80]));
            })
            .unwrap();
        assert!(unit.key);
        assert_eq!(unit.parameters.generation, 1);
        assert_eq!(unit.parameters.sps, [vec![0x67, 1, 2]]);
        let nals: Vec<_> = unit.nals().map(|nal| nal.bytes()[0]).collect();
        assert_eq!(nals, [0x67, 0x68, 0x06, 0x65]);
        assert_eq!(unit.payload_len(), 3 + 2 + 3 + 3);
    }

    #[test]
    fn equal_sets_keep_the_generation_and_new_ones_raise_it() {
        let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
        let mut generation = |data: &[u8]| {
            let unit = pool.make(picture(data), &mut queue, |_| ()).unwrap();
            unit.parameters.generation
        };
        assert_eq!(generation(KEY), 1);
        assert_eq!(generation(KEY), 1);
        assert_eq!(generation(&[0, 0, 1, 0x41, 9]), 1);
        let mut other = KEY.to_vec();
        other[6] = 9;
        assert_eq!(generation(&other), 2);
    }

    #[test]
    fn memory_is_used_again_after_the_last_holder_let_go() {
        let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
        let first = pool.make(picture(KEY), &mut queue, |_| ()).unwrap();
        let second = pool.make(picture(KEY), &mut queue, |_| ()).unwrap();
        let address = Arc::as_ptr(&first);
        drop(first);
        let third = pool.make(picture(KEY), &mut queue, |_| ()).unwrap();
        assert_eq!(Arc::as_ptr(&third), address);
        drop((second, third));
    }

    #[test]
    fn more_than_any_stream_has_is_refused() {
        let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
        let mut make = |data: &[u8]| pool.make(picture(data), &mut queue, |_| ()).map(|_| ());
        let with = |nal: &[u8], count: usize| {
            let nal = [&[0, 0, 1], nal].concat();
            [nal.repeat(count), KEY.to_vec()].concat()
        };
        let too_many = |what, most| Err(BitstreamError::TooMany { what, most });
        // KEY has three NAL units, two of them sets with 3 + 2 bytes.
        let slice = [0x65, 4];
        assert_eq!(make(&with(&slice, 16_381)), Ok(()));
        assert_eq!(make(&with(&slice, 16_382)), too_many("NAL units", 16_384));
        let pps = [0x68, 4];
        assert_eq!(make(&with(&pps, 510)), Ok(()));
        assert_eq!(make(&with(&pps, 511)), too_many("parameter sets", 512));
        let long = |len: usize| [&[0x68][..], &vec![7; len - 1]].concat();
        assert_eq!(make(&with(&long(65_530), 1)), Ok(()));
        let refused = make(&with(&long(65_531), 1));
        assert_eq!(refused, too_many("bytes of parameter sets", 65_535));
    }

    #[test]
    fn what_is_no_access_unit_is_refused() {
        let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
        let mut refusal = |data: &[u8]| pool.make(picture(data), &mut queue, |_| ()).unwrap_err();
        assert_eq!(refusal(&[1, 2]), BitstreamError::NoStartCode { len: 2 });
        assert_eq!(refusal(&[0, 0, 1, 0x67, 1, 2]), BitstreamError::NoPicture);
        assert_eq!(
            refusal(&[0, 0, 1, 0x65]),
            BitstreamError::ShortNal { offset: 3, len: 1 }
        );
        assert_eq!(
            refusal(&[0, 0, 1, 0x65, 1]),
            BitstreamError::NoParameterSets
        );
    }
}
