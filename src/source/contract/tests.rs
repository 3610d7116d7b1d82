use proptest::prelude::*;
use serde_json::Value;

use crate::source::test_support::{fixtures, json};

use super::*;
use crate::frame::PixelFormat;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks_exact(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

#[test]
fn every_verdict_and_field_of_the_contracts_cases_is_ours() {
    let Some(folder) = fixtures() else { return };
    let read =
        |name: &Value| hex(&std::fs::read_to_string(folder.join(name.as_str().unwrap())).unwrap());
    let cases = json(&folder.join("metadata_cases.json"));
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() >= 28, "{} cases", cases.len());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let block: MetadataBlock = read(&case["metadata"]).try_into().unwrap();
        let payload = read(&case["payload"]).len() as u64;
        let parsed = Metadata::parse(&block, METADATA_LEN as u64 + payload);
        if !case["accept"].as_bool().unwrap() {
            assert!(parsed.is_err(), "{name}: {parsed:?}");
            if name == "reject_initialising_0_0" {
                assert_eq!(parsed, Err(Refusal::NotReady));
            }
            continue;
        }
        let m = parsed.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        let size = |plane: Option<Plane>| plane.map_or(0, |p| u64::from(p.layout.size));
        let unit = m.encoded;
        for (field, ours) in [
            ("major", u64::from(m.major)),
            ("minor", u64::from(m.minor)),
            ("frame_id", u64::from(m.frame_id)),
            ("capture_ts_ns", m.capture_ts_ns),
            ("width", u64::from(m.left.layout.width)),
            ("height", u64::from(m.left.layout.height)),
            ("channels", u64::from(m.left.channels)),
            ("pixel_format", u64::from(m.left.format_code)),
            ("depth", m.left.depth as u64),
            ("left_bytes", size(Some(m.left))),
            ("depth_bytes", size(m.depth)),
            ("depth_unit", m.depth_unit as u64),
            ("confidence_bytes", size(m.confidence)),
            (
                "encoded_bytes",
                unit.map_or(0, |u| u64::from(u.layout.size)),
            ),
            ("encoded_codec", unit.map_or(0, |u| u.codec as u64 + 1)),
            ("encoded_flags", unit.map_or(0, |u| u64::from(u.flags))),
            ("fps_num", unit.map_or(0, |u| u64::from(u.frame_rate.0))),
            ("fps_den", unit.map_or(0, |u| u64::from(u.frame_rate.1))),
            ("encoded_pts_ns", unit.map_or(0, |u| u.pts_ns)),
        ] {
            assert_eq!(
                Some(ours),
                case["expect"][field].as_u64(),
                "{name}: {field}"
            );
        }
        let info = m.frame_info().unwrap();
        assert_eq!(u64::from(info.left.size), size(Some(m.left)), "{name}");
        assert_eq!(info.encoded.is_some(), unit.is_some(), "{name}");
        assert!(info.encoded.is_none_or(|unit| unit.keyframe), "{name}");
    }
}

#[test]
fn sync_messages_of_the_fixtures_are_read_and_their_garbage_is_not() {
    let Some(folder) = fixtures() else { return };
    let manifest = json(&folder.join("generated/manifest.json"));
    let valid = std::fs::read(folder.join("generated/sync_valid.bin")).unwrap();
    let message = SyncMessage::parse(&valid).unwrap();
    let expected = &manifest["sync_valid"];
    assert_eq!(
        Some(u64::from(message.frame_id)),
        expected["frame_count"].as_u64()
    );
    assert_eq!(
        Some(message.timestamp_ns),
        expected["timestamp_ns"].as_u64()
    );
    assert_eq!(
        Some(message.label.to_string().as_str()),
        expected["label"].as_str()
    );

    let samples = json(&folder.join("generated/wire_samples.json"));
    let live = &samples["sync_live"];
    let ids = live["frame_count"].as_array().unwrap();
    for (text, id) in live["hex"].as_array().unwrap().iter().zip(ids) {
        let message = SyncMessage::parse(&hex(text.as_str().unwrap())).unwrap();
        assert_eq!(Some(u64::from(message.frame_id)), id.as_u64());
        assert_eq!(message.label, Label::new("peer").unwrap());
    }
}

