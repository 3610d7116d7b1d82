use super::*;
use proptest::prelude::*;

fn packetizer(codec: Codec, mtu: usize) -> Packetizer {
    Packetizer::new(PacketizerConfig {
        codec,
        payload_type: 96,
        mtu,
        ssrc: 0x1122_3344,
        sequence: 0xFFFE,
    })
}

/// All packets of the NAL units as whole datagrams.
fn datagrams(packetizer: &mut Packetizer, nals: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let packets = packetizer.packets(nals.iter().map(|nal| NalUnit(nal)), 0x0506_0708);
    let promised = packets.len();
    let datagrams: Vec<_> = packets.map(|packet| packet.to_vec()).collect();
    assert_eq!(datagrams.len(), promised);
    datagrams
}

/// A NAL unit of `len` bytes whose bytes tell their place.
fn nal(header: &[u8], len: usize) -> Vec<u8> {
    let mut nal = header.to_vec();
    nal.extend((header.len()..len).map(|at| (at % 251) as u8 + 1));
    nal
}

const MTU: usize = 300;

#[test]
fn a_nal_unit_that_fits_is_sent_as_it_is() {
    let sent = datagrams(&mut packetizer(Codec::H264, MTU), &[vec![0x41, 0xAA, 0xBB]]);
    #[rustfmt::skip]
    let expected = vec![
        0x80,                   // V=2
        0xE0,                   // M=1, PT=96
        0xFF, 0xFE,             // sequence number
        0x05, 0x06, 0x07, 0x08, // timestamp
        0x11, 0x22, 0x33, 0x44, // SSRC
        0x41, 0xAA, 0xBB,       // the NAL unit, header included
    ];
    assert_eq!(sent, [expected]);
}

#[test]
fn parameter_sets_and_sei_go_into_one_stap_a() {
    let sent = datagrams(
        &mut packetizer(Codec::H264, MTU),
        &[
            vec![0x67, 0x42],
            vec![0x28, 0xCE, 0x3C],
            vec![0x06, 0x05, 0x80],
            vec![0x65, 0x88],
        ],
    );
    #[rustfmt::skip]
    let first = vec![
        0x80, 0x60, 0xFF, 0xFE, 0x05, 0x06, 0x07, 0x08, 0x11, 0x22, 0x33, 0x44,
        0x78,             // F=0, NRI=3 (the highest: SPS 3, PPS 1, SEI 0), type 24
        0x00, 0x02,       // size
        0x67, 0x42,       // SPS
        0x00, 0x03,       // size
        0x28, 0xCE, 0x3C, // PPS
        0x00, 0x03,       // size
        0x06, 0x05, 0x80, // SEI
    ];
    #[rustfmt::skip]
    let second = vec![
        0x80, 0xE0, 0xFF, 0xFF, 0x05, 0x06, 0x07, 0x08, 0x11, 0x22, 0x33, 0x44,
        0x65, 0x88,
    ];
    assert_eq!(sent, [first, second]);
}

#[test]
fn h265_sets_go_into_one_aggregation_packet_with_the_lowest_ids() {
    let sent = datagrams(
        &mut packetizer(Codec::H265, MTU),
        &[
            vec![0x40, 0x0A, 1],    // VPS, layer 1, TID 2
            vec![0x42, 0x01, 2],    // SPS, layer 0, TID 1
            vec![0x44, 0x01, 3, 4], // PPS
            vec![0x26, 0x01, 9],    // IDR_W_RADL
        ],
    );
    #[rustfmt::skip]
    let first = [
        0x60, 0x01,             // F=0, type 48, LayerId 0, TID 1
        0x00, 0x03,             // size
        0x40, 0x0A, 1,          // VPS
        0x00, 0x03,             // size
        0x42, 0x01, 2,          // SPS
        0x00, 0x04,             // size
        0x44, 0x01, 3, 4,       // PPS
    ];
    assert_eq!(sent[0][12..], first);
    assert_eq!(sent[1][12..], [0x26, 0x01, 9]);
}

#[test]
fn a_nal_unit_that_does_not_fit_becomes_fu_a() {
    // header, 286 bytes in the first fragment (300 - 12 - 2), 286 in the second, 1 in the last
    let idr = nal(&[0x65], 1 + 286 + 286 + 1);
    let sent = datagrams(
        &mut packetizer(Codec::H264, MTU),
        std::slice::from_ref(&idr),
    );
    let heads: Vec<_> = sent.iter().map(|d| (d.len(), d[1], d[12], d[13])).collect();
    #[rustfmt::skip]
    assert_eq!(heads, [
        // length, M and PT, FU indicator (NRI 3, type 28), FU header (S, E, type 5)
        (300, 0x60, 0x7C, 0x85),
        (300, 0x60, 0x7C, 0x05),
        (15,  0xE0, 0x7C, 0x45),
    ]);
    let sequence: Vec<_> = sent.iter().map(|d| [d[2], d[3]]).collect();
    assert_eq!(sequence, [[0xFF, 0xFE], [0xFF, 0xFF], [0x00, 0x00]]);
    let payload: Vec<u8> = sent.iter().flat_map(|d| d[14..].to_vec()).collect();
    assert_eq!(payload, idr[1..]);
}

