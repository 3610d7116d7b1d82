//! What a running stream serves over NATS: its counters, a key frame, another bit rate. Requests
//! and answers are JSON; `docs/control.md` lays them out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::pipeline::bitrate::BitrateRequests;
use crate::pipeline::keyframe::KeyFrameRequests;

/// The ways into the pipeline.
#[derive(Clone)]
pub struct PipelineHandles {
    /// The report of this moment.
    pub report: Arc<dyn Fn() -> Value + Send + Sync>,
    pub key_frames: KeyFrameRequests,
    pub bitrate: BitrateRequests,
    /// Nothing is encoded: `--run-mode ingest`.
    pub encodes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Stats,
    KeyFrame,
    Bitrate,
}

impl Action {
    pub const ALL: [Self; 3] = [Self::Stats, Self::KeyFrame, Self::Bitrate];

    /// The endpoint's name, and the last word of its subject.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stats => "stats",
            Self::KeyFrame => "keyframe",
            Self::Bitrate => "bitrate",
        }
    }

    pub fn subject(self, nats_key: &str) -> String {
        format!("cvmmap.{nats_key}.streamer.{}", self.name())
    }

    /// Of one instance among several that stream the same producer.
    pub fn subject_of(self, nats_key: &str, id: &str) -> String {
        format!("cvmmap.{nats_key}.streamer.{id}.{}", self.name())
    }
}

/// An answer, or a refusal with a code in the manner of HTTP.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Done(Value),
    Refused { code: u16, words: String },
}

impl Reply {
    pub fn body(&self) -> Vec<u8> {
        let value = match self {
            Self::Done(value) => value.clone(),
            Self::Refused { code, words } => json!({"ok": false, "code": code, "error": words}),
        };
        serde_json::to_vec(&value).unwrap_or_default()
    }

    fn refused(code: u16, words: impl Into<String>) -> Self {
        Self::Refused {
            code,
            words: words.into(),
        }
    }
}

/// Answers at once, or later: a bit rate is in force when the encoder has taken it.
pub struct Service {
    handles: PipelineHandles,
    /// The report costs some work: it is made at most ten times a second.
    report: Option<(Instant, Value)>,
    waiting: Option<Waiting>,
}

/// A wish that the encode stage has not answered.
struct Waiting {
    wanted: u32,
    deadline: Instant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BitrateRequest {
    bits_per_second: f64,
}

impl Service {
    pub fn new(handles: PipelineHandles) -> Self {
        Self {
            handles,
            report: None,
            waiting: None,
        }
    }

    /// `None`: the answer comes from [`Service::later`].
    pub fn serve(&mut self, action: Action, payload: &[u8], now: Instant) -> Option<Reply> {
        match action {
            Action::Stats => Some(self.stats(now)),
            _ if !self.handles.encodes => Some(Reply::refused(
                409,
                "nothing is encoded: the streamer runs with --run-mode ingest",
            )),
            Action::KeyFrame => {
                self.handles.key_frames.ask();
                Some(Reply::Done(json!({
                    "ok": true,
                    "requests": self.handles.key_frames.asked(),
                })))
            }
            Action::Bitrate => self.bitrate(payload, now),
        }
    }

    /// Whether an answer is owed.
    pub fn owes(&self) -> bool {
        self.waiting.is_some()
    }

    /// The answer that is owed, once it is there or its time is over.
    pub fn later(&mut self, now: Instant) -> Option<Reply> {
        let waiting = self.waiting.as_ref()?;
        let wanted = waiting.wanted;
        let answer = self
            .handles
            .bitrate
            .answered()
            .filter(|answer| answer.wanted == wanted);
        let reply = match answer {
            Some(answer) => match answer.result {
                Ok(encoder) => Reply::Done(json!({
                    "ok": true,
                    "bits_per_second": wanted,
                    "encoder": encoder,
                })),
                Err(words) => Reply::refused(422, words),
            },
            None if now >= waiting.deadline => {
                let words = match self.handles.bitrate.withdraw() {
                    true => "the encode stage did not look within 3 s; nothing changed",
                    false => "the encoder did not answer within 3 s; the rate may still change",
                };
                Reply::refused(504, words)
            }
            None => return None,
        };
        self.waiting = None;
        Some(reply)
    }

    fn stats(&mut self, now: Instant) -> Reply {
        let fresh = self
            .report
            .as_ref()
            .is_some_and(|(made, _)| now < *made + REPORT_EVERY);
        if !fresh {
            self.report = Some((now, (self.handles.report)()));
        }
        let report = self.report.as_ref().map(|(_, report)| report.clone());
        Reply::Done(json!({"ok": true, "stats": report}))
    }

