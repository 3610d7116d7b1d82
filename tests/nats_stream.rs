//! A stream and a NATS server that is late, dies and floods (issue: the stream starts, runs and
//! stops the same without it). The server is a real `nats-server`.

mod common;
mod nats_support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{Scene, expect_exit, streamer};
use nats_support::{
    Server, Stage, accept, dummy, expect_frames, expect_no_more_lost, json, resident_kib, wait_for,
};
use rustix::process::Signal;

/// How often the streamer says what it says about a missing server.
fn warnings(text: &str) -> usize {
    text.matches("the server is tried again every second")
        .count()
}

#[test]
fn without_a_server_a_stream_warns_once_and_runs_and_stops_as_ever() {
    let (scene, server) = (Scene::new(), Server::absent());
    let output = dummy(&scene, 30, &["--nats-url", &server.url()]).finish();
    let text = expect_exit(&output, 0);
    assert_eq!(warnings(&text), 1, "{text}");
    let report = json(&scene.path("report.json"));
    expect_frames(&report, 30);
    assert_eq!(report["control"]["counters"]["connects"], 0);
}

#[test]
fn a_server_that_takes_connections_and_says_nothing_delays_no_stop() {
    let scene = Scene::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let run = dummy(&scene, 0, &["--nats-url", &Server::played(&silent).url()]);
    let _connection = accept(&silent);
    run.signal(Signal::INT);
    let asked = Instant::now();
    expect_exit(&run.finish(), 0);
    // Generous for a loaded machine, and far below the 30 s that the connection is given.
    assert!(asked.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_server_that_comes_late_dies_and_returns_costs_no_frame() {
    let (scene, mut server) = (Scene::new(), Server::absent());
    let run = dummy(&scene, 200, &["--nats-url", &server.url()]);
    let beside = Scene::new();
    let twin = dummy(&beside, 200, &["--no-nats"]);
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
    expect_exit(&twin.finish(), 0);
    let report = json(&scene.path("report.json"));
    expect_no_more_lost(&report, &json(&beside.path("report.json")), 200);
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
    // Five seconds with 10,000 events and as many bodies each, on a machine that keeps up.
    const ROUNDS: u32 = 500;
    const PER_ROUND: usize = 100;
    const PAUSE: Duration = Duration::from_millis(10);
    const FRAMES: u32 = 150;
    let (scene, server) = (Scene::new(), Server::running());
    let run = dummy(&scene, FRAMES, &["--nats-url", &server.url()]);
    let beside = Scene::new();
    let twin = dummy(&beside, FRAMES, &["--no-nats"]);
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
        .take(PER_ROUND)
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
        .take(PER_ROUND)
        .collect();

    let before = resident_kib(run.id()).expect("it runs");
    let mut most = before;
    let start = Instant::now();
    for round in 1..=ROUNDS {
        client.publish_all(&format!("cvmmap.{key}.status"), &events);
        client.publish_all(&format!("cvmmap.{key}.body"), &bodies);
        let due = start + PAUSE * round;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        most = most.max(resident_kib(run.id()).unwrap_or(0));
    }
    let rate = f64::from(ROUNDS) * PER_ROUND as f64 / start.elapsed().as_secs_f64();
    let text = expect_exit(&run.finish(), 0);
    expect_exit(&twin.finish(), 0);
    let report = json(&scene.path("report.json"));
    let counters = &report["control"]["counters"];
    println!("{rate:.0} of each per second; resident {before} KiB, at most {most} KiB; {counters}");
    assert!(most - before < 16 * 1024, "{before} KiB grew to {most} KiB");
    expect_no_more_lost(&report, &json(&beside.path("report.json")), FRAMES.into());
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
    let all = u64::from(ROUNDS) * PER_ROUND as u64;
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
