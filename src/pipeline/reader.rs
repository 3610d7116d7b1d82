//! The thread that reads frames, and the one that takes its place if a driver keeps it.
//!
//! Surfaces on a GPU are filled by calls into its driver, and nobody can take a thread from a call that never
//! returns. So this thread is not a scoped one: what it works on is shared, it is waited for and not joined, and when
//! it is kept another one goes on, with a connection of its own to the same producer. The first one finds out, should
//! it ever come back, and ends without touching anything.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::frame::Snapshot;
use crate::queue::LatestQueue;
use crate::source::cvmmap::{CvMmapConfig, CvMmapSource};
use crate::source::{FrameSource, SourceCounters, SourceError, SourceEvent, SurfaceSource};
use crate::time::MediaTime;

use super::CountingSurfaces;
use super::ingest::{self, IngestLimits, IngestState};
use super::stop::{StopReason, StopToken};
use super::surfaces::{SurfaceClient, SurfaceExchange};

/// A source that the reading thread owns.
pub type Source = Box<dyn FrameSource + Send>;

/// What the reading thread works on.
pub struct Reader {
    pub exchange: SurfaceExchange,
    pub queue: LatestQueue<Snapshot>,
    surfaces: Surfaces,
    limits: IngestLimits,
    state: Arc<IngestState>,
    stop: StopToken,
    /// Listens to the same producer again; `None` where no driver fills surfaces.
    again: Option<CvMmapConfig>,
    /// The frame that was handed on last.
    last: Mutex<Option<Last>>,
    turn: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    time: MediaTime,
    epoch: u32,
    at: Instant,
}

/// Where frames are read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surfaces {
    /// An encoder's.
    Encoder { passthrough: bool },
    /// One of its own, for counting only.
    Counting,
}

/// The thread whose turn it is.
#[derive(Default)]
struct Turn {
    /// Set for a thread that was given up. It belongs to that thread alone.
    given_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// How it ended.
    ended: Option<Ended>,
}

/// How a reading thread ended.
#[derive(Debug)]
pub enum Ended {
    Well,
    Failed(SourceError),
    /// A successor could not be started.
    NoThread(std::io::Error),
    Panicked,
    /// It is in a driver call, or wherever else, and does not come back.
    Kept,
}

