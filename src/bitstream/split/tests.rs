use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn split(codec: Codec, data: &[u8]) -> Vec<&[u8]> {
    access_units(codec, data)
        .map(|range| &data[range])
        .collect()
}

#[test]
fn h264_access_units_begin_where_the_standard_says() {
    let sps: &[u8] = &[0, 0, 0, 1, 0x67, 1];
    let pps: &[u8] = &[0, 0, 1, 0x68, 1];
    let sei: &[u8] = &[0, 0, 1, 0x06, 5];
    let idr: &[u8] = &[0, 0, 1, 0x65, 0x88];
    let idr_more: &[u8] = &[0, 0, 1, 0x65, 0x41];
    let first: &[u8] = &[0, 0, 0, 1, 0x41, 0x9A];
    let more: &[u8] = &[0, 0, 1, 0x41, 0x22];
    let aud: &[u8] = &[0, 0, 0, 1, 0x09, 0xF0];
    let units = [
        [sps, pps, sei, idr, idr_more].concat(),
        [first, more].concat(),
        [sei, first].concat(),
        [aud, first, more].concat(),
    ];
    assert_eq!(split(Codec::H264, &units.concat()), units);
}

#[test]
fn h264_data_partitions_and_end_of_sequence_stay_with_their_picture() {
    let a: &[u8] = &[0, 0, 1, 0x42, 0x80];
    let b: &[u8] = &[0, 0, 1, 0x43, 0x80];
    let c: &[u8] = &[0, 0, 1, 0x44, 0x80];
    let end: &[u8] = &[0, 0, 1, 0x0A];
    let units = [[a, b, c, end].concat(), [a].concat()];
    assert_eq!(split(Codec::H264, &units.concat()), units);
}

#[test]
fn h265_access_units_begin_where_the_standard_says() {
    let nal = |kind: u8, rest: &[u8]| [&[0, 0, 1, kind << 1, 1], rest].concat();
    let (vps, sps, pps) = (nal(32, &[1]), nal(33, &[1]), nal(34, &[1]));
    let (idr, more) = (nal(20, &[0xA0]), nal(20, &[0x20]));
    let (trail, suffix) = (nal(1, &[0xD0]), nal(40, &[1]));
    let (prefix, aud) = (nal(39, &[1]), nal(35, &[0x50]));
    // the same slice of an enhancement layer: nuh_layer_id 1
    let layer = vec![0, 0, 1, 1 << 1, 9, 0xD0];
    let units = [
        [vps, sps, pps, idr, more].concat(),
        [trail.clone(), layer, suffix].concat(),
        [prefix, trail.clone()].concat(),
        [aud, trail].concat(),
    ];
    assert_eq!(split(Codec::H265, &units.concat()), units);
}

#[test]
fn what_has_no_picture_is_one_piece() {
    assert_eq!(split(Codec::H264, &[]), [&[0_u8; 0]; 0]);
    assert_eq!(split(Codec::H264, &[1, 2, 3]), [&[1_u8, 2, 3][..]]);
    let sets = [0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 2];
    assert_eq!(split(Codec::H264, &sets), [&sets[..]]);
}

