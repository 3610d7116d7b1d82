use super::*;
use crate::bitstream::AccessUnitPool;
use crate::encode::{EncodedPicture, EncodedQueue};
use crate::pipeline::keyframe::KeyFrameRequests;
use crate::pipeline::stop::StopReason;
use crate::time::MediaTime;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

const IDENTITY: RtpIdentity = RtpIdentity {
    ssrc: 0x0102_0304,
    sequence: 0xFFFF,
    timestamp: 1000,
    session_id: 7,
};

/// A receiver: RTP and RTCP sockets on two neighbouring ports.
struct Receiver {
    rtp: UdpSocket,
    rtcp: UdpSocket,
}

impl Receiver {
    fn new() -> Self {
        loop {
            let rtp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = rtp.local_addr().unwrap().port();
            if let Some(next) = port.checked_add(1)
                && let Ok(rtcp) = UdpSocket::bind(("127.0.0.1", next))
            {
                let limit = Some(Duration::from_secs(5));
                rtp.set_read_timeout(limit).unwrap();
                rtcp.set_read_timeout(limit).unwrap();
                return Self { rtp, rtcp };
            }
        }
    }

    fn endpoint(&self) -> String {
        self.rtp.local_addr().unwrap().to_string()
    }

    fn packet(&self) -> Vec<u8> {
        read(&self.rtp).0
    }

    fn rtcp_packet(&self) -> (Vec<u8>, SocketAddr) {
        read(&self.rtcp)
    }
}

fn read(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2000];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

fn context() -> SinkContext {
    SinkContext {
        key_frames: KeyFrameRequests::new(),
        stop: StopToken::new(),
        stats: Arc::default(),
    }
}

fn config(receiver: &Receiver) -> RtpSinkConfig {
    RtpSinkConfig {
        identity: Some(IDENTITY),
        ..RtpSinkConfig::new(receiver.endpoint(), Codec::H264)
    }
}

struct Units(AccessUnitPool, EncodedQueue);

impl Units {
    fn new() -> Self {
        Self(AccessUnitPool::new(Codec::H264), EncodedQueue::new())
    }

    fn key(&mut self, millis: i64, slice: usize, sps: u8) -> Arc<AccessUnit> {
        let mut data = vec![0, 0, 1, 0x67, 1, 2, sps, 0, 0, 1, 0x68, 1, 0, 0, 1, 0x65];
        data.resize(data.len() + slice, 0x55);
        self.unit(millis, data)
    }

    fn unit(&mut self, millis: i64, data: Vec<u8>) -> Arc<AccessUnit> {
        let time = MediaTime(millis * 1_000_000);
        let mut trace = crate::trace::FrameTrace::default();
        trace.stamp(Stage::Notice, Instant::now());
        let picture = EncodedPicture {
            data,
            pts: time,
            dts: time,
            trace,
            ..EncodedPicture::default()
        };
        self.0.make(picture, &mut self.1, |_| ()).unwrap()
    }
}

