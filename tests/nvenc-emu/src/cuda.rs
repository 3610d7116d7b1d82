//! The fake `libcuda.so.1`: contexts, streams, events, memory, copies, kernels.
//!
//! Results as CUDA numbers them: 1 invalid value, 2 out of memory, 201 invalid context, 400 invalid handle,
//! 600 not ready, 712 already registered, 713 not registered, 801 not supported, 999 unknown.

#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{Gpu, HangIn, config};
use crate::kernels::{self, Which};
use crate::memory::{Kind, memory, permissions, read_careful};
use crate::picture::hang;
use crate::report::{Class, OwnWork, count_call, leak, stats, violation};
use crate::stream::{Event, Stream, copy_delay};

type Handle = *mut c_void;

#[derive(Default)]
struct Cuda {
    initialised: bool,
    contexts: HashMap<usize, Context>,
    streams: HashMap<usize, Arc<Stream>>,
    events: HashMap<usize, Event>,
    modules: HashMap<usize, Vec<String>>,
    functions: HashMap<usize, (usize, String)>,
}

struct Context {
    device: c_int,
    primary: bool,
    references: u32,
}

static CUDA: Mutex<Option<Cuda>> = Mutex::new(None);
static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
static LOST: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

struct Guard(MutexGuard<'static, Option<Cuda>>);

impl std::ops::Deref for Guard {
    type Target = Cuda;
    fn deref(&self) -> &Cuda {
        self.0.as_ref().expect("filled when locked")
    }
}

impl std::ops::DerefMut for Guard {
    fn deref_mut(&mut self) -> &mut Cuda {
        self.0.as_mut().expect("filled when locked")
    }
}

fn cuda() -> Guard {
    let mut guard = CUDA.lock().unwrap_or_else(PoisonError::into_inner);
    guard.get_or_insert_with(Cuda::default);
    Guard(guard)
}

pub(crate) fn new_handle() -> usize {
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// The context of this thread, 0 if there is none.
pub(crate) fn current_context() -> usize {
    CURRENT.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

pub(crate) fn context_is_alive(context: usize) -> bool {
    cuda().contexts.contains_key(&context)
}

pub(crate) fn stream_of(handle: usize) -> Option<Arc<Stream>> {
    cuda().streams.get(&handle).cloned()
}

pub(crate) fn is_lost() -> bool {
    LOST.load(Ordering::Acquire)
}

pub(crate) fn lose_device() {
    LOST.store(true, Ordering::Release);
}

pub(crate) fn report_leaks() {
    let cuda = cuda();
    let memory = memory();
    for (what, count) in [
        ("contexts", cuda.contexts.len()),
        ("streams", cuda.streams.len()),
        ("events", cuda.events.len()),
        ("modules", cuda.modules.len()),
        ("allocations", memory.blocks.len()),
        ("registered mappings", memory.registered.len()),
    ] {
        if count > 0 {
            leak(format!("{count} {what}"));
        }
    }
}

/// Counts the call, answers for a lost device, and keeps panics inside.
fn enter(name: &'static str, run: impl FnOnce() -> c_uint) -> c_uint {
    count_call(name);
    let lost = is_lost();
    // A lost device still lets go of what a client gives back, and says that it is lost.
    let gives_back = ["Free", "Destroy", "Unregister", "Unload", "Release"];
    if lost && !gives_back.iter().any(|word| name.contains(word)) {
        return 999;
    }
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or(999);
    if lost { 999 } else { code }
}

fn need_context(call: &str) -> bool {
    let current = current_context();
    if current == 0 || !context_is_alive(current) {
        violation(
            Class::E,
            "context",
            call,
            None,
            "no context is current".to_owned(),
        );
        return false;
    }
    true
}

macro_rules! exported {
    ($($name:ident($($argument:ident: $type:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> c_uint {
            enter(stringify!($name), move || $body)
        }
    )*};
}

/// Writes through a client's pointer; 1 if it is null.
fn give<T>(to: *mut T, value: T) -> c_uint {
    if to.is_null() {
        return 1;
    }
    // SAFETY: not null, and the client's promise is what the API documents.
    unsafe { to.write(value) };
    0
}

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
    cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) {
        if !cuda().initialised { return 3; }
        let mut cuda = cuda();
        let found = cuda.contexts.iter_mut().find(|(_, c)| c.primary && c.device == device);
        let handle = if let Some((handle, context)) = found {
            context.references += 1;
            *handle
        } else {
            let handle = new_handle();
            cuda.contexts.insert(handle, Context { device, primary: true, references: 1 });
            handle
        };
        give(context, handle as Handle)
    }
    cuDevicePrimaryCtxRelease_v2(device: c_int) { release_primary(device) }
    cuDevicePrimaryCtxRelease(device: c_int) { release_primary(device) }
    cuDevicePrimaryCtxSetFlags_v2(_device: c_int, _flags: c_uint) { 0 }
    cuDevicePrimaryCtxSetFlags(_device: c_int, _flags: c_uint) { 0 }
    cuCtxCreate_v2(context: *mut Handle, _flags: c_uint, device: c_int) {
        let handle = new_handle();
        cuda().contexts.insert(handle, Context { device, primary: false, references: 1 });
        CURRENT.with_borrow_mut(|stack| stack.push(handle));
        give(context, handle as Handle)
    }
    cuCtxDestroy_v2(context: Handle) {
        let context = context as usize;
        crate::session::context_goes(context);
        CURRENT.with_borrow_mut(|stack| stack.retain(|other| *other != context));
        if cuda().contexts.remove(&context).is_some() { 0 } else { 201 }
    }
    cuCtxSetLimit(_limit: c_uint, _value: usize) { 0 }
    cuCtxGetCurrent(context: *mut Handle) { give(context, current_context() as Handle) }
    cuCtxSetCurrent(context: Handle) {
        let context = context as usize;
        if context != 0 && !context_is_alive(context) { return 201; }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 { stack.push(context); }
        });
        0
    }
    cuCtxPushCurrent_v2(context: Handle) {
        if !context_is_alive(context as usize) { return 201; }
        CURRENT.with_borrow_mut(|stack| stack.push(context as usize));
        0
    }
    cuCtxPopCurrent_v2(context: *mut Handle) {
        let popped = CURRENT.with_borrow_mut(Vec::pop);
        match popped {
            Some(_) if context.is_null() => 0,
            Some(popped) => give(context, popped as Handle),
            None => 201,
        }
    }
    cuCtxGetDevice(device: *mut c_int) { give(device, 0) }
    cuCtxSynchronize() {
        let streams: Vec<_> = cuda().streams.values().cloned().collect();
        streams.iter().for_each(|stream| stream.wait());
        0
    }
    cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) { give(least, 0) | give(greatest, 0) }
    cuStreamCreate(stream: *mut Handle, flags: c_uint) {
        if flags > 1 { return 1; }
        new_stream(stream)
    }
    cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, _priority: c_int) {
        if flags > 1 { return 1; }
        new_stream(stream)
    }
    cuStreamQuery(stream: Handle) {
        match stream_of(stream as usize) {
            Some(stream) => if stream.is_idle() { 0 } else { 600 },
            None => 400,
        }
    }
    cuStreamSynchronize(stream: Handle) {
        if stream.is_null() { return 0; }
        match stream_of(stream as usize) {
            Some(stream) => { stream.wait(); 0 }
            None => 400,
        }
    }
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) {
        if flags != 0 { return 1; }
        let Some(event) = cuda().events.get(&(event as usize)).cloned() else { return 400; };
        match stream_of(stream as usize) {
            Some(stream) => { stream.push(move || event.wait()); 0 }
            None => 400,
        }
    }
    cuStreamDestroy_v2(stream: Handle) {
        crate::session::stream_goes(stream as usize);
        let removed = cuda().streams.remove(&(stream as usize));
        match removed {
            Some(stream) => { stream.finish(); 0 }
            None => { violation(Class::E, "stream", "cuStreamDestroy", None, "no such stream".to_owned()); 400 }
        }
    }
    cuEventCreate(event: *mut Handle, flags: c_uint) {
        if flags > 7 || !need_context("cuEventCreate") { return 1; }
        let handle = new_handle();
        cuda().events.insert(handle, Event::default());
        give(event, handle as Handle)
    }
    cuEventRecord(event: Handle, stream: Handle) {
        let ticket = if stream.is_null() { None } else {
            match stream_of(stream as usize) { Some(stream) => Some(stream.ticket()), None => return 400 }
        };
        match cuda().events.get_mut(&(event as usize)) {
            Some(event) => { event.0 = ticket; 0 }
            None => 400,
        }
    }
    cuEventQuery(event: Handle) {
        match cuda().events.get(&(event as usize)) {
            Some(event) => if event.is_done() { 0 } else { 600 },
            None => 400,
        }
    }
    cuEventSynchronize(event: Handle) {
        let Some(event) = cuda().events.get(&(event as usize)).cloned() else { return 400; };
        event.wait();
        0
    }
    cuEventDestroy_v2(event: Handle) {
        if cuda().events.remove(&(event as usize)).is_some() { return 0; }
        violation(Class::E, "event", "cuEventDestroy", None, "no such event".to_owned());
        400
    }
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
    cuMemcpy2DAsync_v2(copy: *const Copy2D, stream: Handle) {
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
    cuModuleLoadData(module: *mut Handle, image: *const c_void) { load_module(module, image) }
    cuModuleLoadDataEx(module: *mut Handle, image: *const c_void, _count: c_uint, _options: *mut c_uint, _values: *mut Handle) {
        load_module(module, image)
    }
    cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        // SAFETY: the client passes a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let mut cuda = cuda();
        match cuda.modules.get(&(module as usize)) {
            Some(names) if names.contains(&name) => (),
            Some(_) => return 500,
            None => return 400,
        }
        let handle = new_handle();
        cuda.functions.insert(handle, (module as usize, name));
        give(function, handle as Handle)
    }
    cuModuleUnload(module: Handle) {
        let mut cuda = cuda();
        cuda.functions.retain(|_, (of, _)| *of != module as usize);
        if cuda.modules.remove(&(module as usize)).is_some() { 0 } else { 400 }
    }
    cuGetErrorString(code: c_uint, text: *mut *const c_char) { give(text, error_name(code).as_ptr()) }
}

