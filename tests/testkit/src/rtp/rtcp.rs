//! RTCP as a receiver needs it: sender reports and BYE in, receiver reports with PLI or FIR out
//! (RFC 3550 section 6, RFC 4585 section 6.3.1, RFC 5104 section 4.3.1).

use thiserror::Error;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SOURCE_DESCRIPTION: u8 = 202;
const BYE: u8 = 203;
const PAYLOAD_FEEDBACK: u8 = 206;
/// Between the NTP era of 1900 and 1970.
const NTP_TO_UNIX_SECONDS: u64 = 2_208_988_800;
const CNAME: &[u8] = b"referee";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderReport {
    pub ssrc: u32,
    /// 32.32 fixed point, seconds since 1900.
    pub ntp: u64,
    pub rtp_timestamp: u32,
    pub packets: u32,
    pub octets: u32,
}

impl SenderReport {
    /// The report's instant in nanoseconds since 1970; `None` before that.
    pub fn unix_ns(&self) -> Option<u64> {
        let seconds = (self.ntp >> 32).checked_sub(NTP_TO_UNIX_SECONDS)?;
        let fraction = ((self.ntp & 0xFFFF_FFFF) * 1_000_000_000) >> 32;
        Some(seconds * 1_000_000_000 + fraction)
    }

    /// What a receiver report quotes as LSR: the middle 32 bits.
    pub fn middle(&self) -> u32 {
        (self.ntp >> 16) as u32
    }
}

/// What one compound packet holds that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compound {
    pub sender_reports: Vec<SenderReport>,
    /// Sources that say goodbye.
    pub byes: Vec<u32>,
    pub has_cname: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RtcpError {
    #[error("an RTCP packet shorter than it says")]
    Length,
    #[error("RTCP version {0} instead of 2")]
    Version(u8),
    #[error("a compound packet that begins with type {0} instead of a report")]
    FirstType(u8),
}

impl Compound {
    /// Reads a datagram. Unknown packet types are passed over.
    ///
    /// # Errors
    ///
    /// If it is no compound packet by RFC 3550 appendix A.2.
    pub fn parse(datagram: &[u8]) -> Result<Self, RtcpError> {
        let mut compound = Compound::default();
        let mut rest = datagram;
        let mut first = true;
        while !rest.is_empty() {
            let header = rest.first_chunk::<4>().ok_or(RtcpError::Length)?;
            if header[0] >> 6 != 2 {
                return Err(RtcpError::Version(header[0] >> 6));
            }
            let length = (usize::from(u16::from_be_bytes([header[2], header[3]])) + 1) * 4;
            let kind = header[1];
            if first && kind != SENDER_REPORT && kind != RECEIVER_REPORT {
                return Err(RtcpError::FirstType(kind));
            }
            first = false;
            let (packet, after) = rest.split_at_checked(length).ok_or(RtcpError::Length)?;
            compound.read(kind, usize::from(header[0] & 0x1F), &packet[4..])?;
            rest = after;
        }
        if first {
            Err(RtcpError::Length)
        } else {
            Ok(compound)
        }
    }

    fn read(&mut self, kind: u8, count: usize, body: &[u8]) -> Result<(), RtcpError> {
        match kind {
            SENDER_REPORT => {
                if body.len() < 24 + 24 * count {
                    return Err(RtcpError::Length);
                }
                self.sender_reports.push(SenderReport {
                    ssrc: word(body, 0),
                    ntp: u64::from(word(body, 1)) << 32 | u64::from(word(body, 2)),
                    rtp_timestamp: word(body, 3),
                    packets: word(body, 4),
                    octets: word(body, 5),
                });
            }
            BYE => {
                if body.len() < 4 * count {
                    return Err(RtcpError::Length);
                }
                self.byes.extend((0..count).map(|index| word(body, index)));
            }
            // The first item of the first chunk; a CNAME comes first wherever it is seen.
            SOURCE_DESCRIPTION => self.has_cname |= count > 0 && body.get(4) == Some(&1),
            _ => {}
        }
        Ok(())
    }
}

/// One report block (RFC 3550 section 6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlock {
    pub ssrc: u32,
    /// Since the last report, in 256ths.
    pub fraction_lost: u8,
    pub cumulative_lost: u32,
    pub extended_highest: u32,
    pub jitter: u32,
    pub last_sender_report: u32,
    /// In 1/65536 s.
    pub delay_since: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// Picture loss indication.
    Pli,
    /// Full intra request with its sequence number.
    Fir(u8),
}

