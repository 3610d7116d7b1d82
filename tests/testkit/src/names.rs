//! What a label stands for: segment, socket and NATS names (contract `cv-mmap.md` section 1).

use thiserror::Error;

/// Room for a label in the sync message.
pub const LABEL_BYTES: usize = 24;
/// An instance name leaves one byte of the label for its NUL.
pub const INSTANCE_BYTES: usize = 23;
const NAMESPACE_BYTES: usize = 32;
/// `sun_path` without its NUL.
const SOCKET_PATH_BYTES: usize = 107;

pub const DEFAULT_NAMESPACE: &str = "cvmmap";
pub const DEFAULT_PREFIX: &str = "/tmp";

/// The names one producer is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// At most 24 bytes; what the sync messages carry.
    pub label: String,
    /// Segment name without the leading slash.
    pub shm_name: String,
    pub zmq_endpoint: String,
    /// `<namespace>_<label>` with every `.` replaced by `_`.
    pub nats_key: String,
}

/// What was asked for; the missing parts are derived from the label.
#[derive(Debug, Clone, Default)]
pub struct NameRequest<'a> {
    pub label: &'a str,
    pub shm_name: Option<&'a str>,
    pub zmq_endpoint: Option<&'a str>,
    pub prefix: Option<&'a str>,
    pub namespace: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("--label exceeds 24 bytes")]
    LabelTooLong,
    #[error("--label is empty or holds a NUL byte")]
    LabelEmpty,
    #[error(
        "--label '{0}' is no instance name ([A-Za-z0-9][A-Za-z0-9._-]*, at most 23 bytes): give both --shm-name and --zmq-endpoint"
    )]
    NotAnInstance(String),
    #[error("--namespace '{0}' is none: [A-Za-z0-9][A-Za-z0-9._-]*, at most 32 bytes")]
    Namespace(String),
    #[error("--prefix '{0}' is none: an absolute path without '\\', '//', '.' and '..'")]
    Prefix(String),
    #[error("the socket path {0} is longer than 107 bytes: choose a shorter --prefix")]
    SocketPath(String),
    #[error("--shm-name '{0}' is none: one path component of at most 255 bytes")]
    ShmName(String),
}

impl NameRequest<'_> {
    /// # Errors
    ///
    /// A name that the contract does not allow.
    pub fn resolve(&self) -> Result<Names, NameError> {
        if self.label.len() > LABEL_BYTES {
            return Err(NameError::LabelTooLong);
        }
        if self.label.is_empty() || self.label.contains('\0') {
            return Err(NameError::LabelEmpty);
        }
        let namespace = self.namespace.unwrap_or(DEFAULT_NAMESPACE);
        if !is_name(namespace, NAMESPACE_BYTES) {
            return Err(NameError::Namespace(namespace.into()));
        }
        let derives = self.shm_name.is_none() || self.zmq_endpoint.is_none();
        if derives && !is_name(self.label, INSTANCE_BYTES) {
            return Err(NameError::NotAnInstance(self.label.into()));
        }
        let base = format!("{namespace}_{}", self.label);
        let shm_name = match self.shm_name {
            Some(name) => checked_shm_name(name)?,
            None => base.clone(),
        };
        let zmq_endpoint = match self.zmq_endpoint {
            Some(endpoint) => endpoint.to_owned(),
            None => endpoint(self.prefix.unwrap_or(DEFAULT_PREFIX), &base)?,
        };
        Ok(Names {
            label: self.label.to_owned(),
            shm_name,
            zmq_endpoint,
            nats_key: base.replace('.', "_"),
        })
    }
}

fn endpoint(prefix: &str, base: &str) -> Result<String, NameError> {
    let bad = || NameError::Prefix(prefix.to_owned());
    let rest = prefix.strip_prefix('/').ok_or_else(bad)?;
    if prefix.contains(['\\', '\0']) || prefix.contains("//") {
        return Err(bad());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.split('/').any(|part| part == "." || part == "..") {
        return Err(bad());
    }
    // A prefix of `/` alone is legal and gives two slashes in the path.
    let path = format!("/{rest}/{base}");
    if path.len() > SOCKET_PATH_BYTES {
        return Err(NameError::SocketPath(path));
    }
    Ok(format!("ipc://{path}"))
}

fn checked_shm_name(name: &str) -> Result<String, NameError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    if bare.is_empty()
        || bare.len() > 255
        || bare.contains(['/', '\0'])
        || bare == "."
        || bare == ".."
    {
        return Err(NameError::ShmName(name.to_owned()));
    }
    Ok(bare.to_owned())
}

fn is_name(name: &str, limit: usize) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= limit
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(label: &str) -> Result<Names, NameError> {
        NameRequest {
            label,
            ..NameRequest::default()
        }
        .resolve()
    }

    #[test]
    fn a_label_gives_all_names_of_contract_section_1() {
        let names = resolve("front.left").expect("an instance name");
        assert_eq!(names.shm_name, "cvmmap_front.left");
        assert_eq!(names.zmq_endpoint, "ipc:///tmp/cvmmap_front.left");
        assert_eq!(names.nats_key, "cvmmap_front_left");
    }

    #[test]
    fn labels_of_23_24_and_25_bytes_are_three_cases() {
        assert!(resolve(&"a".repeat(23)).is_ok());
        let label = "a".repeat(24);
        assert_eq!(
            resolve(&label),
            Err(NameError::NotAnInstance(label.clone()))
        );
        let explicit = NameRequest {
            label: &label,
            shm_name: Some("/seg"),
            zmq_endpoint: Some("ipc:///run/x"),
            ..NameRequest::default()
        };
        assert_eq!(explicit.resolve().expect("both are given").shm_name, "seg");
        let half = NameRequest {
            zmq_endpoint: None,
            ..explicit
        };
        assert!(half.resolve().is_err());
        let error = resolve(&"a".repeat(25)).expect_err("one byte too many");
        assert_eq!(error.to_string(), "--label exceeds 24 bytes");
    }

    #[test]
    fn prefixes_follow_the_contract() {
        for (prefix, endpoint) in [
            ("/", Some("ipc:////cvmmap_a")),
            ("/run/user/", Some("ipc:///run/user/cvmmap_a")),
            ("run", None),
            ("/a//b", None),
            ("/a/../b", None),
            ("/a/.", None),
        ] {
            let request = NameRequest {
                label: "a",
                prefix: Some(prefix),
                ..NameRequest::default()
            };
            assert_eq!(
                request.resolve().ok().map(|n| n.zmq_endpoint).as_deref(),
                endpoint,
                "{prefix}"
            );
        }
        let long = format!("/{}", "x".repeat(100));
        let request = NameRequest {
            label: "a",
            prefix: Some(&long),
            ..NameRequest::default()
        };
        assert!(matches!(request.resolve(), Err(NameError::SocketPath(_))));
    }
}
