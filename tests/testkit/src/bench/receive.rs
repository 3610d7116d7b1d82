//! The receiver: keeps what comes and when, and takes it apart after the run.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{Unit, rtmp_mode};
use crate::bitstream::Codec;
use crate::producer::unix_ns;
use crate::rtmp::dump::Dumps;
use crate::rtmp::handshake::BLOCK_BYTES;
use crate::rtmp::session::{Behaviour, Event, Session};
use crate::rtmp::stream::{Piece, StreamCheck};
use crate::rtmp::video::{Content, VideoBody};
use crate::rtp::depacketize::Depacketizer;
use crate::rtp::header::{Packet, is_rtcp};
use crate::rtp::socket::Sockets;
use crate::stamp;
use crate::worker::Worker;

/// A receiver that runs on its own thread.
pub struct Receiver {
    pub port: u16,
    progress: Arc<Progress>,
    thread: Worker<io::Result<Heard>>,
}

/// What the receiving thread says while it runs.
#[derive(Debug, Default)]
struct Progress {
    units: AtomicU64,
    bytes: AtomicU64,
}

/// Everything that came.
#[derive(Debug, Default)]
pub struct Heard {
    /// Datagrams or messages back to back.
    bytes: Vec<u8>,
    pieces: Vec<Heading>,
    pub wire_bytes: u64,
    pub overflows: u32,
    /// What ended the protocol early.
    pub broken: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Heading {
    arrival_ns: u64,
    timestamp: u32,
    end: usize,
}

impl Receiver {
    /// Listens for RTP at a free port. Without `keep` it counts and forgets.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn rtp(gro: bool, keep: bool) -> io::Result<Self> {
        let sockets = Sockets::open(IpAddr::V4(Ipv4Addr::LOCALHOST), 0, gro)?;
        let port = sockets.port()?;
        Ok(Self::start(port, move |progress, stop| {
            hear_rtp(sockets, keep, progress, stop)
        }))
    }

    /// Serves one RTMP publisher at a free port.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn rtmp(keep: bool) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        Ok(Self::start(port, move |progress, stop| {
            hear_rtmp(&listener, keep, progress, stop)
        }))
    }

    fn start(
        port: u16,
        work: impl FnOnce(&Progress, &AtomicBool) -> io::Result<Heard> + Send + 'static,
    ) -> Self {
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        Receiver {
            port,
            progress,
            thread: Worker::start(move |stop| work(&shared, stop)),
        }
    }

    /// Access units so far.
    pub fn units(&self) -> u64 {
        // Relaxed, here and below: the join orders what matters.
        self.progress.units.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.progress.bytes.load(Ordering::Relaxed)
    }

    /// # Errors
    ///
    /// The socket's.
    pub fn finish(self) -> io::Result<Heard> {
        self.thread
            .end()
            .unwrap_or_else(|_| Err(io::Error::other("the receiver panicked")))
    }
}