    fn bitrate(&mut self, payload: &[u8], now: Instant) -> Option<Reply> {
        let request: BitrateRequest = match serde_json::from_slice(payload) {
            Ok(request) => request,
            Err(error) => {
                return Some(Reply::refused(
                    400,
                    format!("send {{\"bits_per_second\": NUMBER}}: {error}"),
                ));
            }
        };
        let wanted = request.bits_per_second;
        if !(1e4..=1e9).contains(&wanted) {
            return Some(Reply::refused(
                400,
                format!("bits_per_second {wanted}: use 10000 to 1000000000"),
            ));
        }
        if self.waiting.is_some() {
            return Some(Reply::refused(
                409,
                "another change is under way; ask again",
            ));
        }
        let wanted = wanted as u32;
        self.handles.bitrate.ask(wanted);
        self.waiting = Some(Waiting {
            wanted,
            deadline: now + PATIENCE,
        });
        None
    }
}

const REPORT_EVERY: Duration = Duration::from_millis(100);
/// The encode stage looks at every picture, and twice a second without pictures.
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::bitrate::BitrateAnswer;

    fn service() -> (Service, PipelineHandles) {
        let handles = PipelineHandles {
            report: Arc::new(|| json!({"frames": 7})),
            key_frames: KeyFrameRequests::new(),
            bitrate: BitrateRequests::new(),
            encodes: true,
        };
        (Service::new(handles.clone()), handles)
    }

    #[test]
    fn a_bit_rate_is_answered_with_what_really_happened() {
        let (mut service, handles) = service();
        let now = Instant::now();
        let ask = br#"{"bits_per_second": 2000000}"#;
        assert_eq!(service.serve(Action::Bitrate, ask, now), None);
        assert_eq!(service.later(now), None);
        let busy = service.serve(Action::Bitrate, ask, now);
        assert!(matches!(busy, Some(Reply::Refused { code: 409, .. })));
        assert_eq!(handles.bitrate.take(), Some(2_000_000));
        handles.bitrate.answer(BitrateAnswer {
            wanted: 2_000_000,
            result: Ok("openh264".into()),
        });
        let reply = json!({"ok": true, "bits_per_second": 2_000_000, "encoder": "openh264"});
        assert_eq!(service.later(now), Some(Reply::Done(reply)));

        assert_eq!(service.serve(Action::Bitrate, ask, now), None);
        handles.bitrate.answer(BitrateAnswer {
            wanted: 2_000_000,
            result: Err("constant quality".into()),
        });
        let refused = service.later(now);
        assert!(matches!(refused, Some(Reply::Refused { code: 422, .. })));

        assert_eq!(service.serve(Action::Bitrate, ask, now), None);
        let late = service.later(now + PATIENCE);
        let Some(Reply::Refused { code: 504, words }) = late else {
            panic!("{late:?}");
        };
        assert!(words.ends_with("nothing changed"), "{words}");
        assert_eq!(handles.bitrate.take(), None, "withdrawn");

        assert_eq!(service.serve(Action::Bitrate, ask, now), None);
        assert_eq!(handles.bitrate.take(), Some(2_000_000), "not withdrawn");
        let late = service.later(now + PATIENCE);
        let Some(Reply::Refused { code: 504, words }) = late else {
            panic!("{late:?}");
        };
        assert!(words.ends_with("may still change"), "{words}");
    }

    #[test]
    fn nonsense_is_refused_with_what_to_send() {
        let (mut service, handles) = service();
        for payload in [
            &b""[..],
            b"{}",
            b"2000000",
            b"\xFF",
            br#"{"bits_per_second": "2M"}"#,
            br#"{"bits_per_second": 1}"#,
            br#"{"bits_per_second": 1e300}"#,
            br#"{"bits_per_second": 20000, "x": 1}"#,
        ] {
            let reply = service.serve(Action::Bitrate, payload, Instant::now());
            let Some(Reply::Refused { code: 400, words }) = reply else {
                panic!("{payload:?}: {reply:?}");
            };
            assert!(words.contains("bits_per_second"), "{words}");
        }
        assert_eq!(handles.bitrate.take(), None);
    }

    #[test]
    fn key_frames_are_asked_for_and_stats_told() {
        let (mut service, handles) = service();
        let now = Instant::now();
        service.serve(Action::KeyFrame, b"", now);
        assert!(handles.key_frames.take());
        let stats = service.serve(Action::Stats, b"", now);
        let expected = json!({"ok": true, "stats": {"frames": 7}});
        assert_eq!(stats, Some(Reply::Done(expected)));
        service.handles.encodes = false;
        let refused = service.serve(Action::KeyFrame, b"", now);
        assert!(matches!(refused, Some(Reply::Refused { code: 409, .. })));
    }
}
