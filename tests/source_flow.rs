//! A source in ordinary life: frames, backlogs, labels, epochs, producers that come and go.

mod source_support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cvmmap_streamer::encode::Codec;
use cvmmap_streamer::source::contract::Label;
use cvmmap_streamer::source::{
    CvMmapConfig, CvMmapSource, FrameSource, SourceEvent, StatusHint, Target,
};
use cvmmap_streamer::trace::Stage;
use source_support::*;

#[test]
fn frames_arrive_whole_with_their_ids_and_times() {
    let place = Place::new("flow");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    let mut first = None;
    for id in 3..8 {
        let snapshot = producer.deliver(&mut source, &mut surfaces, id);
        assert_eq!(snapshot.info.frame_id, id);
        assert_eq!(snapshot.info.capture_ts_ns, time_of(id));
        assert!(
            surfaces.picture() == picture(id, 64, 48),
            "pixels of frame {id}"
        );
        assert_eq!((snapshot.epoch, snapshot.gap), (0, false));
        let origin = *first.get_or_insert(snapshot.time.0);
        assert_eq!(snapshot.time.0 - origin, i64::from(id - 3) * 40_000_000);
        let at = |stage| snapshot.trace.at(stage).unwrap();
        assert!(at(Stage::Notice) <= at(Stage::SnapshotStart));
        assert!(at(Stage::SnapshotStart) <= at(Stage::SnapshotEnd));
        assert_eq!(snapshot.trace.capture_unix_ns, None, "media time");
    }
    assert_eq!(counter(&source, "frames"), 5);
    assert_eq!(counter(&source, "skipped"), 0);
}

#[test]
fn each_pass_reads_the_payload_once_and_64_lines_twice() {
    let place = Place::new("once");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    for id in 0..3 {
        producer.publish(id, time_of(id));
        frame(&mut source, &mut surfaces);
    }
    assert_eq!(surfaces.probe.lock().unwrap().fills, 3);
    assert_eq!(counter(&source, "sentinel_lines"), 3 * 2 * 64);
}

#[test]
fn capture_times_of_today_are_kept_as_unix_time() {
    let place = Place::new("unix");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = now.as_nanos() as u64;
    producer.publish(0, now);
    let snapshot = frame(&mut source, &mut Surfaces::new());
    assert_eq!(snapshot.trace.capture_unix_ns, Some(now));
}

#[test]
fn the_version_may_change_from_frame_to_frame() {
    let place = Place::new("versions");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    producer.publish(0, time_of(0));
    assert!(frame(&mut source, &mut surfaces).info.encoded.is_none());

    // v2.1 with an access unit of 100 bytes behind the picture
    let picture_len = 64 * 48 * 3_u32;
    let unit: Vec<u8> = (1..=100).collect();
    let mut block = producer.metadata(1, time_of(1));
    block[9] = 1;
    block[0x20..0x22].copy_from_slice(&[2, 0b1001]);
    block[0x28..0x2C].copy_from_slice(&(picture_len + 100).to_le_bytes());
    block[0x2D..0x35].copy_from_slice(&[2, 1, 1, 0, 25, 0, 1, 0]);
    let at = 64 + 3 * 24;
    block[at..at + 3].copy_from_slice(&[3, 4, 0]);
    for (field, value) in [(4, 100), (8, 1), (12, 100), (16, picture_len), (20, 100)] {
        block[at + field..at + field + 4].copy_from_slice(&value.to_le_bytes());
    }
    producer.put(&picture(1, 64, 48), 256);
    producer.put(&unit, 256 + u64::from(picture_len));
    producer.put(&block, 0);
    producer.announce(1, time_of(1));
    let snapshot = frame(&mut source, &mut surfaces);
    let plane = snapshot.info.encoded.unwrap();
    assert_eq!((plane.codec, plane.keyframe), (Codec::H265, true));
    assert_eq!(snapshot.info.frame_rate, Some((25, 1)));
    assert_eq!(surfaces.probe.lock().unwrap().unit, unit);
    assert!(surfaces.picture() == picture(1, 64, 48));

    // v1 with rows padded to 200 bytes
    let mut block = [0_u8; 256];
    block[..9].copy_from_slice(b"CV-MMAP\0\x01");
    block[0x0C..0x10].copy_from_slice(&2_u32.to_le_bytes());
    block[0x10..0x18].copy_from_slice(&time_of(2).to_le_bytes());
    block[0x18..0x1F].copy_from_slice(&[64, 0, 48, 0, 3, 0, 1]);
    block[0x20..0x24].copy_from_slice(&(200_u32 * 48).to_le_bytes());
    for (y, row) in picture(2, 64, 48).chunks(64 * 3).enumerate() {
        producer.put(row, 256 + y as u64 * 200);
    }
    producer.put(&block, 0);
    producer.announce(2, time_of(2));
    assert_eq!(frame(&mut source, &mut surfaces).info.left.stride, 200);
    assert!(surfaces.picture() == picture(2, 64, 48));
}

