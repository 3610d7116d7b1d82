//! Four recordings in one picture, two by two, all at the same instant.
//!
//! Each camera has a thread that decodes forward, makes the view and scales it; the drawing
//! thread takes from each what belongs to the instant.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::decoding::threads;
use super::encode::{Canvas, EncodeOptions, Encoded, VideoFormat, encode};
use super::error::OfflineError;
use super::input::{Input, SourcePicture};
use super::output::OutputFile;
use super::overlay;
use super::picture::Yuv420;
use super::progress::Progress;
use super::scale::{TileScaler, blacken, place};
use super::timeline::{GridTimeline, offset_ns};
use super::view::{View, ViewChoice, ViewRequest};
use crate::encode::{EncoderChoice, FrameRate};
use crate::frame::PixelFormat;
use crate::frame::surface::I420Surface;
use crate::pipeline::stop::StopToken;
use crate::time::MediaTime;

/// How a grid is made.
#[derive(Debug, Clone)]
pub struct GridJob {
    pub output: PathBuf,
    pub rate: FrameRate,
    pub tile_scale: f64,
    pub view: ViewRequest,
    pub encode: EncodeOptions,
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct GridDone {
    pub output: PathBuf,
    pub frames: u64,
    pub width: usize,
    pub height: usize,
    pub encoder: &'static str,
    pub time: Duration,
    pub interrupted: bool,
}

/// Draws the recordings, in row-major order, at the instants of `timeline`.
///
/// # Errors
///
/// As [`OfflineError`] lists them; nothing is left under the final name then.
pub fn make_grid(
    recordings: &[Input; 4],
    timeline: &GridTimeline,
    job: &GridJob,
    progress: &Progress,
    stop: &StopToken,
) -> Result<GridDone, OfflineError> {
    match attempt(recordings, timeline, job, progress, stop) {
        Err(OfflineError::EncoderBroke { frames, source })
            if job.encode.choice == EncoderChoice::Auto =>
        {
            progress.warn(&format!(
                "{source} after {frames} frames; starting again in software"
            ));
            let mut job = job.clone();
            job.encode.choice = EncoderChoice::Software;
            attempt(recordings, timeline, &job, progress, stop)
        }
        other => other,
    }
}

/// One recording with what turns its pictures into tiles.
struct Camera<'r> {
    recording: &'r Input,
    /// The frame shown at each output frame.
    shown: Vec<usize>,
    choice: ViewChoice,
    view: View,
    scaler: TileScaler,
}

struct Tile {
    index: usize,
    picture: Yuv420,
}

fn attempt(
    recordings: &[Input; 4],
    timeline: &GridTimeline,
    job: &GridJob,
    progress: &Progress,
    stop: &StopToken,
) -> Result<GridDone, OfflineError> {
    let started = Instant::now();
    let output = OutputFile::create(&job.output)?;
    let (cameras, tile) = cameras(recordings, timeline, job, progress)?;
    let format = VideoFormat {
        width: tile.0 * 2,
        height: tile.1 * 2,
        rate: job.rate,
        colour: recordings[0].colour(),
        pictures: usize::try_from(timeline.frames()).unwrap_or(usize::MAX),
    };
    std::thread::scope(|scope| {
        let mut decoding = Vec::new();
        let mut tiles = Vec::new();
        for camera in &cameras {
            let (sender, receiver) = mpsc::sync_channel(TILES_IN_FLIGHT);
            tiles.push(receiver);
            let run = move || decode_tiles(camera, &|tile| sender.send(tile).is_ok(), stop);
            let thread = std::thread::Builder::new().name("camera".to_owned());
            let thread = thread
                .spawn_scoped(scope, run)
                .map_err(|_| OfflineError::Internal("no thread could be started"))?;
            decoding.push(thread);
        }
        let feed = |canvas| draw(canvas, &cameras, tiles, timeline, tile, job.rate, stop);
        let coded = encode(&job.encode, &format, &output, progress, feed);
        let mut skipped = 0;
        let mut failed = None;
        for thread in decoding {
            match thread.join() {
                Ok(Ok(missing)) => skipped += missing,
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(_) => return Err(OfflineError::Internal("a camera thread panicked")),
            }
        }
        let Encoded { frames, encoder } = coded?;
        if let Some(error) = failed {
            return Err(error);
        }
        if skipped > 0 {
            progress.warn(&format!(
                "{skipped} frames could not be decoded; their tiles hold the one before"
            ));
        }
        let interrupted = stop.is_stopped() && frames < timeline.frames();
        if frames == 0 {
            return Err(OfflineError::Interrupted);
        }
        let output = if interrupted {
            output.keep_partial()?
        } else {
            output.finish()?
        };
        Ok(GridDone {
            output,
            frames,
            width: format.width,
            height: format.height,
            encoder,
            time: started.elapsed(),
            interrupted,
        })
    })
}

