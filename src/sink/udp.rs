//! Runs of datagrams to one peer, with the fewest system calls that the kernel offers.
//!
//! | rung | system call | carries |
//! | --- | --- | --- |
//! | [`Rung::Segmented`] | `sendmmsg` with `UDP_SEGMENT` (Linux 4.18) | a run of equal datagrams, the last may be shorter, in each message |
//! | [`Rung::Many`] | `sendmmsg` | one datagram in each message |
//! | [`Rung::Single`] | `sendmsg` | one datagram |
//!
//! The rung is chosen at open and goes down when the kernel or the device refuses it (`EIO`
//! without checksum offload, `EINVAL`); what was refused is sent again on the lower one.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use crate::rtp::RtpPacket;

use super::gather::{Gather, GatherBuffer};

/// How datagrams are handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    Single,
    Many,
    Segmented,
}

impl Rung {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Segmented => "UDP_SEGMENT",
            Self::Many => "sendmmsg",
            Self::Single => "sendmsg",
        }
    }
}

/// What became of the packets given to [`BatchSocket::send`].
#[derive(Debug, Default)]
pub struct BatchSent {
    /// Datagrams that the kernel has taken, and their bytes.
    pub datagrams: u64,
    pub bytes: u64,
    /// Times the peer's host said that nobody listens (`ECONNREFUSED`).
    pub refused: u64,
    /// Datagrams that were refused twice and left out.
    pub lost: u64,
    /// When the kernel had taken the first system call's datagrams.
    pub first_at: Option<Instant>,
    /// Why the rest was not sent, if so.
    pub end: Option<BatchEnd>,
}

/// Why a batch was broken off. What is left of it was not sent.
#[derive(Debug)]
pub enum BatchEnd {
    /// No room in the socket's or the device's queue in time (`EAGAIN`, `ENOBUFS`).
    Full,
    /// Larger than the path carries (`EMSGSIZE`); the path MTU, IP header included, if known.
    TooBig { path_mtu: Option<usize> },
    /// Unreachable, forbidden by a filter, and whatever else may pass.
    Failed(io::Error),
}

/// A connected UDP socket that sends in batches.
#[derive(Debug)]
pub struct BatchSocket<K = KernelSocket> {
    kernel: K,
    rung: Rung,
    /// What was chosen at open.
    best: Rung,
    buffer: GatherBuffer,
    messages: Vec<Message>,
}

impl BatchSocket {
    /// Takes over a connected socket: makes it non-blocking, forbids fragmentation and enlarges
    /// its send buffer as far as the system allows.
    ///
    /// # Errors
    ///
    /// The system's own.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let kernel = KernelSocket::new(socket)?;
        let rung = if kernel.has_segmentation() {
            Rung::Segmented
        } else {
            Rung::Many
        };
        Ok(Self::with_kernel(kernel, rung))
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.kernel.socket
    }
}

impl<K: Kernel> BatchSocket<K> {
    fn with_kernel(kernel: K, rung: Rung) -> Self {
        Self {
            kernel,
            rung,
            best: rung,
            buffer: GatherBuffer::with_capacity(2 * DATAGRAMS, ARENA),
            messages: Vec::with_capacity(DATAGRAMS),
        }
    }

    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Sends no better than this from now on.
    pub fn limit_rung(&mut self, rung: Rung) {
        self.best = self.best.min(rung);
        self.rung = self.rung.min(rung);
    }

    /// Tries the best rung again: older kernels refuse to segment what is too large for the path
    /// with the same `EINVAL` as what they cannot segment at all.
    pub fn restore_rung(&mut self) {
        self.rung = self.best;
    }

    /// Sends all of `packets`, or as many as can be until `deadline` where the socket is full.
    ///
    /// A refusal by the peer's host (nobody listens yet) reports on an earlier datagram but keeps
    /// the present ones from being sent, so they are tried once more at once (contract section 8).
    pub fn send<'a>(
        &mut self,
        packets: &mut impl Iterator<Item = RtpPacket<'a>>,
        deadline: Instant,
    ) -> BatchSent {
        let mut sent = BatchSent::default();
        while sent.end.is_none() {
            let mut gather = self.buffer.gather(ARENA);
            fill(&mut gather, &mut self.messages, packets, self.rung);
            if self.messages.is_empty() {
                break;
            }
            let mut wire = Wire {
                kernel: &mut self.kernel,
                rung: &mut self.rung,
                deadline,
            };
            sent.end = wire.transmit(&mut self.messages, gather.all_pieces(), &mut sent);
        }
        sent
    }
}

/// Consecutive datagrams in one message; each has two pieces, head and body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Its first datagram, counted from the start of the gather list.
    first: usize,
    datagrams: usize,
    /// Bytes of each datagram but the last, which may be shorter.
    size: usize,
    bytes: usize,
    /// Another datagram may join.
    open: bool,
}

impl Message {
    fn single(first: usize, size: usize) -> Self {
        Self {
            first,
            datagrams: 1,
            size,
            bytes: size,
            open: true,
        }
    }

