//! A small producer for the source's tests, written from the wire contract and not with the
//! streamer's own code, and surfaces that tell what was done to them.

#![allow(dead_code)] // each test file uses its part

use std::any::Any;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cvmmap_streamer::frame::{
    FillError, FrameInfo, FrameView, Snapshot, Surface, SurfaceLease, SurfaceMemory, SurfacePool,
};
use cvmmap_streamer::source::{
    CvMmapConfig, CvMmapSource, FrameSource, SourceError, SourceEvent, SurfaceSource,
};

/// Long enough for any machine; nothing waits for it to pass.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What lies between two frames at least. With frames as fast as a quiet machine makes them, 50 us apart, every
/// read would be late.
const PACE: Duration = Duration::from_millis(20);

/// A name that no other test or process uses.
pub fn unique(tag: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("cvmmaptest_{}_{n}_{tag}", std::process::id())
}

/// Names of a producer that may come and go.
pub struct Place {
    pub shm_name: String,
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new(tag: &str) -> Self {
        Self {
            shm_name: unique(tag),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn endpoint(&self) -> String {
        format!("ipc://{}/sync", self.folder.path().display())
    }

    pub fn config(&self) -> CvMmapConfig {
        CvMmapConfig {
            shm_name: self.shm_name.clone(),
            zmq_endpoint: self.endpoint(),
            ..CvMmapConfig::default()
        }
    }

    pub fn source(&self) -> CvMmapSource {
        CvMmapSource::new(self.config()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = rustix::shm::unlink(&*self.shm_name);
    }
}

/// Writes a segment and announces frames, step by step as the test wants it.
pub struct Producer {
    pub file: Arc<File>,
    name: String,
    socket: zmq::Socket,
    pub width: u32,
    pub height: u32,
    clean: bool,
}

impl Producer {
    /// Segment and socket, with room for BGR pictures of 64 by 48.
    pub fn start(place: &Place) -> Self {
        Self::of_size(place, 64, 48)
    }

    pub fn of_size(place: &Place, width: u32, height: u32) -> Self {
        let flags = rustix::shm::OFlags::CREATE | rustix::shm::OFlags::RDWR;
        let fd = rustix::shm::open(&*place.shm_name, flags, 0o600.into()).unwrap();
        let producer = Self {
            file: Arc::new(File::from(fd)),
            name: place.shm_name.clone(),
            socket: zmq::Context::new().socket(zmq::XPUB).unwrap(),
            width,
            height,
            clean: true,
        };
        producer.socket.set_xpub_verbose(true).unwrap();
        producer.socket.bind(&place.endpoint()).unwrap();
        producer.file.set_len(256 + 1024 * 1024).unwrap();
        producer
    }

    /// As `start`, and waits until the source has subscribed.
    pub fn with_reader(place: &Place) -> Self {
        let producer = Self::start(place);
        producer.wait_for_subscriber();
        producer
    }

    pub fn wait_for_subscriber(&self) {
        self.socket.set_rcvtimeo(LIMIT.as_millis() as i32).unwrap();
        let message = self.socket.recv_bytes(0).expect("nobody subscribes");
        assert_eq!(message, [1, 0x7D]);
    }

    /// Waits until a source that had another producer before has subscribed here: it does so
    /// while it works. Gives the events of that time.
    pub fn wait_for_return(
        &self,
        source: &mut CvMmapSource,
        surfaces: &mut Surfaces,
    ) -> Vec<SourceEvent> {
        let (end, mut events) = (Instant::now() + LIMIT, Vec::new());
        while self.socket.recv_bytes(zmq::DONTWAIT).is_err() {
            assert!(Instant::now() < end, "nobody subscribes");
            match source.next(Instant::now() + Duration::from_millis(5), surfaces) {
                Ok(SourceEvent::Idle) => (),
                Ok(event) => events.push(event),
                Err(error) => panic!("{error}"),
            }
        }
        events
    }

    /// Ends as after SIGKILL: the segment stays under its name.
    pub fn kill(mut self) {
        self.clean = false;
    }

    pub fn put(&self, bytes: &[u8], at: u64) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    pub fn metadata(&self, id: u32, ts: u64) -> [u8; 256] {
        v2_left(id, ts, self.width, self.height)
    }

    /// Payload and metadata of a frame, as v2.0 BGR.
    pub fn write(&self, id: u32, ts: u64) {
        self.put(&picture(id, self.width, self.height), 256);
        self.put(&self.metadata(id, ts), 0);
    }

    pub fn announce(&self, id: u32, ts: u64) {
        self.send(&sync(id, ts, "camera"));
    }

    pub fn send(&self, message: &[u8]) {
        self.socket.send(message, 0).unwrap();
    }

    pub fn publish(&self, id: u32, ts: u64) {
        std::thread::sleep(PACE);
        self.write(id, ts);
        self.announce(id, ts);
    }

    /// Publishes a frame and gets it.
    pub fn deliver(&self, source: &mut CvMmapSource, surfaces: &mut Surfaces, id: u32) -> Snapshot {
        self.publish(id, time_of(id));
        self.collect(source, surfaces, id, time_of(id))
    }

    /// Gets a frame that has been published. On a busy machine it may be refused as late, once
    /// the source knows the frame interval: it is announced again then.
    pub fn collect(
        &self,
        source: &mut CvMmapSource,
        surfaces: &mut Surfaces,
        id: u32,
        ts: u64,
    ) -> Snapshot {
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            let soon = Instant::now() + Duration::from_millis(500);
            match source.next(soon, surfaces).unwrap() {
                SourceEvent::Frame(snapshot) => return snapshot,
                SourceEvent::Idle => self.announce(id, ts),
                event => panic!("{event:?} in place of frame {id}"),
            }
        }
        panic!("no frame {id}: {:?}", counters(source));
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if self.clean {
            let _ = rustix::shm::unlink(&*self.name);
        }
    }
}

/// Capture time of frame `id`: 25 Hz on some clock.
pub fn time_of(id: u32) -> u64 {
    7_000_000_000 + u64::from(id) * 40_000_000
}

/// Bytes that differ from frame to frame at every place.
pub fn picture(id: u32, width: u32, height: u32) -> Vec<u8> {
    (0..width * height * 3)
        .map(|n| (n.wrapping_mul(31) ^ id.wrapping_mul(0x35)) as u8)
        .collect()
}

/// Contract section 2.2, minor 0.
pub fn v2_left(id: u32, ts: u64, width: u32, height: u32) -> [u8; 256] {
    let mut block = [0; 256];
    let size = width * height * 3;
    block[..10].copy_from_slice(b"CV-MMAP\0\x02\x00");
    block[0x0C..0x10].copy_from_slice(&id.to_le_bytes());
    block[0x10..0x18].copy_from_slice(&ts.to_le_bytes());
    block[0x18..0x20].copy_from_slice(&u64::from(id).to_le_bytes());
    block[0x20..0x28].copy_from_slice(&[1, 1, 64, 0, 24, 0, 4, 0]);
    block[0x28..0x2C].copy_from_slice(&size.to_le_bytes());
    block[0x41] = 1; // BGR
    for (at, value) in [
        (0x44, width),
        (0x48, height),
        (0x4C, width * 3),
        (0x54, size),
    ] {
        block[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    block
}

/// Contract section 3, with rubbish where the real producer has it.
pub fn sync(id: u32, ts: u64, label: &str) -> [u8; 48] {
    let mut message = [0; 48];
    message[..4].copy_from_slice(&[0x7D, 0x76, 1, 0]);
    message[4..8].copy_from_slice(&id.to_le_bytes());
    message[8..16].copy_from_slice(&[0xEE; 8]);
    message[16..24].copy_from_slice(&ts.to_le_bytes());
    message[24..24 + label.len()].copy_from_slice(label.as_bytes());
    message
}

/// Done to the world when half of the rows have been read.
type Midway = Box<dyn FnMut() + Send>;

/// What a surface was given, and what it does meanwhile.
#[derive(Default)]
pub struct Probe {
    pub fills: u32,
    pub picture: Vec<u8>,
    pub unit: Vec<u8>,
    pub midway: Option<Midway>,
    pub refuse: bool,
}

struct ProbeSurface(Arc<Mutex<Probe>>);

impl SurfaceMemory for ProbeSurface {
    fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError> {
        let mut probe = self.0.lock().unwrap();
        let probe = &mut *probe;
        probe.fills += 1;
        if probe.refuse {
            return Err(FillError::Shape);
        }
        let info = view.info();
        let row_len = info.left.width as usize * info.format.bytes_per_pixel();
        probe.picture.clear();
        for y in 0..info.left.height {
            if y == info.left.height / 2
                && let Some(midway) = &mut probe.midway
            {
                midway();
            }
            let row = view.row(y);
            // SAFETY: `row_len` bytes of the row are in range, says the view.
            let bytes = (0..row_len).map(|x| unsafe { row.add(x).read_volatile() });
            probe.picture.extend(bytes);
        }
        probe.unit.clear();
        if let Some((start, unit)) = view.encoded() {
            // SAFETY: as above, for the access unit.
            let bytes = (0..unit.size as usize).map(|n| unsafe { start.add(n).read_volatile() });
            probe.unit.extend(bytes);
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// One probe behind a pool of two surfaces.
pub struct Surfaces {
    pub probe: Arc<Mutex<Probe>>,
    pub pool: SurfacePool,
    pub none: bool,
}

impl Surfaces {
    pub fn new() -> Self {
        let probe = Arc::new(Mutex::new(Probe::default()));
        let surface = || Box::new(ProbeSurface(Arc::clone(&probe))) as Surface;
        let pool = SurfacePool::new(vec![surface(), surface()]);
        Self {
            probe,
            pool,
            none: false,
        }
    }

    /// Does `action` once, in the middle of the next pass.
    pub fn midway(&self, mut action: impl FnMut() + Send + 'static) {
        let mut done = false;
        self.probe.lock().unwrap().midway = Some(Box::new(move || {
            if !std::mem::replace(&mut done, true) {
                action();
            }
        }));
    }

    pub fn picture(&self) -> Vec<u8> {
        self.probe.lock().unwrap().picture.clone()
    }
}

impl SurfaceSource for Surfaces {
    fn surface_for(&mut self, _: &FrameInfo) -> Option<SurfaceLease> {
        if self.none { None } else { self.pool.take() }
    }
}

/// The next event other than `Idle`, which would mean that `LIMIT` has passed.
pub fn next(source: &mut CvMmapSource, surfaces: &mut Surfaces) -> SourceEvent {
    let event = source.next(Instant::now() + LIMIT, surfaces).unwrap();
    assert!(!matches!(event, SourceEvent::Idle), "nothing came");
    event
}

pub fn frame(source: &mut CvMmapSource, surfaces: &mut Surfaces) -> Snapshot {
    match next(source, surfaces) {
        SourceEvent::Frame(snapshot) => snapshot,
        event => panic!("{event:?} in place of a frame"),
    }
}

pub fn reset(source: &mut CvMmapSource, surfaces: &mut Surfaces) {
    let event = next(source, surfaces);
    assert!(
        matches!(event, SourceEvent::Reset),
        "{event:?} in place of a reset"
    );
}

/// Lets the source work until `done`; frames, if any, are given back.
pub fn until(
    source: &mut CvMmapSource,
    surfaces: &mut Surfaces,
    done: impl Fn(&CvMmapSource) -> bool,
) -> Result<Vec<SourceEvent>, SourceError> {
    let end = Instant::now() + LIMIT;
    let mut events = Vec::new();
    while !done(source) {
        assert!(Instant::now() < end, "{:?}", counters(source));
        match source.next(Instant::now() + Duration::from_millis(20), surfaces)? {
            SourceEvent::Idle => (),
            event => events.push(event),
        }
    }
    Ok(events)
}

pub fn counters(source: &CvMmapSource) -> Vec<(&'static str, u64)> {
    source.counters().values().filter(|(_, n)| *n > 0).collect()
}

pub fn counter(source: &CvMmapSource, name: &str) -> u64 {
    let found = source.counters().values().find(|(known, _)| *known == name);
    found.expect(name).1
}
