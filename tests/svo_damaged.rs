//! Recordings that are damaged, and places that cannot be written to: what is shown is never what builds on lost
//! frames, and nothing is left under a final name that is not whole.

#[path = "common/svo.rs"]
mod common;
#[path = "common/svo_writer.rs"]
mod svo_writer;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use svo_writer::{SvoOptions, write_svo};

const SVGA: (usize, usize) = (960, 600);
const VGA: (usize, usize) = (672, 376);
const START: u64 = 1_773_806_381_000_000_000;

fn time(n: usize) -> u64 {
    START + n as u64 * 33_333_333
}

/// Frames as a recording of chunks that hold `chunk` bytes or one message.
fn recording(frames: &[Vec<u8>], key: impl Fn(usize) -> bool, chunk: u64) -> Vec<u8> {
    let options = SvoOptions {
        chunk_size: chunk,
        ..SvoOptions::default()
    };
    let listed = frames.iter().enumerate();
    write_svo(
        &options,
        listed.map(|(n, payload)| (time(n), &payload[..], key(n))),
    )
}

fn twelfth(n: usize) -> bool {
    n.is_multiple_of(12)
}

/// Where the payload of a frame lies in a recording.
fn find(bytes: &[u8], payload: &[u8]) -> usize {
    memchr::memmem::find(bytes, payload).expect("it was written")
}

/// Converts `bytes`; the frame numbers in the MP4, and what was said.
#[track_caller]
fn converted(bytes: &[u8], size: (usize, usize), more: &[&str]) -> (Vec<u32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("bad.svo2"), dir.path().join("bad.mp4"));
    std::fs::write(&input, bytes).unwrap();
    let run = convert(&input, &output, &[&["--view", "left-raw"], more].concat());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(names(dir.path()), ["bad.mp4", "bad.svo2"]);
    assert_eq!(
        probe(&output, "frame=pts").len(),
        luma(&output, size.0, size.1).len()
    );
    (shown(&output, size), run.stderr)
}

fn numbers(frames: impl IntoIterator<Item = u32>) -> Vec<u32> {
    frames.into_iter().collect()
}

#[test]
fn a_cut_recording_is_recovered_and_said_to_be() {
    if !has_ffmpeg() {
        return;
    }
    for name in ["h264_svga.svo2", "h265_svga.svo2"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let ends: Vec<usize> = payloads(name)
            .iter()
            .map(|payload| find(&bytes, payload) + payload.len() + 56)
            .collect();
        for percent in [10, 50, 90] {
            let cut = bytes.len() * percent / 100;
            let (shown, said) = converted(&bytes[..cut], SVGA, &[]);
            let whole = ends.iter().filter(|end| **end <= cut).count() as u32;
            assert!(whole > 0);
            assert_eq!(shown, numbers(0..whole), "{name}, {percent} %");
            let expected = format!("recording was not closed; recovered {whole} frames");
            assert!(said.contains(&expected), "{said}");
        }
    }
    // The first of its two frames ends behind the middle.
    let strips = std::fs::read(fixture("jpeg_strips_vga.svo2")).unwrap();
    let (shown, said) = converted(&strips[..strips.len() * 9 / 10], VGA, &[]);
    assert_eq!(shown, [0], "{said}");
}