/// A v1 block written by hand from the table of contract section 2.1.
fn v1(width: u16, height: u16, channels: u8, depth: u8, format: u8, size: u32) -> MetadataBlock {
    let mut block = [0_u8; METADATA_LEN];
    block[..8].copy_from_slice(b"CV-MMAP\0");
    block[8] = 1;
    block[0x0C..0x10].copy_from_slice(&77_u32.to_le_bytes());
    block[0x18..0x1A].copy_from_slice(&width.to_le_bytes());
    block[0x1A..0x1C].copy_from_slice(&height.to_le_bytes());
    block[0x1C..0x1F].copy_from_slice(&[channels, depth, format]);
    block[0x20..0x24].copy_from_slice(&size.to_le_bytes());
    block
}

#[test]
fn v1_rows_are_tight_unless_the_buffer_says_otherwise() {
    let stride = |size| {
        let block = v1(5, 4, 3, 0, 1, size);
        let metadata = Metadata::parse(&block, 256 + u64::from(size)).unwrap();
        metadata.frame_info().unwrap().left.stride
    };
    assert_eq!(stride(60), 15, "exact");
    assert_eq!(stride(64), 16, "rows padded to 4 bytes");
    assert_eq!(
        stride(65),
        15,
        "no multiple of the height: slack behind the picture"
    );
}

#[test]
fn v1_is_bounded_by_its_buffer_and_the_region() {
    let parse = |block: MetadataBlock, region| Metadata::parse(&block, region);
    assert!(parse(v1(5, 4, 3, 0, 1, 60), 316).is_ok());
    assert!(matches!(
        parse(v1(5, 4, 3, 0, 1, 59), 316),
        Err(Refusal::Invalid(Invalid::SmallBuffer {
            need: 60,
            size: 59
        }))
    ));
    assert!(matches!(
        parse(v1(5, 4, 3, 0, 1, 60), 315),
        Err(Refusal::Invalid(Invalid::BeyondRegion {
            payload: 60,
            capacity: 59
        }))
    ));
    for zero in [
        v1(0, 4, 3, 0, 1, 60),
        v1(5, 0, 3, 0, 1, 60),
        v1(5, 4, 0, 0, 1, 60),
    ] {
        assert!(matches!(
            parse(zero, 316),
            Err(Refusal::Invalid(Invalid::Zero(Slot::Left, _)))
        ));
    }
    assert!(
        parse(v1(5, 4, 3, 8, 1, 600), 1000).is_err(),
        "depth 8 is unknown"
    );
}

#[test]
fn a_left_plane_that_cannot_be_encoded_is_refused_by_name() {
    let refusal = |block: MetadataBlock| {
        let metadata = Metadata::parse(&block, 10_000).unwrap();
        metadata.frame_info().unwrap_err().to_string()
    };
    let deep = refusal(v1(5, 4, 3, 2, 1, 120));
    assert_eq!(
        deep,
        "the left plane has u16 samples; only u8 can be encoded"
    );
    let float = refusal(v1(5, 4, 1, 5, 4, 80));
    assert_eq!(
        float,
        "the left plane has f32 samples; only u8 can be encoded"
    );
    let format = refusal(v1(5, 4, 3, 0, 9, 60));
    assert_eq!(format, "the left plane has the unknown pixel format 9");
    let channels = refusal(v1(5, 4, 4, 0, 1, 80));
    assert_eq!(channels, "the left plane is bgr with 4 channels; bgr has 3");
}

/// LEFT of 2x2 BGR as contract section 2.2 lays it out, changed by `change`.
fn v2_with(change: impl FnOnce(&mut MetadataBlock)) -> Result<Metadata, Refusal> {
    let mut block = [0_u8; METADATA_LEN];
    block[..10].copy_from_slice(b"CV-MMAP\0\x02\x00");
    block[0x20..0x28].copy_from_slice(&[1, 1, 64, 0, 24, 0, 4, 0]);
    block[0x28] = 12;
    block[0x40..0x58].copy_from_slice(&[
        0, 1, 0, 0, // LEFT, BGR, U8
        2, 0, 0, 0, 2, 0, 0, 0, // 2 x 2
        6, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, // stride, offset, size
    ]);
    change(&mut block);
    Metadata::parse(&block, 256 + 12)
}

