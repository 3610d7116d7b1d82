//! What a producer does wrong, step by step, between the four steps of a frame.

use std::time::{Duration, Instant};

use super::{Frame, Producer, ProducerError, block, unix_ns, wire};

impl Producer {
    /// Step 2, spread evenly over `time`, as a camera's library does that fills the region itself. Tight rows
    /// only, without depth planes. Gives the longest time that the writing stood still beyond its plan: the
    /// system had taken the core away.
    ///
    /// # Errors
    ///
    /// If the picture's size is not the shape's.
    pub fn write_payload_over(
        &mut self,
        frame: &Frame,
        time: Duration,
    ) -> Result<Duration, ProducerError> {
        self.check(frame)?;
        const PIECES: usize = 64;
        let start = Instant::now();
        let (mut last, mut longest) = (start, Duration::ZERO);
        let room = self.segment.payload_mut();
        let piece = frame.left.len().div_ceil(PIECES).max(1);
        for (n, (to, from)) in (0_u32..).zip(room.chunks_mut(piece).zip(frame.left.chunks(piece))) {
            to[..from.len()].copy_from_slice(from);
            let due = start + time * (n + 1) / PIECES as u32;
            // Not a sleep: a writer that waits gives the reader its core, and races nobody.
            while Instant::now() < due {
                std::hint::spin_loop();
                let now = Instant::now();
                longest = longest.max(now - last);
                last = now;
            }
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
        }
        Ok(longest)
    }

    /// Announces a frame that may be another than the one in the segment.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn announce_as(
        &mut self,
        id: u32,
        capture_ns: u64,
        label: &str,
    ) -> Result<(), ProducerError> {
        let message = wire::sync(id, capture_ns, label, self.noise.next_u64());
        self.announce_raw(&message)
    }

    /// Sends any bytes to those who wait for sync messages.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn announce_raw(&mut self, message: &[u8]) -> Result<(), ProducerError> {
        self.note_subscriptions()?;
        match self.socket.send(message, zmq::DONTWAIT) {
            Ok(()) | Err(zmq::Error::EAGAIN) => Ok(()),
            Err(source) => Err(self.socket_error(source)),
        }
    }

    /// The metadata of the current frame with `length` bytes from `at` on replaced by noise.
    pub fn write_spoilt_metadata(&mut self, at: usize, length: usize) {
        let mut metadata = block(&self.shape, &self.description);
        let end = (at + length).min(metadata.len());
        if let Some(spoilt) = metadata.get_mut(at..end) {
            self.noise.fill(spoilt);
        }
        self.segment.write_metadata(&metadata);
    }

    /// Readers that are subscribed now.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn readers(&mut self) -> Result<i64, ProducerError> {
        self.note_subscriptions()?;
        Ok(self.subscribers)
    }

    /// Nanoseconds of the system clock, moved by `offset`.
    pub fn time_at(offset: i64) -> u64 {
        unix_ns().saturating_add_signed(offset)
    }
}
