//! The producer's protobuf messages (package `cvmmap.proto`, contract section 5.1), written by
//! hand: field numbers are the contract's, names are the fields' own.
//!
//! A response of zero bytes is a valid one: every field has its default, and `error` is OK.

use prost::{Enumeration, Message};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum ErrorCode {
    Ok = 0,
    UnknownCmd = 1,
    Error = 2,
    Unsupported = 3,
    InvalidPayload = 4,
    OutOfRange = 5,
    Timeout = 6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum SourceKind {
    Unknown = 0,
    Live = 1,
    Finite = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum TimestampDomain {
    Unknown = 0,
    UnixEpochNs = 1,
    MediaTimeNs = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum RecordingFormat {
    Unknown = 0,
    Svo = 1,
    Mcap = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum ModuleStatusCode {
    Unknown = 0,
    Online = 1,
    Offline = 2,
    StreamReset = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum CameraControlSetting {
    Unknown = 0,
    Exposure = 1,
    Gain = 2,
    AecAgc = 3,
    WbTemperature = 4,
    WbAuto = 5,
    Led = 6,
    ExposureTime = 7,
    AnalogGain = 8,
    DigitalGain = 9,
    AutoExposureTimeRange = 10,
    AutoAnalogGainRange = 11,
    AutoDigitalGainRange = 12,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum CameraControlValueKind {
    Unknown = 0,
    Single = 1,
    Range = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum CameraControlWriteMode {
    Unknown = 0,
    Manual = 1,
    Auto = 2,
}

/// Bits of [`GetSourceInfoResponse::flags`] as producers with `producer.*` subjects use them
/// (contract section 5.2: the numbers were different under the retired `control.*`).
pub mod source_flags {
    pub const AUTO_LOOP: u32 = 0x01;
    pub const HAS_DEPTH: u32 = 0x02;
    pub const HAS_BODY: u32 = 0x04;
    pub const CAN_RECORD: u32 = 0x08;
    pub const LOOP_EMITS_RESET: u32 = 0x10;
    /// Name and bit of each, for people.
    pub const ALL: [(&str, u32); 5] = [
        ("auto-loop", AUTO_LOOP),
        ("has-depth", HAS_DEPTH),
        ("has-body", HAS_BODY),
        ("can-record", CAN_RECORD),
        ("loop-emits-reset", LOOP_EMITS_RESET),
    ];
}

#[derive(Clone, PartialEq, Message)]
pub struct ResetFrameCountResponse {
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub error: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetSourceInfoResponse {
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub error: i32,
    #[prost(enumeration = "SourceKind", tag = "2")]
    pub source_kind: i32,
    #[prost(enumeration = "TimestampDomain", tag = "3")]
    pub timestamp_domain: i32,
    #[prost(uint32, tag = "4")]
    pub flags: u32,
    #[prost(uint64, tag = "5")]
    pub timeline_start_ns: u64,
    #[prost(uint64, tag = "6")]
    pub timeline_end_ns: u64,
    #[prost(uint64, tag = "7")]
    pub duration_ns: u64,
    #[prost(uint64, tag = "8")]
    pub current_timestamp_ns: u64,
    #[prost(uint32, tag = "9")]
    pub current_frame_count: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct PlaylistInfo {
    #[prost(bool, tag = "1")]
    pub has_playlist: bool,
    #[prost(string, repeated, tag = "2")]
    pub paths: Vec<String>,
    #[prost(bool, tag = "3")]
    pub sort_by_recording_time: bool,
    #[prost(uint32, tag = "4")]
    pub current_index: u32,
    #[prost(string, tag = "5")]
    pub current_path: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ApplyPlaylistRequest {
    #[prost(string, repeated, tag = "1")]
    pub paths: Vec<String>,
    #[prost(bool, tag = "2")]
    pub sort_by_recording_time: bool,
}

/// The answer to `playlist.apply` and to `playlist.info`.
#[derive(Clone, PartialEq, Message)]
pub struct PlaylistResponse {
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub error: i32,
    #[prost(message, optional, tag = "2")]
    pub playlist_info: Option<PlaylistInfo>,
    #[prost(string, tag = "3")]
    pub error_message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CapabilitiesResponse {
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub error: i32,
    #[prost(enumeration = "RecordingFormat", repeated, tag = "2")]
    pub available_recording_formats: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetCameraControlCapabilitiesResponse {
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub error: i32,
    #[prost(bool, tag = "2")]
    pub supported: bool,
    #[prost(enumeration = "CameraControlSetting", repeated, tag = "3")]
    pub supported_settings: Vec<i32>,
    #[prost(string, tag = "4")]
    pub error_message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CameraControlState {
    #[prost(enumeration = "CameraControlSetting", tag = "1")]
    pub setting: i32,
    #[prost(enumeration = "CameraControlValueKind", tag = "2")]
    pub kind: i32,
    #[prost(sint32, tag = "3")]
    pub value: i32,
    #[prost(sint32, tag = "4")]
    pub min_value: i32,
    #[prost(sint32, tag = "5")]
    pub max_value: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetCameraControlRequest {
    #[prost(enumeration = "CameraControlSetting", tag = "1")]
    pub setting: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SetCameraControlRequest {
    #[prost(enumeration = "CameraControlSetting", tag = "1")]
    pub setting: i32,
    #[prost(enumeration = "CameraControlWriteMode", tag = "2")]
    pub mode: i32,
    #[prost(sint32, tag = "3")]
    pub value: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SetCameraControlRangeRequest {
    #[prost(enumeration = "CameraControlSetting", tag = "1")]
    pub setting: i32,
    #[prost(sint32, tag = "2")]
    pub min_value: i32,
    #[prost(sint32, tag = "3")]
    pub max_value: i32,
}

/// The answer to `get`, `set` and `set_range`.
#[derive(Clone, PartialEq, Message)]
pub struct CameraControlResponse {
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub error: i32,
    #[prost(message, optional, tag = "2")]
    pub control: Option<CameraControlState>,
    #[prost(string, tag = "3")]
    pub error_message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ModuleStatusEvent {
    #[prost(enumeration = "ModuleStatusCode", tag = "1")]
    pub status: i32,
    #[prost(string, tag = "2")]
    pub instance: String,
    /// The producer's system clock.
    #[prost(uint64, tag = "3")]
    pub timestamp_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/data/control/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        bytes(text.trim())
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex
            .chars()
            .map(|digit| digit.to_digit(16).unwrap() as u8)
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    #[test]
    fn status_events_have_the_values_that_their_fixtures_name() {
        for (name, status) in [
            ("pb_status_online.hex", ModuleStatusCode::Online),
            ("pb_status_offline.hex", ModuleStatusCode::Offline),
            ("pb_status_stream_reset.hex", ModuleStatusCode::StreamReset),
        ] {
            let event = ModuleStatusEvent::decode(&fixture(name)[..]).unwrap();
            assert_eq!(event.status(), status);
            assert_eq!(event.instance, "camera_0");
            assert_eq!(event.encode_to_vec(), fixture(name));
        }
    }

    #[test]
    fn a_live_sources_info_was_captured_from_a_producer() {
        // wire_samples.json, source_info_response_live, whose note names these values
        let wire = bytes("1001180140c7e6eb829b8596f518489a07");
        let info = GetSourceInfoResponse::decode(&wire[..]).unwrap();
        assert_eq!(info.error(), ErrorCode::Ok);
        assert_eq!(info.source_kind(), SourceKind::Live);
        assert_eq!(info.timestamp_domain(), TimestampDomain::UnixEpochNs);
        assert_eq!(info.flags, 0);
        assert_eq!(info.current_timestamp_ns, 1_795_344_337_536_217_927);
        assert_eq!(info.current_frame_count, 922);
    }

    #[test]
    fn a_finite_looping_source_is_told_from_a_live_one() {
        let info =
            GetSourceInfoResponse::decode(&fixture("pb_source_info_finite_loop.hex")[..]).unwrap();
        assert_eq!(info.source_kind(), SourceKind::Finite);
        assert_eq!(info.timestamp_domain(), TimestampDomain::MediaTimeNs);
        assert_ne!(info.flags & source_flags::AUTO_LOOP, 0);
    }

    #[test]
    fn zero_bytes_are_ok_and_other_answers_are_told_apart() {
        let empty = ResetFrameCountResponse::decode(&[][..]).unwrap();
        assert_eq!(empty.error(), ErrorCode::Ok);
        // wire_samples.json, playlist_info_response_live and playlist_apply_empty_request_response_live
        let playlist = PlaylistResponse::decode(&bytes("1200")[..]).unwrap();
        assert_eq!(playlist.playlist_info, Some(PlaylistInfo::default()));
        let refused =
            bytes("08041a20706c61796c697374207061746873206d757374206e6f7420626520656d707479");
        let refused = PlaylistResponse::decode(&refused[..]).unwrap();
        assert_eq!(refused.error(), ErrorCode::InvalidPayload);
        assert_eq!(refused.error_message, "playlist paths must not be empty");
        let formats = fixture("pb_capabilities_svo_current.hex");
        let formats = CapabilitiesResponse::decode(&formats[..]).unwrap();
        assert_eq!(
            formats.available_recording_formats,
            [RecordingFormat::Svo as i32]
        );
    }
}
