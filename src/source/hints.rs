//! What others tell the source about its producer, such as status events over NATS, and what it
//! says of itself.
//!
//! They are hints: status and frames travel on different transports, in no order, and one event
//! may be told twice (contract section 5.3). The source decides what they mean together with
//! what the frames show.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

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

/// What the producer says of itself (`source.info`, contract section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nature {
    pub clock: Clock,
    /// Capture time of the last frame, where there is one: of a recording that does not begin
    /// anew at its end.
    pub last_capture_ns: Option<u64>,
}

/// Which clock capture times are read from (`TimestampDomain`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// It does not say: times near now are taken for Unix time.
    #[default]
    Unknown,
    /// Nanoseconds since 1970, also those of a recording.
    UnixEpoch,
    /// Nanoseconds since any beginning, 0 among them.
    MediaTime,
}

#[derive(Debug)]
struct Shared {
    /// The last of online (1) and offline (2); 0 for none since the last look.
    link: AtomicU8,
    reset: AtomicBool,
    /// Unix time (1), media time (2).
    clock: AtomicU8,
    /// [`NO_END`] for none.
    last_capture_ns: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            link: AtomicU8::new(0),
            reset: AtomicBool::new(false),
            clock: AtomicU8::new(0),
            last_capture_ns: AtomicU64::new(NO_END),
        }
    }
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

    /// Tells what the producer says of itself; the default where that is no longer known.
    pub fn describe(&self, nature: Nature) {
        let clock = match nature.clock {
            Clock::Unknown => 0,
            Clock::UnixEpoch => 1,
            Clock::MediaTime => 2,
        };
        let last = nature.last_capture_ns.unwrap_or(NO_END);
        // Relaxed, and one after the other: for one frame the two may be of different producers.
        self.0.clock.store(clock, Ordering::Relaxed);
        self.0.last_capture_ns.store(last, Ordering::Relaxed);
    }

    pub(super) fn nature(&self) -> Nature {
        let last = self.0.last_capture_ns.load(Ordering::Relaxed);
        Nature {
            clock: match self.0.clock.load(Ordering::Relaxed) {
                1 => Clock::UnixEpoch,
                2 => Clock::MediaTime,
                _ => Clock::Unknown,
            },
            last_capture_ns: (last != NO_END).then_some(last),
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

/// Nothing is captured at the end of all times.
const NO_END: u64 = u64::MAX;
