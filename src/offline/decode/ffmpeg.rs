//! Lossless H.264 (High 4:4:4 Predictive) through an `ffmpeg` process on `PATH`, which is asked
//! for raw 4:2:0 pictures. Nothing of it is linked.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::{DecodeError, DecodedPicture, Pending, PictureDecoder, Pixels};
use crate::offline::picture::Yuv420;

pub struct FfmpegDecoder {
    child: Child,
    input: Option<ChildStdin>,
    pictures: mpsc::Receiver<Yuv420>,
    reader: Option<JoinHandle<()>>,
    pending: Pending,
}

impl FfmpegDecoder {
    /// # Errors
    ///
    /// If no `ffmpeg` can be started; `index` is the frame that asked for it.
    pub fn open(index: usize) -> Result<Self, DecodeError> {
        let unsupported = |detail: String| DecodeError::Unsupported { index, detail };
        // YUV4MPEG2 tells the picture size in front of the first picture. Without the flag only
        // the pictures behind the first recovery point come out.
        let mut child = Command::new("ffmpeg")
            .args(["-hide_banner", "-loglevel", "error", "-flags", "+output_corrupt"])
            .args(["-f", "h264", "-i", "pipe:0", "-fps_mode", "passthrough"])
            .args(["-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                unsupported(format!(
                    "lossless H.264 (High 4:4:4 Predictive) needs the program ffmpeg on PATH: {error}"
                ))
            })?;
        let mut output = child.stdout.take().expect("stdout is piped");
        let (sender, pictures) = mpsc::sync_channel(2);
        let reader = std::thread::Builder::new()
            .name("ffmpeg".to_owned())
            .spawn(move || {
                let mut stream = std::io::BufReader::new(&mut output);
                let Some(size) = read_header(&mut stream) else {
                    return;
                };
                while let Some(picture) = read_picture(&mut stream, size) {
                    if sender.send(picture).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| unsupported(format!("no thread for ffmpeg: {error}")))?;
        Ok(Self {
            input: child.stdin.take(),
            child,
            pictures,
            reader: Some(reader),
            pending: Pending::default(),
        })
    }

    fn give(&mut self, picture: Yuv420, out: &mut VecDeque<DecodedPicture>) {
        if let Some(index) = self.pending.pop() {
            out.push_back(DecodedPicture {
                index,
                pixels: Pixels::Host(picture),
            });
        }
    }
}

impl PictureDecoder for FfmpegDecoder {
    fn decode(
        &mut self,
        index: usize,
        payload: &[u8],
        out: &mut VecDeque<DecodedPicture>,
    ) -> Result<(), DecodeError> {
        self.pending.push(index);
        let Some(input) = &mut self.input else {
            let detail = "ffmpeg has ended".to_owned();
            return Err(DecodeError::Unsupported { index, detail });
        };
        // Written in pieces, and the pictures taken in between: the process stops reading when
        // nobody takes what it writes.
        let mut result = Ok(());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| input.write_all(payload));
            while !writer.is_finished() {
                match self
                    .pictures
                    .recv_timeout(std::time::Duration::from_millis(2))
                {
                    Ok(picture) => {
                        if let Some(index) = self.pending.pop() {
                            out.push_back(DecodedPicture {
                                index,
                                pixels: Pixels::Host(picture),
                            });
                        }
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                }
            }
            result = writer.join().expect("writing does not panic");
        });
        while let Ok(picture) = self.pictures.try_recv() {
            self.give(picture, out);
        }
        result.map_err(|error| DecodeError::Unsupported {
            index,
            detail: format!("ffmpeg: {error}"),
        })
    }

    fn flush(&mut self, out: &mut VecDeque<DecodedPicture>) -> Result<(), DecodeError> {
        drop(self.input.take());
        while let Ok(picture) = self.pictures.recv() {
            self.give(picture, out);
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = self.child.wait();
        self.pending.clear();
        Ok(())
    }
}

impl Drop for FfmpegDecoder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The stream header of YUV4MPEG2: `YUV4MPEG2 W1920 H600 ...` up to a line feed.
fn read_header(stream: &mut impl Read) -> Option<(usize, usize)> {
    let line = read_line(stream)?;
    let field = |letter: char| {
        line.split(' ')
            .find_map(|word| word.strip_prefix(letter)?.parse().ok())
    };
    let (width, height): (usize, usize) = (field('W')?, field('H')?);
    let sound = |side: usize| (1..=LARGEST_SIDE).contains(&side);
    (line.starts_with("YUV4MPEG2") && sound(width) && sound(height)).then_some((width, height))
}

/// One `FRAME` line and the planes behind it.
fn read_picture(stream: &mut impl Read, (width, height): (usize, usize)) -> Option<Yuv420> {
    if !read_line(stream)?.starts_with("FRAME") {
        return None;
    }
    let mut picture = Yuv420::black(width, height);
    stream.read_exact(&mut picture.y).ok()?;
    stream.read_exact(&mut picture.u).ok()?;
    stream.read_exact(&mut picture.v).ok()?;
    Some(picture)
}

fn read_line(stream: &mut impl Read) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 256 {
        stream.read_exact(&mut byte).ok()?;
        if byte[0] == b'\n' {
            return String::from_utf8(line).ok();
        }
        line.push(byte[0]);
    }
    None
}

const LARGEST_SIDE: usize = 16384;
