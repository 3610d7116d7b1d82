//! The client side of an RTMP publish (Adobe RTMP 1.0; Enhanced RTMP v2 for H.265). Bytes only: no
//! sockets, no clocks, no randomness.

pub mod amf0;
pub mod chunk;
#[doc(hidden)]
pub mod fuzz;
pub mod handshake;
pub mod message;
pub mod publish;
pub mod url;

pub use chunk::{ChunkReader, ChunkWriter};
pub use publish::{PublishConfig, PublishSession};
pub use url::{RtmpUrl, UrlError};

/// Why a publish did not come about, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RtmpError {
    /// The server broke the protocol, or wants more memory than it is given.
    #[error("{what}: {detail}")]
    Protocol { what: &'static str, detail: String },
    /// The server said no, in its own words (stream key masked).
    #[error("the server refused {step}: {words}")]
    Refused { step: Step, words: String },
    /// What busy stream names, wrong keys and unknown apps look like on servers that close the
    /// connection without a word (contract section 12).
    #[error(
        "the server closed the connection after `publish` without a word: it refused the stream \
         (key, app), or the stream name is in use"
    )]
    RefusedOrInUse,
    /// A stream that ran was ended by the server, in its own words (stream key masked).
    #[error("the server ended the stream: {words}")]
    Ended { words: String },
    #[error("the server closed the connection during {step}")]
    Closed { step: Step },
    #[error("no answer from the server to {step} within {seconds} s")]
    Silent { step: Step, seconds: u64 },
}

impl RtmpError {
    pub(crate) fn protocol(what: &'static str, detail: impl Into<String>) -> Self {
        Self::Protocol {
            what,
            detail: detail.into(),
        }
    }
}

/// How far a publish has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Handshake,
    Connect,
    CreateStream,
    Publish,
    /// Media may be sent.
    Live,
    /// We have said goodbye.
    Closing,
    /// Nothing more will come.
    Closed,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Handshake => "the handshake",
            Self::Connect => "`connect`",
            Self::CreateStream => "`createStream`",
            Self::Publish => "`publish`",
            Self::Live => "the stream",
            Self::Closing | Self::Closed => "the goodbye",
        })
    }
}
