//! `rtp_receiver_tester`: receives one RTP stream and says whether it is right.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use testkit::bitstream::Codec;
use testkit::exit;
use testkit::producer::unix_ns;
use testkit::rtp::header;
use testkit::rtp::receiver::{Config, Receiver, Verdict};
use testkit::rtp::report::Report;
use testkit::rtp::rtcp::{Feedback, receiver_compound};
use testkit::rtp::sdp::Session;
use testkit::rtp::socket::{Channel, Sockets};

/// Silence that ends a run which goes on past its threshold.
const SILENCE: Duration = Duration::from_secs(2);
/// The receiver's own SSRC in reports.
const OWN_SSRC: u32 = 0x5245_4645;

/// Receives H.264 or H.265 over RTP, checks every packet, and reports what it saw.
///
/// Exit codes: 0 right; 3 another payload type (at once); 4 too little came; 7 the stream breaks its rules;
/// 124 nothing came in time; 1 and 2 wrong arguments; 5 the port cannot be had.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  rtp_receiver_tester --port 5004\n  \
    rtp_receiver_tester --port 5004 --frame-threshold 80 --dump got.h264 --json report.json"
)]
struct Arguments {
    /// UDP port of RTP; RTCP is taken at the next one, and at this one. 0 picks a free pair
    #[arg(long, default_value_t = 5004, help_heading = "Stream")]
    port: u16,
    /// Address to receive at; a multicast group is joined
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "ADDRESS", help_heading = "Stream")]
    bind: IpAddr,
    /// Payload type that the packets must have
    #[arg(long, default_value_t = 96, value_name = "PT", help_heading = "Stream")]
    expect_pt: u8,
    /// Session description: its codec, payload type and parameter sets are expected
    #[arg(long, value_name = "FILE", help_heading = "Stream")]
    sdp: Option<PathBuf>,
    /// h264 or h265; recognised from the payload without it
    #[arg(long, help_heading = "Stream")]
    codec: Option<String>,
    /// RTP times that go back are a violation: no B-frames are expected
    #[arg(long, help_heading = "Stream")]
    monotonic: bool,
    /// Warnings are violations: what ffmpeg and others do against the RFCs, and receivers live with
    #[arg(long, help_heading = "Stream")]
    strict: bool,

    /// Packets that must come
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "End")]
    packet_threshold: u64,
    /// Whole frames that must come
    #[arg(long, value_name = "N", help_heading = "End")]
    frame_threshold: Option<u64>,
    /// The run's longest time
    #[arg(
        long,
        default_value_t = 10_000,
        value_name = "MS",
        help_heading = "End"
    )]
    timeout_ms: u64,

    /// Writes the whole frames as Annex B
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    dump: Option<PathBuf>,
    /// Writes the report as JSON; - is standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Sends a receiver report with a picture loss indication each so many milliseconds
    #[arg(long, value_name = "MS", help_heading = "Feedback")]
    send_pli_every: Option<u64>,
    /// Sends full intra requests in place of picture loss indications
    #[arg(long, requires = "send_pli_every", help_heading = "Feedback")]
    fir: bool,
    /// Reads datagrams one by one, without UDP_GRO
    #[arg(long, help_heading = "Feedback")]
    no_gro: bool,
}

impl Arguments {
    /// Whether the run goes on past its threshold.
    fn runs_on(&self) -> bool {
        self.dump.is_some() || self.json.is_some() || self.frame_threshold.is_some()
    }
}

fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    let config = match config(&arguments) {
        Ok(config) => config,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    match run(&arguments, config) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(exit::INITIALIZATION)
        }
    }
}

