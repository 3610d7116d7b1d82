//! A thread that works until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Dropped, it is told to stop and waited for.
#[derive(Debug)]
pub struct Worker<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `work`, which has to look at its flag often: setting it is how it is stopped.
    pub fn start(work: impl FnOnce(&Arc<AtomicBool>) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || work(&stop)
        });
        Worker {
            stop,
            thread: Some(thread),
        }
    }
}

impl<T> Worker<T> {
    /// Stops it, and gives what it came to.
    ///
    /// # Errors
    ///
    /// What it panicked with.
    pub fn end(mut self) -> std::thread::Result<T> {
        self.tell();
        self.thread.take().expect("taken here alone").join()
    }

    fn tell(&self) {
        // Relaxed: the flag guards no other data, and the join orders what the work has written.
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.tell();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until_told(stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_worker_ends_when_it_is_told_and_gives_its_result() {
        let worker = Worker::start(|stop| {
            until_told(stop);
            7
        });
        assert_eq!(worker.end().expect("no panic"), 7);
    }

    #[test]
    fn a_dropped_worker_is_waited_for() {
        let (sender, receiver) = std::sync::mpsc::channel();
        drop(Worker::start(move |stop| {
            until_told(stop);
            sender.send(()).expect("the receiver is there");
        }));
        assert_eq!(receiver.try_recv(), Ok(()));
    }
}
