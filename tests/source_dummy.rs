//! The built-in producer, seen by the streamer's own source and by an independent consumer.

mod source_support;

use std::time::{Duration, Instant};

use cvmmap_streamer::encode::FrameRate;
use cvmmap_streamer::pipeline::stop::{StopReason, StopToken};
use cvmmap_streamer::source::{
    CvMmapConfig, CvMmapSource, DummyConfig, DummyProducer, FrameSource, SourceEvent,
};
use source_support::*;

fn config(place: &Place, frames: u64) -> DummyConfig {
    DummyConfig {
        shm_name: place.shm_name.clone(),
        zmq_endpoint: place.endpoint(),
        label: "dummy".to_owned(),
        width: 64,
        height: 48,
        fps: FrameRate { num: 50, den: 1 },
        frames,
    }
}

/// Contract section 7, written again.
fn pattern(n: u32, width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let (b, g, r) = (x + 3 * n, 2 * y + 5 * n, x / 2 + y / 3 + 7 * n);
            bytes.extend([(b % 256) as u8, (g % 256) as u8, (r % 256) as u8]);
        }
    }
    bytes
}

fn gone(place: &Place) -> bool {
    let socket = place.endpoint();
    let segment = format!("/dev/shm/{}", place.shm_name);
    !std::fs::exists(segment).unwrap()
        && !std::fs::exists(socket.strip_prefix("ipc://").unwrap()).unwrap()
}

#[test]
fn a_finite_run_loses_no_first_frame_ends_and_leaves_nothing_behind() {
    let place = Place::new("dummy");
    let producer = DummyProducer::start(config(&place, 12), StopToken::new()).unwrap();
    let mut source = CvMmapSource::new(CvMmapConfig {
        end: Some(producer.end()),
        ..place.config()
    })
    .unwrap();
    let mut surfaces = Surfaces::new();
    let mut ids = Vec::new();
    loop {
        match next(&mut source, &mut surfaces) {
            SourceEvent::Frame(snapshot) => {
                let id = snapshot.info.frame_id;
                assert!(surfaces.picture() == pattern(id, 64, 48), "frame {id}");
                assert!(snapshot.trace.capture_unix_ns.is_some());
                ids.push(id);
            }
            SourceEvent::End => break,
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(ids.first(), Some(&0));
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    // every frame is there, or has its reason
    let counted: u64 = [
        "frames",
        "skipped",
        "too_late",
        "torn_payload",
        "torn_metadata",
    ]
    .iter()
    .map(|name| counter(&source, name))
    .sum();
    assert_eq!(counted, 12, "{:?}", counters(&source));
    producer.join();
    assert!(gone(&place));
}

#[test]
fn a_second_consumer_sees_segment_and_socket_as_the_contract_has_them() {
    let place = Place::new("dummy2");
    let stop = StopToken::new();
    let producer = DummyProducer::start(config(&place, 0), stop.clone()).unwrap();
    let socket = zmq::Context::new().socket(zmq::SUB).unwrap();
    socket.set_rcvtimeo(LIMIT.as_millis() as i32).unwrap();
    socket.set_subscribe(&[0x7D]).unwrap();
    socket.connect(&place.endpoint()).unwrap();
    let path = format!("/dev/shm/{}", place.shm_name);
    let mut last = None;
    for _ in 0..5 {
        let message = socket.recv_bytes(0).expect("no notice");
        assert_eq!((message.len(), message[0], message[2]), (48, 0x7D, 1));
        assert_eq!(
            &message[24..],
            b"dummy\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        let id = u32::from_le_bytes(message[4..8].try_into().unwrap());
        let ts = u64::from_le_bytes(message[16..24].try_into().unwrap());
        assert_eq!(last.replace(id), id.checked_sub(1));
        let region = std::fs::read(&path).unwrap();
        assert_eq!(region.len(), 256 + 1024 * 1024);
        // it may have gone on meanwhile: only the frame that was announced can be compared
        if region[..256] == v2_left(id, ts, 64, 48) {
            assert!(region[256..256 + 64 * 48 * 3] == pattern(id, 64, 48)[..]);
        }
    }
    stop.stop(StopReason::Signal);
    producer.join();
    assert!(gone(&place));
}

#[test]
fn without_a_subscriber_it_waits_and_can_be_stopped_and_dropped() {
    let place = Place::new("dummy3");
    let stop = StopToken::new();
    let producer = DummyProducer::start(config(&place, 1), stop.clone()).unwrap();
    let waited = Instant::now();
    while waited.elapsed() < Duration::from_millis(30) {
        assert_eq!(producer.end().get(), None);
    }
    stop.stop(StopReason::Signal);
    let end = producer.end();
    producer.join();
    assert_eq!(end.get().unwrap().last_frame, None);
    assert!(gone(&place));

    drop(DummyProducer::start(config(&place, 0), StopToken::new()).unwrap());
    assert!(gone(&place));
}

#[test]
fn an_address_in_use_is_named() {
    let socket = zmq::Context::new().socket(zmq::PUB).unwrap();
    socket.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    let place = Place::new("dummy4");
    let config = DummyConfig {
        zmq_endpoint: endpoint.clone(),
        ..config(&place, 1)
    };
    let error = DummyProducer::start(config, StopToken::new()).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    assert!(!std::fs::exists(format!("/dev/shm/{}", place.shm_name)).unwrap());
}

#[test]
fn a_source_whose_producer_never_had_a_frame_ends() {
    let place = Place::new("dummy5");
    let stop = StopToken::new();
    let producer = DummyProducer::start(config(&place, 1), stop.clone()).unwrap();
    stop.stop(StopReason::Signal);
    let end = producer.end();
    producer.join();
    let mut source = CvMmapSource::new(CvMmapConfig {
        end: Some(end),
        ..place.config()
    })
    .unwrap();
    let mut surfaces = Surfaces::new();
    let soon = Instant::now() + LIMIT;
    assert!(matches!(
        source.next(soon, &mut surfaces).unwrap(),
        SourceEvent::End
    ));
}
