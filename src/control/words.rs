//! The producer's answers in words, and back: for logs, the report and `ctl`.

use serde::Serialize;

use crate::source::hints::{Clock, Nature};

use super::messages::{
    CameraControlSetting, CameraControlState, CameraControlValueKind, ErrorCode,
    GetSourceInfoResponse, PlaylistInfo, SourceKind, TimestampDomain, source_flags,
};

/// `GetSourceInfoResponse`, read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceInfo {
    /// `live`, `finite` or `unknown`.
    pub kind: &'static str,
    /// `unix-epoch`, `media-time` or `unknown`.
    pub timestamp_domain: &'static str,
    pub flags: Vec<&'static str>,
    pub timeline_start_ns: u64,
    pub timeline_end_ns: u64,
    pub duration_ns: u64,
    pub current_timestamp_ns: u64,
    pub current_frame_count: u32,
}

impl From<&GetSourceInfoResponse> for SourceInfo {
    fn from(info: &GetSourceInfoResponse) -> Self {
        Self {
            kind: match info.source_kind() {
                SourceKind::Unknown => "unknown",
                SourceKind::Live => "live",
                SourceKind::Finite => "finite",
            },
            timestamp_domain: match info.timestamp_domain() {
                TimestampDomain::Unknown => "unknown",
                TimestampDomain::UnixEpochNs => "unix-epoch",
                TimestampDomain::MediaTimeNs => "media-time",
            },
            flags: source_flags::ALL
                .iter()
                .filter(|(_, bit)| info.flags & bit != 0)
                .map(|(name, _)| *name)
                .collect(),
            timeline_start_ns: info.timeline_start_ns,
            timeline_end_ns: info.timeline_end_ns,
            duration_ns: info.duration_ns,
            current_timestamp_ns: info.current_timestamp_ns,
            current_frame_count: info.current_frame_count,
        }
    }
}

impl SourceInfo {
    /// What stays the same while it runs.
    pub fn summary(&self) -> String {
        let clock = match self.timestamp_domain {
            "unix-epoch" => "stamped with the system clock",
            "media-time" => "stamped with media time",
            _ => "stamped with a clock of its own",
        };
        let mut text = format!("a {} source, {clock}", self.kind);
        if self.kind == "finite" {
            text.push_str(&format!(", {}", seconds(self.duration_ns)));
        }
        if !self.flags.is_empty() {
            text.push_str(&format!(" ({})", self.flags.join(", ")));
        }
        text
    }
}

/// What the source of frames has to know of it.
pub fn nature(info: &GetSourceInfoResponse) -> Nature {
    let ends = info.source_kind() == SourceKind::Finite
        && info.flags & source_flags::AUTO_LOOP == 0
        // Not filled in: a recording of one frame at 0 is none that anybody waits for the end of.
        && info.timeline_end_ns > 0;
    Nature {
        clock: match info.timestamp_domain() {
            TimestampDomain::Unknown => Clock::Unknown,
            TimestampDomain::UnixEpochNs => Clock::UnixEpoch,
            TimestampDomain::MediaTimeNs => Clock::MediaTime,
        },
        last_capture_ns: ends.then_some(info.timeline_end_ns),
    }
}

/// Nanoseconds as seconds.
pub fn seconds(nanos: u64) -> String {
    format!(
        "{}.{:03} s",
        nanos / 1_000_000_000,
        nanos / 1_000_000 % 1000
    )
}

/// An error code, as a person reads it.
pub fn error_words(code: i32) -> String {
    match ErrorCode::try_from(code) {
        Ok(ErrorCode::Ok) => "done".to_owned(),
        Ok(ErrorCode::UnknownCmd) => "the producer does not know this command".to_owned(),
        Ok(ErrorCode::Error) => "the producer failed".to_owned(),
        Ok(ErrorCode::Unsupported) => "the producer does not support this".to_owned(),
        Ok(ErrorCode::InvalidPayload) => "the producer refuses the request as invalid".to_owned(),
        Ok(ErrorCode::OutOfRange) => "the value is out of range".to_owned(),
        Ok(ErrorCode::Timeout) => "the producer timed out".to_owned(),
        Err(_) => format!("the producer answers with the unknown error {code}"),
    }
}

/// The error's name on the wire, for `--json`.
pub fn error_name(code: i32) -> String {
    match ErrorCode::try_from(code) {
        Ok(ErrorCode::Ok) => "ok",
        Ok(ErrorCode::UnknownCmd) => "unknown-cmd",
        Ok(ErrorCode::Error) => "error",
        Ok(ErrorCode::Unsupported) => "unsupported",
        Ok(ErrorCode::InvalidPayload) => "invalid-payload",
        Ok(ErrorCode::OutOfRange) => "out-of-range",
        Ok(ErrorCode::Timeout) => "timeout",
        Err(_) => return format!("unknown-{code}"),
    }
    .to_owned()
}

