//! Access units to a receiver by RTP over UDP.
//!
//! Nothing that happens to packets on their way ends the sink: an absent receiver is counted, a
//! full queue or an unreachable network gives up the access unit and asks for a key frame.
//!
//! The session description stays where it was written when the sink closes: the next run replaces
//! it, and what reads it meanwhile finds the same stream once it comes back.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bitstream::AccessUnit;
use crate::encode::{Codec, FrameRate};
use crate::pipeline::stop::StopToken;
use crate::rtp::header::Header;
use crate::rtp::rtcp::{self, ClockAnchor, SenderReport};
use crate::rtp::{Packetizer, PacketizerConfig};
use crate::trace::Stage;

use super::udp::{self, BatchEnd, BatchSent, Rung};
use super::{Sent, Sink, SinkContext, SinkError, SinkStats};

use announce::Announcement;
use feedback::{Feedbacks, KeyFrameAsker};
use pacing::{Pacer, Step};
use sockets::Sockets;

mod announce;
mod feedback;
mod pacing;
mod sockets;

pub use pacing::{Pacing, PacingError};

/// What the operator chose for one receiver.
#[derive(Debug, Clone)]
pub struct RtpSinkConfig {
    /// `HOST:PORT`; the host is a name, an IPv4 address or an IPv6 address in brackets.
    pub endpoint: String,
    pub codec: Codec,
    /// 96 to 127.
    pub payload_type: u8,
    /// Bytes of a whole RTP packet, header included.
    pub mtu: usize,
    pub pacing: Pacing,
    /// Where the session description is written; its folder has to exist. Without it the text is
    /// logged once.
    pub sdp_path: Option<PathBuf>,
    /// The session's name in the description.
    pub name: String,
    /// In bit/s, where it is known: for the description and for pacing.
    pub bitrate: Option<u32>,
    /// For the description, where it is known.
    pub frame_rate: Option<FrameRate>,
    /// The random starts of RFC 3550 section 5.1; `None` draws them.
    pub identity: Option<RtpIdentity>,
    /// Sends no better than this; `None` is what the kernel has.
    pub rung: Option<Rung>,
}

impl RtpSinkConfig {
    pub const PAYLOAD_TYPE: u8 = 96;
    pub const MTU: usize = 1200;

    /// With every default.
    pub fn new(endpoint: impl Into<String>, codec: Codec) -> Self {
        Self {
            endpoint: endpoint.into(),
            codec,
            payload_type: Self::PAYLOAD_TYPE,
            mtu: Self::MTU,
            pacing: Pacing::Auto,
            sdp_path: None,
            name: "cvmmap-streamer".to_owned(),
            bitrate: None,
            frame_rate: None,
            identity: None,
            rung: None,
        }
    }
}

/// Where a session starts to count, and what it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpIdentity {
    pub ssrc: u32,
    pub sequence: u16,
    pub timestamp: u32,
    /// Of the session description.
    pub session_id: u64,
}

impl RtpIdentity {
    fn random() -> Result<Self, getrandom::Error> {
        let wide = getrandom::u64()?;
        Ok(Self {
            ssrc: getrandom::u32()?,
            sequence: wide as u16,
            timestamp: getrandom::u32()?,
            // readers keep it in a signed integer
            session_id: wide >> 1,
        })
    }
}

/// One receiver.
#[derive(Debug)]
pub struct RtpSink {
    name: String,
    config: RtpSinkConfig,
    identity: RtpIdentity,
    context: SinkContext,
    packetizer: Packetizer,
    sockets: Sockets,
    pacer: Pacer,
    announcement: Announcement,
    asker: KeyFrameAsker,
    feedbacks: Feedbacks,
    cname: String,
    /// The newest picture's place on both clocks; `None` before the first.
    anchor: Option<ClockAnchor>,
    packets: u32,
    octets: u32,
    next_report: Option<Instant>,
    next_feedback: Option<Instant>,
    /// RTCP that is being written.
    scratch: Vec<u8>,
    trouble: Trouble,
}

/// States that are logged when they begin and end, not packet by packet.
#[derive(Debug, Default)]
struct Trouble {
    refused_at: Option<Instant>,
    failing: bool,
    full: bool,
}

