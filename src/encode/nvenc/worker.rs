//! The thread that owns the session from open to destroy, and the watch over it.
//!
//! Requests and replies pass through one slot; nothing is allocated for them. Whoever asks waits for
//! a bounded time. When that is over, or the thread died, the worker is lost: the thread is never
//! joined, its session never destroyed, uploads are refused, and the process may end around it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::NvencOptions;
use super::device::Device;
use super::driver::Driver;
use super::failure::{CallWatch, Failure};
use super::session::{Opened, Session};
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
    slot: Mutex<Slot>,
    changed: Condvar,
    watch: Arc<CallWatch>,
    /// Nobody will ask again. A thread that comes back from the driver after all tidies up and ends.
    abandoned: AtomicBool,
}

#[derive(Default)]
// A request is moved in and out once per picture; boxing it would allocate each time.
#[allow(clippy::large_enum_variant)]
enum Slot {
    #[default]
    Empty,
    Asked(Request),
    Answered(Reply),
    /// The thread has ended, with or without a reason.
    Gone,
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

    /// Waits for the session.
    ///
    /// # Errors
    ///
    /// Why there is none, in one line.
    pub fn wait_until_open(mut self) -> Result<(Self, Ready), String> {
        match self.wait(self.limits.0) {
            Ok(Reply::Open(result)) => {
                let ready = (*result)?;
                self.device = Some(Arc::clone(&ready.device));
                Ok((self, ready))
            }
            Ok(_) => unreachable!("the first answer is about opening"),
            Err(failure) => Err(failure.to_string()),
        }
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
        let mut slot = self.mailbox.lock();
        if matches!(*slot, Slot::Gone) {
            drop(slot);
            return Err(self.give_up("the driver thread has died".to_owned()));
        }
        *slot = Slot::Asked(request);
        drop(slot);
        self.mailbox.changed.notify_all();
        self.wait(self.limits.1)
    }

    fn wait(&mut self, limit: Duration) -> Result<Reply, Failure> {
        let end = Instant::now() + limit;
        let mailbox = Arc::clone(&self.mailbox);
        let mut slot = mailbox.lock();
        loop {
            match std::mem::take(&mut *slot) {
                Slot::Answered(reply) => return Ok(reply),
                Slot::Gone => {
                    *slot = Slot::Gone;
                    drop(slot);
                    return Err(self.give_up("the driver thread has died".to_owned()));
                }
                other => *slot = other,
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(slot);
                return Err(self.give_up(format!("no answer within {limit:?}; the driver hangs")));
            }
            slot = mailbox
                .changed
                .wait_timeout(slot, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn give_up(&mut self, detail: String) -> Failure {
        let failure = self.failure(&detail);
        self.lost = true;
        // Under the lock, or the thread could look, miss it and go to sleep.
        let slot = self.mailbox.lock();
        self.mailbox.abandoned.store(true, Ordering::Release);
        drop(slot);
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
            call: self.mailbox.watch.current().name(),
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
        let mut slot = self.mailbox.lock();
        if !matches!(*slot, Slot::Gone) {
            *slot = Slot::Asked(Request::Close);
        }
        drop(slot);
        self.mailbox.changed.notify_all();
        let end = Instant::now() + self.limits.1;
        let mut slot = self.mailbox.lock();
        while !matches!(*slot, Slot::Gone) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::warn!(
                    "nvenc: {} does not return while closing; its thread is left behind",
                    self.mailbox.watch.current().name()
                );
                return;
            }
            slot = self
                .mailbox
                .changed
                .wait_timeout(slot, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(slot);
        // It is past its last driver call; a panic in it was reported where it happened.
        let _ = thread.join();
    }
}

/// Everything that happens on the driver thread.
fn run(mailbox: &Mailbox, config: &EncoderConfig, options: &NvencOptions) {
    let driver = match options.driver {
        Some(driver) => Ok(driver),
        None => Driver::load(),
    };
    let opened = driver
        .map_err(|error| error.to_string())
        .and_then(|driver| {
            let watch = Arc::clone(&mailbox.watch);
            Session::open(&driver, config, options, watch).map_err(|refusal| refusal.to_string())
        });
    let mut session = match opened {
        Ok(session) => session,
        Err(reason) => {
            mailbox.answer(Reply::Open(Box::new(Err(reason))));
            mailbox.wait_for_pickup();
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
        match mailbox.next() {
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
    fn lock(&self) -> MutexGuard<'_, Slot> {
        // Every change of the slot is one assignment: a panic elsewhere leaves it whole.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Request {
        let mut slot = self.lock();
        loop {
            if self.abandoned.load(Ordering::Acquire) {
                return Request::Close;
            }
            match std::mem::take(&mut *slot) {
                Slot::Asked(request) => return request,
                other => *slot = other,
            }
            slot = self
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn answer(&self, reply: Reply) {
        *self.lock() = Slot::Answered(reply);
        self.changed.notify_all();
    }

    /// The thread ends after its answer was taken, or nobody wants it any more.
    fn wait_for_pickup(&self) {
        let mut slot = self.lock();
        let end = Instant::now() + Duration::from_secs(1);
        while matches!(*slot, Slot::Answered(_)) && Instant::now() < end {
            slot = self
                .changed
                .wait_timeout(slot, Duration::from_millis(10))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

struct GoneOnDrop<'a>(&'a Mailbox);

impl Drop for GoneOnDrop<'_> {
    fn drop(&mut self) {
        *self.0.lock() = Slot::Gone;
        self.0.changed.notify_all();
    }
}