#[test]
fn a_stream_begins_with_its_identity_and_a_report_and_ends_with_bye() {
    let receiver = Receiver::new();
    let context = context();
    let mut sink = RtpSink::open(config(&receiver), context.clone()).unwrap();
    assert!(context.key_frames.take(), "asked for at the start");
    let mut units = Units::new();
    assert_eq!(sink.send(&units.key(0, 10, 1)).unwrap(), Sent::All);
    assert_eq!(sink.send(&units.key(40, 10, 1)).unwrap(), Sent::All);

    let sent: Vec<_> = (0..4).map(|_| receiver.packet()).collect();
    let fields: Vec<_> = sent
        .iter()
        .map(|p| {
            (
                p[1],
                [p[2], p[3]],
                u32::from_be_bytes([p[4], p[5], p[6], p[7]]),
            )
        })
        .collect();
    #[rustfmt::skip]
    assert_eq!(fields, [
        // marker and type, sequence number, timestamp (90 kHz from 1000 on)
        (0x60, [0xFF, 0xFF], 1000), // STAP-A
        (0xE0, [0x00, 0x00], 1000),
        (0x60, [0x00, 0x01], 4600),
        (0xE0, [0x00, 0x02], 4600),
    ]);
    let (report, _) = receiver.rtcp_packet();
    assert_eq!(report[..8], [0x80, 200, 0, 6, 1, 2, 3, 4]);
    // packets and payload octets of the first unit: 12 + 13 and 12 + 11 bytes
    assert_eq!(
        report[20..28],
        [0, 0, 0, 2, 0, 0, 0, 1 + 2 + 4 + 2 + 2 + 11]
    );

    sink.close();
    let (goodbye, _) = receiver.rtcp_packet();
    assert_eq!(goodbye[1], 200);
    assert_eq!(goodbye[goodbye.len() - 8..], [0x81, 203, 0, 1, 1, 2, 3, 4]);

    let stats = &context.stats;
    assert_eq!(stats.units.load(Ordering::Relaxed), 2);
    assert_eq!(stats.packets.load(Ordering::Relaxed), 4);
    let bytes: usize = sent.iter().map(Vec::len).sum();
    assert_eq!(stats.bytes.load(Ordering::Relaxed), bytes as u64);
    assert_eq!(stats.latency().notice_to_last_packet.count, 2);
}

#[test]
fn a_receivers_pli_on_either_socket_asks_for_a_key_frame() {
    let receiver = Receiver::new();
    let context = context();
    let mut sink = RtpSink::open(config(&receiver), context.clone()).unwrap();
    context.key_frames.take();
    sink.send(&Units::new().key(0, 10, 1)).unwrap();
    let (_, rtcp_source) = receiver.rtcp_packet();
    assert_eq!(rtcp_source.port(), sink.rtcp_port());

    let pli = [0x81, 206, 0, 2, 0, 0, 0, 9, 1, 2, 3, 4];
    let (_, rtp_source) = read(&receiver.rtp);
    receiver.rtp.send_to(&pli, rtp_source).unwrap();
    sink.poll().unwrap();
    assert!(context.key_frames.take());
    // from any port, and within half a second: counted, not passed on
    let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    elsewhere
        .send_to(&pli, ("127.0.0.1", sink.rtcp_port()))
        .unwrap();
    sink.next_feedback = None;
    sink.poll().unwrap();
    assert!(!context.key_frames.take());
    let requests = context.stats.key_frame_requests.load(Ordering::Relaxed);
    assert_eq!(requests, 2);
}

#[test]
fn a_description_is_there_after_the_first_key_frame_and_follows_the_parameter_sets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cam.sdp");
    let receiver = Receiver::new();
    let config = RtpSinkConfig {
        sdp_path: Some(path.clone()),
        ..config(&receiver)
    };
    let mut sink = RtpSink::open(config, context()).unwrap();
    assert!(!path.exists());
    let mut units = Units::new();
    sink.send(&units.key(0, 10, 1)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let port = receiver.rtp.local_addr().unwrap().port();
    assert!(
        text.contains(&format!("m=video {port} RTP/AVP 96\r\n")),
        "{text}"
    );
    assert!(text.contains("o=- 7 1 IN IP4 127.0.0.1\r\n"), "{text}");
    // base64 of 67 01 02 01 and 68 01 by coreutils
    assert!(
        text.contains("sprop-parameter-sets=ZwECAQ==,aAE=\r\n"),
        "{text}"
    );
    sink.send(&units.key(40, 10, 2)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("o=- 7 2 IN IP4 127.0.0.1\r\n"), "{text}");
    sink.close();
    assert!(path.exists());
}

#[test]
fn a_receiver_that_is_not_there_ends_nothing() {
    let receiver = Receiver::new();
    let config = config(&receiver);
    drop(receiver);
    let context = context();
    let mut sink = RtpSink::open(config, context.clone()).unwrap();
    let mut units = Units::new();
    for frame in 0..5 {
        sink.next_feedback = None;
        assert_eq!(
            sink.send(&units.key(40 * frame, 5000, 1)).unwrap(),
            Sent::All
        );
        sink.poll().unwrap();
    }
    sink.close();
    assert!(context.stats.errors.load(Ordering::Relaxed) > 0);
}

