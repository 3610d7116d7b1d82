//! The encode stage of the tools: pictures drawn on another thread, coded and written here.
//!
//! The encoder lives on the calling thread. Its free surfaces go to the drawing thread through
//! one channel and come back filled through another, so that neither ever polls.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::OfflineError;
use super::mp4::{Mp4Error, Mp4Options, Mp4Writer};
use super::output::OutputFile;
use super::progress::Progress;
use super::timeline::offset_ns;
use crate::bitstream::sps::Colour;
use crate::encode::{
    Codec, EncodeError, EncodedQueue, Encoder, EncoderChoice, EncoderConfig, FrameRate, Outcome,
    Picture, Preset, RateControl, Tuning,
};
use crate::frame::surface::{FillError, I420PlanesMut, I420Surface};
use crate::frame::{
    FrameInfo, FrameView, PictureShape, PixelFormat, PlaneLayout, Snapshot, SurfaceLease,
};
use crate::time::MediaTime;
use crate::trace::FrameTrace;

/// The shared encoder options of the tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    pub codec: Codec,
    pub choice: EncoderChoice,
    pub preset: Preset,
    /// 0 (best) to 51.
    pub quality: u8,
    pub gop: u32,
    pub b_frames: u32,
}

/// What is known when the first picture is at hand.
#[derive(Debug, Clone, Copy)]
pub struct VideoFormat {
    pub width: usize,
    pub height: usize,
    pub rate: FrameRate,
    pub colour: Colour,
    /// How many pictures will come at most.
    pub pictures: usize,
}

/// What has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    pub frames: u64,
    /// The encoder as the operator knows it.
    pub encoder: &'static str,
}

/// Where the drawing thread puts its pictures.
pub struct Canvas {
    free: Receiver<SurfaceLease>,
    filled: SyncSender<Snapshot>,
    info: FrameInfo,
    count: u32,
    /// For surfaces that are no host memory.
    packed: Option<(I420Surface, Vec<u8>)>,
    /// What the surfaces belong to, as the operator knows it.
    encoder: &'static str,
}

/// Why a picture was not taken; the drawing ends with it.
#[derive(Debug)]
pub enum Undrawn {
    /// The encode stage has ended, and says itself why.
    Closed,
    /// The picture did not reach its surface. The video would lack it, so it is as bad as an
    /// encoder that broke.
    Upload(OfflineError),
}

impl Undrawn {
    /// What the drawing thread returns.
    ///
    /// # Errors
    ///
    /// The reason, where the encode stage does not know it.
    pub fn into_result(self) -> Result<(), OfflineError> {
        match self {
            Self::Closed => Ok(()),
            Self::Upload(error) => Err(error),
        }
    }
}

