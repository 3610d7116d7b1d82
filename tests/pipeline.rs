//! The built streamer from outside, with the test kit's producer and referees as its peers.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    LIMIT, Program, Scene, expect_exit, finish, finish_child, free_port_pair, streamer, testkit,
};
use serde_json::Value;

/// Starts a referee and waits until it says that it listens.
fn start_listening(command: &mut Command) -> (Program, std::thread::JoinHandle<String>) {
    let mut child = Program::start(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    while !said.contains("receiving at") && !said.contains("listening at") {
        let read = lines.read_line(&mut said).expect("readable");
        assert!(read > 0, "the referee ended early: {said}");
    }
    let rest = std::thread::spawn(move || {
        let mut text = said;
        for line in lines.lines().map_while(Result::ok) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    });
    (child, rest)
}

fn start_rtp_tester(
    port: u16,
    dump: &Path,
    json: &Path,
) -> (Program, std::thread::JoinHandle<String>) {
    start_listening(
        testkit("rtp_receiver_tester")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args("--strict --monotonic --timeout-ms 60000 --dump".split(' '))
            .arg(dump)
            .arg("--json")
            .arg(json),
    )
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// Pictures that the distribution's ffmpeg decodes, and what it complains about.
fn decode(format: &str, path: &Path) -> (usize, String) {
    let output = Command::new("ffmpeg")
        .args("-nostdin -v error -f".split(' '))
        .arg(format)
        .arg("-i")
        .arg(path)
        .args("-vsync passthrough -f framecrc -".split(' '))
        .output()
        .expect("ffmpeg is installed: scripts/setup.sh");
    let frames = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count();
    (frames, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits for a condition from outside; never for a time.
#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_dummy_streams_both_codecs_to_the_referee_and_leaves_nothing_behind() {
    for (codec, format) in [("h264", "h264"), ("h265", "hevc")] {
        let (scene, port) = (Scene::new(), free_port_pair());
        let (dump, seen) = (scene.path("dump"), scene.path("seen.json"));
        let (tester, said) = start_rtp_tester(port, &dump, &seen);
        let output = finish(
            streamer()
                .args(scene.names())
                .args(
                    "--input-mode dummy --dummy-frames 40 --dummy-width 320 --dummy-height 180"
                        .split(' '),
                )
                .args("--no-nats --queue-size 64 --embed-timestamps --rtp --codec".split(' '))
                .args([codec, "--rtp-endpoint", &format!("127.0.0.1:{port}")])
                .arg("--rtp-sdp")
                .arg(scene.path("stream.sdp"))
                .arg("--report-json")
                .arg(scene.path("report.json")),
        );
        let report_text = expect_exit(&output, 0);
        let tester = finish_child(tester);
        let said = said.join().unwrap();
        assert_eq!(tester.status.code(), Some(0), "{said}\n{report_text}");
        let (seen, report) = (json(&seen), json(&scene.path("report.json")));
        let units = report["encode"]["access_units"].as_u64().unwrap();
        assert_eq!(seen["frames"].as_u64(), Some(units), "{said}");
        assert!(units >= 38, "{report_text}");
        assert_eq!(report["reason"], "source-ended");
        assert_eq!(decode(format, &dump), (units as usize, String::new()));
        let sdp = std::fs::read_to_string(scene.path("stream.sdp")).unwrap();
        assert!(sdp.contains(&format!("a=rtpmap:96 {}/90000", codec.to_uppercase())));
        assert!(!scene.segment().exists(), "the segment is still there");
        assert!(!scene.path("sync").exists(), "the socket is still there");
    }
}

/// A producer that never ends, and a streamer attached to it that has sent pictures.
struct Running {
    scene: Scene,
    port: u16,
    streamer: Program,
}

fn start_streamer(scene: &Scene, port: u16, more: &[&str]) -> Program {
    Program::start(
        streamer()
            .args(scene.names())
            .args("--no-nats --codec h264 --rtp --rtp-endpoint".split(' '))
            .arg(format!("127.0.0.1:{port}"))
            .arg("--report-json")
            .arg(scene.path("report.json"))
            .arg("--rtp-sdp")
            .arg(scene.path("stream.sdp"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
}

fn start_sim(scene: &Scene, more: &[&str]) -> Program {
    Program::start(
        testkit("cvmmap_sim")
            .args(scene.names())
            .args("--label sim --width 320 --height 180 --fps 50".split(' '))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(status.unwrap().success());
}

impl Running {
    fn start() -> (Self, Program) {
        let (scene, port) = (Scene::new(), free_port_pair());
        let sim = start_sim(&scene, &[]);
        let streamer = start_streamer(&scene, port, &[]);
        // The description is written with the first key frame.
        until("the SDP", || scene.path("stream.sdp").exists());
        let running = Self {
            scene,
            port,
            streamer,
        };
        (running, sim)
    }
}

#[test]
fn a_signal_drains_says_goodbye_and_exits_0_with_the_report() {
    for name in ["INT", "TERM"] {
        let (running, mut sim) = Running::start();
        let receiver = std::net::UdpSocket::bind(("127.0.0.1", running.port + 1)).unwrap();
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        signal(&running.streamer, name);
        // RTCP BYE is packet type 203 (RFC 3550 section 6.6), somewhere in a compound packet.
        let mut goodbye = false;
        let mut packet = [0; 1500];
        while !goodbye {
            let len = receiver.recv(&mut packet).expect("a BYE");
            let mut rest = &packet[..len];
            while rest.len() >= 4 {
                goodbye |= rest[1] == 203;
                let words = usize::from(u16::from_be_bytes([rest[2], rest[3]])) + 1;
                rest = rest.get(words * 4..).unwrap_or_default();
            }
        }
        let text = expect_exit(&finish_child(running.streamer), 0);
        assert!(text.contains("ended: signal"), "{text}");
        assert_eq!(json(&running.scene.path("report.json"))["reason"], "signal");
        signal(&sim, "INT");
        sim.wait().unwrap();
    }
}

#[test]
fn a_producer_that_comes_later_and_is_killed_and_restarted_is_followed() {
    let (scene, port) = (Scene::new(), free_port_pair());
    let (dump, seen) = (scene.path("dump"), scene.path("seen.json"));
    let (tester, said) = start_rtp_tester(port, &dump, &seen);
    // Nobody is there yet: that is waited for.
    let streamer = start_streamer(&scene, port, &["--gop", "1000"]);
    let mut first = start_sim(&scene, &[]);
    until("the first picture", || {
        std::fs::metadata(&dump).is_ok_and(|file| file.len() > 0)
    });
    // Killed: the names stay, and so does the inode.
    first.kill().unwrap();
    first.wait().unwrap();
    let before = std::fs::metadata(&dump).map_or(0, |file| file.len());
    let mut second = start_sim(&scene, &[]);
    // The stream goes on: frames of the second producer reach the receiver.
    until("frames after the kill", || {
        std::fs::metadata(&dump).map_or(0, |file| file.len()) > before + 20_000
    });
    // Ended cleanly: the next one has a new inode.
    signal(&second, "INT");
    second.wait().unwrap();
    let before = std::fs::metadata(&dump).unwrap().len();
    let mut third = start_sim(&scene, &[]);
    until("frames after the clean restart", || {
        std::fs::metadata(&dump).unwrap().len() > before + 20_000
    });
    signal(&streamer, "INT");
    let text = expect_exit(&finish_child(streamer), 0);
    third.kill().unwrap();
    third.wait().unwrap();
    let tester = finish_child(tester);
    let said = said.join().unwrap();
    assert_eq!(tester.status.code(), Some(0), "{said}\n{text}");
    let (seen, report) = (json(&seen), json(&scene.path("report.json")));
    // One session, time that only grows (--monotonic), nothing damaged, and an IDR at each joint:
    // with this GOP there is no other reason for one.
    assert_eq!(seen["damaged"].as_u64().unwrap_or(0), 0, "{said}");
    assert!(report["source"]["epochs"].as_u64() >= Some(2), "{text}");
    assert!(seen["key_frames"].as_u64() >= Some(3), "{said}\n{text}");
    assert_eq!(decode("h264", &dump).1, "");
}

#[test]
fn passthrough_forwards_the_producers_own_access_units_unchanged() {
    let (scene, port) = (Scene::new(), free_port_pair());
    let clip = scene.path("clip.h264");
    let made = Command::new("ffmpeg")
        .args("-nostdin -v error -f lavfi -i testsrc2=size=320x180:rate=50 -frames:v 60".split(' '))
        .args("-c:v libx264 -g 15 -bf 0 -preset ultrafast -f h264".split(' '))
        .arg(&clip)
        .status();
    assert!(made.expect("ffmpeg is installed").success());
    let (dump, seen) = (scene.path("dump"), scene.path("seen.json"));
    let (tester, said) = start_rtp_tester(port, &dump, &seen);
    let streamer = start_streamer(
        &scene,
        port,
        &[
            "--encoder",
            "passthrough",
            "--queue-size",
            "64",
            "--ingest-idle-timeout-ms",
            "1500",
        ],
    );
    let clip_path = clip.to_str().unwrap();
    let mut sim = start_sim(
        &scene,
        &[
            "--annexb",
            clip_path,
            "--codec",
            "h264",
            "--metadata",
            "v2.1",
            "--frames",
            "60",
            "--wait-for-reader",
        ],
    );
    sim.wait().unwrap();
    let text = expect_exit(&finish_child(streamer), 0);
    let tester = finish_child(tester);
    assert_eq!(
        tester.status.code(),
        Some(0),
        "{}\n{text}",
        said.join().unwrap()
    );
    let crcs = |path: &Path| {
        let output = Command::new("ffmpeg")
            .args("-nostdin -v error -f h264 -i".split(' '))
            .arg(path)
            .args("-vsync passthrough -f framehash -".split(' '))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let hashes = text.lines().filter(|line| !line.starts_with('#'));
        hashes
            .map(|line| line.rsplit(',').next().unwrap().trim().to_owned())
            .collect::<Vec<_>>()
    };
    let (sent, received) = (crcs(&clip), crcs(&dump));
    assert_eq!(sent.len(), 60);
    // A machine that was too busy for one frame costs the rest of its group of pictures, as the
    // producer's stream cannot be decoded from there on: all others are the producer's own.
    let mut rest = sent.iter();
    assert!(
        received.iter().all(|crc| rest.any(|own| own == crc)),
        "{text}"
    );
    let report = json(&scene.path("report.json"));
    let lost = 60 - report["frames"].as_u64().unwrap();
    let left_out = report["encode"]["left_out"].as_u64().unwrap();
    assert_eq!(received.len() as u64, 60 - lost - left_out, "{text}");
    assert!(lost <= 2 && left_out <= 14 * lost, "{text}");
}

#[test]
fn a_frame_limit_ends_with_0_and_counts_exactly() {
    let (scene, mut sim) = {
        let scene = Scene::new();
        let sim = start_sim(&scene, &[]);
        (scene, sim)
    };
    let output = finish(
        streamer()
            .args(scene.names())
            .args("--run-mode ingest --no-nats --ingest-max-frames 25 --report-json".split(' '))
            .arg(scene.path("report.json")),
    );
    expect_exit(&output, 0);
    let report = json(&scene.path("report.json"));
    assert_eq!(report["reason"], "max-frames");
    assert_eq!(report["frames"], 25);
    signal(&sim, "INT");
    sim.wait().unwrap();
}

#[test]
fn a_producer_that_falls_silent_ends_with_0_and_the_reason_idle() {
    let scene = Scene::new();
    let mut sim = start_sim(&scene, &["--frames", "20", "--wait-for-reader"]);
    let output = finish(
        streamer()
            .args(scene.names())
            .args("--no-nats --codec h264 --ingest-idle-timeout-ms 700 --report-json".split(' '))
            .arg(scene.path("report.json")),
    );
    expect_exit(&output, 0);
    assert_eq!(json(&scene.path("report.json"))["reason"], "idle");
    sim.wait().unwrap();
}

#[test]
fn what_cannot_work_is_refused_with_5_and_says_why() {
    let scene = Scene::new();
    let missing = scene.path("no-such-folder/stream.sdp");
    let missing = missing.to_str().unwrap();
    let rows: [(&[&str], &str); 3] = [
        (
            &[
                "--codec",
                "h264",
                "--rtp",
                "--rtp-endpoint",
                "127.0.0.1:5004",
                "--rtp-sdp",
                missing,
            ],
            "no-such-folder",
        ),
        (
            &[
                "--codec",
                "h264",
                "--rtp",
                "--rtp-endpoint",
                "no-such-host.invalid:5004",
            ],
            "no-such-host.invalid",
        ),
        (
            &[
                "--codec",
                "h264",
                "--input-mode",
                "dummy",
                "--encoder",
                "nvenc",
                "--dummy-frames",
                "3",
            ],
            "nvenc",
        ),
    ];
    for (arguments, word) in rows {
        let output = finish(
            streamer()
                .args(scene.names())
                .args("--no-nats".split(' '))
                .args(arguments),
        );
        let text = expect_exit(&output, 5);
        assert!(text.contains(word), "{arguments:?}: no {word:?} in\n{text}");
    }
}

#[test]
fn a_stream_key_is_in_no_log_and_no_report() {
    let scene = Scene::new();
    let output = finish(
        streamer()
            .args(scene.names())
            .args(
                "-vv --input-mode dummy --dummy-frames 10 --no-nats --codec h264 --rtmp".split(' '),
            )
            .args(
                "--rtmp-max-retries 1 --rtmp-url rtmp://127.0.0.1:9/live/se3cret?token=t0ken"
                    .split(' '),
            )
            .arg("--report-json")
            .arg(scene.path("report.json")),
    );
    let report = std::fs::read_to_string(scene.path("report.json")).unwrap();
    let text = common::text(&output) + &report;
    assert!(text.contains("127.0.0.1"), "{text}");
    for secret in ["se3cret", "t0ken"] {
        assert!(!text.contains(secret), "{secret} in\n{text}");
    }
}

#[test]
fn the_simulator_and_the_dummy_write_the_same_segment_and_the_same_notices() {
    // Referee and player were written apart; ten frames of both, byte by byte.
    let collect = |scene: &Scene| {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::SUB).unwrap();
        socket.set_rcvtimeo(LIMIT.as_millis() as i32).unwrap();
        socket.set_subscribe(&[0x7D]).unwrap();
        socket.connect(&scene.zmq_endpoint()).unwrap();
        socket
    };
    let observe = |scene: &Scene, socket: &zmq::Socket| {
        let mut frames = Vec::new();
        while frames.len() < 10 {
            let notice = socket.recv_bytes(0).expect("a notice");
            let segment = std::fs::read(scene.segment()).expect("the segment");
            frames.push((notice, segment));
        }
        frames
    };
    // Times differ; reserved bytes are garbage on purpose (contract section 3).
    let comparable = |(mut notice, mut segment): (Vec<u8>, Vec<u8>)| {
        notice[1] = 0;
        notice[8..16].fill(0);
        notice[16..24].fill(0);
        segment[0x10..0x18].fill(0);
        (notice, segment)
    };
    let (sim_scene, dummy_scene) = (Scene::new(), Scene::new());
    let socket = collect(&sim_scene);
    let mut sim = testkit("cvmmap_sim")
        .args(sim_scene.names())
        .args(
            "--label same --width 64 --height 48 --fps 10 --frames 40 --wait-for-reader".split(' '),
        )
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let by_sim = observe(&sim_scene, &socket);
    signal(&sim, "INT");
    sim.wait().unwrap();
    let socket = collect(&dummy_scene);
    let streamer = streamer()
        .args(dummy_scene.names())
        .args("--input-mode dummy --dummy-label same --dummy-width 64 --dummy-height 48".split(' '))
        .args("--dummy-fps 10 --no-nats --codec h264".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let by_dummy = observe(&dummy_scene, &socket);
    signal(&streamer, "INT");
    expect_exit(&finish_child(streamer), 0);
    let number = |notice: &[u8]| u32::from_le_bytes(notice[4..8].try_into().unwrap());
    // This reader may have joined the dummy a frame after the streamer did.
    let first = number(&by_dummy[0].0);
    let mut compared = 0;
    for dummy in by_dummy {
        let id = number(&dummy.0);
        let Some(sim) = by_sim.iter().find(|(notice, _)| number(notice) == id) else {
            continue;
        };
        let (sim, dummy) = (comparable(sim.clone()), comparable(dummy));
        assert_eq!(sim.0, dummy.0, "notice {id}");
        assert!(sim.1 == dummy.1, "segment at frame {id} differs");
        compared += 1;
    }
    assert!(
        compared >= 8,
        "only {compared} frames from {first} on were compared"
    );
}

#[test]
fn realtime_holds_for_every_thread() {
    let chrt = Command::new("chrt").args(["-f", "1", "true"]).output();
    let permitted = chrt.is_ok_and(|output| output.status.success());
    let scene = Scene::new();
    let streamer = Program::start(
        streamer()
            .args(scene.names())
            .args(
                "--input-mode dummy --dummy-width 64 --dummy-height 48 --no-nats --codec h264"
                    .split(' '),
            )
            .args("--encoder software --realtime 1".split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    // By thread: its name, and whether its policy is SCHED_FIFO, 1 (proc_pid_stat(5), field 41).
    let threads = || -> Vec<(String, bool)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", streamer.id()));
        let stat = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            let (head, fields) = stat.rsplit_once(") ")?;
            let policy = fields.split(' ').nth(41 - 3)?;
            Some((head.split_once('(')?.1.to_owned(), policy == "1"))
        };
        let tasks = tasks.into_iter().flatten().map_while(Result::ok);
        tasks.filter_map(stat).collect()
    };
    let mut seen = Vec::new();
    until("the stages' threads", || {
        seen = threads();
        let runs = |name: &str| seen.iter().any(|(thread, _)| thread == name);
        runs("ingest") && runs("encode")
    });
    signal(&streamer, "INT");
    let said = expect_exit(&finish_child(streamer), 0);
    if permitted {
        assert!(seen.iter().all(|(_, realtime)| *realtime), "{seen:?}");
    } else {
        println!("no real-time scheduler here (chrt -f 1 true fails): only the warning is checked");
        assert!(said.contains("--realtime 1 is not to be had"), "{said}");
    }
}
