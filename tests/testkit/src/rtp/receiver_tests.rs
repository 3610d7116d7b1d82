//! Whole streams, built byte by byte.

use super::*;
use proptest::prelude::*;

const SPS: &[u8] = &[0x67, 0x42, 0x00, 0x1E];
const PPS: &[u8] = &[0x68, 0xCE, 0x3C];
const IDR: &[u8] = &[0x65, 0x88, 0x84];
const P: &[u8] = &[0x41, 0x9A, 0x22];
const SSRC: u32 = 7;

fn packet(sequence: u16, timestamp: u32, marker: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, u8::from(marker) << 7 | 96];
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(timestamp.to_be_bytes());
    bytes.extend(SSRC.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn receiver() -> Receiver {
    Receiver::new(Config {
        payload_type: 96,
        codec: None,
        parameter_sets: Vec::new(),
        monotonic: false,
        strict: false,
    })
}

/// Feeds packets a millisecond apart; gives the whole frames' NAL units.
fn feed(receiver: &mut Receiver, packets: &[Vec<u8>]) -> Vec<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for (index, packet) in packets.iter().enumerate() {
        let arrival_ns = 1_000_000_000 + index as u64 * 1_000_000;
        let verdict = receiver.rtp(packet, arrival_ns, &mut |_, unit| {
            frames.push(unit.nals.iter().map(|nal| nal.to_vec()).collect());
        });
        assert_eq!(verdict, Verdict::Taken);
    }
    frames
}

/// A key frame and `others` more, one packet each NAL unit, from `sequence` on.
fn stream(sequence: u16, timestamp: u32, others: u16) -> Vec<Vec<u8>> {
    let mut packets = vec![
        packet(sequence, timestamp, false, SPS),
        packet(sequence.wrapping_add(1), timestamp, false, PPS),
        packet(sequence.wrapping_add(2), timestamp, true, IDR),
    ];
    for index in 1..=others {
        let time = timestamp.wrapping_add(3000 * u32::from(index));
        packets.push(packet(sequence.wrapping_add(2 + index), time, true, P));
    }
    packets
}

fn texts(receiver: &Receiver) -> String {
    receiver.violations().texts.join("; ")
}

#[test]
fn a_right_stream_is_found_right_across_both_wraps() {
    let mut receiver = receiver();
    let frames = feed(&mut receiver, &stream(65534, u32::MAX - 4000, 3));
    assert_eq!(frames[0], [SPS, PPS, IDR]);
    assert_eq!(frames.len(), 4);
    assert_eq!(texts(&receiver), "");
    let counters = receiver.counters();
    assert_eq!(
        (counters.packets, counters.frames, counters.key_frames),
        (6, 4, 1)
    );
    assert_eq!((receiver.lost(), counters.times_going_back), (0, 0));
    // Four frames of 3000 units each at 90 kHz.
    assert!((counters.seconds().expect("a span") - 4.0 / 30.0).abs() < 1e-9);
    assert_eq!(receiver.codec(), Some(Codec::H264));
}

#[test]
fn loss_damages_frames_and_breaks_no_rule() {
    // Each packet in turn is the one that is missing.
    let whole = stream(10, 0, 3);
    for missing in 1..whole.len() - 1 {
        let mut packets = whole.clone();
        packets.remove(missing);
        let mut receiver = receiver();
        let frames = feed(&mut receiver, &packets);
        assert_eq!(receiver.lost(), 1, "without {missing}");
        let sets_lost = missing <= 2;
        assert!(frames.len() <= 3);
        assert!(receiver.counters().damaged_frames >= 1, "without {missing}");
        assert_eq!(
            texts(&receiver),
            "",
            "without {missing}, sets lost: {sets_lost}"
        );
    }
}

// The lost packets are the end of the first frame and the beginning of the second.
#[test]
fn loss_across_the_first_border_damages_both_frames() {
    let packets = [
        packet(1, 0, false, SPS),
        packet(2, 0, false, PPS),
        packet(5, 3000, true, &[0x41, 0x40]), // a later slice
        packet(6, 6000, true, P),
    ];
    let mut receiver = receiver();
    assert_eq!(feed(&mut receiver, &packets).len(), 1);
    assert_eq!(
        (receiver.counters().damaged_frames, receiver.lost()),
        (2, 2)
    );
    assert_eq!(texts(&receiver), "");
}

#[test]
fn late_and_repeated_packets_are_counted_and_left_out() {
    let mut packets = stream(10, 0, 3);
    packets.insert(4, packets[3].clone());
    packets.swap(5, 6);
    let mut receiver = receiver();
    // The frame that was overtaken is late; the one that overtook it came after a gap.
    assert_eq!(feed(&mut receiver, &packets).len(), 2);
    assert_eq!(
        (
            receiver.counters().repeated,
            receiver.counters().late,
            receiver.lost()
        ),
        (1, 1, 0)
    );
    assert_eq!(texts(&receiver), "");
}

