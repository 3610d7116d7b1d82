//! Bounded and overwriting: the newest frame wins, the evicted one comes back to the pusher.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::pipeline::stop::StopToken;

/// A queue between one popper and one pusher, which waits only where it says so.
///
/// std's `Mutex` and `Condvar` on purpose: at frame distances the price is waking a halted core,
/// and every primitive that was measured pays it alike. The lock is held for a push or a pop of a
/// pointer, never across a system call of ours.
#[derive(Debug)]
pub struct LatestQueue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    /// An item was taken out; waited for by [`LatestQueue::push_waiting`] only.
    room: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    closed: bool,
    nudged: bool,
    popper_waits: bool,
    pusher_waits: bool,
}

/// What a pop found.
#[derive(Debug, PartialEq, Eq)]
pub enum Popped<T> {
    Item(T),
    /// Somebody called [`LatestQueue::nudge`].
    Nudged,
    TimedOut,
    /// Closed and empty.
    Closed,
}

impl<T> LatestQueue<T> {
    /// # Panics
    ///
    /// If `capacity` is 0.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a queue holds at least one item");
        Self {
            state: Mutex::new(State {
                items: VecDeque::with_capacity(capacity),
                closed: false,
                nudged: false,
                popper_waits: false,
                pusher_waits: false,
            }),
            ready: Condvar::new(),
            room: Condvar::new(),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `item` in and gives back what had to go for it: the oldest one if the queue was full,
    /// `item` itself if it is closed.
    #[must_use = "the evicted item is to be counted"]
    pub fn push(&self, item: T) -> Option<T> {
        let (evicted, popper_waits) = {
            let mut state = self.lock();
            if state.closed {
                return Some(item);
            }
            let evicted = if state.items.len() == self.capacity {
                state.items.pop_front()
            } else {
                None
            };
            state.items.push_back(item);
            (evicted, state.popper_waits)
        };
        // Waking costs a system call, wanted or not: only when somebody sleeps.
        if popper_waits {
            self.ready.notify_one();
        }
        evicted
    }

    /// Puts `item` in, waiting for room until `stop`: for a source that can wait, such as a file, and
    /// for an encoder that is only starting.
    /// Gives it back if the queue is closed or the run stops.
    pub fn push_waiting(&self, item: T, stop: &StopToken) -> Option<T> {
        let mut state = self.lock();
        while state.items.len() == self.capacity && !state.closed {
            if stop.is_stopped() {
                return Some(item);
            }
            state.pusher_waits = true;
            state = self
                .room
                .wait_timeout(state, Duration::from_millis(50))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.pusher_waits = false;
        }
        drop(state);
        // One pusher only: nobody else can have taken the room.
        self.push(item)
    }

    /// Wakes the popper without an item.
    pub fn nudge(&self) {
        self.lock().nudged = true;
        self.ready.notify_one();
    }

    /// No more items; those inside are still given out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
        self.room.notify_all();
    }

    /// The oldest item, waiting for one until `deadline`.
    pub fn pop(&self, deadline: Instant) -> Popped<T> {
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.nudged) {
                return Popped::Nudged;
            }
            if let Some(item) = state.items.pop_front() {
                if state.pusher_waits {
                    self.room.notify_one();
                }
                return Popped::Item(item);
            }
            if state.closed {
                return Popped::Closed;
            }
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Popped::TimedOut;
            }
            state.popper_waits = true;
            state = self
                .ready
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.popper_waits = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_newest_wins_and_the_evicted_comes_back() {
        let queue = LatestQueue::new(1);
        assert_eq!(queue.push(1), None);
        assert_eq!(queue.push(2), Some(1));
        assert_eq!(queue.pop(now()), Popped::Item(2));
        assert_eq!(queue.pop(now()), Popped::TimedOut);
    }

    #[test]
    fn order_is_kept_up_to_the_capacity() {
        let queue = LatestQueue::new(3);
        let evicted: Vec<_> = (0..5).filter_map(|n| queue.push(n)).collect();
        assert_eq!(evicted, [0, 1]);
        let left: Vec<_> = (0..3).map(|_| queue.pop(now())).collect();
        assert_eq!(left, [Popped::Item(2), Popped::Item(3), Popped::Item(4)]);
    }

    #[test]
    fn closing_drains_then_ends_and_refuses() {
        let queue = LatestQueue::new(2);
        assert_eq!(queue.push(7), None);
        queue.close();
        assert_eq!(queue.push(8), Some(8));
        assert_eq!(queue.pop(now()), Popped::Item(7));
        assert_eq!(queue.pop(now()), Popped::Closed);
    }

    #[test]
    fn a_nudge_wakes_a_waiting_popper() {
        let queue = LatestQueue::<()>::new(1);
        std::thread::scope(|scope| {
            let popper = scope.spawn(|| queue.pop(now() + Duration::from_secs(60)));
            queue.nudge();
            assert_eq!(popper.join().unwrap(), Popped::Nudged);
        });
    }
}
