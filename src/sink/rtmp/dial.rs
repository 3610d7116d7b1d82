//! A TCP connection in the making, which never blocks: the name is resolved beside, the
//! addresses are tried one after another.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::stream::poll;

/// See the module; dropping it gives up.
#[derive(Debug)]
pub struct Dial {
    names: Option<mpsc::Receiver<io::Result<Vec<SocketAddr>>>>,
    addresses: VecDeque<SocketAddr>,
    trying: Option<(Socket, SocketAddr, Instant)>,
    deadline: Instant,
    unsent_limit: u32,
    last_error: Option<io::Error>,
}

impl Dial {
    /// `unsent_limit`: bytes that the kernel may hold without having sent them.
    pub fn start(host: &str, port: u16, unsent_limit: u32, now: Instant) -> Self {
        let mut dial = Self {
            names: None,
            addresses: VecDeque::new(),
            trying: None,
            deadline: now + PATIENCE,
            unsent_limit,
            last_error: None,
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            dial.addresses.push_back((address, port).into());
        } else {
            dial.resolve(host.to_owned(), port);
        }
        dial
    }

    /// Waits at most `wait` for progress; the stream once it is connected.
    ///
    /// # Errors
    ///
    /// If no address takes the connection in time.
    pub fn advance(&mut self, now: Instant, wait: Duration) -> io::Result<Option<TcpStream>> {
        if now >= self.deadline {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no address has answered");
            return Err(self.last_error.take().unwrap_or_else(late));
        }
        if let Some(names) = &self.names {
            match names.recv_timeout(wait) {
                Ok(found) => {
                    self.names = None;
                    self.addresses = found?.into();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(None),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the name could not be looked up"));
                }
            }
        }
        if self.trying.is_none() && !self.try_next(now) {
            let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            return Err(self.last_error.take().unwrap_or_else(none));
        }
        let Some((socket, _, until)) = &self.trying else {
            return Ok(None);
        };
        if poll(socket, PollFlags::OUT, wait)?.is_empty() {
            if now >= *until {
                self.trying = None;
                self.last_error = Some(io::ErrorKind::TimedOut.into());
            }
            return Ok(None);
        }
        let (socket, ..) = self.trying.take().expect("it was there two lines above");
        match socket.take_error()? {
            Some(error) => {
                self.last_error = Some(error);
                Ok(None)
            }
            None => Ok(Some(socket.into())),
        }
    }

    /// Looks the name up on a thread of its own: the resolver of the C library blocks for as
    /// long as name servers are silent, and stopping must not wait for it. The thread ends with
    /// the look-up and holds nothing but the name.
    fn resolve(&mut self, host: String, port: u16) {
        let (tx, rx) = mpsc::channel();
        self.names = Some(rx);
        let look_up = move || {
            let found = (host.as_str(), port).to_socket_addrs();
            let _ = tx.send(found.map(Iterator::collect)); // nobody waits any more: fine
        };
        // If no thread can be started, the closed channel says so.
        let _ = std::thread::Builder::new()
            .name("rtmp-resolve".to_owned())
            .spawn(look_up);
    }

    /// Starts with the next address; false if there is none.
    fn try_next(&mut self, now: Instant) -> bool {
        while let Some(address) = self.addresses.pop_front() {
            match start_connect(address, self.unsent_limit) {
                Ok(socket) => {
                    self.trying = Some((socket, address, now + PATIENCE_PER_ADDRESS));
                    return true;
                }
                Err(error) => self.last_error = Some(error),
            }
        }
        false
    }
}

fn start_connect(address: SocketAddr, unsent_limit: u32) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // A picture's last packet does not wait for the acknowledgement of the one before.
    socket.set_tcp_nodelay(true)?;
    // The kernel takes this much more than the network does, and no more: what a slow server
    // cannot take shows as a full queue here instead of as seconds of delay in the kernel.
    socket.set_tcp_notsent_lowat(unsent_limit)?;
    // A peer that vanished without a word: while data is on its way, and while none is.
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(PEER_TIMEOUT)
            .with_interval(Duration::from_secs(2))
            .with_retries(3),
    )?;
    match socket.connect(&address.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// For the name and all its addresses.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_PER_ADDRESS: Duration = Duration::from_secs(3);
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
