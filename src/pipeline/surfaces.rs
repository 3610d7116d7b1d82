//! How ingest gets surfaces from an encoder that lives on another thread and opens late.
//!
//! The encoder can be opened only once a frame has told its shape, and only on the encode thread,
//! which owns it for good. So ingest says what it wants, the encode thread opens, and offers the
//! pool. On a frame whose shape is known this costs ingest one atomic load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::frame::{FrameInfo, PictureShape, PixelFormat, Snapshot, SurfaceLease, SurfacePool};
use crate::queue::LatestQueue;
use crate::source::SurfaceSource;

use super::stop::StopToken;

/// Where the wish and the offer meet.
#[derive(Debug, Default)]
pub struct SurfaceExchange {
    /// Grows with every offer, so that ingest need not lock to see that nothing changed.
    generation: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    /// The encoder opens, or codes its first pictures.
    starting: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<Wish>,
    offered: Option<(PictureShape, SurfacePool)>,
    closed: bool,
}

/// What the first frame of a new shape says about the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wish {
    pub shape: PictureShape,
    /// Numerator and denominator, where the producer knows them.
    pub frame_rate: Option<(u16, u16)>,
}

impl SurfaceExchange {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the encode thread: what ingest waits for.
    pub fn take_wish(&self) -> Option<Wish> {
        self.lock().wanted.take()
    }

    /// For the encode thread: the surfaces for pictures of `shape` from now on.
    pub fn offer(&self, shape: PictureShape, pool: SurfacePool) {
        self.lock().offered = Some((shape, pool));
        // Release: whoever sees the new number sees the offer (and takes the lock anyway).
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
    }

    /// For the encode thread: whether its encoder has still to find its pace.
    pub fn set_starting(&self, starting: bool) {
        // Relaxed: says how a frame is queued, and publishes nothing.
        self.starting.store(starting, Ordering::Relaxed);
    }

    /// For the encode thread: there will be no surfaces any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Ingest's side.
pub struct SurfaceClient<'a> {
    exchange: &'a SurfaceExchange,
    queue: &'a LatestQueue<Snapshot>,
    stop: &'a StopToken,
    passthrough: bool,
    /// Frames without the producer's access unit, in passthrough.
    without_unit: u32,
    seen: u64,
    current: Option<(PictureShape, SurfacePool)>,
}

/// A driver that takes longer to open has hung; the watchdog of its backend says so.
const LONGEST_OPEN: Duration = Duration::from_secs(15);

/// Pairing of pictures and access units is lossy on the producer's side: one that has none at all is
/// known by then.
const PATIENCE: u32 = 60;

impl<'a> SurfaceClient<'a> {
    pub fn new(
        exchange: &'a SurfaceExchange,
        queue: &'a LatestQueue<Snapshot>,
        stop: &'a StopToken,
        passthrough: bool,
    ) -> Self {
        Self {
            exchange,
            queue,
            stop,
            passthrough,
            without_unit: 0,
            seen: 0,
            current: None,
        }
    }

    /// What matters to the encoder: with one of our own, whether the producer's access unit comes
    /// with this frame does not; without, nothing but that access unit does. `None` until the
    /// first one came.
    fn shape_of(&mut self, info: &FrameInfo) -> Option<PictureShape> {
        if !self.passthrough {
            return Some(PictureShape {
                encoded: None,
                ..info.shape()
            });
        }
        let known = self.current.as_ref().map(|(shape, _)| *shape);
        let Some(plane) = info.encoded else {
            self.without_unit += 1;
            if known.is_none() && self.without_unit == PATIENCE {
                log::warn!(
                    "--encoder passthrough: {PATIENCE} frames came without an access unit of the \
                     producer's own; --encoder auto would encode the pictures"
                );
            }
            return known;
        };
        Some(PictureShape {
            width: 0,
            height: 0,
            format: PixelFormat::Gray,
            encoded: Some(plane.codec),
        })
    }

    fn wait_for(&mut self, wish: Wish) {
        let mut state = self.exchange.lock();
        let fits = |state: &State| {
            state
                .offered
                .as_ref()
                .is_some_and(|(shape, _)| *shape == wish.shape)
        };
        if !fits(&state) {
            state.wanted = Some(wish);
            drop(state);
            self.queue.nudge();
            let deadline = Instant::now() + LONGEST_OPEN;
            state = self.exchange.lock();
            while !fits(&state)
                && !state.closed
                && !self.stop.is_stopped()
                && Instant::now() < deadline
            {
                state = self
                    .exchange
                    .changed
                    .wait_timeout(state, Duration::from_millis(100))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
        self.current = state.offered.clone();
    }
}

impl SurfaceSource for SurfaceClient<'_> {
    fn surface_for(&mut self, info: &FrameInfo) -> Option<SurfaceLease> {
        let shape = self.shape_of(info)?;
        // Acquire: pairs with the offer.
        let generation = self.exchange.generation.load(Ordering::Acquire);
        let known = self.current.as_ref().is_some_and(|(s, _)| *s == shape);
        if !known || generation != self.seen {
            self.wait_for(Wish {
                shape,
                frame_rate: info.frame_rate,
            });
            self.seen = generation;
        }
        let (offered, pool) = self.current.as_ref()?;
        if *offered == shape { pool.take() } else { None }
    }

    fn is_starting(&self) -> bool {
        // Relaxed: as where it is set.
        self.exchange.starting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{PlaneLayout, surface::I420Surface};

    fn info(width: u32) -> FrameInfo {
        let left = PlaneLayout {
            width,
            height: 2,
            stride: width,
            offset: 0,
            size: width * 2,
        };
        FrameInfo {
            frame_id: 0,
            capture_ts_ns: 0,
            format: PixelFormat::Gray,
            left,
            encoded: None,
            frame_rate: Some((25, 1)),
            payload_size: left.size,
        }
    }

    #[test]
    fn a_new_shape_is_opened_once_and_then_used() {
        let (exchange, queue, stop) = (
            SurfaceExchange::default(),
            LatestQueue::new(1),
            StopToken::new(),
        );
        std::thread::scope(|scope| {
            let encoder = scope.spawn(|| {
                let mut wishes = Vec::new();
                while wishes.len() < 2 {
                    let _ = queue.pop(Instant::now() + Duration::from_secs(60));
                    if let Some(wish) = exchange.take_wish() {
                        let shape = wish.shape;
                        let surface = I420Surface::new(shape.width, shape.height, shape.format);
                        exchange.offer(shape, SurfacePool::new(vec![Box::new(surface)]));
                        wishes.push(wish);
                    }
                }
                wishes
            });
            let mut client = SurfaceClient::new(&exchange, &queue, &stop, false);
            for width in [4, 4, 8, 8] {
                assert!(client.surface_for(&info(width)).is_some());
            }
            let wishes = encoder.join().unwrap();
            let widths: Vec<_> = wishes.iter().map(|wish| wish.shape.width).collect();
            assert_eq!(widths, [4, 8]);
            assert_eq!(wishes[0].frame_rate, Some((25, 1)));
        });
    }

    #[test]
    fn nobody_waits_for_an_encoder_that_is_gone() {
        let (exchange, queue, stop) = (
            SurfaceExchange::default(),
            LatestQueue::new(1),
            StopToken::new(),
        );
        exchange.close();
        let mut client = SurfaceClient::new(&exchange, &queue, &stop, false);
        assert!(client.surface_for(&info(4)).is_none());
    }
}
