use super::*;
use crate::bitstream::NalUnit;
use crate::encode::Codec;
use crate::rtp::{Packetizer, PacketizerConfig};
use std::collections::VecDeque;

fn packetizer(mtu: usize) -> Packetizer {
    Packetizer::new(PacketizerConfig {
        codec: Codec::H264,
        payload_type: 96,
        mtu,
        ssrc: 1,
        sequence: 0,
    })
}

/// Parameter sets, an SEI, slices: runs and single packets of many lengths.
fn unit() -> Vec<Vec<u8>> {
    let nal = |header: u8, len: usize| {
        let mut nal = vec![header];
        nal.extend((1..len).map(|at| (at * 7 % 250) as u8 + 1));
        nal
    };
    vec![
        nal(0x67, 20),
        nal(0x68, 5),
        nal(0x06, 50),
        nal(0x65, 100_000),
        nal(0x65, 700),
        nal(0x65, 700),
        nal(0x65, 900),
        nal(0x65, 2400),
    ]
}

/// All packets of `unit` as datagrams.
fn expected(nals: &[Vec<u8>], mtu: usize) -> Vec<Vec<u8>> {
    let mut packetizer = packetizer(mtu);
    let packets = packetizer.packets(nals.iter().map(|nal| NalUnit(nal)), 0);
    packets.map(|packet| packet.to_vec()).collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn the_control_message_is_laid_out_as_the_system_does_it() {
    // SAFETY: both only calculate.
    let (len, space) = unsafe { (libc::CMSG_LEN(2), libc::CMSG_SPACE(2)) };
    let control = SegmentControl::new(1200);
    assert_eq!(control.header.cmsg_len as u64, u64::from(len));
    assert_eq!(size_of::<SegmentControl>() as u64, u64::from(space));
    let offset = std::mem::offset_of!(SegmentControl, size);
    assert_eq!(offset as u64, u64::from(len) - 2);
}

#[test]
fn all_rungs_put_the_same_datagrams_on_the_wire() {
    let nals = unit();
    let expected = expected(&nals, 1200);
    for limit in [Rung::Segmented, Rung::Many, Rung::Single] {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(receiver.local_addr().unwrap()).unwrap();
        let mut socket = BatchSocket::new(socket).unwrap();
        socket.limit_rung(limit);
        let rung = socket.rung();
        let mut packetizer = packetizer(1200);
        let mut packets = packetizer.packets(nals.iter().map(|nal| NalUnit(nal)), 0);
        let mut buffer = [0; 2000];
        let mut at = 0;
        // fewer at a time than a receive buffer of the default size holds
        while packets.len() > 0 {
            let sent = socket.send(&mut packets.by_ref().take(60), soon());
            assert!(sent.end.is_none(), "{rung:?}: {:?}", sent.end);
            assert_eq!((sent.refused, sent.lost), (0, 0));
            let mut bytes = 0;
            for _ in 0..sent.datagrams {
                let len = receiver.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], expected[at], "{rung:?}, datagram {at}");
                bytes += len as u64;
                at += 1;
            }
            assert_eq!(sent.bytes, bytes);
        }
        assert_eq!(at, expected.len());
        println!(
            "{limit:?} asked for, {rung:?} used, {:?} left",
            socket.rung()
        );
    }
}

#[test]
fn an_absent_receiver_costs_nothing_but_a_second_try() {
    // a port that was free a moment ago
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    let mut socket = BatchSocket::new(socket).unwrap();
    let nals = unit();
    let mut packetizer = packetizer(1200);
    let mut packets = packetizer.packets(nals.iter().map(|nal| NalUnit(nal)), 0);
    let total = packets.len() as u64;
    let sent = socket.send(&mut packets, soon());
    assert!(sent.end.is_none(), "{:?}", sent.end);
    assert!(sent.refused > 0, "the loopback answers at once");
    assert_eq!(sent.datagrams + sent.lost, total);
}

/// A kernel that answers from a script and keeps what it takes.
#[derive(Debug, Default)]
struct Script {
    /// `Ok(n)` takes n messages at most, `Err` is an errno; takes everything once it is used up.
    answers: VecDeque<Result<usize, i32>>,
    writable: bool,
    taken: Vec<Vec<u8>>,
    calls: Vec<(Rung, usize)>,
}

impl Kernel for Script {
    fn send(
        &mut self,
        rung: Rung,
        messages: &[Message],
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        self.calls.push((rung, messages.len()));
        let count = match self.answers.pop_front().unwrap_or(Ok(usize::MAX)) {
            Ok(count) if rung == Rung::Single => count.min(1),
            Ok(count) => count.min(messages.len()),
            Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
        };
        for message in &messages[..count] {
            let pieces = &pieces[2 * message.first..2 * (message.first + message.datagrams)];
            let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
            assert_eq!(bytes.len(), message.bytes);
            assert!(message.datagrams == 1 || rung == Rung::Segmented);
            self.taken
                .extend(bytes.chunks(message.size).map(<[u8]>::to_vec));
        }
        Ok(count)
    }

