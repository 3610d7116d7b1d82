//! The thread that owns the session from open to destroy, and the watch over it.
//!
//! Requests and replies pass through one slot; nothing is allocated for them. Whoever asks waits for
//! a bounded time. When that is over, or the thread died, the worker is lost: the thread is never
//! joined, its session never destroyed, uploads are refused, and the process may end around it.
//!
//! While it has nothing to do, the thread looks after the one that uploads.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::NvencOptions;
use super::device::Device;
use super::driver::Driver;
use super::failure::Failure;
use super::session::{Opened, Session};
use super::watch::{CallWatch, GRACE, named};
use crate::encode::{EncodedQueue, EncoderConfig, Picture};
use crate::frame::SurfacePool;

/// What is asked of the driver thread.
// Moved once per picture; boxing it would allocate each time.
#[allow(clippy::large_enum_variant)]
pub enum Request {
    Encode(Picture, EncodedQueue),
    Flush(EncodedQueue),
    Bitrate(u32),
    Close,
}

/// What it answers.
pub enum Reply {
    Open(Box<Result<Ready, String>>),
    Encoded(EncodedQueue, Result<(), Failure>),
    Done(Result<(), Failure>),
}

/// A session that is ready for pictures.
pub struct Ready {
    pub pool: SurfacePool,
    pub device: Arc<Device>,
    pub opened: Opened,
}

/// The asking side.
pub struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
    device: Option<Arc<Device>>,
    limits: (Duration, Duration),
    lost: bool,
}

#[derive(Default)]
struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
    watch: Arc<CallWatch>,
}

#[derive(Default)]
struct State {
    slot: Slot,
    /// Nobody will ask again. A thread that comes back from the driver after all tidies up and ends.
    abandoned: bool,
    /// The thread has ended, with or without a reason; its last answer may still be there.
    gone: bool,
}

#[derive(Default)]
// A request is moved in and out once per picture; boxing it would allocate each time.
#[allow(clippy::large_enum_variant)]
enum Slot {
    #[default]
    Empty,
    Asked(Request),
    Answered(Reply),
}

impl Worker {
    /// Starts the thread; it begins to open at once.
    ///
    /// # Errors
    ///
    /// If there is no thread to be had.
    pub fn start(config: EncoderConfig, options: NvencOptions) -> Result<Self, String> {
        let mailbox = Arc::new(Mailbox::default());
        let limits = (options.open_limit, options.call_limit);
        let theirs = Arc::clone(&mailbox);
        let thread = std::thread::Builder::new()
            .name("nvenc".to_owned())
            .spawn(move || {
                let _gone = GoneOnDrop(&theirs);
                run(&theirs, &config, &options);
            })
            .map_err(|error| format!("no thread for the driver: {error}"))?;
        Ok(Self {
            mailbox,
            thread: Some(thread),
            device: None,
            limits,
            lost: false,
        })
    }

    /// Waits for the session, or for why there is none, in one line.
    ///
    /// # Errors
    ///
    /// If no answer comes: the thread is stuck or dead.
    pub fn wait_until_open(mut self) -> Result<Result<(Self, Ready), String>, Failure> {
        match self.wait(self.limits.0)? {
            Reply::Open(result) => Ok((*result).map(|ready| {
                self.device = Some(Arc::clone(&ready.device));
                (self, ready)
            })),
            _ => unreachable!("the first answer is about opening"),
        }
    }

    /// What a call may take.
    pub fn call_limit(&self) -> Duration {
        self.limits.1
    }

