//! What was seen: calls, violations, figures. Written as JSON whenever something worth reading
//! happened, so that the file is valid after a crash of the client too.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::config;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// The real driver refuses.
    E,
    /// The real driver may tolerate it, we do not.
    P,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Violation {
    pub class: Class,
    pub rule: String,
    pub call: String,
    pub picture: Option<u64>,
    pub detail: String,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Stats {
    pub api_version: String,
    pub calls: BTreeMap<String, u64>,
    /// Threads that called into sessions, at most in one session.
    pub threads_per_session: usize,
    pub sessions_opened: u64,
    pub sessions_open: u64,
    pub sessions_peak: u64,
    pub pictures_in: u64,
    pub access_units_out: u64,
    pub bytes_out: u64,
    /// Picture numbers that became IDR pictures, the first thousand.
    pub idr: Vec<u64>,
    pub forced_idr: u64,
    pub largest_unit: u64,
    pub lock_us_max: u64,
    /// Pictures between submission and lock, at most.
    pub ring_peak: u64,
    pub reconfigured: u64,
    pub uploads_pinned: u64,
    pub uploads_staged: u64,
    pub uploads_pageable: u64,
    pub upload_bytes: u64,
    /// Uploads out of registered memory whose file was shorter by then.
    pub sources_shortened: u64,
    pub kernels: BTreeMap<String, u64>,
    /// CPU time of the emulator's own work, to be subtracted from a client's.
    pub own_cpu_us: u64,
    pub violations: Vec<Violation>,
    /// Only the first of each rule is listed in full; here is how often each occurred.
    pub violation_counts: BTreeMap<String, u64>,
    pub leaks: Vec<String>,
    pub finished: bool,
}

/// The statistics so far. Holders must call nothing of this library.
pub fn stats() -> MutexGuard<'static, Stats> {
    static STATS: LazyLock<Mutex<Stats>> = LazyLock::new(|| {
        Mutex::new(Stats {
            api_version: nvenc_sys::API_VERSION.to_string(),
            ..Stats::default()
        })
    });
    static EXIT: Once = Once::new();
    EXIT.call_once(|| {
        extern "C" fn at_exit() {
            crate::session::report_leaks();
            crate::cuda::report_leaks();
            stats().finished = true;
            write();
        }
        // SAFETY: the handler is a plain function of this library, which is never unloaded.
        unsafe { libc::atexit(at_exit) };
    });
    STATS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn count_call(name: &'static str) {
    let mut stats = stats();
    match stats.calls.get_mut(name) {
        Some(count) => *count += 1,
        None => {
            stats.calls.insert(name.to_owned(), 1);
        }
    }
}

pub fn violation(class: Class, rule: &str, call: &str, picture: Option<u64>, detail: String) {
    let mut stats = stats();
    let count = stats.violation_counts.entry(rule.to_owned()).or_default();
    *count += 1;
    let first = *count <= 3;
    if first {
        eprintln!("nvenc-emu: violation {class:?} {rule} in {call}, picture {picture:?}: {detail}");
        stats.violations.push(Violation {
            class,
            rule: rule.to_owned(),
            call: call.to_owned(),
            picture,
            detail,
        });
    }
    drop(stats);
    if first {
        write();
    }
    if config().abort {
        std::process::abort();
    }
}

pub fn leak(what: String) {
    stats().leaks.push(what);
}

/// Writes the file anew, whole or not at all.
pub fn write() {
    /// One at a time: the last one that is written is the last one that was taken.
    static WRITING: Mutex<()> = Mutex::new(());
    let Some(path) = &config().stats else { return };
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let snapshot = stats().clone();
    let Ok(json) = serde_json::to_vec_pretty(&snapshot) else {
        return;
    };
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    if std::fs::write(&temporary, json).is_ok() {
        let _ = std::fs::rename(&temporary, path);
    }
}

/// Counts the CPU time of a piece of the emulator's own work.
pub struct OwnWork(u64);

impl OwnWork {
    pub fn begin() -> Self {
        Self(thread_cpu_us())
    }
}

impl Drop for OwnWork {
    fn drop(&mut self) {
        stats().own_cpu_us += thread_cpu_us().saturating_sub(self.0);
    }
}

fn thread_cpu_us() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}
