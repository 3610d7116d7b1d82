//! The RTMP referee as a process: ffmpeg publishes H.264; H.265, which Debian's ffmpeg cannot publish, comes from a
//! small publisher here, with the decoder configuration record that ffmpeg writes into an MP4.

mod support;

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Guard, ffmpeg, nal_units, run, text, wait_for_line};
use testkit::rtmp::amf0::{self, Value};
use testkit::rtmp::chunk::{self, Message};

const TESTER: &str = env!("CARGO_BIN_EXE_rtmp_stub_tester");

fn start(arguments: &[&str]) -> (Guard, BufReader<std::process::ChildStderr>, u16) {
    let mut command = Command::new(TESTER);
    command.args(["--listen-port", "0"]).args(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut tester = Guard::spawn(&mut command);
    let mut stderr = BufReader::new(tester.0.stderr.take().expect("a pipe"));
    let line = wait_for_line(&mut stderr, "listening at");
    let port = line.trim().rsplit(':').next().and_then(|p| p.parse().ok());
    (
        tester,
        stderr,
        port.unwrap_or_else(|| panic!("a port in: {line}")),
    )
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("a report")).expect("JSON")
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn publish_with_ffmpeg(input: &Path, port: u16, rate: &[&str]) -> std::process::Output {
    Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-nostdin"])
        .args(rate)
        .args(["-i", utf8(input), "-c", "copy", "-f", "flv"])
        .arg(format!("rtmp://127.0.0.1:{port}/live/key?token=1"))
        .output()
        .expect("ffmpeg is installed (Debian package ffmpeg)")
}

/// A clip in MP4, which has times and a configuration record.
fn mp4(folder: &Path, codec: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let clip = support::clip(folder, codec, 30);
    let mp4 = folder.join(format!("{codec}.mp4"));
    ffmpeg(&["-r", "25", "-i", utf8(&clip), "-c", "copy", utf8(&mp4)]);
    (clip, mp4)
}

#[test]
fn what_ffmpeg_publishes_is_received_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let (clip, input) = mp4(folder.path(), "h264");
    let (report, flv, dump) = (
        folder.path().join("r.json"),
        folder.path().join("d.flv"),
        folder.path().join("d.h264"),
    );
    let (tester, _stderr, port) = start(&[
        "--mode",
        "h264",
        "--video-threshold",
        "30",
        "--timeout-ms",
        "30000",
        "--json",
        utf8(&report),
        "--dump",
        utf8(&flv),
        "--dump-annexb",
        utf8(&dump),
    ]);
    let published = publish_with_ffmpeg(&input, port, &[]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    let output = tester.finish();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let found = json(&report);
    assert_eq!(
        (&found["frames"], &found["key_frames"], &found["mode_seen"]),
        (&30.into(), &3.into(), &"h264".into())
    );
    assert_eq!(
        (&found["ended_by"], &found["violation_count"]),
        (&"unpublish".into(), &0.into())
    );
    let connection = &found["connections"][0];
    assert_eq!(
        (&connection["width"], &connection["height"]),
        (&320.into(), &180.into())
    );
    assert_eq!(
        (&connection["app"], &connection["stream_name"]),
        (&"live".into(), &"key?token=1".into())
    );
    assert_eq!(connection["metadata"]["videocodecid"], 7.0);
    // 29 steps of 40 ms.
    assert_eq!(connection["last_timestamp_ms"], 1160);
    // ffmpeg signs its C1.
    assert_eq!(connection["handshake"], "digest");
    let slices = |path: &Path| {
        let mut units = nal_units(&std::fs::read(path).expect("a stream"));
        units.retain(|unit| matches!(unit[0] & 0x1F, 1 | 5));
        units
    };
    assert!(slices(&clip) == slices(&dump), "the slices differ");
    // An independent reader of the FLV finds the same frames in it.
    let probe = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_frames",
            "-select_streams",
            "v",
            "-show_entries",
            "stream=codec_name,nb_read_frames",
            "-of",
            "csv=p=0",
        ])
        .arg(&flv)
        .output()
        .expect("ffprobe is installed (Debian package ffmpeg)");
    assert_eq!(
        text(&probe.stdout).trim(),
        "h264,30",
        "{}",
        text(&probe.stderr)
    );
}

