//! The message that announces a frame (contract section 3).

use std::fmt;

use super::bytes::{u32_at, u64_at};

/// Bytes of a sync message; longer ones are taken, their tail ignored.
pub const SYNC_LEN: usize = 48;
/// The first byte, and so the subscription prefix.
pub const SYNC_MAGIC: u8 = 0x7D;
/// Bytes of the label field.
pub const LABEL_LEN: usize = 24;

/// "Frame N is in the segment, taken at T", in the producer's words.
///
/// ```text
/// 0  u8     0x7D                      8  u8[8]  garbage
/// 1  u8     garbage                  16  u64    timestamp_ns (the metadata's capture_ts_ns)
/// 2  u8 u8  major = 1, minor         24  u8[24] label, NUL padded
/// 4  u32    frame_count (the metadata's frame_id)
/// ```
///
/// The garbage is uninitialised memory of the producer; it is not read, and written as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncMessage {
    pub frame_id: u32,
    /// Nanoseconds on the producer's clock.
    pub timestamp_ns: u64,
    pub label: Label,
}

/// Why bytes are no sync message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSync {
    #[error("a sync message has at least 48 bytes, this has {0}")]
    Short(usize),
    #[error("a sync message starts with 0x7d, this with {0:#04x}")]
    Magic(u8),
    #[error("sync major version {0} is unknown; 1 is known")]
    Major(u8),
}

impl SyncMessage {
    /// # Errors
    ///
    /// If `bytes` are too short, start otherwise, or are of another major version.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadSync> {
        let Some(block) = bytes.first_chunk::<SYNC_LEN>() else {
            return Err(BadSync::Short(bytes.len()));
        };
        if block[0] != SYNC_MAGIC {
            return Err(BadSync::Magic(block[0]));
        }
        if block[2] != 1 {
            return Err(BadSync::Major(block[2]));
        }
        Ok(Self {
            frame_id: u32_at(block, 4),
            timestamp_ns: u64_at(block, 16),
            label: Label::from_wire(block.last_chunk().expect("24 of 48 bytes")),
        })
    }

    pub fn to_bytes(&self) -> [u8; SYNC_LEN] {
        let mut block = [0; SYNC_LEN];
        block[0] = SYNC_MAGIC;
        block[2] = 1;
        block[4..8].copy_from_slice(&self.frame_id.to_le_bytes());
        block[16..24].copy_from_slice(&self.timestamp_ns.to_le_bytes());
        block[24..].copy_from_slice(&self.label.0);
        block
    }
}

/// A producer's label: up to 24 bytes without NUL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Label([u8; LABEL_LEN]);

/// A label that does not fit its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("label exceeds 24 bytes")]
pub struct LabelTooLong;

impl Label {
    /// # Errors
    ///
    /// If `text` has more than 24 bytes. What stands behind a NUL is dropped, as on the wire.
    pub fn new(text: &str) -> Result<Self, LabelTooLong> {
        if text.len() > LABEL_LEN {
            return Err(LabelTooLong);
        }
        let mut field = [0; LABEL_LEN];
        field[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self::from_wire(&field))
    }

    /// The label up to the first NUL; what follows is padding, whatever it holds.
    fn from_wire(field: &[u8; LABEL_LEN]) -> Self {
        let mut label = [0; LABEL_LEN];
        let len = field.iter().position(|b| *b == 0).unwrap_or(LABEL_LEN);
        label[..len].copy_from_slice(&field[..len]);
        Self(label)
    }

    pub fn as_bytes(&self) -> &[u8] {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(LABEL_LEN);
        &self.0[..len]
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