/// Whatever tells of the damage: the checksum of a chunk, the lengths of a message, the decoder.
#[test]
fn damage_in_the_middle_costs_frames_up_to_the_next_key_frame() {
    if !has_ffmpeg() {
        return;
    }
    for name in ["h264_svga.svo2", "h265_svga.svo2"] {
        let frames = payloads(name);
        let whole = recording(&frames, twelfth, 1);
        let at = find(&whole, &frames[5]);
        let expected = numbers((0..5).chain(12..24));

        let mut flipped = whole.clone();
        flipped[at + frames[5].len() / 2] ^= 0x10;
        let (shown, said) = converted(&flipped, SVGA, &[]);
        assert_eq!(shown, expected, "{name}, checksum");
        assert!(
            said.contains("7 frames could not be read or decoded"),
            "{said}"
        );

        // The length of the payload in its message: the frame is not even in the index.
        let mut flipped = whole.clone();
        flipped[at - 2] ^= 0x40;
        let (shown, said) = converted(&flipped, SVGA, &[]);
        assert_eq!(shown, expected, "{name}, length");
        assert!(
            said.contains("the recording is damaged: 1 places"),
            "{said}"
        );
        assert!(
            said.contains("6 frames could not be read or decoded"),
            "{said}"
        );

        // The recorder wrote it wrong: only the decoder can tell.
        let mut short = frames.clone();
        short[5] = without_slice(&short[5]);
        let (shown, said) = converted(&recording(&short, twelfth, 1), SVGA, &[]);
        assert_eq!(shown, expected, "{name}, slice: {said}");

        // No frame was lost where only a message of a sensor is damaged.
        let sensor = find(&whole[at..], b"\"sensors\"") + at;
        let mut flipped = whole.clone();
        // The length of the record, behind which 22 bytes and `{"__title__":` stand.
        flipped[sensor - 13 - 22 - 7] ^= 0x40;
        let (shown, said) = converted(&flipped, SVGA, &[]);
        assert_eq!(shown, numbers(0..24), "{name}, sensor: {said}");
    }
}

#[test]
fn the_gap_of_lost_frames_is_in_the_times() {
    if !has_ffmpeg() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("bad.svo2"), dir.path().join("bad.mp4"));
    let mut frames = payloads("h264_svga.svo2");
    frames[5] = without_slice(&frames[5]);
    std::fs::write(&input, recording(&frames, twelfth, 1)).unwrap();
    let run = convert(&input, &output, &["--view", "left-raw"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    // Frame 12 is shown when it was taken.
    assert_eq!(probe(&output, "packet=pts")[4..6], ["12000", "36000"]);
}

#[test]
fn damage_in_the_first_and_in_the_last_frames_costs_their_part_only() {
    if !has_ffmpeg() {
        return;
    }
    for name in ["h264_svga.svo2", "h265_svga.svo2"] {
        let frames = payloads(name);
        for (lost, expected) in [
            (0, numbers(12..24)),
            (1, numbers((0..1).chain(12..24))),
            (12, numbers(0..12)),
            (23, numbers(0..23)),
        ] {
            let mut short = frames.clone();
            short[lost] = without_slice(&short[lost]);
            let (shown, said) = converted(&recording(&short, twelfth, 1), SVGA, &[]);
            assert_eq!(shown, expected, "{name}, frame {lost}: {said}");
        }
    }
}

/// No key frame at all, but recovery points at frames 15, 35 and 55, each 19 frames before the picture is whole
/// (`recovery_frame_cnt` in the stream; the manifest's first clean frame is 34 = 15 + 19).
#[test]
fn a_stream_without_key_frames_goes_on_where_it_says_that_it_is_whole() {
    if !has_ffmpeg() {
        return;
    }
    let frames = payloads("h264_intra_refresh_no_idr.svo2");
    let whole = recording(&frames, |_| false, 1);
    let (all, _) = converted(&whole, VGA, &[]);
    assert_eq!(all.len(), 59);
    for (lost, from) in [(20, 54), (36, 60)] {
        let mut flipped = whole.clone();
        let at = find(&whole, &frames[lost]);
        flipped[at + frames[lost].len() / 2] ^= 0x10;
        let (shown, said) = converted(&flipped, VGA, &[]);
        // The first frame has no picture, the bar code is the index and 5; up to 33 it may be unread.
        assert_eq!(shown.len(), lost - 1 + 60 - from, "{said}");
        let clean = shown[33.min(lost - 1)..].iter().copied();
        let wanted = (34..lost as u32).chain(from as u32..60).map(|n| n + 5);
        assert_eq!(
            clean.collect::<Vec<_>>(),
            wanted.take(shown.len()).collect::<Vec<_>>()
        );
    }
}

/// A key frame at the start and none after it, but a refresh each eight frames, as encoders that spread their key
/// frames write: the pictures of a fixture, coded so by another program.
#[test]
fn a_stream_with_one_key_frame_goes_on_where_it_is_refreshed() {
    if !has_ffmpeg() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, coded) = (dir.path().join("a.h264"), dir.path().join("b.h264"));
    std::fs::write(&source, payloads("h264_svga.svo2").concat()).unwrap();
    let ffmpeg = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-i"])
        .arg(&source)
        .args("-c:v libx264 -qp 18 -preset veryfast -bf 0 -f h264".split(' '))
        .args(["-x264-params", "intra-refresh=1:keyint=8:scenecut=0:aud=1"])
        .arg(&coded)
        .output()
        .unwrap();
    assert!(
        ffmpeg.status.success(),
        "{}",
        String::from_utf8_lossy(&ffmpeg.stderr)
    );
    // Each access unit begins with its delimiter.
    let stream = std::fs::read(&coded).unwrap();
    let mut starts: Vec<usize> = memchr::memmem::find_iter(&stream, &[0, 0, 0, 1, 9]).collect();
    starts.push(stream.len());
    let units = starts.windows(2);
    let frames: Vec<_> = units
        .map(|pair| stream[pair[0]..pair[1]].to_vec())
        .collect();
    assert_eq!(frames.len(), 24);
    let has = |frame: &Vec<u8>, nal: &[u8]| memchr::memmem::find(frame, nal).is_some();
    // Slices of type 5, and SEI messages of type 6.
    let keys = frames
        .iter()
        .filter(|frame| has(frame, &[0, 0, 1, 0x65]))
        .count();
    let points = |from: usize| {
        let mut frames = frames.iter().enumerate().skip(from);
        frames
            .find(|(_, frame)| has(frame, &[0, 0, 1, 6, 6]))
            .unwrap()
            .0 as u32
    };
    assert_eq!(keys, 1);
    let whole = recording(&frames, |n| n == 0, 1);
    assert_eq!(converted(&whole, SVGA, &[]).0, numbers(0..24));
    for lost in [1, 5, 9] {
        let mut flipped = whole.clone();
        flipped[find(&whole, &frames[lost]) + frames[lost].len() / 2] ^= 0x10;
        let (shown, said) = converted(&flipped, SVGA, &[]);
        let (before, behind) = shown.split_at(lost);
        assert_eq!(before, numbers(0..lost as u32), "{said}");
        // It takes a refresh from its recovery point on, and no more than that.
        let from = behind.first().copied().unwrap_or(24);
        let point = points(lost + 1);
        assert!(
            from > point && from <= point + 8,
            "{from}, recovery point {point}"
        );
        assert_eq!(behind, numbers(from..24));
    }
}

