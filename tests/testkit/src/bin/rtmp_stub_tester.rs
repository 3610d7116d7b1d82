//! `rtmp_stub_tester`: an RTMP server for one publisher that says whether it publishes right.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testkit::exit;
use testkit::producer::unix_ns;
use testkit::rtmp::flv::FlvWriter;
use testkit::rtmp::handshake::BLOCK_BYTES;
use testkit::rtmp::report::{Connection, Report};
use testkit::rtmp::session::{Behaviour, Event, Refusal, Session};
use testkit::rtmp::stream::{Piece, StreamCheck, Verdict};
use testkit::rtmp::video::Mode;

/// Silence of a publisher that ends a run which goes on past its threshold.
const SILENCE: Duration = Duration::from_secs(2);

/// Takes an RTMP publish, checks handshake, chunks, commands and every video message, and reports what it saw.
///
/// Exit codes: 0 right; 4 too little came; 6 another packaging than --mode; 7 the publisher breaks the protocol;
/// 124 nothing came in time; 1 and 2 wrong arguments; 5 the port cannot be had.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  rtmp_stub_tester --mode h264 --listen-port 1935\n  \
    rtmp_stub_tester --mode h265-enhanced --video-threshold 80 --dump got.flv --json report.json"
)]
struct Arguments {
    /// h264, h265-enhanced or h265-domestic: the packaging that must come
    #[arg(long, help_heading = "Stream")]
    mode: String,
    /// Address to listen at
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS", help_heading = "Stream")]
    listen_host: IpAddr,
    /// TCP port; 0 picks a free one
    #[arg(
        long,
        default_value_t = 1935,
        value_name = "PORT",
        help_heading = "Stream"
    )]
    listen_port: u16,
    /// Warnings are violations: what other publishers do, and servers live with
    #[arg(long, help_heading = "Stream")]
    strict: bool,

    /// Frames that must come
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "End")]
    video_threshold: u64,
    /// The run's longest time
    #[arg(
        long,
        default_value_t = 10_000,
        value_name = "MS",
        help_heading = "End"
    )]
    timeout_ms: u64,
    /// Takes so many connections, one after the other
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "End")]
    accept_connections: u32,

    /// Writes what is published as FLV
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    dump: Option<PathBuf>,
    /// Writes the frames as Annex B, parameter sets out of the sequence headers ahead of them
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    dump_annexb: Option<PathBuf>,
    /// Writes the report as JSON; - is standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Stops reading after so many bytes
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Faults (of the first connection)"
    )]
    stall_after: Option<u64>,
    /// Reads on after so long; without it never
    #[arg(
        long,
        value_name = "MS",
        requires = "stall_after",
        help_heading = "Faults (of the first connection)"
    )]
    stall_ms: Option<u64>,
    /// Closes the connection after so many bytes
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Faults (of the first connection)"
    )]
    close_after: Option<u64>,
    /// Refuses the publish
    #[arg(long, help_heading = "Faults (of the first connection)")]
    refuse: bool,
    /// Code of the refusal; NetConnection.* answers `connect`, `silent` closes without a word
    #[arg(
        long,
        value_name = "CODE",
        requires = "refuse",
        default_value = "NetStream.Publish.BadName",
        help_heading = "Faults (of the first connection)"
    )]
    refuse_code: String,
    /// Reads at most so many bytes per second
    #[arg(
        long,
        value_name = "BYTES_PER_S",
        help_heading = "Faults (of the first connection)"
    )]
    slow: Option<u64>,
    /// The faults are those of every connection
    #[arg(long, help_heading = "Faults (of the first connection)")]
    every_connection: bool,

    /// Window that the publisher is told to acknowledge
    #[arg(
        long,
        default_value_t = 2_500_000,
        value_name = "BYTES",
        help_heading = "Server"
    )]
    window: u32,
    /// Size of the socket's receive buffer; small ones make stalls felt early
    #[arg(long, value_name = "BYTES", help_heading = "Server")]
    receive_buffer: Option<usize>,
    /// Sends a PingRequest each so many milliseconds
    #[arg(long, value_name = "MS", help_heading = "Server")]
    ping: Option<u64>,
    /// Answers publish with its own transaction id, as ZLMediaKit does
    #[arg(long, help_heading = "Server")]
    echo_transaction: bool,
}

