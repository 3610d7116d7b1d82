//! Access units to packets: header bytes that are drawn, payload that is pointed at.

use crate::bitstream::{NalKind, NalUnit};
use crate::encode::Codec;

use super::header::Header;
use super::{h264, h265};

/// What a [`Packetizer`] is made with. The three random starts of RFC 3550 section 5.1 come from
/// the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketizerConfig {
    pub codec: Codec,
    /// 96 to 127 (RFC 3551 section 6).
    pub payload_type: u8,
    /// Bytes of a whole RTP packet, header included; taken as at least
    /// [`Packetizer::SMALLEST_MTU`].
    pub mtu: usize,
    pub ssrc: u32,
    /// Of the first packet.
    pub sequence: u16,
}

/// One RTP packet: header and payload header in `head`, the rest of the payload borrowed.
#[derive(Debug, Clone, Copy)]
pub struct RtpPacket<'a> {
    head: Head,
    head_len: usize,
    pub body: &'a [u8],
}

impl RtpPacket<'_> {
    /// Room for the fixed header and the longest payload header.
    pub const HEAD: usize = 16;

    /// The head in the order of the wire, with what stands behind it, and its length.
    pub fn head(&self) -> ([[u8; 8]; 2], usize) {
        let words = [self.head.0.to_be_bytes(), self.head.1.to_be_bytes()];
        (words, self.head_len)
    }

    /// The whole packet; for those who do not send it in pieces.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut packet = self.head().0.concat();
        packet.truncate(self.head_len);
        packet.extend(self.body);
        packet
    }

    /// Bytes of the whole packet.
    pub fn len(&self) -> usize {
        self.head_len + self.body.len()
    }

    /// Never: a packet has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn marker(&self) -> bool {
        self.head.0 & Head::MARKER != 0
    }

    pub fn sequence(&self) -> u16 {
        (self.head.0 >> 32) as u16
    }
}

/// Bytes 0 to 7 and 8 to 15 of a packet as two big-endian numbers.
///
/// Numbers and not bytes, because a head that was put together byte by byte cannot be read as a
/// whole at once: the processor waits until the single stores are through, which costs more than
/// all the rest of drawing a packet.
#[derive(Debug, Clone, Copy)]
struct Head(u64, u64);

impl Head {
    const MARKER: u64 = 0x80 << 48;

    fn new(header: Header) -> Self {
        let bytes = header.to_bytes();
        let (low, high) = bytes.split_first_chunk::<8>().expect("twelve bytes");
        let high = high.first_chunk::<4>().expect("twelve bytes");
        let high = u64::from(u32::from_be_bytes(*high));
        Self(u64::from_be_bytes(*low), high << 32)
    }

    /// With another payload header, whose bytes stand from the highest on.
    fn with_payload_header(self, bytes: u32) -> Self {
        Self(self.0, self.1 & !0xFFFF_FFFF | u64::from(bytes))
    }
}

/// Gives the packets of access units and counts their sequence numbers.
///
/// Parameter sets and SEI messages that stand together go into one aggregation packet where they
/// fit; that packet is the only payload that is copied. A NAL unit that fits goes alone, one that
/// does not is cut into fragments of one size except the last, so that a run of them can be sent
/// with one segmented system call.
#[derive(Debug)]
pub struct Packetizer {
    config: PacketizerConfig,
    next_sequence: u16,
    /// Payloads of the aggregation packets of the current access unit.
    aggregated: Vec<u8>,
    groups: Vec<Group>,
}

/// An aggregation packet: which NAL units of the access unit, and how many bytes of `aggregated`.
#[derive(Debug, Clone, Copy)]
struct Group {
    first: usize,
    nals: usize,
    bytes: usize,
}

impl Packetizer {
    /// What every link carries (RFC 8200 section 5 less tunnels) is far above this; below it the
    /// headers would be the larger part.
    pub const SMALLEST_MTU: usize = 300;

