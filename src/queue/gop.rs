//! Bounded and GOP-aware: after a drop it takes nothing until the next key frame.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::latest::Popped;
use crate::bitstream::AccessUnit;

/// What became of an access unit that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Taken,
    /// The queue was full: the gate is closed from here to the next key frame.
    GateClosed,
    /// The gate was closed already.
    Gated,
    /// The receiver is gone.
    Gone,
}

/// The fan-out's end.
#[derive(Debug)]
pub struct GopSender(Arc<Shared>);

/// The sink's end.
#[derive(Debug)]
pub struct GopReceiver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ready: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State {
    units: VecDeque<Arc<AccessUnit>>,
    /// Nothing but a key frame gets in. Closed at the start too: a stream begins with one.
    gated: bool,
    closed: bool,
    gone: bool,
}

/// A queue of at most `capacity` access units from the fan-out to one sink.
///
/// # Panics
///
/// If `capacity` is 0.
pub fn gop_queue(capacity: usize) -> (GopSender, GopReceiver) {
    assert!(capacity > 0, "a queue holds at least one access unit");
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            units: VecDeque::with_capacity(capacity),
            gated: true,
            closed: false,
            gone: false,
        }),
        ready: Condvar::new(),
        capacity,
    });
    (GopSender(Arc::clone(&shared)), GopReceiver(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GopSender {
    /// Offers a unit; never waits.
    pub fn offer(&self, unit: &Arc<AccessUnit>) -> Offer {
        {
            let mut state = self.0.lock();
            if state.gone {
                return Offer::Gone;
            }
            if state.gated && !unit.key {
                return Offer::Gated;
            }
            if state.units.len() == self.0.capacity {
                let was_open = !state.gated;
                state.gated = true;
                return if was_open {
                    Offer::GateClosed
                } else {
                    Offer::Gated
                };
            }
            state.gated = false;
            state.units.push_back(Arc::clone(unit));
        }
        self.0.ready.notify_one();
        Offer::Taken
    }
}

impl Drop for GopSender {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.ready.notify_all();
    }
}

impl GopReceiver {
    /// The oldest unit, waiting for one until `deadline`.
    pub fn pop(&self, deadline: Instant) -> Popped<Arc<AccessUnit>> {
        let mut state = self.0.lock();
        loop {
            if let Some(unit) = state.units.pop_front() {
                return Popped::Item(unit);
            }
            if state.closed {
                return Popped::Closed;
            }
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Popped::TimedOut;
            }
            state = self
                .0
                .ready
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Throws away what waits and closes the gate: the next unit will be a key frame. Gives the
    /// number of units thrown away.
    pub fn restart_at_key_frame(&self) -> usize {
        let mut state = self.0.lock();
        state.gated = true;
        let dropped = state.units.len();
        state.units.clear();
        dropped
    }

    pub fn len(&self) -> usize {
        self.0.lock().units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for GopReceiver {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.gone = true;
        state.units.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::AccessUnitPool;
    use crate::encode::{Codec, EncodedPicture, EncodedQueue};

    struct Units(AccessUnitPool, EncodedQueue);

    impl Units {
        fn new() -> Self {
            Self(AccessUnitPool::new(Codec::H264), EncodedQueue::new())
        }

        fn unit(&mut self, data: &[u8]) -> Arc<AccessUnit> {
            let picture = EncodedPicture {
                data: data.to_vec(),
                ..EncodedPicture::default()
            };
            self.0.make(picture, &mut self.1, |_| ()).unwrap()
        }

        fn key(&mut self) -> Arc<AccessUnit> {
            self.unit(&[0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 1, 0, 0, 1, 0x65, 1])
        }

        fn inter(&mut self) -> Arc<AccessUnit> {
            self.unit(&[0, 0, 1, 0x41, 1])
        }
    }

    #[test]
    fn a_stream_starts_at_a_key_frame() {
        let (mut units, (tx, _rx)) = (Units::new(), gop_queue(4));
        assert_eq!(tx.offer(&units.inter()), Offer::Gated);
        assert_eq!(tx.offer(&units.key()), Offer::Taken);
        assert_eq!(tx.offer(&units.inter()), Offer::Taken);
    }

    #[test]
    fn a_full_queue_closes_the_gate_until_the_next_key_frame() {
        let (mut units, (tx, rx)) = (Units::new(), gop_queue(2));
        assert_eq!(tx.offer(&units.key()), Offer::Taken);
        assert_eq!(tx.offer(&units.inter()), Offer::Taken);
        assert_eq!(tx.offer(&units.inter()), Offer::GateClosed);
        let Popped::Item(_) = rx.pop(Instant::now()) else {
            panic!("a unit waits");
        };
        // There is room again, but the reference of this picture is lost.
        assert_eq!(tx.offer(&units.inter()), Offer::Gated);
        assert_eq!(tx.offer(&units.key()), Offer::Taken);
        assert_eq!(tx.offer(&units.key()), Offer::GateClosed);
    }

    #[test]
    fn ends_are_seen_on_the_other_side() {
        let (mut units, (tx, rx)) = (Units::new(), gop_queue(2));
        assert_eq!(tx.offer(&units.key()), Offer::Taken);
        drop(tx);
        assert!(matches!(rx.pop(Instant::now()), Popped::Item(_)));
        assert!(matches!(rx.pop(Instant::now()), Popped::Closed));
        let (tx, rx) = gop_queue(2);
        drop(rx);
        assert_eq!(tx.offer(&units.key()), Offer::Gone);
    }

    #[test]
    fn a_restart_counts_what_it_throws_away() {
        let (mut units, (tx, rx)) = (Units::new(), gop_queue(4));
        tx.offer(&units.key());
        tx.offer(&units.inter());
        assert_eq!(rx.restart_at_key_frame(), 2);
        assert_eq!(tx.offer(&units.inter()), Offer::Gated);
        assert_eq!(rx.len(), 0);
    }
}
