//! The shared-memory segment as its writer holds it (contract `cv-mmap.md` section 2).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::Mode;
use rustix::shm;

use super::wire::{self, METADATA_BYTES};

/// Smallest payload capacity.
const MIN_CAPACITY: u64 = 1 << 20;

/// A named segment, mapped for writing. Of size 0 until [`Segment::initialise`].
#[derive(Debug)]
pub struct Segment {
    name: String,
    file: File,
    mapping: Option<MmapMut>,
}

impl Segment {
    /// Creates the segment or opens the one that is there, with what it holds.
    ///
    /// # Errors
    ///
    /// `shm_open`'s.
    pub fn open(name: &str) -> io::Result<Self> {
        // No O_EXCL and no O_TRUNC: after a crash the old inode lives on, as with the real producer.
        let flags = shm::OFlags::CREATE | shm::OFlags::RDWR;
        let descriptor = shm::open(name, flags, Mode::from_raw_mode(0o666))?;
        Ok(Segment {
            name: name.to_owned(),
            file: File::from(descriptor),
            mapping: None,
        })
    }

    /// Sizes the region for `payload` bytes, which can shrink it, and leaves only the magic in the
    /// metadata.
    ///
    /// # Errors
    ///
    /// `ftruncate`'s and `mmap`'s.
    pub fn initialise(&mut self, payload: u64) -> io::Result<()> {
        self.resize_to_capacity(capacity_for(payload))
    }

    /// Makes room for `payload` bytes. True if the region had to grow, and so begins anew.
    ///
    /// # Errors
    ///
    /// `ftruncate`'s and `mmap`'s.
    pub fn make_room(&mut self, payload: u64) -> io::Result<bool> {
        if payload <= self.capacity() {
            return Ok(false);
        }
        self.initialise(payload)?;
        Ok(true)
    }

    /// Payload bytes that fit as it is.
    pub fn capacity(&self) -> u64 {
        self.mapping
            .as_ref()
            .map_or(0, |m| (m.len() - METADATA_BYTES) as u64)
    }

    /// The place of the payload. Empty before [`Segment::initialise`].
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.mapping
            .as_mut()
            .map_or(&mut [], |m| &mut m[METADATA_BYTES..])
    }

    /// All 256 bytes in one copy, with no mark that would say when it is done: there is none on this wire.
    pub fn write_metadata(&mut self, block: &[u8; METADATA_BYTES]) {
        if let Some(mapping) = &mut self.mapping {
            mapping[..METADATA_BYTES].copy_from_slice(block);
        }
    }

    /// Removes the name; readers that have the segment open keep it.
    pub fn unlink(&self) {
        let _ = shm::unlink(self.name.as_str());
    }

    /// Sets the size on the same inode.
    #[allow(unsafe_code)] // mapping a file is unsafe in memmap2
    fn resize_to_capacity(&mut self, capacity: u64) -> io::Result<()> {
        self.mapping = None;
        let size = METADATA_BYTES as u64 + capacity;
        rustix::fs::ftruncate(self.file.as_fd(), size)?;
        // SAFETY: the mapping is only written, and only by this process: readers map it read-only. The
        // file shrinks only here, where no mapping exists. A second producer of the same name, or
        // someone who truncates the file from outside, breaks that promise: such a process ends by SIGBUS, as the
        // real producer does.
        let mut mapping = unsafe { MmapOptions::new().len(size as usize).map_mut(&self.file)? };
        mapping[..METADATA_BYTES].copy_from_slice(&wire::initialising());
        self.mapping = Some(mapping);
        Ok(())
    }
}

/// The smallest power of two that holds `payload`, from 1 MiB to 2^32 - 1.
pub fn capacity_for(payload: u64) -> u64 {
    payload
        .max(MIN_CAPACITY)
        .next_power_of_two()
        .min(u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Sizes from contract section 2: 640x360 BGR was seen as 1048832 bytes in all.
    #[test]
    fn the_region_is_bucketed() {
        for (payload, capacity) in [
            (1, 1 << 20),
            (640 * 360 * 3, 1 << 20),
            (1 << 20, 1 << 20),
            ((1 << 20) + 1, 1 << 21),
            (1920 * 1080 * 3, 1 << 23),
            (u64::from(u32::MAX), u64::from(u32::MAX)),
        ] {
            assert_eq!(capacity_for(payload), capacity, "{payload}");
        }
        assert_eq!(capacity_for(640 * 360 * 3) + 256, 1_048_832);
    }

    #[test]
    fn growing_and_shrinking_keep_the_inode() {
        use std::os::unix::fs::MetadataExt;
        let name = format!("testkit_segment_{}", std::process::id());
        let mut segment = Segment::open(&name).expect("a segment");
        let stat = |s: &Segment| {
            s.file
                .metadata()
                .map(|m| (m.ino(), m.size()))
                .expect("stat")
        };
        let (inode, size) = stat(&segment);
        assert_eq!(size, 0, "before the first frame");
        segment.initialise(100).expect("memory");
        assert_eq!(stat(&segment), (inode, 1_048_832));
        assert!(segment.make_room(3 << 20).expect("memory"));
        assert_eq!(stat(&segment), (inode, (4 << 20) + 256));
        assert!(!segment.make_room(4 << 20).expect("memory"));
        segment.initialise(100).expect("memory");
        assert_eq!(stat(&segment), (inode, 1_048_832));
        segment.unlink();
    }
}
