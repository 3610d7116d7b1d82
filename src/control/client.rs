//! NATS itself. This is the one file that knows the `nats` crate, which is no longer maintained
//! in favour of an async one: whoever exchanges it exchanges this file.
//!
//! What the crate does not do by itself and is done here: the first connection is tried again by
//! the caller ([`Client::connect_within`] never blocks for longer than it is told), reconnects are
//! unlimited, the queue of every subscription is bounded, credentials are taken out of the URL
//! and given to servers that are found later too, and nothing is printed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Select;

use super::server::{Login, ServerConfig};

/// What can become of talking to somebody over NATS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("no NATS server at {server}: {reason}")]
    NoServer { server: String, reason: String },
    #[error("the NATS server {server} does not let us in: {reason}")]
    Unauthorized { server: String, reason: String },
    #[error("no TLS with the NATS server {server}: {reason}")]
    Tls { server: String, reason: String },
    #[error("the connection to the NATS server is lost: {0}")]
    Lost(String),
    /// The server answered in place of a service: status 503.
    #[error("nobody serves {subject}: the producer is not running, or has another name")]
    NoResponders { subject: String },
    #[error("no answer from {subject} within {millis} ms")]
    Timeout { subject: String, millis: u128 },
    #[error("the answer from {subject} is none: {reason}")]
    BadReply { subject: String, reason: String },
}

/// What a connection counts; it lives on when the connection is replaced.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// Messages thrown away because a subscription's queue was full.
    pub overflows: AtomicU64,
    pub disconnects: AtomicU64,
    pub reconnects: AtomicU64,
    /// Complaints of the server, such as a refused subscription.
    pub errors: AtomicU64,
    /// Attempts to connect that have not come back.
    connecting: AtomicU64,
}

/// A connection that reconnects by itself, for ever. Dropping it lets it go without waiting.
#[derive(Debug)]
pub struct Client {
    connection: nats::Connection,
    /// Whether it was let go. The crate's thread notices that with the server's next word only, and
    /// then reports a lost connection: that is none.
    closing: Arc<AtomicBool>,
}

