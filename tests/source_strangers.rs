//! Strangers in the producer's place: whatever has taken its names, or speaks on its socket, costs
//! frames while it is there and nothing afterwards.

mod source_support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cvmmap_streamer::frame::Snapshot;
use cvmmap_streamer::pipeline::stop::StopToken;
use cvmmap_streamer::source::{CvMmapSource, DummyConfig, DummyProducer, FrameSource, SourceEvent};
use source_support::*;

/// Publishes frames from `first` on, each with its notice, until the source takes one.
fn publish_until_taken(
    producer: &Producer,
    source: &mut CvMmapSource,
    surfaces: &mut Surfaces,
    first: u32,
) -> Snapshot {
    let end = Instant::now() + 3 * LIMIT;
    let mut id = first;
    while Instant::now() < end {
        producer.publish(id, time_of(id));
        id += 1;
        // As far apart as the frames of a camera.
        let soon = Instant::now() + Duration::from_millis(40);
        loop {
            match source.next(soon, surfaces).unwrap() {
                SourceEvent::Frame(snapshot) => return snapshot,
                SourceEvent::Idle => break,
                _ => (),
            }
        }
    }
    panic!("no frame from {first} on: {:?}", counters(source));
}

/// The program, with its log in a pipe.
fn streamer(place: &Place, endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
    command
        .args(["--shm-name", &place.shm_name, "--zmq-endpoint", endpoint])
        .args("--no-nats --no-status --ingest-idle-timeout-ms 60000".split(' '))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Whatever stands under a segment's name; gone when this is dropped.
struct Taken(PathBuf);

impl Taken {
    fn path(place: &Place) -> PathBuf {
        Path::new("/dev/shm").join(&place.shm_name)
    }

    fn by(place: &Place, make: impl FnOnce(&Path)) -> Self {
        let path = Self::path(place);
        make(&path);
        assert!(path.symlink_metadata().is_ok(), "nothing was made");
        Self(path)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0).or_else(|_| std::fs::remove_file(&self.0));
    }
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
}

type Taker = fn(&Path);

/// What can stand under a name and is no segment.
const TAKERS: [(&str, Taker); 5] = [
    ("a folder", |path| std::fs::create_dir(path).unwrap()),
    ("a pipe", fifo),
    ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
    ("a short file", |path| {
        std::fs::write(path, [0; 255]).unwrap()
    }),
    ("a dead link", |path| {
        std::os::unix::fs::symlink("/nonexistent/segment", path).unwrap()
    }),
];

#[test]
fn what_has_the_segments_name_before_the_producer_is_waited_for() {
    for (name, make) in TAKERS {
        let place = Place::new("taken");
        let taken = Taken::by(&place, make);
        let mut surfaces = Surfaces::new();
        let mut source = place.source();
        // Long enough for a look at the name beside the first one.
        let events = events_of(&mut source, &mut surfaces, Duration::from_millis(1500));
        let frames = events.iter().filter(|e| matches!(e, SourceEvent::Frame(_)));
        assert_eq!(frames.count(), 0, "{name}");
        drop(taken);
        let producer = Producer::start(&place);
        publish_until_taken(&producer, &mut source, &mut surfaces, 0);
    }
}

#[test]
fn what_takes_the_segments_name_in_between_does_not_end_the_run() {
    for (name, make) in TAKERS {
        let place = Place::new("between");
        let (first, mut source) = (Producer::start(&place), place.source());
        first.wait_for_subscriber();
        let mut surfaces = Surfaces::new();
        first.deliver(&mut source, &mut surfaces, 0);
        drop(first);
        let taken = Taken::by(&place, make);
        if name == "a short file" {
            // A segment that is not ready yet.
            events_of(&mut source, &mut surfaces, Duration::from_millis(2500));
        } else {
            wait_for_offline(&mut source, &mut surfaces);
        }
        drop(taken);
        let second = Producer::start(&place);
        let snapshot = publish_until_taken(&second, &mut source, &mut surfaces, 0);
        assert_eq!(snapshot.epoch, 1, "{name}");
    }
}

