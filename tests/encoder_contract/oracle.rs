//! Who judges: ffmpeg and ffprobe as child processes, and a plain byte-by-byte NAL scan.

use std::fs;
use std::process::{Command, Stdio};

use cvmmap_streamer::encode::{Codec, EncodedPicture};

use super::scene::Yuv;

/// A NAL unit of an Annex B stream, header included.
#[derive(Debug)]
pub struct Nal<'a> {
    codec: Codec,
    pub kind: u8,
    pub bytes: &'a [u8],
}

/// Byte by byte after ITU-T H.264 Annex B: a start code is 0 0 1, zeros in front belong to it.
pub fn nals(codec: Codec, data: &[u8]) -> Vec<Nal<'_>> {
    let codes: Vec<_> = (0..data.len().saturating_sub(2))
        .filter(|at| data[*at..*at + 3] == [0, 0, 1])
        .collect();
    let ends = codes.iter().skip(1).copied().chain([data.len()]);
    let units = codes.iter().zip(ends).map(|(start, end)| {
        let mut bytes = &data[start + 3..end];
        while let [rest @ .., 0] = bytes {
            bytes = rest;
        }
        let kind = match codec {
            Codec::H264 => bytes[0] & 0x1F,
            Codec::H265 => bytes[0] >> 1 & 0x3F,
        };
        Nal { codec, kind, bytes }
    });
    units.collect()
}

impl Nal<'_> {
    pub fn is_slice(&self) -> bool {
        match self.codec {
            Codec::H264 => matches!(self.kind, 1..=5),
            Codec::H265 => self.kind < 32,
        }
    }

    pub fn is_idr(&self) -> bool {
        match self.codec {
            Codec::H264 => self.kind == 5,
            Codec::H265 => matches!(self.kind, 19 | 20),
        }
    }

    pub fn is_parameter_set(&self) -> bool {
        match self.codec {
            Codec::H264 => matches!(self.kind, 7 | 8),
            Codec::H265 => matches!(self.kind, 32..=34),
        }
    }

    pub fn is_delimiter(&self) -> bool {
        self.kind == if self.codec == Codec::H264 { 9 } else { 35 }
    }

    /// `first_mb_in_slice` is 0, or `first_slice_segment_in_pic_flag` is set: the first bit
    /// behind the header in both.
    pub fn starts_picture(&self) -> bool {
        let header = if self.codec == Codec::H264 { 1 } else { 2 };
        self.is_slice() && self.bytes.get(header).is_some_and(|byte| byte & 0x80 != 0)
    }
}

/// ffmpeg and ffprobe of the system.
pub struct Ffmpeg(());

impl Ffmpeg {
    /// `None`, said in a line, where they are missing; in CI that is a failure.
    pub fn find() -> Option<Self> {
        let there = |name: &str| {
            let mut command = Command::new(name);
            command
                .arg("-version")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if there("ffmpeg") && there("ffprobe") {
            return Some(Self(()));
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "ffmpeg or ffprobe is missing"
        );
        println!("SKIP: ffmpeg or ffprobe is missing (apt install ffmpeg)");
        None
    }

    /// Every picture, as coded.
    pub fn decode(&self, codec: Codec, units: &[EncodedPicture], w: u32, h: u32) -> Vec<Yuv> {
        pictures(self.raw(codec, units, "yuv420p", true), w, h)
    }

    /// What the decoder makes of a stream that misses something.
    pub fn decode_lossy(&self, codec: Codec, units: &[EncodedPicture], w: u32, h: u32) -> Vec<Yuv> {
        pictures(self.raw(codec, units, "yuv420p", false), w, h)
    }

    /// Every picture as R, G, B, by the matrix and range that the stream names.
    pub fn decode_rgb(
        &self,
        codec: Codec,
        units: &[EncodedPicture],
        w: u32,
        h: u32,
    ) -> Vec<Vec<u8>> {
        let raw = self.raw(codec, units, "rgb24", true);
        raw.chunks_exact((w * h * 3) as usize)
            .map(<[u8]>::to_vec)
            .collect()
    }

    /// `name=value` lines of ffprobe for the entries asked for.
    pub fn probe(&self, codec: Codec, units: &[EncodedPicture], entries: &str) -> String {
        let file = file(units);
        let output = Command::new("ffprobe")
            .args(["-v", "error", "-f", format(codec), "-show_entries", entries])
            .args(["-of", "default=nokey=0:noprint_wrappers=1"])
            .arg(file.path())
            .output()
            .expect("ffprobe starts");
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "",
            "ffprobe complains"
        );
        String::from_utf8(output.stdout).expect("ffprobe writes text")
    }

    /// `whole`: nothing is missing, so that the decoder has nothing to say.
    fn raw(&self, codec: Codec, units: &[EncodedPicture], pixels: &str, whole: bool) -> Vec<u8> {
        let file = file(units);
        let output = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-threads", "1"])
            .args(if whole { &["-xerror"][..] } else { &[] })
            .args(["-f", format(codec), "-i"])
            .arg(file.path())
            .args([
                "-vsync",
                "passthrough",
                "-sws_flags",
                "accurate_rnd+full_chroma_int",
            ])
            .args(["-f", "rawvideo", "-pix_fmt", pixels, "pipe:1"])
            .output()
            .expect("ffmpeg starts");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ffmpeg fails: {words}");
        assert!(!whole || words.is_empty(), "ffmpeg complains: {words}");
        output.stdout
    }
}

fn pictures(raw: Vec<u8>, w: u32, h: u32) -> Vec<Yuv> {
    let luma = (w * h) as usize;
    assert_eq!(raw.len() % (luma * 3 / 2), 0);
    raw.chunks_exact(luma * 3 / 2)
        .map(|picture| Yuv {
            width: w,
            height: h,
            y: picture[..luma].to_vec(),
            u: picture[luma..luma * 5 / 4].to_vec(),
            v: picture[luma * 5 / 4..].to_vec(),
        })
        .collect()
}

fn file(units: &[EncodedPicture]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let stream: Vec<u8> = units.iter().flat_map(|unit| &unit.data).copied().collect();
    fs::write(file.path(), stream).expect("the temporary file takes the stream");
    file
}

fn format(codec: Codec) -> &'static str {
    match codec {
        Codec::H264 => "h264",
        Codec::H265 => "hevc",
    }
}
