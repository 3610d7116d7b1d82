//! The streamer itself with NVENC on the emulator: what it says of a GPU, the five acceptance rows, and the suite of
//! faults. None of this has met an encode engine.

#![cfg(feature = "nvenc")]

mod common;
mod nvenc_support;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvenc_support::{Emulator, have};
use serde_json::Value;

/// What runs in real time takes the machine for itself.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn gpu_info_says_what_is_there_and_what_would_be_chosen() {
    let program = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
    let ask = |emulator: &Emulator, switches: &[(&str, &str)]| {
        let output = emulator
            .command(program, "stats.json", switches)
            .arg("gpu-info")
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let text = ask(&Emulator::new(), &[]);
    assert!(
        text.contains("GPU 0: Emulated Turing 0, GPU-e0e0e0e0-"),
        "{text}"
    );
    assert!(
        text.contains("h264 would be encoded by nvenc on GPU 0"),
        "{text}"
    );
    let text = ask(&Emulator::new(), &[("CAPS", "none")]);
    assert!(text.contains("h264 would be encoded by openh264 (software), since nvEncOpenEncodeSessionEx failed: UNSUPPORTED_DEVICE (2)"), "{text}");
    let text = ask(&Emulator::new().without("libcuda.so.1"), &[]);
    assert!(text.contains("no NVIDIA driver here"), "{text}");
    let text = ask(&Emulator::new(), &[("MAX_VERSION", "0x90")]);
    assert!(text.contains("driver too old"), "{text}");
}

/// Two GPUs, each with its name, its UUID and what it encodes; and as CUDA counts them where some are hidden.
#[test]
fn gpu_info_tells_of_each_gpu_that_the_driver_shows() {
    let ask = |visible: Option<&str>| {
        let program = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
        let emulator = Emulator::new();
        let mut command = emulator.command(program, "none.json", &[("DEVICES", "2")]);
        command.envs(visible.map(|list| ("CUDA_VISIBLE_DEVICES", list)));
        let output = command.arg("gpu-info").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let gpus = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("GPU "));
        let name = |line: &str| line.split(", compute").next().unwrap().to_owned();
        lines.map(name).collect()
    };
    let text = ask(None);
    let uuid = |byte: &str| {
        let group = |bytes| byte.repeat(bytes);
        let groups = [4, 2, 2, 2, 6].map(group);
        format!("GPU-{}", groups.join("-"))
    };
    let (first, second) = (uuid("e0"), uuid("e1"));
    assert_eq!(
        gpus(&text),
        [
            format!("GPU 0: Emulated Turing 0, {first}"),
            format!("GPU 1: Emulated Turing 1, {second}")
        ],
        "{text}"
    );
    for codec in ["  h264:", "  h265:"] {
        assert_eq!(text.matches(codec).count(), 2, "{text}");
    }
    assert_eq!(
        gpus(&ask(Some("1"))),
        [format!("GPU 0: Emulated Turing 1, {second}")]
    );
    let none = ask(Some(""));
    assert!(gpus(&none).is_empty() && none.contains("none"), "{none}");
}

/// `--gpu` counts as CUDA does, after `CUDA_VISIBLE_DEVICES`; a UUID or its beginning means the same GPU wherever it stands.
#[test]
fn a_gpu_is_chosen_by_its_index_among_those_that_are_seen_or_by_its_uuid() {
    let rows = [
        ("2,0", "0", Ok("GPU 0 (Emulated Turing 2)")),
        ("2,0", "1", Ok("GPU 1 (Emulated Turing 0)")),
        ("2,0", "GPU-e0e0", Ok("GPU 1 (Emulated Turing 0)")),
        ("0,1,2", "gpu-E1E1E1E1-e1", Ok("GPU 1 (Emulated Turing 1)")),
        ("2,0", "2", Err("no GPU 2; there are: 0 Emulated Turing 2")),
        (
            "2,0",
            "GPU-e1e1",
            Err("no GPU gpu-e1e1; there are: 0 Emulated"),
        ),
        ("", "0", Err("CUDA_VISIBLE_DEVICES may hide them")),
    ];
    for (visible, gpu, wanted) in rows {
        let (emulator, scene) = (Emulator::new(), common::Scene::new());
        let program = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
        let mut command = emulator.command(program, "stats.json", &[("DEVICES", "3")]);
        command
            .env("CUDA_VISIBLE_DEVICES", visible)
            .args(scene.names())
            .args(
                "--input-mode dummy --dummy-frames 3 --dummy-width 320 --dummy-height 180"
                    .split(' '),
            )
            .args(
                "--no-nats --queue-size 8 --codec h264 --encoder nvenc --rtp --rtp-endpoint"
                    .split(' '),
            )
            .args([
                &format!("127.0.0.1:{}", common::free_port_pair()),
                "--gpu",
                gpu,
            ]);
        let output = common::finish(&mut command);
        let (code, words) = match wanted {
            Ok(words) => (0, words),
            Err(words) => (5, words),
        };
        let text = common::expect_exit(&output, code);
        assert!(text.contains(words), "{visible:?} {gpu}: {text}");
        let stats = emulator.stats("stats.json").unwrap();
        assert_eq!(stats["violations"], Value::Array(vec![]), "{text}");
        assert_eq!(stats["leaks"], Value::Array(vec![]), "{text}");
    }
}

