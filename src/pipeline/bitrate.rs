//! The signal "another bit rate", from the control plane to the encode stage, and its answer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct BitrateRequests(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// bit/s; 0 when nothing is wanted.
    wanted: AtomicU32,
    answer: Mutex<Option<BitrateAnswer>>,
}

/// What really happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitrateAnswer {
    /// bit/s, as it was asked for.
    pub wanted: u32,
    /// The encoder that has the rate now, or why none has.
    pub result: Result<String, String>,
}

impl BitrateRequests {
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the encoder for `bits_per_second` from the next picture on. Asking again before the
    /// encode stage has looked replaces the first wish.
    pub fn ask(&self, bits_per_second: u32) {
        *self.slot() = None;
        // Relaxed: the number publishes nothing but itself.
        self.0.wanted.store(bits_per_second, Ordering::Relaxed);
    }

    /// Takes a wish back; false if the encode stage has taken it already, and may yet follow it.
    pub fn withdraw(&self) -> bool {
        self.0.wanted.swap(0, Ordering::Relaxed) != 0
    }

    /// For the encode stage, once per picture: one load when nothing is wanted.
    pub fn take(&self) -> Option<u32> {
        if self.0.wanted.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.0.wanted.swap(0, Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// For the encode stage: how it went.
    pub fn answer(&self, answer: BitrateAnswer) {
        *self.slot() = Some(answer);
    }

    /// How the last wish went, once.
    pub fn answered(&self) -> Option<BitrateAnswer> {
        self.slot().take()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<BitrateAnswer>> {
        self.0.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_taken_once_and_answered_once() {
        let requests = BitrateRequests::new();
        assert_eq!(requests.take(), None);
        requests.ask(1);
        requests.ask(2);
        assert_eq!(requests.take(), Some(2));
        assert_eq!(requests.take(), None);
        let answer = BitrateAnswer {
            wanted: 2,
            result: Err("it has none".into()),
        };
        requests.answer(answer.clone());
        assert_eq!(requests.answered(), Some(answer));
        assert_eq!(requests.answered(), None);
        requests.ask(3);
        assert!(requests.withdraw());
        assert_eq!(requests.take(), None);
        assert!(!requests.withdraw());
    }
}
