//! Where to publish: `rtmp://host[:port]/app[/instance]/key[?query]`, and never a word of key or
//! query in a log.

use std::fmt;

/// A checked publishing address. `Display` and `Debug` mask the stream key and the query behind
/// it: together they are a password.
#[derive(Clone, PartialEq, Eq)]
pub struct RtmpUrl {
    pub tls: bool,
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
    pub app: String,
    /// The stream name with its query, as it goes into `publish`. Nothing is percent-decoded.
    key: String,
}

/// Never contains the address itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("an RTMP address starts with rtmp:// or rtmps://")]
    Scheme,
    #[error(
        "an RTMP address holds no user:password@ in front of the host; most servers take them \
         behind the stream key, as ?user=...&pass=..."
    )]
    UserInfo,
    #[error("an RTMP address needs a host, IPv6 addresses in brackets")]
    Host,
    #[error("an RTMP address has a port from 1 to 65535")]
    Port,
    #[error("an RTMP address names an app and a stream: rtmp://host[:port]/app/stream[?query]")]
    AppAndKey,
    #[error("an RTMP address holds no spaces or control characters and at most {LONGEST} bytes")]
    Characters,
}

impl RtmpUrl {
    /// The key exactly as it goes to the server. A secret.
    pub fn secret_key(&self) -> &str {
        &self.key
    }

    /// `tcUrl` of `connect`: all but the stream.
    pub fn tc_url(&self) -> String {
        let scheme = self.scheme();
        let host = self.bracketed_host();
        if self.port == self.default_port() {
            format!("{scheme}://{host}/{}", self.app)
        } else {
            format!("{scheme}://{host}:{}/{}", self.port, self.app)
        }
    }

    /// The same stream at the place that a server's reconnect request names: an absolute `tcUrl`,
    /// or one relative to ours (Enhanced RTMP v2, "Reconnect Request"). An encrypted connection
    /// does not become a plain one.
    ///
    /// # Errors
    ///
    /// If that is no RTMP address, or gives up encryption.
    pub fn redirected(&self, tc_url: &str) -> Result<Self, UrlError> {
        let absolute = if tc_url.contains("://") {
            tc_url.to_owned()
        } else if let Some(authority) = tc_url.strip_prefix("//") {
            format!("{}://{authority}", self.scheme())
        } else {
            let host = self.bracketed_host();
            let app = tc_url.trim_start_matches('/');
            format!("{}://{host}:{}/{app}", self.scheme(), self.port)
        };
        let mut url: Self = format!("{}/-", absolute.trim_end_matches('/')).parse()?;
        if self.tls && !url.tls {
            return Err(UrlError::Scheme);
        }
        url.key.clone_from(&self.key);
        Ok(url)
    }

    /// `text` from the server, fit for a log: key and query masked, nothing unprintable, not
    /// endless.
    pub fn clean(&self, text: &str) -> String {
        let mut text = text.replace(&self.key, MASK);
        let (name, query) = self.key.split_once('?').unwrap_or((&self.key, ""));
        // The whole key first, then its parts, the longest first. Very short ones would only
        // punch holes into other words.
        let mut parts = vec![name, query];
        for pair in query.split('&') {
            parts.push(pair);
            parts.extend(pair.split_once('=').map(|(_, value)| value));
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        for part in parts.into_iter().filter(|part| part.len() >= 4) {
            text = text.replace(part, MASK);
        }
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(LONGEST_WORDS)
            .collect()
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "rtmps" } else { "rtmp" }
    }

    fn default_port(&self) -> u16 {
        if self.tls { 443 } else { 1935 }
    }

    fn bracketed_host(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        }
    }
}

impl std::str::FromStr for RtmpUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "rtmp" => false,
            "rtmps" => true,
            _ => return Err(UrlError::Scheme),
        };
        if text.len() > LONGEST || text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(UrlError::Characters);
        }
        let (path_and_host, query) = match rest.split_once('?') {
            Some((before, query)) => (before, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = path_and_host.split_once('/').unwrap_or((path_and_host, ""));
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let (host, port) = split_port(authority)?;
        let (app, name) = path.rsplit_once('/').ok_or(UrlError::AppAndKey)?;
        let app = app.trim_matches('/');
        if app.is_empty() || name.is_empty() {
            return Err(UrlError::AppAndKey);
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: port.unwrap_or(if tls { 443 } else { 1935 }),
            app: app.to_owned(),
            key: match query {
                Some(query) => format!("{name}?{query}"),
                None => name.to_owned(),
            },
        })
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), UrlError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(UrlError::Host)?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| UrlError::Host)?;
        match port.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if port.is_empty() => (host, None),
            None => return Err(UrlError::Port),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let host_is_plain = host
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':') || !c.is_ascii());
    if host.is_empty() || !host_is_plain {
        return Err(UrlError::Host);
    }
    let port = match port {
        None => None,
        Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
            let port: u16 = text.parse().map_err(|_| UrlError::Port)?;
            Some(port)
                .filter(|port| *port != 0)
                .ok_or(UrlError::Port)?
                .into()
        }
        Some(_) => return Err(UrlError::Port),
    };
    Ok((host, port))
}

impl fmt::Display for RtmpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{MASK}", self.tc_url())
    }
}

impl fmt::Debug for RtmpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RtmpUrl({self})")
    }
}

