//! One connection: a stream, the session on it, and the pictures fed into it.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::bitstream::{AccessUnit, BitstreamError};
use crate::pipeline::stop::StopToken;
use crate::rtmp::message::kind;
use crate::rtmp::{PublishSession, RtmpError, Step};
use crate::sink::gather::GatherBuffer;

use super::RtmpSinkConfig;
use super::feed::Feed;
use super::stream::Stream;
use super::tls;

pub struct Link {
    stream: Stream,
    session: PublishSession,
    feed: Feed,
    gather: GatherBuffer,
    /// Where the session's time starts.
    clock: Instant,
}

/// Why a connection is given up, or a unit.
#[derive(Debug)]
pub enum LinkError {
    Rtmp(RtmpError),
    /// There is no connection.
    Connect(io::Error),
    Io(io::Error),
    /// The server has not taken a picture within this time.
    Stalled(Duration),
    /// Only this unit is at fault; the connection is as good as before.
    Unit(BitstreamError),
}

/// A unit that was sent.
#[derive(Debug, Clone, Copy)]
pub struct SentUnit {
    pub bytes: usize,
    /// When the first bytes were with the kernel, and the last.
    pub first: Instant,
    pub last: Instant,
}

impl Link {
    pub fn new(stream: Stream, session: PublishSession, clock: Instant) -> Self {
        Self {
            stream,
            session,
            feed: Feed::default(),
            gather: GatherBuffer::new(),
            clock,
        }
    }

    pub fn step(&self) -> Step {
        self.session.step()
    }

    /// No picture has been sent yet: the next has to be a key frame.
    pub fn is_fresh(&self) -> bool {
        self.feed.is_fresh()
    }

    pub fn take_reconnect_request(&mut self) -> Option<Option<String>> {
        self.session.take_reconnect_request()
    }

    /// Reads, answers, and checks what is overdue, waiting at most `wait` for something to do.
    ///
    /// # Errors
    ///
    /// If the connection is lost, or the server said no.
    pub fn advance(&mut self, wait: Duration) -> Result<(), LinkError> {
        self.send_output()?;
        if !wait.is_zero() {
            self.stream.wait(!self.session.output().is_empty(), wait)?;
        }
        let closed = read_input(&mut self.stream, &mut self.session, self.clock)?;
        if !closed {
            self.send_output()?;
        }
        Ok(self.session.check(self.clock.elapsed())?)
    }