impl Canvas {
    /// Waits for a free surface, lets `draw` fill it, and sends it on to be shown at `time`.
    ///
    /// # Errors
    ///
    /// If the encode stage has ended, or the surface could not take the picture.
    pub fn draw(
        &mut self,
        time: MediaTime,
        draw: impl FnOnce(&mut I420PlanesMut<'_>),
    ) -> Result<(), Undrawn> {
        let mut surface = self.free.recv().map_err(|_| Undrawn::Closed)?;
        match surface.get_mut::<I420Surface>() {
            Some(host) => draw(&mut host.planes_mut()),
            None => {
                let (w, h) = (self.info.left.width, self.info.left.height);
                let (host, bytes) = self
                    .packed
                    .get_or_insert_with(|| (I420Surface::new(w, h, PixelFormat::Yuyv), Vec::new()));
                draw(&mut host.planes_mut());
                pack_yuyv(host, bytes);
                let view = FrameView::from_slice(self.info, bytes);
                let mut uploaded = surface.fill(&view);
                // Nothing here is in a hurry: a copy that was late may be made again. A driver
                // that is late each time is given up by the encoder itself.
                for _ in 1..UPLOADS {
                    if matches!(uploaded, Err(FillError::Upload(_))) {
                        uploaded = surface.fill(&view);
                    }
                }
                uploaded.map_err(|error| {
                    Undrawn::Upload(OfflineError::EncoderBroke {
                        frames: u64::from(self.count),
                        source: EncodeError::Failed {
                            encoder: self.encoder,
                            call: "upload",
                            status: 0,
                            detail: error.to_string(),
                        },
                    })
                })?;
            }
        }
        self.send(surface, time)
    }

    fn send(&mut self, surface: SurfaceLease, time: MediaTime) -> Result<(), Undrawn> {
        self.count += 1;
        let info = FrameInfo {
            frame_id: self.count,
            ..self.info
        };
        let snapshot = Snapshot {
            info,
            surface,
            epoch: 0,
            gap: false,
            time,
            trace: FrameTrace::default(),
        };
        self.filled.send(snapshot).map_err(|_| Undrawn::Closed)
    }
}

/// Codes what `feed` draws on its own thread and writes it to `output`, in file order.
///
/// # Errors
///
/// Those of `feed`, of the encoder and of the file. [`OfflineError::EncoderBroke`] leaves the
/// caller the choice to start again with another encoder.
pub fn encode(
    options: &EncodeOptions,
    format: &VideoFormat,
    output: &OutputFile,
    progress: &Progress,
    feed: impl FnOnce(Canvas) -> Result<(), OfflineError> + Send,
) -> Result<Encoded, OfflineError> {
    let config = EncoderConfig {
        codec: options.codec,
        shape: PictureShape {
            width: format.width as u32,
            height: format.height as u32,
            format: PixelFormat::Yuyv,
            encoded: None,
        },
        frame_rate: format.rate,
        rate: RateControl::Quality(options.quality),
        gop: options.gop,
        b_frames: options.b_frames,
        intra_refresh: false,
        preset: options.preset,
        tuning: Tuning::Quality,
        surfaces_in_flight: SURFACES_IN_FLIGHT,
    };
    let encoder = Encoder::open(options.choice, config).map_err(OfflineError::NoEncoder)?;
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mp4 = Mp4Options {
        codec: options.codec,
        colour: format.colour,
        pictures: format.pictures,
        reordered: encoder.b_frames() > 0,
        period: Duration::from_nanos(offset_ns(format.rate, 1)),
        created,
    };
    let failed = |error| mp4_error(output, error);
    let writer = Mp4Writer::new(output.handle()?, mp4).map_err(failed)?;

    let (free, free_here) = mpsc::channel();
    let (filled, pictures) = mpsc::sync_channel(SURFACES_IN_FLIGHT);
    let canvas = Canvas {
        free: free_here,
        filled,
        info: frame_info(format),
        count: 0,
        packed: None,
        encoder: encoder.name(),
    };
    std::thread::scope(|scope| {
        let feed = std::thread::Builder::new()
            .name("view".to_owned())
            .spawn_scoped(scope, move || feed(canvas))
            .map_err(|_| OfflineError::Internal("no thread could be started"))?;
        let mut stage = Stage {
            encoder,
            writer,
            queue: EncodedQueue::new(),
            progress,
            output,
        };
        let coded = stage.run(&pictures, &free);
        // Both ends of the channels must be gone before the feed can be waited for.
        drop((pictures, free));
        let fed = feed
            .join()
            .map_err(|_| OfflineError::Internal("the view thread panicked"))?;
        coded?;
        fed?;
        let encoder = stage.encoder.name();
        let frames = match stage.writer.samples() {
            0 => return Ok(Encoded { frames: 0, encoder }),
            _ => stage.writer.finish().map_err(failed)?,
        };
        Ok(Encoded { frames, encoder })
    })
}

struct Stage<'a> {
    encoder: Encoder,
    writer: Mp4Writer,
    queue: EncodedQueue,
    progress: &'a Progress,
    output: &'a OutputFile,
}

