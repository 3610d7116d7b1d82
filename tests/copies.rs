//! Holds the ledger of README ("Every copy of a pixel or payload byte") to account: once warm, the
//! path from the sync message to the last packet allocates nothing.
//!
//! One test in a process of its own: it counts every allocation of every thread.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use common::Scene;
use cvmmap_streamer::cli::streamer::StreamerArgs;
use cvmmap_streamer::config::StreamerConfig;
use cvmmap_streamer::pipeline::{self, stop::StopReason, stop::StopToken};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter beside it is atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Buffers have grown to their size by then: more than three groups of pictures.
const WARM: u32 = 100;
const MEASURED: u32 = 300;

#[test]
fn after_warm_up_no_frame_allocates() {
    let (scene, stop) = (Scene::new(), StopToken::new());
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let endpoint = receiver.local_addr().unwrap().to_string();
    let mut arguments = vec!["cvmmap_streamer".to_owned()];
    arguments.extend(scene.names());
    arguments.extend(
        "--input-mode dummy --dummy-width 320 --dummy-height 180 --dummy-fps 100 --no-nats \
         --no-status --codec h264 --rtp --rtp-endpoint"
            .split_whitespace()
            .map(str::to_owned),
    );
    arguments.push(endpoint);
    let args = StreamerArgs::try_parse_from(&arguments).unwrap();
    let config = StreamerConfig::from_args(&args).unwrap();

    std::thread::scope(|scope| {
        let run = scope.spawn(|| pipeline::run(&config, &stop));
        let mut packet = [0_u8; 2048];
        let (mut pictures, mut at_start) = (0, 0);
        while pictures < WARM + MEASURED {
            let Ok(len) = receiver.recv(&mut packet) else {
                stop.stop(StopReason::Signal);
                panic!("no packet for a minute: {:?}", run.join().unwrap().1);
            };
            // RTP with the marker: the last packet of a picture (RFC 3550 section 5.1).
            if len > 12 && packet[0] == 0x80 && packet[1] & 0x80 != 0 {
                pictures += 1;
                if pictures == WARM {
                    at_start = ALLOCATIONS.load(Ordering::Relaxed);
                }
            }
        }
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - at_start;
        stop.stop(StopReason::Signal);
        let (report, result) = run.join().unwrap();
        result.unwrap();
        println!(
            "{allocations} allocations in {MEASURED} frames\n{}",
            report.unwrap()
        );
        assert_eq!(allocations, 0, "allocations in {MEASURED} warm frames");
    });
}
