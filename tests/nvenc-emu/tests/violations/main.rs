//! A negative control for every rule: a client that does one thing wrong, and the emulator says so. The
//! last test holds the list of controls against the rules that the emulator's source knows.

#![cfg(feature = "driver")]

mod clauses;
mod client;
mod driver;
mod leaks;
mod session;

use std::collections::BTreeSet;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use client::*;
use nvenc_emu::cuda::*;
use nvenc_emu::hold;
use nvenc_emu::report::{Class, stats};

/// The emulator is one driver for the whole process. Tests that do without it wait too: a thread that starts maps
/// memory, perhaps where a control has just unmapped some.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Takes the driver.
fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one wrong thing leads to.
struct Control {
    rule: &'static str,
    class: Class,
    run: fn(),
}

/// Memory that another process could write, mapped for reading.
fn shared_mapping(protection: i32, flags: i32) -> Handle {
    // SAFETY: a new mapping.
    unsafe {
        libc::mmap(
            null_mut(),
            8192,
            protection,
            flags | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    }
}

const READ_ONLY: u32 = 1 | 8;

const fn control(rule: &'static str, class: Class, run: fn()) -> Control {
    Control { rule, class, run }
}

fn controls() -> impl Iterator<Item = &'static Control> {
    let first = session::CONTROLS.iter().chain(driver::CONTROLS);
    first.chain(clauses::CONTROLS)
}

#[test]
fn each_wrong_thing_is_seen_under_its_rule_and_class() {
    let _one = alone();
    for control in controls() {
        let count = || {
            stats()
                .violation_counts
                .get(control.rule)
                .copied()
                .unwrap_or(0)
        };
        let before = count();
        (control.run)();
        assert!(count() > before, "{} was not seen", control.rule);
        let seen = stats()
            .violations
            .iter()
            .find(|v| v.rule == control.rule)
            .map(|v| v.class);
        assert_eq!(seen, Some(control.class), "{}", control.rule);
    }
}

#[test]
fn a_client_that_does_nothing_wrong_is_left_alone() {
    let _one = alone();
    let before = stats().violation_counts.clone();
    let mut client = Client::ready();
    for _ in 0..3 {
        let input = client.submitted();
        let (status, lock) = client.lock();
        assert_eq!(status, 0);
        // SAFETY: locked.
        let unit = unsafe { std::slice::from_raw_parts(lock.bitstreamBufferPtr.cast::<u8>(), 5) };
        assert_eq!(&unit[..4], [0, 0, 0, 1]);
        assert_eq!(call!(client, nvEncUnlockBitstream, client.output), 0);
        // SAFETY: the emulator keeps the buffer, poisoned, until the next picture.
        let after = unsafe { lock.bitstreamBufferPtr.cast::<u8>().read() };
        assert_eq!(after, 0xDD, "what is read after the unlock is garbage");
        assert_eq!(call!(client, nvEncUnmapInputResource, input), 0);
    }
    assert_eq!(client.end(), 0);
    assert_eq!(call!(client, nvEncUnregisterResource, client.registered), 0);
    assert_eq!(call!(client, nvEncDestroyBitstreamBuffer, client.output), 0);
    assert_eq!(client.destroy(), 0);
    client.session = null_mut();
    drop(client);
    assert_eq!(stats().violation_counts, before);
}

#[test]
fn every_rule_of_the_emulator_has_its_control() {
    let _one = alone();
    let mut rules = BTreeSet::new();
    for text in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let flat: String = text.split_whitespace().collect();
        for mark in [
            "violation(Class::E,\"",
            "violation(Class::P,\"",
            "refuse(\"",
            "refuse::<()>(\"",
            "refuse::<Init>(\"",
        ] {
            for (at, _) in flat.match_indices(mark) {
                let rest = &flat[at + mark.len()..];
                rules.insert(rest.split('"').next().unwrap().to_owned());
            }
        }
    }
    let controls: BTreeSet<_> = controls().map(|control| control.rule.to_owned()).collect();
    assert!(rules.len() > 40, "{rules:?}");
    assert_eq!(rules, controls);
}

/// The text of every file below `folder`.
fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(sources(&path));
        } else {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    texts
}

/// Pages that a real driver has pinned outlive a truncation by the producer; only the client's own unmapping takes them.
#[test]
fn a_file_that_is_shortened_under_a_copy_is_no_fault_of_the_client() {
    let _one = alone();
    let before = stats().clone();
    let client = Client::ready();
    let mut upload = null_mut();
    assert_eq!(cuda!(cuStreamCreate(&raw mut upload, 1)), 0);
    // SAFETY: a new file of two pages, and a new mapping of it.
    let (file, memory) = unsafe {
        let file = libc::memfd_create(c"shortened".as_ptr(), 0);
        assert_eq!(libc::ftruncate(file, 8192), 0);
        let flags = libc::MAP_SHARED;
        (
            file,
            libc::mmap(null_mut(), 8192, libc::PROT_READ, flags, file, 0),
        )
    };
    assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, READ_ONLY)), 0);
    let held = hold();
    let copy = cuda!(cuMemcpyHtoDAsync_v2(client.surface, memory, 8192, upload));
    assert_eq!(copy, 0);
    // SAFETY: the file made above.
    assert_eq!(unsafe { libc::ftruncate(file, 0) }, 0);
    drop(held);
    cuda!(cuStreamSynchronize(upload));
    assert_eq!(cuda!(cuMemHostUnregister(memory)), 0);
    cuda!(cuStreamDestroy_v2(upload));
    // SAFETY: mapped and opened above; nothing wants either any more.
    unsafe {
        libc::munmap(memory, 8192);
        libc::close(file);
    }
    drop(client);
    let after = stats().clone();
    assert_eq!(after.sources_shortened, before.sources_shortened + 1);
    let rule = "unmapped-under-copy";
    let (before, after) = (&before.violation_counts, &after.violation_counts);
    assert_eq!(after.get(rule), before.get(rule));
}
