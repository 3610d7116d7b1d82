//! Chunks (MCAP specification, "Chunk"): their headers, and the records of those that are
//! compressed. Recordings are not compressed; files that MCAP tools have rewritten may be.

use mcap::records::{ChunkHeader, Record, op};
use mcap::sans_io::{LinearReadEvent, LinearReader, LinearReaderOptions};

/// A chunk's header and its length; `None` where the bytes end before it does.
pub(super) fn chunk_header(head: &[u8]) -> Option<(ChunkHeader, u64)> {
    let u64_at = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let name_len = u32_at(28)? as usize;
    if name_len > LONGEST_NAME {
        return None;
    }
    let name = std::str::from_utf8(head.get(32..32 + name_len)?).ok()?;
    let header = ChunkHeader {
        message_start_time: u64_at(0)?,
        message_end_time: u64_at(8)?,
        uncompressed_size: u64_at(16)?,
        uncompressed_crc: u32_at(24)?,
        compression: name.to_owned(),
        compressed_size: u64_at(32 + name_len)?,
    };
    Some((header, (40 + name_len) as u64))
}

/// A compressed chunk that cannot be had as a whole; what came out of it before is in doubt.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackedError {
    #[error("{packed} bytes cannot hold the {size} that it speaks of")]
    TooLarge { packed: u64, size: u64 },
    #[error(transparent)]
    Mcap(#[from] mcap::McapError),
}

/// Unpacks a chunk of compressed `bytes` and gives its records to `each`.
///
/// What the header and the records in it say of their sizes is from outside: it is held against
/// the bytes that are there before any memory is taken for it.
pub(super) fn unpack(
    header: &ChunkHeader,
    bytes: &[u8],
    mut each: impl FnMut(Record<'_>),
) -> Result<(), PackedError> {
    let (packed, size) = (bytes.len() as u64, header.uncompressed_size);
    let most = LARGEST_PACKED.min(packed.saturating_mul(LARGEST_RATIO));
    if size > most {
        return Err(PackedError::TooLarge { packed, size });
    }
    let options = LinearReaderOptions::default()
        .with_skip_start_magic(true)
        .with_skip_end_magic(true)
        .with_validate_chunk_crcs(true)
        .with_record_length_limit(most.max(packed + LONGEST_HEAD) as usize);
    let mut reader = LinearReader::new_with_options(options);
    let head = record_head(header, packed);
    let mut parts = [&head[..], bytes];
    while let Some(event) = reader.next_event() {
        match event? {
            LinearReadEvent::ReadRequest(wanted) => {
                let part = parts.iter_mut().find(|part| !part.is_empty());
                let Some(part) = part else {
                    reader.notify_read(0);
                    continue;
                };
                let (now, later) = part.split_at(wanted.min(part.len()));
                reader.insert(now.len()).copy_from_slice(now);
                reader.notify_read(now.len());
                *part = later;
            }
            LinearReadEvent::Record { data, opcode } => {
                // One that cannot be read does not hide those behind it: their places are known.
                if let Ok(record) = mcap::read::parse_record(opcode, data) {
                    each(record);
                }
            }
        }
    }
    Ok(())
}

/// What stands in front of the bytes of a chunk.
fn record_head(header: &ChunkHeader, packed: u64) -> Vec<u8> {
    let name = header.compression.as_bytes();
    let mut head = vec![op::CHUNK];
    head.extend((40 + name.len() as u64 + packed).to_le_bytes());
    head.extend(header.message_start_time.to_le_bytes());
    head.extend(header.message_end_time.to_le_bytes());
    head.extend(header.uncompressed_size.to_le_bytes());
    head.extend(header.uncompressed_crc.to_le_bytes());
    head.extend((name.len() as u32).to_le_bytes());
    head.extend(name);
    head.extend(packed.to_le_bytes());
    head
}

const LONGEST_NAME: usize = 64;
const LONGEST_HEAD: u64 = 9 + 40 + LONGEST_NAME as u64;
/// Of a compressed chunk, packed and unpacked: one of a recording holds a few frames.
pub(super) const LARGEST_PACKED: u64 = 256 << 20;
/// lz4 cannot do better, and pictures that are coded already are far from it.
const LARGEST_RATIO: u64 = 256;