/// Every camera setting by name.
pub const SETTINGS: [(&str, CameraControlSetting); 12] = [
    ("exposure", CameraControlSetting::Exposure),
    ("gain", CameraControlSetting::Gain),
    ("aec-agc", CameraControlSetting::AecAgc),
    ("wb-temperature", CameraControlSetting::WbTemperature),
    ("wb-auto", CameraControlSetting::WbAuto),
    ("led", CameraControlSetting::Led),
    ("exposure-time", CameraControlSetting::ExposureTime),
    ("analog-gain", CameraControlSetting::AnalogGain),
    ("digital-gain", CameraControlSetting::DigitalGain),
    (
        "auto-exposure-time-range",
        CameraControlSetting::AutoExposureTimeRange,
    ),
    (
        "auto-analog-gain-range",
        CameraControlSetting::AutoAnalogGainRange,
    ),
    (
        "auto-digital-gain-range",
        CameraControlSetting::AutoDigitalGainRange,
    ),
];

pub fn setting_name(code: i32) -> String {
    let known = SETTINGS.iter().find(|(_, setting)| *setting as i32 == code);
    known.map_or_else(|| format!("setting-{code}"), |(name, _)| (*name).to_owned())
}

pub fn setting(name: &str) -> Option<CameraControlSetting> {
    let known = SETTINGS.iter().find(|(known, _)| *known == name);
    known.map(|(_, setting)| *setting)
}

/// `CameraControlState`, read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CameraState {
    Single { setting: String, value: i32 },
    Range { setting: String, min: i32, max: i32 },
}

impl From<&CameraControlState> for CameraState {
    fn from(state: &CameraControlState) -> Self {
        let setting = setting_name(state.setting);
        match state.kind() {
            CameraControlValueKind::Range => Self::Range {
                setting,
                min: state.min_value,
                max: state.max_value,
            },
            _ => Self::Single {
                setting,
                value: state.value,
            },
        }
    }
}

/// `PlaylistInfo`, read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Playlist {
    pub has_playlist: bool,
    pub paths: Vec<String>,
    pub sort_by_recording_time: bool,
    pub current_index: u32,
    pub current_path: String,
}

impl From<PlaylistInfo> for Playlist {
    fn from(info: PlaylistInfo) -> Self {
        Self {
            has_playlist: info.has_playlist,
            paths: info.paths,
            sort_by_recording_time: info.sort_by_recording_time,
            current_index: info.current_index,
            current_path: info.current_path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_info_is_told_in_words() {
        let info = SourceInfo::from(&GetSourceInfoResponse {
            source_kind: SourceKind::Finite as i32,
            timestamp_domain: TimestampDomain::MediaTimeNs as i32,
            flags: source_flags::AUTO_LOOP | source_flags::LOOP_EMITS_RESET,
            duration_ns: 2_500_000_000,
            ..GetSourceInfoResponse::default()
        });
        assert_eq!(
            info.summary(),
            "a finite source, stamped with media time, 2.500 s (auto-loop, loop-emits-reset)"
        );
    }

    #[test]
    fn only_a_recording_that_does_not_loop_has_an_end() {
        // Fields of contract section 5.1: source_kind=2, timestamp_domain=3, flags=4,
        // timeline_end_ns=6.
        let of = |wire: &[u8]| nature(&prost::Message::decode(wire).unwrap());
        let clock = Clock::MediaTime;
        let ends = |last_capture_ns| Nature {
            clock,
            last_capture_ns,
        };
        assert_eq!(of(&[0x10, 2, 0x18, 2, 0x30, 9]), ends(Some(9)));
        assert_eq!(of(&[0x10, 2, 0x18, 2, 0x20, 0x11, 0x30, 9]), ends(None));
        assert_eq!(of(&[0x10, 1, 0x18, 2, 0x30, 9]), ends(None));
        assert_eq!(of(&[0x10, 2, 0x18, 2]), ends(None));
        assert_eq!(of(&[0x18, 1]).clock, Clock::UnixEpoch);
        assert_eq!(of(&[]), Nature::default());
    }

    #[test]
    fn settings_have_their_numbers_of_the_contract() {
        for (n, (name, code)) in SETTINGS.iter().enumerate() {
            assert_eq!(*code as usize, n + 1);
            assert_eq!(setting(name), Some(*code));
            assert_eq!(setting_name(*code as i32), *name);
        }
        assert_eq!(setting_name(99), "setting-99");
        assert_eq!(error_name(99), "unknown-99");
    }
}
