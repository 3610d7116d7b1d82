//! Access units to the video messages of one session: what goes in front of the first picture,
//! times, lengths in place of start codes.

use crate::bitstream::{AccessUnit, BitstreamError, ConfigRecord, NalUnit};
use crate::flv::packaging::TagHeader;
use crate::flv::script::Metadata;
use crate::rtmp::PublishSession;
use crate::rtmp::message::kind;
use crate::time::MediaTime;

use super::RtmpSinkConfig;

/// The media side of one session; a new session gets a new one.
#[derive(Debug, Default)]
pub struct Feed {
    /// Decoding time of the first picture: timestamps count from here.
    origin: Option<MediaTime>,
    last_timestamp: u32,
    /// Which parameter sets the server has a record of; 0 for none.
    generation: u32,
    lengths: Vec<[u8; 4]>,
    small: Vec<u8>,
}

/// One picture as a message, without its body.
#[derive(Debug, Clone, Copy)]
pub struct Picture {
    pub timestamp: u32,
    /// Bytes of the body.
    pub len: u32,
    tag: TagHeader,
}

impl Feed {
    /// Nothing has been sent: the stream starts at a key frame.
    pub fn is_fresh(&self) -> bool {
        self.origin.is_none()
    }

    /// The time of the message that was made last.
    pub fn last_timestamp(&self) -> u32 {
        self.last_timestamp
    }

    /// Prepares the message of `unit`. In front of a key frame whose parameter sets the server
    /// does not know, metadata and sequence header go into the session's output.
    ///
    /// # Errors
    ///
    /// If no record can be made of the parameter sets, or the unit is too large for a message.
    pub fn picture(
        &mut self,
        unit: &AccessUnit,
        config: &RtmpSinkConfig,
        session: &mut PublishSession,
    ) -> Result<Picture, BitstreamError> {
        self.lengths.clear();
        let mut len = 0;
        let announced = unit.key || unit.parameters.generation == self.generation;
        for nal in kept(unit, announced) {
            self.lengths.push((nal.bytes().len() as u32).to_be_bytes());
            len += 4 + nal.bytes().len();
        }
        let origin = self.origin.unwrap_or(unit.dts);
        let (dts, composition) = times(unit, origin);
        let timestamp = config.first_timestamp.wrapping_add(dts);
        let tag = config.packaging.picture(unit.key, composition);
        let len = u32::try_from(len + tag.len()).unwrap_or(u32::MAX);
        if len > LARGEST_MESSAGE {
            return Err(BitstreamError::TooLarge {
                len: len as usize,
                limit: LARGEST_MESSAGE as usize,
            });
        }
        if unit.key && unit.parameters.generation != self.generation {
            self.announce(unit, timestamp, config, session)?;
        }
        self.origin = Some(origin);
        self.last_timestamp = timestamp;
        Ok(Picture {
            timestamp,
            len,
            tag,
        })
    }

    /// The body of the message that [`Feed::picture`] has prepared, piece by piece.
    pub fn body<'a>(
        &'a self,
        picture: &'a Picture,
        unit: &'a AccessUnit,
    ) -> impl Iterator<Item = &'a [u8]> {
        let units = self
            .lengths
            .iter()
            .zip(kept(unit, unit.parameters.generation == self.generation))
            .flat_map(|(length, nal)| [&length[..], nal.bytes()]);
        std::iter::once(&picture.tag[..]).chain(units)
    }

    fn announce(
        &mut self,
        unit: &AccessUnit,
        timestamp: u32,
        config: &RtmpSinkConfig,
        session: &mut PublishSession,
    ) -> Result<(), BitstreamError> {
        let record = ConfigRecord::new(config.packaging.codec(), &unit.parameters)?;
        self.small.clear();
        Metadata {
            packaging: config.packaging,
            width: record.width,
            height: record.height,
            frame_rate: config.frame_rate,
            bitrate: config.bitrate,
            encoder: concat!("cvmmap_streamer/", env!("CARGO_PKG_VERSION")),
        }
        .append(&mut self.small);
        session.send_small(kind::DATA, timestamp, &self.small);
        self.small.clear();
        self.small
            .extend_from_slice(&config.packaging.sequence_start());
        self.small.extend_from_slice(&record.bytes);
        session.send_small(kind::VIDEO, timestamp, &self.small);
        self.generation = unit.parameters.generation;
        Ok(())
    }
}

/// Decoding time since `origin`, and composition time, in milliseconds. Both are rounded once, from
/// the same origin, so that their sum is the presentation time to the millisecond (contract
/// section 17).
fn times(unit: &AccessUnit, origin: MediaTime) -> (u32, i32) {
    let since =
        |time: MediaTime| MediaTime(time.as_nanos().saturating_sub(origin.as_nanos())).to_millis();
    let dts = since(unit.dts).max(0);
    let composition = (since(unit.pts) - dts).clamp(0, i64::from(i32::MAX));
    (dts as u32, composition as i32)
}

/// The NAL units that go into a body: all but the parameter sets that the record holds, if the
/// record of this generation was `announced`. Without others a decoder could not go on.
fn kept(unit: &AccessUnit, announced: bool) -> impl Iterator<Item = NalUnit<'_>> + Clone {
    let codec = unit.codec();
    unit.nals().filter(move |nal| {
        if !announced {
            return true;
        }
        let sets = &unit.parameters;
        let is_known = |list: &[Vec<u8>]| list.iter().any(|set| set == nal.bytes());
        let is_set = nal.kind(codec).is_parameter_set();
        !(is_set && (is_known(&sets.vps) || is_known(&sets.sps) || is_known(&sets.pps)))
    })
}

/// The length field of a message has 24 bits.
const LARGEST_MESSAGE: u32 = (1 << 24) - 1;