impl Reader {
    pub fn new(
        queue_size: usize,
        surfaces: Surfaces,
        limits: IngestLimits,
        state: &Arc<IngestState>,
        stop: &StopToken,
        again: Option<CvMmapConfig>,
    ) -> Arc<Self> {
        Arc::new(Self {
            exchange: SurfaceExchange::default(),
            queue: LatestQueue::new(queue_size),
            surfaces,
            limits,
            state: Arc::clone(state),
            stop: stop.clone(),
            again,
            last: Mutex::default(),
            turn: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// If the system has no thread left.
    pub fn start(self: &Arc<Self>, mut source: Source) -> std::io::Result<()> {
        let (this, given_up) = (Arc::clone(self), Arc::clone(&self.turn().given_up));
        let work = move || {
            let read = AssertUnwindSafe(|| this.read(&mut *source, &given_up));
            let ended = match catch_unwind(read) {
                Ok(Ok(())) => Ended::Well,
                Ok(Err(error)) => Ended::Failed(error),
                // Said where it happened.
                Err(_) => Ended::Panicked,
            };
            // Whoever waits may end the process: its sockets are closed by then.
            drop(source);
            this.end(&given_up, ended);
        };
        let thread = std::thread::Builder::new()
            .name("ingest".to_owned())
            .spawn(work)?;
        self.turn().thread = Some(thread);
        Ok(())
    }

    fn read(&self, source: &mut dyn FrameSource, given_up: &AtomicBool) -> Result<(), SourceError> {
        let mut surfaces: Box<dyn SurfaceSource + '_> = match self.surfaces {
            Surfaces::Encoder { passthrough } => Box::new(SurfaceClient::new(
                &self.exchange,
                &self.queue,
                &self.stop,
                passthrough,
            )),
            Surfaces::Counting => Box::new(CountingSurfaces::default()),
        };
        let queue = (self.surfaces != Surfaces::Counting).then_some(&self.queue);
        let mut source = Continued {
            source,
            before: *lock(&self.last),
            shift: None,
            last: &self.last,
            given_up,
        };
        ingest::run_until(
            &mut source,
            surfaces.as_mut(),
            queue,
            self.limits,
            &self.state,
            &self.stop,
            given_up,
        )
    }

    /// The end of a thread, unless it was given up before.
    fn end(&self, given_up: &AtomicBool, ended: Ended) {
        let mut turn = self.turn();
        if given_up.load(Ordering::Acquire) {
            return;
        }
        if !matches!(ended, Ended::Well) {
            self.stop.stop(StopReason::Error);
        }
        self.queue.close();
        turn.ended = Some(ended);
        self.changed.notify_all();
    }

    /// Lets another thread go on: the one there is does not come back.
    pub fn replace(self: &Arc<Self>) {
        let given_up = Arc::<AtomicBool>::default();
        let mut turn = self.turn();
        let before = std::mem::replace(&mut turn.given_up, Arc::clone(&given_up));
        before.store(true, Ordering::Release);
        turn.thread = None;
        drop(turn);
        let started = match &self.again {
            None => Err(Ended::Kept),
            Some(config) => CvMmapSource::new(config.clone())
                .map_err(Ended::Failed)
                .and_then(|source| self.start(Box::new(source)).map_err(Ended::NoThread)),
        };
        match started {
            Ok(()) => log::warn!("another thread reads the frames from here on"),
            Err(ended) => self.end(&given_up, ended),
        }
    }

    /// The thread does not come back, and no other one goes on.
    pub fn give_up(&self) {
        let mut turn = self.turn();
        turn.given_up.store(true, Ordering::Release);
        turn.ended = Some(Ended::Kept);
        self.changed.notify_all();
    }

    /// Waits for the end, and once the run is stopped for so long as an ordinary one may take.
    pub fn wait(&self) -> Ended {
        let mut stopped = None;
        let mut turn = self.turn();
        loop {
            if let Some(ended) = turn.ended.take() {
                let thread = turn.thread.take();
                drop(turn);
                if !matches!(ended, Ended::Kept)
                    && let Some(thread) = thread
                {
                    // Past all its work; nothing of it is left when this returns.
                    let _ = thread.join();
                }
                return ended;
            }
            if self.stop.is_stopped()
                && stopped.get_or_insert_with(Instant::now).elapsed() > LONGEST_END
            {
                turn.given_up.store(true, Ordering::Release);
                drop(turn);
                self.queue.close();
                return Ended::Kept;
            }
            turn = self
                .changed
                .wait_timeout(turn, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        lock(&self.turn)
    }
}

/// It looks at the stop ten times a second, and waits for a late copy a tenth of one: more than that is a busy
/// machine's.
const LONGEST_END: Duration = Duration::from_secs(10);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one assignment: a panic elsewhere leaves the state whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A source whose times and epochs follow those that another one has handed on before.
struct Continued<'a> {
    source: &'a mut dyn FrameSource,
    /// The other one's last frame.
    before: Option<Last>,
    /// What is added to times, from the first frame on.
    shift: Option<i64>,
    last: &'a Mutex<Option<Last>>,
    given_up: &'a AtomicBool,
}

impl FrameSource for Continued<'_> {
    fn next(
        &mut self,
        deadline: Instant,
        surfaces: &mut dyn SurfaceSource,
    ) -> Result<SourceEvent, SourceError> {
        let mut event = self.source.next(deadline, surfaces)?;
        if let SourceEvent::Frame(snapshot) = &mut event
            && !self.given_up.load(Ordering::Acquire)
        {
            if let Some(before) = self.before {
                // A source's first frame has time 0.
                let since = || before.time.saturating_add(before.at.elapsed()).as_nanos();
                let shift = *self.shift.get_or_insert_with(since);
                snapshot.time = MediaTime(snapshot.time.as_nanos().saturating_add(shift));
                snapshot.epoch = snapshot.epoch.wrapping_add(before.epoch).wrapping_add(1);
            }
            *lock(self.last) = Some(Last {
                time: snapshot.time,
                epoch: snapshot.epoch,
                at: Instant::now(),
            });
        }
        Ok(event)
    }

    fn at_end(&self) -> bool {
        self.source.at_end()
    }

    fn last_heard(&self) -> Option<Instant> {
        self.source.last_heard()
    }

    fn counters(&self) -> &Arc<SourceCounters> {
        self.source.counters()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::frame::{
        FrameInfo, PictureShape, PixelFormat, PlaneLayout, SurfaceLease, SurfacePool,
    };
    use crate::trace::FrameTrace;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A frame of epoch 0.
    fn frame(surface: SurfaceLease, millis: i64) -> Snapshot {
        let left = PlaneLayout {
            width: 16,
            height: 16,
            stride: 16,
            offset: 0,
            size: 256,
        };
        let info = FrameInfo {
            frame_id: 0,
            capture_ts_ns: 0,
            format: PixelFormat::Gray,
            left,
            encoded: None,
            frame_rate: None,
            payload_size: 256,
        };
        Snapshot {
            info,
            surface,
            epoch: 0,
            gap: false,
            time: MediaTime(millis * 1_000_000),
            trace: FrameTrace::default(),
        }
    }

    fn pool(count: usize) -> SurfacePool {
        let shape = PictureShape {
            width: 16,
            height: 16,
            format: PixelFormat::Gray,
            encoded: None,
        };
        SurfacePool::on_host(shape, count)
    }

    /// Says that it was asked, and has a frame when it is told to; says so when it goes, too.
    struct Slow {
        said: Sender<&'static str>,
        told: Receiver<()>,
        pool: SurfacePool,
        counters: Arc<SourceCounters>,
    }

    impl FrameSource for Slow {
        fn next(
            &mut self,
            _deadline: Instant,
            _surfaces: &mut dyn SurfaceSource,
        ) -> Result<SourceEvent, SourceError> {
            self.said.send("asked").unwrap();
            self.told.recv().unwrap();
            let surface = self.pool.take().expect("one of two");
            Ok(SourceEvent::Frame(frame(surface, 0)))
        }

        fn counters(&self) -> &Arc<SourceCounters> {
            &self.counters
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.said.send("gone");
        }
    }

    struct Scene {
        reader: Arc<Reader>,
        state: Arc<IngestState>,
        stop: StopToken,
        said: Receiver<&'static str>,
        tell: Sender<()>,
        _folder: tempfile::TempDir,
    }

    /// A thread that is in a call; a producer that is not there would be listened to after it.
    fn scene() -> Scene {
        let (folder, stop) = (tempfile::tempdir().unwrap(), StopToken::new());
        let state = Arc::<IngestState>::default();
        let again = CvMmapConfig {
            shm_name: format!("cvmmaptest_{}_nobody", std::process::id()),
            zmq_endpoint: format!("ipc://{}/nobody", folder.path().display()),
            ..CvMmapConfig::default()
        };
        let limits = IngestLimits {
            max_frames: None,
            idle_timeout: None,
            lossless: false,
        };
        let surfaces = Surfaces::Encoder { passthrough: false };
        let reader = Reader::new(1, surfaces, limits, &state, &stop, Some(again));
        let ((say, said), (tell, told)) = (channel(), channel());
        let source = Slow {
            said: say,
            told,
            pool: pool(2),
            counters: Arc::default(),
        };
        reader.start(Box::new(source)).unwrap();
        assert_eq!(said.recv_timeout(PATIENCE), Ok("asked"));
        Scene {
            reader,
            state,
            stop,
            said,
            tell,
            _folder: folder,
        }
    }

    #[test]
    fn a_thread_that_comes_back_after_another_took_its_place_touches_nothing() {
        let scene = scene();
        scene.reader.replace();
        scene.tell.send(()).unwrap();
        assert_eq!(scene.said.recv_timeout(PATIENCE), Ok("gone"));
        assert_eq!(scene.state.frames.load(Ordering::Relaxed), 0);
        assert!(!scene.stop.is_stopped());
        let open = scene.reader.queue.pop(Instant::now());
        assert_eq!(format!("{open:?}"), "TimedOut");
        scene.stop.stop(StopReason::Signal);
        assert!(matches!(scene.reader.wait(), Ended::Well));
    }

    #[test]
    fn a_thread_that_is_kept_is_not_waited_for() {
        let scene = scene();
        scene.stop.stop(StopReason::Error);
        scene.reader.give_up();
        assert!(matches!(scene.reader.wait(), Ended::Kept));
        scene.tell.send(()).unwrap();
        assert_eq!(scene.said.recv_timeout(PATIENCE), Ok("gone"));
    }

    /// Frames at 0, 40 and 80 ms.
    struct Three(SurfacePool, i64);

    impl FrameSource for Three {
        fn next(
            &mut self,
            _deadline: Instant,
            _surfaces: &mut dyn SurfaceSource,
        ) -> Result<SourceEvent, SourceError> {
            self.1 += 1;
            let surface = self.0.take().expect("as many as frames");
            Ok(SourceEvent::Frame(frame(surface, (self.1 - 1) * 40)))
        }

        fn counters(&self) -> &Arc<SourceCounters> {
            unreachable!("nobody asks")
        }
    }

    #[test]
    fn times_and_epochs_follow_those_of_the_thread_before() {
        let before = Last {
            time: MediaTime(7_000_000_000),
            epoch: 4,
            at: Instant::now(),
        };
        let (last, given_up) = (Mutex::new(None), AtomicBool::new(false));
        let mut three = Three(pool(3), 0);
        let mut source = Continued {
            source: &mut three,
            before: Some(before),
            shift: None,
            last: &last,
            given_up: &given_up,
        };
        let mut surfaces = CountingSurfaces::default();
        let mut next = || match source.next(Instant::now(), &mut surfaces) {
            Ok(SourceEvent::Frame(frame)) => (frame.time.as_nanos(), frame.epoch),
            other => panic!("{other:?}"),
        };
        let (first, epoch) = next();
        // By our own clock, and at least by the time that has passed.
        assert!(first > before.time.as_nanos() && epoch == 5);
        assert_eq!(next(), (first + 40_000_000, 5));
        assert_eq!(next(), (first + 80_000_000, 5));
        let last = last.lock().unwrap().expect("three frames came");
        assert_eq!((last.time.as_nanos(), last.epoch), (first + 80_000_000, 5));
    }
}
