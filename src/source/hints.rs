//! What others tell the source about its producer, such as status events over NATS.
//!
//! They are hints: status and frames travel on different transports, in no order, and one event
//! may be told twice (contract section 5.3). The source decides what they mean together with
//! what the frames show.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Handle to a source's ear; cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct StatusHints(Arc<Shared>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusHint {
    Online,
    Offline,
    /// The stream starts anew: a wrap of a recording, another playlist.
    StreamReset,
}

#[derive(Debug, Default)]
struct Shared {
    /// The last of online (1) and offline (2); 0 for none since the last look.
    link: AtomicU8,
    reset: AtomicBool,
}

/// Everything that was told since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub link: Option<StatusHint>,
    pub reset: bool,
}

impl StatusHints {
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells the source; it looks within a tenth of a second.
    pub fn tell(&self, hint: StatusHint) {
        // Relaxed: the flags publish nothing but themselves.
        match hint {
            StatusHint::Online => self.0.link.store(1, Ordering::Relaxed),
            StatusHint::Offline => self.0.link.store(2, Ordering::Relaxed),
            StatusHint::StreamReset => self.0.reset.store(true, Ordering::Relaxed),
        }
    }

    pub(super) fn take(&self) -> Told {
        Told {
            link: match self.0.link.swap(0, Ordering::Relaxed) {
                1 => Some(StatusHint::Online),
                2 => Some(StatusHint::Offline),
                _ => None,
            },
            reset: self.0.reset.swap(false, Ordering::Relaxed),
        }
    }
}
