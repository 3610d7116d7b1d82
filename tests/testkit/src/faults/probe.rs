//! An RTP receiver that remembers what came when, and has the pictures decoded by an independent decoder.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::code::{self, Seen};
use crate::bitstream::Codec;
use crate::producer::unix_ns;
use crate::rtp::header;
use crate::rtp::receiver::{Config, Receiver};
use crate::rtp::socket::Sockets;
use crate::stamp;
use crate::worker::Worker;

/// One whole access unit.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    pub at: Instant,
    pub id: Option<u32>,
    pub key: bool,
    /// From capture to its last packet.
    pub latency: Option<Duration>,
}

/// What the receiver has counted when it was stopped.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub units: u64,
    pub damaged: u64,
    pub lost: u64,
    pub times_going_back: u64,
    pub violations: Vec<String>,
    /// Packets that the receiver's own socket dropped.
    pub overflows: u64,
}

/// Receives at a port of its own until it is dropped.
#[derive(Debug)]
pub struct Probe {
    pub port: u16,
    dump: PathBuf,
    units: Arc<Mutex<Vec<Unit>>>,
    counts: Arc<Mutex<Counts>>,
    /// Until it is stopped.
    thread: Option<Worker<io::Result<()>>>,
}

impl Probe {
    /// # Errors
    ///
    /// If no port or file is to be had.
    pub fn start(port: u16, dump: PathBuf) -> io::Result<Self> {
        let sockets = Sockets::open(IpAddr::V4(Ipv4Addr::LOCALHOST), port, false)?;
        let port = sockets.port()?;
        let units = Arc::<Mutex<Vec<Unit>>>::default();
        let counts = Arc::<Mutex<Counts>>::default();
        let file = BufWriter::new(File::create(&dump)?);
        let thread = Worker::start({
            let (units, counts) = (Arc::clone(&units), Arc::clone(&counts));
            move |stop| receive(sockets, file, &units, &counts, stop)
        });
        Ok(Probe {
            port,
            dump,
            units,
            counts,
            thread: Some(thread),
        })
    }

    pub fn units(&self) -> Vec<Unit> {
        lock(&self.units).clone()
    }

    pub fn count(&self) -> usize {
        lock(&self.units).len()
    }

    /// Stops, and gives what was counted.
    ///
    /// # Errors
    ///
    /// What ended it early: a socket's or the dump's.
    pub fn stop(&mut self) -> io::Result<Counts> {
        if let Some(thread) = self.thread.take() {
            let panicked = |_| Err(io::Error::other("the receiver panicked"));
            thread.end().unwrap_or_else(panicked)?;
        }
        Ok(lock(&self.counts).clone())
    }

    /// The longest time without a unit between two instants, both counted as units.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        longest_gap(&self.units(), from, to)
    }

    /// From `instant` to the first unit of a picture that was taken after it.
    pub fn recovery_after(&self, instant: Instant) -> Option<Duration> {
        let units = lock(&self.units);
        let next = units
            .iter()
            .find(|unit| unit.at > instant + unit.latency.unwrap_or_default())?;
        Some(next.at - instant)
    }

    /// Decodes what came, stopped before, and compares each picture with its id.
    ///
    /// # Errors
    ///
    /// If the decoder cannot be run.
    pub fn verify(&self, width: usize, height: usize) -> io::Result<Verified> {
        let ids: Vec<u32> = lock(&self.units).iter().filter_map(|u| u.id).collect();
        verify(&self.dump, &ids, width, height)
    }
}

