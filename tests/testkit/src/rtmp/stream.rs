//! The judge of one published stream: is it the packaging that was asked for, and right?

use serde::Serialize;

use super::amf0::Value;
use super::config_record::ConfigRecord;
use super::video::{Content, Mode, VideoBody, VideoError, length_prefixed};
use crate::bitstream::{Codec, NalClass, order};
use crate::findings::Findings;

/// Why a stream is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// Another packaging than expected; what it was.
    WrongMode(String),
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Counters {
    pub frames: u64,
    pub key_frames: u64,
    pub sequence_headers: u64,
    pub sequence_ends: u64,
    /// Bodies of all video messages.
    pub video_bytes: u64,
    /// NAL units in them, lengths not counted.
    pub media_bytes: u64,
    pub audio_messages: u64,
    pub metadata_messages: u64,
    pub in_band_parameter_sets: u64,
    pub first_timestamp_ms: Option<u32>,
    pub last_timestamp_ms: Option<u32>,
    pub largest_composition_ms: i32,
    /// From the sequence header's SPS.
    pub width: Option<u32>,
    pub height: Option<u32>,
}

impl Counters {
    /// The time that the frames last, the last one's own included.
    pub fn seconds(&self) -> Option<f64> {
        let span = f64::from(
            self.last_timestamp_ms?
                .wrapping_sub(self.first_timestamp_ms?),
        ) / 1000.0;
        let steps = self
            .frames
            .checked_sub(1)
            .filter(|&steps| steps > 0 && span > 0.0)?;
        Some(span * self.frames as f64 / steps as f64)
    }
}

/// A frame or a sequence header that was found right.
#[derive(Debug)]
pub enum Piece<'a> {
    ParameterSets(&'a [Vec<u8>]),
    Frame {
        nals: Vec<&'a [u8]>,
        timestamp_ms: u32,
        key: bool,
    },
}

/// Judges the messages of one connection; a new connection needs a new one.
#[derive(Debug)]
pub struct StreamCheck {
    mode: Mode,
    strict: bool,
    mode_seen: Option<Mode>,
    counters: Counters,
    metadata: Option<Value>,
    record: Option<ConfigRecord>,
    awaits_key_frame: bool,
    ended: bool,
    last_dts: Option<u32>,
    violations: Findings,
    warnings: Findings,
}

