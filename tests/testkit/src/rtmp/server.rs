//! A run of the RTMP referee: a listener, a clock and files around [`Session`] and [`StreamCheck`].

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::Client;
use super::dump::Dumps;
use super::handshake::BLOCK_BYTES;
use super::report::{Connection, Report};
use super::session::{Behaviour, Event, Refusal, Session};
use super::stream::{StreamCheck, Verdict};
use super::video::Mode;
use crate::exit;
use crate::noise::Noise;
use crate::producer::unix_ns;

/// What to expect, when to end, and what to do wrong.
#[derive(Debug, Clone)]
pub struct Options {
    pub mode: Mode,
    pub host: IpAddr,
    /// 0 picks a free one.
    pub port: u16,
    /// Warnings are violations.
    pub strict: bool,
    /// Frames that must come.
    pub video_threshold: u64,
    /// The run's longest time.
    pub timeout: Duration,
    /// Silence of a publisher that ends a run which goes on past its threshold.
    pub silence: Duration,
    /// Connections that are taken, one after the other.
    pub connections: u32,
    /// Goes on past the threshold.
    pub runs_on: bool,
    /// What is published, as FLV.
    pub dump: Option<PathBuf>,
    /// The frames, as Annex B.
    pub dump_annexb: Option<PathBuf>,
    pub faults: Faults,
    /// Window that the publisher is told to acknowledge, in bytes.
    pub window: u32,
    /// Size of the socket's receive buffer, in bytes.
    pub receive_buffer: Option<usize>,
    pub ping_every: Option<Duration>,
    /// Answers publish with its own transaction id.
    pub echo_transaction: bool,
    /// A status line on standard error, if that is a terminal.
    pub status: bool,
}

impl Options {
    /// The defaults of the command line, at a free port of the loopback address.
    pub fn new(mode: Mode) -> Self {
        Options {
            mode,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            strict: false,
            video_threshold: 1,
            timeout: Duration::from_secs(10),
            silence: Duration::from_secs(2),
            connections: 1,
            runs_on: false,
            dump: None,
            dump_annexb: None,
            faults: Faults::default(),
            window: 2_500_000,
            receive_buffer: None,
            ping_every: None,
            echo_transaction: false,
            status: false,
        }
    }
}

/// What a server does wrong, on its first connection unless said otherwise. Bytes count from the first one
/// of the handshake.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub stall_after: Option<u64>,
    /// `None`: for good.
    pub stall_for: Option<Duration>,
    pub close_after: Option<u64>,
    pub refusal: Option<Refusal>,
    /// Bytes read per second at most.
    pub slow: Option<u64>,
    pub every_connection: bool,
}

/// A server at its port.
#[derive(Debug)]
pub struct Server {
    options: Options,
    listener: TcpListener,
    dumps: Dumps,
    frames_before: u64,
    status: Status,
}

/// Why the run or a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
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

