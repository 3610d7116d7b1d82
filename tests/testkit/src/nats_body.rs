//! Body tracking packets (contract section 6), of stick figures that walk.

/// Keypoints of BODY_18.
pub const KEYPOINTS: usize = 18;
const HEADER: usize = 64;
const RECORD: usize = 3248;
/// Pixels that a figure walks per frame.
pub const STEP: u32 = 4;

/// The packet of one frame: `count` figures, beside one another.
pub fn packet(
    label: &str,
    frame_id: u32,
    capture_ns: u64,
    count: u16,
    (width, height): (u16, u16),
) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + usize::from(count) * RECORD];
    bytes[0] = 0x62;
    bytes[1] = 1; // image coordinates
    bytes[2] = 1; // major
    put(&mut bytes, 4, &frame_id.to_le_bytes());
    put(&mut bytes, 8, &capture_ns.to_le_bytes());
    put(&mut bytes, 16, &capture_ns.to_le_bytes());
    put(&mut bytes, 24, &count.to_le_bytes());
    put(&mut bytes, 26, &(RECORD as u16).to_le_bytes());
    bytes[30] = 2; // accurate
    put(&mut bytes, 32, &3_u16.to_le_bytes()); // new, tracked
    bytes[34] = 1; // camera
    put(
        &mut bytes,
        36,
        &(u32::from(count) * RECORD as u32).to_le_bytes(),
    );
    put(&mut bytes, 40, &label.as_bytes()[..label.len().min(24)]);
    for body in 0..count {
        let at = HEADER + usize::from(body) * RECORD;
        record(&mut bytes[at..at + RECORD], body, frame_id, width, height);
    }
    bytes
}

fn record(bytes: &mut [u8], body: u16, frame_id: u32, width: u16, height: u16) {
    let points = figure(frame_id, body, width, height);
    put(bytes, 0, &i32::from(body).to_le_bytes());
    bytes[4] = 1; // tracked
    bytes[5] = 1; // moving
    put_floats(bytes, 8, &[90.0 + f32::from(body)]);
    put_floats(bytes, 12, &[0.0, 0.0, 2.0 + f32::from(body)]);
    let side = |axis: usize, pick: fn(f32, f32) -> f32| {
        points
            .iter()
            .map(|point| point[axis])
            .reduce(pick)
            .unwrap_or(0.0)
    };
    let (left, top) = (side(0, f32::min), side(1, f32::min));
    let (right, bottom) = (side(0, f32::max), side(1, f32::max));
    put_floats(
        bytes,
        60,
        &[left, top, right, top, right, bottom, left, bottom],
    );
    for (n, point) in points.iter().enumerate() {
        put_floats(bytes, 200 + n * 8, point);
        put_floats(
            bytes,
            504 + n * 12,
            &[point[0] / 100.0, point[1] / 100.0, 2.0],
        );
        put_floats(bytes, 960 + n * 4, &[100.0 - n as f32]);
    }
    put(bytes, 3244, &(KEYPOINTS as u16).to_le_bytes());
}

/// Pixels of the keypoints, nose first. The neck (1) is at `STEP` times the frame number, modulo
/// the picture's width, and a fifth of the picture per body further.
pub fn figure(frame_id: u32, body: u16, width: u16, height: u16) -> [[f32; 2]; KEYPOINTS] {
    let width = u32::from(width.max(1));
    let walked = frame_id.wrapping_mul(STEP) + u32::from(body) * (width / 5);
    let (x, h) = ((walked % width) as f32, f32::from(height));
    let swing = (f64::from(frame_id) * 0.3).sin() as f32 * 0.08 * h;
    let at = |dx: f32, y: f32| [x + dx, y * h];
    [
        at(0.0, 0.15),       // nose
        at(0.0, 0.25),       // neck
        at(-0.05 * h, 0.26), // shoulder, elbow, wrist
        at(-0.06 * h + swing, 0.38),
        at(-0.06 * h + swing, 0.48),
        at(0.05 * h, 0.26),
        at(0.06 * h - swing, 0.38),
        at(0.06 * h - swing, 0.48),
        at(-0.03 * h, 0.52), // hip, knee, ankle
        at(-0.03 * h - swing, 0.70),
        at(-0.03 * h - swing, 0.88),
        at(0.03 * h, 0.52),
        at(0.03 * h + swing, 0.70),
        at(0.03 * h + swing, 0.88),
        at(-0.01 * h, 0.13), // eyes, ears
        at(0.01 * h, 0.13),
        at(-0.02 * h, 0.14),
        at(0.02 * h, 0.14),
    ]
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn put_floats(bytes: &mut [u8], at: usize, values: &[f32]) {
    for (n, value) in values.iter().enumerate() {
        put(bytes, at + n * 4, &value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Offsets of contract section 6.
    #[test]
    fn a_packet_has_the_contracts_layout() {
        let packet = packet("cam", 7, 99, 2, (640, 360));
        assert_eq!(packet.len(), 64 + 2 * 3248);
        assert_eq!((packet[0], packet[2]), (0x62, 1));
        assert_eq!(packet[26..28], [0xB0, 0x0C]);
        assert_eq!(packet[36..40], 6496_u32.to_le_bytes());
        assert_eq!(packet[40..44], *b"cam\0");
        let neck = &packet[64 + 200 + 8..];
        assert_eq!(neck[..4], 28.0_f32.to_le_bytes());
        assert_eq!(neck[4..8], 90.0_f32.to_le_bytes());
        assert_eq!(packet[64 + 3244..64 + 3246], [18, 0]);
        assert_eq!(super::packet("", 0, 0, 0, (1, 1)).len(), 64, "nobody there");
    }
}
