//! Surviving a shrink of the segment: reads of a mapping that lie behind the end of its file.
//!
//! A producer that truncates its segment leaves readers with a mapping whose last pages fault
//! with SIGBUS. No check before the read helps, since the truncation can come right behind it. So
//! ranges that may fault are registered here, and a process-wide handler puts a page of zeros in
//! the place of the page that is gone and notes it; the reader goes on, asks [`GuardedRange::faulted`]
//! afterwards and throws away what it read. A SIGBUS anywhere else goes where it went before.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Addresses whose faults are mended, as long as this lives.
#[derive(Debug)]
pub struct GuardedRange {
    slot: &'static Slot,
}

impl GuardedRange {
    /// Guards `len` bytes at `start`, a mapping that its owner keeps until this is dropped.
    ///
    /// # Errors
    ///
    /// If the handler cannot be installed, or 64 ranges are guarded already.
    ///
    /// # Safety
    ///
    /// The range must be whole pages of one read-only mapping of the caller's own, whose pages may
    /// be replaced by pages of zeros at any time.
    pub unsafe fn new(start: usize, len: usize) -> io::Result<Self> {
        install()?;
        let slot = SLOTS
            .iter()
            .find(|slot| {
                // Acquire: pairs with the release in `drop`, so that its stores to the slot are
                // in front of ours.
                slot.used
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            })
            .ok_or_else(|| io::Error::other("64 segments are mapped already"))?;
        slot.faulted.store(false, Ordering::Relaxed);
        slot.end.store(start + len, Ordering::Relaxed);
        // Release: who sees this start sees that end.
        slot.start.store(start, Ordering::Release);
        Ok(Self { slot })
    }

    /// Whether a page of the range was gone when it was read.
    pub fn faulted(&self) -> bool {
        // Relaxed: the handler ran on the thread that read, inside its reads.
        self.slot.faulted.load(Ordering::Relaxed)
    }
}

impl Drop for GuardedRange {
    fn drop(&mut self) {
        self.slot.start.store(0, Ordering::Relaxed);
        // Release: the next owner of the slot comes after the store above.
        self.slot.used.store(false, Ordering::Release);
    }
}

#[derive(Debug)]
struct Slot {
    used: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

static SLOTS: [Slot; 64] = [const {
    Slot {
        used: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; 64];

struct Installed {
    previous: libc::sigaction,
    page: usize,
}

/// Written once, before the handler can run; the handler only reads it.
static INSTALLED: OnceLock<Installed> = OnceLock::new();

fn install() -> io::Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done {
        return Ok(());
    }
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action only asks; `previous` is room for the answer.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = INSTALLED.set(Installed {
        // SAFETY: the call above succeeded and so wrote it.
        previous: unsafe { previous.assume_init() },
        page: rustix::param::page_size(),
    });
    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    // ONSTACK: std's own handler, which may be the one before ours, wants its stack.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe: it touches atomics, a OnceLock that is set, and
    // makes plain system calls.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *done = true;
    Ok(())
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let Some(installed) = INSTALLED.get() else {
        return;
    };
    // SAFETY: SA_SIGINFO hands in a valid siginfo; for SIGBUS si_addr is in it.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == libc::BUS_ADRERR
        && let Some(slot) = slot_of(address)
        && mend(address, installed.page)
    {
        slot.faulted.store(true, Ordering::Relaxed);
        return;
    }
    forward(installed, signal, info, context, code);
}

fn slot_of(address: usize) -> Option<&'static Slot> {
    SLOTS.iter().find(|slot| {
        // Acquire: the end belongs to this start or is newer; reading the start again shows
        // whether the slot changed hands meanwhile. The range of a fault that is ours cannot
        // change: its owner is the thread that is interrupted here.
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        start != 0 && (start..end).contains(&address) && slot.start.load(Ordering::Relaxed) == start
    })
}

/// Puts a page of zeros where `address` lies.
fn mend(address: usize, page: usize) -> bool {
    let start = address & !(page - 1);
    // SAFETY: the page belongs to a guarded range, whose owner allows its replacement; errno,
    // which the interrupted code may be about to read, is put back.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let got = libc::mmap(
            start as *mut libc::c_void,
            page,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        );
        *errno = saved;
        got != libc::MAP_FAILED
    }
}

/// Does with the signal what would have been done without us.
fn forward(
    installed: &Installed,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    code: libc::c_int,
) {
    let previous = &installed.previous;
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: both calls are async-signal-safe and the action is a valid one. A fault
            // comes again on return and then kills; a signal that was sent does not come again.
            unsafe {
                let mut default: libc::sigaction = MaybeUninit::zeroed().assume_init();
                default.sa_sigaction = libc::SIG_DFL;
                let sent = code <= 0;
                if sent && previous.sa_sigaction == libc::SIG_IGN {
                    return;
                }
                libc::sigaction(signal, &default, ptr::null_mut());
                if sent {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the kernel kept this address as a three-argument handler.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the kernel kept this address as a one-argument handler.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests;
