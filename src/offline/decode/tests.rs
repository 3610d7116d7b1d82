use std::path::PathBuf;

use md5::{Digest, Md5};

use super::*;
use crate::offline::svo::{FrameReader, Recording};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/svo2")).join(name)
}

fn manifest() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture("manifest.json")).unwrap()).unwrap()
}

fn decoded(recording: &Recording, exactness: Exactness) -> Vec<DecodedPicture> {
    let mut reader = FrameReader::new(recording);
    let mut decoder = open(recording.kind(), exactness);
    let mut out = VecDeque::new();
    for index in 0..recording.frames().len() {
        let _ = decoder.decode(index, reader.payload(index).unwrap(), &mut out);
    }
    decoder.flush(&mut out).unwrap();
    out.into()
}

/// The MD5 of the left half: Y, then U, then V, no padding.
fn left_md5(picture: &Yuv420) -> String {
    let mut md5 = Md5::new();
    for plane in picture.planes() {
        for row in plane.bytes.chunks(plane.width) {
            md5.update(&row[..plane.width / 2]);
        }
    }
    md5.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn every_picture_has_the_checksum_of_the_manifest() {
    for (name, expected) in manifest()["files"].as_object().unwrap() {
        let Some(sums) = expected.get("left_raw_i420_md5") else {
            continue;
        };
        let sums: Vec<String> = serde_json::from_value(sums.clone()).unwrap();
        let first_clean = expected
            .get("first_clean_frame")
            .and_then(|n| n.as_u64())
            .unwrap_or(0);
        let recording = Recording::open(&fixture(name)).unwrap();
        // In front of a first key frame there are errors, which only an exact decoder can place.
        let all = [Exactness::Exact, Exactness::Late(1), Exactness::Late(3)];
        let usable = if first_clean == 0 {
            &all[..]
        } else {
            &all[..1]
        };
        for &exactness in usable {
            let pictures = decoded(&recording, exactness);
            let clean: Vec<_> = pictures
                .iter()
                .filter(|picture| picture.index as u64 >= first_clean)
                .collect();
            assert_eq!(
                clean.len() as u64,
                sums.len() as u64 - first_clean,
                "{name}"
            );
            for picture in clean {
                let md5 = left_md5(picture.pixels.on_host());
                assert_eq!(
                    md5, sums[picture.index],
                    "{name} frame {} ({exactness:?})",
                    picture.index
                );
            }
            assert!(pictures.is_sorted_by_key(|picture| picture.index), "{name}");
        }
    }
}

/// The frame number in the barcode of one eye, most significant bit first.
fn barcode(picture: &Yuv420, eye: usize) -> u32 {
    let left = eye * picture.width / 2;
    (0..16).fold(0, |number, bit| {
        let x = left + 64 + bit * 16 + 8;
        number << 1 | u32::from(picture.y[8 * picture.width + x] > 128)
    })
}

#[test]
fn jpeg_strips_decode_to_both_eyes() {
    let recording = Recording::open(&fixture("jpeg_strips_vga.svo2")).unwrap();
    let pictures = decoded(&recording, Exactness::Exact);
    assert_eq!(pictures.len(), 2);
    for (index, picture) in pictures.iter().enumerate() {
        let picture = picture.pixels.on_host();
        assert_eq!((picture.width, picture.height), (2 * 672, 376));
        assert_eq!(
            [barcode(picture, 0), barcode(picture, 1)],
            [index as u32; 2]
        );
    }
}

#[test]
fn flipped_bytes_in_a_payload_cost_pictures_but_never_the_run() {
    for name in ["h265_svga.svo2", "h264_svga.svo2", "jpeg_strips_vga.svo2"] {
        let recording = Recording::open(&fixture(name)).unwrap();
        let mut reader = FrameReader::new(&recording);
        let mut state = 7_u32;
        for exactness in [Exactness::Late(2), Exactness::Exact] {
            let mut decoder = open(recording.kind(), exactness);
            let mut out = VecDeque::new();
            for index in 0..recording.frames().len() {
                let mut payload = reader.payload(index).unwrap().to_vec();
                for _ in 0..3 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = state as usize % payload.len();
                    payload[at] ^= (state >> 24) as u8;
                }
                let _ = decoder.decode(index, &payload, &mut out);
            }
            let _ = decoder.flush(&mut out);
            assert!(
                out.iter()
                    .all(|picture| picture.pixels.on_host().is_sound()),
                "{name}"
            );
            assert!(
                out.iter().is_sorted_by_key(|picture| picture.index),
                "{name}"
            );
        }
    }
}
