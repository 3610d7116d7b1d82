//! The manual tests of README, run as they stand there but for names, ports and where the binaries
//! are.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Scene, finish, free_port_pair, testkit, text};

const README: &str = include_str!("../README.md");

/// The shell lines of the code block that follows `heading`.
fn block_after(heading: &str) -> &'static str {
    let from = README
        .find(heading)
        .unwrap_or_else(|| panic!("README has no {heading:?}"));
    let start = README[from..].find("```sh\n").expect("a block") + from + "```sh\n".len();
    let end = README[start..].find("```").expect("its end") + start;
    &README[start..end]
}

/// `commands` with this test's binaries, instance name and port.
fn localised(commands: &str, scene: &Scene, port: (&str, u16)) -> String {
    // A shell goes on behind a program that is not there, and the streamer would wait for it.
    for program in ["cvmmap_sim", "rtp_receiver_tester", "rtmp_stub_tester"] {
        let _ = testkit(program);
    }
    let binaries = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"))
        .parent()
        .unwrap();
    let name = format!("front{}", std::process::id());
    let target = format!("cvmmap://{name}@{}", scene.folder.path().display());
    commands
        .replace("target/release", binaries.to_str().unwrap())
        .replace(
            "--label front",
            &format!("--label {name} --prefix {}", scene.folder.path().display()),
        )
        .replace("--input-uri front", &format!("--input-uri {target}"))
        .replace("front.sdp", scene.path("front.sdp").to_str().unwrap())
        .replace(port.0, &port.1.to_string())
}

fn bash(script: &str) -> (Option<i32>, String) {
    let output = finish(Command::new("bash").args(["-c", script]));
    (output.status.code(), text(&output))
}

#[test]
fn the_manual_rtp_test_works_as_written() {
    let (scene, port) = (Scene::new(), free_port_pair());
    let publish = block_after("A producer that behaves like the real one");
    let receive = block_after("In a second terminal");
    let tester = receive.lines().next().expect("the referee comes first");
    let script = publish.trim_end();
    // The second terminal, here: the streamer goes to the background and is ended afterwards.
    let script = localised(
        &format!(
            "{script} & streamer=$!\n{tester}; code=$?\nkill -INT $streamer; wait $streamer || code=$?\nkill -INT %1; wait\nexit $code"
        ),
        &scene,
        ("5004", port),
    );
    let (code, text) = bash(&script);
    assert_eq!(code, Some(0), "{script}\n{text}");
    assert!(text.contains("codec=h264"), "{text}");
}

#[test]
fn the_manual_rtmp_test_works_as_written() {
    let (scene, port) = (Scene::new(), free_port_pair());
    let sim = block_after("A producer that behaves like the real one");
    let sim = sim.lines().next().expect("the simulator comes first");
    let rtmp = block_after("RTMP, against the stub that needs no server");
    let script = localised(
        &format!(
            "{sim}\nsim=$!\n{} & streamer=$!\nwait %2; code=$?\nkill -INT $streamer; wait $streamer\nkill -INT $sim; wait\nexit $code",
            rtmp.trim_end()
        ),
        &scene,
        ("1935", port),
    );
    let (code, text) = bash(&script);
    assert_eq!(code, Some(0), "{script}\n{text}");
    assert!(text.contains("mode=h265-domestic"), "{text}");
}
