//! The server side of one publish: handshake, commands, control messages (RTMP 1.0 sections 5 and 7; contract
//! `rtp-rtmp.md` sections 9 to 12). Bytes in, bytes and events out.

use thiserror::Error;

use super::amf0::{self, Amf0Error, Value};
use super::chunk::{self, ChunkError, ChunkReader, Message, Oddity};
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

const STREAM: u32 = 1;
const CHUNK_SIZE: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
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
    behaviour: Behaviour,
    phase: Phase,
    handshake: Handshake,
    early: Vec<u8>,
    reader: ChunkReader,
    out_chunk_size: u32,
    output: Vec<u8>,
    facts: Facts,
    received: u64,
    acknowledged: u64,
    open_pings: Vec<u32>,
}

type Sink<'s> = &'s mut dyn FnMut(Event<'_>);

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

    fn media(&self, message: &Message, what: &'static str) -> Result<(), SessionError> {
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

    fn data(&mut self, message: &Message, sink: Sink) -> Result<(), SessionError> {
        let values = values_of(message)?;
        let mut values = &values[..];
        if values.first().and_then(Value::as_text) == Some("@setDataFrame") {
            values = &values[1..];
        } else {
            sink(Event::Warning(
                "a data message without @setDataFrame".into(),
            ));
        }
        if values.first().and_then(Value::as_text) != Some("onMetaData") {
            return Ok(());
        }
        self.media(message, "metadata")?;
        match values.get(1) {
            Some(metadata @ (Value::EcmaArray(_) | Value::Object(_))) => {
                sink(Event::Metadata(metadata));
                Ok(())
            }
            _ => Err(SessionError::Incomplete {
                command: "onMetaData",
                what: "its values",
            }),
        }
    }

    fn command(&mut self, message: &Message, sink: Sink) -> Result<(), SessionError> {
        let values = values_of(message)?;
        let name = values
            .first()
            .and_then(Value::as_text)
            .unwrap_or_default()
            .to_owned();
        let transaction = values.get(1).and_then(Value::as_number).unwrap_or_default();
        if self.facts.commands.len() < 100 {
            self.facts.commands.push(name.clone());
        }
        let needs = |phase: Phase, needed: &'static str| {
            let command = name.clone();
            move |now: Phase| {
                if now < phase {
                    Err(SessionError::TooEarly { command, needed })
                } else {
                    Ok(())
                }
            }
        };
        match name.as_str() {
            "connect" => self.connect(transaction, values.get(2), sink),
            "releaseStream" | "FCPublish" => {
                needs(Phase::Connected, "connect")(self.phase)?;
                self.reply(
                    0,
                    &[
                        Value::text("_result"),
                        Value::Number(transaction),
                        Value::Null,
                        Value::Undefined,
                    ],
                );
                if name == "FCPublish" {
                    let info = status("status", "NetStream.Publish.Start", "FCPublish taken");
                    self.reply(
                        0,
                        &[
                            Value::text("onFCPublish"),
                            Value::Number(0.0),
                            Value::Null,
                            info,
                        ],
                    );
                }
                Ok(())
            }
            "createStream" => {
                needs(Phase::Connected, "connect")(self.phase)?;
                self.phase = self.phase.max(Phase::Created);
                let id = Value::Number(f64::from(STREAM));
                self.reply(
                    0,
                    &[
                        Value::text("_result"),
                        Value::Number(transaction),
                        Value::Null,
                        id,
                    ],
                );
                Ok(())
            }
            "publish" => {
                needs(Phase::Created, "createStream")(self.phase)?;
                on_stream("publish", message.stream)?;
                self.publish(transaction, &values, sink)
            }
            "FCUnpublish" => {
                self.reply(
                    0,
                    &[
                        Value::text("onFCUnpublish"),
                        Value::Number(0.0),
                        Value::Null,
                    ],
                );
                self.phase = self.phase.max(Phase::Unpublished);
                Ok(())
            }
            "deleteStream" | "closeStream" => {
                let info = status("status", "NetStream.Unpublish.Success", "unpublished");
                self.reply(
                    STREAM,
                    &[
                        Value::text("onStatus"),
                        Value::Number(0.0),
                        Value::Null,
                        info,
                    ],
                );
                self.close(sink);
                Ok(())
            }
            // Answers of the client, and what some clients ask in passing.
            "_result" | "_error" | "_checkbw" | "getStreamLength" | "onStatus" => Ok(()),
            _ => {
                sink(Event::Warning(format!(
                    "command '{name}', which no publisher needs"
                )));
                Ok(())
            }
        }
    }

    fn connect(
        &mut self,
        transaction: f64,
        object: Option<&Value>,
        sink: Sink,
    ) -> Result<(), SessionError> {
        let Some(object @ Value::Object(pairs)) = object else {
            return Err(SessionError::Incomplete {
                command: "connect",
                what: "its object",
            });
        };
        let text = |key: &str| object.get(key).and_then(Value::as_text).map(str::to_owned);
        self.facts.app = text("app");
        self.facts.tc_url = text("tcUrl");
        self.facts.flash_version = text("flashVer");
        if self.facts.app.is_none() {
            return Err(SessionError::Incomplete {
                command: "connect",
                what: "app",
            });
        }
        if self.facts.tc_url.is_none() {
            return Err(SessionError::Incomplete {
                command: "connect",
                what: "tcUrl",
            });
        }
        if transaction != 1.0 {
            sink(Event::Warning(format!(
                "connect has transaction id {transaction} instead of 1"
            )));
        }
        let enhanced = [
            "fourCcList",
            "videoFourCcInfoMap",
            "audioFourCcInfoMap",
            "capsEx",
        ];
        let named = pairs.iter().map(|(key, _)| key.clone());
        self.facts.capabilities = named
            .filter(|key| enhanced.contains(&key.as_str()))
            .collect();

        if let Some(Refusal::Code(code)) = &self.behaviour.refusal
            && code.starts_with("NetConnection.")
        {
            let info = status("error", &code.clone(), "refused by rtmp_stub_tester");
            self.reply(
                0,
                &[
                    Value::text("_error"),
                    Value::Number(transaction),
                    Value::Null,
                    info,
                ],
            );
            self.phase = Phase::Refused;
            sink(Event::Refused { close: false });
            return Ok(());
        }
        self.phase = self.phase.max(Phase::Connected);
        self.control(5, self.behaviour.window.to_be_bytes().to_vec());
        let mut bandwidth = self.behaviour.window.to_be_bytes().to_vec();
        bandwidth.push(2); // dynamic
        self.control(6, bandwidth);
        self.control(1, CHUNK_SIZE.to_be_bytes().to_vec());
        self.out_chunk_size = CHUNK_SIZE;
        let server = Value::object(&[
            ("fmsVer", Value::text("FMS/3,0,1,123")),
            ("capabilities", Value::Number(31.0)),
        ]);
        let mut info = status("status", "NetConnection.Connect.Success", "connected");
        if let Value::Object(pairs) = &mut info {
            pairs.push(("objectEncoding".into(), Value::Number(0.0)));
        }
        self.reply(
            0,
            &[
                Value::text("_result"),
                Value::Number(transaction),
                server,
                info,
            ],
        );
        self.reply(
            0,
            &[Value::text("onBWDone"), Value::Number(0.0), Value::Null],
        );
        Ok(())
    }

    fn publish(
        &mut self,
        transaction: f64,
        values: &[Value],
        sink: Sink,
    ) -> Result<(), SessionError> {
        let name = values
            .get(3)
            .and_then(Value::as_text)
            .filter(|name| !name.is_empty());
        self.facts.stream_name = name.map(str::to_owned);
        if name.is_none() {
            return Err(SessionError::Incomplete {
                command: "publish",
                what: "a stream name",
            });
        }
        match values.get(4).and_then(Value::as_text) {
            Some("live") => {}
            other => return Err(SessionError::PublishType(other.unwrap_or_default().into())),
        }
        let id = Value::Number(if self.behaviour.echo_transaction {
            transaction
        } else {
            0.0
        });
        match self.behaviour.refusal.clone() {
            Some(refusal) => {
                if let Refusal::Code(code) = &refusal {
                    let info = status("error", code, "refused by rtmp_stub_tester");
                    self.reply(STREAM, &[Value::text("onStatus"), id, Value::Null, info]);
                }
                self.phase = Phase::Refused;
                sink(Event::Refused {
                    close: refusal == Refusal::Silent,
                });
            }
            None => {
                let mut begin = vec![0, 0];
                begin.extend(STREAM.to_be_bytes());
                self.control(4, begin);
                let info = status("status", "NetStream.Publish.Start", "publishing");
                self.reply(STREAM, &[Value::text("onStatus"), id, Value::Null, info]);
                self.phase = Phase::Publishing;
                sink(Event::Published);
            }
        }
        Ok(())
    }

    fn close(&mut self, sink: Sink) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            sink(Event::Unpublished);
        }
    }

    fn reply(&mut self, stream: u32, values: &[Value]) {
        let message = Message {
            chunk_stream: 3,
            timestamp: 0,
            kind: 20,
            stream,
            body: amf0::write_all(values),
        };
        chunk::write(&message, self.out_chunk_size, &mut self.output);
    }

    fn control(&mut self, kind: u8, body: Vec<u8>) {
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

fn values_of(message: &Message) -> Result<Vec<Value>, SessionError> {
    // The AMF3 kinds put a zero byte ahead of what is AMF0 all the same.
    let body = match (message.kind, message.body.as_slice()) {
        (15 | 17, [0, rest @ ..]) => rest,
        (_, body) => body,
    };
    amf0::read_all(body).map_err(|error| SessionError::Amf {
        kind: message.kind,
        error,
    })
}

fn on_stream(what: &str, found: u32) -> Result<(), SessionError> {
    if found == STREAM {
        Ok(())
    } else {
        Err(SessionError::MessageStream {
            what: what.to_owned(),
            found,
            wanted: STREAM,
        })
    }
}

fn status(level: &str, code: &str, description: &str) -> Value {
    Value::object(&[
        ("level", Value::text(level)),
        ("code", Value::text(code)),
        ("description", Value::text(description)),
    ])
}

/// Lengths of control messages are the chunk reader's to check.
fn word(body: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
