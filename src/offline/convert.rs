//! One recording to one MP4: a thread decodes, a thread makes the view, the caller's thread
//! codes and writes.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use super::clock::{FrameClock, Timing};
use super::colour::colour_of;
use super::decode::{self, DecodeError, DecodedPicture};
use super::encode::{Canvas, EncodeOptions, Encoded, VideoFormat, encode};
use super::error::OfflineError;
use super::output::OutputFile;
use super::progress::Progress;
use super::svo::{FrameFault, FrameReader, Recording};
use super::view::{View, ViewRequest};
use crate::encode::{EncoderChoice, FrameRate};
use crate::pipeline::stop::StopToken;

/// What is converted, and how.
#[derive(Debug, Clone)]
pub struct ConvertJob {
    pub output: PathBuf,
    /// First and last frame, both included; checked against the recording.
    pub first: usize,
    pub last: usize,
    pub view: ViewRequest,
    pub encode: EncodeOptions,
    pub timing: Timing,
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct Converted {
    pub output: PathBuf,
    pub frames: u64,
    pub width: usize,
    pub height: usize,
    pub encoder: &'static str,
    /// Frames of the range that could not be read or decoded.
    pub skipped: usize,
    pub rectified: bool,
    pub time: Duration,
    /// Stopped by a signal before its end.
    pub interrupted: bool,
}

/// Converts the frames of `recording` that `job` asks for.
///
/// When `stop` is set the file is closed in a playable state under another name.
///
/// # Errors
///
/// As [`OfflineError`] lists them; nothing is left under the final name then.
pub fn convert(
    recording: &Recording,
    job: &ConvertJob,
    progress: &Progress,
    stop: &StopToken,
) -> Result<Converted, OfflineError> {
    let result = attempt(recording, job, progress, stop);
    match result {
        Err(OfflineError::EncoderBroke { frames, source })
            if job.encode.choice == EncoderChoice::Auto =>
        {
            // What the broken encoder held is lost, so the file would have a hole.
            progress.warn(&format!(
                "{source} after {frames} frames; starting again in software"
            ));
            let mut job = job.clone();
            job.encode.choice = EncoderChoice::Software;
            attempt(recording, &job, progress, stop)
        }
        other => other,
    }
}

fn attempt(
    recording: &Recording,
    job: &ConvertJob,
    progress: &Progress,
    stop: &StopToken,
) -> Result<Converted, OfflineError> {
    let started = Instant::now();
    let output = OutputFile::create(&job.output)?;
    let (sender, receiver) = mpsc::sync_channel(PICTURES_IN_FLIGHT);
    std::thread::scope(|scope| {
        let decoding = std::thread::Builder::new()
            .name("decode".to_owned())
            .spawn_scoped(scope, || {
                Decoding::new(recording, threads()).run(
                    job.first,
                    job.last,
                    &sender_of(sender),
                    stop,
                )
            })
            .map_err(|_| OfflineError::Internal("no thread could be started"))?;
        let coded = view_and_encode(recording, job, progress, receiver, &output);
        let decoded = decoding
            .join()
            .map_err(|_| OfflineError::Internal("the decode thread panicked"))?;
        // An error downstream also ends the decoding, and is the cause.
        let coded = coded?;
        let skipped = decoded?;
        if skipped > 0 {
            progress.warn(&format!("{skipped} frames could not be read or decoded"));
        }
        let interrupted = stop.is_stopped();
        let Some((coded, shape)) = coded.filter(|(coded, _)| coded.frames > 0) else {
            if interrupted {
                return Err(OfflineError::Interrupted);
            }
            let path = recording.path().to_owned();
            return Err(OfflineError::NoPictures { path, skipped });
        };
        let output = if interrupted {
            output.keep_partial()?
        } else {
            output.finish()?
        };
        Ok(Converted {
            output,
            frames: coded.frames,
            width: shape.width,
            height: shape.height,
            encoder: coded.encoder,
            skipped,
            rectified: shape.rectified,
            time: started.elapsed(),
            interrupted,
        })
    })
}

struct Shape {
    width: usize,
    height: usize,
    rectified: bool,
}

fn view_and_encode(
    recording: &Recording,
    job: &ConvertJob,
    progress: &Progress,
    pictures: Receiver<DecodedPicture>,
    output: &OutputFile,
) -> Result<Option<(Encoded, Shape)>, OfflineError> {
    // The size of the picture decides the calibration and opens the encoder.
    let Ok(first) = pictures.recv() else {
        return Ok(None);
    };
    let host = first.pixels.on_host();
    let (view, warning) = View::open(
        &job.view,
        recording.path(),
        recording.serial(),
        (host.width, host.height),
    )?;
    if let Some(warning) = warning {
        progress.warn(&warning);
    }
    let (width, height) = view.size();
    let shape = Shape {
        width,
        height,
        rectified: view.is_rectified(),
    };
    let format = VideoFormat {
        width,
        height,
        rate: FrameRate {
            num: recording.fps(),
            den: 1,
        },
        colour: colour_of(recording),
        pictures: job.last - job.first + 1,
    };
    let mut clock = FrameClock::new(job.timing, format.rate);
    let feed = |mut canvas: Canvas| {
        let mut other_sizes = 0;
        let pictures = std::iter::once(first).chain(pictures);
        for picture in pictures {
            let host = picture.pixels.on_host();
            if !view.fits(host) {
                other_sizes += 1;
                continue;
            }
            let time = clock.place(recording.frames()[picture.index].timestamp_ns);
            if canvas
                .draw(time, |planes| view.render(host, planes))
                .is_err()
            {
                break;
            }
        }
        if other_sizes > 0 {
            progress.warn(&format!(
                "{other_sizes} frames of another size were left out"
            ));
        }
        if clock.odd_steps() > 0 {
            progress.warn(&format!(
                "{} frame times did not follow the one before",
                clock.odd_steps()
            ));
        }
        Ok(())
    };
    let coded = encode(&job.encode, &format, output, progress, feed)?;
    Ok(Some((coded, shape)))
}

/// Reads and decodes a range of frames, past what is damaged.
pub(super) struct Decoding<'r> {
    recording: &'r Recording,
    reader: FrameReader<'r>,
    decoder: Box<dyn decode::PictureDecoder>,
    ready: VecDeque<DecodedPicture>,
    /// Pictures that were sent.
    sent: usize,
    given: bool,
}