/// `cuGetErrorName` works on a lost device too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: c_uint, text: *mut *const c_char) -> c_uint {
    give(text, error_name(code).as_ptr())
}

/// A kernel is run by name, on the stream, after its arguments were checked.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: Handle,
    arguments: *mut Handle,
    extra: *mut Handle,
) -> c_uint {
    enter("cuLaunchKernel", move || {
        let name = cuda()
            .functions
            .get(&(function as usize))
            .map(|(_, name)| name.clone());
        let Some(name) = name else {
            violation(
                Class::E,
                "kernel",
                "cuLaunchKernel",
                None,
                "no such function".to_owned(),
            );
            return 400;
        };
        let threads = block_x as usize * block_y as usize * block_z as usize;
        if grid_z != 1
            || block_z != 1
            || threads == 0
            || threads > 1024
            || shared != 0
            || !extra.is_null()
        {
            violation(
                Class::E,
                "kernel",
                "cuLaunchKernel",
                None,
                format!("{name}: grid or block"),
            );
            return 1;
        }
        let Some(which) = kernels::by_name(&name) else {
            violation(
                Class::E,
                "kernel",
                "cuLaunchKernel",
                None,
                format!("unknown kernel {name}"),
            );
            return 1;
        };
        *stats().kernels.entry(name).or_default() += 1;
        let _: Which = which;
        let covered = (
            grid_x as usize * block_x as usize,
            grid_y as usize * block_y as usize,
        );
        // SAFETY: the client's arguments are those of the named kernel; they are read before this returns.
        match unsafe { kernels::prepare(which, covered, arguments) } {
            Some(launch) => on_stream(stream as usize, move || {
                let _work = OwnWork::begin();
                launch.run();
            }),
            None => 1,
        }
    })
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

/// Queues work; on the default stream it is done at once.
fn on_stream(stream: usize, work: impl FnOnce() + Send + 'static) -> c_uint {
    if stream == 0 {
        work();
        return 0;
    }
    match stream_of(stream) {
        Some(stream) => {
            stream.push(work);
            0
        }
        None => {
            violation(
                Class::E,
                "stream",
                "work on a stream",
                None,
                "no such stream".to_owned(),
            );
            400
        }
    }
}

fn new_stream(stream: *mut Handle) -> c_uint {
    if !need_context("cuStreamCreate") {
        return 201;
    }
    let handle = new_handle();
    cuda().streams.insert(handle, Arc::new(Stream::new()));
    give(stream, handle as Handle)
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

fn release_primary(device: c_int) -> c_uint {
    let mut cuda = cuda();
    let found = cuda
        .contexts
        .iter_mut()
        .find(|(_, c)| c.primary && c.device == device);
    let Some((handle, context)) = found else {
        return 201;
    };
    context.references -= 1;
    let (handle, gone) = (*handle, context.references == 0);
    if gone {
        cuda.contexts.remove(&handle);
        drop(cuda);
        crate::session::context_goes(handle);
    }
    0
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
        crate::memory::Registered {
            len: bytes,
            pending: Arc::default(),
        },
    );
    0
}

fn load_module(module: *mut Handle, image: *const c_void) -> c_uint {
    if !need_context("cuModuleLoadData") {
        return 201;
    }
    // SAFETY: the client passes PTX, which ends with a NUL.
    let text = unsafe { CStr::from_ptr(image.cast()) }
        .to_string_lossy()
        .into_owned();
    if !text.contains(".version") || !text.contains(".target") {
        violation(
            Class::E,
            "module",
            "cuModuleLoadData",
            None,
            "no PTX".to_owned(),
        );
        return 218;
    }
    let names = text
        .match_indices(".entry ")
        .filter_map(|(at, word)| text[at + word.len()..].split('(').next())
        .map(|name| name.trim().to_owned())
        .collect();
    let handle = new_handle();
    cuda().modules.insert(handle, names);
    give(module, handle as Handle)
}

fn error_name(code: c_uint) -> &'static CStr {
    match code {
        0 => c"CUDA_SUCCESS",
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        3 => c"CUDA_ERROR_NOT_INITIALIZED",
        100 => c"CUDA_ERROR_NO_DEVICE",
        101 => c"CUDA_ERROR_INVALID_DEVICE",
        201 => c"CUDA_ERROR_INVALID_CONTEXT",
        400 => c"CUDA_ERROR_INVALID_HANDLE",
        500 => c"CUDA_ERROR_NOT_FOUND",
        600 => c"CUDA_ERROR_NOT_READY",
        712 => c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        713 => c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        801 => c"CUDA_ERROR_NOT_SUPPORTED",
        999 => c"CUDA_ERROR_UNKNOWN",
        _ => c"CUDA_ERROR",
    }
}