impl Drop for Client {
    fn drop(&mut self) {
        // Relaxed: the flag publishes nothing but itself.
        self.closing.store(true, Ordering::Relaxed);
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub subject: String,
    pub reply: Option<String>,
    pub data: Vec<u8>,
    /// The server says that nobody listens to what was asked.
    pub no_responders: bool,
}

impl Client {
    /// Connects, but waits no longer than `limit`.
    ///
    /// The crate blocks for as long as the system does (a host that drops packets: minutes), so it
    /// runs on a thread of its own, which is left behind if it does not come back in time.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoServer`], [`ControlError::Unauthorized`] and [`ControlError::Tls`].
    pub fn connect_within(
        config: &ServerConfig,
        counters: &Arc<LinkCounters>,
        limit: Duration,
    ) -> Result<Self, ControlError> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        let (owned, counters) = (config.clone(), Arc::clone(counters));
        let no_server = |reason: String| ControlError::NoServer {
            server: config.to_string(),
            reason,
        };
        if counters.connecting.load(Ordering::Relaxed) >= MOST_CONNECTING {
            return Err(no_server("earlier attempts still hang".to_owned()));
        }
        let attempt = Attempt::begin(&counters);
        std::thread::Builder::new()
            .name("nats-connect".to_owned())
            .spawn(move || {
                let client = connect(&owned, &counters);
                drop(attempt);
                // Nobody waits any more when this fails.
                let _ = done.send(client);
            })
            .map_err(|error| no_server(error.to_string()))?;
        match result.recv_timeout(limit) {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(reason_of(config, &legible(&error.to_string()))),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                Err(no_server(format!("no answer within {limit:?}")))
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                Err(no_server("the connection attempt broke off".to_owned()))
            }
        }
    }

    /// Subscribes; at most `limit` messages wait, later ones are thrown away and counted.
    ///
    /// # Errors
    ///
    /// [`ControlError::Lost`] after the connection was closed for good.
    pub fn subscribe(&self, subject: &str, limit: usize) -> Result<Subscription, ControlError> {
        bounded(self.connection.subscribe(subject), limit)
    }

    /// As [`Client::subscribe`], sharing the messages with others of the same `group`.
    ///
    /// # Errors
    ///
    /// As [`Client::subscribe`].
    pub fn subscribe_in_group(
        &self,
        subject: &str,
        group: &str,
        limit: usize,
    ) -> Result<Subscription, ControlError> {
        bounded(self.connection.queue_subscribe(subject, group), limit)
    }

    /// # Errors
    ///
    /// [`ControlError::Lost`] if it cannot be kept until the connection is back.
    pub fn publish(
        &self,
        subject: &str,
        reply: Option<&str>,
        payload: &[u8],
    ) -> Result<(), ControlError> {
        self.connection
            .publish_with_reply_or_headers(subject, reply, None, payload)
            .map_err(lost)
    }

    /// An answer of a micro service that is an error: its code and words stand in the header.
    ///
    /// # Errors
    ///
    /// As [`Client::publish`].
    pub fn publish_service_error(
        &self,
        subject: &str,
        code: u16,
        words: &str,
        payload: &[u8],
    ) -> Result<(), ControlError> {
        let mut headers = nats::HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", code.to_string());
        headers.insert("Nats-Service-Error", words.replace(['\r', '\n'], " "));
        self.connection
            .publish_with_reply_or_headers(subject, None, Some(&headers), payload)
            .map_err(lost)
    }

    /// A subject of this client's own, for answers.
    pub fn new_inbox(&self) -> String {
        self.connection.new_inbox()
    }

    /// Asks, and waits for the first answer.
    ///
    /// # Errors
    ///
    /// Every variant but [`ControlError::BadReply`], which is the caller's to find.
    pub fn request(
        &self,
        subject: &str,
        payload: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, ControlError> {
        let answers = self.ask(subject, payload)?;
        match answers.next(limit) {
            Some(answer) if answer.no_responders => Err(ControlError::NoResponders {
                subject: subject.to_owned(),
            }),
            Some(answer) => Ok(answer.data),
            None => Err(ControlError::Timeout {
                subject: subject.to_owned(),
                millis: limit.as_millis(),
            }),
        }
    }

    /// Asks everybody, and takes all answers that come in time.
    ///
    /// # Errors
    ///
    /// [`ControlError::Lost`]; that nobody answers is an empty list.
    pub fn gather(
        &self,
        subject: &str,
        payload: &[u8],
        limit: Duration,
    ) -> Result<Vec<Message>, ControlError> {
        let answers = self.ask(subject, payload)?;
        let deadline = Instant::now() + limit;
        let mut all = Vec::new();
        while let Some(answer) = answers.next(deadline.saturating_duration_since(Instant::now())) {
            if answer.no_responders || all.len() == MOST_ANSWERS {
                break;
            }
            all.push(answer);
        }
        Ok(all)
    }

    fn ask(&self, subject: &str, payload: &[u8]) -> Result<Subscription, ControlError> {
        let inbox = self.new_inbox();
        let answers = self.subscribe(&inbox, MOST_ANSWERS)?;
        self.publish(subject, Some(&inbox), payload)?;
        Ok(answers)
    }
}

/// Messages of one subject, or of all that match it. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription(nats::Subscription);

impl Subscription {
    /// The next message, if one comes in time.
    pub fn next(&self, limit: Duration) -> Option<Message> {
        self.0.next_timeout(limit).ok().map(Message::from)
    }
}

/// The next message of any of `subscriptions`, with its place in the slice. They take turns, so
/// that a flood on one does not silence another.
pub fn next_of(subscriptions: &[Subscription], limit: Duration) -> Option<(usize, Message)> {
    let mut select = Select::new();
    for subscription in subscriptions {
        select.recv(subscription.0.receiver());
    }
    let ready = select.select_timeout(limit).ok()?;
    let index = ready.index();
    let message = ready.recv(subscriptions[index].0.receiver()).ok()?;
    Some((index, message.into()))
}

impl From<nats::Message> for Message {
    fn from(message: nats::Message) -> Self {
        Self {
            no_responders: message.is_no_responders(),
            subject: message.subject,
            reply: message.reply,
            data: message.data,
        }
    }
}

/// An attempt to connect, counted while it lives.
struct Attempt(Arc<LinkCounters>);

