//! RTCP: what a sender says about itself, and what receivers say about the stream (RFC 3550
//! section 6, RFC 4585, RFC 5104).

use crate::time::MediaTime;

/// An instant as NTP counts it: seconds since 1900 in the upper 32 bits, fractions of a second in
/// the lower (RFC 3550 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// The seconds wrap in 2036, as the format has it.
    pub fn from_unix_nanos(nanos: u64) -> Self {
        let seconds = (nanos / NANOS).wrapping_add(NTP_OF_UNIX_EPOCH);
        let fraction = ((nanos % NANOS) << 32) / NANOS;
        Self(seconds << 32 | fraction)
    }

    /// The middle 32 bits, as `LSR` and `DLSR` count (section 6.4.1): 1/65536 s.
    pub fn middle(self) -> u32 {
        (self.0 >> 16) as u32
    }
}

/// A sender report; it has no report blocks since we receive nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderReport {
    pub ssrc: u32,
    pub ntp: NtpTime,
    /// Of that same instant, on the media clock.
    pub rtp_timestamp: u32,
    pub packets: u32,
    /// Payload only, without headers.
    pub octets: u32,
}

/// Where the capture clock stands against the media clock: the newest picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockAnchor {
    pub media: MediaTime,
    /// When that picture was captured.
    pub captured_unix_ns: u64,
}

impl ClockAnchor {
    /// The two stamps of a sender report that is sent at `now_unix_ns`: the picture's, moved on
    /// to now (section 6.4.1 wants the sampling clock, not the moment of sending).
    pub fn stamps_at(self, now_unix_ns: u64, timestamp_base: u32) -> (NtpTime, u32) {
        let since = i128::from(now_unix_ns) - i128::from(self.captured_unix_ns);
        // Cannot wrap in this century; a clock that is set wildly saturates.
        let since = since.clamp(i128::from(i64::MIN / 2), i128::from(i64::MAX / 2)) as i64;
        let media = MediaTime(self.media.0.saturating_add(since));
        (
            NtpTime::from_unix_nanos(now_unix_ns),
            media.to_rtp(timestamp_base),
        )
    }
}

/// Appends the compound packet SR, SDES with the CNAME.
pub fn write_report(report: &SenderReport, cname: &str, out: &mut Vec<u8>) {
    write_sr(report, out);
    write_cname(report.ssrc, cname, out);
}

/// Appends the compound packet SR, SDES, BYE: the end of the stream (section 6.6).
pub fn write_goodbye(report: &SenderReport, cname: &str, out: &mut Vec<u8>) {
    write_report(report, cname, out);
    out.extend([VERSION | 1, BYE, 0, 1]);
    out.extend(report.ssrc.to_be_bytes());
}

/// ```text
/// |V=2|P|  RC=0   |    PT=200     |           length=6            |
/// |                         SSRC of sender                        |
/// |              NTP timestamp, most significant word             |
/// |             NTP timestamp, least significant word             |
/// |                         RTP timestamp                         |
/// |                     sender's packet count                     |
/// |                      sender's octet count                     |
/// ```
fn write_sr(report: &SenderReport, out: &mut Vec<u8>) {
    out.extend([VERSION, SR, 0, 6]);
    out.extend(report.ssrc.to_be_bytes());
    out.extend(report.ntp.0.to_be_bytes());
    out.extend(report.rtp_timestamp.to_be_bytes());
    out.extend(report.packets.to_be_bytes());
    out.extend(report.octets.to_be_bytes());
}

/// ```text
/// |V=2|P|  SC=1   |    PT=202     |            length             |
/// |                             SSRC                              |
/// |   CNAME=1     |     length    | text ... 0 to the next word   |
/// ```
fn write_cname(ssrc: u32, cname: &str, out: &mut Vec<u8>) {
    // The length of an item has eight bits (section 6.5); cut where a character begins.
    let mut len = cname.len().min(255);
    while !cname.is_char_boundary(len) {
        len -= 1;
    }
    // SSRC, item, at least one zero byte
    let words = (4 + 2 + len + 1).div_ceil(4);
    out.extend([VERSION | 1, SDES]);
    out.extend((words as u16).to_be_bytes());
    let start = out.len();
    out.extend(ssrc.to_be_bytes());
    out.extend([CNAME, len as u8]);
    out.extend(&cname.as_bytes()[..len]);
    out.resize(start + 4 * words, 0);
}

/// What a receiver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// One block of a receiver (or sender) report.
    Report(ReportBlock),
    /// Picture loss indication (RFC 4585 section 6.3.1): the decoder lost the picture.
    PictureLoss {
        sender: u32,
        media: u32,
    },
    /// One entry of a full intra request (RFC 5104 section 4.3.1). The same `sequence` again is
    /// the same request.
    FullIntra {
        sender: u32,
        media: u32,
        sequence: u8,
    },
    /// Generic NACK (RFC 4585 section 6.2.1) over so many packets; nothing is sent again here.
    Nack {
        sender: u32,
        media: u32,
        packets: u32,
    },
    Bye {
        ssrc: u32,
    },
}

