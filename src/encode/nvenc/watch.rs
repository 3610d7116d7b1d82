//! Which driver call a thread is in, told from outside: a driver that hangs is named by what hangs.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The driver call that a thread is in, for whoever waits for it.
#[derive(Debug, Default)]
pub struct CallWatch(Mutex<Option<Entered>>);

#[derive(Debug, Clone, Copy)]
struct Entered {
    call: &'static str,
    at: Instant,
}

impl CallWatch {
    /// Notes the calls of this thread from now on.
    pub fn over_this_thread(watch: &Arc<Self>) {
        WATCH.set(Some(Arc::clone(watch)));
    }

    /// The call that the thread is in now.
    pub fn current(&self) -> &'static str {
        self.lock().map_or("no driver call", |entered| entered.call)
    }

    /// The call that the thread is in now, if it has been in it for `limit` or longer.
    pub fn longer_than(&self, limit: Duration) -> Option<&'static str> {
        let entered = (*self.lock())?;
        (entered.at.elapsed() >= limit).then_some(entered.call)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Entered>> {
        // One assignment: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a driver call under its name. On a thread that nobody watches it is a plain call.
pub fn named<T>(call: &'static str, run: impl FnOnce() -> T) -> T {
    note(Some(call));
    let result = run();
    note(None);
    result
}

fn note(call: Option<&'static str>) {
    WATCH.with_borrow(|watch| {
        if let Some(watch) = watch {
            *watch.lock() = call.map(|call| Entered {
                call,
                at: Instant::now(),
            });
        }
    });
}

/// A program that was stopped and goes on (SIGSTOP, a paused container) finds every limit passed,
/// and the call that it is in has had no time: it gets this much.
pub const GRACE: Duration = Duration::from_millis(100);

thread_local! {
    /// Here and not in the tables of functions, which several threads share: the reading thread
    /// uploads while the driver's own thread encodes.
    static WATCH: RefCell<Option<Arc<CallWatch>>> = const { RefCell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_named_while_it_lasts_and_on_its_own_thread_only() {
        let watch = Arc::new(CallWatch::default());
        named("before", || ());
        CallWatch::over_this_thread(&watch);
        assert_eq!(watch.current(), "no driver call");
        let seen = named("cuInit", || {
            std::thread::scope(|scope| {
                scope.spawn(|| named("another", || ()));
            });
            assert_eq!(watch.longer_than(Duration::MAX), None);
            (watch.current(), watch.longer_than(Duration::ZERO))
        });
        assert_eq!(seen, ("cuInit", Some("cuInit")));
        assert_eq!(watch.current(), "no driver call");
        assert_eq!(watch.longer_than(Duration::ZERO), None);
    }
}