    /// Hands a request over and waits for its answer.
    ///
    /// # Errors
    ///
    /// If the thread is stuck or dead; then it is lost for good.
    pub fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        if self.lost {
            return Err(self.failure("given up earlier"));
        }
        self.mailbox.lock().slot = Slot::Asked(request);
        self.mailbox.changed.notify_all();
        self.wait(self.limits.1)
    }

    fn wait(&mut self, limit: Duration) -> Result<Reply, Failure> {
        let mut end = Instant::now() + limit;
        let mut patient = true;
        let mailbox = Arc::clone(&self.mailbox);
        let mut state = mailbox.lock();
        loop {
            match std::mem::take(&mut state.slot) {
                Slot::Answered(reply) => return Ok(reply),
                other => state.slot = other,
            }
            if state.gone {
                drop(state);
                return Err(self.give_up("the driver thread has died"));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() && std::mem::take(&mut patient) {
                end = Instant::now() + GRACE;
                continue;
            }
            if left.is_zero() {
                drop(state);
                let detail = format!("no answer within {limit:?}; the driver hangs");
                return Err(self.give_up(&detail));
            }
            state = mailbox.wait(state, left);
        }
    }

    fn give_up(&mut self, detail: &str) -> Failure {
        let failure = self.failure(detail);
        self.lost = true;
        self.mailbox.lock().abandoned = true;
        self.mailbox.changed.notify_all();
        // Detached, never joined: it may never come back from the driver.
        self.thread = None;
        if let Some(device) = &self.device {
            device.abandon();
        }
        failure
    }

    fn failure(&self, detail: &str) -> Failure {
        Failure {
            call: self.mailbox.watch.current(),
            status: -1,
            detail: detail.to_owned(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.mailbox.lock().slot = Slot::Asked(Request::Close);
        self.mailbox.changed.notify_all();
        let stuck = |device: &Arc<Device>| device.stuck_upload(self.limits.1);
        if let Some(call) = self.device.as_ref().and_then(stuck) {
            // What that call uses cannot be given back, and the next encoder is waited for.
            log::warn!("nvenc: closing does not wait for {call}, which does not return");
            return;
        }
        let end = Instant::now() + self.limits.1;
        let mut state = self.mailbox.lock();
        while !state.gone {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::warn!(
                    "nvenc: {} does not return while closing; its thread is left behind",
                    self.mailbox.watch.current()
                );
                return;
            }
            state = self.mailbox.wait(state, left);
        }
        drop(state);
        // It is past its last driver call; a panic in it was reported where it happened.
        let _ = thread.join();
    }
}

/// Everything that happens on the driver thread.
fn run(mailbox: &Mailbox, config: &EncoderConfig, options: &NvencOptions) {
    CallWatch::over_this_thread(&mailbox.watch);
    let driver = match options.driver {
        Some(driver) => Ok(driver),
        None => named("loading the driver", Driver::load),
    };
    let opened = driver
        .map_err(|error| error.to_string())
        .and_then(|driver| {
            Session::open(&driver, config, options).map_err(|refusal| refusal.to_string())
        });
    let mut session = match opened {
        Ok(session) => session,
        Err(reason) => {
            mailbox.answer(Reply::Open(Box::new(Err(reason))));
            return;
        }
    };
    let ready = Ready {
        pool: session.pool().clone(),
        device: Arc::clone(session.device()),
        opened: session.opened().clone(),
    };
    mailbox.answer(Reply::Open(Box::new(Ok(ready))));
    loop {
        let Some(request) = mailbox.next(options.call_limit / 2) else {
            session.device().look_after_uploads(options.call_limit);
            continue;
        };
        match request {
            Request::Encode(picture, mut queue) => {
                let result = session.encode(picture, &mut queue);
                mailbox.answer(Reply::Encoded(queue, result));
            }
            Request::Flush(mut queue) => {
                let result = session.flush(&mut queue);
                mailbox.answer(Reply::Encoded(queue, result));
            }
            Request::Bitrate(bits) => {
                let result = session.set_bitrate(bits);
                mailbox.answer(Reply::Done(result));
            }
            Request::Close => break,
        }
    }
    session.close(options.call_limit / 2);
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment: a panic elsewhere leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, most)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// The next request; `None` if there is none for about so long.
    fn next(&self, patience: Duration) -> Option<Request> {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if state.abandoned {
                return Some(Request::Close);
            }
            match std::mem::take(&mut state.slot) {
                Slot::Asked(request) => return Some(request),
                other => state.slot = other,
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.wait(state, left);
        }
    }

    fn answer(&self, reply: Reply) {
        self.lock().slot = Slot::Answered(reply);
        self.changed.notify_all();
    }
}

struct GoneOnDrop<'a>(&'a Mailbox);

impl Drop for GoneOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().gone = true;
        self.0.changed.notify_all();
    }
}