impl RtpSink {
    /// Resolves the endpoint, opens the sockets and asks for a key frame.
    ///
    /// # Errors
    ///
    /// [`SinkError::Open`] for an endpoint that cannot be parsed or resolved, a network that
    /// cannot be reached, or a folder for the session description that is not there.
    pub fn open(config: RtpSinkConfig, context: SinkContext) -> Result<Self, SinkError> {
        let name = format!("rtp {}", config.endpoint);
        let refuse = |reason: String| SinkError::Open {
            sink: name.clone(),
            reason,
        };
        let mut sockets = Sockets::open(&config.endpoint).map_err(refuse)?;
        if let Some(rung) = config.rung {
            sockets.rtp.limit_rung(rung);
        }
        let announcement = Announcement::new(config.sdp_path.clone()).map_err(refuse)?;
        let identity = match config.identity {
            Some(identity) => identity,
            None => RtpIdentity::random()
                .map_err(|error| refuse(format!("no random numbers from the system: {error}")))?,
        };
        let packetizer = Packetizer::new(PacketizerConfig {
            codec: config.codec,
            payload_type: config.payload_type,
            mtu: config.mtu,
            ssrc: identity.ssrc,
            sequence: identity.sequence,
        });
        log::info!(
            "{name}: from {} to {}, RTCP from port {}, packets of {} bytes by {}",
            sockets.local,
            sockets.peer,
            sockets.rtcp_port(),
            packetizer.config().mtu,
            sockets.rtp.rung().name(),
        );
        context.key_frames.ask();
        Ok(Self {
            // RFC 3550 section 6.5.1 wants user@host; nobody is told who runs this
            cname: format!("{:016x}@{}", identity.session_id, sockets.local.ip()),
            pacer: Pacer::new(config.pacing, config.bitrate),
            feedbacks: Feedbacks::new(identity.ssrc),
            asker: KeyFrameAsker::default(),
            anchor: None,
            packets: 0,
            octets: 0,
            next_report: None,
            next_feedback: None,
            scratch: Vec::with_capacity(512),
            trouble: Trouble::default(),
            name,
            config,
            identity,
            context,
            packetizer,
            sockets,
            announcement,
        })
    }

    /// Where packets go.
    pub fn peer(&self) -> std::net::SocketAddr {
        self.sockets.peer
    }

    /// Where RTCP comes from and feedback is read.
    pub fn rtcp_port(&self) -> u16 {
        self.sockets.rtcp_port()
    }

    /// Draws and sends the packets of `unit`, in steps if the pacer says so. Gives the number of
    /// packets and what became of them.
    fn send_packets(&mut self, unit: &AccessUnit) -> (u64, BatchSent) {
        let timestamp = unit.pts.to_rtp(self.identity.timestamp);
        let mut packets = self.packetizer.packets(unit.nals(), timestamp);
        let total = packets.len();
        let mut steps = self
            .pacer
            .start(total, unit.payload_len(), unit.dts, Instant::now());
        let mut all = BatchSent::default();
        while packets.len() > 0 && all.end.is_none() {
            let Step { packets: count, at } = steps.next();
            sleep_until(at, &self.context.stop);
            let mut step = packets.by_ref().take(count);
            let deadline = Instant::now() + udp::PATIENCE;
            let sent = self.sockets.rtp.send(&mut step, deadline);
            all.datagrams += sent.datagrams;
            all.bytes += sent.bytes;
            all.refused += sent.refused;
            all.lost += sent.lost;
            all.first_at = all.first_at.or(sent.first_at);
            all.end = sent.end;
        }
        self.pacer.finish(steps);
        (total as u64, all)
    }

    /// Why the rest of an access unit was not sent, and what follows from it.
    fn give_up(&mut self, end: BatchEnd, now: Instant) {
        SinkStats::add(&self.context.stats.given_up, 1);
        let pause = match end {
            BatchEnd::Full => {
                if !std::mem::replace(&mut self.trouble.full, true) {
                    log::warn!(
                        "{}: no room in the send queue: dropping to the next key frame \
                         (a lower bit rate or --rtp-pacing would help)",
                        self.name
                    );
                }
                KeyFrameAsker::PAUSE
            }
            BatchEnd::TooBig { path_mtu } => {
                SinkStats::add(&self.context.stats.errors, 1);
                self.shrink(path_mtu);
                KeyFrameAsker::PAUSE
            }
            BatchEnd::Failed(error) => {
                SinkStats::add(&self.context.stats.errors, 1);
                if !std::mem::replace(&mut self.trouble.failing, true) {
                    log::warn!("{}: cannot send: {error}; trying on", self.name);
                }
                KeyFrameAsker::LONG_PAUSE
            }
        };
        self.asker.want(now, pause);
        self.ask_if_due(now);
    }

