//! The thread beside a running stream: hears the producer's status and bodies, asks what it is,
//! and serves our own requests.
//!
//! One thread, which nobody waits for. Whatever it tells the pipeline goes through flags and
//! bounded channels that the pipeline looks at in its own time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message as _;

use crate::pipeline::stop::StopToken;
use crate::source::counters;
use crate::source::hints::{Nature, StatusHint, StatusHints};

use super::body::BodyFrame;
use super::client::{Client, ControlError, LinkCounters, Message, RETRY, Subscription, next_of};
use super::messages::{ErrorCode, GetSourceInfoResponse, ModuleStatusCode, ModuleStatusEvent};
use super::micro::{self, Endpoint, Identity, Verb};
use super::pose::PoseSender;
use super::server::ServerConfig;
use super::service::{Action, PipelineHandles, Reply, Service};
use super::words::{SourceInfo, nature};

/// Whom the thread talks to.
#[derive(Debug, Clone)]
pub struct PlaneConfig {
    pub server: ServerConfig,
    /// Of the producer's subjects.
    pub nats_key: String,
    /// The producer's name. Keys of two producers can be the same, their names cannot.
    pub instance: Option<String>,
    /// For whoever discovers this streamer.
    pub metadata: BTreeMap<String, String>,
}

/// Whom it tells.
pub struct PlaneHandles {
    pub hints: StatusHints,
    /// `None`: bodies are parsed, counted and dropped.
    pub poses: Option<PoseSender>,
    pub pipeline: PipelineHandles,
    pub state: Arc<PlaneState>,
    pub stop: StopToken,
}

counters! {
    /// Everything that came over NATS, and what became of it.
    PlaneCounters {
        /// 1 once a connection was made: what comes after it are reconnects.
        connects,
        online,
        offline,
        stream_resets,
        /// Status events that are no protobuf of their kind.
        bad_status,
        /// Status codes that nobody has told us of.
        unknown_status,
        /// Status events and bodies of another producer with the same key.
        foreign,
        bodies,
        bad_bodies,
        /// Times the producer was asked what it is, and times it did not say.
        info_asked,
        info_failed,
        /// Requests to our own service, and those it refused.
        requests,
        refused_requests,
    }
}

/// What the thread knows and has counted, for reports.
#[derive(Debug, Default)]
pub struct PlaneState {
    pub counters: PlaneCounters,
    pub link: Arc<LinkCounters>,
    source: Mutex<Option<SourceInfo>>,
}

impl PlaneState {
    /// What the producer says of itself.
    pub fn source(&self) -> Option<SourceInfo> {
        self.source
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Every counter by name.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let link = &self.link;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.counters.values().chain([
            ("dropped", of(&link.overflows)),
            ("disconnects", of(&link.disconnects)),
            ("reconnects", of(&link.reconnects)),
            ("server_errors", of(&link.errors)),
        ])
    }
}

/// Starts the thread. It ends some time after the stop; nobody has to wait for it.
///
/// # Errors
///
/// If the system has no thread left.
pub fn start(config: PlaneConfig, handles: PlaneHandles) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let Some(client) = connect(&config, &handles) else {
                return;
            };
            match Plane::new(&config, handles, client) {
                Ok(plane) => plane.run(),
                Err(error) => log::warn!("NATS: {error}; the stream goes on without it"),
            }
        })
        .map(drop)
}

/// Tries until it works or the run stops. One warning for each kind of reason, and one line when
/// it is over.
fn connect(config: &PlaneConfig, handles: &PlaneHandles) -> Option<Client> {
    let mut warned = Vec::new();
    while !handles.stop.is_stopped() {
        match Client::connect_within(&config.server, &handles.state.link, CONNECT_LIMIT) {
            Ok(client) => {
                count(&handles.state.counters.connects);
                log::info!("NATS: connected to {}", config.server);
                return Some(client);
            }
            Err(error) if !warned.contains(&std::mem::discriminant(&error)) => {
                warned.push(std::mem::discriminant(&error));
                log::warn!(
                    "{error}; the stream runs without status, control and bodies, and the server \
                     is tried again every second (--no-nats switches this off)"
                );
            }
            Err(error) => log::debug!("{error}"),
        }
        if handles.stop.wait(RETRY) {
            break;
        }
    }
    None
}

