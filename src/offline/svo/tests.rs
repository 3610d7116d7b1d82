use std::path::PathBuf;

use super::*;
use mcap::records::op;

use crate::offline::svo_writer::{self, SvoOptions, write_svo};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/svo2")).join(name)
}

fn manifest() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture("manifest.json")).unwrap()).unwrap()
}

/// A recording of `bytes` on disk, and its folder.
fn opened(bytes: &[u8]) -> (tempfile::TempDir, Result<Recording, SvoError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.svo2");
    std::fs::write(&path, bytes).unwrap();
    let recording = Recording::open(&path);
    (dir, recording)
}

#[test]
fn every_fixture_has_the_frames_times_and_key_frames_of_the_manifest() {
    for (name, expected) in manifest()["files"].as_object().unwrap() {
        let recording = Recording::open(&fixture(name)).unwrap();
        let times: Vec<_> = recording
            .frames()
            .iter()
            .map(|frame| frame.timestamp_ns)
            .collect();
        let listed: Vec<u64> = serde_json::from_value(expected["timestamps_ns"].clone()).unwrap();
        assert_eq!(times, listed, "{name}");
        assert_eq!(recording.kind().name(), expected["codec"], "{name}");
        assert_eq!(
            recording.serial(),
            expected["serial"].as_u64().map(|n| n as u32),
            "{name}"
        );
        assert_eq!(u64::from(recording.fps()), expected["header_fps"], "{name}");
        assert_eq!(recording.warnings(), [""; 0], "{name}");
        let Some(keys) = expected.get("keyframes") else {
            continue;
        };
        let keys: Vec<usize> = serde_json::from_value(keys.clone()).unwrap();
        let frames = recording.frames().iter().enumerate();
        let found: Vec<_> = frames
            .filter(|(_, frame)| frame.key)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(found, keys, "{name}");
    }
}

/// The contract's own measurement, with another reader: 6, 48 and 84 of 90 frames are in the
/// first 10, 50 and 90 % of a file. Here: a message that is whole must be found, whatever cut.
#[test]
fn a_cut_file_gives_every_whole_frame_and_says_so() {
    let bytes = std::fs::read(fixture("h265_svga.svo2")).unwrap();
    let whole = Recording::open(&fixture("h265_svga.svo2")).unwrap();
    let ends: Vec<u64> = whole
        .places
        .iter()
        .map(|(place, _)| match place {
            Place::File { offset, len } => offset + u64::from(*len),
            Place::Packed { .. } => unreachable!("the fixture is not compressed"),
        })
        .collect();
    for percent in [10, 50, 90] {
        let cut = bytes.len() * percent / 100;
        let (_dir, recording) = opened(&bytes[..cut]);
        let recording = recording.unwrap();
        let expected = ends.iter().filter(|end| **end <= cut as u64).count();
        assert!(expected > 0);
        assert_eq!(recording.frames().len(), expected, "{percent} %");
        let warning = format!("recording was not closed; recovered {expected} frames");
        assert_eq!(recording.warnings(), [warning]);
        let mut reader = FrameReader::new(&recording);
        for index in 0..expected {
            assert!(!reader.payload(index).unwrap().is_empty());
        }
    }
}

#[test]
fn a_cut_anywhere_never_panics_and_never_invents_frames() {
    let bytes = std::fs::read(fixture("h265_svga.svo2")).unwrap();
    let mut last = 0;
    for cut in (0..bytes.len()).step_by(499) {
        let (_dir, recording) = opened(&bytes[..cut]);
        let found = recording.map_or(0, |recording| recording.frames().len());
        assert!(
            found >= last && found <= 24,
            "{found} frames in {cut} bytes"
        );
        last = found;
    }
}

