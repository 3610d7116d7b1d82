//! Feedback to the sender: receiver reports with requests for a key frame.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::receiver::Receiver;
use super::rtcp::{Feedback, receiver_compound};
use super::socket::{Channel, Sockets};
use crate::producer::unix_ns;

/// The receiver's own SSRC in reports.
const OWN_SSRC: u32 = 0x5245_4645;

/// Sends receiver reports with requests for a key frame, to where RTCP came from, or else RTP.
#[derive(Debug)]
pub struct FeedbackSender {
    every: Option<Duration>,
    fir: bool,
    next: Instant,
    peer: Option<(Channel, SocketAddr)>,
    media_peer: Option<SocketAddr>,
    sent: u64,
}

impl FeedbackSender {
    /// Without `every` nothing is ever sent.
    pub fn new(every: Option<Duration>, fir: bool) -> Self {
        let next = Instant::now() + every.unwrap_or_default();
        FeedbackSender {
            every,
            fir,
            next,
            peer: None,
            media_peer: None,
            sent: 0,
        }
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// RTCP has come from there.
    pub fn peer(&mut self, channel: Channel, from: SocketAddr) {
        self.peer = Some((channel, from));
    }

    /// RTP has come from there.
    pub fn media_peer(&mut self, from: SocketAddr) {
        self.media_peer = Some(from);
    }

    /// The time until the next request.
    pub fn next_in(&self, now: Instant) -> Duration {
        self.every
            .map_or(Duration::MAX, |_| self.next.saturating_duration_since(now))
    }

    pub fn send_if_due(&mut self, sockets: &Sockets, receiver: &mut Receiver) {
        let Some(every) = self.every else { return };
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + every;
        let to = self
            .peer
            .or(self.media_peer.map(|peer| (Channel::Rtp, peer)));
        let (Some((channel, to)), Some(block)) = (to, receiver.report_block(unix_ns())) else {
            return;
        };
        let feedback = if self.fir {
            Feedback::Fir(self.sent as u8)
        } else {
            Feedback::Pli
        };
        // A sender that is gone shows as silence; there is nobody to tell here.
        if sockets
            .send(
                channel,
                &receiver_compound(OWN_SSRC, &block, Some(feedback)),
                to,
            )
            .is_ok()
        {
            self.sent += 1;
        }
    }
}
