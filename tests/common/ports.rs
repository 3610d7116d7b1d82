//! Ports for programs that a test starts.

#![allow(dead_code)] // each test uses its part

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};

/// A TCP port of 127.0.0.1 that nobody else is given while this lives. Connecting to it is refused
/// until the program that it is meant for listens there, which needs `SO_REUSEADDR` for that: Go's
/// and Rust's standard libraries, nginx and ffmpeg set it.
#[derive(Debug)]
pub struct Reserved {
    /// Bound and never listening. A socket that listened for a moment would go on to accept for
    /// nobody where a program that was started meanwhile has a copy of it.
    _hold: Socket,
    pub port: u16,
}

pub fn reserve_tcp() -> Reserved {
    let reserve = || {
        let hold = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        hold.set_reuse_address(true)?;
        hold.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = hold.local_addr()?.as_socket();
        Ok::<_, std::io::Error>(Reserved {
            port: address.expect("an IPv4 socket").port(),
            _hold: hold,
        })
    };
    reserve().expect("a free TCP port")
}

/// The next even UDP port of this process, below those that the system gives to sockets that name none
/// (ip_local_port_range, from 32768): one of these would be gone again before the program that it is
/// meant for has bound it.
fn candidates() -> impl Iterator<Item = u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let of_process = std::process::id().wrapping_mul(64);
    std::iter::repeat_with(move || {
        let next = 2 * NEXT.fetch_add(1, Ordering::Relaxed);
        10_000 + (of_process.wrapping_add(next) % 20_000) as u16
    })
    .take(5000)
}

/// An even UDP port whose successor is free as well: RTP and RTCP.
pub fn free_port_pair() -> u16 {
    candidates()
        .find(|port| {
            let first = UdpSocket::bind(("127.0.0.1", *port));
            first.is_ok() && UdpSocket::bind(("127.0.0.1", *port + 1)).is_ok()
        })
        .expect("two free UDP ports in a row")
}