    /// Sends one picture in one vectored write, or as many as the kernel makes of it, within
    /// `config.write_timeout`. Goes on reading while it waits: a server whose own replies nobody
    /// takes stops taking ours.
    ///
    /// # Errors
    ///
    /// As [`Link::advance`], and if the server does not take the picture in time.
    pub fn send(
        &mut self,
        unit: &AccessUnit,
        config: &RtmpSinkConfig,
        stop: &StopToken,
        now: Instant,
    ) -> Result<SentUnit, LinkError> {
        let Self {
            stream,
            session,
            feed,
            gather,
            clock,
        } = self;
        let picture = feed
            .picture(unit, config, session)
            .map_err(LinkError::Unit)?;
        let output = session.take_output();
        let headers = session.video(picture.timestamp, picture.len);
        let mut gather = gather.gather(0);
        gather.push(&output);
        headers
            .pieces(feed.body(&picture, unit))
            .for_each(|piece| gather.push(piece));
        let bytes = gather.remaining();
        let mut patience = Patience::new(config.write_timeout, now);
        let (mut first, mut last) = (None, now);
        loop {
            let offered = gather.pieces().iter().map(|piece| piece.len()).sum();
            let taken = match stream.write(gather.pieces()) {
                Ok(taken) => {
                    gather.advance(taken);
                    last = Instant::now();
                    first.get_or_insert(last);
                    taken
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(read_last_words(stream, session, *clock, error)),
            };
            if gather.is_empty() {
                break;
            }
            // A kernel that took less than it was offered is full: asking again at once would
            // only hear that.
            if taken < offered {
                patience.wait(stream, session, *clock, stop)?;
            }
        }
        // TLS may hold sealed records back.
        while !stream.flush()? {
            patience.wait(stream, session, *clock, stop)?;
            last = Instant::now();
        }
        Ok(SentUnit {
            bytes,
            first: first.unwrap_or(last),
            last,
        })
    }

    /// Ends the stream in an orderly way, so that its name is free at once. Takes at most
    /// `limit`; whatever fails now is no error any more.
    pub fn goodbye(mut self, packaging: crate::flv::Packaging, limit: Duration) {
        let until = Instant::now() + limit;
        if self.step() == Step::Live && !self.is_fresh() {
            let time = self.feed.last_timestamp();
            self.session
                .send_small(kind::VIDEO, time, &packaging.sequence_end());
        }
        self.session.close(self.clock.elapsed());
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        while self.step() == Step::Closing && !left(until).is_zero() {
            if self.advance(left(until).min(SLICE)).is_err() {
                return; // ZLMediaKit closes at once (contract section 18)
            }
        }
        self.stream.shutdown();
        // Closing with unread bytes would reset the connection and take our last words along.
        let mut sink = [0; 1024];
        let until = until.min(Instant::now() + limit / 4);
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return,
                // A server that talks without end has had its time too.
                Ok(_) if left(until).is_zero() => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if left(until).is_zero() || self.stream.wait(false, left(until)).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn send_output(&mut self) -> Result<(), LinkError> {
        while !self.session.output().is_empty() {
            match self
                .stream
                .write(&[io::IoSlice::new(self.session.output())])
            {
                Ok(sent) => self.session.output_sent(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    return Err(read_last_words(
                        &mut self.stream,
                        &mut self.session,
                        self.clock,
                        error,
                    ));
                }
            }
        }
        self.stream.flush()?;
        Ok(())
    }
}

/// How long a picture may take.
struct Patience {
    whole: Duration,
    deadline: Instant,
    stopping: bool,
}

impl Patience {
    fn new(whole: Duration, now: Instant) -> Self {
        Self {
            whole,
            deadline: now + whole,
            stopping: false,
        }
    }

    /// Waits until the kernel takes more, reading meanwhile. Once the run stops, a server that
    /// does not read holds nobody up any longer.
    fn wait(
        &mut self,
        stream: &mut Stream,
        session: &mut PublishSession,
        clock: Instant,
        stop: &StopToken,
    ) -> Result<(), LinkError> {
        let now = Instant::now();
        if !self.stopping && stop.is_stopped() {
            self.stopping = true;
            self.deadline = self.deadline.min(now + STOPPING_PATIENCE);
        }
        let left = self.deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(LinkError::Stalled(self.whole));
        }
        let ready = stream.wait(true, left.min(SLICE))?;
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
            && read_input(stream, session, clock)?
        {
            return Err(closed().into());
        }
        Ok(())
    }
}

/// Takes what has come, up to a bound, so that a server that never stops talking does not keep
/// us from sending. True if the peer has closed, which is only said after our goodbye: at other
/// times it is an error.
fn read_input(
    stream: &mut Stream,
    session: &mut PublishSession,
    clock: Instant,
) -> Result<bool, LinkError> {
    let mut buffer = [0; 4096];
    for _ in 0..READS_AT_ONCE {
        match stream.read(&mut buffer) {
            Ok(0) => {
                session.peer_closed()?;
                return Ok(true);
            }
            Ok(len) => session.input(&buffer[..len], clock.elapsed())?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if is_closed(&error) => {
                session.peer_closed()?;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// A write failed with `error`; why the server closed may still wait to be read.
fn read_last_words(
    stream: &mut Stream,
    session: &mut PublishSession,
    clock: Instant,
    error: io::Error,
) -> LinkError {
    match read_input(stream, session, clock) {
        Err(LinkError::Rtmp(words)) => LinkError::Rtmp(words),
        _ if is_closed(&error) => match session.peer_closed() {
            Err(meaning) => meaning.into(),
            Ok(()) => error.into(),
        },
        _ => error.into(),
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
    )
}

fn closed() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl LinkError {
    pub fn is_protocol(&self) -> bool {
        matches!(self, Self::Rtmp(RtmpError::Protocol { .. }))
    }

    /// The server closed before it had said anything: perhaps it wants the other handshake.
    pub fn may_be_the_handshake(&self) -> bool {
        matches!(
            self,
            Self::Rtmp(RtmpError::Closed {
                step: Step::Handshake | Step::Connect
            })
        )
    }
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rtmp(error) => error.fmt(f),
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Io(error) => {
                let inner = error.get_ref();
                match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                    Some(error) => f.write_str(&tls::explain(error)),
                    None => error.fmt(f),
                }
            }
            Self::Stalled(time) => {
                write!(f, "the server has not taken a picture within {time:?}")
            }
            Self::Unit(error) => error.fmt(f),
        }
    }
}

impl From<RtmpError> for LinkError {
    fn from(error: RtmpError) -> Self {
        Self::Rtmp(error)
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The longest wait without a look at the stop token.
const SLICE: Duration = Duration::from_millis(50);
const STOPPING_PATIENCE: Duration = Duration::from_millis(500);
const READS_AT_ONCE: usize = 16;
