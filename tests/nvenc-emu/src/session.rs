//! Sessions of the fake encoder: what a client has made, and what it may do with it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::{CString, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use crate::codec::{Codec, I420};
use crate::config::config;
use crate::memory::Allocation;
use crate::report::{Class, count_call, leak, stats, violation};
use crate::rules;

/// The state of an output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputState {
    Free,
    Submitted,
    Ready,
    Locked,
}

pub struct Output {
    pub state: OutputState,
    /// Poisoned after unlock, kept until the next picture.
    pub data: Vec<u8>,
    pub timestamp: u64,
    pub kind: u32,
}

pub struct Resource {
    pub block: Arc<Allocation>,
    pub address: usize,
    pub pitch: usize,
    pub format: u32,
    pub mapped: bool,
}

pub struct Map {
    pub resource: usize,
    /// The picture that was submitted with it and has not been locked.
    pub picture: Option<u64>,
}

pub struct InputBuffer {
    pub data: Vec<u8>,
    pub pitch: usize,
    pub format: u32,
    pub locked: bool,
}

/// A picture that waits for the rest of its mini-GOP.
pub struct Pending {
    pub timestamp: u64,
    pub picture: I420,
}

#[derive(Debug, Clone, Copy)]
pub struct Init {
    pub hevc: bool,
    pub width: usize,
    pub height: usize,
    pub gop: u32,
    pub interval: usize,
    pub aud: bool,
    pub repeat_headers: bool,
    pub disable_headers: bool,
    pub frame_rate: (u32, u32),
    pub preset: [u8; 16],
    /// There is a coded picture to give again (`IDLE`).
    pub coded_before: bool,
}

pub struct Session {
    pub api: (u32, u32),
    pub context: usize,
    owner: ThreadId,
    threads: HashSet<ThreadId>,
    pub init: Option<Init>,
    pub codec: Option<Box<dyn Codec>>,
    pub outputs: BTreeMap<usize, Output>,
    pub inputs: BTreeMap<usize, InputBuffer>,
    pub resources: BTreeMap<usize, Resource>,
    pub maps: BTreeMap<usize, Map>,
    pub submitted: VecDeque<usize>,
    pub pending: Vec<Pending>,
    /// Address of the client's stream variable and what it held.
    pub stream: Option<(usize, usize)>,
    pub ended: bool,
    pub pictures: u64,
    pub since_idr: u32,
    pub last_timestamp: Option<u64>,
    pub busy_left: Option<u32>,
    pub words: CString,
    /// The first coded picture, kept for `IDLE`.
    pub first_coded: Vec<u8>,
    _slot: Option<File>,
}

type Sessions = HashMap<usize, Session>;

static SESSIONS: LazyLock<Mutex<Sessions>> = LazyLock::new(Mutex::default);

pub fn sessions() -> MutexGuard<'static, Sessions> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A refusal: records a violation of class E and gives the code.
pub fn refuse<T>(rule: &str, call: &str, code: u32, detail: impl Into<String>) -> Result<T, u32> {
    violation(Class::E, rule, call, None, detail.into());
    Err(code)
}

/// Runs `run` on a session after the checks that every call shares.
pub fn with(
    call: &'static str,
    handle: *mut c_void,
    run: impl FnOnce(&mut Session) -> Result<(), u32>,
) -> u32 {
    count_call(call);
    let checked = std::panic::AssertUnwindSafe(move || {
        if handle.is_null() {
            return refuse("handle", call, rules::INVALID_PTR, "null session");
        }
        let mut sessions = sessions();
        let Some(session) = sessions.get_mut(&(handle as usize)) else {
            return refuse(
                "handle",
                call,
                rules::INVALID_ENCODERDEVICE,
                "unknown or destroyed session",
            );
        };
        session.check_thread_and_context(call);
        let got = run(session);
        if let Err(code) = got
            && code != rules::NEED_MORE_INPUT
            && code != rules::BUSY
        {
            session.words =
                CString::new(format!(":emulator refused {call} with {code}")).unwrap_or_default();
        }
        got
    });
    let got = std::panic::catch_unwind(checked);
    if crate::cuda::is_lost() {
        return rules::DEVICE_NOT_EXIST;
    }
    match got {
        Ok(Ok(())) => rules::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => rules::GENERIC,
    }
}

