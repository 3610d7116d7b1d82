//! Bounded and GOP-aware: after a drop it takes nothing until the next key frame.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::latest::Popped;
use crate::bitstream::AccessUnit;
use crate::pipeline::stop::StopToken;

/// What became of an access unit that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Taken,
    /// The queue was full: the gate is closed from here to the next key frame.
    GateClosed,
    /// The gate was closed already.
    Gated,
    /// The stream of this sink has not begun: it begins with a key frame, and this is none.
    NotStarted,
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
    /// A unit was taken out; waited for by [`GopSender::offer_waiting`] only.
    room: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State {
    units: VecDeque<Arc<AccessUnit>>,
    /// Nothing but a key frame gets in. Closed at the start too: a stream begins with one.
    gated: bool,
    /// A key frame has been in.
    started: bool,
    closed: bool,
    gone: bool,
    receiver_waits: bool,
    sender_waits: bool,
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
            started: false,
            closed: false,
            gone: false,
            receiver_waits: false,
            sender_waits: false,
        }),
        ready: Condvar::new(),
        room: Condvar::new(),
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
        let receiver_waits = {
            let mut state = self.0.lock();
            if state.gone {
                return Offer::Gone;
            }
            if state.gated && !unit.key {
                return if state.started {
                    Offer::Gated
                } else {
                    Offer::NotStarted
                };
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
            state.started = true;
            state.units.push_back(Arc::clone(unit));
            state.receiver_waits
        };
        // Waking costs a system call, wanted or not: only when somebody sleeps.
        if receiver_waits {
            self.0.ready.notify_one();
        }
        Offer::Taken
    }

    /// Offers a unit and waits for room until `stop`: for a source that can wait, such as a file.
    pub fn offer_waiting(&self, unit: &Arc<AccessUnit>, stop: &StopToken) -> Offer {
        let mut state = self.0.lock();
        while state.units.len() == self.0.capacity && !state.gone && !stop.is_stopped() {
            state.sender_waits = true;
            state = self
                .0
                .room
                .wait_timeout(state, Duration::from_millis(50))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.sender_waits = false;
        }
        drop(state);
        self.offer(unit)
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
                if state.sender_waits {
                    self.0.room.notify_one();
                }
                return Popped::Item(unit);
            }
            if state.closed {
                return Popped::Closed;
            }
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Popped::TimedOut;
            }
            state.receiver_waits = true;
            state = self
                .0
                .ready
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.receiver_waits = false;
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

    /// Frames were lost, there is room again, and nothing but a key frame helps.
    pub fn is_starved(&self) -> bool {
        let state = self.0.lock();
        state.gated && state.started && state.units.is_empty()
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
        self.0.room.notify_all();
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
        assert_eq!(tx.offer(&units.inter()), Offer::NotStarted);
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
        assert!(!rx.is_starved());
        let Popped::Item(_) = rx.pop(Instant::now()) else {
            panic!("a second unit waits");
        };
        assert!(rx.is_starved());
        assert_eq!(tx.offer(&units.key()), Offer::Taken);
        assert!(!rx.is_starved());
        assert_eq!(tx.offer(&units.key()), Offer::Taken);
        assert_eq!(tx.offer(&units.key()), Offer::GateClosed);
    }

    #[test]
    fn a_source_that_can_wait_loses_nothing() {
        let (mut units, (tx, rx)) = (Units::new(), gop_queue(1));
        let (stop, all) = (
            StopToken::new(),
            [units.key(), units.inter(), units.inter()],
        );
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| all.each_ref().map(|unit| tx.offer_waiting(unit, &stop)));
            let minute = Instant::now() + Duration::from_secs(60);
            for unit in &all {
                let Popped::Item(got) = rx.pop(minute) else {
                    panic!("a unit comes");
                };
                assert!(Arc::ptr_eq(&got, unit));
            }
            assert_eq!(sender.join().unwrap(), [Offer::Taken; 3]);
        });
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
