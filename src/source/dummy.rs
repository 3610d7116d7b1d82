//! A producer of our own: a moving pattern in a real segment, announced on a real socket.
//!
//! It stands in for the upstream dummy (contract section 7), so that `--input-mode dummy` runs
//! the same path as a camera, and anyone else can attach to the same names. It writes the segment
//! with `pwrite`, needs no mapping and so no unsafe code.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::Mode;
use rustix::shm;

use super::SourceError;
use super::contract::{Label, METADATA_LEN, SyncMessage, v2_left_only};
use super::region::{NO_SEGMENT, cautious};
use crate::encode::FrameRate;
use crate::frame::PixelFormat;
use crate::pipeline::stop::StopToken;

/// What to produce.
#[derive(Debug, Clone)]
pub struct DummyConfig {
    pub shm_name: String,
    pub zmq_endpoint: String,
    /// At most 24 bytes.
    pub label: String,
    pub width: u32,
    pub height: u32,
    pub fps: FrameRate,
    /// 0 = endless.
    pub frames: u64,
}

/// The running producer. Dropping it ends it and removes both names.
#[derive(Debug)]
pub struct DummyProducer {
    thread: Option<JoinHandle<()>>,
    leave: Arc<AtomicBool>,
    end: ProducerEnd,
}

/// Tells a source that its producer has published its last frame; cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct ProducerEnd(Arc<OnceLock<Ended>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// `None` if there was not one frame.
    pub last_frame: Option<u32>,
}

impl ProducerEnd {
    /// The first call counts.
    pub fn set(&self, last_frame: Option<u32>) {
        let _ = self.0.set(Ended { last_frame });
    }

    pub fn get(&self) -> Option<Ended> {
        self.0.get().copied()
    }
}

