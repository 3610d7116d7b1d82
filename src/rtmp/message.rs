//! RTMP messages (RTMP 1.0 sections 5.4, 6 and 7): their types and the bodies of the control ones.

use super::RtmpError;

/// One message, as the chunk reader gives it: the body is borrowed from the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    pub chunk_stream: u32,
    /// Milliseconds.
    pub timestamp: u32,
    pub kind: u8,
    pub stream: u32,
    pub body: &'a [u8],
}

/// Message type ids.
pub mod kind {
    pub const SET_CHUNK_SIZE: u8 = 1;
    pub const ABORT: u8 = 2;
    pub const ACKNOWLEDGEMENT: u8 = 3;
    pub const USER_CONTROL: u8 = 4;
    pub const WINDOW_ACK_SIZE: u8 = 5;
    pub const SET_PEER_BANDWIDTH: u8 = 6;
    pub const VIDEO: u8 = 9;
    /// AMF3: a 0 byte, then AMF0.
    pub const COMMAND_AMF3: u8 = 17;
    pub const DATA: u8 = 18;
    pub const COMMAND: u8 = 20;
}

/// Event types of User Control messages (section 7.1.7).
pub mod event {
    pub const PING_REQUEST: u16 = 6;
    pub const PING_RESPONSE: u16 = 7;
}

/// The body of a message that steers the connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Bytes of payload per chunk from now on, 1 to 0x7FFFFFFF.
    SetChunkSize(u32),
    /// Forget what has come of the message on this chunk stream.
    Abort(u32),
    /// Bytes that the peer has received, modulo 2^32.
    Acknowledgement(u32),
    PingRequest(u32),
    /// Any other User Control event.
    UserControl(u16),
    /// Acknowledge every so many bytes.
    WindowAckSize(u32),
    SetPeerBandwidth {
        window: u32,
        limit: u8,
    },
}

impl Control {
    /// `None` if the message is no control message.
    ///
    /// # Errors
    ///
    /// If the body is too short, or a chunk size is out of range (section 5.4.1).
    pub fn parse(message: &Message<'_>) -> Result<Option<Self>, RtmpError> {
        let word = || {
            let (bytes, _) = message.body.split_first_chunk().ok_or_else(|| {
                RtmpError::protocol(
                    "control message",
                    format!("type {} with {} bytes", message.kind, message.body.len()),
                )
            })?;
            Ok::<_, RtmpError>(u32::from_be_bytes(*bytes))
        };
        Ok(Some(match message.kind {
            kind::SET_CHUNK_SIZE => match word()? {
                size @ 1..=0x7FFF_FFFF => Self::SetChunkSize(size),
                size => {
                    return Err(RtmpError::protocol(
                        "chunk size",
                        format!("{size} is illegal"),
                    ));
                }
            },
            kind::ABORT => Self::Abort(word()?),
            kind::ACKNOWLEDGEMENT => Self::Acknowledgement(word()?),
            kind::USER_CONTROL => match message.body {
                [0, 6, a, b, c, d, ..] => Self::PingRequest(u32::from_be_bytes([*a, *b, *c, *d])),
                [a, b, ..] => Self::UserControl(u16::from_be_bytes([*a, *b])),
                _ => {
                    return Err(RtmpError::protocol(
                        "user control",
                        "shorter than its event",
                    ));
                }
            },
            kind::WINDOW_ACK_SIZE => Self::WindowAckSize(word()?),
            kind::SET_PEER_BANDWIDTH => Self::SetPeerBandwidth {
                window: word()?,
                // Some servers leave the limit type out; 2 is "dynamic".
                limit: message.body.get(4).copied().unwrap_or(2),
            },
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: u8, body: &[u8]) -> Result<Option<Control>, RtmpError> {
        Control::parse(&Message {
            chunk_stream: 2,
            timestamp: 0,
            kind,
            stream: 0,
            body,
        })
    }

    #[test]
    fn the_bodies_of_section_5_4() {
        assert_eq!(
            parse(1, &[0, 1, 0, 0]),
            Ok(Some(Control::SetChunkSize(65536)))
        );
        assert_eq!(parse(2, &[0, 0, 0, 5]), Ok(Some(Control::Abort(5))));
        assert_eq!(
            parse(3, &[0, 0, 1, 0]),
            Ok(Some(Control::Acknowledgement(256)))
        );
        assert_eq!(
            parse(4, &[0, 6, 1, 2, 3, 4]),
            Ok(Some(Control::PingRequest(0x0102_0304)))
        );
        assert_eq!(
            parse(4, &[0, 0, 0, 0, 0, 1]),
            Ok(Some(Control::UserControl(0)))
        );
        assert_eq!(
            parse(5, &[0, 0x26, 0x25, 0xA0]),
            Ok(Some(Control::WindowAckSize(2_500_000)))
        );
        let bandwidth = Control::SetPeerBandwidth {
            window: 16,
            limit: 0,
        };
        assert_eq!(parse(6, &[0, 0, 0, 16, 0]), Ok(Some(bandwidth)));
        assert_eq!(parse(9, &[]), Ok(None));
    }

    #[test]
    fn short_bodies_and_illegal_sizes_are_refused() {
        for kind in 1..=6 {
            assert!(parse(kind, &[0]).is_err(), "{kind}");
        }
        assert!(parse(1, &[0, 0, 0, 0]).is_err());
        assert!(parse(1, &[0x80, 0, 0, 0]).is_err());
    }
}
