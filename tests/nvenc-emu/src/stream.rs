//! Streams and events. Work is really asynchronous: each stream has a thread and a queue.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::config::config;

/// Taken for a moment before each piece of work.
static GATE: Mutex<()> = Mutex::new(());

/// Keeps what is queued on streams from beginning, for as long as this is held: a test that has to be ahead of the
/// GPU is, whatever the machine does meanwhile.
pub fn hold() -> MutexGuard<'static, ()> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

type Work = Box<dyn FnOnce() + Send>;

pub struct Stream {
    sender: Mutex<Option<Sender<Work>>>,
    progress: Arc<Progress>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
pub struct Progress {
    counts: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Progress {
    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, u64)> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the first `ticket` pieces of work are done.
    pub fn reached(&self, ticket: u64) -> bool {
        self.lock().1 >= ticket
    }

    pub fn wait(&self, ticket: u64) {
        let mut counts = self.lock();
        while counts.1 < ticket {
            counts = self
                .changed
                .wait(counts)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Stream {
    pub fn new() -> Self {
        let (sender, receiver) = channel::<Work>();
        let progress = Arc::new(Progress::default());
        let theirs = Arc::clone(&progress);
        let thread = std::thread::spawn(move || {
            for work in receiver {
                drop(hold());
                work();
                theirs.lock().1 += 1;
                theirs.changed.notify_all();
            }
        });
        Self {
            sender: Mutex::new(Some(sender)),
            progress,
            thread: Mutex::new(Some(thread)),
        }
    }

    pub fn push(&self, work: impl FnOnce() + Send + 'static) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            self.progress.lock().0 += 1;
            let _ = sender.send(Box::new(work));
        }
    }

    /// The place behind everything that is queued now.
    pub fn ticket(&self) -> (Arc<Progress>, u64) {
        (Arc::clone(&self.progress), self.progress.lock().0)
    }

    pub fn is_idle(&self) -> bool {
        let counts = self.progress.lock();
        counts.0 == counts.1
    }

    pub fn wait(&self) {
        let (progress, ticket) = self.ticket();
        progress.wait(ticket);
    }

    /// Lets what is queued finish and ends the thread.
    pub fn finish(&self) {
        self.sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// An event is the place in a stream where it was recorded last.
#[derive(Default, Clone)]
pub struct Event(pub Option<(Arc<Progress>, u64)>);

impl Event {
    pub fn is_done(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|(progress, ticket)| progress.reached(*ticket))
    }

    pub fn wait(&self) {
        if let Some((progress, ticket)) = &self.0 {
            progress.wait(*ticket);
        }
    }
}

/// What a copy is delayed by.
pub fn copy_delay() {
    let delay = config().copy_delay_us;
    if delay > 0 {
        std::thread::sleep(Duration::from_micros(delay));
    }
}
