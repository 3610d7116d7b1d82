//! Real receivers get every picture: ffmpeg from the session description, GStreamer from caps
//! alone, with no jitter buffer, as cv-mmap's own RTP backend does it. What they decode is
//! compared, picture by picture, with what ffmpeg decodes from the file that was sent.

#[path = "common/ports.rs"]
mod ports;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cvmmap_streamer::bitstream::{AccessUnit, AccessUnitPool, annexb};
use cvmmap_streamer::encode::{Codec, EncodedPicture, EncodedQueue};
use cvmmap_streamer::pipeline::keyframe::KeyFrameRequests;
use cvmmap_streamer::pipeline::stop::StopToken;
use cvmmap_streamer::sink::rtp::{RtpSink, RtpSinkConfig};
use cvmmap_streamer::sink::{Sent, Sink, SinkContext};
use cvmmap_streamer::time::MediaTime;

const PICTURES: usize = 60;

#[test]
fn ffmpeg_decodes_every_h264_picture_from_the_description() {
    ffmpeg_receives(Codec::H264);
}

#[test]
fn ffmpeg_decodes_every_h265_picture_from_the_description() {
    ffmpeg_receives(Codec::H265);
}

#[test]
fn gstreamer_gets_every_h264_picture_without_a_description() {
    gstreamer_receives(Codec::H264);
}

#[test]
fn gstreamer_gets_every_h265_picture_without_a_description() {
    gstreamer_receives(Codec::H265);
}

fn ffmpeg_receives(codec: Codec) {
    let Some(clip) = Clip::make(codec) else {
        return;
    };
    let port = ports::free_port_pair();
    let sdp = clip.folder.path().join("stream.sdp");
    let config = RtpSinkConfig {
        sdp_path: Some(sdp.clone()),
        ..RtpSinkConfig::new(format!("127.0.0.1:{port}"), codec)
    };
    let mut sink = RtpSink::open(config, context()).unwrap();
    // The first key frame makes the description; nobody listens yet.
    assert_eq!(sink.send(&clip.units[0]).unwrap(), Sent::All);
    let hashes = clip.folder.path().join("received.md5");
    let mut receiver = Running(
        Command::new("ffmpeg")
            .args([
                "-v",
                "error",
                "-nostdin",
                "-protocol_whitelist",
                "file,udp,rtp",
            ])
            .args(["-buffer_size", "4194304", "-threads", "1"])
            .arg("-i")
            .arg(&sdp)
            .args(["-frames:v", &PICTURES.to_string()])
            .args(["-fps_mode", "passthrough", "-f", "framemd5", "-y"])
            .arg(&hashes)
            .spawn()
            .unwrap(),
    );
    wait_for_listener(port, &mut receiver);
    send_paced(&mut sink, &clip.units);
    // ffmpeg holds a few pictures back; more of them push those out. BYE would overtake what it
    // has not read yet, so it comes when ffmpeg has had what it wanted.
    receiver.wait_while(|index| {
        let unit = &clip.units[index % PICTURES];
        assert_eq!(sink.send(unit).unwrap(), Sent::All);
    });
    sink.close();
    assert_eq!(picture_hashes(&hashes), clip.hashes());
}

fn gstreamer_receives(codec: Codec) {
    let Some(clip) = Clip::make(codec) else {
        return;
    };
    if !has("gst-launch-1.0") {
        println!("skipped: no gst-launch-1.0 here");
        return;
    }
    let port = ports::free_port_pair();
    let context = context();
    let endpoint = format!("127.0.0.1:{port}");
    let packets = packets_of(&clip);
    let received = clip.folder.path().join(format!("received.{codec}"));
    let (encoding, element) = match codec {
        Codec::H264 => ("H264", "h264"),
        Codec::H265 => ("H265", "h265"),
    };
    let mut receiver = Running(
        Command::new("gst-launch-1.0")
            .args(["-q", "udpsrc", "address=127.0.0.1"])
            .arg(format!("port={port}"))
            .arg(format!("num-buffers={packets}"))
            .arg("buffer-size=4194304")
            .arg(format!(
                "caps=application/x-rtp,media=video,clock-rate=90000,encoding-name={encoding},payload=96"
            ))
            .args(["!", &format!("rtp{element}depay")])
            .args(["!", &format!("video/x-{element},stream-format=byte-stream")])
            .args(["!", "filesink"])
            .arg(format!("location={}", received.display()))
            .spawn()
            .unwrap(),
    );
    wait_for_listener(port, &mut receiver);
    let mut sink = RtpSink::open(RtpSinkConfig::new(endpoint, codec), context.clone()).unwrap();
    send_paced(&mut sink, &clip.units);
    assert_eq!(context.stats.packets.load(Ordering::Relaxed), packets);
    receiver.wait();
    let hashes = clip.folder.path().join("received.md5");
    decode(&received, codec, &hashes);
    assert_eq!(picture_hashes(&hashes), clip.hashes());
}

/// An elementary stream of ffmpeg's own encoders, and its access units.
struct Clip {
    folder: tempfile::TempDir,
    file: PathBuf,
    codec: Codec,
    units: Vec<Arc<AccessUnit>>,
}