impl Attempt {
    fn begin(counters: &Arc<LinkCounters>) -> Self {
        counters.connecting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counters))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.connecting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn connect(config: &ServerConfig, counters: &Arc<LinkCounters>) -> std::io::Result<Client> {
    let options = match (config.login(), &config.credentials) {
        (_, Some(path)) => nats::Options::with_credentials(path),
        (Login::Token(token), None) => nats::Options::with_token(token),
        (Login::User { name, password }, None) => nats::Options::with_user_pass(name, password),
        (Login::None, None) => nats::Options::new(),
    };
    let count = |counter: fn(&LinkCounters) -> &AtomicU64| {
        let counters = Arc::clone(counters);
        // Relaxed: a counter for reports.
        move || counter(&counters).fetch_add(1, Ordering::Relaxed)
    };
    let (overflow, complaint) = (count(|all| &all.overflows), count(|all| &all.errors));
    let (gone, back) = (count(|all| &all.disconnects), count(|all| &all.reconnects));
    let closing = Arc::new(AtomicBool::new(false));
    let (let_go, still_let_go) = (Arc::clone(&closing), Arc::clone(&closing));
    let mut options = options
        .with_name("cvmmap_streamer")
        .max_reconnects(None)
        .reconnect_buffer_size(RECONNECT_BUFFER)
        .reconnect_delay_callback(|attempt| match attempt {
            0 => Duration::ZERO,
            _ => RETRY,
        })
        .tls_required(config.requires_tls())
        .disconnect_callback(move || {
            if !let_go.load(Ordering::Relaxed) {
                gone();
                log::warn!("the NATS server is gone; reconnecting in the background");
            }
        })
        .reconnect_callback(move || {
            if !still_let_go.load(Ordering::Relaxed) {
                back();
                log::info!("the NATS server is back");
            }
        })
        .error_callback(move |error| {
            let words = error.to_string();
            if words.starts_with("slow consumer") {
                overflow();
                log::debug!("NATS: {words}");
            } else {
                complaint();
                log::warn!("NATS: {}", legible(&words));
            }
        });
    if let Some(path) = &config.authorities {
        options = options.add_root_certificate(path);
    }
    let servers: Vec<&str> = config.addresses().iter().map(String::as_str).collect();
    let connection = options.connect(&servers[..])?;
    Ok(Client {
        connection,
        closing,
    })
}

/// A server's words without what a terminal obeys.
fn legible(words: &str) -> String {
    words.replace(char::is_control, " ")
}

/// What the crate's words for a failed attempt mean; it has no kinds for them.
fn reason_of(config: &ServerConfig, words: &str) -> ControlError {
    let server = config.to_string();
    if words.contains("Authorization Violation") {
        let reason = "it refuses the credentials (--nats-url, --nats-creds)".to_owned();
        return ControlError::Unauthorized { server, reason };
    }
    if words.contains("credentials file") {
        let reason = format!("{words} (--nats-creds)");
        return ControlError::Unauthorized { server, reason };
    }
    if let Some(reason) = words.strip_prefix("TLS error: ") {
        let reason = match reason {
            _ if reason.contains("UnknownIssuer") => {
                "its certificate is of an unknown authority (--nats-ca)".to_owned()
            }
            _ if reason.contains("InvalidContentType") => "it does not speak it".to_owned(),
            other => other.to_owned(),
        };
        return ControlError::Tls { server, reason };
    }
    let reason = words.to_owned();
    ControlError::NoServer { server, reason }
}

fn bounded(
    subscription: std::io::Result<nats::Subscription>,
    limit: usize,
) -> Result<Subscription, ControlError> {
    let subscription = subscription.map_err(lost)?;
    subscription.set_message_limits(limit);
    Ok(Subscription(subscription))
}

fn lost(error: std::io::Error) -> ControlError {
    ControlError::Lost(error.to_string())
}

/// Pause between two attempts.
pub const RETRY: Duration = Duration::from_secs(1);
/// Threads that a host may hold which takes connections and says nothing.
const MOST_CONNECTING: u64 = 4;
/// What is published while the server is away. Statistics of a moment ago are worth nothing.
const RECONNECT_BUFFER: usize = 64 * 1024;
/// To one question; more come only from somebody who means ill.
const MOST_ANSWERS: usize = 256;
