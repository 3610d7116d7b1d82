//! What the RTMP tests share: pictures by ffmpeg, a sink with its counters, a server to script.
#![allow(dead_code)] // each test binary uses its part

#[path = "../common/ports.rs"]
mod ports;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cvmmap_streamer::bitstream::{AccessUnit, AccessUnitPool, NalKind, NalUnit, annexb};
use cvmmap_streamer::encode::{Codec, EncodedPicture, EncodedQueue};
use cvmmap_streamer::flv::Packaging;
use cvmmap_streamer::pipeline::keyframe::KeyFrameRequests;
use cvmmap_streamer::pipeline::stop::StopToken;
use cvmmap_streamer::rtmp::chunk::{MessageHeader, ReaderLimits};
use cvmmap_streamer::rtmp::{ChunkReader, ChunkWriter, amf0};
use cvmmap_streamer::sink::rtmp::{RtmpSink, RtmpSinkConfig};
use cvmmap_streamer::sink::{Sent, Sink, SinkContext, SinkError, SinkStats};
use cvmmap_streamer::time::MediaTime;

pub mod peer;

/// How long anything may take that should be there at once.
pub const LIMIT: Duration = Duration::from_secs(20);
pub const FPS: i64 = 25;
pub const WIDTH: u32 = 320;
pub const HEIGHT: u32 = 184;

/// A listener of its own on the loopback.
pub fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A sink that tries again soon, with a key that must not be shown.
pub fn quick(port: u16) -> RtmpSinkConfig {
    RtmpSinkConfig {
        backoff_cap: Duration::from_millis(20),
        ..config(port, "live/sekret?token=abcdef", Packaging::LegacyAvc)
    }
}

/// An elementary stream of ffmpeg's test picture, cut into access units at its delimiters.
pub struct Film {
    pub codec: Codec,
    pub units: Vec<Arc<AccessUnit>>,
    /// The NUT file that ffmpeg made.
    source: Vec<u8>,
}

impl Film {
    pub fn new(codec: Codec, pictures: u32, gop: u32) -> Self {
        Self::with_options(codec, pictures, gop, 0)
    }

    /// With `b_frames` the decoding times come from ffprobe.
    pub fn with_options(codec: Codec, pictures: u32, gop: u32, b_frames: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("film.nut");
        let source = format!("testsrc2=s={WIDTH}x{HEIGHT}:r={FPS}");
        let (encoder, metadata) = match codec {
            Codec::H264 => ("libx264", "h264_metadata=aud=insert"),
            Codec::H265 => ("libx265", "hevc_metadata=aud=insert"),
        };
        let mut encode = ffmpeg();
        encode.args(["-f", "lavfi", "-i", &source, "-c:v", encoder]);
        encode.args(["-preset", "ultrafast", "-pix_fmt", "yuv420p"]);
        encode.args(["-frames:v", &pictures.to_string(), "-g", &gop.to_string()]);
        encode.args(["-bf", &b_frames.to_string(), "-bsf:v", metadata]);
        if codec == Codec::H265 {
            let params = format!("log-level=none:bframes={b_frames}:keyint={gop}:repeat-headers=1");
            encode.args(["-x265-params", &params]);
        } else {
            encode.args(["-x264-params", "repeat-headers=1:scenecut=0"]);
        }
        run(encode.arg(&file));
        let source = std::fs::read(&file).unwrap();
        let mut dump = ffmpeg();
        dump.arg("-i").arg(&file).args(["-c", "copy", "-f"]);
        dump.args([if codec == Codec::H264 { "h264" } else { "hevc" }, "-"]);
        let stream = run(&mut dump);
        let times = packet_times(&file);
        let units = units_of(codec, &stream, &times);
        assert_eq!(units.len(), pictures as usize);
        Self {
            codec,
            units,
            source,
        }
    }

    /// Two groups of five pictures, then two of another size: the parameter sets change.
    pub fn changing(codec: Codec) -> Self {
        let mut stream = Vec::new();
        for (width, height) in [(WIDTH, HEIGHT), (WIDTH * 2, HEIGHT)] {
            let mut encode = ffmpeg();
            let source = format!("testsrc2=s={width}x{height}:r={FPS}");
            encode.args(["-f", "lavfi", "-i", &source, "-c:v", "libx264", "-bf", "0"]);
            encode.args([
                "-preset",
                "ultrafast",
                "-pix_fmt",
                "yuv420p",
                "-frames:v",
                "10",
            ]);
            encode.args([
                "-g",
                "5",
                "-bsf:v",
                "h264_metadata=aud=insert",
                "-f",
                "h264",
                "-",
            ]);
            stream.extend(run(&mut encode));
        }
        let times: Vec<_> = (0..20)
            .map(|at| f64::from(at) / FPS as f64)
            .map(|t| (t, t))
            .collect();
        Self {
            codec,
            units: units_of(codec, &stream, &times),
            source: Vec::new(),
        }
    }

