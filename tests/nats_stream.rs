//! A stream and a NATS server that is late, dies and floods (issue: the stream starts, runs and
//! stops the same without it). The server is a real `nats-server`.

mod common;
mod nats_support;

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Scene, expect_exit, streamer};
use nats_support::{Guard, Server, Stage, expect_frames, resident_kib, wait_for};
use rustix::process::Signal;

/// The built-in producer at a rate that a loaded machine keeps up with.
fn dummy(scene: &Scene, server: &Server, frames: u32) -> Guard {
    Guard::spawn(
        streamer()
            .args(scene.names())
            .args(["--nats-url", &server.url()])
            .args(["--dummy-frames", &frames.to_string()])
            .args(
                "--input-mode dummy --dummy-label cam --dummy-width 160 --dummy-height 96 \
                 --dummy-fps 10 --codec h264 --encoder software --no-status"
                    .split_whitespace(),
            )
            .arg("--report-json")
            .arg(scene.path("report.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
}

/// How often the streamer says what it says about a missing server.
fn warnings(text: &str) -> usize {
    text.matches("the server is tried again every second")
        .count()
}

#[test]
fn without_a_server_a_stream_warns_once_and_runs_and_stops_as_ever() {
    let (scene, server) = (Scene::new(), Server::absent());
    let output = dummy(&scene, &server, 30).finish();
    let text = expect_exit(&output, 0);
    assert_eq!(warnings(&text), 1, "{text}");
    let report = nats_support::json(&scene.path("report.json"));
    expect_frames(&report, 30);
    assert_eq!(report["control"]["counters"]["connects"], 0);
}

#[test]
fn a_server_that_takes_connections_and_says_nothing_delays_no_stop() {
    let scene = Scene::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Server::absent();
    server.port = silent.local_addr().unwrap().port();
    let run = dummy(&scene, &server, 0);
    let (_connection, _) = silent.accept().expect("the streamer connects");
    run.signal(Signal::INT);
    let asked = Instant::now();
    expect_exit(&run.finish(), 0);
    // Generous for a loaded machine, and far below the 30 s that the connection is given.
    assert!(asked.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_server_that_comes_late_dies_and_returns_costs_no_frame() {
    let (scene, mut server) = (Scene::new(), Server::absent());
    let run = dummy(&scene, &server, 150);
    server.start();
    let client = server.client();
    let ping = |id: &str| {
        wait_for(&format!("the service {id}"), || {
            let answer = client.0.request(
                &client.1,
                "$SRV.PING.cvmmap_streamer",
                b"",
                Duration::from_millis(500),
            )?;
            serde_json::from_slice::<serde_json::Value>(&answer.data).ok()
        })
    };
    let first = ping("at first");
    server.kill();
    server.start();
    let second = ping("again");
    assert_eq!(first["id"], second["id"], "one service, one id");
    assert_eq!(first["type"], "io.nats.micro.v1.ping_response");
    let text = expect_exit(&run.finish(), 0);
    assert!(warnings(&text) <= 1, "{text}");
    let report = nats_support::json(&scene.path("report.json"));
    expect_frames(&report, 150);
    let counters = &report["control"]["counters"];
    assert_eq!(counters["connects"], 1, "{counters}");
    assert_eq!(counters["reconnects"], 1, "{counters}");
}

/// Protobuf of `ModuleStatusEvent` (contract section 5.1): status, no instance, a time.
fn status(code: u8) -> Vec<u8> {
    vec![0x08, code, 0x18, 0x01]
}

#[test]
fn a_flood_of_events_and_bodies_costs_no_frame_and_no_memory() {
    const PER_SECOND: usize = 10_000;
    let (scene, server) = (Scene::new(), Server::running());
    let run = dummy(&scene, &server, 100);
    let (client, messages) = server.client();
    let key = scene.shm_name.replace('.', "_");
    // All that a stream allocates is there by then.
    wait_for("twenty frames", || {
        let subject = format!("cvmmap.{key}.streamer.stats");
        let answer = client.request(&messages, &subject, b"", Duration::from_millis(500))?;
        let stats: serde_json::Value = serde_json::from_slice(&answer.data).ok()?;
        (stats["stats"]["frames"].as_u64()? >= 20).then_some(())
    });
    let events: Vec<_> = [1, 2, 3, 77]
        .into_iter()
        .map(status)
        .chain([vec![0xFF; 9], vec![0x08]])
        .cycle()
        .take(PER_SECOND / 100)
        .collect();
    // Nothing; noise; a header that lies about its size; a whole record with a bad field.
    let mut lies = vec![0; 64];
    (lies[0], lies[2], lies[24]) = (0x62, 1, 200);
    lies[26..28].copy_from_slice(&3248_u16.to_le_bytes());
    let mut record = vec![0; 64 + 3248];
    (record[0], record[2], record[24], record[28]) = (0x62, 1, 1, 9);
    record[26..28].copy_from_slice(&3248_u16.to_le_bytes());
    record[36..40].copy_from_slice(&3248_u32.to_le_bytes());
    let bodies: Vec<_> = [vec![], vec![0xAB; 100], lies.clone(), lies, record]
        .into_iter()
        .cycle()
        .take(PER_SECOND / 100)
        .collect();

    let before = resident_kib(run.id());
    let mut most = before;
    let over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let (start, mut rounds) = (Instant::now(), 0_u32);
            while !over.load(Ordering::Relaxed) {
                client.publish_all(&format!("cvmmap.{key}.status"), &events);
                client.publish_all(&format!("cvmmap.{key}.body"), &bodies);
                rounds += 1;
                let due = start + Duration::from_millis(10) * rounds;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            (rounds, start.elapsed())
        });
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            most = most.max(resident_kib(run.id()));
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
        flood.join().expect("the flood")
    });
    let (rounds, time) = sent;
    let rate = f64::from(rounds) * PER_SECOND as f64 / 100.0 / time.as_secs_f64();
    let text = expect_exit(&run.finish(), 0);
    let report = nats_support::json(&scene.path("report.json"));
    let counters = &report["control"]["counters"];
    println!("{rate:.0} of each per second; resident {before} KiB, at most {most} KiB; {counters}");
    assert!(rate > 0.8 * PER_SECOND as f64, "{rate:.0} per second");
    expect_frames(&report, 100);
    assert!(most - before < 16 * 1024, "{before} KiB grew to {most} KiB");
    let count = |name: &str| counters[name].as_u64().expect(name);
    let heard = [
        "online",
        "offline",
        "stream_resets",
        "bad_status",
        "unknown_status",
    ]
    .map(count)
    .iter()
    .sum::<u64>();
    let all = u64::from(rounds) * events.len() as u64;
    assert!(
        count("bad_bodies") > 0 && count("bodies") == 0,
        "{counters}"
    );
    assert!(
        count("bad_status") > 0 && count("unknown_status") > 0,
        "{counters}"
    );
    assert!(
        heard + count("bad_bodies") + count("dropped") <= 2 * all,
        "nothing is counted twice: {counters}"
    );
    assert!(heard > 0 && count("disconnects") == 0, "{counters}");
    assert!(
        text.lines().count() < 400,
        "a flood is none of lines:\n{text}"
    );
}

#[test]
fn a_token_is_used_and_never_shown() {
    let (stage, mut server) = (Stage::new(), Server::absent());
    server.start_with(&["--auth", "sesame"]);
    let url = format!("nats://sesame@127.0.0.1:{}", server.port);
    let ctl = |url: &str| {
        common::finish(streamer().args([
            "ctl",
            "--input-uri",
            &stage.label,
            "--nats-url",
            url,
            "info",
        ]))
    };
    // The server lets us in, and nobody serves the subject.
    let text = expect_exit(&ctl(&url), 4);
    assert!(!text.contains("sesame"), "{text}");
    let wrong = format!("nats://s3cret@127.0.0.1:{}", server.port);
    let text = expect_exit(&ctl(&wrong), 5);
    assert!(!text.contains("s3cret"), "{text}");
}
