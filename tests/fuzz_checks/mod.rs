//! One check for each parser of outside bytes: whatever the bytes are, it returns, holds to its limits, and what it
//! took has a meaning. `tests/fuzz_stable.rs` and the targets in `tests/fuzz` drive the same functions.

pub mod passthrough;

use cvmmap_streamer::bitstream::annexb::nal_ranges;
use cvmmap_streamer::bitstream::sei::FrameStamp;
use cvmmap_streamer::bitstream::split::{Splitter, access_units};
use cvmmap_streamer::bitstream::sps::{H264Sps, H265Sps};
use cvmmap_streamer::bitstream::{AccessUnitPool, ConfigRecord, NalUnit, ParameterSets};
use cvmmap_streamer::control::body::{BodyFrame, MOST_BODIES};
use cvmmap_streamer::control::server::Login;
use cvmmap_streamer::control::{ServerConfig, fuzz as json, messages};
use cvmmap_streamer::encode::Codec;
use cvmmap_streamer::rtmp::{RtmpUrl, fuzz};
use cvmmap_streamer::rtp::rtcp;
use cvmmap_streamer::source::Target;
use cvmmap_streamer::source::contract::{Metadata, SyncMessage, same_frame};
use prost::Message;

pub type Check = fn(&[u8]);

/// Name of the corpus folder and of the fuzz target, and the check.
pub const ALL: &[(&str, Check)] = &[
    ("metadata", metadata),
    ("sync", sync),
    ("rtcp", rtcp),
    ("sei", sei),
    ("sps", sps),
    ("annexb", annexb),
    ("split", split),
    ("config_record", config_record),
    ("rtmp_chunks", fuzz::chunks),
    ("rtmp_amf0", fuzz::amf0),
    ("rtmp_handshake", fuzz::handshake),
    ("rtmp_server", fuzz::server),
    ("body", body),
    ("nats_messages", nats_messages),
    ("target_uri", target_uri),
    ("rtmp_url", rtmp_url),
    ("nats_url", nats_url),
    ("nats_json", nats_json),
    ("passthrough", passthrough::check),
];

const CODECS: [Codec; 2] = [Codec::H264, Codec::H265];

/// The first 256 bytes are the block, those behind it say how long the region is.
pub fn metadata(bytes: &[u8]) {
    let Some((block, rest)) = bytes.split_first_chunk::<256>() else {
        return;
    };
    let region = rest
        .first_chunk()
        .map_or(1 << 32, |len| u64::from(u32::from_le_bytes(*len)));
    assert!(same_frame(block, block));
    let Ok(metadata) = Metadata::parse(block, region) else {
        return;
    };
    assert!(u64::from(metadata.payload_size) + 256 <= region);
    for plane in metadata.planes() {
        let layout = plane.layout;
        assert!(
            u64::from(layout.offset) + u64::from(layout.size) <= u64::from(metadata.payload_size)
        );
        assert!(u64::from(layout.stride) * u64::from(layout.height) <= u64::from(layout.size));
    }
    let _ = metadata.frame_info();
}

pub fn sync(bytes: &[u8]) {
    if let Ok(message) = SyncMessage::parse(bytes) {
        let again = SyncMessage::parse(&message.to_bytes()).expect("our own bytes");
        assert_eq!(
            (again.frame_id, again.label),
            (message.frame_id, message.label)
        );
    }
}

pub fn rtcp(bytes: &[u8]) {
    let mut found = 0;
    rtcp::parse(bytes, |_| found += 1);
    // The smallest thing that can be found is a source of a BYE.
    assert!(found <= bytes.len() / 4 + 1);
    let _ = rtcp::is_rtcp(bytes);
}

pub fn sei(bytes: &[u8]) {
    for codec in CODECS {
        if let Some(stamp) = FrameStamp::read(codec, NalUnit(bytes)) {
            let mut written = Vec::new();
            stamp.write(codec, &mut written);
            assert_eq!(FrameStamp::read(codec, NalUnit(&written)), Some(stamp));
        }
    }
}