impl Clip {
    /// `None`, and a line that says so, where there is no ffmpeg with the encoder.
    fn make(codec: Codec) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(format!("clip.{codec}"));
        // Delimiters are only for cutting the file here; they are not sent.
        let (encoder, delimiters, settings) = match codec {
            Codec::H264 => (
                "libx264",
                "h264_metadata=aud=insert",
                "-x264-params slices=2",
            ),
            Codec::H265 => (
                "libx265",
                "hevc_metadata=aud=insert",
                "-x265-params log-level=0:repeat-headers=1:slices=2",
            ),
        };
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-f", "lavfi"])
            .args(["-i", "testsrc2=size=640x360:rate=30,noise=alls=20:allf=t"])
            .args(["-frames:v", &PICTURES.to_string(), "-pix_fmt", "yuv420p"])
            .args(["-c:v", encoder, "-preset", "ultrafast", "-b:v", "3M"])
            .args(["-bf", "0", "-g", "30"])
            .args(settings.split(' '))
            .args(["-bsf:v", delimiters, "-f"])
            .arg(if codec == Codec::H264 { "h264" } else { "hevc" })
            .arg(&file)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            println!("skipped: no ffmpeg with {encoder} here");
            return None;
        }
        let units = units_of(codec, &std::fs::read(&file).unwrap());
        assert_eq!(units.len(), PICTURES);
        Some(Self {
            folder,
            file,
            codec,
            units,
        })
    }

    fn hashes(&self) -> Vec<String> {
        let hashes = self.folder.path().join("sent.md5");
        decode(&self.file, self.codec, &hashes);
        let hashes = picture_hashes(&hashes);
        assert_eq!(hashes.len(), PICTURES);
        hashes
    }
}

/// Cuts a stream at its access unit delimiters.
fn units_of(codec: Codec, stream: &[u8]) -> Vec<Arc<AccessUnit>> {
    let mut pictures: Vec<Vec<u8>> = Vec::new();
    for range in annexb::nal_ranges(stream) {
        let nal = &stream[range];
        let delimits = match codec {
            Codec::H264 => nal[0] & 31 == 9,
            Codec::H265 => nal[0] >> 1 == 35,
        };
        if delimits {
            pictures.push(Vec::new());
        }
        let picture = pictures.last_mut().expect("a delimiter comes first");
        picture.extend([0, 0, 0, 1]);
        picture.extend(nal);
    }
    let (mut pool, mut queue) = (AccessUnitPool::new(codec), EncodedQueue::new());
    let mut units = Vec::new();
    for (index, data) in pictures.into_iter().enumerate() {
        let time = MediaTime(index as i64 * 1_000_000_000 / 30);
        let picture = EncodedPicture {
            data,
            pts: time,
            dts: time,
            ..EncodedPicture::default()
        };
        units.push(pool.make(picture, &mut queue, |_| ()).unwrap());
    }
    units
}

fn packets_of(clip: &Clip) -> u64 {
    use cvmmap_streamer::rtp::{Packetizer, PacketizerConfig};
    let mut packetizer = Packetizer::new(PacketizerConfig {
        codec: clip.codec,
        payload_type: RtpSinkConfig::PAYLOAD_TYPE,
        mtu: RtpSinkConfig::MTU,
        ssrc: 0,
        sequence: 0,
    });
    let units = clip.units.iter();
    units
        .map(|unit| packetizer.packets(unit.nals(), 0).len() as u64)
        .sum()
}

/// As fast as the pictures' times say; a burst would be a test of receive buffers.
fn send_paced(sink: &mut RtpSink, units: &[Arc<AccessUnit>]) {
    let start = Instant::now();
    for (index, unit) in units.iter().enumerate() {
        let due = start + Duration::from_millis(33) * index as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        assert_eq!(sink.send(unit).unwrap(), Sent::All);
        sink.poll().unwrap();
    }
}

fn context() -> SinkContext {
    SinkContext {
        key_frames: KeyFrameRequests::new(),
        stop: StopToken::new(),
        stats: Arc::default(),
    }
}

/// Waits until some process has the UDP port, as the kernel's own table shows it.
fn wait_for_listener(port: u16, process: &mut Running) {
    let wanted = format!(":{port:04X} ");
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        let tables = ["/proc/net/udp", "/proc/net/udp6"];
        let bound = tables.iter().any(|table| {
            std::fs::read_to_string(table)
                .unwrap_or_default()
                .lines()
                .any(|line| {
                    line.split_once(": ").is_some_and(|(_, rest)| {
                        rest.get(..rest.find(' ').map_or(0, |end| end + 1))
                            .is_some_and(|local| local.ends_with(&wanted))
                    })
                })
        });
        if bound {
            return;
        }
        assert!(
            process.0.try_wait().unwrap().is_none(),
            "the receiver ended"
        );
        assert!(Instant::now() < limit, "nobody listens at {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn decode(file: &Path, codec: Codec, hashes: &Path) {
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-f"])
        .arg(if codec == Codec::H264 { "h264" } else { "hevc" })
        .arg("-i")
        .arg(file)
        .args(["-fps_mode", "passthrough", "-f", "framemd5", "-y"])
        .arg(hashes)
        .status()
        .unwrap();
    assert!(status.success());
}

/// The last column of a framemd5 file.
fn picture_hashes(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit(", ").next().unwrap().to_owned())
        .collect()
}

fn has(program: &str) -> bool {
    let version = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// A process that does not outlive the test.
struct Running(Child);

impl Running {
    fn wait(&mut self) {
        self.wait_while(|_| ());
    }

    /// Calls `meanwhile` every now and then until the process has ended well.
    fn wait_while(&mut self, mut meanwhile: impl FnMut(usize)) {
        let limit = Instant::now() + Duration::from_secs(60);
        for index in 0.. {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(Instant::now() < limit, "the receiver does not end");
            meanwhile(index);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
