//! `ctl` and `discover` against `cvmmap_sim`, against nobody, and against a producer that answers
//! nonsense; and the streamer's own service. The server is a real `nats-server`.

mod common;
mod nats_support;

use std::net::TcpListener;
use std::process::{Output, Stdio};
use std::time::Duration;

use common::{LIMIT, expect_exit, finish, streamer};
use nats_support::{Guard, Server, Stage, accept, wait_for};
use serde_json::{Value, json};

fn command(server: &Server, arguments: &[&str]) -> Output {
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

/// Runs a command while `answer` says what is answered to whom.
fn answered(
    server: &Server,
    arguments: &[&str],
    answer: impl Fn(&str) -> Option<Vec<u8>>,
) -> Output {
    let (nats, messages) = server.client();
    for subject in ["$SRV.PING.>", "$SRV.INFO.>", "cvmmap.>"] {
        nats.subscribe(subject, None).unwrap();
    }
    // It comes behind the subscriptions.
    nats.publish("cvmmap.ready", None, b"");
    messages.recv_timeout(LIMIT).expect("a message of our own");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| command(server, arguments));
        while !asking.is_finished() {
            let asked = messages.recv_timeout(Duration::from_millis(20)).ok();
            let answer = asked.and_then(|asked| Some((answer(&asked.subject)?, asked.reply?)));
            if let Some((bytes, reply)) = answer {
                nats.publish(&reply, None, &bytes);
            }
        }
        asking.join().expect("the command")
    })
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
    nats.subscribe(&format!("cvmmap.{}.streamer.>", stage.key()), None)
        .unwrap();
    // An encoder is given its three seconds, whatever the limit.
    for (action, millis) in [
        ("info", 200),
        ("stats", 200),
        ("keyframe", 200),
        ("bitrate 1M", 4000),
    ] {
        let reply = ctl(&server, &stage, &format!("{action} --timeout-ms 200"), 124);
        assert_eq!(reply["error"], "no-answer");
        let words = reply["message"].as_str().expect("words");
        assert!(words.ends_with(&format!("within {millis} ms")), "{words}");
    }
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
fn descriptions_that_cannot_be_used_are_told_and_not_taken_for_nobody() {
    let server = Server::running();
    let garbage = |subject: &str| subject.starts_with("$SRV.PING").then(|| b"[]".to_vec());
    for arguments in [&["discover"][..], &["ctl", "info"]] {
        let text = expect_exit(&answered(&server, arguments, garbage), 7);
        assert!(
            text.contains("left out: an answer to PING is none"),
            "{text}"
        );
    }
    let output = answered(&server, &["ctl", "--json", "info"], garbage);
    let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(reply["error"], "bad-reply");
}

#[test]
fn what_others_say_has_nothing_that_a_terminal_obeys() {
    let server = Server::running();
    // Escape sequences of ECMA-48 in both forms: ESC ] and the single character CSI.
    const ODD: &str = "\x1b]0;x\x07\u{9b}2Jend";
    let answer = |subject: &str| {
        let service = json!({
            "name": "cvmmap_producer", "id": "A", "version": "0.1.0",
            "metadata": {
                "instance_name": "cam", "nats_target_key": "cvmmap_cam", "shm_name": "cvmmap_cam",
                "zmq_addr": "ipc:///tmp/cam", "backend": ODD, "build_tag": ODD,
            },
        });
        let refusal = json!({"ok": false, "code": 422, "error": ODD});
        Some(match subject {
            "cvmmap.cvmmap_cam.producer.source.playlist.info" => {
                // PlaylistResponse: playlist_info = 2, in which has_playlist = 1 and paths = 2.
                let mut list = vec![0x08, 1, 0x12, ODD.len() as u8];
                list.extend(ODD.bytes());
                let mut reply = vec![0x12, list.len() as u8];
                reply.extend(list);
                reply
            }
            "cvmmap.cvmmap_cam.streamer.keyframe" => refusal.to_string().into_bytes(),
            _ if subject.starts_with("$SRV") => service.to_string().into_bytes(),
            _ => return None,
        })
    };
    let patient = "ctl --input-uri cam --timeout-ms 60000";
    for (arguments, exit) in [
        ("discover --timeout-ms 3000".to_owned(), 0),
        (format!("{patient} playlist"), 0),
        (format!("{patient} keyframe"), 7),
        (format!("{patient} --json playlist"), 0),
        (format!("{patient} --json keyframe"), 7),
    ] {
        let words: Vec<_> = arguments.split(' ').collect();
        let output = answered(&server, &words, answer);
        let text = expect_exit(&output, exit);
        assert!(text.contains("2Jend"), "{text}");
        let obeyed = |c: char| c.is_control() && c != '\n';
        assert_eq!(text.find(obeyed), None, "{arguments}: {text:?}");
        if arguments.ends_with("--json playlist") {
            let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(reply["paths"], json!([ODD]), "nothing is lost in JSON");
        }
    }
}

#[test]
fn a_producer_is_found_described_and_controlled() {
    let (stage, server) = (Stage::new(), Server::running());
    let mut sim = stage.sim(
        &server,
        "--width 160 --height 96 --frames 40 --fps 20 --ending loop --media-time --camera --bodies 1",
    );
    let found = sim.wait_for("the producer", || {
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
    let mut sims = [&one, &two].map(|stage| stage.sim(&server, "--width 64 --height 64 --fps 5"));
    for (n, sim) in (1..).zip(&mut sims) {
        sim.wait_for(&format!("{n} producers"), || {
            let output = command(&server, &["discover", "--json"]);
            let all: Value = serde_json::from_slice(&output.stdout).ok()?;
            (all.as_array()?.len() >= n).then_some(())
        });
    }
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
    let run = Guard::spawn(
        streamer()
            .args(
                "--input-uri discover: --run-mode ingest --ingest-max-frames 5 --nats-url"
                    .split(' '),
            )
            .arg(server.url())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
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

/// A streamer that looks for a producer which is not there.
fn searching(stage: &Stage, server: &Server) -> Guard {
    let arguments = "--input-uri discover: --run-mode ingest --nats-url";
    Guard::spawn_with_log(
        streamer().args(arguments.split(' ')).arg(server.url()),
        stage.path("search.log"),
    )
}

#[test]
fn discovery_keeps_its_connection_while_it_looks() {
    let (stage, server) = (Stage::new(), Server::running());
    let (nats, messages) = server.client();
    nats.subscribe("$SRV.PING.cvmmap_producer", None).unwrap();
    let run = searching(&stage, &server);
    // The server pings a connection within its first seconds: one that is let go hears it.
    for _ in 0..4 {
        messages.recv_timeout(LIMIT).expect("another look");
    }
    let text = expect_exit(&run.interrupt(), 0);
    assert!(!text.contains("the NATS server is gone"), "{text}");
}

#[test]
fn discovery_has_four_attempts_at_a_silent_server_at_most() {
    let stage = Stage::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut run = searching(&stage, &Server::played(&silent));
    let _attempts = [(); 4].map(|()| accept(&silent));
    let log = stage.path("search.log");
    run.wait_for("the end of its patience", || {
        let said = std::fs::read_to_string(&log).ok()?;
        said.contains("earlier attempts still hang").then_some(())
    });
    silent.set_nonblocking(true).expect("a socket");
    assert!(silent.accept().is_err(), "a fifth attempt");
    expect_exit(&run.interrupt(), 0);
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