#[test]
fn each_rule_of_v2_refuses_with_its_own_words() {
    assert!(v2_with(|_| ()).is_ok());
    type Change = fn(&mut MetadataBlock);
    let rows: [(&str, Change); 16] = [
        ("in place of CV-MMAP", |b| b[3] = b'm'),
        ("version 3.0 is unknown", |b| b[8] = 3),
        ("version 0.1 is unknown", |b| {
            b[8..10].copy_from_slice(&[0, 1])
        }),
        ("plane count 0", |b| b[0x20] = 0),
        ("plane count 5", |b| b[0x20] = 5),
        ("mask 0x11", |b| b[0x21] = 0x11),
        ("descriptors at 63", |b| b[0x22] = 63),
        ("has no payload", |b| b[0x28] = 0),
        ("exceeds the region's 12", |b| b[0x28] = 13),
        ("depth unit 3", |b| b[0x2C] = 3),
        ("left descriptor has plane type 1", |b| b[0x40] = 1),
        ("unknown pixel format 7", |b| b[0x41] = 7),
        ("unknown sample depth 8", |b| b[0x42] = 8),
        ("has no width", |b| b[0x44] = 0),
        ("a stride of 5 bytes, its rows have 6", |b| b[0x4C] = 5),
        ("starts at", |b| {
            b[0x50] = 1;
            b[0x4C] = 6;
            b[0x48] = 1;
            b[0x54] = 11;
        }),
    ];
    for (words, change) in rows {
        let refusal = v2_with(change).expect_err(words).to_string();
        assert!(
            refusal.contains(words),
            "{refusal:?} does not say {words:?}"
        );
    }
}

#[test]
fn version_zero_is_not_ready_and_so_is_a_blank_block() {
    assert_eq!(v2_with(|b| b[8] = 0), Err(Refusal::NotReady));
    assert_eq!(v2_with(|b| b.fill(0)), Err(Refusal::NotReady));
    assert!(matches!(
        v2_with(|b| b[..8].fill(0)),
        Err(Refusal::Invalid(Invalid::Magic(_)))
    ));
}

#[test]
fn an_access_unit_may_be_wider_than_a_picture() {
    let len = 100_000_u32;
    let mut block = [0_u8; METADATA_LEN];
    v2_with(|b| block = *b).unwrap();
    block[9] = 1;
    block[0x20..0x22].copy_from_slice(&[2, 0x09]);
    block[0x28..0x2C].copy_from_slice(&(12 + len).to_le_bytes());
    block[0x2D..0x35].copy_from_slice(&[2, 1, 1, 0, 25, 0, 1, 0]);
    let at = 0x40 + 3 * 24;
    block[at..at + 3].copy_from_slice(&[3, 4, 0]);
    for (field, value) in [(4, len), (8, 1), (12, len), (16, 12), (20, len)] {
        block[at + field..at + field + 4].copy_from_slice(&value.to_le_bytes());
    }
    let metadata = Metadata::parse(&block, 256 + 12 + u64::from(len)).unwrap();
    let info = metadata.frame_info().unwrap();
    let unit = info.encoded.unwrap();
    assert_eq!((unit.offset, unit.size, unit.keyframe), (12, len, true));
    assert_eq!(unit.codec, crate::encode::Codec::H265);
    assert_eq!(info.frame_rate, Some((25, 1)));
    // without the mask bit the descriptor would have to be empty
    block[0x20..0x22].copy_from_slice(&[1, 1]);
    assert!(Metadata::parse(&block, 256 + 12 + u64::from(len)).is_err());
}

#[test]
fn a_dummys_block_is_what_the_contract_describes() {
    let metadata = Metadata::parse(
        &v2_left_only(9, 123, PixelFormat::Bgr, 641, 359),
        256 + 641 * 359 * 3,
    )
    .unwrap();
    let info = metadata.frame_info().unwrap();
    assert_eq!((info.frame_id, info.capture_ts_ns), (9, 123));
    assert_eq!((info.left.width, info.left.height), (641, 359));
    assert_eq!((info.left.stride, info.payload_size), (1923, 690_357));
}

