//! One publisher's connection: its socket, its session, and the faults that are switched on for it.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::handshake::BLOCK_BYTES;
use super::server::{End, Faults};
use super::session::Session;
use super::stream::StreamCheck;
use super::video::Mode;

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) session: Session,
    pub(super) check: StreamCheck,
    pub(super) received: u64,
    pub(super) output: Vec<u8>,
    pub(super) sent: u64,
    pub(super) opened: Instant,
    /// When `publish` was answered.
    pub(super) published: Option<Instant>,
    pub(super) first_frame: Option<Instant>,
    pub(super) last_input: Instant,
    pub(super) stalled_since: Option<Instant>,
    pub(super) stall_is_over: bool,
    pub(super) next_ping: Option<Instant>,
    pub(super) faulty: bool,
}

impl Client {
    /// Bytes that may be read now, by the faults that are switched on.
    pub(super) fn room(&mut self, faults: &Faults, now: Instant) -> u64 {
        if !self.faulty {
            return u64::MAX;
        }
        let mut room = u64::MAX;
        if let Some(rate) = faults.slow {
            let allowed = u128::from(rate) * (now - self.opened).as_millis() / 1000;
            room = (allowed as u64).saturating_sub(self.received);
        }
        if let Some(limit) = faults.close_after {
            room = room.min(limit.saturating_sub(self.received));
        }
        if let Some(limit) = faults.stall_after.filter(|_| !self.stall_is_over) {
            let left = limit.saturating_sub(self.received);
            if left == 0 {
                let since = *self.stalled_since.get_or_insert(now);
                let over = faults.stall_for.is_some_and(|limit| now - since >= limit);
                self.stall_is_over = over;
                if over {
                    self.last_input = now;
                    return room;
                }
            }
            room = room.min(left);
        }
        room
    }

    /// Notes what the bytes just read have brought.
    pub(super) fn note_progress(&mut self) {
        if self.published.is_none() && self.session.is_publishing() {
            self.published = Some(Instant::now());
        }
        if self.first_frame.is_none() && self.check.counters().frames > 0 {
            self.first_frame = Some(Instant::now());
        }
    }

    pub(super) fn publish_to_frame_ms(&self) -> Option<u64> {
        let took = self.first_frame?.saturating_duration_since(self.published?);
        Some(took.as_millis() as u64)
    }

    /// What the peer's close or reset means.
    pub(super) fn closed(&self) -> End {
        // A publisher may close so soon after its goodbye that only a reset arrives.
        if self.session.is_unpublished() {
            End::Unpublished
        } else {
            End::ClosedByPeer
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_since.is_some() && !self.stall_is_over
    }

    /// What can be said only when the connection is over.
    pub(super) fn judge_duties(&mut self, mode: Mode, window: u32) {
        let facts = self.session.facts();
        if mode != Mode::H265Enhanced && !facts.capabilities.is_empty() {
            let names = facts.capabilities.join(", ");
            self.check
                .warning(|| format!("connect names {names}; only enhanced mode needs them"));
        }
        let facts = self.session.facts();
        let silent = facts.pings.saturating_sub(facts.pongs);
        // The last request may still be under way.
        if silent > 1 {
            self.check
                .warning(|| format!("{silent} PingRequests without an answer"));
        }
        let after_handshake = self.sent.saturating_sub(1 + 2 * BLOCK_BYTES as u64);
        let due = after_handshake / u64::from(window);
        if self.session.facts().acknowledgements == 0 && due > 2 {
            self.check
                .warning(|| format!("no Acknowledgement, where {due} were due"));
        }
    }

    /// Sends what the socket takes.
    pub(super) fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.sent += sent as u64;
                    self.output.drain(..sent);
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