    /// Takes the size of packets down to what the path carries.
    fn shrink(&mut self, path_mtu: Option<usize>) {
        let headers = if self.sockets.peer.is_ipv4() { 28 } else { 48 };
        let mtu = self.packetizer.config().mtu;
        let fits = path_mtu.map_or(mtu, |path| path.saturating_sub(headers));
        if fits < mtu {
            self.packetizer.set_mtu(fits);
            self.sockets.rtp.restore_rung();
            log::warn!(
                "{}: packets of {mtu} bytes are too large for the path, which carries {fits}: \
                 using {} (--rtp-mtu)",
                self.name,
                self.packetizer.config().mtu
            );
        } else if !std::mem::replace(&mut self.trouble.failing, true) {
            log::warn!(
                "{}: packets of {mtu} bytes are too large for the path; a smaller --rtp-mtu helps",
                self.name
            );
        }
    }

    fn note_refusals(&mut self, refused: u64, now: Instant) {
        if refused > 0 {
            SinkStats::add(&self.context.stats.errors, refused);
            if self.trouble.refused_at.replace(now).is_none() {
                log::info!("{}: nobody listens there yet; sending on", self.name);
            }
        } else if let Some(at) = self.trouble.refused_at
            && now.saturating_duration_since(at) > QUIET_AFTER_REFUSAL
        {
            self.trouble.refused_at = None;
            log::info!("{}: no longer refused", self.name);
        }
    }

    fn ask_if_due(&mut self, now: Instant) {
        if self.asker.take_due(now) {
            self.context.key_frames.ask();
        }
    }

    fn read_feedback(&mut self, now: Instant) {
        let Self {
            sockets,
            feedbacks,
            context,
            name,
            ..
        } = self;
        let unix_now = rtcp::NtpTime::from_unix_nanos(unix_nanos());
        let mut wanted = 0;
        let refused =
            sockets.receive(|datagram| wanted += feedbacks.take(datagram, unix_now, name));
        if wanted > 0 {
            SinkStats::add(&context.stats.key_frame_requests, wanted);
            log::debug!("{name}: a receiver asks for a key frame");
            // Receivers repeat themselves: what comes too soon after the last one is dropped.
            self.asker.want_now_or_never(now);
            self.ask_if_due(now);
        }
        self.note_refusals(refused, now);
    }

    fn report(&self) -> Option<SenderReport> {
        let (ntp, rtp_timestamp) = self
            .anchor?
            .stamps_at(unix_nanos(), self.identity.timestamp);
        Some(SenderReport {
            ssrc: self.identity.ssrc,
            ntp,
            rtp_timestamp,
            packets: self.packets,
            octets: self.octets,
        })
    }

    fn send_report(&mut self, now: Instant) {
        if self.next_report.is_some_and(|due| now < due) {
            return;
        }
        if let Some(report) = self.report() {
            self.scratch.clear();
            rtcp::write_report(&report, &self.cname, &mut self.scratch);
            self.sockets.send_rtcp(&self.scratch);
            self.next_report = Some(now + REPORT_INTERVAL);
        }
    }

    fn announce(&mut self, unit: &AccessUnit) {
        let Self {
            config,
            sockets,
            identity,
            cname,
            ..
        } = self;
        self.announcement
            .update(&self.name, &unit.parameters, |version| {
                crate::rtp::sdp::Description {
                    codec: config.codec,
                    payload_type: config.payload_type,
                    destination: sockets.peer.ip(),
                    port: sockets.peer.port(),
                    origin: sockets.local.ip(),
                    session_id: identity.session_id,
                    version,
                    name: &config.name,
                    ssrc: identity.ssrc,
                    cname,
                    parameters: &unit.parameters,
                    bitrate: config.bitrate,
                    frame_rate: config.frame_rate,
                    multicast_ttl: sockets::MULTICAST_TTL as u8,
                }
            });
    }
}

