//! 8. RTMP over TCP or TLS: connects, publishes, reconnects.
//!
//! Takes access units, gives one vectored write for each. Drops, and counts, what comes while
//! there is no connection or while a key frame is awaited. Nothing here is protocol: that is in
//! [`crate::rtmp`] and [`crate::flv`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bitstream::AccessUnit;
use crate::flv::Packaging;
use crate::rtmp::handshake::{BLOCK, HandshakeForm};
use crate::rtmp::{PublishConfig, PublishSession, RtmpUrl, Step};

use super::{Sent, Sink, SinkContext, SinkError, SinkStats};

mod backoff;
mod dial;
mod feed;
#[doc(hidden)]
pub mod fuzz;
mod link;
mod stream;
mod tls;

use backoff::Backoff;
use dial::Dial;
use link::{Link, LinkError};
use stream::Stream;
pub use tls::TlsOptions;

/// What a sink is opened with. [`RtmpSinkConfig::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct RtmpSinkConfig {
    pub url: RtmpUrl,
    /// Tells sinks apart in logs and the report whose URLs read alike without their keys.
    pub number: Option<usize>,
    pub packaging: Packaging,
    /// Bytes of payload per chunk.
    pub chunk_size: u32,
    /// Attempts after a failed one, in a row, before the sink is lost; 0 for ever.
    pub max_retries: u32,
    /// The longest wait between two attempts.
    pub backoff_cap: Duration,
    /// A picture that the server has not taken within this time costs it the connection.
    pub write_timeout: Duration,
    /// Bytes that the kernel may hold before it has sent them: what a slow server cannot take
    /// beyond that stays in the sink's queue, where it is seen and dropped.
    pub unsent_limit: u32,
    /// For `rtmps://`.
    pub tls: TlsOptions,
    /// For the metadata: pictures per second, bits per second.
    pub frame_rate: Option<f64>,
    pub bitrate: Option<u32>,
    /// Milliseconds that the timestamps of a session start at. 0 but for tests of the border
    /// where they outgrow 24 bits, which is 4 h 39 min away otherwise.
    pub first_timestamp: u32,
}

impl RtmpSinkConfig {
    pub fn new(url: RtmpUrl, packaging: Packaging) -> Self {
        Self {
            url,
            number: None,
            packaging,
            chunk_size: 65536,
            max_retries: 0,
            backoff_cap: Duration::from_secs(5),
            write_timeout: Duration::from_secs(8),
            unsent_limit: 32 * 1024,
            tls: TlsOptions::default(),
            frame_rate: None,
            bitrate: None,
            first_timestamp: 0,
        }
    }
}

/// One destination. Its thread calls [`Sink::send`] for each access unit and [`Sink::poll`]
/// between them; connecting goes on inside both and never blocks either for longer than a
/// twentieth of a second.
pub struct RtmpSink {
    config: RtmpSinkConfig,
    context: SinkContext,
    name: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    state: State,
    /// The connection that the server wants us to leave; it carries the stream until the new one
    /// has a key frame.
    leaving: Option<Box<Link>>,
    backoff: Backoff,
    handshake: HandshakeForm,
    /// Where a reconnect request has sent us.
    redirect: Option<RtmpUrl>,
    live_since: Option<Instant>,
    /// When the server was listened to last.
    looked: Instant,
    was_live: bool,
    last_error: Option<String>,
    /// Parameter sets of this generation make no record: said once.
    bad_generation: u32,
}

enum State {
    /// For the next attempt.
    Waiting(Instant),
    Dialing(Dial),
    /// From the handshake on.
    Open(Box<Link>),
}

impl RtmpSink {
    /// Checks what can be checked without the server. The first attempt to connect is made by
    /// the first [`Sink::poll`].
    ///
    /// # Errors
    ///
    /// For `rtmps://`, if there is no authority to trust.
    pub fn open(config: RtmpSinkConfig, context: SinkContext) -> Result<Self, SinkError> {
        let name = match config.number {
            Some(number) => format!("{} #{number}", config.url),
            None => config.url.to_string(),
        };
        // A reconnect request may lead from rtmp to rtmps: without authorities that fails then.
        let tls = match config.tls.config() {
            Ok(tls) => Some(tls),
            Err(_) if !config.url.tls => None,
            Err(reason) => return Err(SinkError::Open { sink: name, reason }),
        };
        Ok(Self {
            backoff: Backoff::new(config.backoff_cap),
            config,
            context,
            name,
            tls,
            state: State::Waiting(Instant::now()),
            leaving: None,
            handshake: HandshakeForm::default(),
            redirect: None,
            live_since: None,
            looked: Instant::now(),
            was_live: false,
            last_error: None,
            bad_generation: 0,
        })
    }

