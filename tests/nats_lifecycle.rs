//! A producer's life, seen by the RTP receiver as one stream (contract section 5.3): stopped,
//! restarted, killed, restarted with another size, resized in its segment, and at last a recording
//! that loops.

mod common;
mod nats_support;

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use common::{expect_exit, finish, free_port_pair, streamer};
use nats_support::{Picture, Server, Stage, json, pictures, wait_for};

#[test]
fn a_producers_life_is_one_decodable_stream_with_an_idr_at_each_joint() {
    let (stage, server, port) = (Stage::new(), Server::running(), free_port_pair());
    let tester = stage.receiver(port, 50);
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
    // A playlist switch resizes the segment in place, in both directions (contract sections 2 and
    // 5.3): 256 bytes, and the payload's power of two of 1 MiB at least.
    for (size, bytes) in [("800x600", 2 << 20), ("160x96", 1 << 20)] {
        let apply = [
            "ctl",
            "--input-uri",
            &stage.label,
            "playlist",
            "apply",
            size,
        ];
        let url = server.url();
        expect_exit(
            &finish(streamer().args(apply).args(["--nats-url", &url])),
            0,
        );
        wait_for_frames(12);
        let segment = std::fs::metadata(stage.segment()).unwrap();
        assert_eq!((segment.ino(), segment.len()), (of_second, 256 + bytes));
    }
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
    assert!(counters["stream_resets"].as_u64() >= Some(6), "{counters}");
    assert_eq!(report["control"]["source"]["kind"], "finite");

    let dump = stage.path("got.h264");
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
    // Three restarts, two resizes and at least two loops.
    assert!(joints >= 7, "{joints} joints");
    let at_zero = |picture: &&Picture| (picture.id, picture.capture_ns) == (0, 0);
    assert!(
        pictures.iter().filter(at_zero).count() >= 2,
        "media time may start at 0"
    );
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

    let probed = Command::new("ffprobe")
        .args(["-v", "error", "-f", "h264", "-show_entries"])
        .args(["frame=width,height", "-of", "json"])
        .arg(&dump)
        .output()
        .expect("ffprobe");
    let probed: serde_json::Value = serde_json::from_slice(&probed.stdout).expect("JSON");
    let frames = probed["frames"].as_array().expect("frames");
    let side = |frame: &serde_json::Value, name: &str| frame[name].as_u64().expect("pixels");
    let sizes: Vec<_> = frames
        .iter()
        .map(|frame| (side(frame, "width"), side(frame, "height")))
        .collect();
    assert_eq!(sizes.len(), pictures.len());
    for (pair, picture) in sizes.windows(2).zip(&pictures[1..]) {
        assert!(pair[0] == pair[1] || picture.key, "{pair:?} at {picture:?}");
    }
    let mut seen = sizes;
    seen.dedup();
    assert_eq!(
        seen,
        [(320, 180), (640, 360), (800, 600), (160, 96), (320, 180)]
    );
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
