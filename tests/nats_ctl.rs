//! `ctl` and `discover` against `cvmmap_sim`, against nobody, and against a producer that answers
//! nonsense; and the streamer's own service. The server is a real `nats-server`.

mod common;
mod nats_support;

use std::time::Duration;

use common::{LIMIT, expect_exit, finish, streamer};
use nats_support::{Server, Stage, wait_for};
use serde_json::{Value, json};

fn command(server: &Server, arguments: &[&str]) -> std::process::Output {
    finish(
        streamer()
            .args(arguments)
            .args(["--nats-url", &server.url()]),
    )
}

/// `ctl` of a stage's producer, as JSON.
#[track_caller]
fn ctl(server: &Server, stage: &Stage, arguments: &str, exit: i32) -> Value {
    let target = ["ctl", "--json", "--input-uri", &stage.label];
    let all: Vec<&str> = target
        .into_iter()
        .chain(arguments.split_whitespace())
        .collect();
    let output = command(server, &all);
    let text = expect_exit(&output, exit);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments}: {e}\n{text}"))
}

#[test]
fn every_way_of_no_answer_has_its_code_and_words() {
    let (stage, server, absent) = (Stage::new(), Server::running(), Server::absent());
    // No server.
    for arguments in [&["discover"][..], &["ctl", "--input-uri", "cam", "info"]] {
        let text = expect_exit(&command(&absent, arguments), 5);
        assert!(text.contains("no NATS server at"), "{text}");
    }
    // Nobody.
    let text = expect_exit(&command(&server, &["discover"]), 4);
    assert!(text.contains("no producer answered"), "{text}");
    let text = expect_exit(&command(&server, &["ctl", "info"]), 4);
    assert!(text.contains("--input-uri NAME"), "{text}");
    let reply = ctl(&server, &stage, "info", 4);
    assert_eq!(reply["error"], "no-responders");
    let reply = ctl(&server, &stage, "stats", 4);
    assert_eq!(reply["ok"], false);

    // Somebody who answers nothing, then nonsense, then zero bytes, then a refusal.
    let (nats, messages) = server.client();
    let subject = format!("cvmmap.{}.producer.>", stage.key());
    nats.subscribe(&subject, None).unwrap();
    let reply = ctl(&server, &stage, "info --timeout-ms 200", 124);
    assert_eq!(reply["error"], "no-answer");
    let answers: [(&str, &[u8], i32, &str); 4] = [
        ("info", &[0xFF, 0xFF], 7, "bad-reply"),
        ("info", &[0x08, 0x01], 7, "unknown-cmd"),
        ("reset", &[], 0, ""),
        ("reset", &[0x08, 0x03], 7, "unsupported"),
    ];
    for (what, bytes, exit, error) in answers {
        while messages.try_recv().is_ok() {}
        let reply = std::thread::scope(|scope| {
            let arguments = format!("{what} --timeout-ms 30000");
            let (stage, server) = (&stage, &server);
            let asking = scope.spawn(move || ctl(server, stage, &arguments, exit));
            let asked = messages.recv_timeout(LIMIT).expect("asked");
            nats.publish(
                asked.reply.as_deref().expect("a reply subject"),
                None,
                bytes,
            );
            asking.join().expect("ctl")
        });
        match error {
            "" => assert_eq!(reply, json!({"ok": true})),
            error => assert_eq!(reply["error"], error, "{bytes:?}"),
        }
    }
    // Arguments.
    for arguments in [
        &["ctl", "--input-uri", "a/b", "info"][..],
        &["ctl", "--shm-name", "a b", "info"],
        &["ctl", "--input-uri", "cam"],
        &["discover", "--nats-ca", "/nonexistent/ca.pem"],
    ] {
        expect_exit(&command(&server, arguments), 2);
    }
    let text = expect_exit(
        &finish(streamer().args(["discover", "--nats-url", "http://u:pw@x"])),
        2,
    );
    assert!(!text.contains("pw"), "{text}");
}