#[test]
fn a_nal_unit_that_does_not_fit_becomes_h265_fus() {
    // TRAIL_R (1) of layer 1, TID 3: first byte 000001 0, then 00001 011
    let slice = nal(&[0x02, 0x0B], 2 + 285 + 4);
    let sent = datagrams(&mut packetizer(Codec::H265, MTU), &[slice]);
    #[rustfmt::skip]
    let expected = [
        // PayloadHdr: type 49, LayerId and TID kept; FU header: S, E, type 1
        (300, [0x62, 0x0B, 0x81]),
        (19,  [0x62, 0x0B, 0x41]),
    ];
    for (datagram, (len, head)) in sent.iter().zip(expected) {
        assert_eq!((datagram.len(), &datagram[12..15]), (len, &head[..]));
    }
}

#[test]
fn exact_fits_and_one_past_them() {
    #[rustfmt::skip]
    let table: &[(Codec, &[u8], usize, &[usize])] = &[
        // codec, NAL header, NAL length, lengths of the packets at an MTU of 300
        (Codec::H264, &[0x41], 288, &[300]),
        (Codec::H264, &[0x41], 289, &[300, 16]), // 288 bytes behind the header: 286 and 2
        (Codec::H264, &[0x41], 1 + 2 * 286, &[300, 300]),
        (Codec::H264, &[0x41], 2 + 2 * 286, &[300, 300, 15]),
        (Codec::H265, &[0x02, 1], 288, &[300]),
        (Codec::H265, &[0x02, 1], 289, &[300, 17]), // 287 behind the header: 285 and 2
        (Codec::H265, &[0x02, 1], 2 + 2 * 285, &[300, 300]),
        (Codec::H265, &[0x02, 1], 3 + 2 * 285, &[300, 300, 16]),
    ];
    for (codec, header, len, expected) in table {
        let sent = datagrams(&mut packetizer(*codec, MTU), &[nal(header, *len)]);
        let lens: Vec<_> = sent.iter().map(Vec::len).collect();
        assert_eq!(lens, *expected, "{codec}, {len} bytes");
    }
}

#[test]
fn an_aggregate_is_filled_to_the_last_byte_and_not_past_it() {
    // 12 + 1 + (2 + 100) + (2 + 183) = 300
    let fits = [nal(&[0x67], 100), nal(&[0x68], 183), nal(&[0x65], 10)];
    let lens = |nals: &[Vec<u8>]| -> Vec<usize> {
        let sent = datagrams(&mut packetizer(Codec::H264, MTU), nals);
        sent.iter().map(Vec::len).collect()
    };
    assert_eq!(lens(&fits), [300, 22]);
    let past = [nal(&[0x67], 100), nal(&[0x68], 184), nal(&[0x65], 10)];
    assert_eq!(lens(&past), [112, 196, 22]);
    // a set that needs fragments itself is not aggregated
    let huge = [nal(&[0x67], 100), nal(&[0x68], 400), nal(&[0x65], 10)];
    assert_eq!(lens(&huge), [112, 300, 127, 22]);
}

#[test]
fn slices_are_not_aggregated_and_one_marker_ends_the_access_unit() {
    let sent = datagrams(
        &mut packetizer(Codec::H264, MTU),
        &[
            nal(&[0x06], 20),
            nal(&[0x41], 400),
            nal(&[0x41], 40),
            nal(&[0x06], 30),
        ],
    );
    let lens: Vec<_> = sent.iter().map(Vec::len).collect();
    assert_eq!(lens, [32, 300, 127, 52, 42]);
    let markers: Vec<_> = sent.iter().map(|d| d[1] >> 7).collect();
    assert_eq!(markers, [0, 0, 0, 0, 1]);
}

#[test]
fn nal_units_that_look_like_packets_are_left_out() {
    let sent = datagrams(
        &mut packetizer(Codec::H264, MTU),
        &[vec![0x78, 1, 2], vec![], vec![0x41, 1], vec![0x7C, 9]],
    );
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0][1], &sent[0][12..]), (0xE0, &[0x41, 1][..]));
    let sent = datagrams(&mut packetizer(Codec::H265, MTU), &[vec![0x62, 1, 2]]);
    assert!(sent.is_empty());
}

#[test]
fn one_that_is_left_out_in_front_of_an_aggregate_loses_nothing_behind_it() {
    // Types 24 and 62 (a layer of another decoder): what follows is sent as without them.
    for (codec, unsendable, sets, slice) in [
        (
            Codec::H264,
            vec![0x78, 1],
            [vec![0x67, 1], vec![0x68, 2]],
            nal(&[0x65], 3000),
        ),
        (
            Codec::H265,
            vec![0x7C, 1, 1],
            [vec![0x42, 1, 1], vec![0x44, 1, 2]],
            nal(&[0x26, 1], 3000),
        ),
    ] {
        let without = [&sets[..], &[slice]].concat();
        let with = [&[unsendable][..], &without].concat();
        let expected = datagrams(&mut packetizer(codec, MTU), &without);
        assert_eq!(datagrams(&mut packetizer(codec, MTU), &with), expected);
        assert_eq!(depacketize(codec, &expected), without);
    }
}

