//! The client side of a publish, from the handshake to the goodbye, without socket or clock.
//!
//! The owner of the socket feeds what comes in, sends what [`PublishSession::output`] holds, tells
//! the time, and asks how far it is:
//!
//! ```text
//! Handshake -> Connect -> CreateStream -> Publish -> Live -> Closing -> Closed
//!   C0C1 S0S1S2 C2  connect     createStream  publish   media  FCUnpublish, deleteStream
//! ```
//!
//! One session is one connection: a reconnect starts a new one, so nothing stale is carried over.

use std::time::Duration;

use super::amf0::{self, Value};
use super::chunk::{ChunkHeaders, ChunkReader, ChunkWriter, MessageHeader, ReaderLimits};
use super::handshake::{BLOCK, ClientHandshake, HandshakeForm};
use super::message::{Control, Message, event, kind};
use super::{RtmpError, RtmpUrl, Step};

/// What a session is opened with.
#[derive(Debug, Clone)]
pub struct PublishConfig {
    pub url: RtmpUrl,
    pub handshake: HandshakeForm,
    /// Announce Enhanced RTMP in `connect`. Only for H.265 under `hvc1`: there are servers that
    /// refuse an H.264 publish because of these fields (contract section 12).
    pub enhanced: bool,
    /// Bytes of payload per chunk, announced ahead of the first media.
    pub chunk_size: u32,
}

/// See the module. Times are durations since any fixed moment.
pub struct PublishSession {
    config: PublishConfig,
    step: Step,
    step_since: Duration,
    handshake: ClientHandshake,
    reader: ChunkReader,
    writer: ChunkWriter,
    out: Vec<u8>,
    stream: u32,
    window: Window,
    reconnect: Option<Option<String>>,
    acknowledged: u32,
}

impl PublishSession {
    /// Starts the handshake. `random` is for its blocks.
    pub fn new(config: PublishConfig, random: &[u8; BLOCK], now: Duration) -> Self {
        let handshake = ClientHandshake::new(config.handshake, now.as_millis() as u32, random);
        let mut out = Vec::with_capacity(4096);
        handshake.start(&mut out);
        Self {
            config,
            step: Step::Handshake,
            step_since: now,
            handshake,
            reader: ChunkReader::new(ReaderLimits::PUBLISHER),
            writer: ChunkWriter::default(),
            out,
            stream: 0,
            window: Window::default(),
            reconnect: None,
            acknowledged: 0,
        }
    }

    pub fn step(&self) -> Step {
        self.step
    }

    /// Bytes that are to be sent, between messages.
    pub fn output(&self) -> &[u8] {
        &self.out
    }

    /// The output as a buffer of its own, so that input can be taken while it is being sent.
    pub fn take_output(&mut self) -> Vec<u8> {
        if self.out.is_empty() {
            return Vec::new(); // and the capacity stays
        }
        std::mem::take(&mut self.out)
    }

    /// The first `len` bytes of the output are with the kernel.
    pub fn output_sent(&mut self, len: usize) {
        self.out.drain(..len);
    }