impl Session {
    /// Takes one of the machine's sessions, if there is one left.
    pub fn open(api: (u32, u32), context: usize) -> Result<Self, u32> {
        let slot = match config().sessions {
            None => None,
            Some(limit) => Some(take_slot(limit).ok_or(rules::OUT_OF_MEMORY)?),
        };
        let owner = std::thread::current().id();
        let mut stats = stats();
        stats.sessions_opened += 1;
        stats.sessions_open += 1;
        stats.sessions_peak = stats.sessions_peak.max(stats.sessions_open);
        drop(stats);
        Ok(Self {
            api,
            context,
            owner,
            threads: HashSet::from([owner]),
            init: None,
            codec: None,
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            resources: BTreeMap::new(),
            maps: BTreeMap::new(),
            submitted: VecDeque::new(),
            pending: Vec::new(),
            stream: None,
            ended: false,
            pictures: 0,
            since_idr: 0,
            last_timestamp: None,
            busy_left: None,
            words: CString::default(),
            first_coded: Vec::new(),
            _slot: slot,
        })
    }

    fn check_thread_and_context(&mut self, call: &str) {
        let thread = std::thread::current().id();
        if self.threads.insert(thread) || thread != self.owner {
            let mut stats = stats();
            stats.threads_per_session = stats.threads_per_session.max(self.threads.len());
            drop(stats);
            violation(
                Class::P,
                "second-thread",
                call,
                None,
                "a session belongs to the thread that opened it".to_owned(),
            );
        } else {
            let mut stats = stats();
            stats.threads_per_session = stats.threads_per_session.max(1);
        }
        if crate::cuda::current_context() != self.context && !crate::cuda::is_lost() {
            violation(
                Class::P,
                "context-current",
                call,
                None,
                "the session's context is not current".to_owned(),
            );
        }
        if let Some((address, value)) = self.stream {
            // SAFETY: the client promised that the variable lives as long as the session; that this
            // reads it at all is the check, and a careful read survives a broken promise.
            let mut now = [0_u8; 8];
            let there = crate::memory::read_careful(address, &mut now);
            if !there || usize::from_ne_bytes(now) != value {
                violation(
                    Class::P,
                    "stream-variable",
                    call,
                    None,
                    "the stream variable was changed or freed".to_owned(),
                );
            }
        }
    }

    pub fn init(&self, call: &str) -> Result<Init, u32> {
        match self.init {
            Some(init) => Ok(init),
            None => refuse(
                "order",
                call,
                rules::NOT_INITIALIZED,
                "before nvEncInitializeEncoder",
            ),
        }
    }

    /// What a client forgot before destroying.
    pub fn check_destroy(&self, call: &str) {
        let mut left = Vec::new();
        let mut count = |what: &str, number: usize| {
            if number > 0 {
                left.push(format!("{number} {what}"));
            }
        };
        count("maps", self.maps.len());
        count("registrations", self.resources.len());
        count("bitstream buffers", self.outputs.len());
        count("input buffers", self.inputs.len());
        count(
            "locked outputs",
            self.outputs
                .values()
                .filter(|o| o.state == OutputState::Locked)
                .count(),
        );
        if !left.is_empty() {
            violation(Class::P, "destroy-leaves", call, None, left.join(", "));
        }
        if self.pictures > 0 && !self.ended {
            violation(
                Class::P,
                "destroy-without-eos",
                call,
                None,
                "no end of stream was sent".to_owned(),
            );
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        use std::sync::atomic::Ordering;
        for resource in self.resources.values() {
            resource.block.registered.fetch_sub(1, Ordering::AcqRel);
        }
        stats().sessions_open -= 1;
    }
}

/// One of the machine's sessions, held by a lock on a file.
fn take_slot(limit: u32) -> Option<File> {
    (0..limit).find_map(|at| {
        let path = config().locks.join(format!("nvenc-emu-session-{at}"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .ok()?;
        // SAFETY: the descriptor is open as long as the file.
        let got = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        (got == 0).then_some(file)
    })
}

/// The context is being released: sessions on it should be gone.
pub fn context_goes(context: usize) {
    let Ok(sessions) = SESSIONS.try_lock() else {
        return;
    };
    if sessions.values().any(|session| session.context == context) {
        violation(
            Class::P,
            "context-first",
            "cuDevicePrimaryCtxRelease",
            None,
            "the context goes before its sessions".to_owned(),
        );
    }
}

/// The stream is being destroyed: sessions that run on it should be gone.
pub fn stream_goes(stream: usize) {
    let Ok(sessions) = SESSIONS.try_lock() else {
        return;
    };
    if sessions
        .values()
        .any(|session| session.stream.is_some_and(|(_, value)| value == stream))
    {
        violation(
            Class::P,
            "stream-first",
            "cuStreamDestroy",
            None,
            "the stream goes before the session that runs on it".to_owned(),
        );
    }
}

pub fn report_leaks() {
    // A thread that hangs in a call holds no lock; should one be held all the same, say so.
    match SESSIONS.try_lock() {
        Ok(sessions) if !sessions.is_empty() => leak(format!("{} sessions", sessions.len())),
        Ok(_) => (),
        Err(_) => leak("sessions are locked".to_owned()),
    }
}