/// What a message of a subscription is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Status,
    Body,
    /// The answer to `source.info`.
    Info,
    Verb(Verb),
    Action(Action),
}

struct Plane<'a> {
    config: &'a PlaneConfig,
    handles: PlaneHandles,
    client: Client,
    subscriptions: Vec<Subscription>,
    roles: Vec<Role>,
    inbox: String,
    info: InfoQuestion,
    service: Service,
    identity: Identity,
    started: String,
    endpoints: Vec<Endpoint>,
    /// Where the answer goes that the service owes.
    owed: Option<(String, Instant)>,
    said: Said,
}

/// When the producer is asked, and what of it is open.
#[derive(Debug, Default)]
struct InfoQuestion {
    wanted: bool,
    asked: Option<Instant>,
    open: bool,
    /// It did not say. A producer that finds the server again later than we do says no ONLINE.
    failed: bool,
    /// Reconnects that were seen: what was said meanwhile is lost.
    reconnects: u64,
}

/// What the log has said, so that a flood of events is not one of lines.
#[derive(Debug, Default)]
struct Said {
    status: Option<Instant>,
    bad_status: bool,
    bad_body: bool,
    foreign: bool,
    info: Option<String>,
}

impl<'a> Plane<'a> {
    fn new(
        config: &'a PlaneConfig,
        handles: PlaneHandles,
        client: Client,
    ) -> Result<Self, ControlError> {
        let key = &config.nats_key;
        let inbox = client.new_inbox();
        let id = inbox.trim_start_matches("_INBOX.").to_owned();
        let mut subscriptions = Vec::new();
        let mut roles = Vec::new();
        let mut add = |role, subscription| {
            roles.push(role);
            subscriptions.push(subscription);
        };
        let status = format!("cvmmap.{key}.status");
        add(Role::Status, client.subscribe(&status, STATUS_QUEUE)?);
        let body = format!("cvmmap.{key}.body");
        add(Role::Body, client.subscribe(&body, BODY_QUEUE)?);
        add(Role::Info, client.subscribe(&inbox, REQUEST_QUEUE)?);
        for verb in Verb::ALL {
            for subject in verb.subjects(micro::SERVICE, &id) {
                add(Role::Verb(verb), client.subscribe(&subject, REQUEST_QUEUE)?);
            }
        }
        for action in Action::ALL {
            let role = Role::Action(action);
            let group = micro::QUEUE_GROUP;
            let shared = action.subject(key);
            add(
                role,
                client.subscribe_in_group(&shared, group, REQUEST_QUEUE)?,
            );
            let own = action.subject_of(key, &id);
            add(role, client.subscribe(&own, REQUEST_QUEUE)?);
        }
        let mut metadata = config.metadata.clone();
        metadata.insert(
            "instance_subject_prefix".to_owned(),
            format!("cvmmap.{key}.streamer.{id}"),
        );
        Ok(Self {
            service: Service::new(handles.pipeline.clone()),
            identity: Identity {
                name: micro::SERVICE.to_owned(),
                id,
                version: micro::VERSION.to_owned(),
                metadata,
            },
            started: rfc3339(SystemTime::now()),
            endpoints: Action::ALL
                .map(|action| Endpoint::new(action.name(), action.subject(key)))
                .to_vec(),
            config,
            handles,
            client,
            subscriptions,
            roles,
            inbox,
            info: InfoQuestion {
                wanted: true,
                ..InfoQuestion::default()
            },
            owed: None,
            said: Said::default(),
        })
    }