#[test]
fn a_stream_joined_within_a_frame_is_no_violation() {
    let mut packets = vec![
        packet(1, 0, false, &[0x7C, 0x05, 1]), // the middle of an IDR slice
        packet(2, 0, true, &[0x7C, 0x45, 1]),
    ];
    packets.extend(stream(3, 3000, 1));
    let mut receiver = receiver();
    assert_eq!(feed(&mut receiver, &packets).len(), 2);
    assert_eq!(texts(&receiver), "");
    assert_eq!(receiver.counters().damaged_frames, 1);
}

#[test]
fn broken_rules_are_named() {
    let head = stream(10, 0, 1); // up to sequence 13, time 3000
    let rows: &[(&str, Vec<Vec<u8>>)] = &[
        (
            "no marker on the packet before",
            vec![packet(14, 6000, false, P), packet(15, 9000, true, P)],
        ),
        (
            "whose marker has already come",
            vec![packet(14, 3000, true, P)],
        ),
        (
            "RTP time goes back",
            vec![packet(14, 3000_u32.wrapping_sub(90_001), true, P)],
        ),
        (
            "continues nothing",
            vec![packet(14, 6000, true, &[0x7C, 0x45, 1])],
        ),
        (
            "first and last",
            vec![packet(14, 6000, true, &[0x7C, 0xC5, 1])],
        ),
        (
            "marker on a fragment",
            vec![packet(14, 6000, true, &[0x7C, 0x85, 1])],
        ),
        (
            "after a slice",
            vec![packet(14, 6000, false, P), packet(15, 6000, true, SPS)],
        ),
        ("without a slice", vec![packet(14, 6000, true, SPS)]),
        ("malformed packet", vec![vec![0x80, 0x60, 0]]),
        (
            "shorter than its header",
            vec![packet(14, 6000, true, &[0x41])],
        ),
    ];
    for (text, packets) in rows {
        let mut receiver = receiver();
        feed(&mut receiver, &head);
        assert_eq!(texts(&receiver), "");
        feed(&mut receiver, packets);
        assert!(
            texts(&receiver).contains(text),
            "'{text}' is not in '{}'",
            texts(&receiver)
        );
    }
}

#[test]
fn the_first_key_frame_needs_its_parameter_sets() {
    let packets = [packet(1, 0, false, SPS), packet(2, 0, true, IDR)];
    let mut bare = receiver();
    feed(&mut bare, &packets);
    assert!(texts(&bare).contains("no Pps"), "{}", texts(&bare));

    let mut described = Receiver::new(Config {
        payload_type: 96,
        codec: Some(Codec::H264),
        parameter_sets: vec![PPS.to_vec()],
        monotonic: false,
        strict: false,
    });
    feed(&mut described, &packets);
    assert_eq!(texts(&described), "");
    assert_eq!(described.counters().key_frames_without_parameter_sets, 1);
}

#[test]
fn b_frames_are_a_violation_only_where_none_are_expected() {
    let mut packets = stream(10, 0, 0);
    packets.push(packet(13, 9000, true, P));
    packets.push(packet(14, 3000, true, P));
    let mut tolerant = receiver();
    feed(&mut tolerant, &packets);
    assert_eq!(texts(&tolerant), "");
    assert_eq!(tolerant.counters().times_going_back, 1);
    let mut strict = Receiver::new(Config {
        payload_type: 96,
        codec: None,
        parameter_sets: Vec::new(),
        monotonic: true,
        strict: false,
    });
    feed(&mut strict, &packets);
    assert!(texts(&strict).contains("goes back"));
}

#[test]
fn another_source_begins_anew_and_two_at_once_are_found() {
    let mut other = stream(500, 77, 1);
    for packet in &mut other {
        packet[11] = 8; // SSRC
    }
    let mut receiver = receiver();
    feed(&mut receiver, &stream(10, 0, 1));
    feed(&mut receiver, &other);
    assert_eq!(texts(&receiver), "");
    assert_eq!(
        (
            receiver.counters().sources,
            receiver.counters().frames,
            receiver.lost()
        ),
        (2, 4, 0)
    );
    feed(&mut receiver, &[packet(14, 6000, true, P)]);
    assert!(texts(&receiver).contains("two senders"));
}

#[test]
fn another_payload_type_is_told_at_once() {
    let mut bytes = packet(1, 0, true, IDR);
    bytes[1] = 0x80 | 97;
    assert_eq!(
        receiver().rtp(&bytes, 0, &mut |_, _| {}),
        Verdict::PayloadType(97)
    );
}