    pub fn save(&self, file: &std::path::Path) {
        std::fs::write(file, &self.source).unwrap();
    }
}

/// `times` are presentation and decoding times in seconds.
fn units_of(codec: Codec, stream: &[u8], times: &[(f64, f64)]) -> Vec<Arc<AccessUnit>> {
    let mut pictures: Vec<Vec<u8>> = Vec::new();
    for range in annexb::nal_ranges(stream) {
        let nal = &stream[range];
        if NalUnit(nal).kind(codec) == NalKind::AccessUnitDelimiter {
            pictures.push(Vec::new());
            continue;
        }
        let picture = pictures.last_mut().expect("a delimiter comes first");
        picture.extend([0, 0, 0, 1]);
        picture.extend(nal);
    }
    assert_eq!(pictures.len(), times.len());
    let (mut pool, mut queue) = (AccessUnitPool::new(codec), EncodedQueue::new());
    let nanos = |seconds: f64| MediaTime((seconds * 1e9).round() as i64);
    let units = (0..).zip(pictures.into_iter().zip(times));
    units
        .map(|(frame_id, (data, (pts, dts)))| {
            let picture = EncodedPicture {
                data,
                pts: nanos(*pts),
                dts: nanos(*dts),
                frame_id,
                ..EncodedPicture::default()
            };
            pool.make(picture, &mut queue, |_| ()).unwrap()
        })
        .collect()
}

fn packet_times(file: &std::path::Path) -> Vec<(f64, f64)> {
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-show_entries", "packet=pts_time,dts_time"]);
    let text = String::from_utf8(run(probe.args(["-of", "csv=p=0"]).arg(file))).unwrap();
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<f64>().ok());
    let mut times: Vec<(f64, Option<f64>)> = text
        .lines()
        .map(|line| {
            let mut fields = line.split(',');
            (number(fields.next()).unwrap(), number(fields.next()))
        })
        .collect();
    // The first decoding times of a stream with B-frames lie before its start; NUT leaves some
    // out. They are one picture apart.
    let step = 1.0 / FPS as f64;
    let known = times.iter().position(|(_, dts)| dts.is_some()).unwrap();
    let anchor = times[known].1.unwrap();
    for (at, (_, dts)) in times.iter_mut().enumerate() {
        dts.get_or_insert(anchor - (known as f64 - at as f64) * step);
    }
    times
        .into_iter()
        .map(|(pts, dts)| (pts, dts.unwrap()))
        .collect()
}

pub fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-nostdin", "-y"]);
    command
}

/// Runs to the end and gives standard output.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output.stdout
}

/// What ffprobe sees in a file: codec, width, height, and how many pictures decode.
pub fn probe(file: &std::path::Path) -> (String, u32, u32, usize) {
    let mut probe = Command::new("ffprobe");
    probe.args([
        "-v",
        "error",
        "-count_frames",
        "-select_streams",
        "v:0",
        "-show_entries",
    ]);
    probe.args([
        "stream=codec_name,width,height,nb_read_frames",
        "-of",
        "csv=p=0",
    ]);
    let text = String::from_utf8(run(probe.arg(file))).unwrap();
    let fields: Vec<_> = text.trim().split(',').collect();
    let number = |at: usize| fields[at].parse().unwrap();
    (
        fields[0].to_owned(),
        number(1),
        number(2),
        number(3) as usize,
    )
}

#[allow(unused_imports)] // each test file uses its own part
pub use ports::{Reserved, reserve_tcp};

/// Ends its child with the test, also when the test fails.
pub struct Child(pub std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A sink as the pipeline drives it, with what the pipeline shares with it.
pub struct Driver {
    pub sink: RtmpSink,
    pub stats: Arc<SinkStats>,
    pub key_frames: KeyFrameRequests,
    pub stop: StopToken,
}

pub fn config(port: u16, path: &str, packaging: Packaging) -> RtmpSinkConfig {
    let url = format!("rtmp://127.0.0.1:{port}/{path}").parse().unwrap();
    RtmpSinkConfig {
        frame_rate: Some(FPS as f64),
        ..RtmpSinkConfig::new(url, packaging)
    }
}

impl Driver {
    pub fn open(config: RtmpSinkConfig) -> Self {
        let context = SinkContext {
            key_frames: KeyFrameRequests::new(),
            stop: StopToken::new(),
            stats: Arc::default(),
        };
        Self {
            stats: Arc::clone(&context.stats),
            key_frames: context.key_frames.clone(),
            stop: context.stop.clone(),
            sink: RtmpSink::open(config, context).unwrap(),
        }
    }

    /// Polls until the stream runs.
    pub fn connect(&mut self) -> Result<(), SinkError> {
        self.until(|driver| driver.sink.is_live())
    }

    pub fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), SinkError> {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            let wait = self.sink.poll()?;
            assert!(
                Instant::now() < deadline,
                "not there in time; last error: {:?}",
                self.sink.last_error()
            );
            std::thread::sleep(wait.min(Duration::from_millis(20)));
        }
        Ok(())
    }

    pub fn send_all(&mut self, film: &Film) {
        for unit in &film.units {
            assert_eq!(
                self.sink.send(unit).unwrap(),
                Sent::All,
                "unit {}",
                unit.frame_id
            );
        }
    }

    pub fn count(&self, counter: fn(&SinkStats) -> &std::sync::atomic::AtomicU64) -> u64 {
        counter(&self.stats).load(Ordering::Relaxed)
    }
}

