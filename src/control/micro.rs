//! The NATS micro protocol: how services announce themselves on `$SRV.>` (contract section 5.4;
//! NATS architecture decision record 32). JSON in both directions; no connection here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a service of ours is called, and its version.
pub const SERVICE: &str = "cvmmap_streamer";
pub const VERSION: &str = "0.1.0";
/// The queue group that the protocol prescribes for endpoints.
pub const QUEUE_GROUP: &str = "q";

/// What anybody may ask of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    pub const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }

    /// The three subjects on which one instance hears it.
    pub fn subjects(self, service: &str, id: &str) -> [String; 3] {
        let word = self.word();
        [
            format!("$SRV.{word}"),
            format!("$SRV.{word}.{service}"),
            format!("$SRV.{word}.{service}.{id}"),
        ]
    }
}

/// A service's answer to PING, and what is read of its answer to INFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub name: String,
    pub id: String,
    pub version: String,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// One endpoint of a service, with what STATS tells of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Endpoint {
    pub name: &'static str,
    pub subject: String,
    pub queue_group: &'static str,
    pub num_requests: u64,
    pub num_errors: u64,
    pub last_error: String,
    /// Nanoseconds, of all requests.
    pub processing_time: u64,
    pub average_processing_time: u64,
}

impl Endpoint {
    pub fn new(name: &'static str, subject: String) -> Self {
        Self {
            name,
            subject,
            queue_group: QUEUE_GROUP,
            ..Self::default()
        }
    }

    pub fn count(&mut self, nanos: u64, error: Option<&str>) {
        self.num_requests += 1;
        self.processing_time = self.processing_time.saturating_add(nanos);
        self.average_processing_time = self.processing_time / self.num_requests;
        if let Some(error) = error {
            self.num_errors += 1;
            error.clone_into(&mut self.last_error);
        }
    }
}

/// The answer to a verb.
pub fn answer(verb: Verb, identity: &Identity, started: &str, endpoints: &[Endpoint]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Answer<'a> {
        #[serde(flatten)]
        identity: &'a Identity,
        #[serde(rename = "type")]
        kind: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        started: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoints: Option<serde_json::Value>,
    }
    let plain = || {
        let of = |endpoint: &Endpoint| {
            serde_json::json!({
                "name": endpoint.name,
                "subject": endpoint.subject,
                "queue_group": endpoint.queue_group,
                "metadata": {},
            })
        };
        serde_json::Value::Array(endpoints.iter().map(of).collect())
    };
    let answer = Answer {
        identity,
        kind: match verb {
            Verb::Ping => "io.nats.micro.v1.ping_response",
            Verb::Info => "io.nats.micro.v1.info_response",
            Verb::Stats => "io.nats.micro.v1.stats_response",
        },
        description: (verb == Verb::Info).then_some(DESCRIPTION),
        started: (verb == Verb::Stats).then_some(started),
        endpoints: match verb {
            Verb::Ping => None,
            Verb::Info => Some(plain()),
            Verb::Stats => serde_json::to_value(endpoints).ok(),
        },
    };
    serde_json::to_vec(&answer).unwrap_or_default()
}

const DESCRIPTION: &str = "Camera frames from shared memory to RTP and RTMP";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_fields_that_the_protocol_names() {
        let identity = Identity {
            name: SERVICE.to_owned(),
            id: "ID".to_owned(),
            version: VERSION.to_owned(),
            metadata: BTreeMap::new(),
        };
        let mut endpoint = Endpoint::new("stats", "cvmmap.k.streamer.stats".to_owned());
        endpoint.count(10, None);
        endpoint.count(30, Some("no"));
        let json = |verb| -> serde_json::Value {
            let bytes = answer(verb, &identity, "2026-01-01T00:00:00Z", &[endpoint.clone()]);
            serde_json::from_slice(&bytes).unwrap()
        };
        assert_eq!(
            json(Verb::Ping),
            serde_json::json!({
                "type": "io.nats.micro.v1.ping_response",
                "name": "cvmmap_streamer", "id": "ID", "version": "0.1.0", "metadata": {}
            })
        );
        let info = json(Verb::Info);
        assert_eq!(info["endpoints"][0]["subject"], "cvmmap.k.streamer.stats");
        assert_eq!(info["endpoints"][0]["queue_group"], "q");
        let stats = json(Verb::Stats);
        assert_eq!(stats["started"], "2026-01-01T00:00:00Z");
        assert_eq!(stats["endpoints"][0]["num_requests"], 2);
        assert_eq!(stats["endpoints"][0]["average_processing_time"], 20);
        assert_eq!(stats["endpoints"][0]["last_error"], "no");
    }

    #[test]
    fn an_answer_that_was_captured_from_a_producer_is_read() {
        // wire_samples.json, micro_ping_response_live
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/control/wire_samples.json"
        );
        let samples: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let ping: Identity =
            serde_json::from_value(samples["micro_ping_response_live"].clone()).unwrap();
        assert_eq!(ping.name, "cvmmap_producer");
        assert_eq!(ping.id, "6PCA446Y0ZLDXX3GRNMKB6");
    }
}
