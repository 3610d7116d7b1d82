//! Ports for programs that a test starts.

#![allow(dead_code)] // each test uses its part

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// The next even port of this process, below those that the system gives to sockets that name none
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

pub fn free_tcp_port() -> u16 {
    candidates()
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free TCP port")
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