/// One connection of a server that the test plays by hand.
pub struct Guest {
    pub socket: TcpStream,
    reader: ChunkReader,
    pending: Vec<u8>,
}

/// A message that the publisher sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    pub timestamp: u32,
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Received {
    /// The name in front of a command or data message.
    pub fn name(&self) -> Option<String> {
        if !matches!(self.kind, 18 | 20) {
            return None;
        }
        let value = amf0::Reader::new(&self.body).read().ok()??;
        value.as_str().map(str::to_owned)
    }
}

impl Guest {
    pub fn accept(listener: &TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + LIMIT;
        let socket = loop {
            match listener.accept() {
                Ok((socket, _)) => break socket,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => panic!("nobody came: {error}"),
            }
        };
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            socket,
            reader: ChunkReader::new(ReaderLimits {
                message: 1 << 24,
                chunk_streams: 16,
            }),
            pending: Vec::new(),
        }
    }

    /// Reads C0, C1 and C2, answers in the simple form.
    pub fn shake_hands(&mut self) {
        let mut c0c1 = [0; 1537];
        self.socket.read_exact(&mut c0c1).unwrap();
        let s = [&[3][..], &[0; 8], &[0x5A; 1528], &c0c1[1..]].concat();
        self.socket.write_all(&s).unwrap();
        self.socket.read_exact(&mut c0c1[1..]).unwrap();
    }

    /// The next message; `None` when the publisher has closed.
    pub fn next(&mut self) -> Option<Received> {
        loop {
            let mut input = &self.pending[..];
            let message = self
                .reader
                .read(&mut input)
                .unwrap()
                .map(|message| Received {
                    timestamp: message.timestamp,
                    kind: message.kind,
                    body: message.body.to_vec(),
                });
            let left = input.len();
            self.pending.drain(..self.pending.len() - left);
            if message.is_some() {
                return message;
            }
            let mut buffer = [0; 65536];
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.pending.extend(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no message in time: {error}"),
            }
        }
    }

    /// The next command of this name.
    pub fn expect(&mut self, name: &str) -> Received {
        loop {
            let message = self
                .next()
                .unwrap_or_else(|| panic!("closed before {name}"));
            if message.name().as_deref() == Some(name) {
                return message;
            }
        }
    }

    pub fn say(&mut self, kind: u8, body: &[u8]) {
        let mut wire = Vec::new();
        let header = MessageHeader {
            chunk_stream: 3,
            timestamp: 0,
            kind,
            stream: 0,
            len: body.len() as u32,
        };
        ChunkWriter::default().append(header, body, &mut wire);
        self.socket.write_all(&wire).unwrap();
    }

    pub fn command(&mut self, write: impl FnOnce(&mut amf0::Writer<'_>)) {
        let mut body = Vec::new();
        write(&mut amf0::Writer(&mut body));
        self.say(20, &body);
    }

    pub fn status(&mut self, level: &str, code: &str, description: &str) {
        self.command(|amf| {
            amf.string("onStatus").number(0.0).null().object();
            amf.key("level").string(level).key("code").string(code);
            amf.key("description").string(description).end();
        });
    }

    /// From the handshake to just before the answer to `publish`.
    pub fn up_to_publish(&mut self) {
        self.shake_hands();
        self.expect("connect");
        self.command(|amf| {
            amf.string("_result").number(1.0).null().object();
            amf.key("code")
                .string("NetConnection.Connect.Success")
                .end();
        });
        self.expect("createStream");
        self.command(|amf| {
            amf.string("_result").number(4.0).null().number(1.0);
        });
        self.expect("publish");
    }

    pub fn start(&mut self) {
        self.up_to_publish();
        self.status("status", "NetStream.Publish.Start", "");
    }
}
