//! Who is there: producers that announce themselves through NATS micro (contract section 5.4).

use std::time::Duration;

use serde::Serialize;

use super::client::{Client, ControlError};
use super::micro::Identity;

/// A producer, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Producer {
    pub id: String,
    pub instance: String,
    pub namespace: String,
    pub shm_name: String,
    pub zmq_endpoint: String,
    pub nats_key: String,
    pub backend: String,
    pub build: String,
    /// It serves the retired `control.*` subjects: frames work, `ctl` does not.
    pub retired_control: bool,
}

/// What discovery found, and how much of it cannot be used.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// By instance.
    pub producers: Vec<Producer>,
    /// Services of that name whose description is missing, malformed or incomplete.
    pub bad: Vec<String>,
}

/// Asks around for `limit`, then every service that answered for its description.
///
/// # Errors
///
/// [`ControlError::Lost`]. That nobody is there is an empty list.
pub fn producers(client: &Client, limit: Duration) -> Result<Found, ControlError> {
    let mut found = Found::default();
    let pings = client.gather(&format!("$SRV.PING.{PRODUCER}"), b"", limit)?;
    let mut ids = Vec::new();
    for ping in &pings {
        match serde_json::from_slice::<Identity>(&ping.data) {
            Ok(ping) if ping.name == PRODUCER && is_token(&ping.id) => ids.push(ping.id),
            Ok(ping) => found
                .bad
                .push(format!("{:?} calls itself {:?}", ping.id, ping.name)),
            Err(error) => found
                .bad
                .push(format!("an answer to PING is none: {error}")),
        }
    }
    ids.sort();
    ids.dedup();
    for id in ids {
        let subject = format!("$SRV.INFO.{PRODUCER}.{id}");
        match client.request(&subject, b"", limit) {
            Ok(bytes) => match describe(&bytes) {
                Ok(producer) => found.producers.push(producer),
                Err(reason) => found.bad.push(format!("{id}: {reason}")),
            },
            // It has just gone.
            Err(ControlError::NoResponders { .. }) => {}
            Err(error @ ControlError::Lost(_)) => return Err(error),
            Err(error) => found.bad.push(error.to_string()),
        }
    }
    found.producers.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(found)
}

/// An id becomes part of a subject.
fn is_token(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Four fields of the metadata are required; the others fall back to their derivation.
pub(super) fn describe(bytes: &[u8]) -> Result<Producer, String> {
    let info: Identity = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let metadata = &info.metadata;
    let field = |name: &str| metadata.get(name).cloned().unwrap_or_default();
    let required = |name: &str| match field(name) {
        value if value.is_empty() => Err(format!("its description lacks {name}")),
        value if value.chars().any(char::is_control) => {
            Err(format!("its {name} has control characters"))
        }
        value => Ok(value),
    };
    Ok(Producer {
        instance: required("instance_name")?,
        nats_key: required("nats_target_key").and_then(|key| {
            let legal = super::is_subject_token(&key);
            legal
                .then_some(key)
                .ok_or_else(|| "its nats_target_key is none".to_owned())
        })?,
        shm_name: required("shm_name")?,
        zmq_endpoint: required("zmq_addr")?,
        namespace: Some(field("namespace"))
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "cvmmap".to_owned()),
        backend: field("backend"),
        build: [field("build_tag"), field("build_revision")]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default(),
        retired_control: metadata.contains_key("control_subject_prefix")
            && !metadata.contains_key("producer_subject_prefix"),
        id: info.id,
    })
}

/// The producers' service.
pub const PRODUCER: &str = "cvmmap_producer";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn four_fields_are_required_and_the_rest_falls_back() {
        let whole = json!({
            "name": PRODUCER, "id": "A", "version": "0.1.0",
            "type": "io.nats.micro.v1.info_response",
            "metadata": {
                "instance_name": "cam", "nats_target_key": "cvmmap_cam",
                "shm_name": "cvmmap_cam", "zmq_addr": "ipc:///tmp/cvmmap_cam",
            },
        });
        let read = |value: &serde_json::Value| describe(value.to_string().as_bytes());
        let producer = read(&whole).unwrap();
        assert_eq!(producer.namespace, "cvmmap");
        assert!(!producer.retired_control);
        for name in ["instance_name", "nats_target_key", "shm_name", "zmq_addr"] {
            let mut lacking = whole.clone();
            lacking["metadata"][name] = json!("");
            assert!(read(&lacking).unwrap_err().contains(name));
        }
        let mut odd = whole.clone();
        odd["endpoints"] = json!([{"name": "without a subject"}, 7]);
        assert_eq!(read(&odd).unwrap().instance, "cam", "nobody needs them");
        let mut old = whole.clone();
        old["metadata"]["control_subject_prefix"] = json!("cvmmap.cvmmap_cam.control");
        assert!(read(&old).unwrap().retired_control);
        assert!(describe(b"[]").is_err());
    }
}
