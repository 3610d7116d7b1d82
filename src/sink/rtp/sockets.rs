//! The pair of sockets of a session.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use crate::sink::udp::BatchSocket;

/// The RTP socket, connected to the receiver, and the RTCP socket beside it.
///
/// RTCP is not connected: receivers may send it from any port. Only datagrams of the receiver's
/// own address are looked at, unless the destination is a group.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) rtp: BatchSocket,
    rtcp: UdpSocket,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
}

impl Sockets {
    /// Opens both for `HOST:PORT`; an error is a sentence for the operator.
    pub(super) fn open(endpoint: &str) -> Result<Self, String> {
        let mut last = String::new();
        for peer in resolve(endpoint)? {
            match Self::connect(peer) {
                Ok(sockets) => return Ok(sockets),
                Err(error) => last = format!("{peer}: {error}"),
            }
        }
        Err(format!(
            "--rtp-endpoint {endpoint}: cannot be reached: {last}"
        ))
    }

    fn connect(peer: SocketAddr) -> io::Result<Self> {
        let (rtp, rtcp) = pair(any_address(peer))?;
        rtp.connect(peer)?;
        if peer.ip().is_multicast() {
            let options = socket2::SockRef::from(&rtp);
            if peer.is_ipv4() {
                rtp.set_multicast_ttl_v4(MULTICAST_TTL)?;
                rtcp.set_multicast_ttl_v4(MULTICAST_TTL)?;
            } else {
                options.set_multicast_hops_v6(MULTICAST_TTL)?;
                socket2::SockRef::from(&rtcp).set_multicast_hops_v6(MULTICAST_TTL)?;
            }
        }
        rtcp.set_nonblocking(true)?;
        let local = rtp.local_addr()?;
        Ok(Self {
            rtp: BatchSocket::new(rtp)?,
            rtcp,
            peer,
            local,
        })
    }

    pub(super) fn rtcp_port(&self) -> u16 {
        self.rtcp.local_addr().map_or(0, |address| address.port())
    }

    /// Sends to the receiver's RTCP port, which is the one after its RTP port (RFC 3550 section
    /// 11). Whether anybody is there does not matter.
    pub(super) fn send_rtcp(&self, datagram: &[u8]) {
        let mut peer = self.peer;
        peer.set_port(peer.port() + 1); // `resolve` takes no port without a next one
        if let Err(error) = self.rtcp.send_to(datagram, peer) {
            log::debug!("RTCP to {peer}: {error}");
        }
    }

    /// Gives every datagram that waits on either socket, a bounded number of them. Returns how
    /// often the socket had kept a refusal of what was sent before.
    pub(super) fn receive(&self, mut take: impl FnMut(&[u8])) -> u64 {
        let mut buffer = [0; 1500];
        let mut refused = 0;
        for _ in 0..MOST_DATAGRAMS {
            match self.rtp.socket().recv(&mut buffer) {
                Ok(len) => take(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused += 1,
                Err(_) => break,
            }
        }
        for _ in 0..MOST_DATAGRAMS {
            match self.rtcp.recv_from(&mut buffer) {
                Ok((len, from)) if self.is_receiver(from.ip()) => take(&buffer[..len]),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        refused
    }

    fn is_receiver(&self, from: IpAddr) -> bool {
        self.peer.ip() == from || self.peer.ip().is_multicast()
    }
}

/// The addresses of an endpoint, IPv4 first: most receivers listen there only.
fn resolve(endpoint: &str) -> Result<Vec<SocketAddr>, String> {
    let refuse = |why: &str| format!("--rtp-endpoint {endpoint}: {why}");
    let shape = "is not HOST:PORT; the host is a name, an IPv4 address or an IPv6 address in brackets, such as [::1]:5004";
    let (host, port) = endpoint.rsplit_once(':').ok_or_else(|| refuse(shape))?;
    let port: u16 = port
        .parse()
        .map_err(|_| refuse("the port is not a number from 1 to 65534"))?;
    if port == 0 || port == u16::MAX {
        return Err(refuse(
            "the port is not from 1 to 65534 (RTCP takes the next one)",
        ));
    }
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let bracketed = bare.is_some();
    let host = bare.unwrap_or(host);
    if host.is_empty() || (host.contains(':') && !bracketed) || host.contains(['[', ']', '/']) {
        return Err(refuse(shape));
    }
    let found = (host, port)
        .to_socket_addrs()
        .map_err(|error| refuse(&format!("cannot be resolved: {error}")))?;
    let mut addresses: Vec<_> = found.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

/// Two sockets on an even port and the next one (RFC 3550 section 11), or on any two where no
/// such pair can be had.
fn pair(any: IpAddr) -> io::Result<(UdpSocket, UdpSocket)> {
    for _ in 0..PAIR_ATTEMPTS {
        let rtp = UdpSocket::bind((any, 0))?;
        let port = rtp.local_addr()?.port();
        if port.is_multiple_of(2)
            && let Ok(rtcp) = UdpSocket::bind((any, port + 1))
        {
            return Ok((rtp, rtcp));
        }
    }
    Ok((UdpSocket::bind((any, 0))?, UdpSocket::bind((any, 0))?))
}

fn any_address(peer: SocketAddr) -> IpAddr {
    if peer.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

/// Groups may lie behind a few routers of the same site.
pub(super) const MULTICAST_TTL: u32 = 16;
const PAIR_ATTEMPTS: usize = 16;
/// Feedback is read between pictures; a flood of it must not hold them up.
const MOST_DATAGRAMS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_names_or_addresses_of_both_families() {
        let first = |endpoint: &str| resolve(endpoint).unwrap()[0].to_string();
        assert_eq!(first("127.0.0.1:5004"), "127.0.0.1:5004");
        assert_eq!(first("[::1]:5004"), "[::1]:5004");
        assert_eq!(first("localhost:6000"), "127.0.0.1:6000");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_flag() {
        for endpoint in [
            "",
            "5004",
            "host",
            "127.0.0.1:",
            "127.0.0.1:x",
            "127.0.0.1:0",
            "127.0.0.1:65535",
            "127.0.0.1:65536",
            ":5004",
            "::1:5004",
            "[::1]",
            "rtp://127.0.0.1:5004",
            "no such host.invalid:5004",
        ] {
            let error = resolve(endpoint).unwrap_err();
            assert!(
                error.contains(&format!("--rtp-endpoint {endpoint}: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn rtcp_takes_the_port_after_an_even_one() {
        let sockets = Sockets::open("127.0.0.1:5004").unwrap();
        if sockets.local.port().is_multiple_of(2) {
            assert_eq!(sockets.rtcp_port(), sockets.local.port() + 1);
        } else {
            println!("no pair of ports was free");
        }
    }
}