#[test]
fn only_the_described_bytes_tell_frames_apart() {
    let a = v2_left_only(9, 123, PixelFormat::Bgr, 4, 4);
    let mut b = a;
    b[255] = 1;
    assert!(same_frame(&a, &b));
    b[0x9F] = 1;
    assert!(!same_frame(&a, &b));
    let a = v1(5, 4, 3, 0, 1, 60);
    let mut b = a;
    b[0x24] = 1;
    assert!(same_frame(&a, &b));
    b[0x23] = 1;
    assert!(!same_frame(&a, &b));
}

#[test]
fn a_label_of_24_bytes_fits_and_one_of_25_does_not() {
    let label = Label::new("123456789012345678901234").unwrap();
    let message = SyncMessage {
        frame_id: 1,
        timestamp_ns: 2,
        label,
    };
    assert_eq!(SyncMessage::parse(&message.to_bytes()), Ok(message));
    assert_eq!(label.as_bytes().len(), 24);
    let error = Label::new("1234567890123456789012345").unwrap_err();
    assert_eq!(error.to_string(), "label exceeds 24 bytes");
}

#[test]
fn other_messages_are_no_sync() {
    let mut bytes = SyncMessage {
        frame_id: 1,
        timestamp_ns: 2,
        label: Label::new("x").unwrap(),
    }
    .to_bytes();
    assert_eq!(SyncMessage::parse(&bytes[..47]), Err(BadSync::Short(47)));
    bytes[3] = 9;
    assert!(SyncMessage::parse(&bytes).is_ok(), "any minor");
    bytes[2] = 2;
    assert_eq!(SyncMessage::parse(&bytes), Err(BadSync::Major(2)));
    bytes[0] = 0x5A;
    assert_eq!(SyncMessage::parse(&bytes), Err(BadSync::Magic(0x5A)));
}

/// Noise on a valid block gets further into the parser than noise alone.
#[test]
fn seeded_noise_never_breaks_a_promise() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut accepted = 0;
    for round in 0..200_000_u32 {
        let mut bytes = [0_u8; 264];
        match round % 3 {
            0 => bytes[..256].copy_from_slice(&v2_left_only(1, 2, PixelFormat::Bgr, 4, 4)),
            1 => bytes[..256].copy_from_slice(&v1(5, 4, 3, 0, 1, 60)),
            _ => bytes.iter_mut().for_each(|b| *b = random() as u8),
        }
        bytes[256..].copy_from_slice(&(random() % 1024).to_le_bytes());
        for _ in 0..random() % 4 {
            bytes[(random() % 160) as usize] = random() as u8;
        }
        accepted += u32::from(Metadata::parse(bytes.first_chunk().unwrap(), 1 << 20).is_ok());
        must_hold_for(&bytes);
        must_hold_for(&bytes[..(random() % 264) as usize]);
    }
    assert!(accepted > 10_000, "only {accepted} blocks were accepted");
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_keep_their_promises(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        must_hold_for(&bytes);
    }

    #[test]
    fn any_v2_geometry_is_refused_or_keeps_its_promises(
        minor in 0_u8..3, count in 0_u8..6, mask in any::<u8>(), payload in 0_u32..2000,
        fields in proptest::array::uniform20(0_u32..200), codes in proptest::array::uniform12(0_u8..6),
    ) {
        let mut bytes = [0_u8; 264];
        bytes[..10].copy_from_slice(b"CV-MMAP\0\x02\x00");
        bytes[9] = minor;
        bytes[0x20..0x28].copy_from_slice(&[count, mask & 0x0F, 64, 0, 24, 0, 4, 0]);
        bytes[0x28..0x2C].copy_from_slice(&payload.to_le_bytes());
        for slot in 0..4 {
            let at = 64 + slot * 24;
            bytes[at..at + 3].copy_from_slice(&codes[slot * 3..slot * 3 + 3]);
            for (n, value) in fields[slot * 5..slot * 5 + 5].iter().enumerate() {
                bytes[at + 4 + n * 4..at + 8 + n * 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes[256..].copy_from_slice(&4096_u64.to_le_bytes());
        must_hold_for(&bytes);
    }
}
