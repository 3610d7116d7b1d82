//! The fake `libcuda.so.1`: contexts, streams, events, memory, copies, kernels.
//!
//! Results as CUDA numbers them: 1 invalid value, 2 out of memory, 201 invalid context, 400 invalid handle,
//! 600 not ready, 712 already registered, 713 not registered, 801 not supported, 999 unknown.

#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::memory;
use crate::report::{Class, count_call, leak, violation};
use crate::stream::{Event, Stream};

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

pub use self::alloc::*;
pub use self::context::*;
pub use self::copy::*;
pub use self::device::*;
pub use self::error::*;
pub use self::kernel::*;
pub use self::stream::*;

// Behind the macro that they use.
mod alloc;
mod context;
mod copy;
mod device;
mod error;
mod kernel;
mod stream;
