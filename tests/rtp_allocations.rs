//! Sending allocates nothing once everything has been sent once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::UdpSocket;
use std::sync::Arc;

use cvmmap_streamer::bitstream::{AccessUnit, AccessUnitPool};
use cvmmap_streamer::encode::{Codec, EncodedPicture, EncodedQueue};
use cvmmap_streamer::pipeline::keyframe::KeyFrameRequests;
use cvmmap_streamer::pipeline::stop::StopToken;
use cvmmap_streamer::sink::rtp::{Pacing, RtpSink, RtpSinkConfig};
use cvmmap_streamer::sink::udp::Rung;
use cvmmap_streamer::sink::{Sent, Sink, SinkContext};

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; counting touches a plain cell that
// needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn unit(pool: &mut AccessUnitPool, queue: &mut EncodedQueue, slice: usize) -> Arc<AccessUnit> {
    let mut data = vec![0, 0, 1, 0x67, 1, 2, 3, 0, 0, 1, 0x68, 1, 0, 0, 1, 0x65];
    data.resize(data.len() + slice, 0x55);
    let picture = EncodedPicture {
        data,
        ..EncodedPicture::default()
    };
    pool.make(picture, queue, |_| ()).unwrap()
}

#[test]
fn sending_allocates_nothing_after_the_first_units() {
    let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
    let units = [500, 40_000, 200_000].map(|slice| unit(&mut pool, &mut queue, slice));
    for rung in [Rung::Segmented, Rung::Many, Rung::Single] {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let config = RtpSinkConfig {
            pacing: Pacing::Off,
            rung: Some(rung),
            ..RtpSinkConfig::new(receiver.local_addr().unwrap().to_string(), Codec::H264)
        };
        let context = SinkContext {
            key_frames: KeyFrameRequests::new(),
            stop: StopToken::new(),
            stats: Arc::default(),
        };
        let mut sink = RtpSink::open(config, context).unwrap();
        let mut send_all = || {
            for unit in &units {
                assert_eq!(sink.send(unit).unwrap(), Sent::All);
                sink.poll().unwrap();
            }
        };
        send_all(); // buffers are as large as they will be, the description is made
        let before = ALLOCATIONS.get();
        (0..20).for_each(|_| send_all());
        assert_eq!(ALLOCATIONS.get() - before, 0, "{rung:?}");
    }
}