    fn run(mut self) {
        while !self.handles.stop.is_stopped() {
            let now = Instant::now();
            if let Err(error) = self.ask_for_info(now).and_then(|()| self.pay(now)) {
                log::debug!("NATS: {error}");
            }
            let limit = if self.service.owes() { SOON } else { LISTEN };
            let Some((index, message)) = next_of(&self.subscriptions, limit) else {
                continue;
            };
            match self.roles[index] {
                Role::Status => self.status(&message.data),
                Role::Body => self.body(&message.data),
                Role::Info => self.info(&message),
                Role::Verb(verb) => self.verb(verb, &message),
                Role::Action(action) => self.action(action, &message),
            }
        }
    }

    fn counters(&self) -> &PlaneCounters {
        &self.handles.state.counters
    }

    fn status(&mut self, bytes: &[u8]) {
        let event = match ModuleStatusEvent::decode(bytes) {
            Ok(event) => event,
            Err(error) => {
                count(&self.counters().bad_status);
                if !std::mem::replace(&mut self.said.bad_status, true) {
                    log::warn!("a status event of the producer is none: {error}");
                }
                return;
            }
        };
        if self.is_foreign(&event.instance) {
            return;
        }
        let (counter, hint, words) = match ModuleStatusCode::try_from(event.status) {
            Ok(ModuleStatusCode::Online) => {
                self.info.wanted = true;
                // What the one before it said may not be true of this one.
                self.handles.hints.describe(Nature::default());
                (&self.counters().online, StatusHint::Online, "is online")
            }
            Ok(ModuleStatusCode::Offline) => (
                &self.counters().offline,
                StatusHint::Offline,
                "goes offline",
            ),
            Ok(ModuleStatusCode::StreamReset) => {
                // Another recording of a playlist may have another end.
                self.info.wanted = true;
                (
                    &self.counters().stream_resets,
                    StatusHint::StreamReset,
                    "starts its stream anew",
                )
            }
            Ok(ModuleStatusCode::Unknown) | Err(_) => {
                count(&self.counters().unknown_status);
                return;
            }
        };
        count(counter);
        self.handles.hints.tell(hint);
        let now = Instant::now();
        if self.said.status.is_none_or(|at| now >= at + ONE_LINE) {
            self.said.status = Some(now);
            log::info!("the producer {words}, as it says");
        }
    }

    fn body(&mut self, bytes: &[u8]) {
        match BodyFrame::parse(bytes) {
            Ok(frame) => {
                if self.is_foreign(&frame.label) {
                    return;
                }
                count(&self.counters().bodies);
                if let Some(poses) = &self.handles.poses {
                    poses.send(frame);
                }
            }
            Err(error) => {
                count(&self.counters().bad_bodies);
                if !std::mem::replace(&mut self.said.bad_body, true) {
                    log::warn!("a body packet of the producer is none: {error}");
                }
            }
        }
    }

    /// An empty name is nobody's.
    fn is_foreign(&mut self, instance: &str) -> bool {
        let foreign = !instance.is_empty()
            && self
                .config
                .instance
                .as_ref()
                .is_some_and(|own| own != instance);
        if foreign {
            count(&self.counters().foreign);
            if !std::mem::replace(&mut self.said.foreign, true) {
                log::warn!(
                    "another producer, {instance:?}, uses the NATS key {} too: left out",
                    self.config.nats_key
                );
            }
        }
        foreign
    }

    fn ask_for_info(&mut self, now: Instant) -> Result<(), ControlError> {
        let since = |pause| self.info.asked.is_none_or(|at| now >= at + pause);
        // Relaxed: a counter.
        let reconnects = self.handles.state.link.reconnects.load(Ordering::Relaxed);
        let lost_sight = reconnects != self.info.reconnects;
        let wanted = self.info.wanted || lost_sight || (self.info.failed && since(ASK_AGAIN));
        let timed_out = self.info.open && since(ANSWER_LIMIT);
        let ask = wanted && since(ASK_PAUSE);
        if timed_out {
            self.info.open = false;
            self.info.failed = true;
            count(&self.counters().info_failed);
        }
        if !ask {
            return Ok(());
        }
        self.info = InfoQuestion {
            wanted: false,
            asked: Some(now),
            open: true,
            failed: false,
            reconnects,
        };
        count(&self.counters().info_asked);
        let subject = format!("cvmmap.{}.producer.source.info", self.config.nats_key);
        self.client.publish(&subject, Some(&self.inbox), b"")
    }