    /// Takes a datagram of `len` bytes in if the kernel's rules for segments allow it.
    #[inline]
    fn join(&mut self, len: usize) -> bool {
        let joins = self.open && len <= self.size && self.bytes + len <= LARGEST_MESSAGE;
        if joins {
            self.datagrams += 1;
            self.bytes += len;
            self.open = len == self.size && self.datagrams < SEGMENTS;
        }
        joins
    }

    fn is_full(&self) -> bool {
        self.datagrams == SEGMENTS || self.bytes + self.size > LARGEST_MESSAGE
    }

    /// One message for each datagram.
    fn split(self) -> impl Iterator<Item = Self> {
        let last = self.bytes - self.size * (self.datagrams - 1);
        (0..self.datagrams).map(move |index| {
            let is_last = index + 1 == self.datagrams;
            Self::single(self.first + index, if is_last { last } else { self.size })
        })
    }
}

/// Draws packets until there are no more, a run is full, or the list is.
#[inline]
fn fill<'g, 'p: 'g>(
    gather: &mut Gather<'g>,
    messages: &mut Vec<Message>,
    packets: &mut impl Iterator<Item = RtpPacket<'p>>,
    rung: Rung,
) {
    messages.clear();
    for index in 0..DATAGRAMS {
        let Some(packet) = packets.next() else { return };
        let (head, head_len) = packet.head();
        gather.push_packet(head, head_len, packet.body);
        let len = packet.len();
        if rung == Rung::Segmented
            && let Some(run) = messages.last_mut()
            && run.join(len)
        {
            if run.is_full() {
                return;
            }
        } else {
            messages.push(Message::single(index, len));
        }
    }
}

/// What sending needs of the kernel; a script stands in for it in tests.
pub trait Kernel {
    /// Hands over messages from the first on and gives how many were taken, at least one.
    fn send(
        &mut self,
        rung: Rung,
        messages: &[Message],
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize>;

    /// Waits for room in the send queue; false if there was none until `deadline`.
    fn wait_writable(&mut self, deadline: Instant) -> bool;

    /// Bytes of an IP packet that the path carries, as far as the kernel knows.
    fn path_mtu(&self) -> Option<usize>;
}

struct Wire<'s, K> {
    kernel: &'s mut K,
    rung: &'s mut Rung,
    deadline: Instant,
}

impl<K: Kernel> Wire<'_, K> {
    fn transmit(
        &mut self,
        messages: &mut Vec<Message>,
        pieces: &[IoSlice<'_>],
        sent: &mut BatchSent,
    ) -> Option<BatchEnd> {
        let (mut at, mut refused) = (0, false);
        while let Some(message) = messages.get(at).copied() {
            let error = match self.kernel.send(*self.rung, &messages[at..], pieces) {
                // never seen, and no reason to try for ever
                Ok(0) => return Some(BatchEnd::Full),
                Ok(count) => {
                    sent.first_at.get_or_insert_with(Instant::now);
                    for message in &messages[at..at + count] {
                        sent.datagrams += message.datagrams as u64;
                        sent.bytes += message.bytes as u64;
                    }
                    at += count;
                    refused = false;
                    continue;
                }
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ECONNREFUSED) => {
                    sent.refused += 1;
                    if refused {
                        sent.lost += message.datagrams as u64;
                        at += 1;
                    }
                    refused = !refused;
                }
                Some(libc::EAGAIN) if self.kernel.wait_writable(self.deadline) => {}
                Some(libc::EAGAIN | libc::ENOBUFS) => return Some(BatchEnd::Full),
                Some(libc::EIO | libc::EINVAL) if message.datagrams > 1 => {
                    self.lower(Rung::Many, &error);
                    let rest: Vec<_> = messages.drain(at..).collect();
                    messages.extend(rest.into_iter().flat_map(Message::split));
                }
                Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP)
                    if *self.rung > Rung::Single =>
                {
                    self.lower(Rung::Single, &error);
                }
                Some(libc::EMSGSIZE) => {
                    let path_mtu = self.kernel.path_mtu();
                    return Some(BatchEnd::TooBig { path_mtu });
                }
                _ => return Some(BatchEnd::Failed(error)),
            }
        }
        None
    }

    fn lower(&mut self, rung: Rung, error: &io::Error) {
        log::info!(
            "{} is refused here ({error}): sending by {}",
            self.rung.name(),
            rung.name()
        );
        *self.rung = rung;
    }
}

/// The real kernel.
#[derive(Debug)]
pub struct KernelSocket {
    socket: UdpSocket,
    v6: bool,
}

impl KernelSocket {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let v6 = matches!(socket.peer_addr()?, SocketAddr::V6(_));
        // The system's limit cuts this quietly; a smaller buffer only waits sooner.
        let _ = socket2::SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER);
        let fd = socket.as_raw_fd();
        // A datagram too large shall fail, not be fragmented: one lost fragment loses them all.
        if v6 {
            let discover = libc::IPV6_PMTUDISC_DO;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)?;
        } else {
            let discover = libc::IP_PMTUDISC_DO;
            set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
        }
        Ok(Self { socket, v6 })
    }

    fn has_segmentation(&self) -> bool {
        get_option(self.socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT).is_ok()
    }
}

