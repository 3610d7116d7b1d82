//! The RTP referee as a process, with ffmpeg and GStreamer as the senders.

mod support;

use std::io::BufReader;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Guard, ffmpeg, nal_units, run, text, wait_for_line};

const TESTER: &str = env!("CARGO_BIN_EXE_rtp_receiver_tester");

/// A tester at a free port.
fn start(arguments: &[&str]) -> (Guard, BufReader<std::process::ChildStderr>, u16) {
    let mut command = Command::new(TESTER);
    command
        .args(["--port", "0", "--bind", "127.0.0.1"])
        .args(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut tester = Guard::spawn(&mut command);
    let mut stderr = BufReader::new(tester.0.stderr.take().expect("a pipe"));
    let line = wait_for_line(&mut stderr, "receiving at");
    let port = line
        .split(" port ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let port = port
        .and_then(|p| p.parse().ok())
        .unwrap_or_else(|| panic!("a port in: {line}"));
    (tester, stderr, port)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("a report")).expect("JSON")
}

fn packet(sequence: u16, marker: bool, payload_type: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, u8::from(marker) << 7 | payload_type];
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 9]);
    bytes.extend(payload);
    bytes
}

fn send_to(port: u16, packets: &[Vec<u8>]) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for packet in packets {
        socket
            .send_to(packet, ("127.0.0.1", port))
            .expect("loopback");
    }
}

#[test]
fn what_ffmpeg_sends_is_received_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    for codec in ["h264", "h265"] {
        let clip = support::clip(folder.path(), codec, 30);
        let dump = folder.path().join(format!("dump.{codec}"));
        let report = folder.path().join(format!("{codec}.json"));
        let (tester, _stderr, port) = start(&[
            "--dump",
            dump.to_str().expect("UTF-8"),
            "--json",
            report.to_str().expect("UTF-8"),
            "--frame-threshold",
            "30",
            "--timeout-ms",
            "30000",
        ]);
        ffmpeg(&[
            "-re",
            "-i",
            clip.to_str().expect("UTF-8"),
            "-c",
            "copy",
            "-f",
            "rtp",
            "-rtpflags",
            "send_bye",
            &format!("rtp://127.0.0.1:{port}?pkt_size=1200"),
        ]);
        let output = tester.finish();
        let found = json(&report);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
        assert_eq!(found["codec"], codec);
        assert_eq!(
            (&found["frames"], &found["key_frames"], &found["lost"]),
            (&30.into(), &3.into(), &0.into())
        );
        assert_eq!(found["ended_by"], "bye");
        assert_eq!(found["violations"]["count"], 0);
        // ffmpeg's STAP-A carries NRI 0 whatever is in it, and only its first report has a CNAME.
        assert!(codec == "h265" || found["warnings"]["count"].as_u64() >= Some(1));
        assert!(found["sender_reports"].as_u64() >= Some(1));
        // 25 frames per second by the RTP times.
        assert!((found["frame_rate"].as_f64().expect("a rate") - 25.0).abs() < 0.01);
        let (sent, got) = (
            std::fs::read(&clip).expect("the clip"),
            std::fs::read(&dump).expect("the dump"),
        );
        assert!(
            nal_units(&sent) == nal_units(&got),
            "{codec}: the NAL units differ"
        );
    }
}

#[test]
fn what_gstreamer_sends_is_received_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    for codec in ["h264", "h265"] {
        let clip = support::clip(folder.path(), codec, 30);
        let dump = folder.path().join(format!("dump.{codec}"));
        let (tester, _stderr, port) = start(&[
            "--dump",
            dump.to_str().expect("UTF-8"),
            "--frame-threshold",
            "30",
            "--timeout-ms",
            "30000",
        ]);
        // An elementary stream has no times; a transport stream does, and delimiters with them.
        let transport = folder.path().join(format!("{codec}.ts"));
        ffmpeg(&[
            "-i",
            clip.to_str().expect("UTF-8"),
            "-c",
            "copy",
            transport.to_str().expect("UTF-8"),
        ]);
        let pipeline = format!(
            "filesrc location={} ! tsdemux ! {codec}parse ! rtp{codec}pay mtu=1200 aggregate-mode=zero-latency ! udpsink host=127.0.0.1 port={port}",
            transport.display()
        );
        let sent = Command::new("gst-launch-1.0")
            .args(["-q"])
            .args(pipeline.split(' '))
            .output()
            .expect("GStreamer is installed (Debian packages gstreamer1.0-tools, -plugins-good, -plugins-bad)");
        assert!(sent.status.success(), "{}", text(&sent.stderr));
        let output = tester.finish();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{codec}: {}",
            text(&output.stdout)
        );
        let (sent, got) = (
            std::fs::read(&clip).expect("the clip"),
            std::fs::read(&dump).expect("the dump"),
        );
        let delimiter = if codec == "h264" { 0x09 } else { 0x46 };
        let plain = |stream: &[u8]| {
            let mut units = nal_units(stream);
            units.retain(|unit| unit[0] != delimiter);
            units
        };
        assert!(plain(&sent) == plain(&got), "{codec}: the NAL units differ");
    }
}

#[test]
fn a_packet_is_enough_by_default_and_another_payload_type_ends_it_at_once() {
    let (tester, _stderr, port) = start(&[]);
    send_to(port, &[packet(1, true, 96, &[0x67, 0x42])]);
    assert_eq!(tester.finish().status.code(), Some(0));

    let (tester, mut stderr, port) = start(&[]);
    send_to(port, &[packet(1, true, 97, &[0x67, 0x42])]);
    assert!(wait_for_line(&mut stderr, "payload type 97").contains("96"));
    assert_eq!(tester.finish().status.code(), Some(3));
}

