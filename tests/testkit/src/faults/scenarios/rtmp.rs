//! RTMP servers that are not there, die, fall silent or lie.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use serde_json::json;

use crate::faults::case::Case;
use crate::faults::process::Process;
use crate::faults::rig::{Fail, GAP, Outcome, Pictures, Rig, Setup};
use crate::faults::suite::Scenario;
use crate::noise::Noise;
use crate::ports::reserve_tcp;
use crate::rtmp::report::Report;
use crate::rtmp::server::{Faults, Options, Server};
use crate::rtmp::video::Mode;
use crate::worker::Worker;

/// A server of the testkit on a thread of its own.
pub(super) struct Serving(Worker<std::io::Result<Report>>);

impl Serving {
    pub(super) fn start(server: Server) -> Self {
        Serving(Worker::start(move |stop| server.run(stop)))
    }

    pub(super) fn end(self) -> Result<Report, Fail> {
        Ok(self.0.end().map_err(|_| "the server panicked")??)
    }
}

pub(super) fn options(port: u16) -> Options {
    let mut options = Options::new(Mode::H264);
    options.port = port;
    options.connections = 1000;
    options.timeout = Duration::from_secs(60);
    options.runs_on = true;
    options
}

fn setup(address: SocketAddr) -> Setup {
    let url = format!("rtmp://{address}/live/key");
    Setup::with(&[
        "--rtmp",
        "--rtmp-url",
        &url,
        "--rtmp-max-backoff-ms",
        "1000",
    ])
}

/// In the control the streamer itself stands still: the other sink's gap must show it.
fn freeze(case: &Case, rig: &mut Rig) -> Result<(), Fail> {
    if case.is_control() {
        rig.freeze()?;
    }
    Ok(())
}

