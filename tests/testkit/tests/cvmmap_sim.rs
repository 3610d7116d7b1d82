//! The simulator as a process, seen through ZeroMQ and shared memory.

mod support;

use std::fs::File;
use std::io::{BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};

use rustix::process::Signal;
use support::{Guard, run, text, wait_for_line};

const SIM: &str = env!("CARGO_BIN_EXE_cvmmap_sim");

/// A running simulator and somebody who reads its frames.
struct Stage {
    sim: Guard,
    stderr: BufReader<ChildStderr>,
    subscriber: zmq::Socket,
    segment: String,
    socket_path: PathBuf,
    _folder: tempfile::TempDir,
    _context: zmq::Context,
}

impl Stage {
    fn open(label: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let label = format!("{label}{}", std::process::id());
        let prefix = folder.path().to_str().expect("UTF-8");
        let mut command = Command::new(SIM);
        command
            .args([
                "--label",
                &label,
                "--prefix",
                prefix,
                "--namespace",
                "tk",
                "--wait-for-reader",
            ])
            .args(arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut sim = Guard::spawn(&mut command);
        let mut stderr = BufReader::new(sim.0.stderr.take().expect("a pipe"));
        let line = wait_for_line(&mut stderr, "sync ipc://");
        assert!(line.contains(&format!("tk_{label}")), "{line}");
        let context = zmq::Context::new();
        let subscriber = context.socket(zmq::SUB).expect("a socket");
        subscriber.set_rcvtimeo(20_000).expect("an option");
        subscriber.set_subscribe(&[0x7D]).expect("an option");
        let socket_path = folder.path().join(format!("tk_{label}"));
        subscriber
            .connect(&format!("ipc://{}", socket_path.display()))
            .expect("an endpoint");
        Stage {
            sim,
            stderr,
            subscriber,
            segment: format!("tk_{label}"),
            socket_path,
            _folder: folder,
            _context: context,
        }
    }

    fn sync(&self) -> Vec<u8> {
        self.subscriber.recv_bytes(0).expect("a sync message")
    }

    fn open_segment(&self) -> File {
        let flags = rustix::shm::OFlags::RDONLY;
        let mode = rustix::fs::Mode::empty();
        File::from(rustix::shm::open(self.segment.as_str(), flags, mode).expect("the segment"))
    }

    fn segment_exists(&self) -> bool {
        let flags = rustix::shm::OFlags::RDONLY;
        rustix::shm::open(self.segment.as_str(), flags, rustix::fs::Mode::empty()).is_ok()
    }

    fn feed(&mut self, frame: &[u8]) {
        self.sim
            .0
            .stdin
            .as_mut()
            .expect("a pipe")
            .write_all(frame)
            .expect("a reader");
    }

    fn close_input(&mut self) {
        self.sim.0.stdin = None;
    }
}

fn read(segment: &File, at: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    segment
        .read_exact_at(&mut buffer, at)
        .expect("the region is that large");
    buffer
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[test]
fn labels_are_judged_before_anything_happens() {
    let output = run(SIM, &["--label", "abcdefghijklmnopqrstuvwxy"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--label exceeds 24 bytes"));
    let output = run(SIM, &["--label", "abcdefghijklmnopqrstuvwx"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("--shm-name"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn wrong_arguments_exit_1_or_2() {
    for (arguments, code) in [
        (&["--wat"][..], 1),
        (&["--width"], 1),
        (&["--width", "x"], 1),
        (&["--width", "0"], 2),
        (&["--height", "65536"], 2),
        (&["--pixel-format", "nv12"], 2),
        (&["--metadata", "v3"], 2),
        (&["--metadata", "v1", "--depth"], 2),
        (&["--confidence"], 2),
        (&["--fps", "0"], 2),
        (&["--annexb", "x"], 2),
        (&["--annexb", "missing.h264", "--codec", "h264"], 2),
        (&["--pace"], 2),
        (&["--help"], 0),
    ] {
        assert_eq!(
            run(SIM, arguments).status.code(),
            Some(code),
            "{arguments:?}"
        );
    }
}

// Sizes, offsets and the pattern by contract sections 2, 2.2, 3 and 7.
#[test]
fn ten_frames_of_the_pattern_are_published_in_order() {
    let stage = Stage::open(
        "ten",
        &[
            "--width",
            "64",
            "--height",
            "36",
            "--frames",
            "10",
            "--fps",
            "50",
            "--media-time",
        ],
    );
    let first = stage.sync();
    let segment = stage.open_segment();
    assert_eq!(segment.metadata().expect("stat").size(), 256 + (1 << 20));
    let mode = std::fs::metadata(&stage.socket_path)
        .expect("the socket file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o777);
    let mut messages = vec![first];
    messages.extend((1..10).map(|_| stage.sync()));
    let output = stage.sim.finish();
    assert_eq!(output.status.code(), Some(0));
    for (index, message) in messages.iter().enumerate() {
        assert_eq!(message.len(), 48);
        assert_eq!((message[0], message[2], message[3]), (0x7D, 1, 0));
        assert_eq!(u32_at(message, 4) as usize, index);
        // 50 frames per second from 0.
        assert_eq!(u64_at(message, 16), index as u64 * 20_000_000);
        let label = text(&message[24..]);
        assert!(label.starts_with("ten") && label.ends_with('\0'), "{label}");
    }
    // Garbage, and not the same one each time.
    assert_ne!(messages[0][8..16], messages[1][8..16]);

    let metadata = read(&segment, 0, 256);
    assert_eq!(&metadata[..10], b"CV-MMAP\0\x02\x00");
    assert_eq!(
        (u32_at(&metadata, 0x0C), u64_at(&metadata, 0x10)),
        (9, 180_000_000)
    );
    assert_eq!(u32_at(&metadata, 0x28), 64 * 36 * 3);
    let pixels = read(&segment, 256, 64 * 36 * 3);
    for (y, row) in pixels.chunks(64 * 3).enumerate() {
        for (x, pixel) in row.chunks(3).enumerate() {
            let expected = [x + 27, 2 * y + 45, x / 2 + y / 3 + 63].map(|v| (v % 256) as u8);
            assert_eq!(pixel, expected, "({x}, {y})");
        }
    }
}

#[test]
fn standard_input_is_published_frame_by_frame_with_padding() {
    for (version, stride_of) in [
        ("v1", None),
        ("v2.0", Some(64 + 12)),
        ("v2.1", Some(64 + 12)),
    ] {
        let arguments = [
            "--stdin",
            "--width",
            "3",
            "--height",
            "2",
            "--pixel-format",
            "rgba",
            "--row-padding",
            "5",
            "--metadata",
            version,
        ];
        let mut stage = Stage::open("pipe", &arguments);
        let mut segment = None;
        for id in 0..3_u8 {
            let frame: Vec<u8> = (0..24).map(|i| id * 50 + i).collect();
            let before = testkit::producer::unix_ns();
            stage.feed(&frame);
            let message = stage.sync();
            let after = testkit::producer::unix_ns();
            assert_eq!(u32_at(&message, 4), u32::from(id));
            assert!(
                (before..=after).contains(&u64_at(&message, 16)),
                "the capture time is the system clock's"
            );
            let segment = segment.get_or_insert_with(|| stage.open_segment());
            let metadata = read(segment, 0, 256);
            assert_eq!(metadata[9], u8::from(version == "v2.1"));
            match stride_of {
                Some(at) => assert_eq!(u32_at(&metadata, at), 17),
                None => assert_eq!(u32_at(&metadata, 0x20), 34),
            }
            let rows = read(segment, 256, 34);
            assert_eq!(rows[..12], frame[..12]);
            assert_eq!(rows[17..29], frame[12..]);
        }
        stage.feed(&[0; 7]);
        stage.close_input();
        wait_for_line(&mut stage.stderr, "ended within a frame");
        wait_for_line(&mut stage.stderr, "3 frames published");
        assert_eq!(stage.sim.finish().status.code(), Some(0));
    }
}

#[test]
fn access_units_stand_beside_the_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    for codec in ["h264", "h265"] {
        let clip = support::clip(folder.path(), codec, 12);
        let file = std::fs::read(&clip).expect("the clip");
        let arguments = [
            "--stdin",
            "--width",
            "320",
            "--height",
            "180",
            "--annexb",
            clip.to_str().expect("UTF-8"),
            "--codec",
            codec,
        ];
        let mut stage = Stage::open("units", &arguments);
        let frame = vec![7; 320 * 180 * 3];
        let mut units = Vec::new();
        for id in 0..12 {
            stage.feed(&frame);
            stage.sync();
            let segment = stage.open_segment();
            let metadata = read(&segment, 0, 256);
            // Minor 1; left and encoded plane; codec, Annex B, key frame each 10.
            assert_eq!((metadata[9], metadata[0x20], metadata[0x21]), (1, 2, 9));
            assert_eq!(
                (metadata[0x2D], metadata[0x2E]),
                (if codec == "h264" { 1 } else { 2 }, 1)
            );
            assert_eq!(metadata[0x2F] & 1 == 1, id % 10 == 0, "{codec} frame {id}");
            let descriptor = &metadata[64 + 3 * 24..];
            let size = u32_at(descriptor, 20);
            assert_eq!(u32_at(descriptor, 16), 320 * 180 * 3);
            units.extend(read(&segment, 256 + 320 * 180 * 3, size as usize));
        }
        stage.close_input();
        assert_eq!(stage.sim.finish().status.code(), Some(0));
        assert_eq!(units, file, "{codec}: the units together are the file");
    }
}

#[test]
fn depth_and_confidence_follow_the_picture() {
    let arguments = [
        "--stdin",
        "--width",
        "4",
        "--height",
        "2",
        "--pixel-format",
        "gray",
        "--depth",
        "--confidence",
    ];
    let mut stage = Stage::open("planes", &arguments);
    stage.feed(&[1; 8]);
    stage.sync();
    let segment = stage.open_segment();
    let metadata = read(&segment, 0, 256);
    assert_eq!((metadata[0x20], metadata[0x21], metadata[0x2C]), (3, 7, 1));
    assert_eq!(u32_at(&metadata, 0x28), 8 + 32 + 32);
    let floats: Vec<f32> = read(&segment, 256 + 8, 64)
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect();
    assert!(floats[0].is_nan() && floats[1] == f32::INFINITY && floats[2] == f32::NEG_INFINITY);
    assert_eq!((floats[3], floats[7]), (1003.0, 1004.0));
    assert_eq!((floats[8], floats[15]), (0.0, 4.0));
}

#[test]
fn sigint_removes_the_names_and_sigterm_leaves_them() {
    let stage = Stage::open("int", &["--width", "16", "--height", "16"]);
    stage.sync();
    stage.sim.signal(Signal::INT);
    let (segment, path) = (stage.segment_exists(), stage.socket_path.clone());
    let Stage {
        sim,
        segment: name,
        _folder,
        ..
    } = stage;
    assert_eq!(sim.finish().status.code(), Some(0));
    assert!(!path.exists());
    let gone = rustix::shm::open(
        name.as_str(),
        rustix::shm::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    assert!(gone.is_err(), "it was there before: {segment}");

    let stage = Stage::open("term", &["--width", "16", "--height", "16"]);
    stage.sync();
    stage.sim.signal(Signal::TERM);
    let Stage {
        sim,
        segment: name,
        socket_path,
        _folder,
        ..
    } = stage;
    assert_eq!(sim.finish().status.signal(), Some(15));
    assert!(Path::new(&socket_path).exists());
    let left = rustix::shm::open(
        name.as_str(),
        rustix::shm::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    assert!(left.is_ok(), "the segment stays");
    rustix::shm::unlink(name.as_str()).expect("the segment");
}