#[test]
fn of_a_backlog_the_newest_is_taken_and_the_others_are_counted() {
    let place = Place::new("backlog");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    producer.publish(0, time_of(0));
    frame(&mut source, &mut surfaces);
    // Two notices: they may come one by one, and with more of them the source would take the moments between
    // for the frame interval, and every read for late.
    for id in [4, 10] {
        producer.publish(id, time_of(id));
    }
    let snapshot = producer.collect(&mut source, &mut surfaces, 10, time_of(10));
    assert_eq!((snapshot.info.frame_id, snapshot.gap), (10, true));
    assert_eq!(counter(&source, "skipped"), 9);
}

#[test]
fn ids_whose_notices_are_lost_are_counted_too() {
    let place = Place::new("lost");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    for (id, gap) in [(u32::MAX, false), (0, false), (5, true), (6, false)] {
        let time = time_of(id.wrapping_add(1));
        producer.publish(id, time);
        let snapshot = producer.collect(&mut source, &mut surfaces, id, time);
        assert_eq!((snapshot.gap, snapshot.epoch), (gap, 0), "frame {id}");
    }
    assert_eq!(counter(&source, "skipped"), 4);
    assert_eq!(
        counter(&source, "epochs"),
        0,
        "a wrap of the id is no epoch"
    );
}

#[test]
fn a_frame_that_is_announced_twice_is_taken_once() {
    let place = Place::new("twice");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    producer.publish(0, 0);
    assert_eq!(frame(&mut source, &mut surfaces).info.capture_ts_ns, 0);
    producer.announce(0, 0);
    producer.publish(1, 40);
    assert_eq!(frame(&mut source, &mut surfaces).info.frame_id, 1);
    assert_eq!(counter(&source, "duplicates"), 1);
    assert_eq!(
        (counter(&source, "epochs"), counter(&source, "frames")),
        (0, 2)
    );
}

#[test]
fn notices_of_another_label_are_left_out_and_rubbish_is_survived() {
    let place = Place::new("label");
    let producer = Producer::start(&place);
    let mut source = CvMmapSource::new(CvMmapConfig {
        label: Some(Label::new("camera").unwrap()),
        ..place.config()
    })
    .unwrap();
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    producer.write(0, 10);
    producer.send(&sync(0, 10, "camera2"));
    producer.send(&[0x7D]);
    producer.send(&[0x7D; 47]);
    producer.send(&[0x7D; 5000]);
    producer.send(&sync(0, 10, "camera"));
    assert_eq!(frame(&mut source, &mut surfaces).info.frame_id, 0);
    assert_eq!(counter(&source, "foreign_labels"), 1);
    assert_eq!(counter(&source, "bad_notices"), 3);
    assert_eq!(counter(&source, "notices"), 5);
}

#[test]
fn an_id_or_time_that_goes_back_begins_an_epoch_once() {
    let place = Place::new("epochs");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    let mut last = None;
    // (id, capture time, begins an epoch)
    for (id, time, begins) in [
        (100, 5_000, false),
        (101, 6_000, false),
        (0, 7_000, true),
        (1, 8_000, false),
        (2, 500, true),
        (3, 600, false),
    ] {
        producer.publish(id, time);
        if begins {
            reset(&mut source, &mut surfaces);
        }
        let snapshot = producer.collect(&mut source, &mut surfaces, id, time);
        assert_eq!((snapshot.info.frame_id, snapshot.gap), (id, begins));
        assert!(last < Some(snapshot.time), "time goes on at frame {id}");
        last = Some(snapshot.time);
    }
    assert_eq!(counter(&source, "epochs"), 2);
}