/// The parameter sets of a stream may stand in front of its first frame only.
#[test]
fn parameter_sets_are_given_again_behind_damage_and_at_the_start_of_a_range() {
    if !has_ffmpeg() {
        return;
    }
    for (name, is_set) in [
        (
            "h264_svga.svo2",
            (|nal: u8| matches!(nal & 31, 7 | 8)) as fn(u8) -> bool,
        ),
        ("h265_svga.svo2", |nal: u8| matches!(nal >> 1, 32..=34)),
    ] {
        let mut frames = payloads(name);
        let key = std::mem::take(&mut frames[12]);
        for part in key.split_inclusive_code() {
            if !is_set(part[4]) {
                frames[12].extend(part);
            }
        }
        assert!(frames[12].len() < key.len());
        let bytes = recording(&frames, twelfth, 1);
        let (shown, _) = converted(&bytes, SVGA, &["--start-frame", "14", "--end-frame", "20"]);
        assert_eq!(shown, numbers(14..21), "{name}");
        let mut flipped = bytes.clone();
        let at = find(&bytes, &frames[5]);
        flipped[at + frames[5].len() / 2] ^= 0x10;
        let (shown, said) = converted(&flipped, SVGA, &[]);
        assert_eq!(shown, numbers((0..5).chain(12..24)), "{name}: {said}");
    }
}

