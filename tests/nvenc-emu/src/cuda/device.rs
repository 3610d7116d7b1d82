//! The driver and its devices.

use std::ffi::{c_char, c_int, c_uint};

use super::{cuda, enter, give};
use crate::config::{Gpu, HangIn, config, uuid_byte};
use crate::picture::hang;

exported! {
    cuInit(flags: c_uint) {
        hang(HangIn::Init, u64::MAX);
        cuda().initialised = true;
        if config().devices.is_empty() { 100 } else { flags }
    }
    cuDriverGetVersion(version: *mut c_int) { give(version, 12_020) }
    cuDeviceGetCount(count: *mut c_int) {
        if !cuda().initialised { return 3; }
        give(count, config().devices.len() as c_int)
    }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        if number_of(ordinal).is_none() { return 101; }
        give(device, ordinal)
    }
    cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) {
        let Some(number) = number_of(device) else { return 101 };
        let text = format!("Emulated {:?} {number}\0", config().gpu);
        let count = text.len().min(len.max(0) as usize);
        // SAFETY: the client gives `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, count) };
        0
    }
    cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) { give_uuid(uuid, device) }
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) { give_uuid(uuid, device) }
    cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, _device: c_int) {
        give(major, 7) | give(minor, 5)
    }
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, _device: c_int) {
        give(value, match attribute {
            75 => if config().gpu == Gpu::Pascal { 6 } else { 7 },
            76 => if config().gpu == Gpu::Pascal { 1 } else { 5 },
            113 => c_int::from(config().hostreg_ro),
            41 => 1, // unified addressing
            _ => 0,
        })
    }
}

/// The machine's number of a device that the client knows by this one.
fn number_of(device: c_int) -> Option<u32> {
    let devices = &config().devices;
    devices.get(usize::try_from(device).ok()?).copied()
}

fn give_uuid(uuid: *mut [u8; 16], device: c_int) -> c_uint {
    number_of(device).map_or(101, |number| give(uuid, [uuid_byte(number); 16]))
}
