//! The server side of one publish: handshake, commands, control messages (RTMP 1.0 sections 5 and 7; contract
//! `rtp-rtmp.md` sections 9 to 12). Bytes in, bytes and events out.

use thiserror::Error;

use super::amf0::{self, Amf0Error, Value};
use super::chunk::{self, ChunkError, ChunkReader, Message, Oddity};
use super::commands::on_stream;
use super::handshake::{BLOCK_BYTES, Form, Handshake, HandshakeError, Step};

/// What the server does beside what every server does.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// What the client is told to acknowledge.
    pub window: u32,
    pub refusal: Option<Refusal>,
    /// Answers `publish` with its transaction id in `onStatus`, as ZLMediaKit does.
    pub echo_transaction: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// `onStatus` of level error, or `_error` to `connect` where the code says NetConnection.
    Code(String),
    /// The connection is closed where Publish.Start would come.
    Silent,
}

/// What came in.
#[derive(Debug)]
pub enum Event<'a> {
    /// `publish` was answered with Publish.Start.
    Published,
    /// Refused as told; nothing more may come.
    Refused {
        close: bool,
    },
    Metadata(&'a Value),
    Video {
        timestamp: u32,
        body: &'a [u8],
    },
    Audio,
    /// `deleteStream`.
    Unpublished,
    Warning(String),
    Violation(String),
}

/// What breaks a session for good.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SessionError {
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("chunk stream: {0}")]
    Chunk(#[from] ChunkError),
    #[error("message of type {kind}: {error}")]
    Amf { kind: u8, error: Amf0Error },
    #[error("'{command}' before '{needed}'")]
    TooEarly {
        command: String,
        needed: &'static str,
    },
    #[error("{what} before NetStream.Publish.Start, or after the publish's end")]
    MediaOutside { what: &'static str },
    #[error("'{command}' without {what}")]
    Incomplete {
        command: &'static str,
        what: &'static str,
    },
    #[error("{what} on message stream {found}; createStream gave {wanted}")]
    MessageStream {
        what: String,
        found: u32,
        wanted: u32,
    },
    #[error("a PingResponse of {found}, and no such PingRequest")]
    Ping { found: u32 },
    #[error("publish type '{0}' instead of 'live'")]
    PublishType(String),
}

/// What is known about the client.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub handshake: Option<Form>,
    pub app: Option<String>,
    pub tc_url: Option<String>,
    pub flash_version: Option<String>,
    pub stream_name: Option<String>,
    /// Enhanced-RTMP properties of `connect`, by name.
    pub capabilities: Vec<String>,
    pub commands: Vec<String>,
    pub acknowledgements: u64,
    /// The total that the client acknowledged last.
    pub acknowledged: u32,
    pub pings: u64,
    pub pongs: u64,
    pub client_window: Option<u32>,
}

pub(super) const STREAM: u32 = 1;
pub(super) const CHUNK_SIZE: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Handshake,
    Fresh,
    Connected,
    Created,
    Publishing,
    Refused,
    Unpublished,
    Closed,
}

#[derive(Debug)]
pub struct Session {
    pub(super) behaviour: Behaviour,
    pub(super) phase: Phase,
    handshake: Handshake,
    early: Vec<u8>,
    reader: ChunkReader,
    pub(super) out_chunk_size: u32,
    output: Vec<u8>,
    pub(super) facts: Facts,
    received: u64,
    acknowledged: u64,
    open_pings: Vec<u32>,
}