/// An access unit whose last slice ends within its header.
fn without_slice(payload: &[u8]) -> Vec<u8> {
    let slice = payload.to_vec().split_inclusive_code().pop().unwrap().len();
    payload[..payload.len() - slice + 6].to_vec()
}

/// Annex B with four-byte start codes, cut in front of each.
trait SplitCodes {
    fn split_inclusive_code(&self) -> Vec<&[u8]>;
}

impl SplitCodes for Vec<u8> {
    fn split_inclusive_code(&self) -> Vec<&[u8]> {
        let mut starts: Vec<usize> = memchr::memmem::find_iter(self, &[0, 0, 0, 1]).collect();
        assert_eq!(starts.first(), Some(&0));
        starts.push(self.len());
        starts
            .windows(2)
            .map(|pair| &self[pair[0]..pair[1]])
            .collect()
    }
}

#[test]
fn a_damaged_frame_of_strips_is_lost_alone() {
    if !has_ffmpeg() {
        return;
    }
    let two = payloads("jpeg_strips_vga.svo2");
    let frames: Vec<Vec<u8>> = (0..6).map(|n| two[n % 2].clone()).collect();
    let whole = recording(&frames, |_| true, 1);
    let places: Vec<usize> = memchr::memmem::find_iter(&whole, &frames[0]).collect();
    let mut flipped = whole.clone();
    flipped[places[1] + frames[0].len() / 2] ^= 0x10;
    let (shown, said) = converted(&flipped, VGA, &[]);
    assert_eq!(shown, [0, 1, 1, 0, 1]);
    assert!(
        said.contains("1 frames could not be read or decoded"),
        "{said}"
    );
}

#[test]
fn a_damaged_compressed_chunk_costs_its_frames_and_says_so() {
    if !has_ffmpeg() {
        return;
    }
    let frames = payloads("h264_svga.svo2");
    for compression in [mcap::Compression::Lz4, mcap::Compression::Zstd] {
        let options = SvoOptions {
            compression: Some(compression),
            chunk_size: 1,
            ..SvoOptions::default()
        };
        let listed = frames.iter().enumerate();
        let whole = write_svo(&options, listed.map(|(n, p)| (time(n), &p[..], twelfth(n))));
        let (shown, _) = converted(&whole, SVGA, &[]);
        assert_eq!(shown, numbers(0..24));
        // Coded pictures are not compressed further: their bytes can be found.
        let middle = &frames[5][frames[5].len() / 2..][..32];
        let mut flipped = whole.clone();
        flipped[find(&whole, middle)] ^= 0x10;
        let (shown, said) = converted(&flipped, SVGA, &[]);
        assert_eq!(
            shown,
            numbers((0..5).chain(12..24)),
            "{compression:?}: {said}"
        );
    }
}

