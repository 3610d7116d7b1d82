use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::mm::{MapFlags, ProtFlags};

use super::*;

/// Four pages of a file, filled with ones.
struct Mapped {
    file: File,
    start: usize,
    len: usize,
}

impl Mapped {
    fn new() -> Self {
        let page = rustix::param::page_size();
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; 4 * page], 0).unwrap();
        let len = 4 * page;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        Self {
            file,
            start: start.unwrap() as usize,
            len,
        }
    }

    fn read(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: inside the mapping, which lives as long as self.
        unsafe { (self.start as *const u8).add(at).read_volatile() }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the guards of the tests are gone by then.
        let _ = unsafe { rustix::mm::munmap(self.start as *mut _, self.len) };
    }
}

#[test]
fn a_page_that_is_gone_reads_as_zeros_and_is_noted() {
    let mapped = Mapped::new();
    let page = mapped.len / 4;
    // SAFETY: whole pages of a read-only mapping of our own.
    let guard = unsafe { GuardedRange::new(mapped.start, mapped.len) }.unwrap();
    assert_eq!(mapped.read(3 * page), 1);
    assert!(!guard.faulted());
    mapped.file.set_len(2 * page as u64).unwrap();
    assert_eq!(mapped.read(2 * page - 1), 1);
    assert!(!guard.faulted());
    assert_eq!(mapped.read(3 * page + 17), 0);
    assert!(guard.faulted());
    assert_eq!(mapped.read(2 * page), 0);
    drop(guard);
}

#[test]
fn two_ranges_are_told_apart() {
    let (whole, cut) = (Mapped::new(), Mapped::new());
    // SAFETY: as above, for both.
    let guards = unsafe {
        [&whole, &cut].map(|mapped| GuardedRange::new(mapped.start, mapped.len).unwrap())
    };
    cut.file.set_len(0).unwrap();
    assert_eq!((cut.read(0), whole.read(0)), (0, 1));
    assert!(!guards[0].faulted());
    assert!(guards[1].faulted());
}

#[test]
fn a_place_in_the_table_comes_back_clean() {
    for _ in 0..200 {
        let mapped = Mapped::new();
        // SAFETY: as above.
        let guard = unsafe { GuardedRange::new(mapped.start, mapped.len) }.unwrap();
        assert!(!guard.faulted());
        mapped.file.set_len(0).unwrap();
        assert_eq!(mapped.read(0), 0);
        assert!(guard.faulted());
        drop(guard);
    }
}

/// Runs one of the tests below in a process of its own, where it does what it would not do here.
fn status_of(name: &str) -> std::process::ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("source::guard::tests::{name}")])
        .env(CHILD, "1")
        .output()
        .unwrap()
        .status
}

const CHILD: &str = "CVMMAP_GUARD_TEST_CHILD";

#[test]
fn a_fault_outside_of_every_range_kills_as_it_would_without_us() {
    if std::env::var_os(CHILD).is_none() {
        let status = status_of("a_fault_outside_of_every_range_kills_as_it_would_without_us");
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
        return;
    }
    let (guarded, other) = (Mapped::new(), Mapped::new());
    // SAFETY: as above.
    let _guard = unsafe { GuardedRange::new(guarded.start, guarded.len) }.unwrap();
    other.file.set_len(0).unwrap();
    other.read(0);
}

#[test]
fn a_signal_that_was_sent_kills_as_it_would_without_us() {
    if std::env::var_os(CHILD).is_none() {
        let status = status_of("a_signal_that_was_sent_kills_as_it_would_without_us");
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
        return;
    }
    let mapped = Mapped::new();
    // SAFETY: as above.
    let _guard = unsafe { GuardedRange::new(mapped.start, mapped.len) }.unwrap();
    // SAFETY: sends a signal to this process, nothing else. Twice: std's own handler, which is
    // the one before ours, takes the first as a fault and waits for it to come again.
    unsafe {
        libc::raise(libc::SIGBUS);
        libc::raise(libc::SIGBUS);
    }
}
