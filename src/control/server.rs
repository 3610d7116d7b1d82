//! Which NATS server to use, and what to say to it. No secret of it ever reaches a log.

use std::fmt;
use std::path::PathBuf;

/// One or more servers (`--nats-url`, separated by commas) and the credentials for all of them.
///
/// `Display` and `Debug` show no credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// `nats://host[:port]` or `tls://host[:port]`, without credentials.
    addresses: Vec<String>,
    login: Login,
    /// A file with a user JWT and its seed.
    pub credentials: Option<PathBuf>,
    /// Certificate authorities (PEM) instead of the system's.
    pub authorities: Option<PathBuf>,
}

/// What stood in front of the `@` of the URL.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    None,
    Token(String),
    User { name: String, password: String },
}

/// Never repeats the URL: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    #[error("give a server as nats://host:port or tls://host:port")]
    Empty,
    #[error("a NATS server's URL starts with nats:// or tls://")]
    Scheme,
    #[error("a server is HOST or HOST:PORT, an IPv6 address in brackets")]
    Host,
    #[error("the user name or password has a % that is not followed by two hexadecimal digits")]
    Escape,
    #[error("two servers of the list have different credentials; give them once")]
    TwoLogins,
}

impl ServerConfig {
    /// # Errors
    ///
    /// If one of the servers is no URL of a NATS server.
    pub fn parse(urls: &str) -> Result<Self, ServerError> {
        let mut config = Self {
            addresses: Vec::new(),
            login: Login::None,
            credentials: None,
            authorities: None,
        };
        for url in urls.split(',').map(str::trim) {
            let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
            if scheme != "nats" && scheme != "tls" {
                return Err(ServerError::Scheme);
            }
            let (login, host) = match rest.rsplit_once('@') {
                Some((login, host)) => (Some(login), host),
                None => (None, rest),
            };
            let host = host.strip_suffix('/').unwrap_or(host);
            check_host(host)?;
            if let Some(login) = login {
                let login = Login::parse(login)?;
                if config.login != Login::None && config.login != login {
                    return Err(ServerError::TwoLogins);
                }
                config.login = login;
            }
            config.addresses.push(format!("{scheme}://{host}"));
        }
        Ok(config)
    }

    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Whether a server may be spoken to only over TLS. One `tls://` makes it so for all, also for
    /// those that a server announces later: they come without a scheme.
    pub fn requires_tls(&self) -> bool {
        self.addresses.iter().any(|url| url.starts_with("tls://"))
    }
}

impl Login {
    fn parse(text: &str) -> Result<Self, ServerError> {
        match text.split_once(':') {
            Some((name, password)) => Ok(Self::User {
                name: unescape(name)?,
                password: unescape(password)?,
            }),
            None if text.is_empty() => Ok(Self::None),
            None => unescape(text).map(Self::Token),
        }
    }
}

impl fmt::Display for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addresses.join(","))
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("addresses", &self.addresses)
            .field("credentials", &self.credentials)
            .field("authorities", &self.authorities)
            .finish_non_exhaustive()
    }
}

fn check_host(host: &str) -> Result<(), ServerError> {
    if host.is_empty() {
        return Err(ServerError::Empty);
    }
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(ServerError::Host)?;
            let port = match port.strip_prefix(':') {
                None if port.is_empty() => None,
                Some(port) => Some(port),
                None => return Err(ServerError::Host),
            };
            (address, port)
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if name.is_empty() || !name.chars().all(legal) || !port.is_none_or(is_port) {
        return Err(ServerError::Host);
    }
    Ok(())
}

/// Percent-encoding (RFC 3986 section 2.1).
fn unescape(text: &str) -> Result<String, ServerError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |at: usize| {
            rest.get(at)
                .and_then(|byte| char::from(*byte).to_digit(16))
                .ok_or(ServerError::Escape)
        };
        bytes.push((digit(0)? << 4 | digit(1)?) as u8);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| ServerError::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn credentials_are_taken_out_of_the_url_and_never_shown() {
        let config = ServerConfig::parse("tls://me:s%40cret@host:4443").unwrap();
        assert_eq!(config.addresses(), ["tls://host:4443"]);
        let login = Login::User {
            name: "me".into(),
            password: "s@cret".into(),
        };
        assert!(*config.login() == login);
        assert!(config.requires_tls());
        let shown = format!("{config} {config:?}");
        assert!(!shown.contains("cret") && !shown.contains("me:"), "{shown}");
        let config = ServerConfig::parse("nats://t0ken@host").unwrap();
        assert!(*config.login() == Login::Token("t0ken".into()));
        assert!(!format!("{config:?}").contains("t0ken"));
    }

    #[test]
    fn servers_come_alone_or_as_a_list() {
        for (text, addresses) in [
            ("localhost", &["nats://localhost"][..]),
            ("nats://[::1]:4222", &["nats://[::1]:4222"]),
            ("a:1, tls://b/", &["nats://a:1", "tls://b"]),
        ] {
            assert_eq!(ServerConfig::parse(text).unwrap().addresses(), addresses);
        }
        for (text, error) in [
            ("", ServerError::Empty),
            ("nats://", ServerError::Empty),
            ("http://a", ServerError::Scheme),
            ("nats://a:b:c", ServerError::Host),
            ("nats://a:0", ServerError::Host),
            ("nats://a b", ServerError::Host),
            ("nats://[::1", ServerError::Host),
            ("nats://u:%4x@a", ServerError::Escape),
            ("nats://u:p@a,nats://v:p@b", ServerError::TwoLogins),
        ] {
            assert_eq!(ServerConfig::parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_server_or_refused(text in "\\PC{0,60}") {
            let _ = ServerConfig::parse(&text);
            let _ = ServerConfig::parse(&format!("nats://{text}@host"));
        }
    }
}