impl Arguments {
    /// Whether the run goes on past its threshold.
    fn runs_on(&self) -> bool {
        self.dump.is_some()
            || self.dump_annexb.is_some()
            || self.json.is_some()
            || self.accept_connections > 1
    }
}

fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    let mode = match mode(&arguments) {
        Ok(mode) => mode,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    match run(&arguments, mode) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(exit::INITIALIZATION)
        }
    }
}

fn mode(arguments: &Arguments) -> Result<Mode, String> {
    let mode = arguments.mode.parse().map_err(|e| format!("--mode: {e}"))?;
    for (flag, value) in [
        ("--video-threshold", Some(arguments.video_threshold)),
        (
            "--accept-connections",
            Some(u64::from(arguments.accept_connections)),
        ),
        ("--slow", arguments.slow),
        ("--ping", arguments.ping),
        ("--window", Some(u64::from(arguments.window))),
    ] {
        if value == Some(0) {
            return Err(format!("{flag} 0 makes no sense: give 1 or more"));
        }
    }
    Ok(mode)
}

/// Why the run or a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Threshold,
    Unpublished,
    ClosedByPeer,
    ClosedHere,
    Silence,
    Timeout,
    Signal,
    Replaced,
    WrongMode(String),
    Broken,
}

impl End {
    fn name(&self) -> &'static str {
        match self {
            End::Threshold => "threshold",
            End::Unpublished => "unpublish",
            End::ClosedByPeer => "the publisher's close",
            End::ClosedHere => "our close",
            End::Silence => "silence",
            End::Timeout => "timeout",
            End::Signal => "signal",
            End::Replaced => "a new connection",
            End::WrongMode(_) => "another mode",
            End::Broken => "a broken protocol",
        }
    }

    /// Whether no further connection is waited for.
    fn ends_the_run(&self) -> bool {
        matches!(
            self,
            End::Threshold
                | End::Silence
                | End::Timeout
                | End::Signal
                | End::WrongMode(_)
                | End::Broken
        )
    }
}

fn run(arguments: &Arguments, mode: Mode) -> Result<u8, Box<dyn std::error::Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let address = SocketAddr::from((arguments.listen_host, arguments.listen_port));
    let listener =
        listen(address, arguments.receive_buffer).map_err(|e| format!("{address}: {e}"))?;
    eprintln!("listening at {}", listener.local_addr()?);
    let mut server = Server {
        arguments,
        mode,
        listener,
        stop: &stop,
        deadline: Instant::now() + Duration::from_millis(arguments.timeout_ms),
        dumps: Dumps::open(arguments)?,
        frames_before: 0,
        status: Status::new(),
    };
    let (connections, end) = server.serve()?;
    server.dumps.close()?;
    let seen = match &end {
        End::WrongMode(seen) => Some(seen.clone()),
        _ => None,
    };
    let mut report = Report::of(mode, seen, connections);
    report.ended_by = end.name().into();
    report.exit_code = match end {
        End::WrongMode(_) => exit::RTMP_MODE_MISMATCH,
        _ if report.violation_count > 0 => exit::PROTOCOL_VIOLATION,
        _ if report.frames >= arguments.video_threshold => exit::OK,
        _ if report.bytes_received == 0 => exit::TIMEOUT,
        _ => exit::THRESHOLD_NOT_MET,
    };
    drop(server);
    if let End::WrongMode(seen) = end {
        eprintln!("error: {seen} where {} is expected", mode.name());
    }
    tell(arguments, &report)?;
    Ok(report.exit_code)
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

fn listen(address: SocketAddr, receive_buffer: Option<usize>) -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A server that is started again must not wait for the old connections' end.
    socket.set_reuse_address(true)?;
    if let Some(bytes) = receive_buffer {
        // Ahead of listen, so that accepted sockets begin with it.
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(8)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

struct Server<'a> {
    arguments: &'a Arguments,
    mode: Mode,
    listener: TcpListener,
    stop: &'a AtomicBool,
    deadline: Instant,
    dumps: Dumps,
    frames_before: u64,
    status: Status,
}

