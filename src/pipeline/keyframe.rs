//! The signal "key frame wanted", from anyone downstream to the encode stage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct KeyFrameRequests(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    wanted: AtomicBool,
    asked: AtomicU64,
}

impl KeyFrameRequests {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next picture an IDR. Asking twice before it comes is asking once.
    pub fn ask(&self) {
        // Relaxed: the flag publishes nothing but itself.
        self.0.wanted.store(true, Ordering::Relaxed);
        self.0.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one is wanted; asking again starts anew.
    pub fn take(&self) -> bool {
        self.0.wanted.swap(false, Ordering::Relaxed)
    }

    /// How often anyone has asked.
    pub fn asked(&self) -> u64 {
        self.0.asked.load(Ordering::Relaxed)
    }
}