fn config(arguments: &Arguments) -> Result<Config, String> {
    if arguments.expect_pt > 127 {
        return Err(format!(
            "--expect-pt {} is not within 0 to 127",
            arguments.expect_pt
        ));
    }
    if arguments.packet_threshold == 0 || arguments.frame_threshold == Some(0) {
        return Err("a threshold of 0 would be met by nothing: give 1 or more".into());
    }
    if arguments.send_pli_every == Some(0) {
        return Err("--send-pli-every 0 would never stop sending: give 1 or more".into());
    }
    let mut config = Config {
        payload_type: arguments.expect_pt,
        codec: None,
        parameter_sets: Vec::new(),
        monotonic: arguments.monotonic,
        strict: arguments.strict,
    };
    if let Some(codec) = &arguments.codec {
        config.codec = Some(
            codec
                .parse::<Codec>()
                .map_err(|e| format!("--codec: {e}"))?,
        );
    }
    if let Some(path) = &arguments.sdp {
        let fail = |e: &dyn std::fmt::Display| format!("--sdp {}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
        let session = Session::parse(&text).map_err(|e| fail(&e))?;
        if session.payload_type != arguments.expect_pt {
            return Err(format!(
                "--sdp names payload type {}, --expect-pt is {}",
                session.payload_type, arguments.expect_pt
            ));
        }
        if config.codec.is_some_and(|codec| codec != session.codec) {
            return Err(format!("--sdp names {}, --codec another", session.codec));
        }
        config.codec = Some(session.codec);
        config.parameter_sets = session.parameter_sets;
    }
    Ok(config)
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

fn run(arguments: &Arguments, config: Config) -> Result<u8, Box<dyn std::error::Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let mut sockets = Sockets::open(arguments.bind, arguments.port, !arguments.no_gro)
        .map_err(|e| format!("UDP port {}: {e}", arguments.port))?;
    let port = sockets.port()?;
    let rtcp = if sockets.has_rtcp_port() {
        format!(" and {}", port + 1)
    } else {
        String::new()
    };
    eprintln!("receiving at {} port {port}{rtcp}", arguments.bind);

    let mut dump = match &arguments.dump {
        Some(path) => {
            let file = File::create(path).map_err(|e| format!("--dump {}: {e}", path.display()))?;
            Some(BufWriter::new(file))
        }
        None => None,
    };
    let payload_type = config.payload_type;
    let mut feedback = FeedbackSender::new(arguments);
    let mut receiver = Receiver::new(config);
    let end = receive(
        arguments,
        &mut sockets,
        &mut receiver,
        &mut dump,
        &mut feedback,
        &stop,
    )?;
    if let Some(mut dump) = dump {
        dump.flush()?;
    }

    let mut report = Report::of(
        &receiver,
        payload_type,
        u64::from(sockets.overflows()),
        feedback.sent,
    );
    report.ended_by = end.name();
    report.exit_code = exit_code(arguments, &report, end);
    if let End::PayloadType(found) = end {
        eprintln!("error: payload type {found} where {payload_type} is expected");
    }
    tell(arguments, &report)?;
    Ok(report.exit_code)
}

fn exit_code(arguments: &Arguments, report: &Report, end: End) -> u8 {
    let counters = &report.counters;
    let enough = counters.packets >= arguments.packet_threshold
        && arguments
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

fn tell(arguments: &Arguments, report: &Report) -> io::Result<()> {
    match arguments.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => {
            eprintln!("{report}");
            println!("{}", serde_json::to_string_pretty(report)?);
        }
        Some(path) => {
            println!("{report}");
            std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")?;
        }
        None => println!("{report}"),
    }
    Ok(())
}

fn receive(
    arguments: &Arguments,
    sockets: &mut Sockets,
    receiver: &mut Receiver,
    dump: &mut Option<BufWriter<File>>,
    feedback: &mut FeedbackSender,
    stop: &AtomicBool,
) -> io::Result<End> {
    let start = Instant::now();
    let deadline = start + Duration::from_millis(arguments.timeout_ms);
    let mut status = Status::new();
    let mut last_packet: Option<Instant> = None;
    let mut write_error = None;
    loop {
        // Relaxed: the flag guards no other data.
        if stop.load(Ordering::Relaxed) {
            return Ok(End::Signal);
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(End::Timeout);
        }
        if last_packet.is_some_and(|last| now - last >= SILENCE) && arguments.runs_on() {
            return Ok(End::Silence);
        }
        let silence_left = match last_packet {
            Some(last) if arguments.runs_on() => (last + SILENCE).saturating_duration_since(now),
            _ => SILENCE,
        };
        let limit = (deadline - now)
            .min(silence_left)
            .min(feedback.next_in(now))
            .min(Duration::from_millis(200));
        sockets.wait(limit)?;
        // Ahead of RTP: when a BYE is here, all packets sent before it are there.
        while let Some((arrival, bytes)) = sockets.receive_rtcp()? {
            feedback.peer(Channel::Rtcp, arrival.from);
            receiver.rtcp(bytes, arrival.unix_ns);
        }
        let mut wrong_type = None;
        while let Some((arrival, bytes)) = sockets.receive_rtp()? {
            last_packet = Some(Instant::now());
            for datagram in bytes.chunks(arrival.segment.max(1)) {
                if header::is_rtcp(datagram) {
                    feedback.peer(Channel::Rtp, arrival.from);
                    receiver.rtcp(datagram, arrival.unix_ns);
                    continue;
                }
                feedback.media_peer(arrival.from);
                let verdict = receiver.rtp(datagram, arrival.unix_ns, &mut |_, unit| {
                    if let Some(dump) = dump {
                        for nal in &unit.nals {
                            let written = dump
                                .write_all(&[0, 0, 0, 1])
                                .and_then(|()| dump.write_all(nal));
                            write_error = write_error.take().or(written.err());
                        }
                    }
                });
                if let Verdict::PayloadType(found) = verdict {
                    wrong_type = Some(found);
                    break;
                }
            }
            if let Some(found) = wrong_type {
                return Ok(End::PayloadType(found));
            }
            if !arguments.runs_on() && receiver.counters().packets >= arguments.packet_threshold {
                return Ok(End::Threshold);
            }
        }
        if let Some(error) = write_error.take() {
            return Err(error);
        }
        if receiver.has_ended() && receiver.counters().packets > 0 {
            return Ok(End::Bye);
        }
        feedback.send_if_due(sockets, receiver);
        status.show(receiver);
    }
}

/// Sends receiver reports with requests for a key frame, to where RTCP came from, or else RTP.
struct FeedbackSender {
    every: Option<Duration>,
    fir: bool,
    next: Instant,
    peer: Option<(Channel, SocketAddr)>,
    media_peer: Option<SocketAddr>,
    sent: u64,
}

impl FeedbackSender {
    fn new(arguments: &Arguments) -> Self {
        let every = arguments.send_pli_every.map(Duration::from_millis);
        let next = Instant::now() + every.unwrap_or_default();
        FeedbackSender {
            every,
            fir: arguments.fir,
            next,
            peer: None,
            media_peer: None,
            sent: 0,
        }
    }

    fn peer(&mut self, channel: Channel, from: SocketAddr) {
        self.peer = Some((channel, from));
    }

    fn media_peer(&mut self, from: SocketAddr) {
        self.media_peer = Some(from);
    }

    fn next_in(&self, now: Instant) -> Duration {
        self.every
            .map_or(Duration::MAX, |_| self.next.saturating_duration_since(now))
    }

    fn send_if_due(&mut self, sockets: &Sockets, receiver: &mut Receiver) {
        let Some(every) = self.every else { return };
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + every;
        let to = self
            .peer
            .or(self.media_peer.map(|peer| (Channel::Rtp, peer)));
        let (Some((channel, to)), Some(block)) = (to, receiver.report_block(unix_ns())) else {
            return;
        };
        let feedback = if self.fir {
            Feedback::Fir(self.sent as u8)
        } else {
            Feedback::Pli
        };
        // A sender that is gone shows as silence; there is nobody to tell here.
        if sockets
            .send(
                channel,
                &receiver_compound(OWN_SSRC, &block, Some(feedback)),
                to,
            )
            .is_ok()
        {
            self.sent += 1;
        }
    }
}

/// One line on a terminal, rewritten a few times per second.
struct Status {
    next: Option<Instant>,
}

impl Status {
    fn new() -> Self {
        Status {
            next: io::stderr().is_terminal().then(Instant::now),
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
