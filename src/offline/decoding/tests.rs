use std::cell::RefCell;
use std::path::PathBuf;

use super::*;

#[path = "../../../tests/common/noise.rs"]
mod noise;
use crate::offline::svo_writer::{SvoOptions, write_svo};
use noise::Noise;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/svo2")).join(name)
}

/// The payloads of a fixture, which others than the reader under test have looked at.
fn payloads(name: &str) -> Vec<Vec<u8>> {
    let recording = Recording::open(&fixture(name)).unwrap();
    let mut reader = FrameReader::new(&recording);
    let all = 0..recording.frames().len();
    all.map(|index| reader.payload(index).unwrap().to_vec())
        .collect()
}

fn opened(
    options: &SvoOptions,
    payloads: &[Vec<u8>],
) -> Result<(tempfile::TempDir, Recording), SvoError> {
    let time = |n: usize| 1_773_806_381_000_000_000 + n as u64 * 33_333_333;
    let listed = payloads.iter().enumerate();
    let bytes = write_svo(options, listed.map(|(n, p)| (time(n), &p[..], false)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.svo2");
    std::fs::write(&path, bytes).unwrap();
    Recording::open(&path).map(|recording| (dir, recording))
}

/// Frames that there are pictures of, the number in the bar code of each, and how many there are not of.
fn decoded(
    recording: &Recording,
    threads: usize,
    first: usize,
    last: usize,
) -> Result<(Vec<usize>, Vec<u32>, usize), OfflineError> {
    let got = RefCell::new((Vec::new(), Vec::new()));
    let send = |picture: SourcePicture| {
        let host = picture.pixels.on_host();
        let number = (0..16).fold(0, |number, bit| {
            let x = 64 + bit * 16 + 8;
            number << 1 | u32::from(host.y[8 * host.width + x] > 128)
        });
        got.borrow_mut().0.push(picture.index);
        got.borrow_mut().1.push(number);
        true
    };
    let missing = Decoding::new(recording, threads).run(first, last, &send, &StopToken::new())?;
    let (indices, numbers) = got.into_inner();
    Ok((indices, numbers, missing))
}

#[test]
fn a_range_has_its_pictures_and_no_others() {
    for name in ["h265_svga.svo2", "h264_svga.svo2"] {
        let recording = Recording::open(&fixture(name)).unwrap();
        for (first, last) in [(0, 23), (0, 0), (23, 23), (11, 12), (5, 20)] {
            for threads in [1, 3] {
                let (indices, numbers, missing) =
                    decoded(&recording, threads, first, last).unwrap();
                assert_eq!(indices, (first..=last).collect::<Vec<_>>(), "{name}");
                assert!(
                    numbers
                        .iter()
                        .zip(first..)
                        .all(|(n, index)| *n as usize == index)
                );
                assert_eq!(missing, 0, "{name}");
            }
        }
    }
}

/// A frame whose slice ends in its header: whatever the decoder has in hand, each picture that comes is of its own frame.
#[test]
fn a_late_error_is_placed_and_every_picture_is_of_its_frame() {
    for name in ["h265_svga.svo2", "h264_svga.svo2"] {
        let whole = payloads(name);
        for lost in [0, 1, 5, 11, 12, 13, 22, 23] {
            let mut short = whole.clone();
            let codes: Vec<_> = memchr::memmem::find_iter(&short[lost], &[0, 0, 0, 1]).collect();
            short[lost].truncate(codes[codes.len() - 1] + 6);
            let (_dir, recording) = opened(&SvoOptions::default(), &short).unwrap();
            for threads in [1, 4] {
                let (indices, numbers, missing) = decoded(&recording, threads, 0, 23).unwrap();
                // 0 and 12 are key frames.
                let next = if lost < 12 { 12 } else { 24 };
                let expected: Vec<_> = (0..lost).chain(next..24).collect();
                assert_eq!(indices, expected, "{name}, {threads} threads");
                assert!(
                    numbers
                        .iter()
                        .zip(&indices)
                        .all(|(n, index)| *n as usize == *index)
                );
                assert_eq!(missing, next - lost);
            }
        }
    }
}

/// Damage of any kind that no checksum tells of: decoding ends, pictures come in order and are counted right.
#[test]
fn noise_in_the_frames_ends_and_is_counted() {
    let mut noise = Noise::new(0x5EED_0009);
    let names = [
        "h265_mid_gop_start.svo2",
        "h264_intra_refresh_no_idr.svo2",
        "h264_svga.svo2",
        "h265_svga.svo2",
        "jpeg_strips_vga.svo2",
    ];
    let all = names.map(payloads);
    for round in noise::rounds(40) {
        let mut frames = all[(round % 5) as usize].clone();
        for _ in 0..=noise.below(6) {
            let at = noise.below(frames.len());
            noise.damage(&mut frames[at], 0);
        }
        let options = SvoOptions {
            checksums: false,
            chunk_size: [1, 786_432][noise.below(2)],
            ..SvoOptions::default()
        };
        // What is damaged everywhere may be refused.
        let Ok((_dir, recording)) = opened(&options, &frames) else {
            continue;
        };
        let last = recording.frames().len() - 1;
        let first = noise.below(last + 1);
        let Ok((indices, _, missing)) = decoded(&recording, 1 + noise.below(3), first, last) else {
            continue;
        };
        assert!(
            indices.windows(2).all(|pair| pair[0] < pair[1]),
            "{indices:?}"
        );
        assert!(indices.iter().all(|index| (first..=last).contains(index)));
        assert_eq!(indices.len() + missing, last - first + 1);
    }
}
