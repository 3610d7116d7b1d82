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
        let (dts, composition) = times(unit.pts, unit.dts, origin);
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
fn times(pts: MediaTime, dts: MediaTime, origin: MediaTime) -> (u32, i32) {
    let since =
        |time: MediaTime| MediaTime(time.as_nanos().saturating_sub(origin.as_nanos())).to_millis();
    let dts = since(dts).max(0);
    let composition = (since(pts) - dts).clamp(0, i64::from(i32::MAX));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::AccessUnitPool;
    use crate::encode::{Codec, EncodedPicture, EncodedQueue};
    use crate::flv::Packaging;
    use crate::rtmp::PublishConfig;
    use crate::rtmp::handshake::{BLOCK, HandshakeForm};
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::time::Duration;

    // x264's for 640x360, Baseline.
    const SPS: [u8; 25] = [
        0x67, 0x42, 0xC0, 0x1E, 0xD9, 0x00, 0xA0, 0x2F, 0xF9, 0x70, 0x11, 0, 0, 3, 0, 1, 0, 0, 3,
        0, 0x32, 0x0F, 0x16, 0x2E, 0x48,
    ];
    const PPS: [u8; 5] = [0x68, 0xCB, 0x83, 0xCB, 0x20];

    struct Fed {
        feed: Feed,
        config: RtmpSinkConfig,
        session: PublishSession,
        pool: AccessUnitPool,
    }

    impl Fed {
        fn new() -> Self {
            let url: crate::rtmp::RtmpUrl = "rtmp://h/a/k".parse().unwrap();
            let config = RtmpSinkConfig::new(url.clone(), Packaging::LegacyAvc);
            let publish = PublishConfig {
                url,
                handshake: HandshakeForm::Simple,
                enhanced: false,
                chunk_size: 65536,
            };
            Self {
                feed: Feed::default(),
                config,
                session: PublishSession::new(publish, &[0; BLOCK], Duration::ZERO),
                pool: AccessUnitPool::new(Codec::H264),
            }
        }

        fn unit(&mut self, nals: &[&[u8]]) -> Arc<AccessUnit> {
            let data = nals.iter().flat_map(|nal| [&[0, 0, 1], *nal].concat());
            let picture = EncodedPicture {
                data: data.collect(),
                ..EncodedPicture::default()
            };
            self.pool
                .make(picture, &mut EncodedQueue::new(), |_| ())
                .unwrap()
        }

        /// The body, and whether metadata and a sequence header went in front.
        fn body(&mut self, nals: &[&[u8]]) -> (Vec<u8>, bool) {
            let unit = self.unit(nals);
            self.session.take_output();
            let picture = self
                .feed
                .picture(&unit, &self.config, &mut self.session)
                .unwrap();
            let body = self.feed.body(&picture, &unit).collect::<Vec<_>>().concat();
            assert_eq!(body.len(), picture.len as usize);
            (body, !self.session.output().is_empty())
        }
    }

    #[test]
    fn lengths_stand_in_place_of_start_codes_and_known_sets_are_left_out() {
        let mut fed = Fed::new();
        let key: [&[u8]; 4] = [&SPS, &PPS, &[6, 5, 0x80], &[0x65, 1, 2]];
        let expected = [
            &[0x17, 1, 0, 0, 0][..],
            &[0, 0, 0, 3, 6, 5, 0x80],
            &[0, 0, 0, 3, 0x65, 1, 2],
        ]
        .concat();
        assert_eq!(fed.body(&key), (expected.clone(), true));
        // The same sets again are no news.
        assert_eq!(fed.body(&key), (expected, false));
    }

    #[test]
    fn sets_that_the_server_has_no_record_of_stay_in_the_body() {
        let mut fed = Fed::new();
        fed.body(&[&SPS, &PPS, &[0x65, 1]]);
        let head = [0x27, 1, 0, 0, 0];
        // One of them alone makes no new generation.
        let lone = [&head[..], &[0, 0, 0, 2, 0x68, 9, 0, 0, 0, 2, 0x41, 1]].concat();
        assert_eq!(fed.body(&[&[0x68, 9], &[0x41, 1]]), (lone, false));
        // All of them anew, but in front of no key frame: there the header may not change.
        let other = [0x68, 0xCB, 0x83, 0xCB, 0x30];
        let (body, announced) = fed.body(&[&SPS, &other, &[0x41, 1]]);
        assert_eq!(body.len(), 5 + (4 + 25) + (4 + 5) + (4 + 2));
        assert!(!announced);
        // With the key frame it does, and the set goes into the record.
        let key = [&[0x17, 1, 0, 0, 0][..], &[0, 0, 0, 2, 0x65, 1]].concat();
        assert_eq!(fed.body(&[&SPS, &other, &[0x65, 1]]), (key, true));
    }

    proptest! {
        /// Contract section 17: one rounding, and their sum is the presentation time.
        #[test]
        fn times_add_up_to_the_rounded_presentation_time(
            origin in -1_000_000_000_i64..1_000_000_000,
            dts in 0_i64..100_000_000_000_000,
            delay in 0_i64..1_000_000_000,
        ) {
            let (dts, pts) = (MediaTime(origin + dts), MediaTime(origin + dts + delay));
            let (ms, composition) = times(pts, dts, MediaTime(origin));
            prop_assert!(composition >= 0);
            let expected = ((pts.0 - origin) as f64 / 1e6 + 0.5).floor() as i64;
            prop_assert_eq!(i64::from(ms) + i64::from(composition), expected);
        }
    }
}