impl Stage<'_> {
    fn run(
        &mut self,
        pictures: &Receiver<Snapshot>,
        free: &mpsc::Sender<SurfaceLease>,
    ) -> Result<(), OfflineError> {
        let pool = self.encoder.surfaces();
        let lend = || {
            while let Some(surface) = pool.take() {
                // The feed has ended; its last pictures may still be on their way. What could not
                // be sent is back in the pool.
                if free.send(surface).is_err() {
                    return;
                }
            }
        };
        lend();
        while let Ok(snapshot) = pictures.recv() {
            let picture = Picture {
                snapshot,
                force_key: false,
            };
            let outcome = self.encoder.encode(picture, &mut self.queue);
            match outcome {
                Ok(Outcome::Taken) => {}
                Ok(Outcome::LeftOut | Outcome::Replaced | Outcome::Stale) => {
                    return Err(self.broke("it was replaced in the middle of the run"));
                }
                Err(source) => {
                    return Err(OfflineError::EncoderBroke {
                        frames: self.writer.samples(),
                        source,
                    });
                }
            }
            lend();
            self.write()?;
        }
        if self.encoder.counters().pictures > 0 {
            let flushed = self.encoder.flush(&mut self.queue);
            self.write()?;
            let frames = self.writer.samples();
            flushed.map_err(|source| OfflineError::EncoderBroke { frames, source })?;
            // Each picture that went in is one of the file, whoever lost it.
            if self.encoder.counters().pictures != frames {
                return Err(self.broke("pictures are lost"));
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), OfflineError> {
        while let Some(picture) = self.queue.pop() {
            self.writer
                .push(&picture)
                .map_err(|error| mp4_error(self.output, error))?;
            self.queue.recycle(picture.data);
        }
        self.progress.set(self.writer.samples());
        Ok(())
    }

    fn broke(&self, detail: &str) -> OfflineError {
        OfflineError::EncoderBroke {
            frames: self.writer.samples(),
            source: EncodeError::Failed {
                encoder: self.encoder.name(),
                call: "encode",
                status: 0,
                detail: detail.to_owned(),
            },
        }
    }
}

fn mp4_error(output: &OutputFile, error: Mp4Error) -> OfflineError {
    let path = output.path().to_owned();
    match error {
        Mp4Error::Io(source) => OfflineError::Output { path, source },
        Mp4Error::Mux(detail) => OfflineError::Mux { path, detail },
    }
}

/// The frame that a surface which is no host memory is filled from: packed YUYV.
fn frame_info(format: &VideoFormat) -> FrameInfo {
    let (width, height) = (format.width as u32, format.height as u32);
    let stride = width.next_multiple_of(2) * 2;
    FrameInfo {
        frame_id: 0,
        capture_ts_ns: 0,
        format: PixelFormat::Yuyv,
        left: PlaneLayout {
            width,
            height,
            stride,
            offset: 0,
            size: stride * height,
        },
        encoded: None,
        frame_rate: None,
        payload_size: stride * height,
    }
}

/// Y0 U Y1 V with each chroma row twice: taking the mean of two rows gives it back.
fn pack_yuyv(surface: &I420Surface, out: &mut Vec<u8>) {
    let planes = surface.planes();
    let (width, height) = (planes.width as usize, planes.height as usize);
    out.clear();
    for row in 0..height {
        let y = &planes.y[row * planes.luma_stride..][..width];
        let u = &planes.u[row / 2 * planes.chroma_stride..][..width / 2];
        let v = &planes.v[row / 2 * planes.chroma_stride..][..width / 2];
        for ((pair, u), v) in y.chunks_exact(2).zip(u).zip(v) {
            out.extend([pair[0], *u, pair[1], *v]);
        }
    }
}

/// Tries for a picture to reach the GPU.
const UPLOADS: u32 = 3;
/// Enough for one to be drawn, one coded and some to wait.
const SURFACES_IN_FLIGHT: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::surface::SurfaceMemory;

    /// Its first uploads are late.
    struct Late {
        left: u32,
    }

    impl SurfaceMemory for Late {
        fn fill(&mut self, _: &FrameView<'_>) -> Result<(), FillError> {
            let late = self.left > 0;
            self.left = self.left.saturating_sub(1);
            match late {
                true => Err(FillError::Upload("late".to_owned())),
                false => Ok(()),
            }
        }

        fn as_any(&self) -> &dyn std::any::Any {
            self
        }

        fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
            self
        }
    }

    #[test]
    fn a_late_upload_is_made_again_and_never_a_picture_left_out() {
        let format = VideoFormat {
            width: 64,
            height: 32,
            rate: FrameRate::THIRTY,
            colour: crate::offline::colour::BT709,
            pictures: 2,
        };
        for (late, arrives) in [(0, true), (UPLOADS - 1, true), (UPLOADS, false)] {
            let pool = crate::frame::SurfacePool::new(vec![Box::new(Late { left: late })]);
            let (free, free_here) = mpsc::channel();
            let (filled, pictures) = mpsc::sync_channel(1);
            free.send(pool.take().unwrap()).unwrap();
            let mut canvas = Canvas {
                free: free_here,
                filled,
                info: frame_info(&format),
                count: 0,
                packed: None,
                encoder: "nvenc",
            };
            let drawn = canvas.draw(MediaTime(0), |_| ());
            assert_eq!(drawn.is_ok(), arrives);
            assert_eq!(pictures.try_recv().is_ok(), arrives);
            if let Err(undrawn) = drawn {
                let error = undrawn.into_result().unwrap_err();
                assert!(
                    matches!(error, OfflineError::EncoderBroke { .. }),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn packed_rows_repeat_their_chroma() {
        let mut surface = I420Surface::new(4, 4, PixelFormat::Yuyv);
        let planes = surface.planes_mut();
        for row in 0..4 {
            planes.y[row * planes.luma_stride..][..4].copy_from_slice(&[row as u8, 1, 2, 3]);
        }
        planes.u[..2].copy_from_slice(&[50, 51]);
        planes.v[..2].copy_from_slice(&[60, 61]);
        let mut packed = Vec::new();
        pack_yuyv(&surface, &mut packed);
        assert_eq!(packed[..8], [0, 50, 1, 60, 2, 51, 3, 61]);
        assert_eq!(packed[8..16], [1, 50, 1, 60, 2, 51, 3, 61]);
        assert_eq!(packed[16..24], [2, 128, 1, 128, 2, 128, 3, 128]);
    }
}