/// One publisher.
struct Client {
    stream: TcpStream,
    session: Session,
    check: StreamCheck,
    received: u64,
    output: Vec<u8>,
    sent: u64,
    opened: Instant,
    last_input: Instant,
    stalled_since: Option<Instant>,
    stall_is_over: bool,
    next_ping: Option<Instant>,
    faulty: bool,
}

impl Server<'_> {
    fn serve(&mut self) -> io::Result<(Vec<Connection>, End)> {
        let mut connections = Vec::new();
        let mut pending = None;
        loop {
            let stream = match pending.take() {
                Some(stream) => stream,
                None => match self.accept()? {
                    Ok(stream) => stream,
                    Err(end) => return Ok((connections, end)),
                },
            };
            let mut client = self.client(stream, connections.is_empty())?;
            let (end, next) = self.attend(&mut client)?;
            pending = next;
            client.judge_duties(self.mode, self.arguments.window);
            let frames = client.check.counters().frames;
            self.frames_before += frames;
            connections.push(Connection::of(
                &client.session,
                &client.check,
                client.received,
                end.name().into(),
            ));
            if end.ends_the_run() || connections.len() as u32 >= self.arguments.accept_connections {
                return Ok((connections, end));
            }
        }
    }

    fn accept(&mut self) -> io::Result<Result<TcpStream, End>> {
        loop {
            if let Some(end) = self.over() {
                return Ok(Err(end));
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Ok(stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            wait(
                &[(self.listener.as_fd(), PollFlags::IN)],
                Duration::from_millis(100),
            )?;
        }
    }

    fn over(&self) -> Option<End> {
        // Relaxed: the flag guards no other data.
        if self.stop.load(Ordering::Relaxed) {
            Some(End::Signal)
        } else {
            (Instant::now() >= self.deadline).then_some(End::Timeout)
        }
    }

    fn client(&self, stream: TcpStream, first: bool) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let arguments = self.arguments;
        let faulty = first || arguments.every_connection;
        let refusal = (arguments.refuse && faulty).then(|| match arguments.refuse_code.as_str() {
            "silent" => Refusal::Silent,
            code => Refusal::Code(code.to_owned()),
        });
        let behaviour = Behaviour {
            window: arguments.window,
            refusal,
            echo_transaction: arguments.echo_transaction,
        };
        let now = Instant::now();
        Ok(Client {
            stream,
            session: Session::new(behaviour, random_block()),
            check: StreamCheck::new(self.mode, arguments.strict),
            received: 0,
            output: Vec::new(),
            sent: 0,
            opened: now,
            last_input: now,
            stalled_since: None,
            stall_is_over: false,
            next_ping: arguments
                .ping
                .map(|every| now + Duration::from_millis(every)),
            faulty,
        })
    }

    /// Attends to a client until it ends; a second one that came meanwhile is given back.
    fn attend(&mut self, client: &mut Client) -> io::Result<(End, Option<TcpStream>)> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            if let Some(end) = self.over() {
                return Ok((end, None));
            }
            let now = Instant::now();
            let room = client.room(self.arguments, now);
            if room == 0 && client.is_stalled() {
                // A publisher that gave up on the stalled connection comes again.
                if let Ok((next, _)) = self.listener.accept() {
                    return Ok((End::Replaced, Some(next)));
                }
            }
            if room > 0
                && self.arguments.runs_on()
                && client.session.is_publishing()
                && now - client.last_input >= SILENCE
            {
                return Ok((End::Silence, None));
            }
            let mut interest = if room > 0 {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            if !client.output.is_empty() {
                interest |= PollFlags::OUT;
            }
            let limit = Duration::from_millis(if room == 0 { 5 } else { 50 });
            if interest.is_empty() {
                // Nothing to poll for: a hang-up or a waiting connection would be reported again and again.
                std::thread::sleep(limit);
            } else {
                wait(&[(client.stream.as_fd(), interest)], limit)?;
            }
            if room > 0 {
                let take = buffer
                    .len()
                    .min(usize::try_from(room).unwrap_or(usize::MAX));
                match client.stream.read(&mut buffer[..take]) {
                    Ok(0) => return Ok((End::ClosedByPeer, None)),
                    Ok(bytes) => {
                        client.last_input = now;
                        client.received += bytes as u64;
                        if let Some(end) = self.take(client, &buffer[..bytes])? {
                            let _ = client.stream.write_all(&client.output);
                            return Ok((end, None));
                        }
                    }
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::WouldBlock | ErrorKind::Interrupted
                        ) => {}
                    Err(_) => return Ok((End::ClosedByPeer, None)),
                }
            }
            if client.faulty
                && self
                    .arguments
                    .close_after
                    .is_some_and(|limit| client.received >= limit)
            {
                return Ok((End::ClosedHere, None));
            }
            if let (Some(next), Some(every)) = (client.next_ping, self.arguments.ping)
                && now >= next
            {
                client.session.ping((unix_ns() / 1_000_000) as u32);
                client.next_ping = Some(now + Duration::from_millis(every));
            }
            client.output.extend(client.session.take_output());
            if client.send().is_err() {
                return Ok((End::ClosedByPeer, None));
            }
            self.status.show(self.frames_before, client);
        }
    }

    /// Gives bytes to the session; an end if that is one.
    fn take(&mut self, client: &mut Client, bytes: &[u8]) -> io::Result<Option<End>> {
        let (check, dumps) = (&mut client.check, &mut self.dumps);
        let mut end = None;
        let mut failure = None;
        let result = client.session.input(bytes, &mut |event| {
            let outcome = on_event(&event, check, dumps);
            match outcome {
                Ok(found) => end = end.take().or(found),
                Err(error) => failure = Some(error),
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        client.output.extend(client.session.take_output());
        if let Err(error) = result {
            check.violation(|| error.to_string());
            return Ok(Some(End::Broken));
        }
        let enough = self.frames_before + check.counters().frames >= self.arguments.video_threshold;
        Ok(end.or((enough && !self.arguments.runs_on()).then_some(End::Threshold)))
    }
}

fn on_event(event: &Event, check: &mut StreamCheck, dumps: &mut Dumps) -> io::Result<Option<End>> {
    match event {
        Event::Metadata(values) => {
            check.metadata_message(values);
            dumps.metadata(values)?;
        }
        Event::Video { timestamp, body } => {
            let mut failure = None;
            let verdict = check.video(*timestamp, body, &mut |piece| {
                failure = failure.take().or(dumps.piece(&piece).err());
            });
            if let Some(error) = failure {
                return Err(error);
            }
            dumps.video(*timestamp, body)?;
            if let Verdict::WrongMode(seen) = verdict {
                return Ok(Some(End::WrongMode(seen)));
            }
        }
        Event::Audio => check.audio(),
        Event::Unpublished => return Ok(Some(End::Unpublished)),
        Event::Refused { close: true } => return Ok(Some(End::ClosedHere)),
        Event::Warning(text) => check.warning(|| text.clone()),
        Event::Violation(text) => check.violation(|| text.clone()),
        Event::Published | Event::Refused { close: false } => {}
    }
    Ok(None)
}

impl Client {
    /// Bytes that may be read now, by the faults that are switched on.
    fn room(&mut self, arguments: &Arguments, now: Instant) -> u64 {
        if !self.faulty {
            return u64::MAX;
        }
        let mut room = u64::MAX;
        if let Some(rate) = arguments.slow {
            let allowed = u128::from(rate) * (now - self.opened).as_millis() / 1000;
            room = (allowed as u64).saturating_sub(self.received);
        }
        if let Some(limit) = arguments.close_after {
            room = room.min(limit.saturating_sub(self.received));
        }
        if let Some(limit) = arguments.stall_after.filter(|_| !self.stall_is_over) {
            let left = limit.saturating_sub(self.received);
            if left == 0 {
                let since = *self.stalled_since.get_or_insert(now);
                let over = arguments
                    .stall_ms
                    .is_some_and(|ms| now - since >= Duration::from_millis(ms));
                self.stall_is_over = over;
                if over {
                    self.last_input = now;
                    return room;
                }
            }
            room = room.min(left);
        }
        room
    }

    fn is_stalled(&self) -> bool {
        self.stalled_since.is_some() && !self.stall_is_over
    }

    /// What can be said only when the connection is over.
    fn judge_duties(&mut self, mode: Mode, window: u32) {
        let facts = self.session.facts();
        if mode != Mode::H265Enhanced && !facts.capabilities.is_empty() {
            let names = facts.capabilities.join(", ");
            self.check
                .warning(|| format!("connect names {names}; only enhanced mode needs them"));
        }
        let facts = self.session.facts();
        let silent = facts.pings.saturating_sub(facts.pongs);
        // The last request may still be under way.
        if silent > 1 {
            self.check
                .warning(|| format!("{silent} PingRequests without an answer"));
        }
        let after_handshake = self.sent.saturating_sub(1 + 2 * BLOCK_BYTES as u64);
        let due = after_handshake / u64::from(window);
        if self.session.facts().acknowledgements == 0 && due > 2 {
            self.check
                .warning(|| format!("no Acknowledgement, where {due} were due"));
        }
    }

    /// Sends what the socket takes.
    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.sent += sent as u64;
                    self.output.drain(..sent);
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The files that are written on the way.
struct Dumps {
    flv: Option<FlvWriter<BufWriter<File>>>,
    annexb: Option<BufWriter<File>>,
}

impl Dumps {
    fn open(arguments: &Arguments) -> Result<Self, String> {
        let create = |flag: &str, path: &Option<PathBuf>| match path {
            Some(path) => File::create(path)
                .map(|file| Some(BufWriter::new(file)))
                .map_err(|e| format!("{flag} {}: {e}", path.display())),
            None => Ok(None),
        };
        let flv = create("--dump", &arguments.dump)?
            .map(FlvWriter::new)
            .transpose()
            .map_err(|e| e.to_string())?;
        Ok(Dumps {
            flv,
            annexb: create("--dump-annexb", &arguments.dump_annexb)?,
        })
    }

    fn metadata(&mut self, values: &testkit::rtmp::amf0::Value) -> io::Result<()> {
        self.flv.as_mut().map_or(Ok(()), |flv| flv.metadata(values))
    }

    fn video(&mut self, timestamp: u32, body: &[u8]) -> io::Result<()> {
        self.flv
            .as_mut()
            .map_or(Ok(()), |flv| flv.video(timestamp, body))
    }

    fn piece(&mut self, piece: &Piece) -> io::Result<()> {
        let Some(out) = &mut self.annexb else {
            return Ok(());
        };
        let mut write = |nal: &[u8]| {
            out.write_all(&[0, 0, 0, 1])
                .and_then(|()| out.write_all(nal))
        };
        match piece {
            Piece::ParameterSets(sets) => sets.iter().try_for_each(|set| write(set)),
            Piece::Frame { nals, .. } => nals.iter().try_for_each(|nal| write(nal)),
        }
    }

    fn close(&mut self) -> io::Result<()> {
        self.flv.as_mut().map_or(Ok(()), FlvWriter::flush)?;
        self.annexb.as_mut().map_or(Ok(()), Write::flush)
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

    fn show(&mut self, frames_before: u64, client: &Client) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + Duration::from_millis(250));
        let counters = client.check.counters();
        eprint!(
            "\r\x1b[K{} bytes, {} frames, {} key frames, {} ms{}",
            client.received,
            frames_before + counters.frames,
            counters.key_frames,
            counters.last_timestamp_ms.unwrap_or(0),
            if client.is_stalled() { ", stalled" } else { "" }
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

/// Bytes for S1: only their difference from run to run matters.
fn random_block() -> Box<[u8; BLOCK_BYTES]> {
    let mut state = unix_ns() | 1;
    let mut block = Box::new([0; BLOCK_BYTES]);
    for byte in block.iter_mut() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    block
}

fn wait(sockets: &[(std::os::fd::BorrowedFd, PollFlags)], limit: Duration) -> io::Result<()> {
    let mut sockets: Vec<_> = sockets
        .iter()
        .map(|(socket, flags)| PollFd::from_borrowed_fd(*socket, *flags))
        .collect();
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: limit.as_nanos() as i64,
    };
    match poll(&mut sockets, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
