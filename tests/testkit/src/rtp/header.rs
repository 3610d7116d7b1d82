//! The RTP fixed header (RFC 3550 section 5.1).

use thiserror::Error;

/// A packet, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    pub marker: bool,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    /// Without padding.
    pub payload: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    #[error("{0} bytes are no RTP packet")]
    Short(usize),
    #[error("RTP version {0} instead of 2")]
    Version(u8),
    #[error("CSRC list or header extension longer than the packet")]
    Extension,
    #[error("padding of {0} bytes does not fit the packet")]
    Padding(u8),
}

/// Whether a datagram on a shared port is RTCP: its second byte is 192 to 223 (RFC 5761 section 4).
pub fn is_rtcp(datagram: &[u8]) -> bool {
    datagram.len() >= 4 && datagram[0] >> 6 == 2 && (192..=223).contains(&datagram[1])
}

impl<'a> Packet<'a> {
    /// # Errors
    ///
    /// If the bytes are no RTP packet of version 2.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, HeaderError> {
        let Some((fixed, mut rest)) = datagram.split_first_chunk::<12>() else {
            return Err(HeaderError::Short(datagram.len()));
        };
        let version = fixed[0] >> 6;
        if version != 2 {
            return Err(HeaderError::Version(version));
        }
        let csrc_bytes = usize::from(fixed[0] & 0x0F) * 4;
        rest = rest.get(csrc_bytes..).ok_or(HeaderError::Extension)?;
        if fixed[0] & 0x10 != 0 {
            let (extension, after) = rest
                .split_first_chunk::<4>()
                .ok_or(HeaderError::Extension)?;
            let words = usize::from(u16::from_be_bytes([extension[2], extension[3]]));
            rest = after.get(words * 4..).ok_or(HeaderError::Extension)?;
        }
        if fixed[0] & 0x20 != 0 {
            let count = *rest.last().ok_or(HeaderError::Padding(0))?;
            let kept = rest.len().checked_sub(usize::from(count));
            match kept {
                Some(kept) if count > 0 => rest = &rest[..kept],
                _ => return Err(HeaderError::Padding(count)),
            }
        }
        Ok(Packet {
            marker: fixed[1] & 0x80 != 0,
            payload_type: fixed[1] & 0x7F,
            sequence: u16::from_be_bytes([fixed[2], fixed[3]]),
            timestamp: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ssrc: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            payload: rest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_where_rfc_3550_puts_them() {
        let bytes = [
            0x80, 0xE0, // version 2; marker, payload type 96
            0x12, 0x34, // sequence
            0xDE, 0xAD, 0xBE, 0xEF, // timestamp
            1, 2, 3, 4, // SSRC
            0x67, 0x42,
        ];
        let packet = Packet::parse(&bytes).expect("a packet");
        assert_eq!(
            packet,
            Packet {
                marker: true,
                payload_type: 96,
                sequence: 0x1234,
                timestamp: 0xDEAD_BEEF,
                ssrc: 0x0102_0304,
                payload: &[0x67, 0x42]
            }
        );
    }

    #[test]
    fn csrc_extension_and_padding_are_taken_off() {
        let mut bytes = vec![0xB1, 0x60, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
        bytes.extend([9; 4]); // one CSRC
        bytes.extend([0xBE, 0xDE, 0, 1, 0x10, 0xAA, 0, 0]); // one word of extension
        bytes.extend([0x65, 0x88, 0, 0, 3]); // payload, three bytes of padding
        assert_eq!(
            Packet::parse(&bytes).expect("a packet").payload,
            [0x65, 0x88]
        );
        *bytes.last_mut().expect("not empty") = 6;
        assert_eq!(Packet::parse(&bytes), Err(HeaderError::Padding(6)));
        assert_eq!(Packet::parse(&[0x40; 12]), Err(HeaderError::Version(1)));
        assert_eq!(Packet::parse(&[0x80; 11]), Err(HeaderError::Short(11)));
    }

    #[test]
    fn rtcp_is_told_from_rtp_by_its_second_byte() {
        assert!(is_rtcp(&[0x80, 200, 0, 6]));
        assert!(is_rtcp(&[0x81, 206, 0, 2]));
        // Payload type 96 with and without the marker.
        assert!(!is_rtcp(&[0x80, 96, 0, 0]) && !is_rtcp(&[0x80, 0xE0, 0, 0]));
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.payload.len() + 12 <= bytes.len());
            }
        }
    }
}