#[test]
fn another_mode_exits_6() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, input) = mp4(folder.path(), "h264");
    for mode in ["h265-enhanced", "h265-domestic"] {
        let (tester, mut stderr, port) = start(&["--mode", mode]);
        publish_with_ffmpeg(&input, port, &["-re"]);
        assert!(wait_for_line(&mut stderr, "error: h264").contains(mode));
        assert_eq!(tester.finish().status.code(), Some(6));
    }
}

#[test]
fn a_frame_is_enough_by_default() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, input) = mp4(folder.path(), "h264");
    let (tester, _stderr, port) = start(&["--mode", "h264"]);
    publish_with_ffmpeg(&input, port, &["-re"]);
    let output = tester.finish();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stdout).contains("ended by threshold"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn a_refusal_reaches_the_publisher_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, input) = mp4(folder.path(), "h264");
    let (tester, _stderr, port) = start(&["--mode", "h264", "--refuse"]);
    let published = publish_with_ffmpeg(&input, port, &["-re"]);
    assert!(!published.status.success());
    assert!(
        text(&published.stderr).contains("refused by rtmp_stub_tester"),
        "{}",
        text(&published.stderr)
    );
    assert_eq!(tester.finish().status.code(), Some(4));
}

/// A publisher that does as it is told.
struct Publisher {
    stream: TcpStream,
}

impl Publisher {
    fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a listener");
        stream
            .set_read_timeout(Some(support::LIMIT))
            .expect("an option");
        stream
            .write_all(&[&[3][..], &[0; 1536]].concat())
            .expect("C0 and C1");
        let mut answer = [0; 3073];
        stream.read_exact(&mut answer).expect("S0, S1 and S2");
        stream.write_all(&answer[1..1537]).expect("C2");
        Publisher { stream }
    }

    fn send(
        &mut self,
        kind: u8,
        stream: u32,
        timestamp: u32,
        body: Vec<u8>,
    ) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        chunk::write(
            &Message {
                chunk_stream: 5,
                timestamp,
                kind,
                stream,
                body,
            },
            128,
            &mut bytes,
        );
        self.stream.write_all(&bytes)
    }

    fn command(&mut self, stream: u32, values: &[Value]) {
        self.send(20, stream, 0, amf0::write_all(values))
            .expect("a command");
    }

    fn publish(&mut self, codec_id: f64) {
        let object = Value::object(&[
            ("app", Value::text("live")),
            ("tcUrl", Value::text("rtmp://h/live")),
        ]);
        self.command(0, &[Value::text("connect"), Value::Number(1.0), object]);
        self.command(
            0,
            &[Value::text("createStream"), Value::Number(2.0), Value::Null],
        );
        self.command(
            1,
            &[
                Value::text("publish"),
                Value::Number(3.0),
                Value::Null,
                Value::text("key"),
                Value::text("live"),
            ],
        );
        let values = [
            ("width", 320.0),
            ("height", 180.0),
            ("videocodecid", codec_id),
        ];
        let values = values.map(|(key, value)| (key.to_owned(), Value::Number(value)));
        let metadata = [
            Value::text("@setDataFrame"),
            Value::text("onMetaData"),
            Value::EcmaArray(values.to_vec()),
        ];
        self.send(18, 1, 0, amf0::write_all(&metadata))
            .expect("metadata");
    }

    fn video(&mut self, timestamp: u32, head: &[u8], body: &[u8]) -> std::io::Result<()> {
        self.send(9, 1, timestamp, [head, body].concat())
    }

    fn unpublish(&mut self) {
        self.command(
            0,
            &[
                Value::text("deleteStream"),
                Value::Number(4.0),
                Value::Null,
                Value::Number(1.0),
            ],
        );
    }
}

