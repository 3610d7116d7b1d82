//! One recording to one MP4: a thread decodes, a thread makes the view, the caller's thread
//! codes and writes.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::clock::{FrameClock, Timing};
use super::decoding::threads;
use super::encode::{Canvas, EncodeOptions, Encoded, Undrawn, VideoFormat, encode};
use super::error::OfflineError;
use super::input::{Input, SourcePicture};
use super::output::OutputFile;
use super::progress::Progress;
use super::view::ViewRequest;
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

/// Converts the frames of `input` that `job` asks for.
///
/// When `stop` is set the file is closed in a playable state under another name.
///
/// # Errors
///
/// As [`OfflineError`] lists them; nothing is left under the final name then.
pub fn convert(
    input: &Input,
    job: &ConvertJob,
    progress: &Progress,
    stop: &StopToken,
) -> Result<Converted, OfflineError> {
    let result = attempt(input, job, progress, stop);
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
            attempt(input, &job, progress, stop)
        }
        other => other,
    }
}

fn attempt(
    input: &Input,
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
                let sender = sender;
                let send = |picture| sender.send(picture).is_ok();
                input.pictures(
                    (job.first, job.last),
                    job.view.choice,
                    threads(),
                    &send,
                    stop,
                )
            })
            .map_err(|_| OfflineError::Internal("no thread could be started"))?;
        let coded = view_and_encode(input, job, progress, receiver, &output);
        let decoded = decoding
            .join()
            .map_err(|_| OfflineError::Internal("the decode thread panicked"))?;
        // An error downstream also ends the decoding, and is the cause.
        let coded = coded?;
        let skipped = decoded?;
        if skipped > 0 {
            progress.warn(&format!("{skipped} frames could not be read or decoded"));
        }
        let Some((coded, shape)) = coded.filter(|(coded, _)| coded.frames > 0) else {
            if stop.is_stopped() {
                return Err(OfflineError::Interrupted);
            }
            let path = input.path().to_owned();
            return Err(OfflineError::NoPictures { path, skipped });
        };
        let wanted = (job.last - job.first + 1) as u64;
        let interrupted = stop.is_stopped() && coded.frames + (skipped as u64) < wanted;
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
    input: &Input,
    job: &ConvertJob,
    progress: &Progress,
    pictures: Receiver<SourcePicture>,
    output: &OutputFile,
) -> Result<Option<(Encoded, Shape)>, OfflineError> {
    // The size of the picture decides the calibration and opens the encoder.
    let Ok(first) = pictures.recv() else {
        return Ok(None);
    };
    let host = first.pixels.on_host();
    let (view, warning) = input.view(&job.view, (host.width, host.height))?;
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
            num: input.fps(),
            den: 1,
        },
        colour: input.colour(),
        pictures: job.last - job.first + 1,
    };
    let mut clock = FrameClock::new(job.timing, format.rate);
    let feed = |mut canvas: Canvas| {
        let mut other_sizes = 0;
        let mut drawn = Ok(());
        let pictures = std::iter::once(first).chain(pictures);
        for picture in pictures {
            let host = picture.pixels.on_host();
            if !view.fits(host) {
                other_sizes += 1;
                continue;
            }
            let time = clock.place(picture.timestamp_ns);
            drawn = canvas.draw(time, |planes| view.render(host, planes));
            if drawn.is_err() {
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
        drawn.or_else(Undrawn::into_result)
    };
    let coded = encode(&job.encode, &format, output, progress, feed)?;
    Ok(Some((coded, shape)))
}

const PICTURES_IN_FLIGHT: usize = 1;