impl DummyProducer {
    /// Makes segment and socket, and starts to produce as soon as somebody has subscribed.
    ///
    /// # Errors
    ///
    /// If a size is impossible, the label too long, or one of the names cannot be made.
    pub fn start(config: DummyConfig, stop: StopToken) -> Result<Self, SourceError> {
        let line = Line::open(&config)?;
        let leave = Arc::new(AtomicBool::new(false));
        let end = ProducerEnd::default();
        let producer = Producer {
            line,
            config,
            stop,
            leave: Arc::clone(&leave),
            end: end.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("dummy".to_owned())
            .spawn(move || producer.run())
            .map_err(|error| SourceError::Segment {
                name: "dummy".to_owned(),
                reason: format!("no thread to produce it: {error}"),
            })?;
        Ok(Self {
            thread: Some(thread),
            leave,
            end,
        })
    }

    /// For [`super::cvmmap::CvMmapConfig::end`].
    pub fn end(&self) -> ProducerEnd {
        self.end.clone()
    }

    /// Waits until the producer has ended by itself (its frames, the stop token) and both names
    /// are gone.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for DummyProducer {
    fn drop(&mut self) {
        // Relaxed: the flag publishes nothing but itself.
        self.leave.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The pixel at (`x`, `y`) of frame `n` as B, G, R (contract section 7).
pub fn pixel(n: u32, x: u32, y: u32) -> [u8; 3] {
    let b = x.wrapping_add(n.wrapping_mul(3));
    let g = (2 * y).wrapping_add(n.wrapping_mul(5));
    let r = (x / 2 + y / 3).wrapping_add(n.wrapping_mul(7));
    [b as u8, g as u8, r as u8]
}

struct Producer {
    line: Line,
    config: DummyConfig,
    stop: StopToken,
    leave: Arc<AtomicBool>,
    end: ProducerEnd,
}

impl Producer {
    fn run(mut self) {
        let last = self.produce();
        self.end.set(last);
        // Who has been told of the last frame has an interval to read it, as with any other.
        if last.is_some() {
            let rest = self.time_of(1).min(Duration::from_millis(100));
            self.sleep_until(Instant::now() + rest);
        }
    }

    /// Publishes frames until their number, the stop or the drop; gives the last one's id.
    fn produce(&mut self) -> Option<u32> {
        while !self.line.has_subscriber() {
            if self.left() || self.stop.wait(Duration::from_millis(2)) {
                return None;
            }
        }
        let (width, height) = (self.config.width, self.config.height);
        let mut picture = vec![0; width as usize * height as usize * 3];
        let mut start = Instant::now();
        let mut last = None;
        for n in 0.. {
            if self.config.frames != 0 && n >= self.config.frames {
                break;
            }
            let mut due = start + self.time_of(n);
            let late = Instant::now().saturating_duration_since(due);
            if late > self.time_of(1) {
                // After a pause of the machine: from here on, not all that was missed at once.
                start += late;
                due += late;
            }
            let id = n as u32;
            render(id, width, &mut picture);
            if self.sleep_until(due) {
                break;
            }
            if let Err(error) = self.line.publish(id, width, height, &picture) {
                log::error!("dummy: {error}");
                break;
            }
            last = Some(id);
        }
        last
    }

    /// Sleeps; true if it is time to end.
    fn sleep_until(&self, due: Instant) -> bool {
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if self.left() || self.stop.wait(wait.min(Duration::from_millis(100))) {
                return true;
            }
            if wait <= Duration::from_millis(100) {
                return false;
            }
        }
    }

    fn left(&self) -> bool {
        self.leave.load(Ordering::Relaxed)
    }

    fn time_of(&self, n: u64) -> Duration {
        time_of(self.config.fps, n)
    }
}

/// From the first frame to frame `n`, rounded once, so that it does not drift.
fn time_of(fps: FrameRate, n: u64) -> Duration {
    let nanos = u128::from(n) * u128::from(fps.den) * 1_000_000_000 / u128::from(fps.num);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// [`pixel`] for the whole picture. Rows differ by constants only, so one row is worked out and
/// the others are made of it: producer and encoder share the machine.
fn render(n: u32, width: u32, picture: &mut [u8]) {
    let (first, others) = picture.split_at_mut(width as usize * 3);
    for (x, bgr) in (0_u32..).zip(first.chunks_exact_mut(3)) {
        bgr.copy_from_slice(&pixel(n, x, 0));
    }
    for (y, row) in (1_u32..).zip(others.chunks_exact_mut(first.len())) {
        let (green, red) = ((2 * y) as u8, (y / 3) as u8);
        row.copy_from_slice(first);
        for bgr in row.chunks_exact_mut(3) {
            bgr[1] = bgr[1].wrapping_add(green);
            bgr[2] = bgr[2].wrapping_add(red);
        }
    }
}

/// Segment and socket; both names go when this is dropped.
struct Line {
    segment: File,
    shm_name: String,
    socket: zmq::Socket,
    label: Label,
    subscribed: bool,
}

impl Line {
    fn open(config: &DummyConfig) -> Result<Self, SourceError> {
        let wrong = |flag, value: String, reason: &str| SourceError::Name {
            flag,
            value,
            reason: reason.to_owned(),
        };
        let label = Label::new(&config.label).map_err(|_| SourceError::LabelTooLong {
            flag: "--dummy-label",
        })?;
        if config.fps.num == 0 || config.fps.den == 0 {
            return Err(wrong("--dummy-fps", "0".to_owned(), "must be above 0"));
        }
        for (flag, value) in [
            ("--dummy-width", config.width),
            ("--dummy-height", config.height),
        ] {
            if value == 0 || value > u32::from(u16::MAX) {
                return Err(wrong(flag, value.to_string(), "must be 1 to 65535"));
            }
        }
        let payload = u64::from(config.width) * u64::from(config.height) * 3;
        if payload > u64::from(u32::MAX) {
            let size = format!("{}x{}", config.width, config.height);
            return Err(wrong("--dummy-width", size, "exceeds 4 GiB a frame"));
        }

        let socket = bind(&config.zmq_endpoint)?;
        let segment = create_segment(&config.shm_name, payload)?;
        Ok(Self {
            segment,
            shm_name: config.shm_name.clone(),
            socket,
            label,
            subscribed: false,
        })
    }

    /// Whether anyone has subscribed; from the XPUB socket's own messages.
    fn has_subscriber(&mut self) -> bool {
        let mut message = [0; 64];
        while let Ok(len) = self.socket.recv_into(&mut message, zmq::DONTWAIT) {
            self.subscribed |= len > 0 && message[0] == 1;
        }
        self.subscribed
    }

    /// Payload, metadata, notice: in the order of every producer (contract section 3).
    fn publish(&mut self, id: u32, width: u32, height: u32, picture: &[u8]) -> std::io::Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos() as u64);
        self.segment.write_all_at(picture, METADATA_LEN as u64)?;
        let block = v2_left_only(id, now, PixelFormat::Bgr, width, height);
        self.segment.write_all_at(&block, 0)?;
        let message = SyncMessage {
            frame_id: id,
            timestamp_ns: now,
            label: self.label,
        };
        // Subscriptions that came meanwhile would pile up.
        self.has_subscriber();
        self.socket
            .send(&message.to_bytes()[..], zmq::DONTWAIT)
            .map_err(std::io::Error::from)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Closing the socket removes its file. Neither can be helped here if it fails.
        let _ = shm::unlink(&*self.shm_name);
        if let Some(path) = self.endpoint_path() {
            let _ = self.socket.unbind(&format!("ipc://{path}"));
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Line {
    fn endpoint_path(&self) -> Option<String> {
        let endpoint = self.socket.get_last_endpoint().ok()?.ok()?;
        let path = endpoint.strip_prefix("ipc://")?;
        Some(path.trim_end_matches('\0').to_owned())
    }
}

fn bind(endpoint: &str) -> Result<zmq::Socket, SourceError> {
    let refused = |reason: String| SourceError::Sync {
        endpoint: endpoint.to_owned(),
        reason,
    };
    let open = || -> zmq::Result<zmq::Socket> {
        // XPUB is PUB that tells of its subscribers.
        let socket = zmq::Context::new().socket(zmq::XPUB)?;
        socket.set_linger(500)?;
        socket.bind(endpoint)?;
        Ok(socket)
    };
    let socket = open().map_err(|error| {
        refused(match error {
            zmq::Error::EADDRINUSE => "in use; end the other producer or take another".to_owned(),
            zmq::Error::EINVAL | zmq::Error::EPROTONOSUPPORT | zmq::Error::ENOCOMPATPROTO => {
                format!("{error}; write ipc:///path or tcp://address:port")
            }
            zmq::Error::ENOENT => format!("{error}; make the folder first"),
            _ => error.to_string(),
        })
    })?;
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        // As the real producer: consumers of other users connect too (contract section 3).
        let open_to_all = std::fs::Permissions::from_mode(0o777);
        if let Err(error) = std::fs::set_permissions(path, open_to_all) {
            log::debug!("{path}: {error}");
        }
    }
    Ok(socket)
}

/// A segment of the real producer's size: the smallest power of two that holds the payload, at
/// least 1 MiB, behind the metadata (contract section 2). Blank metadata is "not ready".
fn create_segment(name: &str, payload: u64) -> Result<File, SourceError> {
    let refused = |reason: String| SourceError::Segment {
        name: name.to_owned(),
        reason,
    };
    let capacity = payload
        .next_power_of_two()
        .clamp(1 << 20, u64::from(u32::MAX));
    let flags = shm::OFlags::CREATE | shm::OFlags::RDWR | cautious();
    let mode = Mode::from_raw_mode(0o666);
    let file = shm::open(name, flags, mode).map_err(|errno| {
        refused(match errno {
            rustix::io::Errno::INVAL | rustix::io::Errno::NAMETOOLONG => {
                "impossible name; it has up to 255 bytes and no '/' but a leading one".to_owned()
            }
            rustix::io::Errno::ACCESS => "it exists and belongs to someone else".to_owned(),
            rustix::io::Errno::LOOP => "a link has its name; remove it".to_owned(),
            rustix::io::Errno::ISDIR | rustix::io::Errno::NXIO => NO_SEGMENT.to_owned(),
            _ => std::io::Error::from(errno).to_string(),
        })
    })?;
    let file = File::from(file);
    let failed = |error: std::io::Error| refused(error.to_string());
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(refused(NO_SEGMENT.to_owned()));
    }
    file.write_all_at(&[0; METADATA_LEN], 0)
        .and_then(|()| file.set_len(METADATA_LEN as u64 + capacity))
        .map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values worked out by hand from contract section 7.
    #[test]
    fn pixels_follow_the_contracts_formula() {
        assert_eq!(pixel(0, 0, 0), [0, 0, 0]);
        assert_eq!(pixel(1, 0, 0), [3, 5, 7]);
        assert_eq!(pixel(2, 100, 50), [106, 110, 50 + 16 + 14]);
        assert_eq!(
            pixel(100, 255, 200),
            [
                (255 + 300 - 512) as u8,
                (400_u32 + 500 - 768) as u8,
                (127_u32 + 66 + 700 - 768) as u8
            ]
        );
    }

    #[test]
    fn a_picture_has_the_formula_at_every_pixel() {
        let (width, height) = (301, 803);
        let mut picture = vec![0; width * height * 3];
        for n in [0, 2, 255, 100_000] {
            render(n, width as u32, &mut picture);
            let whole = (0..height as u32).flat_map(|y| (0..width as u32).map(move |x| (x, y)));
            for ((x, y), bgr) in whole.zip(picture.chunks_exact(3)) {
                assert_eq!(bgr, pixel(n, x, y), "({x}, {y}) of frame {n}");
            }
        }
    }

    #[test]
    fn frames_are_paced_without_drift_at_fractional_rates() {
        let ntsc = FrameRate {
            num: 30_000,
            den: 1001,
        };
        // 30000/1001 Hz: frame 30000 is due after 1001 s exactly
        assert_eq!(time_of(ntsc, 30_000), Duration::from_secs(1001));
        assert_eq!(time_of(ntsc, 1), Duration::from_nanos(33_366_666));
    }

    #[test]
    fn impossible_settings_name_their_flag() {
        let config = |label: &str, width, num| DummyConfig {
            shm_name: "never_made".to_owned(),
            zmq_endpoint: "nonsense".to_owned(),
            label: label.to_owned(),
            width,
            height: 48,
            fps: FrameRate { num, den: 1 },
            frames: 1,
        };
        let error = |config| {
            DummyProducer::start(config, StopToken::new())
                .unwrap_err()
                .to_string()
        };
        let long = "1234567890123456789012345";
        assert_eq!(
            error(config(long, 64, 30)),
            "--dummy-label exceeds 24 bytes"
        );
        assert!(error(config("x", 0, 30)).starts_with("--dummy-width 0:"));
        assert!(error(config("x", 64, 0)).starts_with("--dummy-fps 0:"));
        assert!(error(config("x", 64, 30)).starts_with("sync socket nonsense:"));
    }
}