#[test]
fn capture_times_and_sender_reports_give_latencies() {
    // Captured at 0.990 s, encoded at 0.995 s; the slice comes at 1.003 s.
    let mut sei = vec![0x06, 5, 37];
    sei.extend(stamp::UUID);
    sei.push(1);
    sei.extend(0x3B02_3380_u64.to_be_bytes()); // 990000000
    sei.extend(995_000_000_u64.to_be_bytes());
    sei.extend(41_u32.to_be_bytes());
    sei.push(0x80);
    let escaped = escape(&sei);
    let mut receiver = receiver();
    let time = 900_000;
    // The report says that RTP time 900000 + 900 (10 ms) is 1.000 s after 1970.
    let mut report = vec![
        0x80, 200, 0, 6, 0, 0, 0, 7, 0x83, 0xAA, 0x7E, 0x81, 0, 0, 0, 0,
    ];
    report.extend((time + 900_u32).to_be_bytes());
    report.extend([0, 0, 0, 4, 0, 0, 0, 9]);
    report.extend([0x81, 202, 0, 2, 0, 0, 0, 7, 1, 1, b'x', 0]);
    // Sent together with the first packet, and read before it.
    receiver.rtcp(&report, 1_000_500_000);
    feed(&mut receiver, &[packet(1, time, false, SPS)]);
    let rest = [
        packet(2, time, false, PPS),
        packet(3, time, false, &escaped),
        packet(4, time, true, IDR),
    ];
    for (index, bytes) in rest.iter().enumerate() {
        receiver.rtp(
            bytes,
            1_001_000_000 + index as u64 * 1_000_000,
            &mut |_, _| {},
        );
    }
    assert_eq!(texts(&receiver), "");
    let latency = receiver.latency();
    let p50 =
        |percentiles: Option<crate::rtp::report::Percentiles>| percentiles.map(|p| p.p50.round());
    assert_eq!(p50(latency.capture_to_last_packet), Some(13.0));
    assert_eq!(p50(latency.capture_to_first_packet), Some(10.0));
    assert_eq!(p50(latency.encoded_to_last_packet), Some(8.0));
    // By the report the frame was taken at 0.990 s too.
    assert_eq!(p50(latency.report_clock_to_last_packet), Some(13.0));
    assert!(
        latency
            .report_clock_error_ms
            .is_some_and(|ms| ms.abs() < 0.001)
    );
    assert!(
        latency
            .report_clock_offset_ms
            .is_some_and(|ms| (ms + 0.5).abs() < 0.001)
    );
    assert_eq!(latency.frame_ids.map(|ids| ids.first), Some(41));
}

#[test]
fn a_bye_ends_the_stream_and_a_later_packet_reopens_it() {
    let mut receiver = receiver();
    feed(&mut receiver, &stream(10, 0, 1));
    let mut bye = vec![
        0x80, 201, 0, 1, 0, 0, 0, 7, 0x81, 202, 0, 2, 0, 0, 0, 7, 1, 1, b'x', 0,
    ];
    bye.extend([0x81, 203, 0, 1, 0, 0, 0, 7]);
    receiver.rtcp(&bye, 2_000_000_000);
    assert!(receiver.has_ended());
    receiver.rtp(&packet(14, 6000, true, P), 1_900_000_000, &mut |_, _| {});
    assert!(receiver.has_ended(), "it came before the BYE");
    receiver.rtp(&packet(15, 9000, true, P), 2_100_000_000, &mut |_, _| {});
    assert!(!receiver.has_ended());
}

#[test]
fn report_blocks_state_loss_since_the_last_one() {
    let mut receiver = receiver();
    let mut packets = stream(10, 0, 7);
    packets.remove(5);
    feed(&mut receiver, &packets);
    let block = receiver.report_block(0).expect("a source");
    // One of ten: 256 / 10 = 25.
    assert_eq!(
        (
            block.fraction_lost,
            block.cumulative_lost,
            block.extended_highest
        ),
        (25, 1, 19)
    );
    let again = receiver.report_block(0).expect("a source");
    assert_eq!((again.fraction_lost, again.cumulative_lost), (0, 1));
}

/// Emulation prevention, the writing way (ITU-T H.264 7.4.1).
fn escape(nal: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut zeros = 0;
    for &byte in nal {
        if zeros == 2 && byte <= 3 {
            out.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

proptest! {
    #[test]
    fn no_datagrams_panic(
        rows in prop::collection::vec((0_u16..8, 0_u32..3, any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)), 0..40)
    ) {
        let mut receiver = receiver();
        for (sequence, timestamp, marker, payload) in rows {
            receiver.rtp(&packet(sequence, timestamp, marker, &payload), 5, &mut |_, _| {});
            receiver.rtp(&payload, 5, &mut |_, _| {});
            receiver.rtcp(&payload, 5);
            receiver.report_block(6);
        }
    }
}
