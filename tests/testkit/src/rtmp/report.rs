//! What the RTMP referee has found, per connection and in all.

use serde::Serialize;

use super::amf0::Value;
use super::handshake::Form;
use super::session::Session;
use super::stream::{Counters, StreamCheck};
use super::video::Mode;
use crate::findings::Findings;

/// One connection.
#[derive(Debug, Clone, Serialize)]
pub struct Connection {
    /// Why it ended.
    pub ended_by: String,
    pub bytes_received: u64,
    pub handshake: Option<Form>,
    pub app: Option<String>,
    pub tc_url: Option<String>,
    pub flash_version: Option<String>,
    pub stream_name: Option<String>,
    /// Enhanced-RTMP properties of `connect`.
    pub capabilities: Vec<String>,
    pub commands: Vec<String>,
    pub chunk_size: u32,
    pub acknowledgements: u64,
    pub acknowledged: u32,
    pub pings: u64,
    pub pongs: u64,
    pub mode_seen: Option<Mode>,
    /// From the answer to `publish` to the last byte of the first frame.
    pub publish_to_frame_ms: Option<u64>,
    pub metadata: serde_json::Value,
    #[serde(flatten)]
    pub counters: Counters,
    pub violations: Findings,
    pub warnings: Findings,
}

impl Connection {
    pub fn of(
        session: &Session,
        check: &StreamCheck,
        bytes_received: u64,
        publish_to_frame_ms: Option<u64>,
        ended_by: String,
    ) -> Self {
        let facts = session.facts().clone();
        Connection {
            ended_by,
            bytes_received,
            handshake: facts.handshake,
            app: facts.app,
            tc_url: facts.tc_url,
            flash_version: facts.flash_version,
            stream_name: facts.stream_name,
            capabilities: facts.capabilities,
            commands: facts.commands,
            chunk_size: session.chunk_size(),
            acknowledgements: facts.acknowledgements,
            acknowledged: facts.acknowledged,
            pings: facts.pings,
            pongs: facts.pongs,
            mode_seen: check.mode_seen(),
            publish_to_frame_ms,
            metadata: check.metadata().map_or(serde_json::Value::Null, to_json),
            counters: check.counters().clone(),
            violations: check.violations().clone(),
            warnings: check.warnings().clone(),
        }
    }
}

/// The whole run, as `--json` gives it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub exit_code: u8,
    pub ended_by: String,
    pub mode_expected: Mode,
    /// The packaging that came, in words if it is none of the three.
    pub mode_seen: Option<String>,
    pub codec: Option<String>,
    pub frames: u64,
    pub key_frames: u64,
    pub sequence_headers: u64,
    pub bytes_received: u64,
    pub violation_count: u64,
    pub warning_count: u64,
    pub frame_rate: Option<f64>,
    /// NAL unit bytes over the time that the frames last; of the last connection with frames.
    pub bitrate_bps: Option<f64>,
    pub connections: Vec<Connection>,
}

impl Report {
    pub fn of(mode: Mode, mode_seen: Option<String>, connections: Vec<Connection>) -> Self {
        let sum = |count: fn(&Connection) -> u64| connections.iter().map(count).sum();
        let last = connections
            .iter()
            .rev()
            .find(|connection| connection.counters.frames > 0);
        let seconds = last.and_then(|connection| connection.counters.seconds());
        let per_second = |count: fn(&Counters) -> u64| {
            last.zip(seconds)
                .map(|(connection, seconds)| count(&connection.counters) as f64 / seconds)
        };
        let seen = connections
            .iter()
            .rev()
            .find_map(|connection| connection.mode_seen);
        Report {
            exit_code: 0,
            ended_by: String::new(),
            mode_expected: mode,
            mode_seen: mode_seen.or(seen.map(|mode| mode.name().to_owned())),
            codec: seen.map(|mode| mode.codec().to_string()),
            frames: sum(|connection| connection.counters.frames),
            key_frames: sum(|connection| connection.counters.key_frames),
            sequence_headers: sum(|connection| connection.counters.sequence_headers),
            bytes_received: sum(|connection| connection.bytes_received),
            violation_count: sum(|connection| connection.violations.count),
            warning_count: sum(|connection| connection.warnings.count),
            frame_rate: per_second(|counters| counters.frames),
            bitrate_bps: per_second(|counters| counters.media_bytes * 8),
            connections,
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seen = self.mode_seen.as_deref().unwrap_or("none");
        writeln!(
            f,
            "mode={seen} expected={} frames={} key_frames={} sequence_headers={} bytes={}",
            self.mode_expected.name(),
            self.frames,
            self.key_frames,
            self.sequence_headers,
            self.bytes_received
        )?;
        for (index, connection) in self.connections.iter().enumerate() {
            let c = &connection.counters;
            write!(
                f,
                "connection {}: frames={} key_frames={} ended by {}",
                index + 1,
                c.frames,
                c.key_frames,
                connection.ended_by
            )?;
            if let (Some(width), Some(height)) = (c.width, c.height) {
                write!(f, " size={width}x{height}")?;
            }
            if let (Some(first), Some(last)) = (c.first_timestamp_ms, c.last_timestamp_ms) {
                write!(f, " time={first}..{last}ms")?;
            }
            writeln!(f)?;
            connection.violations.write("violation", f)?;
            connection.warnings.write("warning", f)?;
        }
        if let (Some(rate), Some(bits)) = (self.frame_rate, self.bitrate_bps) {
            writeln!(f, "frame_rate={rate:.2} bitrate={:.0}kbit/s", bits / 1000.0)?;
        }
        write!(f, "ended by {}, exit {}", self.ended_by, self.exit_code)
    }
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Number(number) | Value::Date(number) => (*number).into(),
        Value::Boolean(value) => (*value).into(),
        Value::String(text) => text.as_str().into(),
        Value::Object(pairs) | Value::EcmaArray(pairs) => pairs
            .iter()
            .map(|(key, value)| (key.clone(), to_json(value)))
            .collect(),
        Value::StrictArray(values) => values.iter().map(to_json).collect(),
        Value::Null | Value::Undefined => serde_json::Value::Null,
    }
}