    pub fn new(config: PacketizerConfig) -> Self {
        let mut packetizer = Self {
            config,
            next_sequence: config.sequence,
            aggregated: Vec::with_capacity(2048),
            groups: Vec::with_capacity(8),
        };
        packetizer.set_mtu(config.mtu);
        packetizer
    }

    pub fn config(&self) -> &PacketizerConfig {
        &self.config
    }

    /// From the next access unit on.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.config.mtu = mtu.max(Self::SMALLEST_MTU);
    }

    /// The packets of one access unit, whose NAL units are `nals` in decoding order; all carry
    /// `timestamp`, the last one the marker.
    ///
    /// The sequence numbers of all of them are used up even if some are never drawn, so that a
    /// receiver sees a gap where the sender gave up.
    ///
    /// NAL units of types that name RTP packets cannot be told from packets by a receiver and
    /// are left out.
    pub fn packets<'a, N>(&'a mut self, nals: N, timestamp: u32) -> Packets<'a, N>
    where
        N: Iterator<Item = NalUnit<'a>> + Clone,
    {
        let count = self.plan(nals.clone());
        let header = Header {
            marker: false,
            payload_type: self.config.payload_type,
            sequence: 0,
            timestamp,
            ssrc: self.config.ssrc,
        };
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(count as u16);
        Packets {
            codec: self.config.codec,
            largest: self.config.mtu - Header::LEN,
            nals,
            index: 0,
            groups: &self.groups,
            aggregated: &self.aggregated,
            head: Head::new(header),
            head_len: Header::LEN,
            flags_shift: 0,
            fragments: &[],
            sequence,
            left: count,
        }
    }

    /// Finds the aggregation packets, writes their payloads, and gives the number of all packets.
    fn plan<'a>(&mut self, nals: impl Iterator<Item = NalUnit<'a>> + Clone) -> usize {
        let codec = self.config.codec;
        let largest = self.config.mtu - Header::LEN;
        self.groups.clear();
        self.aggregated.clear();
        let (mut packets, mut index) = (0, 0);
        let mut rest = nals;
        loop {
            let group_start = rest.clone();
            let Some(nal) = rest.next() else { break };
            if !is_sendable(codec, nal) {
                index += 1;
                continue;
            }
            let mut together = 1;
            if may_aggregate(codec, nal) {
                let mut bytes = aggregation_header_len(codec) + 2 + nal.bytes().len();
                let mut ahead = rest.clone();
                while let Some(next) = ahead.next() {
                    if !may_aggregate(codec, next) || bytes + 2 + next.bytes().len() > largest {
                        break;
                    }
                    bytes += 2 + next.bytes().len();
                    together += 1;
                    rest = ahead.clone();
                }
                if together > 1 {
                    self.aggregate(group_start.take(together));
                    self.groups.push(Group {
                        first: index,
                        nals: together,
                        bytes,
                    });
                }
            }
            packets += if together > 1 || nal.bytes().len() <= largest {
                1
            } else {
                let header = NalUnit::header_len(codec);
                let fragment = largest - header - 1;
                (nal.bytes().len() - header).div_ceil(fragment)
            };
            index += together;
        }
        packets
    }

    fn aggregate<'a>(&mut self, nals: impl Iterator<Item = NalUnit<'a>> + Clone) {
        match self.config.codec {
            Codec::H264 => self.aggregated.push(h264::aggregation_header(nals.clone())),
            Codec::H265 => self
                .aggregated
                .extend(h265::aggregation_header(nals.clone())),
        }
        for nal in nals {
            let size = nal.bytes().len() as u16;
            self.aggregated.extend(size.to_be_bytes());
            self.aggregated.extend(nal.bytes());
        }
    }
}

/// Iterator of [`Packetizer::packets`]; its length is exact.
#[derive(Debug, Clone)]
pub struct Packets<'a, N> {
    codec: Codec,
    /// Payload bytes of a packet.
    largest: usize,
    nals: N,
    /// Of the NAL unit that `nals` gives next.
    index: usize,
    groups: &'a [Group],
    aggregated: &'a [u8],
    /// The head that the packets of the current NAL unit share.
    head: Head,
    head_len: usize,
    /// Where the FU header stands in `head.1`.
    flags_shift: u32,
    /// What is left of the NAL unit that is being cut.
    fragments: &'a [u8],
    sequence: u16,
    left: usize,
}