    fn info(&mut self, message: &Message) {
        if !std::mem::take(&mut self.info.open) {
            return;
        }
        let answer = GetSourceInfoResponse::decode(&message.data[..]);
        let info = match answer {
            // ONLINE will say when it is there.
            _ if message.no_responders => None,
            Ok(info) if info.error() == ErrorCode::Ok => Some(info),
            _ => None,
        };
        let Some(info) = info else {
            self.info.failed = true;
            count(&self.counters().info_failed);
            log::debug!("the producer does not say what it is");
            return;
        };
        self.handles.hints.describe(nature(&info));
        let info = SourceInfo::from(&info);
        let summary = info.summary();
        if self.said.info.as_ref() != Some(&summary) {
            log::info!("the producer is {summary}");
            self.said.info = Some(summary);
        }
        let state = &self.handles.state;
        *state.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(info);
    }

    fn verb(&self, verb: Verb, message: &Message) {
        let Some(reply) = &message.reply else { return };
        let answer = micro::answer(verb, &self.identity, &self.started, &self.endpoints);
        if let Err(error) = self.client.publish(reply, None, &answer) {
            log::debug!("NATS: {error}");
        }
    }

    fn action(&mut self, action: Action, message: &Message) {
        let Some(to) = message.reply.clone() else {
            // Nobody would learn what became of it.
            return;
        };
        count(&self.counters().requests);
        let now = Instant::now();
        let result = match self.service.serve(action, &message.data, now) {
            Some(reply) => self.answer(action, &to, &reply, now),
            None => {
                self.owed = Some((to, now));
                Ok(())
            }
        };
        if let Err(error) = result {
            log::debug!("NATS: {error}");
        }
    }

    fn pay(&mut self, now: Instant) -> Result<(), ControlError> {
        let Some(reply) = self.service.later(now) else {
            return Ok(());
        };
        match self.owed.take() {
            Some((to, since)) => self.answer(Action::Bitrate, &to, &reply, since),
            None => Ok(()),
        }
    }

    fn answer(
        &mut self,
        action: Action,
        to: &str,
        reply: &Reply,
        since: Instant,
    ) -> Result<(), ControlError> {
        let error = match reply {
            Reply::Done(_) => None,
            Reply::Refused { words, .. } => Some(words.as_str()),
        };
        if let Some(endpoint) = self
            .endpoints
            .iter_mut()
            .find(|endpoint| endpoint.name == action.name())
        {
            endpoint.count(since.elapsed().as_nanos() as u64, error);
        }
        match reply {
            Reply::Done(_) => self.client.publish(to, None, &reply.body()),
            Reply::Refused { code, words } => {
                count(&self.counters().refused_requests);
                self.client
                    .publish_service_error(to, *code, words, &reply.body())
            }
        }
    }
}

/// UTC to the second, as RFC 3339 writes it.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        days + 1,
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

fn count(counter: &AtomicU64) {
    // Relaxed: counters publish nothing but themselves.
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A server that takes the connection and then says nothing is given up after that.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// The stop is seen at least so often.
const LISTEN: Duration = Duration::from_millis(100);
/// While an answer is owed.
const SOON: Duration = Duration::from_millis(10);
/// Between two lines about the same thing.
const ONE_LINE: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Between two questions to the producer, and where it did not say what it is.
const ASK_PAUSE: Duration = Duration::from_millis(250);
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Messages that may wait. A server lets one have a megabyte, so that these bound the memory that
/// a flood can take.
const STATUS_QUEUE: usize = 64;
const BODY_QUEUE: usize = 16;
const REQUEST_QUEUE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        // `date -u -d @N +%FT%TZ`
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_795_344_337, "2026-11-22T10:45:37Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
