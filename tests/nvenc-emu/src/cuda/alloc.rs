//! Memory of the device, pinned memory of the host, and memory of the host that is registered.

use std::ffi::c_uint;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Handle, enter, give, need_context};
use crate::config::{HangIn, config};
use crate::memory::{Kind, Registered, memory, permissions};
use crate::picture::hang;
use crate::report::{Class, violation};

exported! {
    cuMemAlloc_v2(address: *mut u64, bytes: usize) { allocate(address, bytes, Kind::Device) }
    cuMemAllocPitch_v2(address: *mut u64, pitch: *mut usize, width: usize, height: usize, element: c_uint) {
        hang(HangIn::Surface, u64::MAX);
        if width == 0 || height == 0 || ![4, 8, 16].contains(&element) { return 1; }
        let wide = width.next_multiple_of(512);
        give(pitch, wide) | allocate(address, wide * height, Kind::Device)
    }
    cuMemFree_v2(address: u64) {
        if address == 0 { return 0; }
        if memory().free(address as usize, Kind::Device, "cuMemFree") { 0 } else { 1 }
    }
    cuMemHostAlloc(address: *mut Handle, bytes: usize, flags: c_uint) {
        if flags > 7 { return 1; }
        allocate(address.cast(), bytes, Kind::PinnedHost)
    }
    cuMemFreeHost(address: Handle) {
        if memory().free(address as usize, Kind::PinnedHost, "cuMemFreeHost") { 0 } else { 1 }
    }
    cuMemHostRegister_v2(address: Handle, bytes: usize, flags: c_uint) {
        register_host(address as usize, bytes, flags)
    }
    cuMemHostUnregister(address: Handle) {
        let removed = memory().registered.remove(&(address as usize));
        match removed {
            Some(registered) => {
                if registered.pending.load(Ordering::Acquire) > 0 {
                    violation(Class::P, "unregister-pending", "cuMemHostUnregister", None,
                        "a copy out of the mapping is queued".to_owned());
                }
                0
            }
            None => {
                violation(Class::E, "unregister", "cuMemHostUnregister", None, "not registered".to_owned());
                713
            }
        }
    }
}

fn allocate(address: *mut u64, bytes: usize, kind: Kind) -> c_uint {
    if bytes == 0 || !need_context("cuMemAlloc") {
        return 1;
    }
    match memory().allocate(bytes, kind) {
        Some(base) => give(address, base as u64),
        None => 2,
    }
}

fn register_host(address: usize, bytes: usize, flags: c_uint) -> c_uint {
    const READ_ONLY: c_uint = 8;
    let call = "cuMemHostRegister";
    let refuse = |rule: &str, detail: &str, code| {
        violation(Class::E, rule, call, None, detail.to_owned());
        code
    };
    if config().hostreg_status != 0 {
        return config().hostreg_status;
    }
    if flags & !0xF != 0 || bytes == 0 {
        return refuse("register-host", "flags or size", 1);
    }
    if !address.is_multiple_of(4096) || !bytes.is_multiple_of(4096) {
        return refuse("register-host", "not whole pages", 1);
    }
    if flags & READ_ONLY != 0 && !config().hostreg_ro {
        return refuse("register-host", "READ_ONLY without attribute 113", 801);
    }
    match permissions(address).as_deref() {
        None => return refuse("register-host", "not mapped", 1),
        Some(mode) if !mode.starts_with("rw") && flags & READ_ONLY == 0 => {
            return refuse("register-host", "a read-only mapping without READ_ONLY", 1);
        }
        Some(mode) if mode.starts_with("rw") && mode.ends_with('p') => {
            violation(
                Class::P,
                "register-private",
                call,
                None,
                "a writable private mapping pins copies that never change".to_owned(),
            );
        }
        Some(_) => (),
    }
    let mut memory = memory();
    let overlaps = memory
        .registered
        .iter()
        .any(|(base, other)| address < base + other.len && *base < address + bytes);
    if overlaps {
        drop(memory);
        return refuse("register-host", "registered already, at least in part", 712);
    }
    memory.registered.insert(
        address,
        Registered {
            len: bytes,
            pending: Arc::default(),
        },
    );
    0
}