/// The hvcC of an MP4: what ffmpeg made of the parameter sets.
fn hvcc(mp4: &Path) -> Vec<u8> {
    let file = std::fs::read(mp4).expect("the file");
    let at = file.windows(4).position(|w| w == b"hvcC").expect("a box");
    let size = u32::from_be_bytes(file[at - 4..at].try_into().expect("four bytes")) as usize;
    file[at + 4..at - 4 + size].to_vec()
}

/// Length-prefixed access units without parameter sets, and whether they are key frames.
fn hevc_frames(clip: &Path) -> Vec<(bool, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut frame = Vec::new();
    for unit in nal_units(&std::fs::read(clip).expect("the clip")) {
        let kind = unit[0] >> 1 & 0x3F;
        if (32..=35).contains(&kind) {
            continue;
        }
        frame.extend((unit.len() as u32).to_be_bytes());
        frame.extend(&unit);
        if kind < 32 {
            // x265 makes one slice of each picture here.
            frames.push(((16..=21).contains(&kind), std::mem::take(&mut frame)));
        }
    }
    frames
}

#[test]
fn both_packagings_of_h265_are_received() {
    let folder = tempfile::tempdir().expect("a folder");
    let (clip, file) = mp4(folder.path(), "h265");
    let (record, frames) = (hvcc(&file), hevc_frames(&clip));
    assert_eq!(frames.len(), 30);
    let rows = [
        (
            "h265-enhanced",
            1_752_589_105.0,
            &b"\x90hvc1"[..],
            [&b"\x93hvc1"[..], b"\xA3hvc1"],
        ),
        (
            "h265-domestic",
            12.0,
            &[0x1C, 0, 0, 0, 0],
            [&[0x1C, 1, 0, 0, 0][..], &[0x2C, 1, 0, 0, 0]],
        ),
    ];
    for (mode, codec_id, header, heads) in rows {
        let (report, dump) = (folder.path().join("r.json"), folder.path().join("d.h265"));
        let (tester, _stderr, port) = start(&[
            "--mode",
            mode,
            "--strict",
            "--video-threshold",
            "30",
            "--timeout-ms",
            "30000",
            "--json",
            utf8(&report),
            "--dump-annexb",
            utf8(&dump),
        ]);
        let mut publisher = Publisher::connect(port);
        publisher.publish(codec_id);
        publisher.video(0, header, &record).expect("a reader");
        for (index, (key, frame)) in frames.iter().enumerate() {
            publisher
                .video(index as u32 * 40, heads[usize::from(!key)], frame)
                .expect("a reader");
        }
        publisher.unpublish();
        let output = tester.finish();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
        let found = json(&report);
        assert_eq!(
            (&found["frames"], &found["key_frames"], &found["mode_seen"]),
            (&30.into(), &3.into(), &mode.into())
        );
        assert_eq!(found["connections"][0]["width"], 320);
        assert_eq!(found["connections"][0]["handshake"], "simple");
        // The dump decodes to all pictures.
        let probe = Command::new("ffprobe")
            .args([
                "-v",
                "error",
                "-count_frames",
                "-show_entries",
                "stream=codec_name,nb_read_frames",
                "-of",
                "csv=p=0",
            ])
            .arg(&dump)
            .output()
            .expect("ffprobe is installed (Debian package ffmpeg)");
        assert_eq!(
            text(&probe.stdout).trim(),
            "hevc,30",
            "{}",
            text(&probe.stderr)
        );
    }
}

