//! Byte tables from RFC 6184 section 5 and RFC 7798 section 4.4.

use super::*;
use proptest::prelude::*;

type Outcome = Result<Vec<Vec<u8>>, PayloadError>;

/// Pushes payloads in turn, the last of them with the marker.
fn push_all(codec: Codec, payloads: &[&[u8]]) -> Outcome {
    let mut depacketizer = Depacketizer::new(codec);
    let mut nals = Vec::new();
    for (index, payload) in payloads.iter().enumerate() {
        let marker = index + 1 == payloads.len();
        depacketizer.push(payload, marker, |nal| nals.push(nal.to_vec()))?;
    }
    Ok(nals)
}

#[test]
fn h264_payloads_give_their_nal_units() {
    let single: &[u8] = &[0x65, 0x88, 0x84];
    assert_eq!(push_all(Codec::H264, &[single]), Ok(vec![single.to_vec()]));
    let stap: &[u8] = &[
        0x78, // F 0, NRI 3, type 24
        0, 2, 0x67, 0x42, // SPS
        0, 3, 0x68, 0xCE, 0x3C, // PPS
    ];
    assert_eq!(
        push_all(Codec::H264, &[stap]),
        Ok(vec![vec![0x67, 0x42], vec![0x68, 0xCE, 0x3C]])
    );
    let fu: [&[u8]; 3] = [
        &[0x7C, 0x85, 0xAA], // start, type 5
        &[0x7C, 0x05, 0xBB],
        &[0x7C, 0x45, 0xCC], // end
    ];
    assert_eq!(
        push_all(Codec::H264, &fu),
        Ok(vec![vec![0x65, 0xAA, 0xBB, 0xCC]])
    );
}

#[test]
fn h265_payloads_give_their_nal_units() {
    let single: &[u8] = &[0x26, 1, 0xAF];
    assert_eq!(push_all(Codec::H265, &[single]), Ok(vec![single.to_vec()]));
    let ap: &[u8] = &[
        0x60, 1, // type 48, layer 0, TID 1
        0, 3, 0x40, 1, 0x0C, // VPS
        0, 3, 0x42, 1, 0x01, // SPS
    ];
    assert_eq!(
        push_all(Codec::H265, &[ap]),
        Ok(vec![vec![0x40, 1, 0x0C], vec![0x42, 1, 0x01]])
    );
    let fu: [&[u8]; 2] = [
        &[0x62, 1, 0x93, 0xAA], // start, type 19
        &[0x62, 1, 0x53, 0xBB], // end
    ];
    assert_eq!(
        push_all(Codec::H265, &fu),
        Ok(vec![vec![0x26, 1, 0xAA, 0xBB]])
    );
}

#[test]
fn what_the_rfcs_forbid_is_named() {
    use PayloadError::*;
    let (a, b) = (Codec::H264, Codec::H265);
    let rows: &[(Codec, &[&[u8]], PayloadError)] = &[
        (a, &[&[]], Empty),
        (b, &[&[0x26]], Short),
        (a, &[&[0x65]], Short),
        (a, &[&[0x79, 0, 0]], PacketType(25)),
        (a, &[&[0x7D, 0x85, 0xAA]], PacketType(29)),
        (b, &[&[0x64, 1, 0]], PacketType(50)),
        (a, &[&[0x78, 0, 9, 0x67]], AggregateSize),
        (a, &[&[0x78, 0, 0, 0x67]], AggregateSize),
        (a, &[&[0x78]], AggregateCount(0)),
        (b, &[&[0x60, 1, 0, 3, 0x40, 1, 2]], AggregateCount(1)),
        (a, &[&[0x78, 0, 2, 0x7C, 0x85]], NestedType(28)),
        (
            b,
            &[&[0x60, 1, 0, 3, 0x40, 1, 2, 0, 3, 0x62, 1, 2]],
            NestedType(49),
        ),
        (a, &[&[0x58, 0, 2, 0x67, 0x42]], AggregateHeader),
        (
            b,
            &[&[0x60, 2, 0, 3, 0x40, 1, 2, 0, 3, 0x42, 1, 2]],
            AggregateHeader,
        ),
        (a, &[&[0x7C, 0xC5, 0xAA]], StartAndEnd),
        (b, &[&[0x62, 1, 0xD3, 0xAA]], StartAndEnd),
        (a, &[&[0x7C, 0xA5, 0xAA]], ReservedBit),
        (a, &[&[0x7C, 0x85]], MarkerWithin),
        (a, &[&[0x7C, 0x85], &[0x7C, 0x45, 1]], EmptyFragment),
        (a, &[&[0x7C, 0x9C, 1]], FragmentType(28)),
        (b, &[&[0x62, 1, 0xB1, 1]], FragmentType(49)),
        (a, &[&[0x7C, 0x45, 0xAA]], NotStarted),
        (a, &[&[0x7C, 0x85, 1], &[0x41, 0x9A]], NotEnded),
        (
            a,
            &[&[0x7C, 0x85, 1], &[0x7C, 0x85, 1], &[0x7C, 0x45, 1]],
            NotEnded,
        ),
        (a, &[&[0x7C, 0x85, 1], &[0x7C, 0x41, 1]], FragmentHeader),
        (a, &[&[0x7C, 0x85, 1], &[0x5C, 0x45, 1]], FragmentHeader),
    ];
    for (codec, payloads, error) in rows {
        let marked_last = push_all(*codec, payloads);
        // An empty fragment is only seen for what it is without the marker.
        if *error == MarkerWithin {
            assert!(marked_last.is_err());
        } else {
            assert_eq!(marked_last, Err(*error), "{payloads:02x?}");
        }
    }
    let mut open = Depacketizer::new(a);
    assert_eq!(open.push(&[0x7C, 0x85, 1], true, |_| {}), Err(MarkerWithin));
}

