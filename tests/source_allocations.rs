//! Nothing is allocated per frame once the source is warm.
//!
//! Counted on this thread only, and by Rust's allocator only: what libzmq's own threads do is
//! theirs.

mod source_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cvmmap_streamer::frame::{FillError, FrameInfo, FrameView, SurfaceLease, SurfaceMemory};
use cvmmap_streamer::frame::{Surface, SurfacePool};
use cvmmap_streamer::source::{FrameSource, SourceEvent, SurfaceSource};
use source_support::*;

struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

// SAFETY: every call goes to the system's allocator as it came; the counter is a plain cell of
// this thread without a destructor, so touching it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get().map(|n| n + 1)));
        // SAFETY: the caller's conditions are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's conditions are passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes every frame and keeps nothing.
struct Sink;

impl SurfaceMemory for Sink {
    fn fill(&mut self, _: &FrameView<'_>) -> Result<(), FillError> {
        Ok(())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

struct Pool(SurfacePool);

impl SurfaceSource for Pool {
    fn surface_for(&mut self, _: &FrameInfo) -> Option<SurfaceLease> {
        self.0.take()
    }
}

#[test]
fn a_warm_source_allocates_nothing_per_frame() {
    let place = Place::new("alloc");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut pool = Pool(SurfacePool::new(vec![Box::new(Sink) as Surface]));
    let (mut frames, mut total) = (0, 0);
    for id in 0..100 {
        producer.publish(id, time_of(id));
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(200);
        COUNT.set(Some(0));
        let event = source.next(deadline, &mut pool).unwrap();
        let counted = COUNT.take().unwrap();
        if id >= 10 {
            total += counted;
        }
        frames += u64::from(matches!(event, SourceEvent::Frame(_)));
    }
    assert!(frames > 10, "{:?}", counters(&source));
    assert_eq!(total, 0, "allocations in {frames} frames");
}