#[test]
fn a_producer_is_found_described_and_controlled() {
    let (stage, server) = (Stage::new(), Server::running());
    let sim = stage.sim(
        &server,
        "--width 160 --height 96 --frames 40 --fps 20 --ending loop --media-time --camera --bodies 1",
    );
    let found = wait_for("the producer", || {
        let output = command(&server, &["discover", "--json"]);
        let all: Value = serde_json::from_slice(&output.stdout).ok()?;
        all.get(0).cloned()
    });
    assert_eq!(found["instance"], stage.label.as_str());
    assert_eq!(found["shm_name"], stage.key().as_str());
    assert_eq!(found["retired_control"], false);

    let info = ctl(&server, &stage, "info", 0);
    assert_eq!(info["kind"], "finite");
    assert_eq!(info["timestamp_domain"], "media-time");
    assert_eq!(
        info["flags"],
        json!(["auto-loop", "has-body", "loop-emits-reset"])
    );
    assert_eq!(info["duration_ns"], 2_000_000_000_u64);
    // The only one that is there needs no name.
    let text = expect_exit(&command(&server, &["ctl", "info"]), 0);
    assert!(
        text.contains("a finite source, stamped with media time, 2.000 s"),
        "{text}"
    );

    assert_eq!(ctl(&server, &stage, "reset", 0), json!({"ok": true}));
    assert_eq!(ctl(&server, &stage, "playlist", 0)["has_playlist"], false);
    let list = ctl(&server, &stage, "playlist apply 320x180 160x96", 0);
    assert_eq!(list["paths"], json!(["320x180", "160x96"]));
    assert_eq!(list["current_path"], "320x180");

    let camera = ctl(&server, &stage, "camera capabilities", 0);
    assert_eq!(camera["settings"], json!(["exposure", "gain"]));
    let state = ctl(&server, &stage, "camera set gain -1", 0);
    assert_eq!(state["single"], json!({"setting": "gain", "value": -1}));
    ctl(&server, &stage, "camera set exposure 64", 0);
    let state = ctl(&server, &stage, "camera get exposure", 0);
    assert_eq!(state["single"]["value"], 64);
    let refused = ctl(&server, &stage, "camera set exposure 101", 7);
    assert_eq!(refused["error"], "out-of-range");
    let refused = ctl(&server, &stage, "camera set-range exposure -5 5", 7);
    assert_eq!(refused["error"], "unsupported");
    let refused = ctl(&server, &stage, "camera get sharpness", 2);
    assert_eq!(refused["error"], "arguments");
    expect_exit(&sim.interrupt(), 0);
    assert_eq!(ctl(&server, &stage, "info", 4)["error"], "no-responders");
}

#[test]
fn several_producers_are_listed_with_how_to_choose() {
    let (one, two, server) = (Stage::new(), Stage::new(), Server::running());
    let _sims = [&one, &two].map(|stage| stage.sim(&server, "--width 64 --height 64 --fps 5"));
    wait_for("both", || {
        let output = command(&server, &["discover", "--json"]);
        let all: Value = serde_json::from_slice(&output.stdout).ok()?;
        (all.as_array()?.len() == 2).then_some(())
    });
    let output = command(
        &server,
        &["--input-uri", "discover:", "--run-mode", "ingest"],
    );
    let text = expect_exit(&output, 2);
    for stage in [&one, &two] {
        assert!(
            text.contains(&format!("--shm-name {}", stage.key())),
            "{text}"
        );
    }
    let text = expect_exit(&command(&server, &["ctl", "reset"]), 2);
    assert!(text.contains("--shm-name"), "{text}");
}

