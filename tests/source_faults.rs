//! What producers do wrong, and what becomes of it: a counter, and the stream goes on.

mod source_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmmap_streamer::source::{CvMmapSource, SourceEvent};
use source_support::*;

/// Publishes frame `id` changed by `spoil`, expects it to be counted under `name` and nothing
/// else, and expects frame `id + 1` to arrive whole.
fn spoilt(tag: &str, name: &str, spoil: impl FnOnce(&Producer, &mut Surfaces)) -> CvMmapSource {
    let place = Place::new(tag);
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    producer.publish(0, time_of(0));
    frame(&mut source, &mut surfaces);

    producer.write(1, time_of(1));
    spoil(&producer, &mut surfaces);
    producer.announce(1, time_of(1));
    let events = until(&mut source, &mut surfaces, |s| counter(s, name) > 0).unwrap();
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(counter(&source, "frames"), 1);
    assert_eq!(counter(&source, "skipped"), 0);
    assert_eq!(surfaces.pool.free(), 2, "the surface came back");

    surfaces.none = false;
    surfaces.probe.lock().unwrap().refuse = false;
    producer.file.set_len(256 + 1024 * 1024).unwrap();
    producer.publish(2, time_of(2));
    let snapshot = frame(&mut source, &mut surfaces);
    assert_eq!((snapshot.info.frame_id, snapshot.epoch), (2, 0));
    assert!(snapshot.gap, "frame 1 is missing");
    assert!(surfaces.picture() == picture(2, 64, 48));
    assert_eq!(counter(&source, name), 1);
    source
}

#[test]
fn a_wrong_magic_is_counted() {
    spoilt("magic", "bad_metadata", |producer, _| {
        producer.put(b"CV-MAPM\0", 0)
    });
}

#[test]
fn an_unknown_pixel_format_is_counted() {
    spoilt("format", "bad_metadata", |producer, _| {
        producer.put(&[9], 0x41)
    });
}

#[test]
fn a_left_plane_of_16_bits_is_counted_as_unsupported() {
    spoilt("deep", "unsupported", |producer, _| {
        let size = 64 * 48 * 6_u32;
        producer.put(&[2], 0x42);
        producer.put(&(64 * 6_u32).to_le_bytes(), 0x4C);
        producer.put(&size.to_le_bytes(), 0x54);
        producer.put(&size.to_le_bytes(), 0x28);
    });
}

#[test]
fn version_zero_is_not_ready() {
    spoilt("zero", "not_ready", |producer, _| {
        let mut block = [0; 256];
        block[..8].copy_from_slice(b"CV-MMAP\0");
        producer.put(&block, 0);
    });
}

#[test]
fn a_segment_of_no_size_is_not_ready() {
    spoilt("empty", "not_ready", |producer, _| {
        producer.file.set_len(0).unwrap()
    });
}

#[test]
fn a_segment_that_is_too_short_for_its_frame_is_refused() {
    let source = spoilt("short", "bad_metadata", |producer, _| {
        producer.file.set_len(256 + 64 * 48 * 3 - 1).unwrap();
    });
    assert_eq!(counter(&source, "shrunk"), 0, "it was not even touched");
}

#[test]
fn metadata_that_changes_under_the_read_is_torn() {
    spoilt("torn_meta", "torn_metadata", |producer, surfaces| {
        let (file, next) = (Arc::clone(&producer.file), producer.metadata(2, time_of(2)));
        surfaces.midway(move || {
            std::os::unix::fs::FileExt::write_all_at(&*file, &next, 0).unwrap();
        });
    });
}

#[test]
fn payload_that_changes_under_the_read_is_torn_although_the_metadata_stays() {
    spoilt("torn_payload", "torn_payload", |producer, surfaces| {
        // a writer that has begun with the next frame
        let (file, next) = (Arc::clone(&producer.file), picture(2, 64, 48));
        surfaces.midway(move || {
            std::os::unix::fs::FileExt::write_all_at(&*file, &next[..500], 256).unwrap();
        });
    });
}