#[test]
fn flipped_lengths_in_record_and_chunk_headers_cost_little() {
    let frames: Vec<Vec<u8>> = (0..40_u8)
        .map(|n| {
            let start: &[u8] = if n % 8 == 0 {
                &[0, 0, 0, 1, 0x67, 9, 9, 0, 0, 0, 1, 0x65]
            } else {
                &[0, 0, 0, 1, 0x41]
            };
            [start, &vec![n | 0x80; 2000]].concat()
        })
        .collect();
    let options = SvoOptions {
        chunk_size: 16 << 10,
        ..SvoOptions::default()
    };
    let time = |n: usize| 1_773_806_381_000_000_000 + n as u64 * 33_333_333;
    let bytes = write_svo(
        &options,
        frames
            .iter()
            .enumerate()
            .map(|(n, payload)| (time(n), &payload[..], n % 8 == 0)),
    );
    let (_dir, whole) = opened(&bytes);
    let whole = whole.unwrap();
    assert_eq!((whole.frames().len(), whole.warnings()), (40, &[][..]));
    assert!(whole.chunks.len() > 4, "{} chunks", whole.chunks.len());

    // The length of the third chunk, then the length of the record of frame 20.
    let chunk_length = whole.chunks[2].records as usize - 40 - 8;
    let Place::File { offset, .. } = whole.places[20].0 else {
        panic!("not compressed")
    };
    let record_length = offset as usize - 22 - 8;
    let n_of_frame = offset as usize + 4;
    for (at, lost) in [(chunk_length, 0), (record_length, 1), (n_of_frame + 3, 1)] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        let (_dir, recording) = opened(&damaged);
        let recording = recording.unwrap();
        assert_eq!(recording.frames().len(), 40 - lost, "byte {at}");
        let frames = recording.frames().iter().enumerate();
        let after_loss = frames.filter(|(_, frame)| frame.after_loss);
        let after_loss: Vec<_> = after_loss.map(|(index, _)| index).collect();
        assert_eq!(after_loss, vec![20; lost], "byte {at}");
        assert!(
            recording
                .warnings()
                .iter()
                .any(|text| text.contains("damaged"))
        );
    }
}

#[test]
fn a_flipped_payload_byte_is_found_by_the_checksum_of_its_chunk() {
    let name = fixture("h265_svga.svo2");
    let mut bytes = std::fs::read(&name).unwrap();
    let whole = Recording::open(&name).unwrap();
    let Place::File { offset, len } = whole.places[5].0 else {
        panic!("not compressed")
    };
    bytes[offset as usize + len as usize / 2] ^= 1;
    let (_dir, recording) = opened(&bytes);
    let recording = recording.unwrap();
    let fault = FrameReader::new(&recording).payload(5).unwrap_err();
    assert!(matches!(fault, FrameFault::Checksum), "{fault}");
}

#[test]
fn compressed_chunks_are_read_too() {
    for compression in [mcap::Compression::Lz4, mcap::Compression::Zstd] {
        let options = SvoOptions {
            compression: Some(compression),
            chunk_size: 4 << 10,
            ..SvoOptions::default()
        };
        let payload = |n: u8| vec![0, 0, 0, 1, 0x67, 9, 0, 0, 1, 0x65, 0x80 | n];
        let frames: Vec<_> = (0..30).map(payload).collect();
        let bytes = write_svo(
            &options,
            frames
                .iter()
                .zip(1..)
                .map(|(payload, n)| (n * 40_000_000 + (1 << 60), &payload[..], true)),
        );
        let (_dir, recording) = opened(&bytes);
        let recording = recording.unwrap();
        assert_eq!(recording.frames().len(), 30);
        assert!(recording.chunks.len() > 2);
        let mut reader = FrameReader::new(&recording);
        for (index, payload) in frames.iter().enumerate().rev() {
            assert_eq!(reader.payload(index).unwrap(), payload);
        }
    }
}

/// A record by hand: op code, length, content.
fn record(code: u8, content: &[u8]) -> Vec<u8> {
    let len = (content.len() as u64).to_le_bytes();
    [&[code][..], &len, content].concat()
}