/// A compound packet: receiver report, CNAME, and the feedback if any.
pub fn receiver_compound(
    own_ssrc: u32,
    block: &ReportBlock,
    feedback: Option<Feedback>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    put_header(&mut out, 1, RECEIVER_REPORT, 7);
    put_words(&mut out, &[own_ssrc, block.ssrc]);
    let lost = block.cumulative_lost.min(0x7F_FFFF);
    put_words(
        &mut out,
        &[
            u32::from(block.fraction_lost) << 24 | lost,
            block.extended_highest,
            block.jitter,
            block.last_sender_report,
            block.delay_since,
        ],
    );
    // SSRC, type, length, text, and zeros up to a word: at least one ends the list.
    let padding = 4 - (2 + CNAME.len()) % 4;
    put_header(
        &mut out,
        1,
        SOURCE_DESCRIPTION,
        (4 + 2 + CNAME.len() + padding) / 4,
    );
    put_words(&mut out, &[own_ssrc]);
    out.extend([1, CNAME.len() as u8]);
    out.extend(CNAME);
    out.resize(out.len() + padding, 0);
    match feedback {
        Some(Feedback::Pli) => {
            put_header(&mut out, 1, PAYLOAD_FEEDBACK, 2);
            put_words(&mut out, &[own_ssrc, block.ssrc]);
        }
        Some(Feedback::Fir(sequence)) => {
            put_header(&mut out, 4, PAYLOAD_FEEDBACK, 4);
            put_words(
                &mut out,
                &[own_ssrc, 0, block.ssrc, u32::from(sequence) << 24],
            );
        }
        None => {}
    }
    out
}

fn put_header(out: &mut Vec<u8>, count: u8, kind: u8, words_after: usize) {
    out.extend([0x80 | count, kind]);
    out.extend((words_after as u16).to_be_bytes());
}

fn put_words(out: &mut Vec<u8>, words: &[u32]) {
    for value in words {
        out.extend(value.to_be_bytes());
    }
}

/// The caller has checked the length.
fn word(body: &[u8], index: usize) -> u32 {
    let at = index * 4;
    u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPORT: [u8; 28] = [
        0x80, 200, 0, 6, // version 2, SR, length 6
        0, 0, 0, 9, // SSRC
        0x83, 0xAA, 0x7E, 0x81, 0x80, 0, 0, 0, // 1970-01-01 plus 1.5 s
        0, 0, 0x10, 0, // RTP
        0, 0, 0, 5, 0, 0, 1, 0, // packets, octets
    ];

    #[test]
    fn sender_report_and_bye_are_read() {
        let mut bytes = REPORT.to_vec();
        bytes.extend([0x81, 202, 0, 3, 0, 0, 0, 9, 1, 3, b'a', b'b', b'c', 0, 0, 0]);
        bytes.extend([0x81, 203, 0, 1, 0, 0, 0, 9]);
        let compound = Compound::parse(&bytes).expect("a compound packet");
        assert_eq!(compound.byes, [9]);
        assert!(compound.has_cname);
        let report = compound.sender_reports[0];
        assert_eq!(report.unix_ns(), Some(1_500_000_000));
        assert_eq!(
            (report.rtp_timestamp, report.packets, report.octets),
            (0x1000, 5, 256)
        );
        assert_eq!(report.middle(), 0x7E81_8000);
    }

    #[test]
    fn what_is_no_compound_packet_is_refused() {
        assert_eq!(Compound::parse(&REPORT[..24]), Err(RtcpError::Length));
        assert_eq!(Compound::parse(&[]), Err(RtcpError::Length));
        assert_eq!(
            Compound::parse(&[0x81, 203, 0, 1, 0, 0, 0, 9]),
            Err(RtcpError::FirstType(203))
        );
        assert_eq!(
            Compound::parse(&[0x40, 200, 0, 0]),
            Err(RtcpError::Version(1))
        );
        assert_eq!(
            Compound::parse(&[0x80, 201, 0, 1, 0, 0, 0, 9, 0x85, 203, 0, 1, 0, 0, 0, 9]),
            Err(RtcpError::Length)
        );
    }

    #[test]
    fn feedback_is_laid_out_as_the_rfcs_say() {
        let block = ReportBlock {
            ssrc: 9,
            fraction_lost: 1,
            cumulative_lost: 2,
            extended_highest: 3,
            jitter: 4,
            last_sender_report: 5,
            delay_since: 6,
        };
        #[rustfmt::skip]
        let head = [
            0x81, 201, 0, 7, 0, 0, 0, 1, // RR, one block, sender 1
            0, 0, 0, 9, 1, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6,
            0x81, 202, 0, 4, 0, 0, 0, 1, 1, 7, b'r', b'e', b'f', b'e', b'r', b'e', b'e', 0, 0, 0,
        ];
        let pli = [0x81, 206, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9];
        let fir = [
            0x84, 206, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 7, 0, 0, 0,
        ];
        assert_eq!(receiver_compound(1, &block, None), head);
        assert_eq!(
            receiver_compound(1, &block, Some(Feedback::Pli)),
            [&head[..], &pli].concat()
        );
        assert_eq!(
            receiver_compound(1, &block, Some(Feedback::Fir(7))),
            [&head[..], &fir].concat()
        );
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), first in 199_u8..207) {
            let _ = Compound::parse(&bytes);
            let mut report = REPORT.to_vec();
            report.extend([0x81, first]);
            report.extend(&bytes);
            let _ = Compound::parse(&report);
        }
    }
}
