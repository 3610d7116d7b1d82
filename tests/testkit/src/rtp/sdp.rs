//! What a receiver wants from a session description (RFC 8866; RFC 6184 section 8.2, RFC 7798 section 7.2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::bitstream::{Codec, NalClass};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub codec: Codec,
    pub port: u16,
    pub payload_type: u8,
    /// The address of `c=`.
    pub address: Option<String>,
    /// NAL units out of the `sprop-` parameters.
    pub parameter_sets: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SdpError {
    #[error("the first line is not v=0")]
    NoVersion,
    #[error("no m=video line with RTP and a payload type")]
    NoVideo,
    #[error("no a=rtpmap of payload type {0} to H264/90000 or H265/90000")]
    NoMapping(u8),
    #[error("packetization-mode={0}: a sender of fragments and aggregates needs 1")]
    PacketizationMode(String),
    #[error("{0}: not base64 of parameter sets")]
    ParameterSet(String),
}

impl Session {
    /// # Errors
    ///
    /// If no H.264 or H.265 video over RTP is described.
    pub fn parse(text: &str) -> Result<Self, SdpError> {
        let mut lines = text.lines().map(str::trim_end);
        if lines.next() != Some("v=0") {
            return Err(SdpError::NoVersion);
        }
        let (mut address, mut media, mut mapping, mut format) = (None, None, None, None);
        for line in lines {
            if let Some(rest) = line.strip_prefix("c=IN ") {
                let host = rest.split_whitespace().nth(1).unwrap_or_default();
                address = host
                    .split('/')
                    .next()
                    .filter(|h| !h.is_empty())
                    .map(str::to_owned);
            } else if let Some(rest) = line.strip_prefix("m=video ") {
                media = video_line(rest);
            } else if let (Some((_, pt)), Some(rest)) = (media, line.strip_prefix("a=rtpmap:")) {
                mapping = mapping.or_else(|| encoding_of(rest, pt));
            } else if let (Some((_, pt)), Some(rest)) = (media, line.strip_prefix("a=fmtp:")) {
                format = format.or_else(|| rest.strip_prefix(&format!("{pt} ")));
            }
        }
        let (port, payload_type) = media.ok_or(SdpError::NoVideo)?;
        let codec = mapping.ok_or(SdpError::NoMapping(payload_type))?;
        let parameter_sets = parameters(codec, format.unwrap_or_default())?;
        Ok(Session {
            codec,
            port,
            payload_type,
            address,
            parameter_sets,
        })
    }
}

fn video_line(rest: &str) -> Option<(u16, u8)> {
    let mut words = rest.split_whitespace();
    let port = words.next()?.split('/').next()?.parse().ok()?;
    words.next().filter(|profile| profile.starts_with("RTP/"))?;
    Some((port, words.next()?.parse().ok()?))
}

fn encoding_of(rest: &str, payload_type: u8) -> Option<Codec> {
    let (pt, encoding) = rest.split_once(' ')?;
    (pt.parse() == Ok(payload_type)).then_some(())?;
    match encoding.trim().to_ascii_uppercase().as_str() {
        "H264/90000" => Some(Codec::H264),
        "H265/90000" => Some(Codec::H265),
        _ => None,
    }
}

fn parameters(codec: Codec, format: &str) -> Result<Vec<Vec<u8>>, SdpError> {
    let mut sets = Vec::new();
    for parameter in format.split(';') {
        let Some((name, value)) = parameter.trim().split_once('=') else {
            continue;
        };
        let wanted: &[NalClass] = match (codec, name) {
            (Codec::H264, "packetization-mode") if value != "1" => {
                return Err(SdpError::PacketizationMode(value.to_owned()));
            }
            (Codec::H264, "sprop-parameter-sets") => &[NalClass::Sps, NalClass::Pps],
            (Codec::H265, "sprop-vps") => &[NalClass::Vps],
            (Codec::H265, "sprop-sps") => &[NalClass::Sps],
            (Codec::H265, "sprop-pps") => &[NalClass::Pps],
            _ => continue,
        };
        for text in value.split(',') {
            let nal = STANDARD
                .decode(text)
                .ok()
                .filter(|nal| wanted.contains(&codec.classify(nal)))
                .ok_or_else(|| SdpError::ParameterSet(format!("{name}={value}")))?;
            sets.push(nal);
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // The example of contract rtp-rtmp.md section 5, filled in; base64 by hand: Z0IAHg== is 67 42 00 1E.
    const SDP: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 239.0.0.1/32\r\nt=0 0\r\n\
        m=video 5004 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n\
        a=fmtp:96 packetization-mode=1;profile-level-id=42001E;sprop-parameter-sets=Z0IAHg==,aM4=\r\n";

    #[test]
    fn a_description_gives_codec_port_type_and_sets() {
        let session = Session::parse(SDP).expect("a description");
        assert_eq!(
            session,
            Session {
                codec: Codec::H264,
                port: 5004,
                payload_type: 96,
                address: Some("239.0.0.1".into()),
                parameter_sets: vec![vec![0x67, 0x42, 0, 0x1E], vec![0x68, 0xCE]],
            }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, error) in [
            ("v=0", "v=1", SdpError::NoVersion),
            ("m=video", "m=audio", SdpError::NoVideo),
            ("H264/90000", "VP8/90000", SdpError::NoMapping(96)),
            ("mode=1", "mode=0", SdpError::PacketizationMode("0".into())),
            (
                "Z0IAHg==",
                "AAAA",
                SdpError::ParameterSet("sprop-parameter-sets=AAAA,aM4=".into()),
            ),
        ] {
            assert_eq!(Session::parse(&SDP.replace(from, to)), Err(error));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(v=0\n)?((m=video |a=rtpmap:|a=fmtp:|c=IN )[ -~]{0,40}\n){0,6}") {
            let _ = Session::parse(&text);
        }
    }
}
