//! The writer against blocks that the rebuilt upstream builder wrote (tests/data/README.md).

use super::*;

fn upstream(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/tests/data/metadata/{name}_metadata.hex",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&path).expect("the fixture is in the repository");
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
        .collect()
}

/// What all fixtures describe: 2x2 BGR, frame 7.
fn frame() -> Description {
    Description {
        frame_id: 7,
        capture_ns: 123_456_789,
        format: PixelFormat::Bgr,
        left: Plane {
            width: 2,
            height: 2,
            stride: 6,
            size: 12,
        },
        depth: None,
        confidence: None,
        encoded: None,
        sparse: false,
        frame_rate: (30, 1),
    }
}

fn floats() -> Option<Plane> {
    Some(Plane {
        width: 2,
        height: 2,
        stride: 8,
        size: 16,
    })
}

fn unit(codec: Codec) -> Option<EncodedPlane> {
    Some(EncodedPlane {
        size: 6,
        codec,
        key_frame: true,
        pts_ns: 987_654_321,
    })
}

#[test]
fn version_2_blocks_equal_upstreams() {
    for (name, description) in [
        ("v2_0_left", frame()),
        (
            "v2_0_left_depth_confidence_f32_mm",
            Description {
                depth: floats(),
                confidence: floats(),
                ..frame()
            },
        ),
        (
            "v2_1_all_planes",
            Description {
                depth: floats(),
                confidence: floats(),
                encoded: unit(Codec::H265),
                ..frame()
            },
        ),
        (
            "v2_1_left_depth_encoded_h265",
            Description {
                depth: floats(),
                encoded: unit(Codec::H265),
                ..frame()
            },
        ),
        (
            "v2_1_left_encoded_h264",
            Description {
                encoded: unit(Codec::H264),
                ..frame()
            },
        ),
        (
            "v2_1_left_encoded_h265",
            Description {
                encoded: unit(Codec::H265),
                ..frame()
            },
        ),
    ] {
        assert_eq!(metadata_v2(&description).to_vec(), upstream(name), "{name}");
    }
    assert_eq!(initialising().to_vec(), upstream("reject_initialising_0_0"));
}

#[test]
fn a_sparse_block_without_a_unit_differs_in_minor_and_rate_only() {
    let plain = metadata_v2(&frame());
    let sparse = metadata_v2(&Description {
        sparse: true,
        ..frame()
    });
    let differing: Vec<usize> = (0..METADATA_BYTES)
        .filter(|&i| plain[i] != sparse[i])
        .collect();
    assert_eq!(differing, [0x09, 0x31, 0x33]);
}

// Offsets of contract section 2.1.
#[test]
fn version_1_has_its_fields_where_the_contract_says() {
    let block = metadata_v1(&Description {
        left: Plane {
            width: 0x0280,
            height: 0x0168,
            stride: 1920,
            size: 691_200,
        },
        ..frame()
    });
    let mut expected = [0; METADATA_BYTES];
    expected[..8].copy_from_slice(b"CV-MMAP\0");
    expected[0x08] = 1;
    expected[0x0C] = 7;
    expected[0x10..0x18].copy_from_slice(&[0x15, 0xCD, 0x5B, 0x07, 0, 0, 0, 0]);
    expected[0x18..0x1C].copy_from_slice(&[0x80, 0x02, 0x68, 0x01]);
    expected[0x1C] = 3; // channels
    expected[0x1E] = 1; // BGR
    expected[0x20..0x24].copy_from_slice(&[0x00, 0x8C, 0x0A, 0x00]); // 691200
    assert_eq!(block, expected);
}

// The contract's sync fixture: frame 42, time 123456789, label camera_0.
#[test]
fn the_sync_message_equals_the_fixture_outside_the_reserved_bytes() {
    let mut expected = [0; SYNC_BYTES];
    expected[..8].copy_from_slice(&[0x7D, 0x00, 0x01, 0x00, 0x2A, 0, 0, 0]);
    expected[16..24].copy_from_slice(&[0x15, 0xCD, 0x5B, 0x07, 0, 0, 0, 0]);
    expected[24..32].copy_from_slice(b"camera_0");
    assert_eq!(sync(42, 123_456_789, "camera_0", 0), expected);

    let noisy = sync(42, 123_456_789, "camera_0", u64::MAX);
    let differing: Vec<usize> = (0..SYNC_BYTES)
        .filter(|&i| noisy[i] != expected[i])
        .collect();
    assert_eq!(differing, [1, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(sync(0, 0, &"x".repeat(24), 0)[24..], [b'x'; 24]);
}
