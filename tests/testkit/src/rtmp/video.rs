//! The body of a video message in its three packagings (FLV 10.1 section E.4.3; Enhanced RTMP v2, "Enhanced
//! Video"; contract `rtp-rtmp.md` section 14).

use std::str::FromStr;

use thiserror::Error;

use crate::bitstream::Codec;

/// How video is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// H.264 under codec id 7.
    H264,
    /// H.265 under FourCC hvc1.
    H265Enhanced,
    /// H.265 under codec id 12.
    H265Domestic,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("mode '{0}' is none of h264, h265-enhanced, h265-domestic")]
pub struct UnknownMode(String);

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::H264 => "h264",
            Mode::H265Enhanced => "h265-enhanced",
            Mode::H265Domestic => "h265-domestic",
        }
    }

    pub fn codec(self) -> Codec {
        match self {
            Mode::H264 => Codec::H264,
            Mode::H265Enhanced | Mode::H265Domestic => Codec::H265,
        }
    }

    /// `videocodecid` of the metadata (contract section 13).
    pub fn metadata_codec_id(self) -> f64 {
        match self {
            Mode::H264 => 7.0,
            Mode::H265Domestic => 12.0,
            Mode::H265Enhanced => f64::from(u32::from_be_bytes(*b"hvc1")),
        }
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        [Mode::H264, Mode::H265Enhanced, Mode::H265Domestic]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

/// What one message carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// A decoder configuration record.
    SequenceHeader(&'a [u8]),
    /// Length-prefixed NAL units.
    Frame {
        composition_ms: i32,
        nals: &'a [u8],
    },
    SequenceEnd,
    /// Colour information and the like; its AMF bytes.
    Metadata(&'a [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoBody<'a> {
    pub mode: Mode,
    /// Frame type 1.
    pub key: bool,
    pub content: Content<'a>,
    /// Composition time beside something that is no frame.
    pub stray_composition: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VideoError {
    #[error("a video message cut off in its header")]
    Short,
    #[error("video frame type {0}; 1 and 2 are expected")]
    FrameType(u8),
    #[error("codec id {0}, which is neither 7 nor 12")]
    CodecId(u8),
    #[error("FourCC avc1: H.264 is sent as codec id 7")]
    FourCcAvc1,
    #[error("FourCC {0:?}, which is not hvc1")]
    FourCc([u8; 4]),
    #[error("packet type {0}, which this mode does not have")]
    PacketType(u8),
    #[error("{0} bytes behind the end of the sequence")]
    EndNotEmpty(usize),
}

impl<'a> VideoBody<'a> {
    /// # Errors
    ///
    /// If it is none of the three packagings.
    pub fn parse(body: &'a [u8]) -> Result<Self, VideoError> {
        let (&first, rest) = body.split_first().ok_or(VideoError::Short)?;
        if first & 0x80 != 0 {
            enhanced(first, rest)
        } else {
            legacy(first, rest)
        }
    }
}

fn legacy(first: u8, rest: &[u8]) -> Result<VideoBody<'_>, VideoError> {
    let mode = match first & 0x0F {
        7 => Mode::H264,
        12 => Mode::H265Domestic,
        other => return Err(VideoError::CodecId(other)),
    };
    let key = key_of(first >> 4)?;
    let (head, payload) = rest.split_first_chunk::<4>().ok_or(VideoError::Short)?;
    let composition_ms = signed_24([head[1], head[2], head[3]]);
    let content = match head[0] {
        0 => Content::SequenceHeader(payload),
        1 => Content::Frame {
            composition_ms,
            nals: payload,
        },
        2 if payload.is_empty() => Content::SequenceEnd,
        2 => return Err(VideoError::EndNotEmpty(payload.len())),
        other => return Err(VideoError::PacketType(other)),
    };
    let stray_composition = head[0] != 1 && composition_ms != 0;
    Ok(VideoBody {
        mode,
        key,
        content,
        stray_composition,
    })
}

fn enhanced(first: u8, rest: &[u8]) -> Result<VideoBody<'_>, VideoError> {
    let (four_cc, payload) = rest.split_first_chunk::<4>().ok_or(VideoError::Short)?;
    match four_cc {
        b"hvc1" => {}
        b"avc1" => return Err(VideoError::FourCcAvc1),
        other => return Err(VideoError::FourCc(*other)),
    }
    let kind = first & 0x0F;
    let content = match kind {
        0 => Content::SequenceHeader(payload),
        1 => {
            let (composition, nals) = payload.split_first_chunk::<3>().ok_or(VideoError::Short)?;
            Content::Frame {
                composition_ms: signed_24(*composition),
                nals,
            }
        }
        2 if payload.is_empty() => Content::SequenceEnd,
        2 => return Err(VideoError::EndNotEmpty(payload.len())),
        3 => Content::Frame {
            composition_ms: 0,
            nals: payload,
        },
        4 => Content::Metadata(payload),
        other => return Err(VideoError::PacketType(other)),
    };
    // Metadata has a frame type that is to be ignored.
    let key = if kind == 4 {
        false
    } else {
        key_of(first >> 4 & 7)?
    };
    Ok(VideoBody {
        mode: Mode::H265Enhanced,
        key,
        content,
        stray_composition: false,
    })
}

fn key_of(frame_type: u8) -> Result<bool, VideoError> {
    match frame_type {
        1 => Ok(true),
        2 => Ok(false),
        other => Err(VideoError::FrameType(other)),
    }
}

fn signed_24(bytes: [u8; 3]) -> i32 {
    i32::from_be_bytes([bytes[0], bytes[1], bytes[2], 0]) >> 8
}

/// NAL units behind lengths of four bytes; `None` if the lengths do not fill the bytes exactly.
pub fn length_prefixed(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut nals = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 {
            return None;
        }
        let (nal, rest) = rest.split_at_checked(length)?;
        nals.push(nal);
        bytes = rest;
    }
    Some(nals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // First bytes and offsets of contract section 14.
    #[test]
    fn the_three_packagings_are_told_apart() {
        use Content::*;
        let (a, e, d) = (Mode::H264, Mode::H265Enhanced, Mode::H265Domestic);
        let rows: &[(&[u8], Mode, bool, Content)] = &[
            (&[0x17, 0, 0, 0, 0, 1], a, true, SequenceHeader(&[1])),
            (
                &[0x17, 1, 0, 0, 2, 9],
                a,
                true,
                Frame {
                    composition_ms: 2,
                    nals: &[9],
                },
            ),
            (
                &[0x27, 1, 0xFF, 0xFF, 0xFF, 9],
                a,
                false,
                Frame {
                    composition_ms: -1,
                    nals: &[9],
                },
            ),
            (&[0x17, 2, 0, 0, 0], a, true, SequenceEnd),
            (&[0x1C, 0, 0, 0, 0, 1], d, true, SequenceHeader(&[1])),
            (
                &[0x2C, 1, 0, 0, 0, 9],
                d,
                false,
                Frame {
                    composition_ms: 0,
                    nals: &[9],
                },
            ),
            (b"\x90hvc1\x01", e, true, SequenceHeader(&[1])),
            (
                b"\x91hvc1\x00\x00\x28\x09",
                e,
                true,
                Frame {
                    composition_ms: 40,
                    nals: &[9],
                },
            ),
            (
                b"\xA3hvc1\x09",
                e,
                false,
                Frame {
                    composition_ms: 0,
                    nals: &[9],
                },
            ),
            (b"\x92hvc1", e, true, SequenceEnd),
            (b"\x94hvc1\x02", e, false, Metadata(&[2])),
        ];
        for (bytes, mode, key, content) in rows {
            let body = VideoBody::parse(bytes).expect("a body");
            assert_eq!(
                (body.mode, body.key, body.content),
                (*mode, *key, *content),
                "{bytes:02x?}"
            );
        }
    }

    #[test]
    fn others_are_named() {
        for (bytes, error) in [
            (&[][..], VideoError::Short),
            (&[0x17, 1, 0], VideoError::Short),
            (b"\x90hvc", VideoError::Short),
            (b"\x90avc1\x01", VideoError::FourCcAvc1),
            (b"\x90av01\x01", VideoError::FourCc(*b"av01")),
            (b"\x96hvc1\x01", VideoError::PacketType(6)),
            (&[0x17, 3, 0, 0, 0], VideoError::PacketType(3)),
            (&[0x12, 0, 0, 0, 0], VideoError::CodecId(2)),
            (&[0x57, 1, 0, 0, 0], VideoError::FrameType(5)),
            (&[0x17, 2, 0, 0, 0, 1], VideoError::EndNotEmpty(1)),
        ] {
            assert_eq!(VideoBody::parse(bytes), Err(error), "{bytes:02x?}");
        }
    }

    #[test]
    fn lengths_must_fill_the_body() {
        assert_eq!(
            length_prefixed(&[0, 0, 0, 1, 9, 0, 0, 0, 2, 7, 8]),
            Some(vec![&[9][..], &[7, 8]])
        );
        for bytes in [
            &[0, 0, 0, 2, 9][..],
            &[0, 0, 0, 0],
            &[0, 0, 0],
            &[0, 0, 0, 1, 9, 0],
        ] {
            assert_eq!(length_prefixed(bytes), None, "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = VideoBody::parse(&bytes);
            let _ = length_prefixed(&bytes);
            let _ = VideoBody::parse(&[b"\x91hvc1", &bytes[..]].concat());
        }
    }
}
