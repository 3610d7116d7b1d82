//! Copies between host and device, queued on streams.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::stream::on_stream;
use super::{Handle, enter, need_context};
use crate::config::config;
use crate::memory::{memory, permissions, read_careful};
use crate::report::{Class, OwnWork, stats, violation};
use crate::stream::copy_delay;

exported! {
    cuMemcpy2DAsync_v2(copy: *const Copy2D, stream: Handle) {
        hold_up();
        // SAFETY: the client passes a structure of CUDA's layout.
        let copy = unsafe { &*copy };
        copy_2d(copy, stream as usize)
    }
    cuMemcpy2D_v2(copy: *const Copy2D) {
        // SAFETY: the client passes a structure of CUDA's layout.
        let copy = unsafe { &*copy };
        copy_2d(copy, 0)
    }
    cuMemcpyHtoDAsync_v2(target: u64, source: *const c_void, bytes: usize, stream: Handle) {
        copy_rows("cuMemcpyHtoDAsync", Rows::linear(source as usize, target as usize, bytes), true, stream as usize)
    }
    cuMemcpyDtoHAsync_v2(target: *mut c_void, source: u64, bytes: usize, stream: Handle) {
        copy_rows("cuMemcpyDtoHAsync", Rows::linear(source as usize, target as usize, bytes), false, stream as usize)
    }
    cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: Handle) {
        let Some(block) = memory().find(address as usize, bytes) else {
            violation(Class::E, "memset", "cuMemsetD8Async", None, "outside a live allocation".to_owned());
            return 1;
        };
        block.pending.fetch_add(1, Ordering::AcqRel);
        on_stream(stream as usize, move || {
            // SAFETY: inside the block, which the closure keeps.
            unsafe { (address as *mut u8).write_bytes(value, bytes) };
            block.pending.fetch_sub(1, Ordering::AcqRel);
        })
    }
}

/// The call that is asked to be slow (`UPLOAD_MS`).
fn hold_up() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let Some((millis, at)) = config().upload_ms else {
        return;
    };
    if config().faults_count() && CALLS.fetch_add(1, Ordering::Relaxed) == at {
        crate::report::write();
        std::thread::sleep(Duration::from_millis(u64::from(millis)));
    }
}

/// `CUDA_MEMCPY2D` as CUDA lays it out.
#[repr(C)]
pub struct Copy2D {
    src_x: usize,
    src_y: usize,
    src_type: c_uint,
    src_host: *const c_void,
    src_device: u64,
    src_array: Handle,
    src_pitch: usize,
    dst_x: usize,
    dst_y: usize,
    dst_type: c_uint,
    dst_host: *mut c_void,
    dst_device: u64,
    dst_array: Handle,
    dst_pitch: usize,
    width: usize,
    height: usize,
}

struct Rows {
    source: usize,
    source_pitch: usize,
    target: usize,
    target_pitch: usize,
    width: usize,
    height: usize,
}

impl Rows {
    fn linear(source: usize, target: usize, bytes: usize) -> Self {
        Self {
            source,
            source_pitch: bytes,
            target,
            target_pitch: bytes,
            width: bytes,
            height: 1,
        }
    }
}

fn copy_2d(copy: &Copy2D, stream: usize) -> c_uint {
    const HOST: c_uint = 1;
    const DEVICE: c_uint = 2;
    let (source, from_host) = match copy.src_type {
        HOST => (copy.src_host as usize, true),
        DEVICE => (copy.src_device as usize, false),
        _ => return 1,
    };
    let (target, to_device) = match copy.dst_type {
        HOST => (copy.dst_host as usize, false),
        DEVICE => (copy.dst_device as usize, true),
        _ => return 1,
    };
    if copy.src_x | copy.src_y | copy.dst_x | copy.dst_y != 0 {
        return 801;
    }
    if copy.src_pitch < copy.width || copy.dst_pitch < copy.width || copy.height == 0 {
        violation(
            Class::E,
            "copy",
            "cuMemcpy2DAsync",
            None,
            "a pitch is below the width".to_owned(),
        );
        return 1;
    }
    let rows = Rows {
        source,
        source_pitch: copy.src_pitch,
        target,
        target_pitch: copy.dst_pitch,
        width: copy.width,
        height: copy.height,
    };
    copy_rows("cuMemcpy2DAsync", rows, from_host && to_device, stream)
}

fn copy_rows(call: &'static str, rows: Rows, upload: bool, stream: usize) -> c_uint {
    if !need_context(call) {
        return 201;
    }
    let target_bytes = rows.target_pitch * (rows.height - 1) + rows.width;
    let source_bytes = rows.source_pitch * (rows.height - 1) + rows.width;
    let memory = memory();
    let Some(target) = memory.find(rows.target, target_bytes) else {
        violation(
            Class::E,
            "copy",
            call,
            None,
            format!("target {:#x} is in no live allocation", rows.target),
        );
        return 1;
    };
    let source_block = memory.find(rows.source, source_bytes);
    let registered = memory.find_registered(rows.source, source_bytes);
    drop(memory);
    if upload {
        let mut stats = stats();
        stats.upload_bytes += (rows.width * rows.height) as u64;
        match (&registered, &source_block) {
            (Some(_), _) => stats.uploads_pinned += 1,
            (None, Some(_)) => stats.uploads_staged += 1,
            (None, None) => {
                stats.uploads_pageable += 1;
                drop(stats);
                violation(
                    Class::P,
                    "pageable-upload",
                    call,
                    None,
                    "when the driver reads pageable memory is not the client's to know".to_owned(),
                );
            }
        }
    } else if source_block.is_none() {
        violation(
            Class::E,
            "copy",
            call,
            None,
            "source is in no live allocation".to_owned(),
        );
        return 1;
    }
    target.pending.fetch_add(1, Ordering::AcqRel);
    if let Some(pending) = &registered {
        pending.fetch_add(1, Ordering::AcqRel);
    }
    on_stream(stream, move || {
        copy_delay();
        let _work = OwnWork::begin();
        let height = if config().idle { 0 } else { rows.height };
        let mut row = vec![0; rows.width];
        for y in 0..height {
            let source = rows.source + y * rows.source_pitch;
            if !read_careful(source, &mut row) {
                // Another process has shortened the file: a real driver reads the pages that it holds.
                if registered.is_some() && permissions(source).is_some() {
                    stats().sources_shortened += 1;
                    break;
                }
                violation(
                    Class::P,
                    "unmapped-under-copy",
                    call,
                    None,
                    "the source was unmapped while a copy out of it was queued".to_owned(),
                );
                break;
            }
            let to = (rows.target + y * rows.target_pitch) as *mut u8;
            // SAFETY: inside the target block, which the closure keeps.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), to, row.len()) };
        }
        drop(source_block);
        target.pending.fetch_sub(1, Ordering::AcqRel);
        if let Some(pending) = registered {
            pending.fetch_sub(1, Ordering::AcqRel);
        }
    })
}
