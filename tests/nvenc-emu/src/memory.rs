//! Memory: guarded allocations that stand for the GPU's, pinned host memory, registered host memory.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::report::{Class, violation};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Device,
    PinnedHost,
}

/// A block between red zones. `base` is what the client has.
pub struct Allocation {
    pub base: usize,
    pub len: usize,
    pub kind: Kind,
    /// Queued writes that have not happened yet.
    pub pending: AtomicUsize,
    /// Sessions that have it registered.
    pub registered: AtomicUsize,
    raw: usize,
}

impl Allocation {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len + 2 * RED, ALIGN)
            .expect("sizes of frames are far below the limit")
    }

    fn new(len: usize, kind: Kind) -> Self {
        // SAFETY: the layout is not empty; both zones and the block are inside it.
        unsafe {
            let raw = alloc(Self::layout(len));
            assert!(!raw.is_null(), "the emulator is out of memory");
            raw.write_bytes(RED_BYTE, len + 2 * RED);
            raw.add(RED).write_bytes(FRESH_BYTE, len);
            Self {
                base: raw as usize + RED,
                len,
                kind,
                pending: AtomicUsize::new(0),
                registered: AtomicUsize::new(0),
                raw: raw as usize,
            }
        }
    }

    /// False if something was written in front of the block or behind it.
    pub fn zones_are_whole(&self) -> bool {
        let zone = |start: usize| {
            // SAFETY: both zones belong to the block, which lives as long as self.
            let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, RED) };
            bytes.iter().all(|byte| *byte == RED_BYTE)
        };
        zone(self.raw) && zone(self.base + self.len)
    }

    pub fn holds(&self, address: usize, len: usize) -> bool {
        address >= self.base && address + len <= self.base + self.len
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.raw as *mut u8, Self::layout(self.len)) };
    }
}

/// Host memory that was registered.
pub struct Registered {
    pub len: usize,
    /// Copies out of it that have not happened yet.
    pub pending: Arc<AtomicUsize>,
}

#[derive(Default)]
pub struct Memory {
    pub blocks: BTreeMap<usize, Arc<Allocation>>,
    pub registered: BTreeMap<usize, Registered>,
    made: u64,
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory {
    blocks: BTreeMap::new(),
    registered: BTreeMap::new(),
    made: 0,
});

pub fn memory() -> MutexGuard<'static, Memory> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// A new block, or `None` where a failure was asked for.
    pub fn allocate(&mut self, len: usize, kind: Kind) -> Option<usize> {
        let at = self.made;
        self.made += 1;
        if crate::config::config().alloc_fail_at == Some(at) {
            return None;
        }
        let block = Arc::new(Allocation::new(len, kind));
        let base = block.base;
        self.blocks.insert(base, block);
        Some(base)
    }

    /// Frees a block; false if there is none.
    pub fn free(&mut self, base: usize, kind: Kind, call: &str) -> bool {
        let Some(block) = self.blocks.get(&base).filter(|block| block.kind == kind) else {
            violation(
                Class::E,
                "free",
                call,
                None,
                format!("{base:#x} is no allocation"),
            );
            return false;
        };
        if !block.zones_are_whole() {
            violation(
                Class::P,
                "red-zone",
                call,
                None,
                format!("around {base:#x}"),
            );
        }
        // What a lost device still had to do, it does not do.
        if block.pending.load(Ordering::Acquire) > 0 && !crate::cuda::is_lost() {
            violation(
                Class::P,
                "free-pending",
                call,
                None,
                format!("writes to {base:#x} are queued"),
            );
        }
        if block.registered.load(Ordering::Acquire) > 0 {
            violation(
                Class::P,
                "free-registered",
                call,
                None,
                format!("{base:#x} is registered with a session"),
            );
        }
        // Queued work keeps its own reference: a late write hits memory of ours.
        self.blocks.remove(&base);
        true
    }

    pub fn find(&self, address: usize, len: usize) -> Option<Arc<Allocation>> {
        let (_, block) = self.blocks.range(..=address).next_back()?;
        block.holds(address, len).then(|| Arc::clone(block))
    }

    pub fn find_registered(&self, address: usize, len: usize) -> Option<Arc<AtomicUsize>> {
        let (base, registered) = self.registered.range(..=address).next_back()?;
        (address + len <= base + registered.len).then(|| Arc::clone(&registered.pending))
    }
}

/// Reads memory of this process that may have been unmapped; false if it was.
pub fn read_careful(source: usize, target: &mut [u8]) -> bool {
    let local = libc::iovec {
        iov_base: target.as_mut_ptr().cast(),
        iov_len: target.len(),
    };
    let remote = libc::iovec {
        iov_base: source as *mut libc::c_void,
        iov_len: target.len(),
    };
    // SAFETY: the local piece is a live borrow; a bad remote piece gives an error, not a fault.
    let got = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    got == target.len() as isize
}

/// `rw-s` and so on for an address, from the kernel's list of mappings.
pub fn permissions(address: usize) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let permissions = words.next()?;
        (start <= address && address < end).then(|| permissions.to_owned())
    })
}

const RED: usize = 512;
const ALIGN: usize = 512;
const RED_BYTE: u8 = 0xFD;
const FRESH_BYTE: u8 = 0xCD;