/// ffmpeg makes the stream, ffprobe says where its packets are.
#[test]
fn ffprobe_finds_the_same_access_units() {
    let streams: [(&str, Codec, &[&str]); 7] = [
        ("x264", Codec::H264, &["-c:v", "libx264", "-bf", "3"]),
        (
            "x264 with delimiters and slices",
            Codec::H264,
            &["-c:v", "libx264", "-x264-params", "aud=1:slices=4:keyint=7"],
        ),
        (
            "x264 without repeated headers",
            Codec::H264,
            &[
                "-c:v",
                "libx264",
                "-tune",
                "zerolatency",
                "-x264-params",
                "repeat-headers=0",
            ],
        ),
        (
            "x264 in baseline with intra refresh",
            Codec::H264,
            &[
                "-c:v",
                "libx264",
                "-profile:v",
                "baseline",
                "-x264-params",
                "intra-refresh=1",
            ],
        ),
        (
            "x265",
            Codec::H265,
            &["-c:v", "libx265", "-x265-params", "log-level=none"],
        ),
        (
            "x265 with delimiters, slices and hashes",
            Codec::H265,
            &[
                "-c:v",
                "libx265",
                "-x265-params",
                "log-level=none:aud=1:slices=3:hash=1:keyint=9:hrd=1:bitrate=500:vbv-maxrate=500:vbv-bufsize=500",
            ],
        ),
        (
            "x265 low latency",
            Codec::H265,
            &[
                "-c:v",
                "libx265",
                "-tune",
                "zerolatency",
                "-x265-params",
                "log-level=none",
            ],
        ),
    ];
    for (name, codec, options) in streams {
        let format = match codec {
            Codec::H264 => "h264",
            Codec::H265 => "hevc",
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-y", "-f", "lavfi"])
            .args(["-i", "testsrc2=size=320x240:rate=25:duration=2"])
            .args(options)
            .args(["-pix_fmt", "yuv420p", "-f", format])
            .arg(file.path())
            .stderr(Stdio::null())
            .status();
        if made.is_err() {
            assert!(std::env::var_os("CI").is_none(), "ffmpeg is missing");
            println!("SKIP: ffmpeg is missing (apt install ffmpeg)");
            return;
        }
        assert!(made.unwrap().success(), "{name}: ffmpeg fails");
        let probed = Command::new("ffprobe")
            .args(["-v", "error", "-f", format, "-show_entries", "packet=size"])
            .args(["-of", "csv=p=0"])
            .arg(file.path())
            .output()
            .unwrap();
        let text = String::from_utf8(probed.stdout).unwrap();
        let sizes = text
            .lines()
            .map(|line| line.trim_matches(',').parse::<usize>().unwrap());
        let mut end = 0;
        let wanted: Vec<_> = sizes
            .map(|size| {
                end += size;
                end
            })
            .collect();
        assert_eq!(wanted.len(), 50, "{name}");
        let data = std::fs::read(file.path()).unwrap();
        let found: Vec<_> = access_units(codec, &data)
            .map(|range| match codec {
                // ffmpeg's H.265 parser leaves the first zero of a four-byte start code with the
                // access unit before; Annex B.2.1 has it with the one behind (`zero_byte`).
                Codec::H265 if data[range.end..].starts_with(&[0, 0, 0, 1]) => range.end + 1,
                _ => range.end,
            })
            .collect();
        assert_eq!(found, wanted, "{name}");
    }
}

proptest! {
    /// Pieces that are likely to be something: start codes, NAL headers, noise.
    #[test]
    fn a_stream_in_pieces_splits_like_the_whole(
        parts in prop::collection::vec(
            prop_oneof![
                Just(vec![0, 0, 1]),
                Just(vec![0, 0, 0, 1]),
                Just(vec![0, 0, 1, 0x65, 0x88]),
                Just(vec![0, 0, 1, 0x41, 0x9A]),
                Just(vec![0, 0, 1, 0x02, 0x01, 0xD0]),
                Just(vec![0, 0]),
                prop::collection::vec(any::<u8>(), 0..6),
            ],
            0..40,
        ),
        step in 1_usize..9,
        h265: bool,
    ) {
        let codec = if h265 { Codec::H265 } else { Codec::H264 };
        let data = parts.concat();
        let whole: Vec<_> = access_units(codec, &data).collect();
        // all bytes, none twice
        let mut at = 0;
        for range in &whole {
            prop_assert_eq!(range.start, at);
            prop_assert!(range.end > at);
            at = range.end;
        }
        prop_assert_eq!(at, data.len());

        let mut splitter = Splitter::new(codec);
        let (mut start, mut there) = (0, 0);
        let mut pieces = Vec::new();
        loop {
            let last = there == data.len();
            match splitter.next_len(&data[start..there], last) {
                Some(len) => {
                    pieces.push(start..start + len);
                    start += len;
                }
                None if last => break,
                None => there = (there + step).min(data.len()),
            }
        }
        prop_assert_eq!(pieces, whole);
    }
}