#[test]
fn bad_input_has_a_clear_error_its_code_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.mp4");
    let input = dir.path().join("in.svo2");
    let fails = |bytes: &[u8], code: i32, text: &str| {
        std::fs::write(&input, bytes).unwrap();
        let run = convert(&input, &output, &[]);
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        assert!(run.stderr.contains(text), "{}", run.stderr);
        assert!(run.stderr.contains("in.svo2"), "{}", run.stderr);
        assert_eq!(names(dir.path()), ["in.svo2"]);
    };
    fails(
        b"GIF89a",
        1,
        "not a ZED recording (first bytes: 47 49 46 38 39 61)",
    );
    let one = std::fs::read(fixture("svo1_head.svo")).unwrap();
    fails(
        &one,
        1,
        "SVO version 1 recordings can only be read with the ZED SDK",
    );
    let options = SvoOptions::default();
    let secret = write_svo(&options, [(1 << 60, &b"\xDE\xAD\xBE\xEF secret"[..], true)]);
    fails(
        &secret,
        1,
        "unsupported or encrypted frame data (first bytes: de ad be ef",
    );
    fails(
        &write_svo(&options, []),
        1,
        "holds no frame that can be read",
    );
    let sps_only = [0, 0, 0, 1, 0x67, 0x64, 0, 0x1F];
    let nothing = write_svo(&options, [(1 << 60, &sps_only[..], true)]);
    fails(&nothing, 1, "none of the frames could be decoded");
    // All key frames are damaged: nothing can be shown.
    let mut frames = payloads("h264_svga.svo2");
    for key in [0, 12] {
        frames[key] = without_slice(&frames[key]);
    }
    fails(
        &recording(&frames, twelfth, 1),
        1,
        "none of the frames could be decoded (24 are damaged)",
    );

    let missing = convert(&dir.path().join("absent.svo2"), &output, &[]);
    assert_eq!(missing.code, Some(1), "{}", missing.stderr);
    let folder = convert(dir.path(), &output, &[]);
    assert_eq!(folder.code, Some(1), "{}", folder.stderr);
    assert!(folder.stderr.contains("is not a file"), "{}", folder.stderr);
    let nowhere = Path::new("/nonexistent/out.mp4");
    let nowhere = convert(&fixture("h264_svga.svo2"), nowhere, &[]);
    assert_eq!(nowhere.code, Some(1), "{}", nowhere.stderr);
    assert!(
        nowhere.stderr.contains("/nonexistent/out.mp4"),
        "{}",
        nowhere.stderr
    );
    let words = ["--input", "a", "--codec", "av1"];
    assert_eq!(run(single().args(words)).code, Some(2));
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.mp4");
    // A limit on the size of files fails a write as a full disk does.
    let run = run(Command::new("sh")
        .args(["-c", "ulimit -f 16; exec \"$@\"", "sh"])
        .args([env!("CARGO_BIN_EXE_zed_svo_to_mp4"), "--input"])
        .arg(fixture("h264_svga.svo2"))
        .arg("--output")
        .arg(&output)
        .args("--codec h264 --encoder-device software --quality 1 --view left-raw".split(' ')));
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("out.mp4: "), "{}", run.stderr);
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

/// An output that is a recording: by its name, a link of either kind, or a name that is used on the way.
#[test]
fn no_tool_writes_in_the_place_of_a_recording() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let bytes = std::fs::read(fixture("h264_svga.svo2")).unwrap();
    std::fs::write(at("a.svo2"), &bytes).unwrap();
    std::fs::hard_link(at("a.svo2"), at("hard.mp4")).unwrap();
    std::os::unix::fs::symlink("a.svo2", at("soft.mp4")).unwrap();
    std::fs::hard_link(at("a.svo2"), at("x.mp4.part")).unwrap();
    std::fs::create_dir(at("inner")).unwrap();
    let before = names(dir.path());
    let refused = |run: Run| {
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains("is the recording"), "{}", run.stderr);
        assert_eq!(names(dir.path()), before);
        assert_eq!(std::fs::read(at("a.svo2")).unwrap(), bytes);
    };
    let outputs = ["a.svo2", "hard.mp4", "soft.mp4", "x.mp4", "inner/../a.svo2"];
    for output in outputs {
        refused(convert(&at("a.svo2"), &at(output), &[]));
    }
    let grid = |output: PathBuf, inputs: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zed_svo_grid_to_mp4"));
        command.args("--codec h264 --encoder-device software --output".split(' '));
        run(command.arg(output).args(inputs))
    };
    let other = fixture("h265_svga.svo2");
    let (own, other) = (at("a.svo2"), other.to_str().unwrap().to_owned());
    let own = own.to_str().unwrap();
    for place in 0..4 {
        let mut inputs = vec![
            "--input", &other, "--input", &other, "--input", &other, "--input", &other,
        ];
        inputs[2 * place + 1] = own;
        for output in outputs {
            refused(grid(at(output), &inputs));
        }
    }
    for n in 1..=4 {
        std::fs::copy(at("a.svo2"), at(&format!("inner/s_zed{n}.svo2"))).unwrap();
    }
    let inner = at("inner");
    for n in 1..=4 {
        let output = at(&format!("inner/s_zed{n}.svo2"));
        refused(grid(
            output.clone(),
            &["--segment-dir", inner.to_str().unwrap()],
        ));
        assert_eq!(std::fs::read(output).unwrap(), bytes);
    }
}
