//! Damaged recordings and calibrations, by seeded noise: the functions that fuzzers drive.

use std::path::Path;

use cvmmap_streamer::offline::fuzz;

/// xorshift64*, so that a failure comes again.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Some bytes flipped, cut, doubled or set to the extremes.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + self.below(8) {
            if bytes.is_empty() {
                return bytes;
            }
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                2 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    bytes.drain(at..end);
                }
                3 => bytes[at] = 0xFF,
                4 => bytes[at] = 0,
                _ => bytes[at] ^= 1 << self.below(8),
            }
        }
        bytes
    }
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
    let mut noise = Noise(0x5EED_0001);
    for name in ["h265_svga.svo2", "h264_svga.svo2", "svo1_head.svo"] {
        let whole = data(name);
        fuzz::recording(&whole);
        for _ in 0..150 {
            fuzz::recording(&noise.damage(&whole));
        }
        // Damage close to the start, where the lengths of everything are.
        for _ in 0..150 {
            let mut bytes = noise.damage(&whole[..whole.len().min(2000)]);
            bytes.extend(&whole[whole.len().min(2000)..]);
            fuzz::recording(&bytes);
        }
    }
}

#[test]
fn damaged_messages_are_read_or_refused() {
    let mut noise = Noise(0x5EED_0002);
    let mut message = vec![0; 200];
    message[0..4].copy_from_slice(&196_u32.to_le_bytes());
    message[4..8].copy_from_slice(&136_u32.to_le_bytes());
    message[8..16].copy_from_slice(&26_u64.to_le_bytes());
    message[40..43].copy_from_slice(&[0xFF, 0xD8, 0xFF]);
    for _ in 0..20_000 {
        fuzz::frame(&noise.damage(&message));
    }
}

#[test]
fn damaged_calibrations_are_read_or_refused() {
    let mut noise = Noise(0x5EED_0003);
    for name in ["SN40735594.conf", "SN40735595.conf", "SN31000001.conf"] {
        let whole = data(&format!("calib/{name}"));
        for _ in 0..500 {
            fuzz::calibration(&noise.damage(&whole));
        }
    }
}