impl Kernel for KernelSocket {
    fn send(
        &mut self,
        rung: Rung,
        messages: &[Message],
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let fd = self.socket.as_raw_fd();
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; DATAGRAMS];
        let mut controls = [const { MaybeUninit::<SegmentControl>::uninit() }; DATAGRAMS];
        let count = if rung == Rung::Single {
            1
        } else {
            messages.len().min(DATAGRAMS)
        };
        for ((message, header), control) in messages[..count]
            .iter()
            .zip(&mut headers)
            .zip(&mut controls)
        {
            let pieces = &pieces[2 * message.first..2 * (message.first + message.datagrams)];
            let header = header.write(message_header(pieces));
            if message.datagrams > 1 {
                let control = control.write(SegmentControl::new(message.size as u16));
                header.msg_hdr.msg_control = std::ptr::from_mut(control).cast();
                header.msg_hdr.msg_controllen = size_of::<SegmentControl>() as _;
            }
        }
        let headers = headers.as_mut_ptr().cast::<libc::mmsghdr>();
        let taken = if count == 1 {
            // SAFETY: `headers` points at one initialised header at least (`count` is 1). Its
            // iovec pointer and length are those of a slice of `pieces`, borrowed until we
            // return, and the IoSlices in it borrow what they point at; its control pointer is
            // null with length 0 or points at an initialised element of `controls`, of that
            // length. The kernel only reads through all of them.
            unsafe { libc::sendmsg(fd, &raw const (*headers).msg_hdr, libc::MSG_NOSIGNAL) }.min(1)
        } else {
            // SAFETY: as above for each of the first `count` headers, which the loop has
            // initialised; the kernel also writes their `msg_len`, and `headers` is ours and
            // borrowed mutably.
            unsafe {
                libc::sendmmsg(fd, headers, count as libc::c_uint, libc::MSG_NOSIGNAL) as isize
            }
        };
        match taken {
            ..0 => Err(io::Error::last_os_error()),
            // a datagram of no bytes counts as one, too
            _ => Ok(if count == 1 { 1 } else { taken as usize }),
        }
    }

    fn wait_writable(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut fds = [rustix::event::PollFd::new(
            &self.socket,
            rustix::event::PollFlags::OUT,
        )];
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1..))
    }

    fn path_mtu(&self) -> Option<usize> {
        let fd = self.socket.as_raw_fd();
        let mtu = if self.v6 {
            get_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU)
        } else {
            get_option(fd, libc::IPPROTO_IP, libc::IP_MTU)
        };
        mtu.ok().and_then(|mtu| usize::try_from(mtu).ok())
    }
}

fn message_header(pieces: &[IoSlice<'_>]) -> libc::mmsghdr {
    libc::mmsghdr {
        msg_hdr: libc::msghdr {
            msg_name: std::ptr::null_mut(), // the socket is connected
            msg_namelen: 0,
            // IoSlice has the layout of iovec (its documentation); the kernel does not write
            msg_iov: pieces.as_ptr().cast_mut().cast(),
            msg_iovlen: pieces.len() as _,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        },
        msg_len: 0,
    }
}

/// The control message `UDP_SEGMENT` (udp(7)), laid out as `CMSG_SPACE(2)` bytes.
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    size: u16,
    /// To the alignment of the next header.
    padding: [u8; size_of::<usize>() - 2],
}

impl SegmentControl {
    fn new(size: u16) -> Self {
        Self {
            header: libc::cmsghdr {
                // what CMSG_LEN(2) is where the header needs no padding, as in the test below
                cmsg_len: (size_of::<libc::cmsghdr>() + 2) as _,
                cmsg_level: libc::SOL_UDP,
                cmsg_type: libc::UDP_SEGMENT,
            },
            size,
            padding: [0; _],
        }
    }
}

fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an i32 that outlives the call, and its size is said.
    let status = unsafe {
        let value = std::ptr::from_ref(&value).cast();
        libc::setsockopt(fd, level, name, value, size_of::<i32>() as libc::socklen_t)
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get_option(fd: RawFd, level: i32, name: i32) -> io::Result<i32> {
    let (mut value, mut len) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes to `value`, which has as many, and the length
    // to `len`; both outlive the call.
    let status = unsafe {
        let value = std::ptr::from_mut(&mut value).cast();
        libc::getsockopt(fd, level, name, value, &raw mut len)
    };
    if status == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The longest wait for room that a caller should allow: an overfull device drains far sooner.
pub const PATIENCE: Duration = Duration::from_millis(10);
/// Datagrams in one system call; two pieces each stay below `UIO_MAXIOV`.
const DATAGRAMS: usize = 64;
/// Segments of a message on any kernel that has them (udp(7)).
const SEGMENTS: usize = 64;
/// Bytes of a segmented message over IPv6, which has 20 less than IPv4 (contract section 8).
const LARGEST_MESSAGE: usize = 65_487;
const ARENA: usize = DATAGRAMS * RtpPacket::HEAD;
const SEND_BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests;
