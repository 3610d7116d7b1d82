use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::offline::svo::{FrameReader, Recording};

const BT709: Colour = Colour {
    full_range: false,
    primaries: 1,
    transfer: 1,
    matrix: 1,
};

/// The access units of a recording, as if an encoder had just made them.
fn pictures(name: &str) -> (Codec, Vec<EncodedPicture>) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/svo2")).join(name);
    let recording = Recording::open(&path).unwrap();
    let codec = match recording.kind().name() {
        "h264" => Codec::H264,
        _ => Codec::H265,
    };
    let mut reader = FrameReader::new(&recording);
    let first = recording.frames()[0].timestamp_ns;
    let pictures = recording.frames().iter().enumerate().map(|(index, frame)| {
        let time = MediaTime((frame.timestamp_ns - first) as i64);
        EncodedPicture {
            data: reader.payload(index).unwrap().to_vec(),
            pts: time,
            dts: time,
            key: frame.key,
            ..EncodedPicture::default()
        }
    });
    (codec, pictures.collect())
}

fn options(codec: Codec, pictures: usize, reordered: bool) -> Mp4Options {
    Mp4Options {
        codec,
        colour: BT709,
        pictures,
        reordered,
        period: Duration::from_nanos(33_333_333),
        created: Duration::ZERO,
    }
}

fn written(name: &str, path: &Path) -> usize {
    let (codec, pictures) = pictures(name);
    let file = File::create(path).unwrap();
    let mut writer = Mp4Writer::new(file, options(codec, pictures.len(), false)).unwrap();
    for picture in &pictures {
        writer.push(picture).unwrap();
    }
    writer.finish().unwrap() as usize
}

/// What `ffprobe` prints; `None` where it is not installed.
fn ffprobe(arguments: &[&str], path: &Path) -> Option<String> {
    let output = match Command::new("ffprobe")
        .arg("-v")
        .arg("warning")
        .args(arguments)
        .arg(path)
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            eprintln!("NOT CHECKED: ffprobe cannot be run: {error}");
            return None;
        }
    };
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "",
        "{}",
        path.display()
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn another_program_reads_every_frame_at_its_time_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let show = ["-of", "csv=p=0", "-show_entries"];
    for (name, tag) in [("h265_svga.svo2", "hvc1"), ("h264_svga.svo2", "avc1")] {
        let path = dir.path().join("a.mp4");
        assert_eq!(written(name, &path), 24);
        let Some(stream) = ffprobe(
            &[
                &show[..],
                &["stream=codec_tag_string,width,height,nb_frames,color_range"],
            ]
            .concat(),
            &path,
        ) else {
            return;
        };
        assert_eq!(stream.trim(), format!("{tag},1920,600,tv,24"), "{name}");
        let frames = ffprobe(&[&show[..], &["frame=pts,pkt_duration"]].concat(), &path).unwrap();
        let frames: Vec<_> = frames.lines().collect();
        assert_eq!(frames.len(), 24, "{name}");
        assert_eq!(frames[..3], ["0,3000", "3000,3000", "6000,3000"], "{name}");
    }
}

#[test]
fn the_tables_stand_in_front_of_the_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mp4");
    written("h265_svga.svo2", &path);
    let bytes = std::fs::read(&path).unwrap();
    let (mut at, mut names) = (0, Vec::new());
    while at < bytes.len() {
        let mut size = u64::from(u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()));
        if size == 1 {
            size = u64::from_be_bytes(bytes[at + 8..at + 16].try_into().unwrap());
        }
        names.push(String::from_utf8_lossy(&bytes[at + 4..at + 8]).into_owned());
        assert!(size >= 8);
        at += size as usize;
    }
    assert_eq!(at, bytes.len());
    let place = |name: &str| names.iter().position(|other| other == name).unwrap();
    assert!(
        place("ftyp") == 0 && place("moov") < place("mdat"),
        "{names:?}"
    );
    // Parameter sets are in the sample entry alone.
    let (_, pictures) = pictures("h265_svga.svo2");
    let sps = nal_ranges(&pictures[0].data).nth(1).unwrap();
    let sps = &pictures[0].data[sps];
    assert_eq!(memchr::memmem::find_iter(&bytes, sps).count(), 1);
}

#[test]
fn reordered_pictures_are_shown_from_zero_in_their_own_times() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mp4");
    let (codec, pictures) = pictures("h264_svga.svo2");
    let file = File::create(&path).unwrap();
    let mut writer = Mp4Writer::new(file, options(codec, 4, true)).unwrap();
    // I P B B P B B P in coding order, decoding one period ahead: the times are what matters.
    let period = 33_333_333;
    for (n, pts) in [0, 3, 1, 2, 6, 4, 5, 7].into_iter().enumerate() {
        let picture = EncodedPicture {
            data: pictures[n].data.clone(),
            pts: MediaTime(pts * period),
            dts: MediaTime((n as i64 - 1) * period),
            key: n == 0,
            ..EncodedPicture::default()
        };
        writer.push(&picture).unwrap();
    }
    writer.finish().unwrap();
    let Some(packets) = ffprobe(
        &["-of", "csv=p=0", "-show_entries", "packet=pts,dts"],
        &path,
    ) else {
        return;
    };
    let shown: Vec<_> = packets
        .lines()
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(
        shown,
        [
            "0", "9000", "3000", "6000", "18000", "12000", "15000", "21000"
        ],
        "{packets}"
    );
}

#[test]
fn rounding_does_not_add_up() {
    let mut clock = DecodeClock::default();
    let places: Vec<_> = (0..30_001)
        .map(|n| clock.place(MediaTime(n * 33_333_333 + 777)))
        .collect();
    // 30000 periods of 33_333_333 ns are 999.99999 s, 89999999.1 ticks.
    assert_eq!(places[30_000], 89_999_999);
    assert!(places.is_sorted_by(|a, b| a < b));
    assert_eq!(clock.place(MediaTime(0)), 90_000_000);
}

#[test]
fn nothing_to_write_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    assert!(
        Mp4Writer::new(file, options(Codec::H264, 10, false))
            .unwrap()
            .finish()
            .is_err()
    );
}