fn cameras<'r>(
    recordings: &'r [Input; 4],
    timeline: &GridTimeline,
    job: &GridJob,
    progress: &Progress,
) -> Result<(Vec<Camera<'r>>, (usize, usize)), OfflineError> {
    let mut cameras = Vec::new();
    let mut tile = None;
    for recording in recordings {
        let times = recording.timestamps()?;
        let shown: Vec<usize> = timeline.shown(&times).collect();
        let size = recording.picture_size(shown[0])?;
        let (view, warning) = recording.view(&job.view, size)?;
        if let Some(warning) = warning {
            progress.warn(&warning);
        }
        let tile = *tile.get_or_insert_with(|| {
            let (width, height) = view.size();
            let even =
                |side: usize| (((side as f64 * job.tile_scale / 2.0).round() as usize) * 2).max(2);
            (even(width), even(height))
        });
        let scaler = TileScaler::new(view.size(), tile);
        cameras.push(Camera {
            recording,
            shown,
            choice: job.view.choice,
            view,
            scaler,
        });
    }
    Ok((cameras, tile.unwrap_or((2, 2))))
}

/// Decodes what a camera shows, and gives each frame that is shown once, as a tile.
fn decode_tiles(
    camera: &Camera<'_>,
    send: &dyn Fn(Tile) -> bool,
    stop: &StopToken,
) -> Result<usize, OfflineError> {
    let (width, height) = camera.view.size();
    let surface = I420Surface::new(width as u32, height as u32, PixelFormat::Yuyv);
    let surface = std::cell::RefCell::new(surface);
    let (first, last) = (camera.shown[0], camera.shown[camera.shown.len() - 1]);
    let take = |picture: SourcePicture| {
        let host = picture.pixels.on_host();
        if camera.shown.binary_search(&picture.index).is_err() || !camera.view.fits(host) {
            return true;
        }
        let mut surface = surface.borrow_mut();
        camera.view.render(host, &mut surface.planes_mut());
        send(Tile {
            index: picture.index,
            picture: camera.scaler.scale(&surface.planes()),
        })
    };
    camera.recording.pictures(
        (first, last),
        camera.choice,
        threads().div_ceil(4),
        &take,
        stop,
    )
}

fn draw(
    mut canvas: Canvas,
    cameras: &[Camera<'_>],
    tiles: Vec<Receiver<Tile>>,
    timeline: &GridTimeline,
    (width, height): (usize, usize),
    rate: FrameRate,
    stop: &StopToken,
) -> Result<(), OfflineError> {
    let places = [(0, 0), (width, 0), (0, height), (width, height)];
    // What each camera shows, and the tile that it shows next.
    let mut now: [Option<Tile>; 4] = [const { None }; 4];
    let mut next: [Option<Tile>; 4] = [const { None }; 4];
    for k in 0..timeline.frames() {
        for (at, (camera, tiles)) in cameras.iter().zip(&tiles).enumerate() {
            let wanted = camera.shown[k as usize];
            loop {
                if next[at].is_none() {
                    next[at] = tiles.recv().ok();
                }
                match next[at].take_if(|tile| tile.index <= wanted) {
                    Some(tile) if tile.index == wanted => {
                        now[at] = Some(tile);
                        break;
                    }
                    Some(tile) => now[at] = Some(tile),
                    None => break,
                }
                if now[at].as_ref().is_some_and(|tile| tile.index == wanted) {
                    break;
                }
            }
        }
        if stop.is_stopped() {
            break;
        }
        let text = overlay::clock_text(timeline.time_ns(k));
        let time = MediaTime(offset_ns(rate, k) as i64);
        let drawn = canvas.draw(time, |planes| {
            if now.iter().any(Option::is_none) {
                blacken(planes);
            }
            for (tile, at) in now.iter().zip(places) {
                if let Some(tile) = tile {
                    place(&tile.picture, at, planes);
                }
            }
            overlay::draw(planes, &text);
        });
        if let Err(undrawn) = drawn {
            return undrawn.into_result();
        }
    }
    Ok(())
}

const TILES_IN_FLIGHT: usize = 2;