#[test]
fn a_segment_that_shrinks_under_the_read_is_survived() {
    let source = spoilt("shrunk", "shrunk", |producer, surfaces| {
        let file = Arc::clone(&producer.file);
        // The second half of the rows is read from pages that are gone: SIGBUS.
        surfaces.midway(move || file.set_len(4096).unwrap());
    });
    assert_eq!(counter(&source, "reopens"), 1);
    assert_eq!(counter(&source, "epochs"), 0);
}

#[test]
fn a_segment_that_shrinks_and_grows_again_under_the_read_is_torn() {
    let source = spoilt("regrown", "torn_metadata", |producer, surfaces| {
        let file = Arc::clone(&producer.file);
        surfaces.midway(move || {
            file.set_len(0).unwrap();
            file.set_len(256 + 1024 * 1024).unwrap();
        });
    });
    assert_eq!(counter(&source, "frames"), 2);
}

#[test]
fn a_surface_that_refuses_is_counted() {
    spoilt("refused", "unfilled", |_, surfaces| {
        surfaces.probe.lock().unwrap().refuse = true;
    });
}

#[test]
fn no_free_surface_is_counted() {
    spoilt("none", "no_surface", |_, surfaces| surfaces.none = true);
}

#[test]
fn a_read_that_ends_late_in_the_frame_interval_is_refused() {
    let place = Place::new("late");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    for id in 0..6 {
        producer.deliver(&mut source, &mut surfaces, id);
    }
    let interval = source.frame_interval().expect("five distances were seen");
    assert!(interval < Duration::from_secs(5), "{interval:?}");
    let before = counter(&source, "too_late");
    // Sure to be late: the pass alone takes an interval, even with what this one adds to it.
    surfaces.midway(move || std::thread::sleep(interval * 2));
    producer.publish(6, time_of(6));
    until(&mut source, &mut surfaces, |s| {
        counter(s, "too_late") > before
    })
    .unwrap();
    assert_eq!(counter(&source, "frames"), 6);
    let snapshot = producer.deliver(&mut source, &mut surfaces, 7);
    assert!(snapshot.gap);
}

#[test]
fn a_frame_that_was_not_announced_is_never_taken() {
    let place = Place::new("unannounced");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    producer.publish(8, time_of(8));
    frame(&mut source, &mut surfaces);
    // What a producer writes when it initialises again: frame 0, now, an old picture.
    producer.write(9, time_of(9));
    producer.put(&producer.metadata(0, time_of(500)), 0);
    producer.announce(9, time_of(9));
    until(&mut source, &mut surfaces, |s| counter(s, "skipped") == 1).unwrap();
    assert_eq!(counter(&source, "frames"), 1);
    producer.publish(10, time_of(10));
    assert_eq!(frame(&mut source, &mut surfaces).info.frame_id, 10);
}

#[test]
fn a_larger_frame_in_the_same_segment_is_read() {
    let place = Place::new("resize");
    let mut producer = Producer::start(&place);
    let mut source = place.source();
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    producer.publish(0, time_of(0));
    frame(&mut source, &mut surfaces);
    producer.file.set_len(256 + 8 * 1024 * 1024).unwrap();
    (producer.width, producer.height) = (1280, 720);
    producer.publish(1, time_of(1));
    let snapshot = frame(&mut source, &mut surfaces);
    assert_eq!((snapshot.info.left.width, snapshot.epoch), (1280, 0));
    assert!(surfaces.picture() == picture(1, 1280, 720));
    // and smaller again, with the file cut down to it
    (producer.width, producer.height) = (32, 16);
    producer.file.set_len(256 + 1024 * 1024).unwrap();
    producer.publish(2, time_of(2));
    assert_eq!(frame(&mut source, &mut surfaces).info.left.width, 32);
    assert!(surfaces.picture() == picture(2, 32, 16));
}