/// A file without chunks: one video channel, as far as its messages.
fn head_without_chunks() -> Vec<u8> {
    let (topic, encoding) = ("Camera_SN7/side_by_side", "zed_sdk_encoded");
    let mut channel = vec![1, 0, 0, 0]; // channel 1, no schema
    for text in [topic, encoding] {
        channel.extend((text.len() as u32).to_le_bytes());
        channel.extend(text.as_bytes());
    }
    channel.extend([0; 4]); // no metadata
    [mcap::MAGIC, &record(op::CHANNEL, &channel)].concat()
}

fn message(index: u32, payload: &[u8]) -> Vec<u8> {
    let time = 1_773_806_381_000_000_000 + u64::from(index) * 33_333_333;
    let mut content = vec![1, 0, 0, 0, 0, 0]; // channel 1, sequence 0
    content.extend(time.to_le_bytes());
    content.extend(time.to_le_bytes());
    content.extend(svo_writer::frame_message(payload, time, index, 0, true));
    record(op::MESSAGE, &content)
}

#[test]
fn records_of_over_four_gigabytes_are_read_or_passed_over() {
    let payload = [0, 0, 0, 1, 0x67, 9, 0, 0, 1, 0x65, 0x80];
    let head = head_without_chunks();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.svo2");
    // Where the length of the second message and that of its payload are.
    let first = message(0, &payload);
    let second = head.len() + first.len();
    for (long_payload, hole, found) in [(None, 5 << 30, 3), (Some(257 << 20), 258 << 20, 2)] {
        let mut start = [&head[..], &first, &message(1, &payload)].concat();
        let len = (start.len() - second - 9) as u64 + hole;
        start[second + 1..][..8].copy_from_slice(&len.to_le_bytes());
        if let Some(n) = long_payload {
            let n: u32 = n;
            let at = second + 9 + 22 + 4;
            start[at..at + 4].copy_from_slice(&n.to_le_bytes());
        }
        // The hole takes no room on the disk.
        let file = File::create(&path).unwrap();
        file.write_all_at(&start, 0).unwrap();
        let behind = start.len() as u64 + hole;
        file.write_all_at(&message(2, &payload), behind).unwrap();
        let recording = Recording::open(&path);
        if long_payload.is_some() {
            // Damage: looking for the next frame in the hole ends at the first one behind it.
            let recording = recording.unwrap();
            assert_eq!(recording.frames().len(), found);
            assert!(recording.frames()[1].after_loss);
            continue;
        }
        let recording = recording.unwrap();
        assert_eq!(recording.frames().len(), found);
        let mut reader = FrameReader::new(&recording);
        for index in 0..found {
            assert_eq!(reader.payload(index).unwrap(), payload);
        }
    }
}

/// An lz4 frame (its specification, version 1.6) of one block that is stored as it is: magic,
/// descriptor `60 40` and its checksum `82`, length with the highest bit set, end mark.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x04, 0x22, 0x4D, 0x18, 0x60, 0x40, 0x82];
    frame.extend((bytes.len() as u32 | 1 << 31).to_le_bytes());
    frame.extend(bytes);
    frame.extend([0; 4]);
    frame
}

#[test]
fn what_a_compressed_chunk_says_of_sizes_is_held_against_its_bytes() {
    let header = |compression: &str, size: u64| mcap::records::ChunkHeader {
        message_start_time: 0,
        message_end_time: 0,
        uncompressed_size: size,
        uncompressed_crc: 0,
        compression: compression.to_owned(),
        compressed_size: 0,
    };
    let unpack = |compression: &str, size: usize, bytes: &[u8]| {
        let mut found = Vec::new();
        let header = header(compression, size as u64);
        let result = chunk::unpack(&header, bytes, |record| found.push(record.opcode()));
        (found, result)
    };
    let good = [message(0, &[1; 30]), message(1, &[2; 30])].concat();
    let (found, result) = unpack("lz4", good.len(), &stored(&good));
    result.unwrap();
    assert_eq!(found, [op::MESSAGE; 2]);
    // The header speaks of more than its bytes can hold.
    for size in [1 << 20, 1 << 30, 1 << 62, usize::MAX] {
        let (found, result) = unpack("lz4", size, &stored(&good));
        let error = result.unwrap_err();
        assert!(
            matches!(error, chunk::PackedError::TooLarge { .. }),
            "{error}"
        );
        assert!(found.is_empty());
    }
    // A record in it does.
    for len in [200_u64 << 20, 1 << 40, u64::MAX] {
        let mut bytes = good.clone();
        bytes[1..9].copy_from_slice(&len.to_le_bytes());
        let (found, result) = unpack("lz4", bytes.len(), &stored(&bytes));
        assert!(result.is_err() && found.is_empty(), "{len}");
    }
    assert!(unpack("lz4", good.len(), &stored(&good)[..40]).1.is_err());
    assert!(unpack("zstd", good.len(), &stored(&good)).1.is_err());
    assert!(unpack("brotli", good.len(), &stored(&good)).1.is_err());
}