const MASK: &str = "***";
/// Of a whole address.
const LONGEST: usize = 4096;
/// Characters of a server's words that are worth repeating.
const LONGEST_WORDS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<RtmpUrl, UrlError> {
        text.parse()
    }

    #[test]
    fn addresses_are_split_at_the_last_segment_and_keep_their_query() {
        // address, tls, host, port, app, key, tcUrl
        let rows = [
            (
                "rtmp://h/live/k",
                false,
                "h",
                1935,
                "live",
                "k",
                "rtmp://h/live",
            ),
            (
                "rtmp://h:1936/live/k",
                false,
                "h",
                1936,
                "live",
                "k",
                "rtmp://h:1936/live",
            ),
            (
                "RTMP://h/a/b/k",
                false,
                "h",
                1935,
                "a/b",
                "k",
                "rtmp://h/a/b",
            ),
            (
                "rtmp://[2001:db8::1]:1935/live/k?user=a&pass=b/c",
                false,
                "2001:db8::1",
                1935,
                "live",
                "k?user=a&pass=b/c",
                "rtmp://[2001:db8::1]/live",
            ),
            (
                "rtmps://a.b-c.example/x/k%20?t=%2F",
                true,
                "a.b-c.example",
                443,
                "x",
                "k%20?t=%2F",
                "rtmps://a.b-c.example/x",
            ),
        ];
        for (text, tls, host, port, app, key, tc_url) in rows {
            let url = parse(text).unwrap();
            assert_eq!(
                (url.tls, url.host.as_str(), url.port),
                (tls, host, port),
                "{text}"
            );
            assert_eq!((url.app.as_str(), url.secret_key()), (app, key), "{text}");
            assert_eq!(url.tc_url(), tc_url);
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_repeating_the_address() {
        let rows = [
            ("http://h/live/k", UrlError::Scheme),
            ("h/live/k", UrlError::Scheme),
            ("rtmp://user:secret@h/live/k", UrlError::UserInfo),
            ("rtmp:///live/k", UrlError::Host),
            ("rtmp://::1/live/k", UrlError::Host),
            ("rtmp://[::1/live/k", UrlError::Host),
            ("rtmp://h:0/live/k", UrlError::Port),
            ("rtmp://h:70000/live/k", UrlError::Port),
            ("rtmp://h:/live/k", UrlError::Port),
            ("rtmp://h:+1/live/k", UrlError::Port),
            ("rtmp://h", UrlError::AppAndKey),
            ("rtmp://h/live", UrlError::AppAndKey),
            ("rtmp://h/live/", UrlError::AppAndKey),
            ("rtmp://h//k", UrlError::AppAndKey),
            ("rtmp://h/live/a b", UrlError::Characters),
        ];
        for (text, expected) in rows {
            let error = parse(text).unwrap_err();
            assert!(!error.to_string().contains("secret"));
            // A colon right after rtmp:// reads as an empty host or as a bad port; both say so.
            if text != "rtmp://h:/live/k" {
                assert_eq!(error, expected, "{text}");
            }
        }
    }

    #[test]
    fn the_key_is_masked_wherever_it_could_be_shown() {
        let url = parse("rtmp://h/live/sekret?token=abcdef").unwrap();
        assert_eq!(url.to_string(), "rtmp://h/live/***");
        assert_eq!(format!("{url:?}"), "RtmpUrl(rtmp://h/live/***)");
        let words = url.clean("stream sekret?token=abcdef (sekret, abcdef)\r\nis busy");
        assert_eq!(words, "stream *** (***, ***)  is busy");
        assert_eq!(url.clean(&"x".repeat(9999)).len(), 300);
    }

    #[test]
    fn a_redirect_keeps_the_key_and_never_drops_encryption() {
        let url = parse("rtmp://h:1936/live/k?t=1").unwrap();
        let there = |tc_url| {
            url.redirected(tc_url)
                .map(|url| (url.tc_url(), url.secret_key().to_owned()))
        };
        let key = || "k?t=1".to_owned();
        assert_eq!(
            there("rtmp://other/app2"),
            Ok(("rtmp://other/app2".into(), key()))
        );
        assert_eq!(
            there("rtmps://other/app2/"),
            Ok(("rtmps://other/app2".into(), key()))
        );
        assert_eq!(there("/app3"), Ok(("rtmp://h:1936/app3".into(), key())));
        assert_eq!(
            there("//third:1/app3"),
            Ok(("rtmp://third:1/app3".into(), key()))
        );
        assert!(there("http://other/app2").is_err());
        let secure = parse("rtmps://h/live/k").unwrap();
        assert_eq!(secure.redirected("rtmp://h/live"), Err(UrlError::Scheme));
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in ".{0,80}") {
            let _ = parse(&text);
            let _ = parse(&format!("rtmp://{text}"));
        }

        #[test]
        fn no_shown_form_holds_the_key(name in "[A-Za-z0-9]{8,20}", query in "[a-z]{1,5}=[A-Z0-9]{8,20}") {
            let url = parse(&format!("rtmps://h.example:8443/a/b/{name}?{query}")).unwrap();
            let shown = format!("{url} {url:?} {}", url.clean(&format!("no {name} and {query}")));
            prop_assert!(!shown.contains(&name) && !shown.contains(&query));
        }
    }
}
