//! The connected socket, plain or with TLS around it; nothing here blocks but [`Stream::wait`].

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustls::pki_types::ServerName;

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

pub struct TlsStream {
    socket: TcpStream,
    tls: rustls::ClientConnection,
}

impl Stream {
    /// Starts TLS on `socket`, with `host` as the name that its certificate has to bear.
    ///
    /// # Errors
    ///
    /// If `host` cannot stand in a certificate.
    pub fn tls(
        socket: TcpStream,
        config: &Arc<rustls::ClientConfig>,
        host: &str,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let mut tls =
            rustls::ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(TLS_BUFFER));
        Ok(Self::Tls(Box::new(TlsStream { socket, tls })))
    }

    /// Writes what the kernel takes of `pieces` now.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if it takes nothing; otherwise the connection is lost.
    pub fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => retry(|| socket.write_vectored(pieces)),
            Self::Tls(stream) => {
                // Sealing copies once, record by record: nothing can be pointed at here.
                let taken = stream.tls.writer().write_vectored(pieces)?;
                stream.push()?;
                match taken {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    taken => Ok(taken),
                }
            }
        }
    }

    /// Whether everything that was written is with the kernel; tries to get it there.
    ///
    /// # Errors
    ///
    /// If the connection is lost.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            Self::Tls(stream) => {
                stream.push()?;
                Ok(!stream.tls.wants_write())
            }
        }
    }

    /// Reads what is there; 0 if the peer has closed.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is nothing; otherwise the connection is lost.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => retry(|| socket.read(buffer)),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    /// Waits until there is something to read, or also until the kernel takes more. Gives what
    /// it found, which is nothing if `timeout` passed.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be polled.
    pub fn wait(&self, writable: bool, timeout: Duration) -> io::Result<PollFlags> {
        let (socket, tls_wants_write) = match self {
            Self::Plain(socket) => (socket, false),
            Self::Tls(stream) => (&stream.socket, stream.tls.wants_write()),
        };
        let mut flags = PollFlags::IN;
        if writable || tls_wants_write {
            flags |= PollFlags::OUT;
        }
        poll(socket, flags, timeout)
    }

    /// Tells the peer that nothing more comes.
    pub fn shutdown(&mut self) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => {
                stream.tls.send_close_notify();
                let _ = stream.push(); // the peer may be gone already
                &mut stream.socket
            }
        };
        let _ = socket.shutdown(Shutdown::Write);
    }
}

impl TlsStream {
    /// Moves sealed records to the kernel as far as it takes them.
    fn push(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Bounded: records without a byte for us may come for ever, and a stop must be seen.
        for reads_left in (0..READS_AT_ONCE).rev() {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A server that closes without the closing alert: RTMP ends by its own rules.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            if reads_left == 0 {
                break;
            }
            match retry(|| self.tls.read_tls(&mut self.socket))? {
                0 => return Ok(0),
                _ => {
                    let result = self.tls.process_new_packets();
                    self.push()?; // the answer of a handshake, or an alert that says why not
                    result.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                }
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// What is ready on `fd` within `timeout`; a signal counts as nothing.
pub fn poll(fd: &impl AsFd, flags: PollFlags, timeout: Duration) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd, flags)];
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) => Ok(fds[0].revents()),
        Err(rustix::io::Errno::INTR) => Ok(PollFlags::empty()),
        Err(error) => Err(error.into()),
    }
}

/// More than a handshake takes.
const READS_AT_ONCE: u32 = 64;
/// Sealed bytes that wait for the kernel: four records.
const TLS_BUFFER: usize = 64 * 1024;