    /// Why the last connection or attempt failed: the server's own words where it had any.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub fn is_live(&self) -> bool {
        matches!(&self.state, State::Open(link) if link.step() == Step::Live)
    }

    /// One step towards a live stream, or of looking after it. Waits at most `wait`.
    fn advance(&mut self, wait: Duration) -> Result<(), SinkError> {
        let now = Instant::now();
        self.looked = now;
        if let Some(leaving) = &mut self.leaving
            && leaving.advance(Duration::ZERO).is_err()
        {
            self.leaving = None;
        }
        let result = match &mut self.state {
            State::Waiting(until) => {
                if now >= *until {
                    let url = self.redirect.as_ref().unwrap_or(&self.config.url);
                    self.state = State::Dialing(Dial::start(
                        &url.host,
                        url.port,
                        self.config.unsent_limit,
                        now,
                    ));
                }
                return Ok(());
            }
            State::Dialing(dial) => match dial.advance(now, wait) {
                Ok(None) => return Ok(()),
                Ok(Some(socket)) => self.open_link(socket),
                Err(error) => Err(LinkError::Connect(error)),
            },
            State::Open(link) => {
                let before = link.step();
                let result = link.advance(if before == Step::Live {
                    Duration::ZERO
                } else {
                    wait
                });
                if result.is_ok() && before != Step::Live && link.step() == Step::Live {
                    self.went_live(now);
                }
                result
            }
        };
        match result {
            Ok(()) => {
                self.look_for_reconnect_request(now);
                self.settle(now);
                Ok(())
            }
            Err(error) => self.failed(&error),
        }
    }

    fn open_link(&mut self, socket: std::net::TcpStream) -> Result<(), LinkError> {
        let url = self.redirect.as_ref().unwrap_or(&self.config.url);
        let stream = match (&self.tls, url.tls) {
            (_, false) => Stream::Plain(socket),
            (Some(tls), true) => Stream::tls(socket, tls, &url.host)?,
            (None, true) => {
                let why = "this machine trusts no certificate authority";
                return Err(std::io::Error::other(why).into());
            }
        };
        let config = PublishConfig {
            url: url.clone(),
            handshake: self.handshake,
            enhanced: self.config.packaging == Packaging::EnhancedHevc,
            chunk_size: self.config.chunk_size,
        };
        let session = PublishSession::new(config, &random_block(), Duration::ZERO);
        self.state = State::Open(Box::new(Link::new(stream, session, Instant::now())));
        Ok(())
    }

    fn went_live(&mut self, now: Instant) {
        log::info!(
            "{}: publishing as {}",
            self.name,
            self.config.packaging.name()
        );
        if self.was_live {
            SinkStats::add(&self.context.stats.reconnects, 1);
        }
        self.was_live = true;
        self.live_since = Some(now);
        self.context.key_frames.ask();
    }

    /// A stream that has run for a while has earned a quick first retry.
    fn settle(&mut self, now: Instant) {
        if let Some(since) = self.live_since
            && now.saturating_duration_since(since) >= SETTLED
        {
            self.live_since = None;
            self.backoff.reset();
        }
    }

    fn look_for_reconnect_request(&mut self, now: Instant) {
        let State::Open(link) = &mut self.state else {
            return;
        };
        let Some(tc_url) = link.take_reconnect_request() else {
            return;
        };
        let current = self.redirect.as_ref().unwrap_or(&self.config.url);
        match tc_url.map(|tc_url| current.redirected(&tc_url)) {
            None => {}
            Some(Ok(url)) => self.redirect = Some(url),
            Some(Err(error)) => {
                log::warn!("{}: reconnect request ignored: {error}", self.name);
                return;
            }
        }
        log::info!("{}: the server asks for a new connection", self.name);
        let wait = self.backoff.next(random_word());
        let old = std::mem::replace(&mut self.state, State::Waiting(now + wait));
        if let State::Open(link) = old {
            self.leaving = Some(link);
        }
    }

    /// Takes note of a failure and plans the next attempt.
    fn failed(&mut self, error: &LinkError) -> Result<(), SinkError> {
        SinkStats::add(&self.context.stats.errors, 1);
        let words = error.to_string();
        if let Some(leaving) = self.leaving.take() {
            // The new place does not want us yet, perhaps because we are still in the old one.
            leaving.goodbye(self.config.packaging, SHORT_GOODBYE);
        }
        if error.may_be_the_handshake() {
            self.handshake = match self.handshake {
                HandshakeForm::Simple => HandshakeForm::Digest,
                HandshakeForm::Digest => HandshakeForm::Simple,
            };
        }
        self.redirect = None;
        self.live_since = None;
        let retries = self.backoff.failures();
        if self.config.max_retries > 0 && retries >= self.config.max_retries {
            self.state = State::Waiting(Instant::now());
            let reason = format!("{words} (after {retries} retries)");
            let sink = self.name.clone();
            self.last_error = Some(words);
            return Err(match error.is_protocol() {
                true => SinkError::Protocol { sink, reason },
                false => SinkError::Lost { sink, reason },
            });
        }
        let wait = self.backoff.next(random_word());
        self.state = State::Waiting(Instant::now() + wait);
        if self.last_error.as_ref() == Some(&words) {
            log::debug!("{}: {words}; again in {wait:.1?}", self.name);
        } else {
            log::warn!("{}: {words}; trying again", self.name);
        }
        self.last_error = Some(words);
        Ok(())
    }

    fn give_up(&self) -> Sent {
        SinkStats::add(&self.context.stats.given_up, 1);
        Sent::GivenUp
    }
}

