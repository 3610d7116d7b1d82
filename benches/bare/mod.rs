//! What the benches compare with: the least that a sender of RTP does.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

pub const MTU: usize = 1200;

/// The yardstick: FU-A heads of one NAL unit on the stack, two pieces per packet, runs of 54.
pub fn bare_send(socket: &UdpSocket, nal: &[u8], sequence: &mut u16) {
    const RUN: usize = 54;
    const FRAGMENT: usize = MTU - 14;
    let mut heads = [[0_u8; 14]; RUN];
    let mut pieces = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; 2 * RUN];
    let data = &nal[1..];
    let last = data.len().div_ceil(FRAGMENT) - 1;
    let mut chunks = data.chunks(FRAGMENT).enumerate().peekable();
    while chunks.peek().is_some() {
        let (mut count, mut bytes) = (0, 0);
        for (index, chunk) in chunks.by_ref().take(RUN) {
            let head = &mut heads[count];
            head[0] = 0x80;
            head[1] = if index == last { 0xE0 } else { 0x60 };
            head[2..4].copy_from_slice(&sequence.to_be_bytes());
            *sequence = sequence.wrapping_add(1);
            head[12] = nal[0] & 0xE0 | 28;
            head[13] = nal[0] & 0x1F
                | if index == 0 { 0x80 } else { 0 }
                | if index == last { 0x40 } else { 0 };
            pieces[2 * count].iov_base = head.as_mut_ptr().cast();
            pieces[2 * count].iov_len = 14;
            pieces[2 * count + 1].iov_base = chunk.as_ptr().cast_mut().cast();
            pieces[2 * count + 1].iov_len = chunk.len();
            bytes += 14 + chunk.len();
            count += 1;
        }
        let mut control = [0_u64; 3];
        // SAFETY: plain data of which zeros are a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = 2 * count;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: `control` has room for a header and two bytes behind it and is aligned as a
        // header; the pieces point at `heads` and `nal`, which outlive the call.
        let sent = unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(2) as _;
            libc::CMSG_DATA(header)
                .cast::<u16>()
                .write_unaligned(MTU as u16);
            libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
        };
        assert_eq!(sent, bytes as isize);
    }
}

pub fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> std::io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value outlives the call and its size is said.
    let status = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, name, value, size)
    };
    if status == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
