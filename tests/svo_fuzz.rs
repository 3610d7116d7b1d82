//! Damaged recordings and calibrations, by seeded noise: the functions that fuzzers drive.

#[path = "common/noise.rs"]
mod noise;
#[path = "common/svo_writer.rs"]
mod svo_writer;

use std::path::Path;

use cvmmap_streamer::offline::fuzz;
use noise::Noise;
use svo_writer::{SvoOptions, write_svo};

fn damaged(noise: &mut Noise, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    noise.damage(&mut bytes, 0);
    bytes
}

fn data(name: &str) -> Vec<u8> {
    std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/svo2")
            .join(name),
    )
    .unwrap()
}

#[test]
fn damaged_recordings_are_read_or_refused() {
    let mut noise = Noise::new(0x5EED_0001);
    let all = ["h265_svga.svo2", "h264_svga.svo2", "svo1_head.svo"].map(data);
    all.iter().for_each(|whole| fuzz::recording(whole));
    for round in noise::rounds(450) {
        let whole = &all[(round % 3) as usize];
        fuzz::recording(&damaged(&mut noise, whole));
        // Damage close to the start, where the lengths of everything are.
        let (start, rest) = whole.split_at(whole.len().min(2000));
        let mut bytes = damaged(&mut noise, start);
        bytes.extend(rest);
        fuzz::recording(&bytes);
    }
}

/// As MCAP tools write them: lengths and sums stand around what has to be unpacked first.
#[test]
fn damaged_compressed_recordings_are_read_or_refused() {
    let mut noise = Noise::new(0x5EED_0004);
    let payload = [
        0, 0, 0, 1, 0x67, 9, 0, 0, 1, 0x65, 0x80, 7, 7, 7, 7, 7, 7, 7,
    ];
    let all = [mcap::Compression::Lz4, mcap::Compression::Zstd].map(|compression| {
        let options = SvoOptions {
            compression: Some(compression),
            chunk_size: 1 << 10,
            ..SvoOptions::default()
        };
        write_svo(&options, (1..9).map(|n| (n << 40, &payload[..], true)))
    });
    all.iter().for_each(|whole| fuzz::recording(whole));
    for round in noise::rounds(450) {
        fuzz::recording(&damaged(&mut noise, &all[(round % 2) as usize]));
    }
}

#[test]
fn damaged_messages_are_read_or_refused() {
    let mut noise = Noise::new(0x5EED_0002);
    let mut message = vec![0; 200];
    message[0..4].copy_from_slice(&196_u32.to_le_bytes());
    message[4..8].copy_from_slice(&136_u32.to_le_bytes());
    message[8..16].copy_from_slice(&26_u64.to_le_bytes());
    message[40..43].copy_from_slice(&[0xFF, 0xD8, 0xFF]);
    for _ in noise::rounds(20_000) {
        fuzz::frame(&damaged(&mut noise, &message));
    }
}

#[test]
fn damaged_calibrations_are_read_or_refused() {
    let mut noise = Noise::new(0x5EED_0003);
    let all = ["SN40735594.conf", "SN40735595.conf", "SN31000001.conf"]
        .map(|name| data(&format!("calib/{name}")));
    for round in noise::rounds(1500) {
        fuzz::calibration(&damaged(&mut noise, &all[(round % 3) as usize]));
    }
}