#[test]
fn a_broken_protocol_exits_7_and_is_named() {
    let rows: [(&str, &str, &[u8]); 3] = [
        ("h264", "FourCC avc1", b"\x90avc1\x01"),
        (
            "h264",
            "no sequence header",
            &[0x17, 1, 0, 0, 0, 0, 0, 0, 2, 0x65, 0x88],
        ),
        ("h265-enhanced", "record version", b"\x90hvc1\x02"),
    ];
    for (mode, finding, body) in rows {
        let (tester, _stderr, port) = start(&["--mode", mode, "--json", "--timeout-ms", "20000"]);
        let mut publisher = Publisher::connect(port);
        publisher.publish(7.0);
        publisher.video(0, body, &[]).expect("a reader");
        publisher.unpublish();
        let output = tester.finish();
        assert_eq!(output.status.code(), Some(7), "{finding}");
        assert!(
            text(&output.stdout).contains(finding),
            "{}",
            text(&output.stdout)
        );
    }
    let (tester, _stderr, port) = start(&["--mode", "h264"]);
    TcpStream::connect(("127.0.0.1", port))
        .and_then(|mut s| s.write_all(b"GET / HTTP/1.1\r\n"))
        .expect("a listener");
    let output = tester.finish();
    assert_eq!(output.status.code(), Some(7));
    assert!(
        text(&output.stdout).contains("RTMP version 71"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn a_stalled_server_takes_no_more_bytes_and_a_new_connection_replaces_it() {
    let (tester, _stderr, port) = start(&[
        "--mode",
        "h264",
        "--json",
        "--stall-after",
        "10000",
        "--receive-buffer",
        "8192",
        "--accept-connections",
        "2",
        "--timeout-ms",
        "50000",
    ]);
    let mut first = Publisher::connect(port);
    first.publish(7.0);
    first
        .stream
        .set_write_timeout(Some(std::time::Duration::from_millis(300)))
        .expect("an option");
    let frame = [&[0x27, 1, 0, 0, 0][..], &[0x55; 100_000]].concat();
    let error = (0..1000).find_map(|time| first.video(time, &frame, &[]).err());
    let kind = error.expect("the buffers fill up").kind();
    assert!(
        matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{kind:?}"
    );
    let mut second = Publisher::connect(port);
    second.publish(7.0);
    second.unpublish();
    let output = tester.finish();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["connections"][0]["bytes_received"], 10_000);
    assert_eq!(found["connections"][0]["ended_by"], "a new connection");
    assert_eq!(found["connections"][1]["ended_by"], "unpublish");
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_server_that_closes_early_is_met_by_the_next_connection() {
    let (tester, _stderr, port) = start(&[
        "--mode",
        "h264",
        "--json",
        "--close-after",
        "5000",
        "--accept-connections",
        "2",
        "--ping",
        "20",
        "--timeout-ms",
        "50000",
    ]);
    let mut first = Publisher::connect(port);
    first.publish(7.0);
    let _ = first.video(0, &[0x27, 1, 0, 0, 0], &[0x55; 10_000]);
    let mut rest = Vec::new();
    // An end or a reset: both are the server's close.
    let _ = first.stream.read_to_end(&mut rest);
    let mut second = Publisher::connect(port);
    second.publish(7.0);
    second.unpublish();
    let output = tester.finish();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["connections"][0]["bytes_received"], 5000);
    assert_eq!(found["connections"][0]["ended_by"], "our close");
    assert_eq!(found["connections"].as_array().map(Vec::len), Some(2));
}

#[test]
fn thresholds_arguments_and_ports_have_their_codes() {
    for (arguments, code) in [
        (&["--mode", "h264", "--wat"][..], 1),
        (&["--mode"], 1),
        (&["--mode", "h264", "--listen-port", "x"], 1),
        (&[], 2),
        (&["--mode", "h264-domestic"], 2),
        (&["--mode", "h264", "--listen-port", "70000"], 2),
        (&["--mode", "h264", "--video-threshold", "0"], 2),
        (&["--mode", "h264", "--stall-ms", "5"], 2),
        (
            &[
                "--mode",
                "h264",
                "--listen-port",
                "0",
                "--timeout-ms",
                "100",
            ],
            124,
        ),
        (&["--help"], 0),
    ] {
        assert_eq!(
            run(TESTER, arguments).status.code(),
            Some(code),
            "{arguments:?}"
        );
    }
    let (tester, _stderr, port) = start(&["--mode", "h264", "--timeout-ms", "500"]);
    let publisher = Publisher::connect(port);
    assert_eq!(tester.finish().status.code(), Some(4));
    drop(publisher);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = taken.local_addr().expect("an address").port().to_string();
    assert_eq!(
        run(TESTER, &["--mode", "h264", "--listen-port", &port])
            .status
            .code(),
        Some(5)
    );
}
