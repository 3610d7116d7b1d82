//! Bodies from `cvmmap_sim` through NATS and the encoder into the stream and into a file, read
//! back by `rtp_receiver_tester`, which has its own parser.

mod common;
mod nats_support;

use std::process::Stdio;

use common::{expect_exit, free_port_pair, testkit};
use nats_support::{Guard, Server, Stage, json, wait_for};
use serde_json::Value;

fn lines(path: &std::path::Path) -> Vec<Value> {
    std::fs::read_to_string(path)
        .expect("the file")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

const SIM: &str = "--width 320 --height 180 --fps 10 --bodies 2";

/// Pixels per frame and the second body's distance: `tests/testkit/src/nats_body.rs`.
fn neck(frame: u64, body: u64) -> f64 {
    ((frame * 4 + body * 64) % 320) as f64
}

#[test]
fn a_receiver_gets_the_poses_with_the_pictures() {
    for codec in ["h264", "h265"] {
        let (stage, server, port) = (Stage::new(), Server::running(), free_port_pair());
        let tester = Guard::spawn(
            testkit("rtp_receiver_tester")
                .args("--bind 127.0.0.1 --monotonic --frame-threshold 10 --timeout-ms 100000 --silence-ms 20000 --port".split(' '))
                .arg(port.to_string())
                .arg("--body-jsonl")
                .arg(stage.path("poses.jsonl"))
                .arg("--json")
                .arg(stage.path("tester.json"))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        let run = stage.streamer(
            &server,
            &format!("--codec {codec} --encoder software --body-output sei --no-status --rtp --rtp-endpoint 127.0.0.1:{port}"),
        );
        let client = server.client();
        wait_for("the streamer", || stage.live(&client));
        let sim = stage.sim(&server, SIM);
        stage.wait_for_frames(&client, 30);
        expect_exit(&run.interrupt(), 0);
        expect_exit(&sim.interrupt(), 0);
        expect_exit(&tester.finish(), 0);
        let report = stage.report();
        let counted = &report["control"]["bodies"];
        let poses = lines(&stage.path("poses.jsonl"));
        println!("{codec}: {counted}");
        assert!(poses.len() >= 20, "{} poses\n{report:#}", poses.len());
        let sent = counted["exact"].as_u64().unwrap() + counted["earlier"].as_u64().unwrap();
        assert_eq!(poses.len() as u64, sent, "every record that was sent came");
        let exact = poses.iter().filter(|pose| pose["exact"] == true).count();
        assert_eq!(exact as u64, counted["exact"].as_u64().unwrap());
        let mut last = None;
        for pose in &poses {
            let frame = pose["frame_count"].as_u64().unwrap();
            assert!(last.is_none_or(|last| frame > last), "once, in order");
            last = Some(frame);
            assert_eq!(pose["bodies_tracked"], 2);
            for (n, body) in pose["bodies"].as_array().unwrap().iter().enumerate() {
                assert_eq!(body["id"], n);
                assert_eq!(body["tracking"], 1);
                assert_eq!(body["confidence"], 90.0 + n as f64);
                let points = body["keypoints"].as_array().unwrap();
                assert_eq!(points.len(), 18);
                assert_eq!(points[1][0], neck(frame, n as u64), "the neck's x");
                assert_eq!(points[1][1], 45.0, "a quarter of 180");
                assert_eq!(points[1][2], 99.0);
                let sides = body["box"].as_array().unwrap();
                assert!(sides[0].as_f64() < points[1][0].as_f64());
                assert!(sides[2].as_f64() > points[1][0].as_f64());
            }
        }
        assert_eq!(json(&stage.path("tester.json"))["violations"]["count"], 0);
    }
}

#[test]
fn every_packet_is_a_line_with_the_picture_it_went_with() {
    let (stage, server) = (Stage::new(), Server::running());
    let path = stage.path("bodies.jsonl");
    let run = stage.streamer(
        &server,
        &format!(
            "--codec h264 --encoder software --no-status --body-output jsonl:{}",
            path.display()
        ),
    );
    let client = server.client();
    wait_for("the streamer", || stage.live(&client));
    let mut sim = stage.sim(&server, SIM);
    // The simulator finds the server behind its first frame: there are fewer bodies than frames.
    sim.wait_for("twenty bodies", || {
        let counters = &stage.live(&client)?["control"]["counters"];
        (counters["bodies"].as_u64()? >= 20).then_some(())
    });
    expect_exit(&sim.interrupt(), 0);
    expect_exit(&run.interrupt(), 0);
    let all = lines(&path);
    let report = stage.report();
    let (counted, counters) = (&report["control"]["bodies"], &report["control"]["counters"]);
    assert_eq!(
        all.len() as u64,
        counters["bodies"].as_u64().unwrap(),
        "{report:#}"
    );
    assert_eq!(counted["lines_written"], all.len());
    assert!(all.len() >= 20);
    for line in &all {
        assert_eq!(line["label"], stage.label.as_str());
        assert_eq!(line["format"], "body18");
        let frame = line["frame_count"].as_u64().unwrap();
        assert_eq!(line["bodies"][1]["keypoints_2d"][1][0], neck(frame, 1));
        if line["picture"]["pairing"] == "exact" {
            assert_eq!(line["picture"]["frame_id"], line["frame_count"]);
            assert_eq!(line["picture"]["capture_ts_ns"], line["timestamp_ns"]);
        }
    }
    assert!(all.iter().any(|line| line["picture"]["pairing"] == "exact"));
}

#[test]
fn a_full_disk_costs_lines_and_no_frame() {
    let (stage, server) = (Stage::new(), Server::running());
    let run = stage.streamer(
        &server,
        "--codec h264 --encoder software --no-status --body-output jsonl:/dev/full",
    );
    let client = server.client();
    wait_for("the streamer", || stage.live(&client));
    let sim = stage.sim(&server, SIM);
    stage.wait_for_frames(&client, 15);
    expect_exit(&sim.interrupt(), 0);
    let text = expect_exit(&run.interrupt(), 0);
    assert_eq!(text.matches("lines are left out").count(), 1, "{text}");
    let report = stage.report();
    let counted = &report["control"]["bodies"];
    assert_eq!(counted["lines_written"], 0);
    assert_eq!(
        counted["lines_failed"], report["control"]["counters"]["bodies"],
        "{report:#}"
    );
    let number = |value: &Value| value.as_u64().expect("a number");
    let coded = number(&report["encode"]["access_units"]) + number(&report["evicted"]);
    assert_eq!(report["frames"], coded, "{report:#}");
}

#[test]
fn body_outputs_that_make_no_sense_are_refused() {
    let base = "--shm-name x --zmq-endpoint ipc:///nonexistent/x";
    for (arguments, words) in [
        ("--codec h264 --body-output json", "jsonl:PATH"),
        ("--codec h264 --body-output jsonl:", "jsonl:PATH"),
        ("--codec h264 --body-output sei --no-nats", "--no-nats"),
        ("--run-mode ingest --body-output sei", "--run-mode"),
    ] {
        let output = common::finish(
            common::streamer()
                .args(base.split(' '))
                .args(arguments.split(' ')),
        );
        let text = expect_exit(&output, 2);
        assert!(
            text.contains("--body-output") && text.contains(words),
            "{text}"
        );
    }
    let output = common::finish(
        common::streamer()
            .args(base.split(' '))
            .args("--codec h264 --body-output jsonl:/nonexistent/dir/x".split(' ')),
    );
    let text = expect_exit(&output, 5);
    assert!(text.contains("/nonexistent/dir/x"), "{text}");
}
