//! A run of the RTP referee: sockets, clock and files around [`Receiver`].

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::feedback::FeedbackSender;
use super::header;
use super::receiver::{Config, Receiver, Verdict};
use super::report::Report;
use super::socket::{Channel, Sockets};
use crate::body_sei::{self, Pose};
use crate::exit;

/// What to receive and when to end.
#[derive(Debug, Clone)]
pub struct Options {
    pub bind: IpAddr,
    /// 0 picks a free pair.
    pub port: u16,
    pub config: Config,
    pub packet_threshold: u64,
    pub frame_threshold: Option<u64>,
    /// The run's longest time.
    pub timeout: Duration,
    /// Goes on past the threshold, to BYE, silence or the timeout.
    pub runs_on: bool,
    /// Silence that ends a run which goes on past its threshold.
    pub silence: Duration,
    /// Whole frames go there as Annex B.
    pub dump: Option<PathBuf>,
    /// The poses of whole frames go there, a line of JSON each.
    pub body_jsonl: Option<PathBuf>,
    /// How often a key frame is asked for.
    pub ask_every: Option<Duration>,
    /// Full intra requests in place of picture loss indications.
    pub full_intra: bool,
    /// UDP_GRO: several datagrams per read.
    pub gro: bool,
    /// A status line on standard error, if that is a terminal.
    pub status: bool,
}

impl Default for Options {
    /// The defaults of the command line, at a free port of the loopback address.
    fn default() -> Self {
        Options {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            config: Config::default(),
            packet_threshold: 1,
            frame_threshold: None,
            timeout: Duration::from_secs(10),
            runs_on: false,
            silence: Duration::from_secs(2),
            dump: None,
            body_jsonl: None,
            ask_every: None,
            full_intra: false,
            gro: true,
            status: false,
        }
    }
}

/// A receiver at its port.
#[derive(Debug)]
pub struct Tester {
    options: Options,
    sockets: Sockets,
    receiver: Receiver,
    dump: Option<BufWriter<File>>,
    bodies: Option<BufWriter<File>>,
    feedback: FeedbackSender,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Threshold,
    Bye,
    Silence,
    Timeout,
    Signal,
    PayloadType(u8),
}

impl End {
    fn name(self) -> &'static str {
        match self {
            End::Threshold => "threshold",
            End::Bye => "bye",
            End::Silence => "silence",
            End::Timeout => "timeout",
            End::Signal => "signal",
            End::PayloadType(_) => "payload type",
        }
    }
}

impl Tester {
    /// Binds the ports and creates the dump.
    ///
    /// # Errors
    ///
    /// If either cannot be had; the text names which.
    pub fn open(options: Options) -> io::Result<Self> {
        let port = options.port;
        let sockets = Sockets::open(options.bind, port, options.gro)
            .map_err(|e| io::Error::new(e.kind(), format!("UDP port {port}: {e}")))?;
        let create = |flag: &str, path: &Option<PathBuf>| match path {
            Some(path) => {
                let named = |e: io::Error| {
                    io::Error::new(e.kind(), format!("{flag} {}: {e}", path.display()))
                };
                File::create(path)
                    .map(|file| Some(BufWriter::new(file)))
                    .map_err(named)
            }
            None => Ok(None),
        };
        let dump = create("--dump", &options.dump)?;
        let bodies = create("--body-jsonl", &options.body_jsonl)?;
        Ok(Tester {
            receiver: Receiver::new(options.config.clone()),
            feedback: FeedbackSender::new(options.ask_every, options.full_intra),
            options,
            sockets,
            dump,
            bodies,
        })
    }

