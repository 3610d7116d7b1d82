//! What receivers say, and how often it becomes a key frame.

use std::time::{Duration, Instant};

use crate::rtp::rtcp::{self, Feedback, NtpTime};

/// Reads RTCP from receivers.
#[derive(Debug)]
pub(super) struct Feedbacks {
    ssrc: u32,
    /// The last full intra request of each sender; the oldest is forgotten first.
    requests: [Option<(u32, u8)>; 8],
    next: usize,
}

impl Feedbacks {
    pub(super) fn new(ssrc: u32) -> Self {
        Self {
            ssrc,
            requests: [None; 8],
            next: 0,
        }
    }

    /// Takes one datagram in and gives the number of key frames it asks for.
    pub(super) fn take(&mut self, datagram: &[u8], now: NtpTime, name: &str) -> u64 {
        if !rtcp::is_rtcp(datagram) {
            return 0;
        }
        let mut wanted = 0;
        rtcp::parse(datagram, |feedback| match feedback {
            Feedback::PictureLoss { media, .. } if media == self.ssrc => wanted += 1,
            Feedback::FullIntra {
                sender,
                media,
                sequence,
            } if media == self.ssrc && self.is_new(sender, sequence) => wanted += 1,
            Feedback::Report(block) if block.source == self.ssrc => log::debug!(
                "{name}: receiver {:08x} lost {} packets, {:.1} % lately; jitter {} ticks, round trip {:?} ms",
                block.reporter,
                block.cumulative_lost,
                f64::from(block.fraction_lost) / 2.56,
                block.jitter,
                block
                    .round_trip(now)
                    .map(|trip| u64::from(trip) * 1000 / 65_536),
            ),
            _ => {}
        });
        wanted
    }

    /// RFC 5104 section 4.3.1.1: the same number again is the same request.
    fn is_new(&mut self, sender: u32, sequence: u8) -> bool {
        let known = self
            .requests
            .iter_mut()
            .flatten()
            .find(|request| request.0 == sender);
        match known {
            Some(request) => std::mem::replace(&mut request.1, sequence) != sequence,
            None => {
                self.requests[self.next] = Some((sender, sequence));
                self.next = (self.next + 1) % self.requests.len();
                true
            }
        }
    }
}

/// Turns any number of wishes into key frames at a bearable distance.
#[derive(Debug, Default)]
pub(super) struct KeyFrameAsker {
    last: Option<Instant>,
    due: Option<Instant>,
}

impl KeyFrameAsker {
    /// Between two key frames that were asked for.
    pub(super) const PAUSE: Duration = Duration::from_millis(500);
    /// The same while nothing can be sent: other sinks pay for each of them.
    pub(super) const LONG_PAUSE: Duration = Duration::from_secs(2);

    /// A key frame is needed, at the latest as soon as the pause after the last one is over.
    pub(super) fn want(&mut self, now: Instant, pause: Duration) {
        let due = self.last.map_or(now, |last| (last + pause).max(now));
        self.due.get_or_insert(due);
    }

    /// A key frame is asked for by somebody who will ask again.
    pub(super) fn want_now_or_never(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now >= last + Self::PAUSE) {
            self.due = Some(now);
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// True once for each wish whose time has come.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| now >= due);
        if is_due {
            self.due = None;
            self.last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: NtpTime = NtpTime(0);

    fn pli(media: u8) -> Vec<u8> {
        vec![0x81, 206, 0, 2, 0, 0, 0, 9, 0, 0, 0, media]
    }

    fn fir(sender: u8, media: u8, sequence: u8) -> Vec<u8> {
        #[rustfmt::skip]
        let fir = vec![
            0x84, 206, 0, 4,
            0, 0, 0, sender, 0, 0, 0, 0,
            0, 0, 0, media, sequence, 0, 0, 0,
        ];
        fir
    }

    #[test]
    fn only_what_concerns_our_stream_counts() {
        let mut feedbacks = Feedbacks::new(5);
        assert_eq!(feedbacks.take(&pli(5), NOW, ""), 1);
        assert_eq!(feedbacks.take(&pli(6), NOW, ""), 0);
        assert_eq!(feedbacks.take(&[0x80, 96, 0, 0], NOW, ""), 0);
    }

    #[test]
    fn a_full_intra_request_that_is_repeated_is_one() {
        let mut feedbacks = Feedbacks::new(5);
        let mut take = |sender, sequence| feedbacks.take(&fir(sender, 5, sequence), NOW, "");
        assert_eq!(take(1, 0), 1);
        assert_eq!(take(1, 0), 0);
        assert_eq!(take(2, 0), 1);
        assert_eq!(take(1, 1), 1);
        assert_eq!((3..12).map(|sender| take(sender, 0)).sum::<u64>(), 9);
        assert_eq!(feedbacks.take(&fir(1, 6, 9), NOW, ""), 0);
    }

    #[test]
    fn requests_of_receivers_are_at_least_half_a_second_apart() {
        let start = Instant::now();
        let mut asker = KeyFrameAsker::default();
        let mut asked = |ms| {
            let now = start + Duration::from_millis(ms);
            asker.want_now_or_never(now);
            asker.take_due(now)
        };
        assert_eq!(
            [0, 10, 499, 500, 700, 1000].map(&mut asked),
            [true, false, false, true, false, true]
        );
    }

    #[test]
    fn a_need_of_our_own_is_put_off_but_not_forgotten() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut asker = KeyFrameAsker::default();
        asker.want(at(0), KeyFrameAsker::PAUSE);
        assert!(asker.take_due(at(0)));
        asker.want(at(100), KeyFrameAsker::PAUSE);
        assert!(!asker.take_due(at(100)));
        asker.want(at(200), KeyFrameAsker::LONG_PAUSE);
        assert_eq!(asker.due(), Some(at(500)));
        assert!(asker.take_due(at(500)));
        assert!(!asker.take_due(at(3000)));
    }
}
