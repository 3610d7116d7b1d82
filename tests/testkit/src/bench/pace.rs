//! The camera: a raw clip, one frame each interval, whatever becomes of the frames before.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ChildStdin;
use std::time::{Duration, Instant};

use super::Given;
use crate::producer::{Frame, Producer, unix_ns};

/// Raw frames of one size, played to and fro so that a short clip has no cut in it.
#[derive(Debug)]
pub struct Clip {
    file: File,
    frame_bytes: usize,
    frames: u64,
}

impl Clip {
    /// # Errors
    ///
    /// If the file cannot be opened or holds less than a frame.
    pub fn open(path: &Path, frame_bytes: usize) -> io::Result<Self> {
        let file = File::open(path)?;
        let frames = file.metadata()?.len() / frame_bytes as u64;
        if frames == 0 {
            return Err(io::Error::other("the clip holds no frame"));
        }
        Ok(Clip {
            file,
            frame_bytes,
            frames,
        })
    }

    /// # Errors
    ///
    /// The file's.
    pub fn read(&self, number: u64, frame: &mut Vec<u8>) -> io::Result<()> {
        frame.resize(self.frame_bytes, 0);
        let at = to_and_fro(number, self.frames) * self.frame_bytes as u64;
        self.file.read_exact_at(frame, at)
    }
}

/// `0 1 2 1 0 1 2` for three frames.
fn to_and_fro(number: u64, frames: u64) -> u64 {
    let round = (2 * (frames - 1)).max(1);
    let within = number % round;
    within.min(round - within)
}

/// Where the frames go.
pub enum Destination {
    Shm(Box<Producer>),
    Pipe(ChildStdin),
}

impl Destination {
    fn give(&mut self, number: u32, frame: &[u8], times: &mut Given) -> io::Result<()> {
        match self {
            Destination::Pipe(pipe) => {
                pipe.write_all(frame)?;
                times.done_ns = unix_ns();
                Ok(())
            }
            Destination::Shm(producer) => {
                let frame = Frame {
                    id: number,
                    capture_ns: times.begun_ns,
                    left: frame,
                    depth: &[],
                    confidence: &[],
                    encoded: None,
                };
                producer.describe_frame(&frame).map_err(io::Error::other)?;
                producer.write_payload(&frame).map_err(io::Error::other)?;
                producer.write_metadata();
                times.done_ns = unix_ns();
                producer.announce().map_err(io::Error::other)
            }
        }
    }
}

/// Gives `count` frames. The clock starts when the first one was taken, which a program that is
/// still starting up delays.
///
/// # Errors
///
/// The clip's or the program's: a broken pipe is a program that ended.
pub fn run(
    clip: &Clip,
    into: &mut Destination,
    count: u32,
    interval: Duration,
) -> io::Result<Vec<Given>> {
    let mut given = Vec::with_capacity(count as usize);
    let mut buffer = Vec::new();
    let mut start = (Instant::now(), unix_ns());
    for number in 0..count {
        // Ahead of its time: reading the clip is no part of anything.
        clip.read(number.into(), &mut buffer)?;
        let offset = interval * number;
        std::thread::sleep((start.0 + offset).saturating_duration_since(Instant::now()));
        let mut times = Given {
            due_ns: start.1 + offset.as_nanos() as u64,
            begun_ns: unix_ns(),
            done_ns: 0,
        };
        into.give(number, &buffer, &mut times)?;
        given.push(times);
        if number == 0 {
            start = (Instant::now(), unix_ns());
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::to_and_fro;

    #[test]
    fn a_clip_runs_to_its_end_and_back() {
        let order: Vec<_> = (0..7).map(|n| to_and_fro(n, 3)).collect();
        assert_eq!(order, [0, 1, 2, 1, 0, 1, 2]);
        assert_eq!(to_and_fro(5, 1), 0);
    }
}
