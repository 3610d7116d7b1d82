//! A producer's life, seen by the RTP receiver as one stream (contract section 5.3): stopped,
//! restarted, killed, restarted with another size, and at last a recording that loops.

mod common;
mod nats_support;

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use common::{expect_exit, free_port_pair, testkit};
use nats_support::{Guard, Server, Stage, json, wait_for};

#[test]
fn a_producers_life_is_one_decodable_stream_with_an_idr_at_each_joint() {
    let (stage, server, port) = (Stage::new(), Server::running(), free_port_pair());
    let dump = stage.path("got.h264");
    let tester = Guard::spawn(
        testkit("rtp_receiver_tester")
            .args(
                "--bind 127.0.0.1 --monotonic --codec h264 --frame-threshold 50 \
                 --timeout-ms 110000 --silence-ms 60000 --port"
                    .split_whitespace(),
            )
            .arg(port.to_string())
            .arg("--dump")
            .arg(&dump)
            .arg("--json")
            .arg(stage.path("tester.json"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    // Key frames come when they are needed and at no other time.
    let run = stage.streamer(
        &server,
        &format!(
            "--codec h264 --encoder software --gop 100000 --embed-timestamps --no-status \
             --rtp --rtp-endpoint 127.0.0.1:{port}"
        ),
    );
    let client = server.client();
    let wait_for_frames = |more: u64| {
        let frames = |stats: serde_json::Value| stats["frames"].as_u64();
        let now = wait_for("the streamer", || stage.live(&client).and_then(frames));
        stage.wait_for_frames(&client, now + more);
    };
    let inode = || wait_for("the segment", || std::fs::metadata(stage.segment()).ok()).ino();
    const SMALL: &str = "--width 320 --height 180 --fps 10";

    // What is said before anybody listens is lost: nothing is retained (contract section 5).
    wait_for("the streamer", || stage.live(&client));
    let first = stage.sim(&server, SMALL);
    wait_for_frames(12);
    // A placeholder keeps the file system from giving the next segment the same inode number.
    let before = std::fs::File::open(stage.segment()).unwrap();
    expect_exit(&first.interrupt(), 0);
    assert!(!stage.segment().exists(), "SIGINT removes the segment");

    let second = stage.sim(&server, SMALL);
    wait_for_frames(12);
    let of_second = inode();
    assert_ne!(of_second, before.metadata().unwrap().ino(), "a new segment");
    second.kill();

    let third = stage.sim(&server, "--width 640 --height 360 --fps 10");
    wait_for_frames(12);
    assert_eq!(inode(), of_second, "what was killed leaves its segment");
    expect_exit(&third.interrupt(), 0);

    let looping = "--width 320 --height 180 --fps 10 --frames 12 --ending loop --media-time \
                   --quirk late-reset --quirk double-reset";
    let last = stage.sim(&server, looping);
    wait_for_frames(40);
    expect_exit(&last.interrupt(), 0);
    expect_exit(&run.interrupt(), 0);
    let said = expect_exit(&tester.finish(), 0);
    let (report, seen) = (stage.report(), json(&stage.path("tester.json")));
    println!("{said}");
    assert_eq!(seen["violations"]["count"], 0, "{seen:#}");
    assert_eq!(seen["ended_by"], "bye");
    assert_eq!(seen["lost"], 0);
    assert_eq!(seen["frames"], report["encode"]["access_units"]);
    let counters = &report["control"]["counters"];
    assert_eq!(counters["online"], 4, "{counters}");
    assert_eq!(
        counters["offline"], 3,
        "the killed one says nothing: {counters}"
    );
    assert!(counters["stream_resets"].as_u64() >= Some(4), "{counters}");
    assert_eq!(report["control"]["source"]["kind"], "finite");

    let pictures = pictures(&std::fs::read(&dump).unwrap());
    assert_eq!(seen["frames"], pictures.len());
    let mut joints = 0;
    for pair in pictures.windows(2) {
        if pair[1].id <= pair[0].id {
            joints += 1;
            assert!(pair[1].key, "no IDR after {pair:?}");
        }
    }
    assert!(pictures[0].key);
    // Three restarts and at least two loops.
    assert!(joints >= 5, "{joints} joints");
    let keys = pictures.iter().filter(|picture| picture.key).count();
    // A frame 0 that comes twice, and an event that comes late, cost an IDR each at most.
    println!("{} pictures, {joints} joints, {keys} IDRs", pictures.len());
    assert!(keys <= 3 * (joints + 1), "{keys} IDRs for {joints} joints");

    let decoded = Command::new("ffmpeg")
        .args(["-hide_banner", "-v", "error", "-xerror", "-f", "h264", "-i"])
        .arg(&dump)
        .args(["-fps_mode", "passthrough", "-f", "framehash", "-"])
        .output()
        .expect("ffmpeg");
    let complaints = String::from_utf8_lossy(&decoded.stderr);
    assert!(
        decoded.status.success() && complaints.is_empty(),
        "{complaints}"
    );
    let hashes = String::from_utf8_lossy(&decoded.stdout);
    let frames = hashes.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(frames, pictures.len(), "every picture decodes");
}

#[test]
fn a_killed_producer_is_noticed_by_its_silence_and_the_idle_timeout_ends_the_run() {
    let (stage, server) = (Stage::new(), Server::running());
    let run = stage.streamer(
        &server,
        "--run-mode ingest --ingest-idle-timeout-ms 6000 --no-status",
    );
    let client = server.client();
    let sim = stage.sim(&server, "--width 64 --height 64 --fps 10");
    stage.wait_for_frames(&client, 3);
    sim.kill();
    let text = expect_exit(&run.finish(), 0);
    assert_eq!(text.matches("the producer is silent").count(), 1, "{text}");
    assert!(
        stage.segment().exists(),
        "a killed producer leaves its segment"
    );
    assert_eq!(stage.report()["reason"], "idle");
    assert_eq!(stage.report()["control"]["counters"]["offline"], 0);
}

#[derive(Debug)]
struct Picture {
    id: u32,
    key: bool,
}

/// Frame ids from the embedded time stamps (`docs/embedded-timestamps.md`), and picture kinds, of
/// a dump with start codes of four bytes.
fn pictures(dump: &[u8]) -> Vec<Picture> {
    const UUID: &[u8] = b"cvmmap-stream-ts";
    let starts: Vec<_> = (0..dump.len().saturating_sub(4))
        .filter(|at| dump[*at..*at + 4] == [0, 0, 0, 1])
        .collect();
    let mut all = Vec::new();
    let mut id = None;
    for (n, start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(dump.len());
        let nal = &dump[start + 4..end];
        match nal[0] & 0x1F {
            6 => {
                // Emulation prevention out: two zeros of the stream and a 3 lose the 3.
                let (mut bytes, mut zeros) = (Vec::new(), 0);
                for byte in nal {
                    if *byte == 3 && zeros >= 2 {
                        zeros = 0;
                        continue;
                    }
                    zeros = if *byte == 0 { zeros + 1 } else { 0 };
                    bytes.push(*byte);
                }
                if let Some(at) = bytes.windows(16).position(|window| window == UUID) {
                    let field = &bytes[at + 33..at + 37];
                    id = Some(u32::from_be_bytes(field.try_into().unwrap()));
                }
            }
            // The first slice of a picture: first_mb_in_slice is 0, ue(v) "1".
            kind @ (1 | 5) if nal[1] & 0x80 != 0 => all.push(Picture {
                id: id.take().expect("a time stamp in front of each picture"),
                key: kind == 5,
            }),
            _ => {}
        }
    }
    all
}