pub(super) type Sink<'s> = &'s mut dyn FnMut(Event<'_>);

impl Session {
    /// `random` fills S1.
    pub fn new(behaviour: Behaviour, random: Box<[u8; BLOCK_BYTES]>) -> Self {
        Session {
            behaviour,
            phase: Phase::Handshake,
            handshake: Handshake::new(random),
            early: Vec::new(),
            reader: ChunkReader::default(),
            out_chunk_size: 128,
            output: Vec::new(),
            facts: Facts::default(),
            received: 0,
            acknowledged: 0,
            open_pings: Vec::new(),
        }
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn is_publishing(&self) -> bool {
        self.phase == Phase::Publishing
    }

    /// Whether the client has begun to say goodbye.
    pub fn is_unpublished(&self) -> bool {
        self.phase >= Phase::Unpublished
    }

    /// The chunk size that the client has announced.
    pub fn chunk_size(&self) -> u32 {
        self.reader.chunk_size()
    }

    /// What is to be sent.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Asks the client for a sign of life; `value` comes back in its answer.
    pub fn ping(&mut self, value: u32) {
        if self.phase < Phase::Connected {
            return;
        }
        self.facts.pings += 1;
        self.open_pings.push(value);
        let mut body = vec![0, 6];
        body.extend(value.to_be_bytes());
        self.control(4, body);
    }

    /// Takes bytes from the client.
    ///
    /// # Errors
    ///
    /// If the client breaks the protocol so that nothing after it can be trusted.
    pub fn input(&mut self, bytes: &[u8], sink: Sink) -> Result<(), SessionError> {
        if self.phase != Phase::Handshake {
            self.received += bytes.len() as u64;
            self.reader.push(bytes);
            return self.messages(sink);
        }
        self.early.extend_from_slice(bytes);
        loop {
            match self.handshake.advance(&self.early)? {
                Step::Wait => return Ok(()),
                Step::Reply(taken, reply) => {
                    self.early.drain(..taken);
                    self.output.extend(reply);
                    self.facts.handshake = self.handshake.form();
                }
                Step::Done(taken) => {
                    let rest = self.early.split_off(taken);
                    self.early = Vec::new();
                    self.phase = Phase::Fresh;
                    return self.input(&rest, sink);
                }
            }
        }
    }

    fn messages(&mut self, sink: Sink) -> Result<(), SessionError> {
        while let Some(message) = self.reader.next_message()? {
            self.message(&message, sink)?;
        }
        for oddity in self.reader.take_oddities() {
            let Oddity::MissingExtendedTimestamp { chunk_stream } = oddity;
            sink(Event::Violation(format!(
                "chunk stream {chunk_stream}: a continuation without its extended timestamp"
            )));
        }
        // What every server does: the client may wait for it (section 5.4.3).
        let window = u64::from(self.facts.client_window.unwrap_or(2_500_000));
        if self.received - self.acknowledged >= window.max(1) {
            self.acknowledged = self.received;
            let total = (self.received as u32).to_be_bytes().to_vec();
            self.control(3, total);
        }
        Ok(())
    }

    fn message(&mut self, message: &Message, sink: Sink) -> Result<(), SessionError> {
        match message.kind {
            1 | 2 => Ok(()),
            3 => {
                self.facts.acknowledgements += 1;
                self.facts.acknowledged = word(&message.body, 0);
                Ok(())
            }
            4 => self.user_control(&message.body, sink),
            5 => {
                self.facts.client_window = Some(word(&message.body, 0));
                Ok(())
            }
            6 => Ok(()),
            8 => {
                self.media(message, "audio")?;
                sink(Event::Audio);
                Ok(())
            }
            9 => {
                self.media(message, "video")?;
                sink(Event::Video {
                    timestamp: message.timestamp,
                    body: &message.body,
                });
                Ok(())
            }
            18 | 15 => self.data(message, sink),
            20 | 17 => self.command(message, sink),
            other => {
                sink(Event::Warning(format!(
                    "a message of type {other}, which no publisher needs"
                )));
                Ok(())
            }
        }
    }

    pub(super) fn media(&self, message: &Message, what: &'static str) -> Result<(), SessionError> {
        if self.phase != Phase::Publishing {
            return Err(SessionError::MediaOutside { what });
        }
        on_stream(what, message.stream)
    }

    fn user_control(&mut self, body: &[u8], sink: Sink) -> Result<(), SessionError> {
        let event = u16::from_be_bytes([body[0], body[1]]);
        match event {
            7 => {
                let found = word(body, 2);
                let at = self.open_pings.iter().position(|&value| value == found);
                self.open_pings
                    .remove(at.ok_or(SessionError::Ping { found })?);
                self.facts.pongs += 1;
            }
            6 => {
                let mut reply = vec![0, 7];
                reply.extend(&body[2..6]);
                self.control(4, reply);
            }
            // SetBufferLength, which players and ffmpeg send.
            3 => {}
            other => sink(Event::Warning(format!(
                "user control event {other} from a publisher"
            ))),
        }
        Ok(())
    }

    pub(super) fn close(&mut self, sink: Sink) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            sink(Event::Unpublished);
        }
    }

    pub(super) fn reply(&mut self, stream: u32, values: &[Value]) {
        let message = Message {
            chunk_stream: 3,
            timestamp: 0,
            kind: 20,
            stream,
            body: amf0::write_all(values),
        };
        chunk::write(&message, self.out_chunk_size, &mut self.output);
    }

    pub(super) fn control(&mut self, kind: u8, body: Vec<u8>) {
        let message = Message {
            chunk_stream: 2,
            timestamp: 0,
            kind,
            stream: 0,
            body,
        };
        chunk::write(&message, self.out_chunk_size, &mut self.output);
    }
}

/// Lengths of control messages are the chunk reader's to check.
fn word(body: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
