//! The cv-mmap wire: the metadata block in its versions, and the sync message. Bytes only.
//!
//! A value that exists here is valid; everything else is a [`Refusal`] that says why. Section
//! numbers are those of the cv-mmap wire contract; all integers are little-endian.

mod bytes;
mod metadata;
mod refusal;
mod sync;

pub use metadata::{
    Depth, DepthUnit, Encoded, METADATA_LEN, Metadata, MetadataBlock, Plane, frame_of, same_frame,
    v2_left_only,
};
pub use refusal::{Invalid, Refusal, Slot, Unsupported};
pub use sync::{BadSync, LABEL_LEN, Label, LabelTooLong, SYNC_LEN, SYNC_MAGIC, SyncMessage};

/// Takes any bytes as a metadata block and as a sync message: neither may panic, and what is
/// accepted must keep its promises. For the seeded test and the fuzz target.
///
/// The first 256 bytes are the block (zeros where there are fewer); the next 8 are the length of
/// the region, which is the length of `bytes` where they are missing.
///
/// # Panics
///
/// If a promise is broken.
pub fn must_hold_for(bytes: &[u8]) {
    let mut block = [0; METADATA_LEN];
    let head = bytes.len().min(METADATA_LEN);
    block[..head].copy_from_slice(&bytes[..head]);
    let region_len = match bytes.get(METADATA_LEN..METADATA_LEN + 8) {
        Some(tail) => u64::from_le_bytes(tail.try_into().expect("eight bytes")),
        None => bytes.len() as u64,
    };
    if let Ok(metadata) = Metadata::parse(&block, region_len) {
        let payload = u64::from(metadata.payload_size);
        assert!(payload > 0 && METADATA_LEN as u64 + payload <= region_len);
        for plane in metadata.planes() {
            let layout = plane.layout;
            let row = u64::from(layout.width)
                * u64::from(plane.channels)
                * plane.depth.bytes_per_sample() as u64;
            assert!(row > 0 && row <= u64::from(layout.stride));
            assert!(u64::from(layout.stride) * u64::from(layout.height) <= u64::from(layout.size));
            assert!(u64::from(layout.offset) + u64::from(layout.size) <= payload);
        }
        if let Ok(info) = metadata.frame_info() {
            let row = u64::from(info.left.width) * info.format.bytes_per_pixel() as u64;
            assert!(row <= u64::from(info.left.stride));
            if let Some(unit) = info.encoded {
                assert!(u64::from(unit.offset) + u64::from(unit.size) <= payload);
            }
        }
        assert!(same_frame(&block, &block));
    }
    if let Ok(message) = SyncMessage::parse(bytes) {
        assert_eq!(SyncMessage::parse(&message.to_bytes()), Ok(message));
    }
}

#[cfg(test)]
mod tests;