impl Sink for RtpSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn send(&mut self, unit: &AccessUnit) -> Result<Sent, SinkError> {
        if unit.codec() != self.config.codec {
            return Err(SinkError::Lost {
                sink: self.name.clone(),
                reason: format!(
                    "opened for {}, got {}: the codec cannot change in a session",
                    self.config.codec,
                    unit.codec()
                ),
            });
        }
        // First: who sees new parameter sets on the wire finds them described.
        if unit.key || !self.announcement.is_failing() {
            self.announce(unit);
        }
        let (total, sent) = self.send_packets(unit);
        let now = Instant::now();
        let stats = std::sync::Arc::clone(&self.context.stats);
        SinkStats::add(&stats.packets, sent.datagrams);
        SinkStats::add(&stats.bytes, sent.bytes);
        SinkStats::add(&stats.errors, sent.lost);
        self.packets = self.packets.wrapping_add(sent.datagrams as u32);
        let octets = sent.bytes - Header::LEN as u64 * sent.datagrams;
        self.octets = self.octets.wrapping_add(octets as u32);
        self.note_refusals(sent.refused, now);
        self.anchor = Some(ClockAnchor {
            media: unit.pts,
            captured_unix_ns: captured_at(unit, now),
        });
        let became = if let Some(end) = sent.end {
            self.give_up(end, now);
            Sent::GivenUp
        } else {
            if sent.datagrams == total {
                self.trouble.full = false;
                self.trouble.failing = false;
                stats.units.fetch_add(1, Ordering::Relaxed);
                stats.record_sent(unit, sent.first_at.unwrap_or(now), now);
            } else {
                SinkStats::add(&stats.given_up, 1);
            }
            Sent::All
        };
        self.send_report(now);
        Ok(became)
    }

    fn poll(&mut self) -> Result<Duration, SinkError> {
        let now = Instant::now();
        // Two system calls: as often as it can matter, not as often as this is called.
        if self.next_feedback.is_none_or(|due| now >= due) {
            self.next_feedback = Some(now + FEEDBACK_INTERVAL);
            self.read_feedback(now);
        }
        self.ask_if_due(now);
        self.send_report(now);
        let next = [self.next_report, self.asker.due()];
        let wait = next
            .into_iter()
            .flatten()
            .map(|at| at.saturating_duration_since(now))
            .min()
            .unwrap_or(POLL_INTERVAL);
        Ok(wait.min(POLL_INTERVAL))
    }

    fn close(&mut self) {
        if let Some(report) = self.report() {
            self.scratch.clear();
            rtcp::write_goodbye(&report, &self.cname, &mut self.scratch);
            self.sockets.send_rtcp(&self.scratch);
        }
    }
}

/// The picture's capture time, or its arrival where that is unknown or not lately: a report is
/// about now, and 32 bits of RTP time reach no recording of last week. GStreamer throws reports
/// away that are more than a second off the packets.
fn captured_at(unit: &AccessUnit, now: Instant) -> u64 {
    let arrived = unit.trace.at(Stage::Notice).unwrap_or(now);
    let age = now.saturating_duration_since(arrived).as_nanos() as u64;
    let arrival = unix_nanos().saturating_sub(age);
    let captured = unit.trace.capture_unix_ns;
    captured
        .filter(|captured| captured.abs_diff(arrival) <= LATELY_NS)
        .unwrap_or(arrival)
}

fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Waits for a step. A stop cuts long waits off, which only a very low rate makes; short ones are
/// kept, so that the last pictures do not arrive in a burst.
fn sleep_until(at: Option<Instant>, stop: &StopToken) {
    let Some(at) = at else { return };
    let left = at.saturating_duration_since(Instant::now());
    if left > LONG_WAIT {
        stop.wait(left);
    } else if !left.is_zero() {
        std::thread::sleep(left);
    }
}

/// RFC 3550 section 6.2 lets a sender of video report more often than the nominal 5 s.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Feedback waits no longer than this while no pictures come.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Feedback waits so long at least; a key frame is asked for every half second at most.
const FEEDBACK_INTERVAL: Duration = Duration::from_millis(10);
const LONG_WAIT: Duration = Duration::from_millis(50);
/// From capture to arrival, of a live source.
const LATELY_NS: u64 = 1_000_000_000;
const QUIET_AFTER_REFUSAL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
