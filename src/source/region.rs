//! The producer's segment: opened and mapped read-only, read through raw pointers only.
//!
//! There is never a Rust reference to the segment's bytes, for another process may write them at
//! any time. The 256 bytes of metadata are read with `pread`, which cannot fault and costs next
//! to nothing; the payload is read from a mapping, since `pread` costs more than two copies of it
//! (limits.md section 1). What a shrinking file does to a mapping is `guard`'s business.

use std::io;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, fstat};
use rustix::io::Errno;
use rustix::shm;

use super::SourceError;
use super::contract::{METADATA_LEN, MetadataBlock};
use super::guard::GuardedRange;
use crate::frame::{FrameInfo, FrameView, MappedMemory, PlaneLayout};

/// An open segment.
#[derive(Debug)]
pub struct Region {
    file: OwnedFd,
    identity: Identity,
    mapping: Option<Mapped>,
}

/// The mapping, once as what it is and once as what an encoder may keep of it.
#[derive(Debug)]
struct Mapped {
    mapping: Arc<Mapping>,
    shared: Arc<dyn MappedMemory>,
}

/// Tells a segment from its successor of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// What stands under a segment's name.
#[derive(Debug)]
pub enum Named {
    Nothing,
    /// Something else has taken the name, in words: as good as nothing.
    Stranger(&'static str),
    Segment(Region),
}

impl Region {
    /// Opens the segment `name` for reading, if there is one. It is never created.
    ///
    /// # Errors
    ///
    /// If it cannot be opened: an impossible name, no permission.
    pub fn open(name: &str) -> Result<Option<Self>, SourceError> {
        Ok(match Self::named(name)? {
            Named::Segment(region) => Some(region),
            Named::Nothing | Named::Stranger(_) => None,
        })
    }

    /// As [`Region::open`], telling nothing from something else.
    ///
    /// # Errors
    ///
    /// As [`Region::open`].
    pub fn named(name: &str) -> Result<Named, SourceError> {
        let refused = |reason: String| SourceError::Segment {
            name: name.to_owned(),
            reason,
        };
        let flags = shm::OFlags::RDONLY | cautious();
        let file = match shm::open(name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Named::Nothing),
            Err(Errno::LOOP) => return Ok(Named::Stranger("a link, which is not followed")),
            // A socket, or a device without a driver.
            Err(Errno::NXIO | Errno::NODEV) => return Ok(Named::Stranger(NO_SEGMENT)),
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(refused(
                    "no permission to read it; run as its owner, or let the producer open it wider"
                        .to_owned(),
                ));
            }
            Err(Errno::INVAL | Errno::NAMETOOLONG | Errno::NOTDIR) => {
                return Err(refused(
                    "impossible name; a segment's name has up to 255 bytes and no '/' but a leading one"
                        .to_owned(),
                ));
            }
            Err(errno) => return Err(refused(io::Error::from(errno).to_string())),
        };
        let stat = fstat(&file).map_err(|errno| refused(io::Error::from(errno).to_string()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Named::Stranger(NO_SEGMENT));
        }
        Ok(Named::Segment(Self {
            file,
            identity: Identity {
                device: stat.st_dev,
                inode: stat.st_ino,
            },
            mapping: None,
        }))
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// User and mode of the file: who may write it.
    pub fn owner_and_mode(&self) -> Option<(u32, u32)> {
        fstat(&self.file)
            .ok()
            .map(|stat| (stat.st_uid, stat.st_mode))
    }

