//! The driver and its devices.

use std::ffi::{c_char, c_int, c_uint};

use super::{cuda, enter, give};
use crate::config::{Gpu, HangIn, config};
use crate::picture::hang;

exported! {
    cuInit(flags: c_uint) {
        hang(HangIn::Init, u64::MAX);
        cuda().initialised = true;
        if config().devices == 0 { 100 } else { flags }
    }
    cuDriverGetVersion(version: *mut c_int) { give(version, 12_020) }
    cuDeviceGetCount(count: *mut c_int) {
        if !cuda().initialised { return 3; }
        give(count, config().devices as c_int)
    }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        if ordinal < 0 || ordinal >= config().devices as c_int { return 101; }
        give(device, ordinal)
    }
    cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) {
        let text = format!("Emulated {:?} {device}\0", config().gpu);
        let count = text.len().min(len.max(0) as usize);
        // SAFETY: the client gives `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, count) };
        0
    }
    cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) { give(uuid, [0xE0 + device as u8; 16]) }
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) { give(uuid, [0xE0 + device as u8; 16]) }
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