pub fn sps(bytes: &[u8]) {
    let _ = H264Sps::parse(bytes);
    let _ = H265Sps::parse(bytes);
}

pub fn annexb(bytes: &[u8]) {
    let mut end = 0;
    for range in nal_ranges(bytes) {
        assert!(range.start >= end && range.end <= bytes.len());
        end = range.end;
    }
}

pub fn split(bytes: &[u8]) {
    for codec in CODECS {
        let whole: Vec<_> = access_units(codec, bytes)
            .map(|range| range.len())
            .collect();
        assert_eq!(whole.iter().sum::<usize>(), bytes.len(), "nothing is lost");
        // The same bytes, as they might arrive.
        let (mut splitter, mut start, mut pieces) = (Splitter::new(codec), 0, Vec::new());
        let ends = (1..=bytes.len()).step_by(7).chain([bytes.len()]);
        for end in ends {
            while let Some(len) = splitter.next_len(&bytes[start..end], false) {
                pieces.push(len);
                start += len;
            }
        }
        while let Some(len) = splitter.next_len(&bytes[start..], true) {
            pieces.push(len);
            start += len;
        }
        assert_eq!(pieces, whole);
    }
}

pub fn config_record(bytes: &[u8]) {
    for codec in CODECS {
        let nals = nal_ranges(bytes).map(|range| NalUnit(&bytes[range]));
        let sets = ParameterSets::collect(codec, 1, nals.filter(|nal| nal.bytes().len() > 1));
        if let Ok(record) = ConfigRecord::new(codec, &sets) {
            assert!(record.bytes.len() <= bytes.len() + 512);
        }
    }
    const { assert!(AccessUnitPool::LARGEST < 1 << 24) };
}

pub fn body(bytes: &[u8]) {
    if let Ok(frame) = BodyFrame::parse(bytes) {
        assert!(frame.bodies.len() <= MOST_BODIES);
    }
}

pub fn nats_messages(bytes: &[u8]) {
    let _ = messages::ModuleStatusEvent::decode(bytes);
    let _ = messages::GetSourceInfoResponse::decode(bytes);
    let _ = messages::ResetFrameCountResponse::decode(bytes);
    let _ = messages::PlaylistResponse::decode(bytes);
    let _ = messages::CapabilitiesResponse::decode(bytes);
    let _ = messages::CameraControlResponse::decode(bytes);
}

pub fn target_uri(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(target) = Target::parse(&text) {
        assert!(target.instance().len() <= 23);
        assert!(!target.shm_name().contains('/'));
        assert!(target.zmq_endpoint().len() <= "ipc://".len() + 107);
    }
}

pub fn rtmp_url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(url) = text.parse::<RtmpUrl>() {
        let _ = url.redirected("rtmps://other.example/app");
        let shown = format!("{url} {url:?}");
        let key = url.secret_key();
        // A key as short as a letter is in every text.
        let elsewhere = url.host.contains(key) || url.tc_url().contains(key);
        assert!(
            key.len() < 8 || elsewhere || !shown.contains(key),
            "the key is shown"
        );
    }
}

pub fn nats_url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(config) = ServerConfig::parse(&text) else {
        return;
    };
    assert!(!config.addresses().is_empty());
    let shown = format!("{config} {config:?}");
    assert!(!shown.contains(char::is_control));
    let (Login::Token(secret)
    | Login::User {
        password: secret, ..
    }) = config.login()
    else {
        return;
    };
    // As with keys: a short one, or one that is the host's name too, is in every text.
    let elsewhere = config.addresses().iter().any(|url| url.contains(secret));
    assert!(
        secret.len() < 8 || elsewhere || !shown.contains(secret),
        "the password is shown"
    );
}

pub fn nats_json(bytes: &[u8]) {
    json::description(bytes);
    json::request(bytes);
}