fn longest_gap(units: &[Unit], from: Instant, to: Instant) -> Duration {
    let inside = units
        .iter()
        .map(|u| u.at)
        .filter(|at| *at > from && *at < to);
    let (mut last, mut longest) = (from, Duration::ZERO);
    for at in inside.chain([to]) {
        longest = longest.max(at.saturating_duration_since(last));
        last = at;
    }
    longest
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(
    mut sockets: Sockets,
    mut file: BufWriter<File>,
    units: &Mutex<Vec<Unit>>,
    counts: &Mutex<Counts>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut receiver = Receiver::new(Config {
        payload_type: 96,
        codec: Some(Codec::H264),
        parameter_sets: Vec::new(),
        monotonic: true,
        strict: false,
    });
    // Relaxed: the flag guards no other data.
    while !stop.load(Ordering::Relaxed) {
        sockets.wait(Duration::from_millis(50))?;
        while let Some((arrival, bytes)) = sockets.receive_rtcp()? {
            receiver.rtcp(bytes, arrival.unix_ns);
        }
        while let Some((arrival, bytes)) = sockets.receive_rtp()? {
            if header::is_rtcp(bytes) {
                receiver.rtcp(bytes, arrival.unix_ns);
                continue;
            }
            let mut failure = None;
            receiver.rtp(bytes, arrival.unix_ns, &mut |codec, unit| {
                // The kernel's stamp, told as an instant: this thread may be late.
                let ago = Duration::from_nanos(unix_ns().saturating_sub(unit.last_arrival_ns));
                let stamp = unit.nals.iter().find_map(|nal| stamp::find(codec, nal));
                lock(units).push(Unit {
                    at: Instant::now().checked_sub(ago).unwrap_or_else(Instant::now),
                    id: stamp.map(|stamp| stamp.frame_id),
                    key: unit.is_key_frame(codec),
                    latency: stamp
                        .and_then(|stamp| stamp.capture_ns)
                        .map(|ns| Duration::from_nanos(unit.last_arrival_ns.saturating_sub(ns))),
                });
                for nal in &unit.nals {
                    let written = file
                        .write_all(&[0, 0, 0, 1])
                        .and_then(|()| file.write_all(nal));
                    failure = failure.take().or(written.err());
                }
            });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        let counters = receiver.counters();
        *lock(counts) = Counts {
            units: counters.frames,
            damaged: counters.damaged_frames,
            lost: receiver.lost(),
            times_going_back: counters.times_going_back,
            violations: receiver.violations().texts.clone(),
            overflows: u64::from(sockets.overflows()),
        };
    }
    file.flush()
}

/// Pictures against the ids that were sent with them.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    pub pictures: u64,
    /// Show their own number in every row.
    pub right: u64,
    pub torn: Vec<Mixed>,
    /// Show another frame's number.
    pub wrong: u64,
    pub unreadable: u64,
    /// Units without a picture.
    pub undecoded: u64,
    /// Right ones in a row at the end.
    pub last_right: u64,
    /// Lines that the decoder wrote.
    pub complaints: u64,
    /// Of each unit, whether its picture is right; `None` without one.
    pub units: Vec<Option<bool>>,
}

/// A picture that holds rows of two frames.
#[derive(Debug, Clone)]
pub struct Mixed {
    /// The frame that it was sent as.
    pub id: u32,
    pub text: String,
}

/// Decodes an H.264 elementary stream and reads the number of every picture.
///
/// # Errors
///
/// If the decoder cannot be run.
pub fn verify(stream: &Path, ids: &[u32], width: usize, height: usize) -> io::Result<Verified> {
    let complaints = stream.with_extension("decoder.log");
    let mut decoder = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-f", "h264", "-i"])
        .arg(stream)
        .args(["-vsync", "passthrough", "-s"])
        .arg(format!("{width}x{height}"))
        .args(["-f", "rawvideo", "-pix_fmt", "gray", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&complaints)?)
        .spawn()?;
    let mut output = decoder.stdout.take().expect("a pipe was asked for");
    let mut picture = vec![0; width * height];
    let mut pictures = Vec::new();
    while output.read_exact(&mut picture).is_ok() {
        pictures.push(code::read(&picture, width));
    }
    decoder.wait()?;
    let mut verified = compare(&pictures, ids);
    verified.complaints = std::fs::read_to_string(&complaints)?.lines().count() as u64;
    Ok(verified)
}

/// The ids in a dump, from the stamps that travel in it: of a run that was stopped before it looked at its pictures.
///
/// # Errors
///
/// If it cannot be read.
pub fn ids_of(dump: &Path) -> io::Result<Vec<u32>> {
    let bytes = std::fs::read(dump)?;
    let starts: Vec<usize> = bytes
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == [0, 0, 0, 1])
        .map(|(at, _)| at)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    Ok(starts
        .iter()
        .zip(ends)
        .filter_map(|(start, end)| stamp::find(Codec::H264, &bytes[start + 4..end]))
        .map(|stamp| stamp.frame_id)
        .collect())
}