/// The streamer itself, the producer of its own and the referees, all five rows by NVENC.
#[test]
fn the_five_acceptance_rows_pass_by_nvenc_without_violation_or_leak() {
    if !have("ffmpeg") {
        return;
    }
    let _alone = alone();
    let emulator = Emulator::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"))
        .parent()
        .unwrap();
    let evidence = tempfile::tempdir().unwrap();
    let _ = common::testkit("rtp_receiver_tester");
    let output = emulator
        .command(Path::new("bash"), "row-%p.json", &[])
        .arg(root.join("scripts/acceptance_standalone.sh"))
        .current_dir(root)
        .env_remove("RUST_LOG")
        .env("CVMMAP_BIN_DIR", binaries)
        .env("CVMMAP_ENCODER", "nvenc")
        .env("CVMMAP_EVIDENCE_DIR", evidence.path())
        .output()
        .unwrap();
    let text = common::text(&output);
    assert!(output.status.success(), "{text}");
    let last = text.lines().rfind(|line| line.starts_with("total="));
    assert_eq!(last, Some("total=5 pass=5 fail=0 skip=0"), "{text}");
    let rows = streamers(&emulator);
    assert_eq!(rows.len(), 5, "{text}");
    for stats in rows {
        assert_eq!(stats["violations"], Value::Array(vec![]));
        assert_eq!(stats["leaks"], Value::Array(vec![]));
        assert_eq!(stats["finished"], true);
        assert!(stats["pictures_in"].as_u64() >= Some(80));
        assert_eq!(stats["pictures_in"], stats["access_units_out"]);
        assert!(stats["uploads_pageable"] == 0 && stats["uploads_pinned"].as_u64() >= Some(80));
    }
}

/// The streamer with `--encoder nvenc`: no fallback, exit code 5.
#[test]
fn the_streamer_exits_5_when_nvenc_is_wanted_and_refused_and_codes_in_software_when_it_is_not() {
    let run = |emulator: &Emulator, encoder: &str, switches: &[(&str, &str)]| {
        let scene = common::Scene::new();
        let port = common::free_port_pair();
        let mut command = emulator.command(
            Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer")),
            "stats.json",
            switches,
        );
        command
            .env_remove("RUST_LOG")
            .args(scene.names())
            .args("--input-mode dummy --dummy-frames 150 --dummy-width 320 --dummy-height 180 --no-nats".split(' '))
            .args("--queue-size 64 --codec h264 --rtp --encoder".split(' '))
            .args([encoder, "--rtp-endpoint", &format!("127.0.0.1:{port}")])
            .arg("--report-json")
            .arg(emulator.path("report.json"));
        common::finish(&mut command)
    };
    let emulator = Emulator::new();
    let output = run(&emulator, "nvenc", &[("OPEN_STATUS", "2")]);
    let text = common::expect_exit(&output, 5);
    assert!(text.contains("has no encoder"), "{text}");
    let output = run(&emulator, "auto", &[("OPEN_STATUS", "2")]);
    let text = common::expect_exit(&output, 0);
    assert!(
        text.contains("has no encoder") && text.contains("openh264"),
        "{text}"
    );
}

/// The faults that an upload by DMA or a session may trip over: segments that go, shrink and come back under it, sizes
/// that change, a thousand resets. What a scheduler can turn over is not looked at here: times, and whether a frame is torn (docs/threat-model.md,
/// "Torn frames": without a rhythm, as after a restart, a writer that stands still shows nothing).
#[test]
fn producers_that_go_shrink_and_come_back_leave_nvenc_without_violation_or_leak() {
    if !have("ffmpeg") {
        return;
    }
    let _alone = alone();
    let emulator = Emulator::new();
    let evidence = tempfile::tempdir().unwrap();
    let suite = common::testkit("fault_suite");
    let binaries = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer")).parent();
    // The smallest of its pictures are below the least that a real chip codes.
    let small = [("MIN", "64x64")];
    let output = common::finish(
        emulator
            .command(Path::new(suite.get_program()), "streamer-%p.json", &small)
            .env_remove("RUST_LOG")
            .args("--encoder nvenc --no-controls --only clean_restart --only segment_gone --only resize".split(' '))
            .args(["--only", "reset_storm"])
            .arg("--binaries")
            .arg(binaries.unwrap())
            .arg("--evidence")
            .arg(evidence.path()),
    );
    let text = common::text(&output);
    let summary = evidence.path().join("task-15-fault-suite-summary.json");
    let summary: Value = serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
    let scenarios = summary["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), 4, "{text}");
    for scenario in scenarios {
        let checks = scenario["checks"].as_array().unwrap();
        assert!(checks.iter().any(|check| check["name"] == "exit"), "{text}");
        for check in checks {
            let name = check["name"].as_str().unwrap();
            if ["exit", "wire", "descriptors", "one_encoder"].contains(&name) {
                assert_eq!(check["ok"], true, "{}: {check}\n{text}", scenario["name"]);
            }
        }
    }
    let runs = streamers(&emulator);
    assert_eq!(runs.len(), 4, "{text}");
    for stats in &runs {
        assert_eq!(stats["violations"], Value::Array(vec![]), "{text}");
        assert_eq!(stats["leaks"], Value::Array(vec![]), "{text}");
        assert_eq!(stats["finished"], true);
        assert!(stats["uploads_pageable"] == 0 && stats["uploads_pinned"] != 0);
    }
    let sessions = runs.iter().map(|stats| stats["sessions_opened"].as_u64());
    assert!(sessions.max().flatten() > Some(1), "sizes changed: {text}");
}

/// What the emulator has written of each process that opened a session: those of the scripts and referees open none.
fn streamers(emulator: &Emulator) -> Vec<Value> {
    std::fs::read_dir(emulator.folder.path())
        .unwrap()
        .flatten()
        .filter_map(|entry| emulator.stats(entry.file_name().to_str()?))
        .filter(|stats| stats["sessions_opened"] != 0)
        .collect()
}