impl Sink for RtmpSink {
    fn name(&self) -> &str {
        &self.name
    }

    /// Returns [`Sent::GivenUp`] while there is no connection, and until a key frame after it is
    /// there. A server that does not take the unit in time is left and connected to anew.
    fn send(&mut self, unit: &AccessUnit) -> Result<Sent, SinkError> {
        let now = Instant::now();
        let mut is_live = self.is_live();
        // Reading costs a system call, and a server has nothing to say about each picture.
        if !is_live || now.saturating_duration_since(self.looked) >= LOOK {
            self.advance(Duration::ZERO)?;
            is_live = self.is_live();
        }
        if is_live
            && unit.key
            && let Some(old) = self.leaving.take()
        {
            old.goodbye(self.config.packaging, SHORT_GOODBYE);
        }
        let link = match (&mut self.leaving, &mut self.state) {
            (Some(old), _) => Some(old),
            (None, State::Open(link)) if is_live => Some(link),
            _ => None,
        };
        // A stream starts at a key frame, which was asked for when the connection went live.
        let Some(link) = link.filter(|link| unit.key || !link.is_fresh()) else {
            return Ok(self.give_up());
        };
        match link.send(unit, &self.config, &self.context.stop, now) {
            Ok(sent) => {
                let stats = &self.context.stats;
                SinkStats::add(&stats.units, 1);
                SinkStats::add(&stats.packets, 1);
                SinkStats::add(&stats.bytes, sent.bytes as u64);
                stats.record_sent(unit, sent.first, sent.last);
                Ok(Sent::All)
            }
            Err(LinkError::Unit(error)) => {
                SinkStats::add(&self.context.stats.errors, 1);
                if self.bad_generation != unit.parameters.generation {
                    self.bad_generation = unit.parameters.generation;
                    log::error!("{}: not sent: {error}", self.name);
                }
                Ok(self.give_up())
            }
            Err(error) => {
                if self.leaving.take().is_none() {
                    self.failed(&error)?;
                }
                Ok(self.give_up())
            }
        }
    }

    fn poll(&mut self) -> Result<Duration, SinkError> {
        self.advance(WAIT)?;
        Ok(match &self.state {
            State::Waiting(until) => until
                .saturating_duration_since(Instant::now())
                .min(HOUSEKEEPING),
            State::Dialing(_) => Duration::ZERO,
            State::Open(link) if link.step() == Step::Live => HOUSEKEEPING,
            State::Open(_) => Duration::ZERO,
        })
    }

    fn close(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Waiting(Instant::now()));
        if let Some(leaving) = self.leaving.take() {
            leaving.goodbye(self.config.packaging, SHORT_GOODBYE);
        }
        if let State::Open(link) = state
            && link.step() >= Step::Publish
        {
            link.goodbye(self.config.packaging, GOODBYE);
        }
    }
}

fn random_block() -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    // The handshake's random bytes keep nothing secret: without a source any bytes will do.
    let _ = getrandom::fill(&mut block);
    block
}

fn random_word() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}

/// The longest wait inside one call while connecting.
const WAIT: Duration = Duration::from_millis(50);
/// The longest time without a look at what the server says.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// The same in a stream that has no pause.
const LOOK: Duration = Duration::from_millis(10);
/// After so long a live stream the next failure counts as the first.
const SETTLED: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(1);
const SHORT_GOODBYE: Duration = Duration::from_millis(200);
