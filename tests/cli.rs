//! Every flag, every refusal and every exit code of `cvmmap_streamer` that a command line alone can
//! bring about (contract `cli.md`, sections 1 and 2).

mod common;

use std::process::Stdio;

use common::{Scene, expect_exit, finish, finish_child, streamer};

/// Arguments, the exit code, and words that the message must contain.
type Row = (&'static str, i32, &'static [&'static str]);

const BASE: &str = "--shm-name x --zmq-endpoint ipc:///nonexistent/x --codec h264 --no-nats";

const REFUSALS: &[Row] = &[
    // 1: cannot be parsed
    ("--no-such-flag", 1, &["--no-such-flag"]),
    ("--gop", 1, &["--gop"]),
    ("--gop abc", 1, &["--gop", "abc"]),
    ("--gop 1.5", 1, &["--gop"]),
    ("--bitrate abc", 1, &["--bitrate", "abc"]),
    ("--rtp-pacing sometimes", 1, &["--rtp-pacing", "auto"]),
    ("--realtime high", 1, &["--realtime"]),
    // 2: makes no sense
    ("--encoder magic", 2, &["--encoder", "software"]),
    ("--gop 0", 2, &["--gop 0"]),
    ("--queue-size 0", 2, &["--queue-size 0", "1 to 64"]),
    ("--quality 52", 2, &["--quality 52", "51"]),
    ("--quality 20 --bitrate 1M", 2, &["--quality", "--bitrate"]),
    ("--bitrate 1", 2, &["--bitrate 1", "10k"]),
    ("--b-frames 99", 2, &["--b-frames 99"]),
    ("--fps 0", 2, &["--fps 0"]),
    ("--ingest-max-frames 0", 2, &["--ingest-max-frames 0"]),
    ("--realtime 0", 2, &["--realtime 0", "1 to 99"]),
    ("--realtime 100", 2, &["--realtime 100", "1 to 99"]),
    ("--nats-url nats://x:1", 2, &["--no-nats", "--nats-url"]),
    ("--input-uri cam", 2, &["--shm-name", "--input-uri"]),
    ("--input-file clip.h264", 2, &["--input-file", "annexb"]),
    (
        "--input-mode annexb --input-file clip.h264 --busy-poll",
        2,
        &["--busy-poll", "leave --busy-poll out"],
    ),
    (
        "--intra-refresh --b-frames 2",
        2,
        &["--intra-refresh", "--b-frames 0"],
    ),
    (
        "--intra-refresh --gop 1",
        2,
        &["--intra-refresh", "--gop 2"],
    ),
    (
        "--encoder passthrough --intra-refresh",
        2,
        &["--intra-refresh", "leave it out"],
    ),
    ("--rtp", 2, &["--rtp-endpoint"]),
    ("--rtp --rtp-endpoint nowhere", 2, &["nowhere", "HOST:PORT"]),
    ("--rtp --rtp-endpoint ::1:5004", 2, &["brackets"]),
    ("--rtp --rtp-endpoint host:0", 2, &["1 to 65535"]),
    (
        "--rtp-endpoint 127.0.0.1:5004",
        2,
        &["--rtp-endpoint", "add --rtp"],
    ),
    ("--rtp-sdp x.sdp", 2, &["--rtp-sdp", "add --rtp"]),
    (
        "--rtp-payload-type 97",
        2,
        &["--rtp-payload-type", "add --rtp"],
    ),
    ("--rtp-mtu 1000", 2, &["--rtp-mtu", "add --rtp"]),
    ("--rtp-pacing off", 2, &["--rtp-pacing", "add --rtp"]),
    (
        "--rtp --rtp-endpoint h:1 --rtp-payload-type 95",
        2,
        &["95", "96 to 127"],
    ),
    (
        "--rtp --rtp-endpoint h:1 --rtp-payload-type 128",
        2,
        &["128", "96 to 127"],
    ),
    (
        "--rtp --rtp-endpoint h:1 --rtp-mtu 299",
        2,
        &["--rtp-mtu 299"],
    ),
    (
        "--rtp --rtp-endpoint h:1 --rtp-sdp a --rtp-sdp b",
        2,
        &["--rtp-sdp"],
    ),
    ("--rtmp", 2, &["--rtmp-url"]),
    ("--rtmp-url rtmp://h/a/k", 2, &["--rtmp-url", "add --rtmp"]),
    ("--rtmp-mode enhanced", 2, &["--rtmp-mode", "add --rtmp"]),
    (
        "--rtmp-max-retries 3",
        2,
        &["--rtmp-max-retries", "add --rtmp"],
    ),
    (
        "--rtmp --rtmp-url rtmp://h/a/k --rtmp-mode domestic",
        2,
        &["--rtmp-mode", "--codec"],
    ),
    (
        "--rtmp --rtmp-url http://h/a/k",
        2,
        &["--rtmp-url", "rtmp://"],
    ),
    (
        "--rtmp --rtmp-url-file /nonexistent/urls",
        2,
        &["--rtmp-url-file", "/nonexistent/urls"],
    ),
    (
        "--dummy-label abcdefghijklmnopqrstuvwxy",
        2,
        &["--dummy-label exceeds 24 bytes"],
    ),
    ("--dummy-fps 0 --input-mode dummy", 2, &["--dummy-fps 0"]),
    (
        "--dummy-width 1 --input-mode dummy",
        2,
        &["--dummy-width 1"],
    ),
    (
        "--encoder passthrough --bitrate 1M",
        2,
        &["--bitrate", "--encoder passthrough"],
    ),
];

#[test]
fn every_refusal_has_its_code_and_names_the_flag() {
    for (arguments, code, words) in REFUSALS {
        let output = finish(streamer().args(BASE.split(' ')).args(arguments.split(' ')));
        let text = expect_exit(&output, *code);
        for word in *words {
            assert!(text.contains(word), "{arguments}: no {word:?} in\n{text}");
        }
    }
}

#[test]
fn what_is_missing_is_named_with_what_to_give() {
    let rows: &[Row] = &[
        ("stray", 1, &["stray"]),
        ("--codec", 1, &["--codec"]),
        ("--codec vp9", 2, &["--codec", "vp9", "h264"]),
        ("", 2, &["--codec"]),
        ("--codec h264", 2, &["--shm-name", "--input-uri"]),
        ("--codec h264 --shm-name x", 2, &["--zmq-endpoint"]),
        ("--codec h264 --zmq-endpoint ipc:///x", 2, &["--shm-name"]),
        (
            "--codec h264 --shm-name a/b --zmq-endpoint ipc:///x",
            2,
            &["--shm-name a/b"],
        ),
        (
            "--codec h264 --shm-name x --zmq-endpoint nonsense",
            2,
            &["nonsense", "ipc://"],
        ),
        ("--codec h264 --input-uri a/b", 2, &["--input-uri a/b"]),
        ("--codec h264 --input-mode annexb", 2, &["--input-file"]),
        (
            "--codec h265 --input-uri cam --rtmp --rtmp-url rtmp://h/a/k",
            2,
            &["--rtmp-mode", "enhanced", "domestic"],
        ),
        (
            "--codec h264 --input-mode annexb --input-file /nonexistent/x.h264",
            5,
            &["/nonexistent/x.h264"],
        ),
    ];
    for (arguments, code, words) in rows {
        let output = finish(streamer().args(arguments.split_whitespace()));
        let text = expect_exit(&output, *code);
        for word in *words {
            assert!(text.contains(word), "{arguments}: no {word:?} in\n{text}");
        }
    }
}

#[test]
fn help_version_completions_and_man_page_exit_0() {
    for (arguments, word) in [
        (&["--help"][..], "Examples:"),
        (&["-h"], "Examples:"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
        (&["completions", "bash"], "_cvmmap_streamer"),
        (&["completions", "zsh"], "#compdef cvmmap_streamer"),
        (&["completions", "fish"], "complete -c cvmmap_streamer"),
        (&["man"], ".TH cvmmap_streamer"),
    ] {
        let text = expect_exit(&finish(streamer().args(arguments)), 0);
        assert!(text.contains(word), "{arguments:?}: no {word:?} in\n{text}");
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_reason_to_fail() {
    let scene = Scene::new();
    let names = scene.names();
    let mut stream: Vec<&str> = names.iter().map(String::as_str).collect();
    stream.extend(
        "--input-mode dummy --dummy-frames 3 --dummy-width 160 --dummy-height 96 --no-nats \
         --codec h264 --encoder software"
            .split_whitespace(),
    );
    for (arguments, code) in [
        (&["man"][..], 0),
        (&["completions", "bash"], 0),
        (&["discover", "--json", "--nats-url", "nope://"], 2),
        (&stream, 0),
    ] {
        for closed in ["stdout", "stderr"] {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            let mut command = streamer();
            command.args(arguments).stdin(Stdio::null());
            match closed {
                "stdout" => command.stdout(writer).stderr(Stdio::piped()),
                _ => command.stderr(writer).stdout(Stdio::piped()),
            };
            let child = command.spawn().expect("the binary starts");
            let output = finish_child(child);
            expect_exit(&output, code);
        }
    }
}

#[test]
fn the_variable_names_a_nats_server_and_is_no_flag_that_was_given() {
    const VARIABLE: &str = "CVMMAP_NATS_URL";
    let scene = Scene::new();
    let output = finish(
        streamer()
            .env(VARIABLE, "nats://127.0.0.1:9")
            .args(scene.names())
            .args("--run-mode ingest --no-nats --ingest-idle-timeout-ms 200".split(' ')),
    );
    expect_exit(&output, 124);
    let ask = |variable: &str, arguments: &[&str]| {
        let mut command = streamer();
        finish(
            command
                .env(VARIABLE, variable)
                .arg("discover")
                .args(arguments),
        )
    };
    let text = expect_exit(&ask("http://u:pw@x", &[]), 2);
    assert!(text.contains(VARIABLE) && !text.contains("pw"), "{text}");
    let text = expect_exit(&ask("nats://127.0.0.1:9", &[]), 5);
    assert!(text.contains("nats://127.0.0.1:9"), "{text}");
    let flag = ["--nats-url", "nats://127.0.0.1:13"];
    let text = expect_exit(&ask("nats://127.0.0.1:9", &flag), 5);
    assert!(text.contains("nats://127.0.0.1:13"), "{text}");
}

#[test]
fn readme_and_help_name_the_same_flags() {
    let help = expect_exit(&finish(streamer().arg("--help")), 0);
    let readme = include_str!("../README.md");
    let tables = &readme[readme.find("## Flags").unwrap()..readme.find("## Exit codes").unwrap()];
    let flags = |text: &str| -> std::collections::BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter(|word| word.starts_with("--") && word.len() > 3)
            .map(str::to_owned)
            .collect()
    };
    let mut in_help: std::collections::BTreeSet<_> = help
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .flat_map(|line| flags(line).into_iter().take(1))
        .collect();
    // The alias is for people who come from the original; help keeps to one name.
    in_help.insert("--encoder-device".to_owned());
    in_help.remove("--help");
    in_help.remove("--version");
    in_help.remove("--verbose");
    let mut in_readme = flags(tables);
    in_readme.remove("--help");
    assert_eq!(in_readme, in_help);
}

#[test]
fn readme_has_the_exit_codes_of_the_program() {
    let readme = include_str!("../README.md");
    for (code, meaning) in cvmmap_streamer::exit::TABLE {
        let row = format!("| {code} | {meaning} |");
        assert!(readme.contains(&row), "README lacks: {row}");
    }
}

#[test]
fn aliases_of_the_original_are_understood() {
    for arguments in [
        "--encoder-device software",
        "--encoder nvidia --ingest-idle-timeout-ms 100",
        "--shm-name /x",
    ] {
        let scene = Scene::new();
        let mut command = streamer();
        if !arguments.contains("--shm-name") {
            command.args(["--shm-name", &scene.shm_name]);
        }
        command
            .args(["--zmq-endpoint", &scene.zmq_endpoint()])
            .args("--codec h264 --no-nats --ingest-idle-timeout-ms 100".split(' '));
        if arguments.contains("idle") {
            command = streamer();
            command
                .args(scene.names())
                .args("--codec h264 --no-nats".split(' '));
        }
        // Nobody publishes: waiting ends with 124, which is after the arguments were accepted.
        let output = finish(command.args(arguments.split(' ')));
        expect_exit(&output, 124);
    }
}

#[test]
fn nobody_there_within_the_idle_timeout_is_124() {
    let scene = Scene::new();
    let output = finish(
        streamer()
            .args(scene.names())
            .args("--run-mode ingest --no-nats --ingest-idle-timeout-ms 200".split(' ')),
    );
    let text = expect_exit(&output, 124);
    assert!(text.contains("--ingest-idle-timeout-ms 200"), "{text}");
}

#[test]
fn flags_of_the_built_in_producer_are_named_where_they_mean_nothing() {
    let scene = Scene::new();
    let output = finish(
        streamer()
            .args(scene.names())
            .args("--run-mode ingest --no-nats --ingest-idle-timeout-ms 200".split(' '))
            .args("--dummy-width 320 --dummy-fps 5".split(' ')),
    );
    let text = expect_exit(&output, 124);
    assert!(
        text.contains("--dummy-fps, --dummy-width: ignored without --input-mode dummy"),
        "{text}"
    );
}