#[test]
fn too_little_exits_4_and_nothing_124() {
    let (tester, _stderr, port) = start(&["--packet-threshold", "3", "--timeout-ms", "700"]);
    send_to(
        port,
        &[
            packet(1, false, 96, &[0x67, 0x42]),
            packet(2, false, 96, &[0x68, 0xCE]),
        ],
    );
    assert_eq!(tester.finish().status.code(), Some(4));
    let (tester, _stderr, _) = start(&["--timeout-ms", "300"]);
    assert_eq!(tester.finish().status.code(), Some(124));
}

#[test]
fn a_broken_rule_exits_7_and_is_named() {
    let (tester, _stderr, port) = start(&["--packet-threshold", "4", "--timeout-ms", "20000"]);
    let mut other_time = packet(4, true, 96, &[0x41, 0x9A]);
    other_time[7] = 2;
    send_to(
        port,
        &[
            packet(1, false, 96, &[0x67, 0x42]),
            packet(2, false, 96, &[0x68, 0xCE]),
            packet(3, false, 96, &[0x65, 0x88]),
            other_time,
        ],
    );
    let output = tester.finish();
    assert_eq!(output.status.code(), Some(7));
    // The unit that the marker is missing of is the first one seen whole, so it counts as joined midway.
    assert!(
        text(&output.stdout).contains("violation: "),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn wrong_arguments_exit_1_or_2() {
    for (arguments, code) in [
        (&["--wat"][..], 1),
        (&["--port"], 1),
        (&["--port", "x"], 1),
        (&["--port", "70000"], 2),
        (&["--expect-pt", "128"], 2),
        (&["--codec", "av1"], 2),
        (&["--packet-threshold", "0"], 2),
        (&["--silence-ms", "0"], 2),
        (&["--sdp", "missing.sdp"], 2),
        (&["--fir"], 2),
        (&["--version"], 0),
    ] {
        assert_eq!(
            run(TESTER, arguments).status.code(),
            Some(code),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_port_in_use_exits_5() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = run(TESTER, &["--bind", "127.0.0.1", "--port", &port]);
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stderr).contains(&port));
}

// RFC 4585 section 6.3.1: version 2, FMT 1, type 206, length 2.
#[test]
fn picture_loss_indications_go_where_the_media_came_from() {
    let (tester, _stderr, port) = start(&[
        "--frame-threshold",
        "1",
        "--send-pli-every",
        "50",
        "--timeout-ms",
        "30000",
    ]);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket
        .set_read_timeout(Some(support::LIMIT))
        .expect("an option");
    socket
        .send_to(&packet(1, false, 96, &[0x67, 0x42]), ("127.0.0.1", port))
        .expect("loopback");
    let mut buffer = [0; 1500];
    let (length, _) = socket.recv_from(&mut buffer).expect("feedback");
    let pli = &buffer[length - 12..length];
    assert_eq!(pli[..4], [0x81, 206, 0, 2]);
    assert_eq!(pli[8..], [0, 0, 0, 9]);
    assert_eq!(buffer[1], 201, "a report comes first");
    drop(tester);
}

// Datagrams of one segmented send come back together with UDP_GRO; each must be seen for itself.
#[test]
fn segmented_sends_are_taken_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    for gro in [true, false] {
        let report = folder.path().join("r.json");
        let mut arguments = vec![
            "--packet-threshold",
            "41",
            "--timeout-ms",
            "30000",
            "--json",
            report.to_str().expect("UTF-8"),
        ];
        arguments.extend((!gro).then_some("--no-gro"));
        let (tester, _stderr, port) = start(&arguments);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut batch = Vec::new();
        for sequence in 0..40 {
            let fragment = [
                &[0x7C, if sequence == 0 { 0x85 } else { 0x05 }][..],
                &[0x88; 986],
            ]
            .concat();
            batch.extend(packet(sequence, false, 96, &fragment));
        }
        batch.extend(packet(40, true, 96, &[0x7C, 0x45, 1]));
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1000)
            .expect("UDP_SEGMENT");
        socket
            .send_to(&batch, ("127.0.0.1", port))
            .expect("loopback");
        let output = tester.finish();
        let found = json(&report);
        // A key frame without parameter sets: 7, and each packet was counted.
        assert_eq!(
            (&found["packets"], &found["lost"], &found["key_frames"]),
            (&41.into(), &0.into(), &1.into())
        );
        assert!(
            text(&output.stdout).contains("no Sps"),
            "{}",
            text(&output.stdout)
        );
        assert_eq!(output.status.code(), Some(7));
    }
}

#[test]
fn lost_packets_are_counted_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("r.json");
    let (tester, _stderr, port) = start(&[
        "--frame-threshold",
        "3",
        "--timeout-ms",
        "30000",
        "--json",
        report.to_str().expect("UTF-8"),
    ]);
    let mut packets = vec![
        packet(65533, false, 96, &[0x67, 0x42]),
        packet(65534, false, 96, &[0x68, 0xCE]),
        packet(65535, true, 96, &[0x65, 0x88]),
    ];
    // 0 and 3 are missing: the frames behind them may have lost their beginning.
    for sequence in [1_u16, 2, 4, 5] {
        let mut frame = packet(sequence, true, 96, &[0x41, 0x9A]);
        frame[7] = sequence as u8 + 1;
        packets.push(frame);
    }
    send_to(port, &packets);
    let output = tester.finish();
    let found = json(&report);
    assert_eq!(
        (&found["lost"], &found["frames"], &found["damaged_frames"]),
        (&2.into(), &3.into(), &2.into())
    );
    assert_eq!(found["ended_by"], "silence");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}