    fn wait_writable(&mut self, _: Instant) -> bool {
        self.writable
    }

    fn path_mtu(&self) -> Option<usize> {
        Some(1280)
    }
}

/// Sends the unit against a script.
fn play(
    answers: impl IntoIterator<Item = Result<usize, i32>>,
    writable: bool,
) -> (BatchSent, BatchSocket<Script>) {
    let kernel = Script {
        answers: answers.into_iter().collect(),
        writable,
        ..Script::default()
    };
    let mut socket = BatchSocket::with_kernel(kernel, Rung::Segmented);
    let nals = unit();
    let mut packetizer = packetizer(1200);
    let sent = socket.send(
        &mut packetizer.packets(nals.iter().map(|nal| NalUnit(nal)), 0),
        soon(),
    );
    (sent, socket)
}

#[test]
fn runs_are_as_long_as_the_kernel_takes_them() {
    let (sent, socket) = play([], true);
    let expected = expected(&unit(), 1200);
    assert_eq!(socket.kernel.taken, expected);
    assert_eq!(sent.datagrams, expected.len() as u64);
    // 54 packets of 1200 bytes are 64 800; the first call ends with that run
    assert_eq!(socket.kernel.calls[0], (Rung::Segmented, 2));
    assert_eq!(socket.kernel.calls.len(), 2);
}

#[test]
fn a_device_that_cannot_segment_is_served_datagram_by_datagram() {
    for errno in [libc::EIO, libc::EINVAL] {
        // the aggregation packet goes, the run behind it does not
        let (sent, mut socket) = play([Ok(1), Err(errno)], true);
        assert!(sent.end.is_none());
        assert_eq!(socket.kernel.taken, expected(&unit(), 1200));
        assert_eq!(socket.rung(), Rung::Many);
        socket.restore_rung();
        assert_eq!(socket.rung(), Rung::Segmented);
    }
}

#[test]
fn a_kernel_without_sendmmsg_is_served_message_by_message() {
    let (sent, socket) = play([Ok(1), Err(libc::EIO), Err(libc::ENOSYS)], true);
    assert!(sent.end.is_none());
    assert_eq!(socket.kernel.taken, expected(&unit(), 1200));
    assert_eq!(socket.rung(), Rung::Single);
}

#[test]
fn a_refused_message_is_sent_again_once_and_then_left_out() {
    let all = expected(&unit(), 1200);
    let (sent, socket) = play([Err(libc::ECONNREFUSED)], true);
    assert_eq!((sent.refused, sent.lost), (1, 0));
    assert_eq!(socket.kernel.taken, all);
    // the first message is the aggregation packet
    let refusals = [Err(libc::ECONNREFUSED), Err(libc::ECONNREFUSED)];
    let (sent, socket) = play(refusals, true);
    assert_eq!((sent.refused, sent.lost), (2, 1));
    assert_eq!(socket.kernel.taken, all[1..]);
}

#[test]
fn a_full_socket_is_waited_for_and_then_given_up() {
    let (sent, socket) = play([Ok(1), Err(libc::EAGAIN), Err(libc::EINTR)], true);
    assert!(sent.end.is_none());
    assert_eq!(socket.kernel.taken, expected(&unit(), 1200));
    let (sent, socket) = play([Ok(1), Err(libc::EAGAIN)], false);
    assert!(matches!(sent.end, Some(BatchEnd::Full)));
    assert_eq!((sent.datagrams, socket.kernel.taken.len()), (1, 1));
    // a full device queue gives no sign of when it is not
    let (sent, _) = play([Err(libc::ENOBUFS)], true);
    assert!(matches!(sent.end, Some(BatchEnd::Full)));
}

#[test]
fn what_is_too_large_for_the_path_says_what_is_not() {
    let (sent, _) = play([Err(libc::EMSGSIZE)], true);
    assert!(matches!(
        sent.end,
        Some(BatchEnd::TooBig {
            path_mtu: Some(1280)
        })
    ));
}

#[test]
fn other_errors_end_the_batch_with_their_name() {
    let (sent, _) = play([Ok(2), Err(libc::ENETUNREACH)], true);
    let Some(BatchEnd::Failed(error)) = sent.end else {
        panic!("{:?}", sent.end)
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    assert_eq!(sent.datagrams, 1 + 54);
}

#[test]
fn a_socket_forbids_fragmentation() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect("127.0.0.1:9").unwrap();
    let socket = BatchSocket::new(socket).unwrap();
    let fd = socket.socket().as_raw_fd();
    let discover = get_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap();
    assert_eq!(discover, libc::IP_PMTUDISC_DO);
    // the loopback's, cut to what an IP packet can say
    assert_eq!(socket.kernel.path_mtu(), Some(65_535));
}
