//! One function for each kind of JSON that comes over NATS: whatever the bytes are, it returns, and what
//! it took has a meaning. `tests/fuzz_stable.rs` and fuzzers drive them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pipeline::bitrate::BitrateRequests;
use crate::pipeline::keyframe::KeyFrameRequests;

use super::micro::Identity;
use super::service::{Action, PipelineHandles, Reply, Service};
use super::{discover, is_subject_token};

/// What a service says of itself: the answer to PING, and that to INFO.
///
/// # Panics
///
/// If a producer was taken whose names cannot be used.
pub fn description(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Identity>(bytes);
    if let Ok(producer) = discover::describe(bytes) {
        assert!(is_subject_token(&producer.nats_key));
        for name in [
            &producer.instance,
            &producer.shm_name,
            &producer.zmq_endpoint,
        ] {
            assert!(!name.is_empty() && !name.chars().any(char::is_control));
        }
    }
}

/// What is asked of a running stream.
///
/// # Panics
///
/// If an impossible bit rate was passed on, or an answer is no JSON.
pub fn request(bytes: &[u8]) {
    let bitrate = BitrateRequests::default();
    let mut service = Service::new(PipelineHandles {
        report: Arc::new(|| serde_json::Value::Null),
        key_frames: KeyFrameRequests::default(),
        bitrate: bitrate.clone(),
        encodes: true,
    });
    let now = Instant::now();
    for action in Action::ALL {
        let reply = service.serve(action, bytes, now);
        // Nobody encodes here: what is owed is a refusal, in time.
        let late = now + Duration::from_secs(60);
        let wanted = bitrate.take();
        assert!(wanted.is_none_or(|rate| (10_000..=1_000_000_000).contains(&rate)));
        let reply = reply.or_else(|| service.later(late)).expect("an answer");
        assert!(action == Action::Bitrate || matches!(reply, Reply::Done(_)));
        assert!(serde_json::from_slice::<serde_json::Value>(&reply.body()).is_ok());
    }
}