impl Progress {
    fn bytes(&self, count: usize) {
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl Heard {
    fn keep(&mut self, arrival_ns: u64, timestamp: u32, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pieces.push(Heading {
            arrival_ns,
            timestamp,
            end: self.bytes.len(),
        });
    }

    fn pieces(&self) -> impl Iterator<Item = (Heading, &[u8])> {
        let mut start = 0;
        self.pieces.iter().map(move |heading| {
            let bytes = &self.bytes[start..heading.end];
            start = heading.end;
            (*heading, bytes)
        })
    }

    /// Takes RTP packets apart; the access units go to `dump` as Annex B.
    ///
    /// # Errors
    ///
    /// The file's.
    pub fn rtp_units(&self, codec: Codec, dump: Option<&Path>) -> io::Result<Vec<Unit>> {
        let mut dumps = Dumps::open(None, dump.map(Path::to_owned).as_ref())?;
        let mut depacketizer = Depacketizer::new(codec);
        let (mut nals, mut units) = (Vec::<Vec<u8>>::new(), Vec::new());
        for (heading, datagram) in self.pieces() {
            let Ok(packet) = Packet::parse(datagram) else {
                continue;
            };
            let _ = depacketizer.push(packet.payload, packet.marker, |nal| {
                nals.push(nal.to_vec());
            });
            if packet.marker {
                let parts: Vec<&[u8]> = nals.iter().map(Vec::as_slice).collect();
                units.push(unit(codec, heading.arrival_ns, packet.timestamp, &parts));
                dumps.piece(&Piece::Frame {
                    nals: parts,
                    timestamp_ms: 0,
                    key: false,
                })?;
                nals.clear();
            }
        }
        dumps.close()?;
        Ok(units)
    }

    /// Takes RTMP video messages apart.
    ///
    /// # Errors
    ///
    /// The file's.
    pub fn rtmp_units(&self, codec: Codec, dump: Option<&Path>) -> io::Result<Vec<Unit>> {
        let mut dumps = Dumps::open(None, dump.map(Path::to_owned).as_ref())?;
        let mut check = StreamCheck::new(rtmp_mode(codec), false);
        let (mut units, mut failure) = (Vec::new(), Ok(()));
        for (heading, body) in self.pieces() {
            check.video(heading.timestamp, body, &mut |piece| {
                if let Piece::Frame { nals, .. } = &piece {
                    units.push(unit(codec, heading.arrival_ns, heading.timestamp, nals));
                }
                if failure.is_ok() {
                    failure = dumps.piece(&piece);
                }
            });
        }
        failure?;
        dumps.close()?;
        Ok(units)
    }
}

fn unit(codec: Codec, arrival_ns: u64, timestamp: u32, nals: &[&[u8]]) -> Unit {
    let stamp = nals.iter().find_map(|nal| stamp::find(codec, nal));
    Unit {
        arrival_ns,
        timestamp,
        frame: stamp.map(|stamp| stamp.frame_id),
        bytes: nals.iter().map(|nal| nal.len() as u64).sum(),
    }
}

fn hear_rtp(
    mut sockets: Sockets,
    keep: bool,
    progress: &Progress,
    stop: &AtomicBool,
) -> io::Result<Heard> {
    let mut heard = Heard::default();
    while !stop.load(Ordering::Relaxed) {
        sockets.wait(Duration::from_millis(50))?;
        while let Some((arrival, bytes)) = sockets.receive_rtp()? {
            heard.wire_bytes += arrival.length as u64;
            progress.bytes(arrival.length);
            if !keep || arrival.segment == 0 {
                continue;
            }
            for datagram in bytes.chunks(arrival.segment) {
                if is_rtcp(datagram) {
                    continue;
                }
                heard.keep(arrival.unix_ns, 0, datagram);
                if datagram.get(1).is_some_and(|byte| byte & 0x80 != 0) {
                    progress.units.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        while sockets.receive_rtcp()?.is_some() {}
    }
    heard.overflows = sockets.overflows();
    Ok(heard)
}

fn hear_rtmp(
    listener: &TcpListener,
    keep: bool,
    progress: &Progress,
    stop: &AtomicBool,
) -> io::Result<Heard> {
    let mut heard = Heard::default();
    listener.set_nonblocking(true)?;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(heard),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let behaviour = Behaviour {
        window: 2_500_000,
        refusal: None,
        echo_transaction: false,
    };
    // What S1 is filled with matters to nobody here.
    let mut session = Session::new(behaviour, Box::new([7; BLOCK_BYTES]));
    let mut buffer = vec![0; 1 << 20];
    while !stop.load(Ordering::Relaxed) {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if is_timeout(&error) => continue,
            Err(_) => break,
        };
        let arrival_ns = unix_ns();
        heard.wire_bytes += count as u64;
        progress.bytes(count);
        let result = session.input(&buffer[..count], &mut |event| {
            if let Event::Video { timestamp, body } = event {
                if keep {
                    heard.keep(arrival_ns, timestamp, body);
                }
                let parsed = VideoBody::parse(body);
                if parsed.is_ok_and(|body| matches!(body.content, Content::Frame { .. })) {
                    progress.units.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        if let Err(error) = result {
            heard.broken = Some(error.to_string());
            break;
        }
        reply(&mut stream, &mut session)?;
    }
    Ok(heard)
}

fn reply(stream: &mut TcpStream, session: &mut Session) -> io::Result<()> {
    let output = session.take_output();
    match stream.write_all(&output) {
        // It may be gone after its last message.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
