//! The receiver's sockets: RTP with the kernel's receive stamps, and RTCP beside it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

/// Room for what the kernel gathers at most into one message with UDP_GRO.
const BUFFER_BYTES: usize = 65_536;
/// A burst of several uncompressed pictures' worth.
const RECEIVE_BUFFER: usize = 32 << 20;

/// One read: a datagram, or several of one size back to back.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub length: usize,
    /// Size of each datagram but the last.
    pub segment: usize,
    /// ns since 1970: when the kernel got it.
    pub unix_ns: u64,
    pub from: SocketAddr,
}

/// RTP at a port, RTCP at the next one.
#[derive(Debug)]
pub struct Sockets {
    rtp: UdpSocket,
    rtcp: Option<UdpSocket>,
    buffer: Vec<u8>,
    control: Vec<u8>,
    overflows: u32,
}

/// Where something came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    Rtp,
    Rtcp,
}

impl Sockets {
    /// Binds `port` and the next one; port 0 picks a free even one. A multicast address is joined.
    ///
    /// # Errors
    ///
    /// If the RTP port cannot be had. RTCP can then still come on the RTP port.
    pub fn open(bind: IpAddr, port: u16, gro: bool) -> io::Result<Self> {
        let (rtp, rtcp) = if port == 0 {
            free_pair(bind)?
        } else {
            let rtp = bound(bind, port)?;
            (
                rtp,
                port.checked_add(1).and_then(|next| bound(bind, next).ok()),
            )
        };
        setsockopt(&rtp, sockopt::ReceiveTimestampns, &true)?;
        // Without the privilege the system's limit holds; the loss is then reported by the kernel.
        if setsockopt(&rtp, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&rtp, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        let _ = setsockopt(&rtp, sockopt::RxqOvfl, &1);
        if gro {
            let _ = setsockopt(&rtp, sockopt::UdpGroSegment, &true);
        }
        rtp.set_nonblocking(true)?;
        if let Some(rtcp) = &rtcp {
            setsockopt(rtcp, sockopt::ReceiveTimestampns, &true)?;
            rtcp.set_nonblocking(true)?;
        }
        Ok(Sockets {
            rtp,
            rtcp,
            buffer: vec![0; BUFFER_BYTES],
            control: nix::cmsg_space!(TimeSpec, i32, u32),
            overflows: 0,
        })
    }

    pub fn port(&self) -> io::Result<u16> {
        self.rtp.local_addr().map(|address| address.port())
    }

    pub fn has_rtcp_port(&self) -> bool {
        self.rtcp.is_some()
    }

    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub fn overflows(&self) -> u32 {
        self.overflows
    }

    /// Waits until something can be read, at most `limit`.
    ///
    /// # Errors
    ///
    /// `poll`'s, an interruption excepted.
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        let mut sockets = vec![PollFd::new(self.rtp.as_fd(), PollFlags::POLLIN)];
        sockets.extend(
            self.rtcp
                .as_ref()
                .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)),
        );
        // Rounded up, or the last millisecond would be a busy loop.
        let limit =
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut sockets, limit) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads from the RTP port; `None` if nothing is there.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn receive_rtp(&mut self) -> io::Result<Option<(Arrival, &[u8])>> {
        let arrival = receive(
            &self.rtp,
            &mut self.buffer,
            &mut self.control,
            &mut self.overflows,
        )?;
        Ok(arrival.map(|arrival| (arrival, &self.buffer[..arrival.length])))
    }

    /// Reads from the RTCP port; `None` if nothing is there.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn receive_rtcp(&mut self) -> io::Result<Option<(Arrival, &[u8])>> {
        let Some(socket) = &self.rtcp else {
            return Ok(None);
        };
        let mut ignored = 0;
        let arrival = receive(socket, &mut self.buffer, &mut self.control, &mut ignored)?;
        Ok(arrival.map(|arrival| (arrival, &self.buffer[..arrival.length])))
    }

    /// Sends RTCP through the socket that the peer's came in by.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn send(&self, channel: Channel, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = match (channel, &self.rtcp) {
            (Channel::Rtcp, Some(rtcp)) => rtcp,
            _ => &self.rtp,
        };
        socket.send_to(bytes, to).map(drop)
    }
}

fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
    overflows: &mut u32,
) -> io::Result<Option<Arrival>> {
    let mut slices = [IoSliceMut::new(buffer)];
    let message = match recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(control),
        MsgFlags::MSG_DONTWAIT,
    ) {
        Ok(message) => message,
        // ECONNREFUSED is an echo of feedback that nobody took.
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(from) = message.address.as_ref().and_then(address_of) else {
        return Ok(None);
    };
    let mut arrival = Arrival {
        length: message.bytes,
        segment: message.bytes,
        unix_ns: 0,
        from,
    };
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmTimestampns(time) => {
                arrival.unix_ns = time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
            }
            ControlMessageOwned::UdpGroSegments(size) if size > 0 => {
                arrival.segment = size as usize
            }
            ControlMessageOwned::RxqOvfl(count) => *overflows = count,
            _ => {}
        }
    }
    if arrival.unix_ns == 0 {
        arrival.unix_ns = crate::producer::unix_ns();
    }
    Ok(Some(arrival))
}

fn address_of(storage: &SockaddrStorage) -> Option<SocketAddr> {
    match storage.family()? {
        nix::sys::socket::AddressFamily::Inet => storage
            .as_sockaddr_in()
            .map(|a| SocketAddr::V4(SocketAddrV4::from(*a))),
        nix::sys::socket::AddressFamily::Inet6 => storage
            .as_sockaddr_in6()
            .map(|a| SocketAddr::V6(SocketAddrV6::from(*a))),
        _ => None,
    }
}

/// A free even port with a free one after it (RFC 3550 section 11).
fn free_pair(bind: IpAddr) -> io::Result<(UdpSocket, Option<UdpSocket>)> {
    for _ in 0..100 {
        let rtp = bound(bind, 0)?;
        let port = rtp.local_addr()?.port();
        if port.is_multiple_of(2)
            && let Ok(rtcp) = bound(bind, port + 1)
        {
            return Ok((rtp, Some(rtcp)));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "no free pair of ports",
    ))
}

fn bound(bind: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address((bind, port).into()),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if bind.is_multicast() {
        // Several receivers of one group are the point of a group.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SocketAddr::from((bind, port)).into())?;
    match bind {
        IpAddr::V4(group) if group.is_multicast() => {
            socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?
        }
        IpAddr::V6(group) if group.is_multicast() => socket.join_multicast_v6(&group, 0)?,
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => socket.set_only_v6(false).unwrap_or(()),
        _ => {}
    }
    Ok(socket.into())
}