#[test]
fn a_gap_cuts_one_nal_unit_and_is_no_violation() {
    let mut depacketizer = Depacketizer::new(Codec::H264);
    let mut nals = Vec::new();
    let mut push = |d: &mut Depacketizer, payload: &[u8]| {
        d.push(payload, false, |nal| nals.push(nal.to_vec()))
    };
    push(&mut depacketizer, &[0x7C, 0x85, 1]).expect("a start");
    depacketizer.gap();
    push(&mut depacketizer, &[0x7C, 0x05, 2]).expect("the rest of a cut unit");
    push(&mut depacketizer, &[0x7C, 0x45, 3]).expect("its end");
    push(&mut depacketizer, &[0x41, 0x9A]).expect("the next one");
    assert_eq!(nals, [[0x41, 0x9A]]);
    assert_eq!(depacketizer.cut(), 1);
}

#[test]
fn codecs_are_recognised_without_a_description() {
    for (payload, codec) in [
        (&[0x67, 0x64][..], Some(Codec::H264)),
        (&[0x78, 0][..], Some(Codec::H264)),
        (&[0x7C, 0x85][..], Some(Codec::H264)),
        (&[0x1C, 0x41][..], Some(Codec::H264)),
        (&[0x65, 0x88][..], Some(Codec::H264)),
        (&[0x41, 0x9A][..], Some(Codec::H264)),
        (&[0x01, 0x9A][..], Some(Codec::H264)),
        (&[0x09, 0xF0][..], Some(Codec::H264)),
        (&[0x68, 0xEE][..], Some(Codec::H264)),
        (&[0x06, 0x01][..], Some(Codec::H264)),
        (&[0x06, 0x05][..], None),
        (&[0x60, 0x01][..], Some(Codec::H265)),
        (&[0x62, 0x01][..], Some(Codec::H265)),
        (&[0x40, 0x01][..], Some(Codec::H265)),
        (&[0x28, 0x01][..], Some(Codec::H265)),
        (&[0x02, 0x01][..], Some(Codec::H265)),
        (&[0x00, 0x02][..], Some(Codec::H265)),
        (&[0x4E, 0x01][..], Some(Codec::H265)),
        (&[0x46, 0x01][..], Some(Codec::H265)),
        (&[0x61, 0x01][..], Some(Codec::H264)),
        (&[0x67][..], None),
    ] {
        assert_eq!(recognise(payload), codec, "{payload:02x?}");
    }
}

proptest! {
    #[test]
    fn no_payload_panics_or_grows_a_nal_unit(
        payloads in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<bool>(), any::<bool>()), 0..30)
    ) {
        for codec in [Codec::H264, Codec::H265] {
            let mut depacketizer = Depacketizer::new(codec);
            let (mut received, mut given) = (0, 0);
            for (payload, marker, gap) in &payloads {
                if *gap {
                    depacketizer.gap();
                }
                received += payload.len();
                let _ = depacketizer.push(payload, *marker, |nal| given += nal.len());
                let _ = recognise(payload);
            }
            prop_assert!(given <= received);
        }
    }

    #[test]
    fn fragments_of_any_size_give_the_nal_unit_back(body in prop::collection::vec(any::<u8>(), 2..300), size in 1_usize..50) {
        // Cut as RFC 7798 section 4.4.3 and RFC 6184 section 5.8 say, by hand.
        for (codec, header, prefix) in [
            (Codec::H264, vec![0x65], vec![0x7C]),
            (Codec::H265, vec![0x26, 0x01], vec![0x62, 0x01]),
        ] {
            let kind = if codec == Codec::H264 { 5 } else { 19 };
            let pieces: Vec<&[u8]> = body.chunks(size.min(body.len() - 1)).collect();
            let mut depacketizer = Depacketizer::new(codec);
            let mut nals = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                let flags = u8::from(index == 0) << 7 | u8::from(index + 1 == pieces.len()) << 6;
                let payload = [&prefix[..], &[flags | kind], piece].concat();
                depacketizer.push(&payload, index + 1 == pieces.len(), |nal| nals.push(nal.to_vec())).expect("well formed");
            }
            prop_assert_eq!(&nals, &[[&header[..], &body].concat()]);
        }
    }
}