/// The next event, which is that the producer has gone; an error would end the run.
fn wait_for_offline(source: &mut CvMmapSource, surfaces: &mut Surfaces) {
    let event = next(source, surfaces);
    assert!(matches!(event, SourceEvent::Offline), "{event:?}");
}

/// Everything that happens within `time`; no event is waited for.
fn events_of(
    source: &mut CvMmapSource,
    surfaces: &mut Surfaces,
    time: Duration,
) -> Vec<SourceEvent> {
    let end = Instant::now() + time;
    let mut events = Vec::new();
    while Instant::now() < end {
        match source.next(end, surfaces) {
            Ok(SourceEvent::Idle) => (),
            Ok(event) => events.push(event),
            Err(error) => panic!("{error}"),
        }
    }
    events
}

#[test]
fn a_link_in_the_segments_place_is_not_followed() {
    // The segment of another producer, under whose name a link to it stands.
    let (place, other) = (Place::new("link"), Place::new("elsewhere"));
    let elsewhere = Producer::start(&other);
    elsewhere.write(0, time_of(0));
    let taken = Taken::by(&place, |path| {
        std::os::unix::fs::symlink(Taken::path(&other), path).unwrap();
    });
    let mut surfaces = Surfaces::new();
    let mut source = place.source();
    // Its notices are real ones, on the right socket.
    let socket = zmq::Context::new().socket(zmq::XPUB).unwrap();
    socket.bind(&place.endpoint()).unwrap();
    socket.set_rcvtimeo(LIMIT.as_millis() as i32).unwrap();
    socket.recv_bytes(0).expect("nobody subscribes");
    socket.send(&sync(0, time_of(0), "camera")[..], 0).unwrap();
    until(&mut source, &mut surfaces, |s| counter(s, "notices") > 0).unwrap();
    events_of(&mut source, &mut surfaces, Duration::from_millis(100));
    assert_eq!(counter(&source, "frames"), 0);
    assert_eq!(counter(&source, "not_ready"), 1);
    drop((taken, socket));

    // Control: the same without the link.
    let producer = Producer::start(&place);
    publish_until_taken(&producer, &mut source, &mut surfaces, 0);
}

#[test]
fn our_own_producer_writes_through_no_link() {
    let place = Place::new("dummylink");
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("precious");
    std::fs::write(&target, "precious").unwrap();
    let config = DummyConfig {
        shm_name: place.shm_name.clone(),
        zmq_endpoint: place.endpoint(),
        label: "dummy".to_owned(),
        width: 64,
        height: 48,
        fps: cvmmap_streamer::encode::FrameRate::THIRTY,
        frames: 1,
    };
    let taken = Taken::by(&place, |path| {
        std::os::unix::fs::symlink(&target, path).unwrap();
    });
    let error = DummyProducer::start(config.clone(), StopToken::new()).unwrap_err();
    assert!(error.to_string().contains("link"), "{error}");
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    drop(taken);
    let pipe = Taken::by(&place, fifo);
    let error = DummyProducer::start(config.clone(), StopToken::new()).unwrap_err();
    assert!(
        error.to_string().contains("not a shared memory segment"),
        "{error}"
    );
    drop(pipe);
    DummyProducer::start(config, StopToken::new()).unwrap();
}

#[test]
fn a_notice_of_8_kib_is_taken_and_a_longer_one_is_not() {
    let place = Place::new("long");
    let (producer, mut source) = (Producer::start(&place), place.source());
    producer.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    let padded = |id: u32, len: usize| {
        let mut message = sync(id, time_of(id), "camera").to_vec();
        message.resize(len, 0xEE);
        message
    };
    producer.write(0, time_of(0));
    producer.send(&padded(0, 8192));
    assert_eq!(frame(&mut source, &mut surfaces).info.frame_id, 0);

    // It would name the frame that is there.
    producer.write(1, time_of(1));
    producer.send(&padded(1, 8193));
    let events = events_of(&mut source, &mut surfaces, Duration::from_millis(300));
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(counter(&source, "notices"), 1);
    let snapshot = publish_until_taken(&producer, &mut source, &mut surfaces, 2);
    assert!(snapshot.gap, "frame 1 is missing");
    assert_eq!(snapshot.epoch, 0);
}