impl Server {
    /// Listens, and creates the dumps.
    ///
    /// # Errors
    ///
    /// If the port or a file cannot be had; the text names which.
    pub fn open(options: Options) -> io::Result<Self> {
        let address = SocketAddr::from((options.host, options.port));
        let listener = listen(address, options.receive_buffer)
            .map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))?;
        Ok(Server {
            listener,
            dumps: Dumps::open(options.dump.as_ref(), options.dump_annexb.as_ref())?,
            frames_before: 0,
            status: Status::new(options.status),
            options,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the end that the options set, or `stop`.
    ///
    /// # Errors
    ///
    /// The listener's or a dump's; a publisher's fault is a finding.
    pub fn run(mut self, stop: &AtomicBool) -> io::Result<Report> {
        let deadline = Instant::now() + self.options.timeout;
        let (connections, end) = self.serve(&Clock { stop, deadline })?;
        self.dumps.close()?;
        let seen = match &end {
            End::WrongMode(seen) => Some(seen.clone()),
            _ => None,
        };
        let mut report = Report::of(self.options.mode, seen, connections);
        report.ended_by = end.name().into();
        report.exit_code = match end {
            End::WrongMode(_) => exit::RTMP_MODE_MISMATCH,
            _ if report.violation_count > 0 => exit::PROTOCOL_VIOLATION,
            _ if report.frames >= self.options.video_threshold => exit::OK,
            _ if report.bytes_received == 0 => exit::TIMEOUT,
            _ => exit::THRESHOLD_NOT_MET,
        };
        Ok(report)
    }

    fn serve(&mut self, clock: &Clock) -> io::Result<(Vec<Connection>, End)> {
        let mut connections = Vec::new();
        let mut pending = None;
        loop {
            let stream = match pending.take() {
                Some(stream) => stream,
                None => match self.accept(clock)? {
                    Ok(stream) => stream,
                    Err(end) => return Ok((connections, end)),
                },
            };
            let mut client = self.client(stream, connections.is_empty())?;
            let (end, next) = self.attend(&mut client, clock)?;
            pending = next;
            client.judge_duties(self.options.mode, self.options.window);
            let frames = client.check.counters().frames;
            self.frames_before += frames;
            connections.push(Connection::of(
                &client.session,
                &client.check,
                client.received,
                client.publish_to_frame_ms(),
                end.name().into(),
            ));
            if end.ends_the_run() || connections.len() as u32 >= self.options.connections {
                return Ok((connections, end));
            }
        }
    }

    fn accept(&self, clock: &Clock) -> io::Result<Result<TcpStream, End>> {
        loop {
            if let Some(end) = clock.over() {
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

    fn client(&self, stream: TcpStream, first: bool) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let options = &self.options;
        let faulty = first || options.faults.every_connection;
        let behaviour = Behaviour {
            window: options.window,
            refusal: options.faults.refusal.clone().filter(|_| faulty),
            echo_transaction: options.echo_transaction,
        };
        let now = Instant::now();
        Ok(Client {
            stream,
            session: Session::new(behaviour, random_block()),
            check: StreamCheck::new(options.mode, options.strict),
            received: 0,
            output: Vec::new(),
            sent: 0,
            opened: now,
            published: None,
            first_frame: None,
            last_input: now,
            stalled_since: None,
            stall_is_over: false,
            next_ping: options.ping_every.map(|every| now + every),
            faulty,
        })
    }

    /// Attends to a client until it ends; a second one that came meanwhile is given back.
    fn attend(
        &mut self,
        client: &mut Client,
        clock: &Clock,
    ) -> io::Result<(End, Option<TcpStream>)> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            if let Some(end) = clock.over() {
                return Ok((end, None));
            }
            let now = Instant::now();
            let room = client.room(&self.options.faults, now);
            if room == 0 && client.is_stalled() {
                // A publisher that gave up on the stalled connection comes again.
                if let Ok((next, _)) = self.listener.accept() {
                    return Ok((End::Replaced, Some(next)));
                }
            }
            if room > 0
                && self.options.runs_on
                && client.session.is_publishing()
                && now - client.last_input >= self.options.silence
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
                    Ok(0) => return Ok((client.closed(), None)),
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
                    Err(_) => return Ok((client.closed(), None)),
                }
            }
            if client.faulty
                && self
                    .options
                    .faults
                    .close_after
                    .is_some_and(|limit| client.received >= limit)
            {
                return Ok((End::ClosedHere, None));
            }
            if let (Some(next), Some(every)) = (client.next_ping, self.options.ping_every)
                && now >= next
            {
                client.session.ping((unix_ns() / 1_000_000) as u32);
                client.next_ping = Some(now + every);
            }
            client.output.extend(client.session.take_output());
            if client.send().is_err() {
                return Ok((client.closed(), None));
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
        client.note_progress();
        let check = &client.check;
        let enough = self.frames_before + check.counters().frames >= self.options.video_threshold;
        Ok(end.or((enough && !self.options.runs_on).then_some(End::Threshold)))
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

/// When to stop.
struct Clock<'a> {
    stop: &'a AtomicBool,
    deadline: Instant,
}

impl Clock<'_> {
    fn over(&self) -> Option<End> {
        // Relaxed: the flag guards no other data.
        if self.stop.load(Ordering::Relaxed) {
            Some(End::Signal)
        } else {
            (Instant::now() >= self.deadline).then_some(End::Timeout)
        }
    }
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

/// One line on a terminal, rewritten a few times per second.
#[derive(Debug)]
struct Status {
    next: Option<Instant>,
}

impl Status {
    fn new(wanted: bool) -> Self {
        Status {
            next: (wanted && io::stderr().is_terminal()).then(Instant::now),
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
    let mut block = Box::new([0; BLOCK_BYTES]);
    Noise::new(unix_ns()).fill(&mut block[..]);
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