/// A report block (RFC 3550 section 6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlock {
    /// Who reports.
    pub reporter: u32,
    /// About whom.
    pub source: u32,
    /// Of 256 packets since the last report.
    pub fraction_lost: u8,
    /// Signed: duplicates can outnumber losses.
    pub cumulative_lost: i32,
    pub highest_sequence: u32,
    /// In ticks of the media clock.
    pub jitter: u32,
    pub last_sr: u32,
    pub delay_since_last_sr: u32,
}

impl ReportBlock {
    /// Round trip in 1/65536 s; `None` before the receiver had a report of ours, and where the
    /// answer contradicts the clock.
    pub fn round_trip(&self, now: NtpTime) -> Option<u32> {
        let there = now.middle().wrapping_sub(self.last_sr);
        let trip = there.checked_sub(self.delay_since_last_sr)?;
        (self.last_sr != 0).then_some(trip)
    }
}

/// Tells RTCP from RTP on a shared port (RFC 5761 section 4).
pub fn is_rtcp(datagram: &[u8]) -> bool {
    datagram.len() >= 4 && datagram[0] >> 6 == 2 && (192..=223).contains(&datagram[1])
}

/// Gives what `datagram`, a compound or reduced-size packet (RFC 5506), holds. Unknown packets
/// are passed over; the rest of a malformed datagram is dropped.
pub fn parse(mut datagram: &[u8], mut found: impl FnMut(Feedback)) {
    while let Some((head, rest)) = datagram.split_first_chunk::<4>() {
        let words = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (Some(body), true) = (rest.get(..4 * words), head[0] >> 6 == 2) else {
            return;
        };
        datagram = &rest[4 * words..];
        // Padding stands at the end of the last packet only and is of no use to any of these.
        parse_packet(head[0] & 0x1F, head[1], body, &mut found);
    }
}

fn parse_packet(count: u8, kind: u8, body: &[u8], found: &mut impl FnMut(Feedback)) {
    let Some(sender) = word(body, 0) else { return };
    match (kind, count) {
        (SR | RR, blocks) => {
            let info = if kind == SR { 24 } else { 4 };
            let blocks = body
                .get(info..)
                .unwrap_or_default()
                .chunks_exact(24)
                .take(usize::from(blocks));
            blocks
                .filter_map(|block| report_block(sender, block))
                .for_each(|block| found(Feedback::Report(block)));
        }
        (PAYLOAD_FEEDBACK, 1) => {
            if let Some(media) = word(body, 4) {
                found(Feedback::PictureLoss { sender, media });
            }
        }
        (PAYLOAD_FEEDBACK, 4) => {
            for entry in body.get(8..).unwrap_or_default().chunks_exact(8) {
                if let Some(media) = word(entry, 0) {
                    found(Feedback::FullIntra {
                        sender,
                        media,
                        sequence: entry[4],
                    });
                }
            }
        }
        (TRANSPORT_FEEDBACK, 1) => {
            let Some(media) = word(body, 4) else { return };
            // PID is one packet, each bit of BLP another
            let entries = body[8..].chunks_exact(4).filter_map(|entry| word(entry, 0));
            let packets = entries.map(|entry| 1 + (entry & 0xFFFF).count_ones()).sum();
            found(Feedback::Nack {
                sender,
                media,
                packets,
            });
        }
        (BYE, sources) => {
            for index in 0..usize::from(sources) {
                if let Some(ssrc) = word(body, 4 * index) {
                    found(Feedback::Bye { ssrc });
                }
            }
        }
        _ => {}
    }
}

fn report_block(reporter: u32, block: &[u8]) -> Option<ReportBlock> {
    let loss = word(block, 4)?;
    Some(ReportBlock {
        reporter,
        source: word(block, 0)?,
        fraction_lost: (loss >> 24) as u8,
        // 24 bits with their sign
        cumulative_lost: ((loss << 8) as i32) >> 8,
        highest_sequence: word(block, 8)?,
        jitter: word(block, 12)?,
        last_sr: word(block, 16)?,
        delay_since_last_sr: word(block, 20)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*word))
}

/// V=2, P=0.
const VERSION: u8 = 2 << 6;
const SR: u8 = 200;
const RR: u8 = 201;
const SDES: u8 = 202;
const BYE: u8 = 203;
const TRANSPORT_FEEDBACK: u8 = 205;
const PAYLOAD_FEEDBACK: u8 = 206;
const CNAME: u8 = 1;
/// RFC 3550 section 4: 70 years, 17 of them leap years.
const NTP_OF_UNIX_EPOCH: u64 = 2_208_988_800;
const NANOS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests;