/// One life of a producer that ends, another that begins.
fn restart(tag: &str, ends: fn(Producer), same_inode: bool) {
    let place = Place::new(tag);
    let first = Producer::start(&place);
    let mut source = place.source();
    first.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    let path = format!("/dev/shm/{}", place.shm_name);
    let inode = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().ino()
    };
    let before = inode(&path);
    for id in 40..43 {
        first.deliver(&mut source, &mut surfaces, id);
    }
    ends(first);

    let second = Producer::start(&place);
    assert_eq!(inode(&path) == before, same_inode);
    let mut events = second.wait_for_return(&mut source, &mut surfaces);
    second.publish(0, time_of(0));
    let snapshot = loop {
        match next(&mut source, &mut surfaces) {
            SourceEvent::Frame(snapshot) => break snapshot,
            event => events.push(event),
        }
    };
    // A machine that is slow enough lets it see that the first one is gone.
    let offline = events.iter().any(|e| matches!(e, SourceEvent::Offline));
    events.retain(|event| !matches!(event, SourceEvent::Offline));
    assert!(matches!(events[..], [SourceEvent::Reset]), "{events:?}");
    assert_eq!((snapshot.info.frame_id, snapshot.epoch), (0, 1));
    assert!(
        surfaces.picture() == picture(0, 64, 48),
        "the new producer's pixels"
    );
    assert_eq!(counter(&source, "epochs"), 1);
    if !offline {
        assert_eq!(counter(&source, "reopens"), u64::from(!same_inode));
    }
}

#[test]
fn a_producer_that_ended_and_started_again_is_found_in_its_new_segment() {
    restart("restart", drop, false);
}

#[test]
fn a_producer_that_was_killed_and_started_again_is_found_in_the_same_segment() {
    restart("killed", Producer::kill, true);
}

#[test]
fn a_new_segment_is_found_even_if_ids_go_on() {
    let place = Place::new("moved");
    let first = Producer::start(&place);
    let mut source = place.source();
    first.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    for id in 0..2 {
        first.deliver(&mut source, &mut surfaces, id);
    }
    drop(first);
    let second = Producer::start(&place);
    second.wait_for_return(&mut source, &mut surfaces);
    second.publish(2, time_of(2));
    reset(&mut source, &mut surfaces);
    assert_eq!(frame(&mut source, &mut surfaces).epoch, 1);
    assert!(surfaces.picture() == picture(2, 64, 48));
}

#[test]
fn a_storm_of_resets_is_many_epochs_and_nothing_worse() {
    let place = Place::new("storm");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    let (mut frames, mut resets) = (0_u64, 0_u64);
    let end = Instant::now() + LIMIT;
    for round in 0..200_u64 {
        producer.publish(0, round + 1);
        let wanted = counter(&source, "notices") + 1;
        while counter(&source, "notices") < wanted {
            assert!(Instant::now() < end);
            let soon = Instant::now() + Duration::from_millis(100);
            match source_next(&mut source, &mut surfaces, soon) {
                Some(SourceEvent::Frame(_)) => frames += 1,
                Some(SourceEvent::Reset) => resets += 1,
                _ => (),
            }
        }
    }
    producer.publish(1, 1000);
    until(&mut source, &mut surfaces, |s| counter(s, "notices") == 201).unwrap();
    assert!(frames > 0, "{:?}", counters(&source));
    assert!(resets > 0 && resets < 200);
    assert!(counter(&source, "epochs") >= resets);
    let refused: u64 = [
        "frames",
        "skipped",
        "too_late",
        "not_ready",
        "torn_metadata",
        "torn_payload",
    ]
    .iter()
    .map(|name| counter(&source, name))
    .sum();
    assert!(
        refused >= 200,
        "every notice became something: {:?}",
        counters(&source)
    );
}

fn source_next(
    source: &mut CvMmapSource,
    surfaces: &mut Surfaces,
    deadline: Instant,
) -> Option<SourceEvent> {
    use cvmmap_streamer::source::FrameSource;
    source.next(deadline, surfaces).ok()
}
