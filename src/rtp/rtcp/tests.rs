use super::*;
use proptest::prelude::*;

const REPORT: SenderReport = SenderReport {
    ssrc: 0x0A0B_0C0D,
    ntp: NtpTime(0x8000_0001_C000_0000),
    rtp_timestamp: 0x1112_1314,
    packets: 0x0000_0102,
    octets: 0x0003_0405,
};

#[rustfmt::skip]
const SR_BYTES: [u8; 28] = [
    0x80, 200, 0x00, 0x06,  // V=2, RC=0; SR; length
    0x0A, 0x0B, 0x0C, 0x0D, // SSRC
    0x80, 0x00, 0x00, 0x01, // NTP seconds
    0xC0, 0x00, 0x00, 0x00, // NTP fraction
    0x11, 0x12, 0x13, 0x14, // RTP timestamp
    0x00, 0x00, 0x01, 0x02, // packet count
    0x00, 0x03, 0x04, 0x05, // octet count
];

#[test]
fn a_report_is_an_sr_and_an_sdes_with_the_cname() {
    let mut out = Vec::new();
    write_report(&REPORT, "ab@c", &mut out);
    #[rustfmt::skip]
    let sdes = [
        0x81, 202, 0x00, 0x03,  // V=2, SC=1; SDES; length
        0x0A, 0x0B, 0x0C, 0x0D, // SSRC
        0x01, 0x04,             // CNAME, length
        b'a', b'b', b'@', b'c', // text
        0x00, 0x00,             // end, to the next word
    ];
    assert_eq!(out, [&SR_BYTES[..], &sdes[..]].concat());
}

#[test]
fn the_text_is_ended_by_a_zero_even_if_it_fills_its_word() {
    for (cname, words) in [("", 2), ("a", 2), ("ab", 3), ("abcde", 3), ("abcdef", 4)] {
        let mut out = Vec::new();
        write_cname(1, cname, &mut out);
        assert_eq!(out[2..4], [0, words], "{cname:?}");
        assert_eq!(out.len(), 4 + 4 * usize::from(words));
        assert_eq!(*out.last().unwrap(), 0);
    }
    let mut out = Vec::new();
    write_cname(1, &"ü".repeat(200), &mut out);
    assert_eq!(out[9], 254);
}

#[test]
fn a_goodbye_ends_with_bye() {
    let mut out = Vec::new();
    write_goodbye(&REPORT, "x", &mut out);
    assert_eq!(out[..28], SR_BYTES);
    #[rustfmt::skip]
    let bye = [
        0x81, 203, 0x00, 0x01,  // V=2, SC=1; BYE; length
        0x0A, 0x0B, 0x0C, 0x0D, // SSRC
    ];
    assert_eq!(out[out.len() - 8..], bye);
    let mut seen = Vec::new();
    parse(&out, |feedback| seen.push(feedback));
    assert_eq!(seen, [Feedback::Bye { ssrc: REPORT.ssrc }]);
}

#[test]
fn ntp_counts_from_1900_in_fractions_of_two_to_the_32() {
    // 2 208 988 800 = 0x83AA7E80
    assert_eq!(NtpTime::from_unix_nanos(0).0, 0x83AA_7E80_0000_0000);
    assert_eq!(
        NtpTime::from_unix_nanos(1_500_000_000).0,
        0x83AA_7E81_8000_0000
    );
    assert_eq!(
        NtpTime::from_unix_nanos(1_500_000_000).middle(),
        0x7E81_8000
    );
    // the era ends at Unix time 2 085 978 496
    let wrapped = NtpTime::from_unix_nanos(2_085_978_496_000_000_000);
    assert_eq!(wrapped.0, 0);
    NtpTime::from_unix_nanos(u64::MAX);
}

#[test]
fn both_stamps_of_a_report_come_from_the_capture_clock() {
    let anchor = ClockAnchor {
        media: MediaTime(10_000_000_000),
        captured_unix_ns: 1_000_000_000_000,
    };
    // 40 ms after the capture: 10.04 s of media time, 903 600 ticks
    let (ntp, rtp) = anchor.stamps_at(1_000_040_000_000, 7);
    assert_eq!(ntp, NtpTime::from_unix_nanos(1_000_040_000_000));
    assert_eq!(rtp, 903_607);
    // a capture clock that runs ahead of ours
    assert_eq!(anchor.stamps_at(999_990_000_000, 0).1, 899_100);
    anchor.stamps_at(u64::MAX, 0);
}

