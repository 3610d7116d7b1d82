//! Damaged recordings and calibrations, by seeded noise: the functions that fuzzers drive.

#[path = "common/noise.rs"]
mod noise;

use std::path::Path;

use cvmmap_streamer::offline::fuzz;
use noise::Noise;

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
    for name in ["h265_svga.svo2", "h264_svga.svo2", "svo1_head.svo"] {
        let whole = data(name);
        fuzz::recording(&whole);
        for _ in 0..150 {
            fuzz::recording(&damaged(&mut noise, &whole));
        }
        // Damage close to the start, where the lengths of everything are.
        for _ in 0..150 {
            let mut bytes = damaged(&mut noise, &whole[..whole.len().min(2000)]);
            bytes.extend(&whole[whole.len().min(2000)..]);
            fuzz::recording(&bytes);
        }
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
    for _ in 0..20_000 {
        fuzz::frame(&damaged(&mut noise, &message));
    }
}

#[test]
fn damaged_calibrations_are_read_or_refused() {
    let mut noise = Noise::new(0x5EED_0003);
    for name in ["SN40735594.conf", "SN40735595.conf", "SN31000001.conf"] {
        let whole = data(&format!("calib/{name}"));
        for _ in 0..500 {
            fuzz::calibration(&damaged(&mut noise, &whole));
        }
    }
}
