//! Stream keys and passwords: used, and nowhere to be read, in the process list, in what is said, in
//! the report, in the session description and in the answers over NATS.

mod common;
mod nats_support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use common::{Program, Scene, expect_exit, finish, finish_child, reserve_tcp, streamer, testkit};
use nats_support::{Guard, Server, json};
use serde_json::Value;

const KEY: &str = "k3yOfTheStream";
const QUERY: &str = "qu3ryOfTheKey";
const PASSWORD: &str = "pa55 w%rd";
const PASSWORD_IN_URL: &str = "pa55%20w%25rd";

/// Every form that a secret could be shown in.
fn secrets() -> Vec<String> {
    [KEY, QUERY, PASSWORD, PASSWORD_IN_URL, "pa55"]
        .map(str::to_owned)
        .to_vec()
}

#[track_caller]
fn nothing_secret_in(what: &str, text: &str) {
    for secret in secrets() {
        assert!(!text.contains(&secret), "{what} shows {secret}:\n{text}");
    }
}

/// Arguments of a process, as `ps` has them.
fn arguments_of(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).expect("a running process");
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Streams to a server that takes the stream and to one that does not exist, with a NATS server that
/// wants a password, saying all that can be said.
fn stream(by_file: bool) {
    let scene = Scene::new();
    let mut nats = Server::absent();
    nats.start_with(&["--user", "me", "--pass", PASSWORD]);
    let (rtmp, nobody) = (reserve_tcp(), reserve_tcp());
    let referee = Program::start(
        testkit("rtmp_stub_tester")
            .args(["--mode", "h264", "--listen-port", &rtmp.port.to_string()])
            .args("--timeout-ms 200000 --silence-ms 60000 --video-threshold 10 --json".split(' '))
            .arg(scene.path("rtmp.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let url = |port| format!("rtmp://127.0.0.1:{port}/live/{KEY}?token={QUERY}");
    let mut command = streamer();
    command
        .args(scene.names())
        .args(
            "-vv --input-mode dummy --dummy-width 160 --dummy-height 96 --dummy-fps 10 --codec h264 \
             --encoder software --no-status --rtmp --rtp --rtp-endpoint 127.0.0.1:9"
                .split_whitespace(),
        )
        .arg("--rtp-sdp")
        .arg(scene.path("stream.sdp"))
        .arg("--report-json")
        .arg(scene.path("report.json"))
        .env(
            "CVMMAP_NATS_URL",
            format!("nats://me:{PASSWORD_IN_URL}@127.0.0.1:{}", nats.port),
        )
        .stdin(Stdio::null());
    if by_file {
        let list = format!("# two\n{}\n{}\n", url(rtmp.port), url(nobody.port));
        std::fs::write(scene.path("urls"), list).expect("a file");
        command.arg("--rtmp-url-file").arg(scene.path("urls"));
    } else {
        command.env("CVMMAP_RTMP_URL", url(rtmp.port));
    }
    let mut run = Guard::spawn_with_log(&mut command, scene.path("log"));
    let (run_id, told) = (run.id(), format!("127.0.0.1:{}", rtmp.port));

    let arguments = run.wait_for("its arguments", || {
        Some(arguments_of(run_id)).filter(|arguments| arguments.contains("--rtmp"))
    });
    nothing_secret_in("the process list", &arguments);
    let stats = run.wait_for("an answer over NATS", || {
        let output = finish(
            streamer()
                .args(["ctl", "--json", "--shm-name", &scene.shm_name, "stats"])
                .env(
                    "CVMMAP_NATS_URL",
                    format!("nats://me:{PASSWORD_IN_URL}@127.0.0.1:{}", nats.port),
                ),
        );
        nothing_secret_in("ctl", &common::text(&output));
        let running = |stats: &Value| {
            let sinks = stats["stats"]["sinks"].as_array();
            let sent = |sink: &Value| {
                sink["name"]
                    .as_str()
                    .is_some_and(|name| name.contains(&told))
                    && sink["access_units"].as_u64() >= Some(15)
            };
            sinks.is_some_and(|sinks| sinks.iter().any(sent))
        };
        let stats: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        (output.status.success() && stats.as_ref().is_some_and(running))
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    nothing_secret_in("the answer over NATS", &stats);
    let text = expect_exit(&run.interrupt(), 0);
    // It says goodbye, which ends the referee's run.
    expect_exit(&finish_child(referee), 0);

    // Controls: the secrets were used, and the server was told.
    let heard = json(&scene.path("rtmp.json"));
    let expected = format!("{KEY}?token={QUERY}");
    let heard = &heard["connections"][0]["stream_name"];
    assert_eq!(*heard, expected.as_str());
    assert!(text.contains("127.0.0.1"), "{text}");
    nothing_secret_in("the log", &text);
    let report = std::fs::read_to_string(scene.path("report.json")).expect("a report");
    assert!(report.contains("rtmp://127.0.0.1"), "{report}");
    nothing_secret_in("the report", &report);
    let sdp = std::fs::read_to_string(scene.path("stream.sdp")).expect("a description");
    nothing_secret_in("the description", &sdp);
}

#[test]
fn addresses_from_a_file_and_a_password_from_the_environment_are_shown_nowhere() {
    stream(true);
}

#[test]
fn an_address_from_the_environment_is_shown_nowhere() {
    stream(false);
}

/// What cannot be used is refused without being repeated.
#[test]
fn a_wrong_address_is_refused_without_its_secrets() {
    let scene = Scene::new();
    let file = |text: &str| {
        std::fs::write(scene.path("urls"), text).expect("a file");
        scene.path("urls").display().to_string()
    };
    let with_user = format!("rtmp://me:{KEY}@host/live/{KEY}");
    let no_stream = format!("rtmp://host:{KEY}/{QUERY}");
    let not_rtmp = format!("https://host/live/{KEY}?{QUERY}");
    let bad_escape = format!("nats://me:pa55%zz{KEY}@host");
    let bad_host = format!("nats://me:{KEY}@ho st");
    for (flag, value) in [
        ("--rtmp-url", with_user.clone()),
        ("--rtmp-url", no_stream.clone()),
        ("--rtmp-url", not_rtmp.clone()),
        (
            "--rtmp-url-file",
            file(&format!("{with_user}\n{not_rtmp}\n")),
        ),
        ("--nats-url", bad_escape),
        ("--nats-url", bad_host),
    ] {
        let output = finish(
            streamer()
                .args(scene.names())
                .args("--codec h264 --rtmp --rtmp-url rtmp://127.0.0.1:9/a/b".split(' '))
                .args([flag, &value]),
        );
        let text = expect_exit(&output, 2);
        assert!(text.contains(flag), "{text}");
        nothing_secret_in(flag, &text);
    }
    for (variable, value) in [
        ("CVMMAP_RTMP_URL", with_user),
        ("CVMMAP_NATS_URL", format!("nats://me:{KEY}@ho st")),
    ] {
        let output = finish(
            streamer()
                .args(scene.names())
                .args("--codec h264 --rtmp".split(' '))
                .env(variable, value),
        );
        let text = expect_exit(&output, 2);
        nothing_secret_in(variable, &text);
    }
}

/// A folder that everybody may write: nobody's link there makes us write elsewhere, and what we write is
/// whole and ours.
#[test]
fn links_in_a_folder_of_everybodys_are_not_written_through() {
    let scene = Scene::new();
    let open = scene.path("open");
    std::fs::create_dir(&open).expect("a folder");
    std::fs::set_permissions(&open, Permissions::from_mode(0o1777)).expect("its mode");
    let precious = scene.path("precious");
    std::fs::write(&precious, "precious").expect("a file");
    let mut strangers = true;
    for name in ["stream.sdp", "report.json", "bodies.jsonl"] {
        let link = open.join(name);
        std::os::unix::fs::symlink(&precious, &link).expect("a link");
        // Someone else's, where we may make one for them.
        strangers &= std::os::unix::fs::lchown(&link, Some(65534), Some(65534)).is_ok();
    }
    let run = |bodies: &str| {
        finish(
            streamer()
                .args(scene.names())
                .args(
                    "--input-mode dummy --dummy-frames 5 --dummy-width 160 --dummy-height 96 \
                     --codec h264 --encoder software --rtp --rtp-endpoint 127.0.0.1:9 \
                     --nats-url nats://127.0.0.1:9"
                        .split_whitespace(),
                )
                .arg("--rtp-sdp")
                .arg(open.join("stream.sdp"))
                .arg("--report-json")
                .arg(open.join("report.json"))
                .args(["--body-output", bodies]),
        )
    };
    expect_exit(&run("none"), 0);
    for name in ["stream.sdp", "report.json"] {
        let about = open.join(name).symlink_metadata().expect("a file");
        assert!(about.is_file(), "{name} is no file of its own");
        assert!(about.len() > 100, "{name} is empty");
    }
    // Lines are appended to whatever is there, so a link of someone else's is refused.
    if strangers {
        let jsonl = open.join("bodies.jsonl");
        let text = expect_exit(&run(&format!("jsonl:{}", jsonl.display())), 5);
        assert!(text.contains("link"), "{text}");
    }
    let kept = std::fs::read(&precious).expect("the file");
    assert_eq!(kept, b"precious", "written through a link");
}