    /// Bytes of the whole file now, metadata included. Not the size of a frame.
    pub fn len(&self) -> u64 {
        // fstat of an open descriptor has no way to fail; a segment of no length is refused.
        fstat(&self.file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The metadata as it is now; `None` if the file does not hold 256 bytes.
    pub fn metadata(&self) -> Option<MetadataBlock> {
        let mut block = [0; METADATA_LEN];
        let mut filled = 0;
        while filled < METADATA_LEN {
            match rustix::io::pread(&self.file, &mut block[filled..], filled as u64) {
                Ok(0) => return None,
                Ok(n) => filled += n,
                Err(Errno::INTR) => (),
                Err(_) => return None,
            }
        }
        Some(block)
    }

    /// The payload that `info` describes, mapped. `None` if the file is too short for it or
    /// cannot be mapped.
    pub fn view(&mut self, info: FrameInfo) -> Option<FrameView<'_>> {
        let need = METADATA_LEN as u64 + u64::from(info.payload_size);
        if self.len() < need || !planes_fit(&info) {
            return None;
        }
        let need = usize::try_from(need).ok()?;
        if self.mapping.as_ref().is_none_or(|m| m.mapping.len < need) {
            // Not the whole file: its tail is spare room whose pages the first touch would
            // allocate. An eighth more, since access units vary behind the picture.
            let len = (need + need / 8).min(usize::try_from(self.len()).ok()?);
            self.mapping = None;
            match Mapping::new(self.file.as_fd(), len.max(need)) {
                Ok(mapping) => {
                    let mapping = Arc::new(mapping);
                    let shared = Arc::clone(&mapping) as Arc<dyn MappedMemory>;
                    self.mapping = Some(Mapped { mapping, shared });
                }
                Err(error) => {
                    log::warn!("cannot map {need} bytes of the segment: {error}");
                    return None;
                }
            }
        }
        let Mapped { mapping, shared } = self.mapping.as_ref()?;
        // SAFETY: the mapping holds `need` bytes, so the payload starts inside it and
        // `payload_size` bytes follow; it lives as long as the borrow of self that the view
        // carries; faults are mended by its guard; `planes_fit` has checked every plane.
        let view = unsafe { FrameView::new(info, mapping.base().add(METADATA_LEN)) };
        Some(view.with_mapping(shared))
    }

    /// Whether a page of the mapping was gone when it was read. The mapping is useless then.
    pub fn faulted(&self) -> bool {
        self.mapping
            .as_ref()
            .map(|mapped| &mapped.mapping.guard)
            .is_some_and(GuardedRange::faulted)
    }
}

/// How a name that anyone may have taken is opened: a link is not followed, for it may lead to any
/// file of ours; and whatever else it is, opening it does not wait.
pub(super) fn cautious() -> shm::OFlags {
    use rustix::fs::OFlags;
    shm::OFlags::from_bits_retain((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits())
}

pub(super) const NO_SEGMENT: &str = "not a shared memory segment";

/// Copies `line` out of the payload of `view`, from byte `at`; what does not exist any more of
/// the payload is left as it was. One read of each byte, in words.
///
/// # Panics
///
/// If `at` is not a multiple of eight or not inside the payload.
pub fn read_line(view: &FrameView<'_>, at: usize, line: &mut [u64; 8]) {
    let len = view.info().payload_size as usize;
    assert!(at.is_multiple_of(8) && at < len, "byte {at} of {len}");
    let start = view.payload();
    for (n, word) in line.iter_mut().enumerate() {
        let at = at + n * 8;
        if at + 8 <= len {
            // SAFETY: the eight bytes end inside the payload, which the view promises to be
            // readable. Another process may write them meanwhile: a volatile read takes whatever
            // is there, once.
            *word = unsafe {
                let whole = start.add(at).cast::<u64>();
                match whole.is_aligned() {
                    true => whole.read_volatile(),
                    false => read_bytes(start.add(at), 8),
                }
            };
        } else if at < len {
            // SAFETY: as above, byte by byte up to the end.
            *word = unsafe { read_bytes(start.add(at), len - at) };
        }
    }
}

/// # Safety
///
/// `count` bytes at `start` must be readable; at most 8.
unsafe fn read_bytes(start: *const u8, count: usize) -> u64 {
    (0..count.min(8)).fold(0, |word, n| {
        // SAFETY: the caller's condition.
        word | u64::from(unsafe { start.add(n).read_volatile() }) << (8 * n)
    })
}

/// Views of a segment promise what [`FrameView::new`] demands.
fn planes_fit(info: &FrameInfo) -> bool {
    let inside = |offset: u32, size: u32| {
        u64::from(offset) + u64::from(size) <= u64::from(info.payload_size)
    };
    let PlaneLayout {
        width,
        height,
        stride,
        offset,
        size,
    } = info.left;
    inside(offset, size)
        && u64::from(stride) * u64::from(height) <= u64::from(size)
        && u64::from(width) * info.format.bytes_per_pixel() as u64 <= u64::from(stride)
        && info.encoded.is_none_or(|u| inside(u.offset, u.size))
}

/// A read-only shared mapping of the file's first bytes.
///
/// The order of the fields is that of their drop: the guard lets go before the pages do, so that
/// no fault is mended in an address range that is someone else's by then.
#[derive(Debug)]
struct Mapping {
    guard: GuardedRange,
    memory: MmapRaw,
    len: usize,
}

impl MappedMemory for Mapping {
    fn base(&self) -> *const u8 {
        self.memory.as_ptr()
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Mapping {
    fn new(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let whole = len.next_multiple_of(rustix::param::page_size());
        let mut options = MmapOptions::new();
        options.len(whole);
        // Populated, the first frame has no page faults; beyond any real picture that would only
        // fill memory that a wrong metadata block asks for.
        if len <= LARGEST_POPULATED {
            options.populate();
        }
        // Raw: never a reference to bytes that another process writes.
        let memory = options.map_raw_read_only(&file)?;
        // SAFETY: whole pages of the read-only mapping just made, which lives longer than the
        // guard, as the struct says.
        let guard = unsafe { GuardedRange::new(memory.as_ptr() as usize, whole)? };
        Ok(Self { guard, memory, len })
    }
}

const LARGEST_POPULATED: usize = 256 << 20;