#[test]
fn a_reset_that_is_told_beside_what_frames_show_is_one_epoch() {
    let place = Place::new("told");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let (mut surfaces, hints) = (Surfaces::new(), source.hints());
    producer.publish(50, time_of(50));
    frame(&mut source, &mut surfaces);
    // as the real producer wraps: frame 0, then the status, twice
    producer.publish(0, 0);
    reset(&mut source, &mut surfaces);
    assert_eq!(frame(&mut source, &mut surfaces).epoch, 1);
    hints.tell(StatusHint::StreamReset);
    producer.publish(1, 40);
    assert_eq!(frame(&mut source, &mut surfaces).epoch, 1);
    assert_eq!(counter(&source, "epochs"), 1);
}

#[test]
fn a_reset_that_only_status_tells_of_begins_an_epoch() {
    let place = Place::new("only_told");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let (mut surfaces, hints) = (Surfaces::new(), source.hints());
    producer.deliver(&mut source, &mut surfaces, 0);
    hints.tell(StatusHint::StreamReset);
    hints.tell(StatusHint::StreamReset);
    let mut id = 1;
    let began = Instant::now();
    while counter(&source, "epochs") == 0 {
        assert!(began.elapsed() < LIMIT);
        producer.publish(id, time_of(id));
        id += 1;
        let soon = Instant::now() + Duration::from_millis(5);
        source.next(soon, &mut surfaces).unwrap();
    }
    assert_eq!(counter(&source, "epochs"), 1);
}

#[test]
fn an_absent_producer_is_waited_for_and_its_end_is_seen() {
    let place = Place::new("absent");
    let mut source = place.source();
    let mut surfaces = Surfaces::new();
    assert!(matches!(
        next(&mut source, &mut surfaces),
        SourceEvent::Offline
    ));
    let soon = Instant::now() + Duration::from_millis(1);
    let event = source.next(soon, &mut surfaces).unwrap();
    assert!(matches!(event, SourceEvent::Idle), "told once: {event:?}");

    let producer = Producer::with_reader(&place);
    producer.deliver(&mut source, &mut surfaces, 0);
    source.hints().tell(StatusHint::Offline);
    assert!(matches!(
        next(&mut source, &mut surfaces),
        SourceEvent::Offline
    ));

    producer.publish(1, time_of(1));
    reset(&mut source, &mut surfaces);
    frame(&mut source, &mut surfaces);
    drop(producer);
    assert!(matches!(
        next(&mut source, &mut surfaces),
        SourceEvent::Offline
    ));
}

#[test]
fn the_segment_is_open_and_mapped_for_reading_only() {
    let place = Place::new("readonly");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    producer.deliver(&mut source, &mut Surfaces::new(), 0);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours: Vec<_> = maps
        .lines()
        .filter(|l| l.contains(&place.shm_name))
        .collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert_eq!(ours[0].split_whitespace().nth(1), Some("r--s"));

    let mut modes = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().contains(&place.shm_name) {
            let info = std::path::Path::new("/proc/self/fdinfo").join(entry.file_name());
            let info = std::fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
            modes.push(u32::from_str_radix(flags.trim(), 8).unwrap() & 3);
        }
    }
    modes.sort_unstable();
    // the test's own producer has it open for reading and writing (2)
    assert_eq!(modes, [0, 2]);
}

#[test]
fn a_target_gives_the_names_and_the_label() {
    let config = CvMmapConfig::of_target(&Target::parse("cvmmap://cam.1@/run/x").unwrap());
    assert_eq!(config.shm_name, "cvmmap_cam.1");
    assert_eq!(config.zmq_endpoint, "ipc:///run/x/cvmmap_cam.1");
    assert_eq!(config.label, Some(Label::new("cam.1").unwrap()));
}

#[test]
fn impossible_names_are_errors_and_absent_ones_are_not() {
    let place = Place::new("names");
    let error = |shm_name: &str, zmq_endpoint: String| {
        let config = CvMmapConfig {
            shm_name: shm_name.to_owned(),
            zmq_endpoint,
            ..CvMmapConfig::default()
        };
        CvMmapSource::new(config).err().map(|e| e.to_string())
    };
    assert_eq!(error(&place.shm_name, place.endpoint()), None);
    assert_eq!(
        error(&format!("/{}", place.shm_name), place.endpoint()),
        None
    );
    let slashes = error("a/b", place.endpoint()).unwrap();
    assert!(
        slashes.contains("shared memory segment a/b: impossible name"),
        "{slashes}"
    );
    let nonsense = error(&place.shm_name, "carrier-pigeon://x".to_owned()).unwrap();
    assert!(
        nonsense.starts_with("sync socket carrier-pigeon://x:"),
        "{nonsense}"
    );
}