/// Each picture with its id. Where the decoder gave fewer pictures than there were units, as many are passed over.
fn compare(pictures: &[Seen], ids: &[u32]) -> Verified {
    let mut verified = Verified {
        pictures: pictures.len() as u64,
        units: vec![None; ids.len()],
        ..Verified::default()
    };
    let mut spare = ids.len().saturating_sub(pictures.len());
    verified.undecoded = spare as u64;
    let from_the_end = pictures.iter().rev().zip(ids.iter().rev());
    let right = from_the_end.take_while(|(seen, id)| **seen == Seen::Whole(**id as u8));
    verified.last_right = right.count() as u64;
    let mut next = 0;
    for seen in pictures {
        let Some(&id) = ids.get(next) else {
            verified.wrong += 1;
            continue;
        };
        let right = verified.right;
        match *seen {
            Seen::Whole(number) if number == id as u8 => verified.right += 1,
            Seen::Whole(number) => {
                let rest = &ids[next..];
                let ahead = rest
                    .iter()
                    .take(spare + 1)
                    .position(|id| *id as u8 == number);
                match ahead {
                    Some(skipped) => {
                        spare -= skipped;
                        next += skipped;
                        verified.right += 1;
                    }
                    // The next frame's picture under this one's number is the whole of a torn read.
                    None if number == (id as u8).wrapping_add(1) => verified.torn.push(Mixed {
                        id,
                        text: format!("frame {id} ({}): {number} in every row", id as u8),
                    }),
                    None => verified.wrong += 1,
                }
            }
            Seen::Torn { first, other, row } => verified.torn.push(Mixed {
                id,
                text: format!(
                    "frame {id} ({}): {first} above, {other} from row {row}",
                    id as u8
                ),
            }),
            Seen::Unreadable { .. } => verified.unreadable += 1,
        }
        verified.units[next] = Some(verified.right > right);
        next += 1;
    }
    verified
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_find_their_ids_over_units_that_were_not_decoded() {
        let whole = |numbers: &[u8]| numbers.iter().map(|n| Seen::Whole(*n)).collect::<Vec<_>>();
        let all = compare(&whole(&[254, 255, 0]), &[254, 255, 256]);
        assert_eq!((all.right, all.wrong, all.undecoded), (3, 0, 0));
        let fewer = compare(&whole(&[1, 4, 5]), &[1, 2, 3, 4, 5]);
        assert_eq!((fewer.right, fewer.wrong, fewer.undecoded), (3, 0, 2));
        let (yes, none) = (Some(true), None);
        assert_eq!(fewer.units, [yes, none, none, yes, yes]);
        let next = compare(&whole(&[1, 3, 3, 4]), &[1, 2, 3, 4]);
        assert_eq!((next.right, next.torn.len(), next.wrong), (3, 1, 0));
        let wrong = compare(&whole(&[1, 9]), &[1, 2]);
        assert_eq!((wrong.right, wrong.wrong), (1, 1));
        assert_eq!(wrong.units, [Some(true), Some(false)]);
    }

    #[test]
    fn the_edges_of_a_span_count_into_its_longest_gap() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let unit = |ms| Unit {
            at: at(ms),
            id: None,
            key: false,
            latency: None,
        };
        let units = [unit(10), unit(20), unit(50)];
        let gap = |from, to| longest_gap(&units, at(from), at(to)).as_millis();
        assert_eq!(gap(0, 60), 30);
        assert_eq!(gap(0, 100), 50);
        assert_eq!(gap(60, 100), 40, "no unit at all");
    }
}