#[test]
fn discover_attaches_to_the_one_producer_even_if_it_comes_late() {
    let (stage, mut server) = (Stage::new(), Server::absent());
    let run = nats_support::Guard::spawn(
        streamer()
            .args(
                "--input-uri discover: --run-mode ingest --ingest-max-frames 5 --nats-url"
                    .split(' '),
            )
            .arg(server.url())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped()),
    );
    server.start();
    let _sim = stage.sim(&server, "--width 64 --height 64 --fps 10");
    let text = expect_exit(&run.finish(), 0);
    assert!(text.contains(&stage.key()), "{text}");
    let idle = command(
        &Server::absent(),
        &[
            "--input-uri",
            "discover:",
            "--run-mode",
            "ingest",
            "--ingest-idle-timeout-ms",
            "300",
        ],
    );
    expect_exit(&idle, 124);
}

#[test]
fn a_running_streamer_serves_stats_key_frames_and_bit_rates() {
    let (stage, server) = (Stage::new(), Server::running());
    let _sim = stage.sim(&server, "--width 320 --height 180 --fps 10");
    let run = stage.streamer(
        &server,
        "--codec h264 --encoder software --gop 100000 --bitrate 1M --no-status",
    );
    let client = server.client();
    stage.wait_for_frames(&client, 3);

    let stats = ctl(&server, &stage, "stats", 0);
    assert_eq!(stats["stats"]["encoder"]["bitrate"], 1_000_000);
    assert_eq!(stats["stats"]["reason"], Value::Null);
    let key_frames = |stats: &Value| stats["encode"]["key_frames"].as_u64().unwrap();
    let before = key_frames(&stats["stats"]);
    ctl(&server, &stage, "keyframe", 0);
    wait_for("a key frame", || {
        (key_frames(&stage.live(&client)?) == before + 1).then_some(())
    });
    let reply = ctl(&server, &stage, "bitrate 300k", 0);
    assert_eq!(reply["bits_per_second"], 300_000);
    assert_eq!(reply["encoder"], "openh264");
    let stats = wait_for("fresh statistics", || {
        let stats = stage.live(&client)?;
        (stats["encoder"]["bitrate"] == 300_000).then_some(stats)
    });
    assert_eq!(stats["encoder"]["name"], "openh264");
    assert_eq!(ctl(&server, &stage, "bitrate 1", 7)["error"], "refused-400");

    // As NATS micro has it (ADR 32).
    let ask = |subject: &str, data: &[u8]| {
        client
            .0
            .request(&client.1, subject, data, Duration::from_secs(20))
            .expect("an answer")
    };
    let read = |answer: &nats_support::nats::Message| -> Value {
        serde_json::from_slice(&answer.data).expect("JSON")
    };
    let info = read(&ask("$SRV.INFO.cvmmap_streamer", b""));
    assert_eq!(info["name"], "cvmmap_streamer");
    assert_eq!(info["version"], "0.1.0");
    let names: Vec<_> = info["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["stats", "keyframe", "bitrate"]);
    let id = info["id"].as_str().unwrap();
    let stats = read(&ask(&format!("$SRV.STATS.cvmmap_streamer.{id}"), b""));
    assert!(stats["endpoints"][2]["num_requests"].as_u64() >= Some(2));
    assert_eq!(stats["endpoints"][2]["num_errors"], 1);
    let own = info["metadata"]["instance_subject_prefix"]
        .as_str()
        .unwrap();
    let refused = ask(&format!("{own}.bitrate"), b"nonsense");
    assert!(
        refused.headers.contains("Nats-Service-Error-Code: 400")
            || refused.headers.contains("Nats-Service-Error-Code:400"),
        "{}",
        refused.headers
    );
    assert_eq!(read(&refused)["code"], 400);
    let by_id = ctl(&server, &stage, &format!("keyframe --streamer {id}"), 0);
    assert_eq!(by_id["ok"], true);

    expect_exit(&run.interrupt(), 0);
    let report = stage.report();
    assert_eq!(report["control"]["source"]["kind"], "live");
    assert_eq!(
        report["control"]["source"]["timestamp_domain"],
        "unix-epoch"
    );
}