fn rtmp_sink(outcome: &Outcome) -> serde_json::Value {
    let sinks = outcome.report["sinks"].as_array();
    let mut sinks = sinks.into_iter().flatten();
    sinks
        .find(|sink| {
            sink["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("rtmp"))
        })
        .cloned()
        .unwrap_or_default()
}

pub const RTMP_REFUSED: Scenario = Scenario {
    name: "rtmp_refused",
    promise: "a server that is not there is tried again until it is; nothing else waits",
    play: rtmp_refused,
    control_fails: &["gap", "published"],
};

fn rtmp_refused(case: &mut Case) -> Result<(), Fail> {
    // Bound and without a listener, it refuses.
    let hold = reserve_tcp();
    let address = SocketAddr::from(([127, 0, 0, 1], hold.port));
    let mut rig = Rig::start(case, setup(address))?;
    let from = Instant::now();
    rig.run(2.0)?;
    freeze(case, &mut rig)?;
    let server = match case.is_control() {
        true => None,
        false => Some(Serving::start(Server::open(options(address.port()))?)),
    };
    rig.run(4.0)?;
    rig.check_gap(case, from, GAP);
    let outcome = rig.finish(case, Pictures::All)?;
    let frames = match server {
        Some(server) => server.end()?.frames,
        None => 0,
    };
    case.number("rtmp_frames", frames);
    case.check(
        "published",
        frames > 30,
        format!("{frames} frames at the server that came late"),
    );
    case.number("rtmp_errors", rtmp_sink(&outcome)["errors"].clone());
    Ok(())
}

pub const RTMP_KILLED: Scenario = Scenario {
    name: "rtmp_killed",
    promise: "a server that drops the connection again and again is published to again and again",
    play: rtmp_killed,
    control_fails: &["gap", "reconnected"],
};

fn rtmp_killed(case: &mut Case) -> Result<(), Fail> {
    let mut wanted = options(0);
    wanted.faults = Faults {
        close_after: (!case.is_control()).then_some(12_000),
        every_connection: true,
        ..Faults::default()
    };
    let server = Server::open(wanted)?;
    let address = server.address()?;
    let server = Serving::start(server);
    let mut rig = Rig::start(case, setup(address))?;
    let from = Instant::now();
    rig.run(if case.is_control() { 1.0 } else { 8.0 })?;
    freeze(case, &mut rig)?;
    rig.check_gap(case, from, GAP);
    let outcome = rig.finish(case, Pictures::All)?;
    let report = server.end()?;
    let sink = rtmp_sink(&outcome);
    let reconnects = sink["reconnects"].as_u64().unwrap_or(0);
    case.number("rtmp_connections", report.connections.len());
    case.number("rtmp_frames", report.frames);
    case.number("rtmp_violations", report.violation_count);
    case.check(
        "reconnected",
        reconnects >= 2 && report.connections.len() >= 3,
        format!(
            "{reconnects} reconnects, {} connections, {} frames",
            report.connections.len(),
            report.frames
        ),
    );
    case.check(
        "protocol",
        report.violation_count == 0,
        format!("{} violations of the protocol", report.violation_count),
    );
    Ok(())
}

pub const RTMP_RESTARTED: Scenario = Scenario {
    name: "rtmp_restarted",
    promise: "a server that stalls for 5 s, is killed and comes back gets a key frame within a GOP; RTP loses no packet",
    play: rtmp_restarted,
    control_fails: &["gap", "resumed"],
};

/// Of one second, so that waiting for the next key frame by itself would be seen.
const GOP: u64 = 30;

fn rtmp_restarted(case: &mut Case) -> Result<(), Fail> {
    let hold = reserve_tcp();
    let port = hold.port;
    let tester = case.settings.itself.with_file_name("rtmp_stub_tester");
    let mut first = Process::spawn(
        Command::new(tester)
            .args("--mode h264 --video-threshold 1000000 --timeout-ms 120000".split(' '))
            .args("--stall-after 300000 --stall-ms 5000 --listen-port".split(' '))
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let mut setup = setup(SocketAddr::from(([127, 0, 0, 1], port)));
    let gop = GOP.to_string();
    setup
        .flags
        .extend(["--bitrate", "8M", "--gop", &gop].map(ToOwned::to_owned));
    // Grain makes frames large enough for a stall to be felt.
    let mut rig = Rig::start_as(case, setup, |feed| feed.add_grain(40))?;
    let from = Instant::now();
    if case.is_control() {
        freeze(case, &mut rig)?;
    } else {
        // The stall begins within the first second, and reading goes on for a while behind it.
        rig.run(8.0)?;
    }
    let alive = first.is_running();
    first.signal(Signal::KILL);
    first.wait(Duration::from_secs(5));
    rig.run(1.5)?;
    let second = match case.is_control() {
        true => None,
        false => Some(Serving::start(Server::open(options(port))?)),
    };
    rig.run(4.0)?;
    rig.check_gap(case, from, GAP);
    let outcome = rig.finish(case, Pictures::Any)?;
    let report = second.map(Serving::end).transpose()?;
    let connection = report
        .as_ref()
        .and_then(|report| report.connections.first());
    let wait = connection.and_then(|connection| connection.publish_to_frame_ms);
    let (frames, violations) = report
        .as_ref()
        .map_or((0, 0), |report| (report.frames, report.violation_count));
    case.number("rtmp_resumed_after_ms", wait);
    case.number("rtmp_frames", frames);
    // That the first frame is a key frame is one of the server's rules.
    let limit = GOP * 1000 / u64::from(Setup::default().fps);
    case.check(
        "resumed",
        alive && frames > 30 && violations == 0 && wait.is_some_and(|wait| wait <= limit),
        format!(
            "{frames} frames at the new server, {violations} violations, a key frame {wait:?} ms \
             after publish was answered, at most {limit}"
        ),
    );
    let (counts, sink) = (&outcome.counts, rtmp_sink(&outcome));
    case.number("rtmp_errors", sink["errors"].clone());
    case.number("rtmp_dropped", json!([sink["given_up"], sink["gated"]]));
    case.check(
        "rtp",
        counts.lost == 0 && counts.violations.is_empty() && counts.times_going_back == 0,
        format!(
            "{} RTP packets lost, {} violations {}",
            counts.lost,
            counts.violations.len(),
            counts.violations.join("; ")
        ),
    );
    let dropped = sink["given_up"].as_u64().unwrap_or(0) + sink["gated"].as_u64().unwrap_or(0);
    case.check(
        "felt",
        dropped > 30,
        format!("{dropped} units kept from the stalled and dead server"),
    );
    Ok(())
}

/// What a hostile server does with a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Accepts, and that is all.
    HalfOpen,
    /// Sends noise without end.
    Noise,
    /// A proper handshake, then chunks that announce 16 MB messages on many chunk streams.
    Huge,
    /// One byte of an answer each 50 ms.
    Drip,
}

/// A server of our own that keeps no rule.
pub(super) struct Hostile {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    _thread: Worker<()>,
}

impl Hostile {
    /// At a port that nobody listens at, or at any for 0.
    pub(super) fn start(manner: Manner, port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let connections = Arc::<AtomicU64>::default();
        let thread = Worker::start({
            let connections = Arc::clone(&connections);
            move |stop| {
                let mut open = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            connections.fetch_add(1, Ordering::Relaxed);
                            let stop = Arc::clone(stop);
                            open.push(std::thread::spawn(move || misbehave(stream, manner, &stop)));
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
                for thread in open {
                    let _ = thread.join();
                }
            }
        });
        Ok(Hostile {
            address,
            connections,
            _thread: thread,
        })
    }

    fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

fn misbehave(mut stream: TcpStream, manner: Manner, stop: &AtomicBool) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
    let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
    // What the publisher sends is taken, except where silence is the point.
    let mut sink = [0; 65_536];
    let mut noise = Noise::new(1);
    let mut block = [0_u8; 4096];
    let shake = [3_u8; 1 + 2 * 1536];
    let mut first = true;
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        match manner {
            Manner::HalfOpen => std::thread::sleep(Duration::from_millis(50)),
            Manner::Noise | Manner::Huge => {
                if matches!(stream.read(&mut sink), Ok(0)) {
                    return;
                }
                if first && matches!(manner, Manner::Huge) {
                    first = false;
                    if stream.write_all(&shake).is_err() {
                        return;
                    }
                }
                for (n, piece) in block.chunks_mut(140).enumerate() {
                    piece.fill(noise.below(256) as u8);
                    if matches!(manner, Manner::Huge) && piece.len() >= 12 {
                        // Type 0, chunk streams 3 to 62; 16 MB of a video message.
                        let head = [3 + n as u8 % 60, 0, 0, 0, 0xFF, 0xFF, 0xFF, 9, 1, 0, 0, 0];
                        piece[..12].copy_from_slice(&head);
                    }
                }
                if stream.write_all(&block).is_err() {
                    return;
                }
            }
            Manner::Drip => {
                if stream.write_all(&shake[at % shake.len()..][..1]).is_err() {
                    return;
                }
                at += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

pub const RTMP_HALF_OPEN: Scenario = Scenario {
    name: "rtmp_half_open",
    promise: "a server that accepts and says nothing is left, and tried again",
    play: |case| hostile(case, &[Manner::HalfOpen, Manner::Drip]),
    control_fails: &["gap"],
};

pub const RTMP_HOSTILE: Scenario = Scenario {
    name: "rtmp_hostile",
    promise: "a server that sends noise or huge messages costs a connection and no memory",
    play: |case| hostile(case, &[Manner::Noise, Manner::Huge]),
    control_fails: &["gap"],
};

fn hostile(case: &mut Case, manners: &[Manner]) -> Result<(), Fail> {
    for &manner in manners {
        let server = Hostile::start(manner, 0)?;
        let setup = Setup {
            tag: format!("{manner:?}"),
            ..setup(server.address).hostile()
        };
        let mut rig = Rig::start(case, setup)?;
        let from = Instant::now();
        rig.run(if case.is_control() { 1.0 } else { 7.0 })?;
        freeze(case, &mut rig)?;
        rig.check_gap(case, from, GAP);
        let outcome = rig.finish(case, Pictures::All)?;
        let (connections, sink) = (server.connections(), rtmp_sink(&outcome));
        case.number(&format!("{manner:?}_connections"), connections);
        case.check(
            "met",
            connections >= 1 && sink["access_units"].as_u64() == Some(0),
            format!(
                "{manner:?}: {connections} connections, {} errors, {} units sent",
                sink["errors"], sink["access_units"]
            ),
        );
        if case.is_control() {
            break;
        }
    }
    Ok(())
}