#[test]
fn what_is_no_recording_says_what_it_is() {
    let message = |bytes: &[u8]| opened(bytes).1.unwrap_err().to_string();
    assert!(message(b"hello").ends_with("not a ZED recording (first bytes: 68 65 6c 6c 6f)"));
    assert!(message(b"").ends_with("not a ZED recording (first bytes: none)"));
    let text = Recording::open(&fixture("svo1_head.svo"))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("SVO version 1 recordings can only be read with the ZED SDK"),
        "{text}"
    );
    let magic = &std::fs::read(fixture("h265_svga.svo2")).unwrap()[..8];
    assert!(message(magic).ends_with("no frame that can be read"));

    let mono = SvoOptions {
        video_topic: "left",
        ..SvoOptions::default()
    };
    let payload = [0, 0, 0, 1, 0x67, 9];
    let bytes = write_svo(&mono, [(1 << 60, &payload[..], true)]);
    assert!(message(&bytes).contains("its topics are: Camera_SN31000009/left (zed_sdk_encoded)"));
    let bytes = write_svo(&SvoOptions::default(), []);
    assert!(message(&bytes).ends_with("no frame that can be read"));
    let secret = *b"\x01\x02encrypted bytes";
    let bytes = write_svo(&SvoOptions::default(), [(1 << 60, &secret[..], true)]);
    let text = message(&bytes);
    assert!(
        text.ends_with("(first bytes: 01 02 65 6e 63 72 79 70 74 65 64 20 62 79 74 65)"),
        "{text}"
    );
}

#[test]
fn noise_behind_the_magic_is_refused() {
    let mut noise = mcap::MAGIC.to_vec();
    let mut state = 0x2545_F491_u32;
    for _ in 0..200_000 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        noise.push(state as u8);
    }
    assert!(opened(&noise).1.is_err());
}

#[test]
fn decoding_starts_at_the_last_key_frame_or_at_the_very_start() {
    let recording = Recording::open(&fixture("h265_mid_gop_start.svo2")).unwrap();
    let starts = [0, 6, 7, 18, 19, 29].map(|index| recording.decode_start(index));
    assert_eq!(starts, [0, 0, 7, 7, 19, 19]);
    assert_eq!(
        (
            recording.next_key(0),
            recording.next_key(7),
            recording.next_key(19)
        ),
        (Some(7), Some(19), None)
    );
}

/// The stream has recovery points at frames 15, 35 and 55, 19 frames ahead each; that the first clean frame is 34
/// is also what the manifest says.
#[test]
fn a_refreshed_stream_is_whole_again_where_its_recovery_points_say() {
    let recording = Recording::open(&fixture("h264_intra_refresh_no_idr.svo2")).unwrap();
    let frames = recording.frames().iter().enumerate();
    let points: Vec<_> = frames
        .filter_map(|(at, frame)| Some((at, frame.recovery?)))
        .collect();
    assert_eq!(points, [(15, 19), (35, 19), (55, 19)]);
    let whole = [0, 15, 16, 35, 36].map(|from| recording.recovered(from));
    assert_eq!(whole, [Some(34), Some(34), Some(54), Some(54), None]);
    let keyed = Recording::open(&fixture("h264_svga.svo2")).unwrap();
    assert_eq!(keyed.recovered(0), None);
}