#[test]
fn pictures_asked_for_are_found_in_a_compound_packet() {
    #[rustfmt::skip]
    let datagram = [
        0x81, 201, 0x00, 0x07,  // V=2, RC=1; RR; length
        0x00, 0x00, 0x00, 0x99, // SSRC of the reporter
        0x0A, 0x0B, 0x0C, 0x0D, // SSRC it reports about
        0x40, 0xFF, 0xFF, 0xFE, // fraction lost 64/256, cumulative -2
        0x00, 0x01, 0x00, 0x05, // highest sequence: one cycle, 5
        0x00, 0x00, 0x00, 0x0A, // jitter
        0x00, 0x01, 0x80, 0x00, // LSR
        0x00, 0x00, 0x40, 0x00, // DLSR
        0x81, 206, 0x00, 0x02,  // PSFB, FMT 1: PLI
        0x00, 0x00, 0x00, 0x99, // SSRC of the sender
        0x0A, 0x0B, 0x0C, 0x0D, // SSRC of the media
        0x84, 206, 0x00, 0x04,  // PSFB, FMT 4: FIR
        0x00, 0x00, 0x00, 0x99,
        0x00, 0x00, 0x00, 0x00, // unused
        0x0A, 0x0B, 0x0C, 0x0D, // SSRC of the media
        0x2A, 0x00, 0x00, 0x00, // sequence 42, reserved
        0x81, 205, 0x00, 0x04,  // RTPFB, FMT 1: generic NACK
        0x00, 0x00, 0x00, 0x99,
        0x0A, 0x0B, 0x0C, 0x0D,
        0x12, 0x34, 0x80, 0x01, // PID, BLP with two bits
        0x12, 0x99, 0x00, 0x00, // PID alone
    ];
    let mut seen = Vec::new();
    parse(&datagram, |feedback| seen.push(feedback));
    let block = ReportBlock {
        reporter: 0x99,
        source: 0x0A0B_0C0D,
        fraction_lost: 64,
        cumulative_lost: -2,
        highest_sequence: 0x0001_0005,
        jitter: 10,
        last_sr: 0x0001_8000,
        delay_since_last_sr: 0x4000,
    };
    let (sender, media) = (0x99, 0x0A0B_0C0D);
    let expected = [
        Feedback::Report(block),
        Feedback::PictureLoss { sender, media },
        Feedback::FullIntra {
            sender,
            media,
            sequence: 42,
        },
        Feedback::Nack {
            sender,
            media,
            packets: 4,
        },
    ];
    assert_eq!(seen, expected);
    // report sent at 1.5 s, held for 0.25 s, back at 2.0 s: a quarter of a second under way
    assert_eq!(block.round_trip(NtpTime(2 << 32)), Some(0x4000));
    assert_eq!(block.round_trip(NtpTime(3 << 31)), None);
}

#[test]
fn rtp_is_not_taken_for_rtcp() {
    assert!(is_rtcp(&[0x81, 206, 0, 2]));
    assert!(is_rtcp(&[0x80, 200, 0, 0]));
    assert!(!is_rtcp(&[0x80, 96, 0, 2]));
    assert!(!is_rtcp(&[0x80, 0xE0, 0, 2])); // payload type 96 with the marker
    assert!(!is_rtcp(&[0x41, 206, 0, 2]));
    assert!(!is_rtcp(&[0x81, 206, 0]));
}

#[test]
fn a_length_past_the_end_drops_the_rest() {
    let mut datagram = vec![0x81, 206, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2];
    datagram.extend([0x81, 206, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2]);
    let mut seen = 0;
    parse(&datagram, |_| seen += 1);
    assert_eq!(seen, 1);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_dropped(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse(&bytes, |_| ());
        is_rtcp(&bytes);
    }

    #[test]
    fn packets_of_every_type_and_count_are_parsed_or_dropped(
        first in 0x80_u8..=0xBF, kind in 192_u8..=223, words in 0_u8..12,
        body in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let datagram = [&[first, kind, 0, words][..], &body].concat();
        parse(&datagram, |_| ());
    }
}