fn sender_of(sender: SyncSender<DecodedPicture>) -> impl Fn(DecodedPicture) -> bool {
    move |picture| sender.send(picture).is_ok()
}

impl<'r> Decoding<'r> {
    pub(super) fn new(recording: &'r Recording, threads: usize) -> Self {
        Self {
            recording,
            reader: FrameReader::new(recording),
            decoder: decode::open(recording.kind(), threads),
            ready: VecDeque::new(),
            sent: 0,
            given: false,
        }
    }

    /// Gives the pictures of the frames `first` to `last` to `send` until it refuses one or
    /// `stop` is set, and returns how many of those frames there are no pictures of.
    ///
    /// Behind a damaged frame decoding goes on at the next key frame. Where a recording has key
    /// frames but none follows, the rest is given up as its unreadable end; where it has none at
    /// all, everything builds on the past anyway and decoding just goes on.
    ///
    /// # Errors
    ///
    /// If nothing of this recording can be decoded.
    pub(super) fn run(
        mut self,
        first: usize,
        last: usize,
        send: &dyn Fn(DecodedPicture) -> bool,
        stop: &StopToken,
    ) -> Result<usize, OfflineError> {
        let start = self.recording.decode_start(first);
        let has_keys = self.recording.frames().iter().any(|frame| frame.key);
        let mut clean = self.recording.frames()[start].key;
        let mut index = start;
        while index <= last && !stop.is_stopped() {
            clean |= self.recording.frames()[index].key;
            let fault = match self.reader.payload(index) {
                Ok(payload) => match self.decoder.decode(index, payload, &mut self.ready) {
                    Ok(()) => None,
                    Err(source @ DecodeError::Unsupported { .. }) if !self.given => {
                        let path = self.recording.path().to_owned();
                        return Err(OfflineError::Decode { path, source });
                    }
                    Err(error) => {
                        log::debug!("{}: {error}", self.recording.path().display());
                        // In front of the first key frame errors are expected.
                        clean.then_some(())
                    }
                },
                Err(FrameFault::Io(source)) => {
                    let path = self.recording.path().to_owned();
                    return Err(super::svo::SvoError::Io { path, source }.into());
                }
                Err(fault) => {
                    log::debug!("{} frame {index}: {fault}", self.recording.path().display());
                    Some(())
                }
            };
            let next = match fault {
                None => index + 1,
                Some(()) if !has_keys => index + 1,
                Some(()) => {
                    let next = self.recording.next_key(index).unwrap_or(usize::MAX);
                    self.decoder.flush(&mut self.ready);
                    next
                }
            };
            if !self.send(first, last, send) {
                return Ok(0);
            }
            index = next;
        }
        if stop.is_stopped() {
            return Ok(0);
        }
        self.decoder.flush(&mut self.ready);
        let taken = self.send(first, last, send);
        Ok(if taken {
            last - first + 1 - self.sent
        } else {
            0
        })
    }

    fn send(&mut self, first: usize, last: usize, send: &dyn Fn(DecodedPicture) -> bool) -> bool {
        while let Some(picture) = self.ready.pop_front() {
            self.given = true;
            if (first..=last).contains(&picture.index) {
                self.sent += 1;
                if !send(picture) {
                    return false;
                }
            }
        }
        true
    }
}

/// Threads for one decoder that has the machine to itself.
pub(super) fn threads() -> usize {
    available_parallelism()
        .map_or(1, |n| n.get())
        .min(MOST_DECODE_THREADS)
}

/// More than the cores of the decoder's own threads rarely help, and each holds a picture.
const MOST_DECODE_THREADS: usize = 8;
const PICTURES_IN_FLIGHT: usize = 3;