    /// The RTP port.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn port(&self) -> io::Result<u16> {
        self.sockets.port()
    }

    /// Whether RTCP is also taken at the next port.
    pub fn has_rtcp_port(&self) -> bool {
        self.sockets.has_rtcp_port()
    }

    /// Receives until the end that the options set, or `stop`.
    ///
    /// # Errors
    ///
    /// A socket's or the dump's.
    pub fn run(mut self, stop: &AtomicBool) -> io::Result<Report> {
        let end = self.receive(stop)?;
        for file in [&mut self.dump, &mut self.bodies].into_iter().flatten() {
            file.flush()?;
        }
        let payload_type = self.options.config.payload_type;
        let drops = u64::from(self.sockets.overflows());
        let mut report = Report::of(&self.receiver, payload_type, drops, self.feedback.sent());
        report.ended_by = end.name();
        report.exit_code = self.exit_code(&report, end);
        if let End::PayloadType(found) = end {
            report.foreign_payload_type = Some(found);
        }
        Ok(report)
    }

    fn exit_code(&self, report: &Report, end: End) -> u8 {
        let counters = &report.counters;
        let enough = counters.packets >= self.options.packet_threshold
            && self
                .options
                .frame_threshold
                .is_none_or(|wanted| counters.frames >= wanted);
        match end {
            End::PayloadType(_) => exit::PAYLOAD_TYPE_MISMATCH,
            _ if report.violations.count > 0 => exit::PROTOCOL_VIOLATION,
            _ if enough => exit::OK,
            _ if counters.packets == 0 => exit::TIMEOUT,
            _ => exit::THRESHOLD_NOT_MET,
        }
    }

    fn receive(&mut self, stop: &AtomicBool) -> io::Result<End> {
        let deadline = Instant::now() + self.options.timeout;
        let mut status = Status::new(self.options.status);
        let mut last_packet: Option<Instant> = None;
        loop {
            // Relaxed: the flag guards no other data.
            if stop.load(Ordering::Relaxed) {
                return Ok(End::Signal);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(End::Timeout);
            }
            let silence_left = match last_packet {
                Some(last) if self.options.runs_on => {
                    (last + self.options.silence).saturating_duration_since(now)
                }
                _ => self.options.silence,
            };
            if silence_left.is_zero() {
                return Ok(End::Silence);
            }
            let limit = (deadline - now)
                .min(silence_left)
                .min(self.feedback.next_in(now));
            self.sockets.wait(limit.min(Duration::from_millis(200)))?;
            // Ahead of RTP: when a BYE is here, all packets sent before it are there.
            while let Some((arrival, bytes)) = self.sockets.receive_rtcp()? {
                self.feedback.peer(Channel::Rtcp, arrival.from);
                self.receiver.rtcp(bytes, arrival.unix_ns);
            }
            while let Some(end) = self.read_rtp()? {
                let now = Instant::now();
                last_packet = Some(now);
                if let Some(end) = end {
                    return Ok(end);
                }
                // A flood must not hide the clock.
                if now >= deadline {
                    break;
                }
            }
            if self.receiver.has_ended() && self.receiver.counters().packets > 0 {
                return Ok(End::Bye);
            }
            self.feedback.send_if_due(&self.sockets, &mut self.receiver);
            status.show(&self.receiver);
        }
    }

    /// One read from the RTP port: nothing there, or what it led to.
    fn read_rtp(&mut self) -> io::Result<Option<Option<End>>> {
        let Some((arrival, bytes)) = self.sockets.receive_rtp()? else {
            return Ok(None);
        };
        let mut failure = None;
        for datagram in bytes.chunks(arrival.segment.max(1)) {
            if header::is_rtcp(datagram) {
                self.feedback.peer(Channel::Rtp, arrival.from);
                self.receiver.rtcp(datagram, arrival.unix_ns);
                continue;
            }
            self.feedback.media_peer(arrival.from);
            let (dump, bodies) = (&mut self.dump, &mut self.bodies);
            let verdict = self
                .receiver
                .rtp(datagram, arrival.unix_ns, &mut |codec, unit| {
                    if let Some(bodies) = bodies {
                        let poses = unit
                            .nals
                            .iter()
                            .filter_map(|nal| body_sei::find(codec, nal));
                        let written = write_poses(bodies, unit.timestamp, poses);
                        failure = failure.take().or(written.err());
                    }
                    let Some(dump) = dump else { return };
                    for nal in &unit.nals {
                        let written = dump
                            .write_all(&[0, 0, 0, 1])
                            .and_then(|()| dump.write_all(nal));
                        failure = failure.take().or(written.err());
                    }
                });
            if let Verdict::PayloadType(found) = verdict {
                return Ok(Some(Some(End::PayloadType(found))));
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let enough = self.receiver.counters().packets >= self.options.packet_threshold;
        Ok(Some(
            (enough && !self.options.runs_on).then_some(End::Threshold),
        ))
    }
}

/// A line for each pose, with the RTP time of its picture.
fn write_poses(
    file: &mut BufWriter<File>,
    rtp_timestamp: u32,
    poses: impl Iterator<Item = Pose>,
) -> io::Result<()> {
    #[derive(serde::Serialize)]
    struct Line {
        rtp_timestamp: u32,
        #[serde(flatten)]
        pose: Pose,
    }
    for pose in poses {
        serde_json::to_writer(
            &mut *file,
            &Line {
                rtp_timestamp,
                pose,
            },
        )?;
        file.write_all(b"\n")?;
    }
    Ok(())
}

/// One line on a terminal, rewritten a few times per second.
struct Status {
    next: Option<Instant>,
}

impl Status {
    fn new(wanted: bool) -> Self {
        Status {
            next: (wanted && io::stderr().is_terminal()).then(Instant::now),
        }
    }

    fn show(&mut self, receiver: &Receiver) {
        let Some(next) = self.next else { return };
        let now = Instant::now();
        if now < next {
            return;
        }
        self.next = Some(now + Duration::from_millis(250));
        let counters = receiver.counters();
        eprint!(
            "\r\x1b[K{} packets, {} lost, {} frames, {} key frames, jitter {:.2} ms",
            counters.packets,
            receiver.lost(),
            counters.frames,
            counters.key_frames,
            receiver.jitter_ms()
        );
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        if self.next.is_some() {
            eprintln!();
        }
    }
}