#[test]
fn packets_that_are_never_drawn_leave_a_gap() {
    let mut packetizer = packetizer(Codec::H264, MTU);
    let big = nal(&[0x41], 3000);
    let mut packets = packetizer.packets(std::iter::once(NalUnit(&big)), 0);
    let count = packets.len();
    assert_eq!(packets.next().unwrap().sequence(), 0xFFFE);
    let next = packetizer
        .packets(std::iter::once(NalUnit(&big)), 0)
        .next()
        .unwrap();
    assert_eq!(next.sequence(), 0xFFFE_u16.wrapping_add(count as u16));
}

#[test]
fn a_smaller_mtu_holds_from_the_next_access_unit_on_and_has_a_floor() {
    let mut packetizer = packetizer(Codec::H264, 1200);
    let big = [nal(&[0x41], 3000)];
    assert_eq!(datagrams(&mut packetizer, &big)[0].len(), 1200);
    packetizer.set_mtu(500);
    assert_eq!(datagrams(&mut packetizer, &big)[0].len(), 500);
    packetizer.set_mtu(0);
    assert_eq!(datagrams(&mut packetizer, &big)[0].len(), 300);
}

/// A receiver of its own: takes the payloads of one access unit apart by the text of the RFCs.
fn depacketize(codec: Codec, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let header = if codec == Codec::H264 { 1 } else { 2 };
    let mut nals: Vec<Vec<u8>> = Vec::new();
    let mut open = false;
    for payload in datagrams.iter().map(|datagram| &datagram[12..]) {
        let kind = match codec {
            Codec::H264 => payload[0] & 31,
            Codec::H265 => payload[0] >> 1 & 63,
        };
        match (codec, kind) {
            (Codec::H264, 24) | (Codec::H265, 48) => {
                let mut rest = &payload[header..];
                while !rest.is_empty() {
                    let size = usize::from(rest[0]) << 8 | usize::from(rest[1]);
                    nals.push(rest[2..2 + size].to_vec());
                    rest = &rest[2 + size..];
                }
            }
            (Codec::H264, 28) | (Codec::H265, 49) => {
                let fu = payload[header];
                assert_eq!(fu & 0x80 != 0, !open, "S exactly where a run begins");
                assert_ne!(fu & 0xC0, 0xC0, "S and E together");
                if !open {
                    nals.push(match codec {
                        Codec::H264 => vec![payload[0] & 0xE0 | fu & 31],
                        Codec::H265 => vec![payload[0] & 0x81 | (fu & 63) << 1, payload[1]],
                    });
                }
                open = fu & 0x40 == 0;
                nals.last_mut().unwrap().extend(&payload[header + 1..]);
            }
            _ => {
                assert!(!open, "a run was not ended");
                nals.push(payload.to_vec());
            }
        }
    }
    assert!(!open);
    nals
}

fn any_nals(codec: Codec) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let header = match codec {
        Codec::H264 => prop::sample::select(vec![
            vec![0x67],
            vec![0x68],
            vec![0x06],
            vec![0x65],
            vec![0x41],
            vec![0x01],
        ]),
        Codec::H265 => prop::sample::select(vec![
            vec![0x40, 1],
            vec![0x42, 1],
            vec![0x44, 1],
            vec![0x4E, 1],
            vec![0x26, 1],
            vec![0x02, 3],
        ]),
    };
    let len = prop_oneof![3_usize..40, 280_usize..320, 3_usize..5000];
    prop::collection::vec(
        (header, len).prop_map(|(header, len)| nal(&header, len)),
        1..9,
    )
}

fn check_round_trip(codec: Codec, nals: &[Vec<u8>], mtu: usize) {
    let sent = datagrams(&mut packetizer(codec, mtu), nals);
    assert_eq!(depacketize(codec, &sent), nals);
    for (index, datagram) in sent.iter().enumerate() {
        assert!(datagram.len() <= mtu);
        let sequence = u16::from_be_bytes([datagram[2], datagram[3]]);
        assert_eq!(sequence, 0xFFFE_u16.wrapping_add(index as u16));
        assert_eq!(datagram[1] >> 7 == 1, index + 1 == sent.len());
    }
}

proptest! {
    #[test]
    fn a_receiver_gets_back_every_h264_nal_unit(nals in any_nals(Codec::H264), mtu in 300_usize..1500) {
        check_round_trip(Codec::H264, &nals, mtu);
    }

    #[test]
    fn a_receiver_gets_back_every_h265_nal_unit(nals in any_nals(Codec::H265), mtu in 300_usize..1500) {
        check_round_trip(Codec::H265, &nals, mtu);
    }
}