impl StreamCheck {
    /// With `strict`, warnings are violations.
    pub fn new(mode: Mode, strict: bool) -> Self {
        StreamCheck {
            mode,
            strict,
            mode_seen: None,
            counters: Counters::default(),
            metadata: None,
            record: None,
            awaits_key_frame: true,
            ended: false,
            last_dts: None,
            violations: Findings::default(),
            warnings: Findings::default(),
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn mode_seen(&self) -> Option<Mode> {
        self.mode_seen
    }

    pub fn metadata(&self) -> Option<&Value> {
        self.metadata.as_ref()
    }

    pub fn violations(&self) -> &Findings {
        &self.violations
    }

    pub fn warnings(&self) -> &Findings {
        &self.warnings
    }

    /// A finding from outside: the session's.
    pub fn violation(&mut self, text: impl FnOnce() -> String) {
        self.violations.add(text);
    }

    pub fn warning(&mut self, text: impl FnOnce() -> String) {
        if self.strict {
            self.violations.add(text);
        } else {
            self.warnings.add(text);
        }
    }

    pub fn audio(&mut self) {
        self.counters.audio_messages += 1;
    }

    pub fn metadata_message(&mut self, value: &Value) {
        self.counters.metadata_messages += 1;
        let number = |key: &str| value.get(key).and_then(Value::as_number);
        for key in ["width", "height", "videocodecid"] {
            if number(key).is_none() {
                self.warning(|| format!("metadata without a number '{key}'"));
            }
        }
        let (mode, wanted) = (self.mode.name(), self.mode.metadata_codec_id());
        if let Some(found) = number("videocodecid").filter(|&found| found != wanted) {
            self.warning(|| format!("metadata names videocodecid {found}; {mode} is {wanted}"));
        }
        let audio = ["audiocodecid", "audiodatarate", "audiosamplerate"];
        if let Some(key) = audio.into_iter().find(|key| value.get(key).is_some()) {
            self.warning(|| format!("metadata promises audio ('{key}')"));
        }
        self.metadata = Some(value.clone());
    }

    /// Judges one video message.
    pub fn video(&mut self, timestamp: u32, body: &[u8], sink: &mut dyn FnMut(Piece)) -> Verdict {
        self.counters.video_bytes += body.len() as u64;
        let parsed = match VideoBody::parse(body) {
            Ok(parsed) => parsed,
            Err(VideoError::FourCc(four_cc)) => {
                return Verdict::WrongMode(format!("FourCC {}", String::from_utf8_lossy(&four_cc)));
            }
            Err(VideoError::CodecId(id)) => return Verdict::WrongMode(format!("codec id {id}")),
            Err(error) => {
                self.violation(|| format!("video message at {timestamp} ms: {error}"));
                return Verdict::Fine;
            }
        };
        self.mode_seen = Some(parsed.mode);
        if parsed.mode != self.mode {
            return Verdict::WrongMode(parsed.mode.name().into());
        }
        if self.counters.metadata_messages == 0 && self.counters.sequence_headers == 0 {
            self.warning(|| "video ahead of any metadata".into());
        }
        if parsed.stray_composition {
            self.warning(|| format!("a composition time beside no frame at {timestamp} ms"));
        }
        if self.ended {
            self.violation(|| format!("video at {timestamp} ms after the end of the sequence"));
        }
        match parsed.content {
            Content::SequenceHeader(record) => self.sequence_header(record, parsed.key, sink),
            Content::Frame {
                composition_ms,
                nals,
            } => {
                self.frame(timestamp, parsed.key, composition_ms, nals, sink);
            }
            Content::SequenceEnd => {
                self.counters.sequence_ends += 1;
                self.ended = true;
            }
            Content::Metadata(_) => {}
        }
        Verdict::Fine
    }

    fn sequence_header(&mut self, bytes: &[u8], key: bool, sink: &mut dyn FnMut(Piece)) {
        self.counters.sequence_headers += 1;
        if !key {
            self.violation(|| "a sequence header that is not marked as key frame".into());
        }
        let record = match ConfigRecord::parse(self.mode.codec(), bytes) {
            Ok(record) => record,
            Err(error) => {
                self.violation(|| format!("decoder configuration record: {error}"));
                return;
            }
        };
        for warning in &record.warnings {
            self.warning(|| (*warning).into());
        }
        self.counters.width = Some(record.sps.width);
        self.counters.height = Some(record.sps.height);
        let same = self
            .record
            .as_ref()
            .is_some_and(|before| before.parameter_sets == record.parameter_sets);
        if same {
            self.warning(|| "a sequence header that repeats the last one".into());
        } else {
            sink(Piece::ParameterSets(&record.parameter_sets));
            self.awaits_key_frame = true;
        }
        self.record = Some(record);
        if let Some(metadata) = &self.metadata {
            let number = |key: &str| metadata.get(key).and_then(Value::as_number);
            let told = (number("width"), number("height"));
            let (width, height) = (
                self.counters.width.map(f64::from),
                self.counters.height.map(f64::from),
            );
            if told.0.is_some() && told.1.is_some() && told != (width, height) {
                self.warning(|| format!("metadata tells {told:?}, the SPS {:?}", (width, height)));
            }
        }
    }

    fn frame(
        &mut self,
        dts: u32,
        key: bool,
        composition: i32,
        bytes: &[u8],
        sink: &mut dyn FnMut(Piece),
    ) {
        let at = move |text: &str| format!("frame at {dts} ms: {text}");
        self.check_time(dts, composition);
        if self.record.is_none() {
            self.violation(|| at("no sequence header ahead of it"));
        }
        let Some(nals) = length_prefixed(bytes) else {
            self.violation(|| at("NAL unit lengths that do not fill the message"));
            return;
        };
        let codec = self.mode.codec();
        if let Some(fault) = order::violation(codec, &nals) {
            self.violation(|| at(&fault));
        }
        let has_key = nals
            .iter()
            .any(|nal| codec.classify(nal) == NalClass::KeySlice);
        if has_key != key {
            self.violation(|| {
                at(if key {
                    "marked as key frame, and holds none"
                } else {
                    "a key frame that is not marked as one"
                })
            });
        }
        if self.awaits_key_frame && !has_key {
            self.violation(|| at("the first one after a sequence header, and no key frame"));
        }
        self.awaits_key_frame = false;
        self.check_parameter_sets(codec, &nals, &at);
        self.counters.frames += 1;
        self.counters.key_frames += u64::from(has_key);
        self.counters.media_bytes += nals.iter().map(|nal| nal.len() as u64).sum::<u64>();
        sink(Piece::Frame {
            nals,
            timestamp_ms: dts,
            key: has_key,
        });
    }

    fn check_time(&mut self, dts: u32, composition: i32) {
        if composition < 0 {
            self.violation(|| format!("frame at {dts} ms: composition time {composition} ms"));
        }
        self.counters.largest_composition_ms =
            self.counters.largest_composition_ms.max(composition);
        // The clock wraps after 49 days: a signed difference.
        if let Some(before) = self
            .last_dts
            .filter(|before| (dts.wrapping_sub(*before) as i32) < 0)
        {
            self.violation(|| format!("time goes back from {before} to {dts} ms"));
        }
        self.last_dts = Some(dts);
        self.counters.first_timestamp_ms.get_or_insert(dts);
        self.counters.last_timestamp_ms = Some(dts);
    }

    fn check_parameter_sets(&mut self, codec: Codec, nals: &[&[u8]], at: &dyn Fn(&str) -> String) {
        for nal in nals {
            if !matches!(
                codec.classify(nal),
                NalClass::Vps | NalClass::Sps | NalClass::Pps
            ) {
                continue;
            }
            self.counters.in_band_parameter_sets += 1;
            let known = self
                .record
                .as_ref()
                .is_some_and(|record| record.parameter_sets.iter().any(|set| set == nal));
            if !known {
                self.violation(|| at("a parameter set that no sequence header has announced"));
            }
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