/// Someone else on the sync socket's path.
struct Stranger {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    /// Says `words` to the first who connects, and hangs up.
    fn saying(place: &Place, words: Vec<u8>) -> Self {
        let path = PathBuf::from(place.endpoint().trim_start_matches("ipc://"));
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            // Its peer may be gone already.
            let _ = stream.write_all(&words);
            // Until it has heard enough and hangs up itself, or has said hello.
            let mut hello = [0; 1024];
            let _ = stream.read(&mut hello);
        });
        Self {
            path,
            thread: Some(thread),
        }
    }

    fn finish(mut self) {
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// ZMTP 3.0's greeting of a NULL peer (RFC 23).
fn greeting() -> Vec<u8> {
    let mut greeting = vec![0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, 0];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    greeting
}

#[test]
fn a_listener_that_breaks_the_protocol_leaves_nobody_deaf() {
    let command = |body: &[u8]| [&[0x04, body.len() as u8], body].concat();
    let ready = command(b"\x05READY\x0bSocket-Type\0\0\0\x03PUB");
    let another = command(b"\x05READY\x0bSocket-Type\0\0\0\x03REP");
    for (name, words) in [
        ("nothing", Vec::new()),
        (
            "another protocol",
            b"HTTP/1.1 400 Bad Request\r\n\r\n".repeat(4),
        ),
        ("a greeting of zeros", vec![0; 64]),
        ("another mechanism", {
            let mut greeting = greeting();
            greeting[12..17].copy_from_slice(b"PLAIN");
            greeting
        }),
        (
            "noise behind the greeting",
            [greeting(), vec![0xA5; 300]].concat(),
        ),
        ("another kind of socket", [greeting(), another].concat()),
        (
            "a message of 2^62 bytes",
            [greeting(), ready, vec![0x02, 0x40, 0, 0, 0, 0, 0, 0, 0]].concat(),
        ),
    ] {
        let place = Place::new("garbage");
        let stranger = Stranger::saying(&place, words);
        let mut source = place.source();
        let mut surfaces = Surfaces::new();
        stranger.finish();
        let producer = Producer::start(&place);
        let began = Instant::now();
        publish_until_taken(&producer, &mut source, &mut surfaces, 0);
        println!("{name}: a frame after {:.1?}", began.elapsed());
    }
}

#[test]
fn a_listener_that_stays_and_says_nothing_leaves_nobody_deaf() {
    for (name, words) in [("mute", Vec::new()), ("a greeting and no more", greeting())] {
        let place = Place::new("mute");
        let path = PathBuf::from(place.endpoint().trim_start_matches("ipc://"));
        let listener = UnixListener::bind(&path).unwrap();
        let mut source = place.source();
        let mut surfaces = Surfaces::new();
        let (mut held, _) = listener.accept().unwrap();
        held.write_all(&words).unwrap();
        // It has the connection, the producer takes the path.
        std::fs::remove_file(&path).unwrap();
        let producer = Producer::start(&place);
        let began = Instant::now();
        publish_until_taken(&producer, &mut source, &mut surfaces, 0);
        println!("{name}: a frame after {:.1?}", began.elapsed());
        drop(held);
    }
}

#[test]
fn a_producer_that_hangs_does_not_keep_us_from_its_successor() {
    let place = Place::new("hangs");
    let first = Producer::start(&place);
    let mut source = place.source();
    first.wait_for_subscriber();
    let mut surfaces = Surfaces::new();
    first.deliver(&mut source, &mut surfaces, 0);
    // It keeps its connections and says nothing more. The other takes over path and segment, as
    // contract section 5.3 says of two of one name.
    let second = Producer::start(&place);
    publish_until_taken(&second, &mut source, &mut surfaces, 100);
    assert!(counter(&source, "resubscribed") > 0);
    first.kill();
}

/// Does `what` with the file permissions of nobody, on this thread; `None` where we may not become nobody.
fn as_nobody<T>(what: impl FnOnce() -> T) -> Option<T> {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: the call changes the user that this thread's file accesses are checked for, and touches
    // no memory.
    let set = |user| unsafe { libc::setfsuid(user) };
    set(NOBODY);
    // It tells the user before the call, and nothing of whether it worked.
    let became = set(NOBODY) == NOBODY as libc::c_int;
    let result = became.then(what);
    set(0);
    result
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_segment_that_may_not_be_read_is_an_error_at_the_start_and_none_later() {
    let place = Place::new("forbidden");
    let path = Taken::path(&place);
    let first = Producer::start(&place);
    chmod(&path, 0o600);
    let Some(refused) = as_nobody(|| CvMmapSource::new(place.config()).map(|_| ())) else {
        println!("not tried: only root can be someone else");
        return;
    };
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("no permission to read it"), "{words}");

    chmod(&path, 0o644);
    // Made by us: its threads stay whose they are.
    let mut source = place.source();
    let mut surfaces = Surfaces::new();
    first.wait_for_subscriber();
    as_nobody(|| first.deliver(&mut source, &mut surfaces, 0)).unwrap();
    drop(first);
    let taken = Taken::by(&place, |path| {
        std::fs::write(path, [0; 4096]).unwrap();
        chmod(path, 0o600);
    });
    as_nobody(|| wait_for_offline(&mut source, &mut surfaces)).unwrap();
    drop(taken);
    let second = Producer::start(&place);
    chmod(&path, 0o644);
    as_nobody(|| publish_until_taken(&second, &mut source, &mut surfaces, 0)).unwrap();
}

#[test]
fn who_else_may_write_is_said_once() {
    let place = Place::new("writers");
    let producer = Producer::start(&place);
    chmod(&Taken::path(&place), 0o666);
    let socket = PathBuf::from(place.endpoint().trim_start_matches("ipc://"));
    let folder = socket.parent().unwrap();
    chmod(folder, 0o777);
    let link = folder.join("link");
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    let run = streamer(&place, &format!("ipc://{}", link.display()))
        .args("--run-mode ingest --ingest-max-frames 3".split(' '))
        .spawn()
        .unwrap();
    // Its successor is looked at too.
    producer.wait_for_subscriber();
    let ended = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut producer = Some(producer);
            for id in 0..1000 {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                if id == 2 {
                    drop(producer.take());
                    producer = Some(Producer::start(&place));
                    chmod(&Taken::path(&place), 0o666);
                }
                producer.as_ref().unwrap().publish(id, time_of(id));
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        let output = run.wait_with_output().unwrap();
        ended.store(true, Ordering::Relaxed);
        publishing.join().unwrap();
        output
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for words in [
        "every user may write the segment",
        "is a link to",
        "any user may take the socket's place",
    ] {
        assert_eq!(said.matches(words).count(), 1, "{words:?} in\n{said}");
    }
}

/// Who writes the segment says how large its pictures are. A size that no encoder takes costs its own frames.
#[test]
fn a_picture_size_that_no_encoder_takes_is_left_out_and_another_brings_the_stream_back() {
    let place = Place::new("sizes");
    let mut producer = Producer::start(&place);
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let run = streamer(&place, &place.endpoint())
        .args("--codec h264 --encoder software --ingest-max-frames 60".split(' '))
        .args("--rtp --rtp-endpoint 127.0.0.1:9 --report-json".split(' '))
        .arg(&report)
        .spawn()
        .unwrap();
    producer.wait_for_subscriber();
    let ended = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for id in 0..3000 {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                // No encoder takes two rows.
                (producer.width, producer.height) = match id {
                    30..40 => (16_000, 2),
                    _ => (64, 48),
                };
                producer.publish(id, time_of(id));
            }
        });
        let output = run.wait_with_output().unwrap();
        ended.store(true, Ordering::Relaxed);
        publishing.join().unwrap();
        output
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["frames"], 60, "{report}");
    assert_eq!(report["encode"]["encoders_opened"], 2, "{said}");
    assert!(
        report["source"]["no_surface"].as_u64() >= Some(1),
        "{report}"
    );
    let line = "16000x2 pictures are left out until they have another size: openh264: ";
    assert!(said.contains(line), "{said}");
}