    /// Takes what the server has sent.
    ///
    /// # Errors
    ///
    /// The server refused, ended the stream, or broke the protocol. The session is over then.
    pub fn input(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), RtmpError> {
        if self.step == Step::Handshake {
            if !self.handshake.input(&mut bytes, &mut self.out)? {
                return Ok(());
            }
            self.enter(Step::Connect, now);
            self.send_connect();
        }
        if let Some(total) = self.window.count(bytes.len()) {
            self.send_control(kind::ACKNOWLEDGEMENT, &total.to_be_bytes());
        }
        // The reader lends out its message; the rest of self must stay free to act on it.
        let mut reader = std::mem::replace(&mut self.reader, ChunkReader::empty());
        let result = loop {
            match reader.read(&mut bytes) {
                Ok(Some(message)) => {
                    if let Err(error) = self.take_message(&message, now) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.reader = reader;
        if self.out.len() > LARGEST_OUTPUT {
            return Err(RtmpError::protocol(
                "requests",
                "the server asks for more answers than it reads",
            ));
        }
        result
    }

    /// The time at which [`PublishSession::check`] wants to be called, while an answer is due.
    pub fn deadline(&self) -> Option<Duration> {
        let patience = match self.step {
            Step::Handshake => HANDSHAKE_PATIENCE,
            Step::Connect | Step::CreateStream | Step::Publish => ANSWER_PATIENCE,
            Step::Live | Step::Closing | Step::Closed => return None,
        };
        Some(self.step_since + patience)
    }

    /// # Errors
    ///
    /// If the server has been silent for too long.
    pub fn check(&self, now: Duration) -> Result<(), RtmpError> {
        match self.deadline() {
            Some(deadline) if now >= deadline => Err(RtmpError::Silent {
                step: self.step,
                seconds: (deadline - self.step_since).as_secs(),
            }),
            _ => Ok(()),
        }
    }

    /// What it means that the server has closed the connection now. `Ok` after our goodbye.
    ///
    /// # Errors
    ///
    /// At any other time.
    pub fn peer_closed(&mut self) -> Result<(), RtmpError> {
        match std::mem::replace(&mut self.step, Step::Closed) {
            Step::Closing | Step::Closed => Ok(()),
            Step::Publish => Err(RtmpError::RefusedOrInUse),
            step => Err(RtmpError::Closed { step }),
        }
    }

    /// The headers of a video message whose body the caller sends himself; what
    /// [`PublishSession::output`] holds goes first.
    ///
    /// # Panics
    ///
    /// If the session is not [`Step::Live`].
    pub fn video(&self, timestamp: u32, len: u32) -> ChunkHeaders {
        assert!(self.step == Step::Live, "media before Publish.Start");
        self.writer
            .headers(self.media_header(kind::VIDEO, timestamp, len))
    }

    /// Puts a small message of the media stream into the output: metadata, a sequence header or
    /// the end of the sequence.
    pub fn send_small(&mut self, kind: u8, timestamp: u32, body: &[u8]) {
        let header = self.media_header(kind, timestamp, body.len() as u32);
        self.writer.append(header, body, &mut self.out);
    }

    /// Says goodbye: the stream name is free again at once instead of after a timeout.
    pub fn close(&mut self, now: Duration) {
        if matches!(self.step, Step::Publish | Step::Live) {
            let stream = f64::from(self.stream);
            self.send_key_command("FCUnpublish", 6.0);
            self.send_command(0, |amf| {
                amf.string("deleteStream").number(7.0).null().number(stream);
            });
        }
        self.enter(Step::Closing, now);
    }

    /// The server wants us elsewhere, or here anew (Enhanced RTMP v2, "Reconnect Request"): its
    /// `tcUrl`, if it gave one. Given once per request.
    pub fn take_reconnect_request(&mut self) -> Option<Option<String>> {
        self.reconnect.take()
    }

    /// Bytes that the server says it has received, modulo 2^32.
    pub fn acknowledged(&self) -> u32 {
        self.acknowledged
    }

    fn enter(&mut self, step: Step, now: Duration) {
        self.step = step;
        self.step_since = now;
    }

    fn take_message(&mut self, message: &Message<'_>, now: Duration) -> Result<(), RtmpError> {
        if let Some(control) = Control::parse(message)? {
            self.obey(control);
            return Ok(());
        }
        let body = match message.kind {
            kind::COMMAND => message.body,
            kind::COMMAND_AMF3 => message.body.get(1..).unwrap_or_default(),
            _ => return Ok(()), // media and data of other people: nothing to a publisher
        };
        let mut amf = amf0::Reader::new(body);
        let mut next = || {
            amf.read()
                .map_err(|error| RtmpError::protocol("command", error.to_string()))
        };
        let Some(Value::String(name)) = next()? else {
            return Err(RtmpError::protocol(
                "command",
                "does not start with its name",
            ));
        };
        let transaction = next()?.and_then(|value| value.as_number());
        match &*name {
            "_result" | "_error" => {
                let object = next()?;
                let answer = next()?;
                let accepted = name == "_result";
                self.take_answer(accepted, transaction, object, answer, now)
            }
            "onStatus" => {
                // Null, then the information object; some servers leave the null out.
                let mut info = next()?;
                if !matches!(info, Some(Value::Object(_) | Value::EcmaArray(_))) {
                    info = next()?;
                }
                self.take_status(info.as_ref(), now)
            }
            "close" => Err(self.ended("close")),
            _ => Ok(()), // onBWDone, onFCPublish and whatever else is told and not asked
        }
    }

    fn obey(&mut self, control: Control) {
        match control {
            Control::PingRequest(stamp) => {
                let mut body = [0; 6];
                body[..2].copy_from_slice(&event::PING_RESPONSE.to_be_bytes());
                body[2..].copy_from_slice(&stamp.to_be_bytes());
                self.send_control(kind::USER_CONTROL, &body);
            }
            Control::WindowAckSize(size) => self.window.size = size,
            Control::SetPeerBandwidth { window, .. } => {
                if self.window.announced != Some(window) {
                    self.window.announced = Some(window);
                    self.send_control(kind::WINDOW_ACK_SIZE, &window.to_be_bytes());
                }
            }
            Control::Acknowledgement(total) => self.acknowledged = total,
            // The chunk reader has applied these two itself.
            Control::SetChunkSize(_) | Control::Abort(_) | Control::UserControl(_) => {}
        }
    }

    fn take_answer(
        &mut self,
        accepted: bool,
        transaction: Option<f64>,
        object: Option<Value<'_>>,
        answer: Option<Value<'_>>,
        now: Duration,
    ) -> Result<(), RtmpError> {
        let step = self.step;
        let due = match step {
            Step::Connect => CONNECT_ID,
            Step::CreateStream => CREATE_STREAM_ID,
            Step::Publish => PUBLISH_ID,
            _ => return Ok(()),
        };
        if transaction != Some(due) {
            return Ok(()); // to releaseStream or FCPublish: courtesy, refused by many
        }
        if !accepted {
            let words = self.words(answer.as_ref().or(object.as_ref()));
            return Err(RtmpError::Refused { step, words });
        }
        match step {
            Step::Connect => {
                // Some servers say no with a `_result`.
                let level = answer.as_ref().and_then(|answer| answer.get("level"));
                if level.and_then(Value::as_str) == Some("error") {
                    let words = self.words(answer.as_ref());
                    return Err(RtmpError::Refused { step, words });
                }
                self.enter(Step::CreateStream, now);
                self.send_create_stream();
            }
            Step::CreateStream => {
                let id = answer.and_then(|answer| answer.as_number());
                let Some(id) = id.filter(|id| (0.0..4_294_967_296.0).contains(id)) else {
                    return Err(RtmpError::protocol(
                        "createStream",
                        "answered without a stream id",
                    ));
                };
                self.stream = id as u32;
                self.enter(Step::Publish, now);
                self.send_publish();
            }
            // A `_result` to publish is no start yet; `onStatus` is.
            _ => {}
        }
        Ok(())
    }

    fn take_status(&mut self, info: Option<&Value<'_>>, now: Duration) -> Result<(), RtmpError> {
        let text = |key| info.and_then(|info| info.get(key)).and_then(Value::as_str);
        let (code, level) = (text("code").unwrap_or(""), text("level").unwrap_or(""));
        match code {
            "NetStream.Publish.Start" => {
                if self.step == Step::Publish {
                    self.enter(Step::Live, now);
                }
                Ok(())
            }
            "NetConnection.Connect.ReconnectRequest" => {
                self.reconnect = Some(text("tcUrl").map(str::to_owned));
                Ok(())
            }
            "NetStream.Unpublish.Success" if self.step == Step::Closing => {
                self.step = Step::Closed;
                Ok(())
            }
            "NetStream.Unpublish.Success"
            | "NetStream.Publish.BadName"
            | "NetStream.Publish.Denied"
            | "NetStream.Publish.Rejected"
            | "NetConnection.Connect.Closed"
            | "NetConnection.Connect.AppShutdown"
            | "NetConnection.Connect.Rejected"
            | "NetConnection.Connect.InvalidApp" => self.said_no(info),
            _ if level == "error" => self.said_no(info),
            _ => Ok(()),
        }
    }

    /// In [`Step::Closing`] nothing matters any more; before [`Step::Live`] it is a refusal.
    fn said_no(&self, info: Option<&Value<'_>>) -> Result<(), RtmpError> {
        let words = self.words(info);
        match self.step {
            Step::Closing | Step::Closed => Ok(()),
            Step::Live => Err(RtmpError::Ended { words }),
            step => Err(RtmpError::Refused { step, words }),
        }
    }

    fn ended(&self, words: &str) -> RtmpError {
        RtmpError::Ended {
            words: words.to_owned(),
        }
    }

    /// `code: description`, or what there is of it.
    fn words(&self, info: Option<&Value<'_>>) -> String {
        let text = |key| info.and_then(|info| info.get(key)).and_then(Value::as_str);
        let words = match (
            text("code"),
            text("description").or_else(|| text("details")),
        ) {
            (Some(code), Some(description)) if !description.is_empty() => {
                format!("{code}: {description}")
            }
            (Some(code), _) => code.to_owned(),
            (None, Some(description)) => description.to_owned(),
            (None, None) => match info {
                Some(Value::String(text)) => text.to_string(),
                _ => "without saying why".to_owned(),
            },
        };
        self.config.url.clean(&words)
    }

    fn send_connect(&mut self) {
        let url = self.config.url.clone();
        let enhanced = self.config.enhanced;
        self.send_command(0, |amf| {
            amf.string("connect").number(CONNECT_ID).object();
            amf.key("app").string(&url.app);
            amf.key("type").string("nonprivate");
            amf.key("flashVer").string(FLASH_VERSION);
            amf.key("tcUrl").string(&url.tc_url());
            if enhanced {
                // Enhanced RTMP v2, "Enhancing NetConnection connect Command".
                amf.key("fourCcList").strict_array(1).string("hvc1");
                amf.key("videoFourCcInfoMap").object();
                amf.key("hvc1").number(CAN_ENCODE).end();
                amf.key("capsEx").number(RECONNECT);
            }
            amf.end();
        });
    }

    fn send_create_stream(&mut self) {
        let size = self.config.chunk_size.clamp(1, 0x7FFF_FFFF);
        self.send_control(kind::SET_CHUNK_SIZE, &size.to_be_bytes());
        self.writer.set_chunk_size(size);
        self.send_key_command("releaseStream", 2.0);
        self.send_key_command("FCPublish", 3.0);
        self.send_command(0, |amf| {
            amf.string("createStream").number(CREATE_STREAM_ID).null();
        });
    }

    fn send_publish(&mut self) {
        let key = self.config.url.secret_key().to_owned();
        self.send_command(self.stream, |amf| {
            amf.string("publish").number(PUBLISH_ID).null();
            amf.string(&key).string("live");
        });
    }

    fn send_key_command(&mut self, name: &str, transaction: f64) {
        let key = self.config.url.secret_key().to_owned();
        self.send_command(0, |amf| {
            amf.string(name).number(transaction).null().string(&key);
        });
    }

    fn send_command(&mut self, stream: u32, write: impl FnOnce(&mut amf0::Writer<'_>)) {
        let mut body = Vec::with_capacity(512);
        write(&mut amf0::Writer(&mut body));
        let header = MessageHeader {
            chunk_stream: COMMAND_STREAM,
            timestamp: 0,
            kind: kind::COMMAND,
            stream,
            len: body.len() as u32,
        };
        self.writer.append(header, &body, &mut self.out);
    }

    fn send_control(&mut self, kind: u8, body: &[u8]) {
        let header = MessageHeader {
            chunk_stream: CONTROL_STREAM,
            timestamp: 0,
            kind,
            stream: 0,
            len: body.len() as u32,
        };
        self.writer.append(header, body, &mut self.out);
    }

    fn media_header(&self, kind: u8, timestamp: u32, len: u32) -> MessageHeader {
        MessageHeader {
            chunk_stream: MEDIA_STREAM,
            timestamp,
            kind,
            stream: self.stream,
            len,
        }
    }
}

impl std::fmt::Debug for PublishSession {
    /// Nothing of the output, which holds the stream key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishSession")
            .field("url", &self.config.url)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

/// The duty to acknowledge (section 5.4.3): every half window, so that a peer which counts a
/// little differently does not wait for us.
#[derive(Debug, Default)]
struct Window {
    /// 0: the peer has not asked.
    size: u32,
    announced: Option<u32>,
    received: u32,
    acknowledged: u32,
}

impl Window {
    /// The sum to acknowledge now, if it is time.
    fn count(&mut self, len: usize) -> Option<u32> {
        self.received = self.received.wrapping_add(len as u32);
        let open = self.received.wrapping_sub(self.acknowledged);
        (self.size > 0 && open >= (self.size / 2).max(1)).then(|| {
            self.acknowledged = self.received;
            self.received
        })
    }
}

/// Servers that never answer are the most common way to hang.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Auth hooks of servers ask other machines first.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Output that may wait while the server does not read.
const LARGEST_OUTPUT: usize = 256 * 1024;

const CONNECT_ID: f64 = 1.0;
const CREATE_STREAM_ID: f64 = 4.0;
const PUBLISH_ID: f64 = 5.0;

/// Chunk streams: 2 is fixed by section 5.4, the others are what publishers use.
const CONTROL_STREAM: u8 = 2;
const COMMAND_STREAM: u8 = 3;
const MEDIA_STREAM: u8 = 6;

/// `FMLE/3.0` is what servers look for to treat a client as a publisher.
const FLASH_VERSION: &str = concat!(
    "FMLE/3.0 (compatible; cvmmap_streamer/",
    env!("CARGO_PKG_VERSION"),
    ")"
);
/// FourCcInfoMask: 1 decode, 2 encode, 4 forward.
const CAN_ENCODE: f64 = 2.0;
/// capsEx: we obey a reconnect request.
const RECONNECT: f64 = 1.0;

#[cfg(test)]
mod tests;
