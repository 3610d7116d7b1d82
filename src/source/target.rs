//! What a producer's name stands for (cv-mmap contract section 1): segment, sync socket, NATS key
//! and label. Strings only.

/// A producer, named as `cvmmap://<instance>[@<prefix>][?namespace=<ns>]` or by its plain
/// instance name. A value that exists is legal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    instance: String,
    namespace: String,
    prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("plain cvmmap instance names have no '@', '?' or '/'; a URI starts with cvmmap://")]
    PlainName,
    #[error(
        "{0:?} is no instance name: a letter or digit, then up to 22 of letters, digits, '.', '_', '-'"
    )]
    Instance(String),
    #[error(
        "{0:?} is no namespace: a letter or digit, then up to 31 of letters, digits, '.', '_', '-'"
    )]
    Namespace(String),
    #[error("more than one '@' in front of the query")]
    TwoAts,
    #[error("the prefix {0:?} is no absolute path; write @/path, or leave '@' out")]
    RelativePrefix(String),
    #[error("the prefix {0:?} has an empty, '.' or '..' segment, a '\\' or a NUL")]
    Prefix(String),
    #[error("the query {0:?} is not namespace=NAME")]
    Query(String),
    #[error("unknown query key {0:?}; only namespace is known")]
    QueryKey(String),
    #[error("the socket path has {0} bytes, 107 are possible: use a shorter prefix or namespace")]
    PathTooLong(usize),
}

impl Target {
    /// # Errors
    ///
    /// If `text` breaks a rule of contract section 1.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let target = match text.strip_prefix("cvmmap://") {
            Some(rest) => Self::parse_uri(rest)?,
            None if text.contains(['@', '?', '/']) => return Err(TargetError::PlainName),
            None => Self {
                instance: text.to_owned(),
                namespace: DEFAULT_NAMESPACE.to_owned(),
                prefix: DEFAULT_PREFIX.to_owned(),
            },
        };
        if !is_name(&target.instance, 23) {
            return Err(TargetError::Instance(target.instance));
        }
        if !is_name(&target.namespace, 32) {
            return Err(TargetError::Namespace(target.namespace));
        }
        let path = target.socket_path();
        if path.len() > 107 {
            return Err(TargetError::PathTooLong(path.len()));
        }
        Ok(target)
    }

    fn parse_uri(rest: &str) -> Result<Self, TargetError> {
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        let (instance, prefix) = match authority.split_once('@') {
            Some((_, prefix)) if prefix.contains('@') => return Err(TargetError::TwoAts),
            Some((instance, prefix)) => (instance, checked_prefix(prefix)?),
            None => (authority, DEFAULT_PREFIX),
        };
        let namespace = query.map_or(Ok(DEFAULT_NAMESPACE), namespace_of)?;
        Ok(Self {
            instance: instance.to_owned(),
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    /// The producer's own name, which its sync messages carry as label.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The shared-memory object.
    pub fn shm_name(&self) -> String {
        format!("{}_{}", self.namespace, self.instance)
    }

    /// The frame sync's address.
    pub fn zmq_endpoint(&self) -> String {
        format!("ipc://{}", self.socket_path())
    }

    /// The second part of `cvmmap.<key>.…` subjects.
    pub fn nats_key(&self) -> String {
        nats_key_of(&self.shm_name())
    }

    fn socket_path(&self) -> String {
        format!("{}/{}", self.prefix, self.shm_name())
    }
}

/// The NATS key of a segment that was named itself: without a leading `/`, every `.` as `_`.
pub fn nats_key_of(shm_name: &str) -> String {
    let base = shm_name.strip_prefix('/').unwrap_or(shm_name);
    base.replace('.', "_")
}

fn is_name(text: &str, longest: usize) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= longest
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

fn checked_prefix(prefix: &str) -> Result<&str, TargetError> {
    let Some(inner) = prefix.strip_prefix('/') else {
        return Err(TargetError::RelativePrefix(prefix.to_owned()));
    };
    if inner.is_empty() {
        return Ok(prefix);
    }
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    let bad_segment = inner.split('/').any(|s| matches!(s, "" | "." | ".."));
    if bad_segment || inner.contains(['\\', '\0']) {
        return Err(TargetError::Prefix(prefix.to_owned()));
    }
    Ok(&prefix[..=inner.len()])
}

/// The last `namespace=` of a query that has nothing else.
fn namespace_of(query: &str) -> Result<&str, TargetError> {
    let mut namespace = None;
    for part in query.split('&') {
        match part.split_once('=') {
            Some(("namespace", value)) if !value.is_empty() => namespace = Some(value),
            Some((key, _)) if !matches!(key, "" | "namespace") => {
                return Err(TargetError::QueryKey(key.to_owned()));
            }
            _ => return Err(TargetError::Query(query.to_owned())),
        }
    }
    namespace.ok_or_else(|| TargetError::Query(query.to_owned()))
}

const DEFAULT_NAMESPACE: &str = "cvmmap";
/// The contract's default, absolute.
const DEFAULT_PREFIX: &str = concat!("/", "tmp");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::test_support::{fixtures, json};
    use proptest::prelude::*;

    #[test]
    fn every_target_of_the_fixtures_resolves_or_is_refused_as_there() {
        let Some(folder) = fixtures() else { return };
        for file in [
            "python-client/uri_targets.json",
            "generated/uri_targets_extra.json",
        ] {
            let all = json(&folder.join(file));
            for case in all["cases"].as_array().unwrap() {
                let input = case["input"].as_str().unwrap();
                let target = Target::parse(input).unwrap_or_else(|e| panic!("{input}: {e}"));
                for (field, ours) in [
                    ("instance", target.instance().to_owned()),
                    ("namespace", target.namespace.clone()),
                    ("prefix", target.prefix.clone()),
                    ("base_name", target.shm_name()),
                    ("nats_target_key", target.nats_key()),
                    ("shm_name", target.shm_name()),
                    ("zmq_addr", target.zmq_endpoint()),
                ] {
                    assert_eq!(
                        case[field].as_str(),
                        Some(ours.as_str()),
                        "{input}: {field}"
                    );
                }
            }
            for case in all["invalid_cases"].as_array().unwrap() {
                let input = case["input"].as_str().unwrap();
                let error = Target::parse(input).expect_err(input).to_string();
                if let Some(words) = case["error_contains"].as_str() {
                    assert!(error.contains(words), "{input}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_longest_socket_path_is_107_bytes() {
        // "/ppp…" + "/cvmmap_a"
        let of = |len: usize| Target::parse(&format!("cvmmap://a@/{}", "p".repeat(len)));
        assert_eq!(of(97).unwrap().zmq_endpoint().len(), "ipc://".len() + 107);
        assert_eq!(of(98), Err(TargetError::PathTooLong(108)));
    }

    #[test]
    fn a_segment_that_was_named_itself_gives_its_nats_key() {
        assert_eq!(nats_key_of("/cam.left"), "cam_left");
        assert_eq!(nats_key_of("cam-left"), "cam-left");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_gives_legal_names(text in "(cvmmap://)?[a-c._@?/=&\\\\\\PC]{0,40}(namespace=)?\\PC{0,20}") {
            if let Ok(target) = Target::parse(&text) {
                prop_assert!(target.zmq_endpoint().len() <= "ipc://".len() + 107);
                prop_assert!(!target.shm_name().contains('/'));
                prop_assert!(!target.nats_key().contains('.'));
                prop_assert!(crate::source::contract::Label::new(target.instance()).is_ok());
            }
        }
    }
}
