//! The fixed header of an RTP packet (RFC 3550 section 5.1).

/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |V=2|P|X|  CC   |M|     PT      |       sequence number         |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                           timestamp                           |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           synchronization source (SSRC) identifier            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
///
/// No padding, no extension, no contributing sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub marker: bool,
    /// Seven bits.
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
}

impl Header {
    pub const LEN: usize = 12;

    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = 2 << 6;
        bytes[1] = u8::from(self.marker) << 7 | (self.payload_type & 0x7F);
        bytes[2..4].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_rfc_3550_puts_them() {
        let header = Header {
            marker: true,
            payload_type: 96,
            sequence: 0xFFFE,
            timestamp: 0x0102_0304,
            ssrc: 0xA0B0_C0D0,
        };
        #[rustfmt::skip]
        let expected = [
            0x80,                   // V=2, P=0, X=0, CC=0
            0xE0,                   // M=1, PT=96
            0xFF, 0xFE,             // sequence number
            0x01, 0x02, 0x03, 0x04, // timestamp
            0xA0, 0xB0, 0xC0, 0xD0, // SSRC
        ];
        assert_eq!(header.to_bytes(), expected);
        let plain = Header {
            marker: false,
            payload_type: 127,
            ..header
        };
        assert_eq!(plain.to_bytes()[1], 0x7F);
    }
}