#[test]
fn what_cannot_be_opened_names_the_flag_and_the_reason() {
    let refusal = |config: RtpSinkConfig| {
        let error = RtpSink::open(config, context()).unwrap_err();
        assert!(matches!(error, SinkError::Open { .. }));
        error.to_string()
    };
    let endpoint = refusal(RtpSinkConfig::new("localhost", Codec::H264));
    assert!(
        endpoint.contains("--rtp-endpoint localhost: is not HOST:PORT"),
        "{endpoint}"
    );
    let folder = refusal(RtpSinkConfig {
        sdp_path: Some("/no such folder/x.sdp".into()),
        ..RtpSinkConfig::new("127.0.0.1:5004", Codec::H264)
    });
    assert!(
        folder.contains("--rtp-sdp /no such folder/x.sdp"),
        "{folder}"
    );
}

#[test]
fn another_codec_than_it_was_opened_for_ends_the_sink() {
    let receiver = Receiver::new();
    let config = RtpSinkConfig {
        codec: Codec::H265,
        ..config(&receiver)
    };
    let mut sink = RtpSink::open(config, context()).unwrap();
    let error = sink.send(&Units::new().key(0, 1, 1)).unwrap_err();
    assert!(matches!(error, SinkError::Lost { .. }));
}

#[test]
fn a_path_that_carries_less_makes_packets_smaller_from_the_next_unit_on() {
    let receiver = Receiver::new();
    let mut sink = RtpSink::open(config(&receiver), context()).unwrap();
    let now = Instant::now();
    sink.give_up(
        BatchEnd::TooBig {
            path_mtu: Some(1000),
        },
        now,
    );
    assert_eq!(sink.packetizer.config().mtu, 1000 - 28);
    // an answer that does not help changes nothing
    sink.give_up(
        BatchEnd::TooBig {
            path_mtu: Some(1500),
        },
        now,
    );
    assert_eq!(sink.packetizer.config().mtu, 1000 - 28);
    sink.send(&Units::new().key(0, 3000, 1)).unwrap();
    let lens: Vec<_> = (0..4).map(|_| receiver.packet().len()).collect();
    assert_eq!(lens[1..3], [972, 972]);
}

#[test]
fn an_ipv6_receiver_gets_the_same_packets() {
    let Ok(receiver) = UdpSocket::bind("[::1]:0") else {
        println!("skipped: no IPv6 loopback here");
        return;
    };
    let endpoint = receiver.local_addr().unwrap().to_string();
    let config = RtpSinkConfig {
        identity: Some(IDENTITY),
        ..RtpSinkConfig::new(endpoint, Codec::H264)
    };
    let mut sink = RtpSink::open(config, context()).unwrap();
    let unit = Units::new().key(0, 50_000, 1);
    assert_eq!(sink.send(&unit).unwrap(), Sent::All);
    receiver
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut bytes = 0;
    loop {
        let (packet, _) = read(&receiver);
        bytes += packet.len() - 14;
        if packet[1] & 0x80 != 0 {
            break;
        }
    }
    // slice without its header byte; the aggregation packet has 12 + 11 bytes
    assert_eq!(bytes, 50_000 + 9);
}

#[test]
fn a_large_picture_is_spread_and_a_stop_ends_a_wait_that_is_too_long() {
    let receiver = Receiver::new();
    let paced = context();
    let config = RtpSinkConfig {
        // 1 MB at this rate takes minutes
        pacing: Pacing::Rate(20_000),
        ..config(&receiver)
    };
    let mut sink = RtpSink::open(config, paced.clone()).unwrap();
    let unit = Units::new().key(0, 1_000_000, 1);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| sink.send(&unit).unwrap());
        receiver.packet();
        paced.stop.stop(StopReason::Signal);
        assert_eq!(sender.join().unwrap(), Sent::All);
    });
}