impl<'a, N: Iterator<Item = NalUnit<'a>>> Iterator for Packets<'a, N> {
    type Item = RtpPacket<'a>;

    #[inline]
    fn next(&mut self) -> Option<RtpPacket<'a>> {
        if self.left == 0 {
            return None;
        }
        let mut head = self.head;
        let body = if self.fragments.is_empty() {
            let body = self.next_nal()?;
            head = self.head;
            if !self.fragments.is_empty() {
                head.1 |= FRAGMENT_START << self.flags_shift;
            }
            body
        } else {
            let body = self.next_fragment();
            if self.fragments.is_empty() {
                head.1 |= FRAGMENT_END << self.flags_shift;
            }
            body
        };
        self.left -= 1;
        head.0 |= u64::from(self.sequence) << 32;
        if self.left == 0 {
            head.0 |= Head::MARKER;
        }
        self.sequence = self.sequence.wrapping_add(1);
        Some(RtpPacket {
            head,
            head_len: self.head_len,
            body,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'a, N: Iterator<Item = NalUnit<'a>>> ExactSizeIterator for Packets<'a, N> {}

impl<'a, N: Iterator<Item = NalUnit<'a>>> Packets<'a, N> {
    /// The body of the first packet of the next NAL unit, or of the next aggregation packet.
    fn next_nal(&mut self) -> Option<&'a [u8]> {
        self.head_len = Header::LEN;
        let nal = loop {
            if let Some((group, rest)) = self.groups.split_first()
                && group.first == self.index
            {
                self.groups = rest;
                for _ in 0..group.nals {
                    self.nals.next()?;
                }
                self.index += group.nals;
                let (body, rest) = self.aggregated.split_at(group.bytes);
                self.aggregated = rest;
                return Some(body);
            }
            self.index += 1;
            let nal = self.nals.next()?;
            if is_sendable(self.codec, nal) {
                break nal;
            }
        };
        if nal.bytes().len() <= self.largest {
            return Some(nal.bytes());
        }
        let (payload_header, header) = match self.codec {
            Codec::H264 => {
                let [indicator, fu] = h264::fragment_header(nal);
                (self.flags_shift, self.head_len) = (16, Header::LEN + 2);
                ([indicator, fu, 0, 0], 1)
            }
            Codec::H265 => {
                let [first, second, fu] = h265::fragment_header(nal);
                (self.flags_shift, self.head_len) = (8, Header::LEN + 3);
                ([first, second, fu, 0], 2)
            }
        };
        let payload_header = u32::from_be_bytes(payload_header);
        self.head = self.head.with_payload_header(payload_header);
        self.fragments = &nal.bytes()[header..];
        Some(self.next_fragment())
    }

    #[inline]
    fn next_fragment(&mut self) -> &'a [u8] {
        let size = self.largest + Header::LEN - self.head_len;
        let (body, rest) = self.fragments.split_at(size.min(self.fragments.len()));
        self.fragments = rest;
        body
    }
}

fn is_sendable(codec: Codec, nal: NalUnit<'_>) -> bool {
    match codec {
        Codec::H264 => h264::is_sendable(nal),
        Codec::H265 => h265::is_sendable(nal),
    }
}

/// Small and not picture data, so that copying it costs nothing.
fn may_aggregate(codec: Codec, nal: NalUnit<'_>) -> bool {
    let kind = nal.kind(codec);
    (kind.is_parameter_set() || kind == NalKind::Sei) && is_sendable(codec, nal)
}

const fn aggregation_header_len(codec: Codec) -> usize {
    NalUnit::header_len(codec)
}

/// S and E of both FU headers (RFC 6184 section 5.8, RFC 7798 section 4.4.3).
const FRAGMENT_START: u64 = 0x80;
const FRAGMENT_END: u64 = 0x40;

#[cfg(test)]
mod tests;
