//! `zed_batch_svo_to_mp4` and the script of the same name as programs.

#[path = "common/svo.rs"]
mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::*;

fn batch(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zed_batch_svo_to_mp4"));
    command.args(["--zed-bin", env!("CARGO_BIN_EXE_zed_svo_to_mp4")]);
    command
        .args([
            "--codec",
            "h264",
            "--encoder-device",
            "software",
            "--view",
            "left-raw",
        ])
        .args(more);
    command
}

/// Two good recordings, one inside a folder, and one that is none.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("inner")).unwrap();
    std::fs::copy(fixture("h264_svga.svo2"), dir.path().join("a.svo2")).unwrap();
    std::fs::write(dir.path().join("b.svo2"), "no recording").unwrap();
    std::fs::copy(
        fixture("jpeg_strips_vga.svo2"),
        dir.path().join("inner/c.svo2"),
    )
    .unwrap();
    dir
}

fn path(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

#[test]
fn failures_are_counted_the_others_are_converted_and_skipped_the_next_time() {
    let dir = folder();
    let words = [path(dir.path()), "--recursive", "--jobs", "2"];
    let first = run(&mut batch(&words));
    assert_eq!(first.code, Some(1), "{}", first.stderr);
    assert_eq!(first.stdout, "converted=2 skipped=0 failed=1\n");
    assert!(
        first.stderr.contains("not a ZED recording"),
        "{}",
        first.stderr
    );
    assert_eq!(names(dir.path()), ["a.mp4", "a.svo2", "b.svo2", "inner"]);
    assert_eq!(names(&dir.path().join("inner")), ["c.mp4", "c.svo2"]);

    let second = run(&mut batch(&words));
    assert_eq!(
        (second.code, second.stdout.as_str()),
        (Some(1), "converted=0 skipped=2 failed=1\n")
    );
    std::fs::remove_file(dir.path().join("b.svo2")).unwrap();
    let third = run(&mut batch(&words));
    assert_eq!(
        (third.code, third.stdout.as_str()),
        (Some(0), "converted=0 skipped=2 failed=0\n")
    );
    let again = run(&mut batch(&[path(dir.path()), "--overwrite"]));
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (Some(0), "converted=1 skipped=0 failed=0\n")
    );
}

#[test]
fn nothing_to_do_and_nonsense_are_exit_code_2() {
    let dir = folder();
    assert_eq!(
        run(&mut batch(&[path(dir.path()), "--pattern", "*.xyz"])).code,
        Some(2)
    );
    assert_eq!(run(&mut batch(&["/nonexistent/folder"])).code, Some(2));
    assert_eq!(
        run(&mut batch(&[
            path(dir.path()),
            "--zed-bin",
            "/nonexistent/bin"
        ]))
        .code,
        Some(2)
    );
    assert_eq!(run(&mut batch(&[])).code, Some(2));
    let dry = run(&mut batch(&[path(dir.path()), "--dry-run"]));
    assert_eq!(dry.code, Some(0));
    assert_eq!(dry.stdout.lines().count(), 2);
    assert!(
        dry.stdout.lines().all(|line| line.starts_with("convert ")),
        "{}",
        dry.stdout
    );
    assert_eq!(names(dir.path()), ["a.svo2", "b.svo2", "inner"]);
}

#[test]
fn fail_fast_starts_nothing_after_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.svo2"), "no recording").unwrap();
    std::fs::copy(fixture("h264_svga.svo2"), dir.path().join("b.svo2")).unwrap();
    let run = run(&mut batch(&[path(dir.path()), "--fail-fast"]));
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(1), "converted=0 skipped=0 failed=1\n")
    );
    assert_eq!(names(dir.path()), ["a.svo2", "b.svo2"]);
}

/// A folder that cannot be read is one failure, and what its name would have held is not silently left out.
#[test]
fn a_folder_that_cannot_be_read_is_one_failure_and_the_others_go_on() {
    let dir = folder();
    std::fs::remove_file(dir.path().join("b.svo2")).unwrap();
    // No folder is locked to root, who starts the programs as another user.
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    let set = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0);
    let words = [path(dir.path()), "--recursive"];
    let unreadable = std::fs::read_dir(&locked).is_err();
    let (dry, all) = if unreadable {
        let mut dry = batch(&words);
        (run(dry.arg("--dry-run")), run(&mut batch(&words)))
    } else {
        let nobody = || {
            let mut command = Command::new("setpriv");
            command
                .args("--reuid 65534 --regid 65534 --clear-groups --inh-caps=-all".split(' '))
                .arg(env!("CARGO_BIN_EXE_zed_batch_svo_to_mp4"));
            command
        };
        let as_nobody = |more: &[&str]| {
            run(nobody()
                .args(["--zed-bin", env!("CARGO_BIN_EXE_zed_svo_to_mp4")])
                .args(words)
                .args("--codec h264 --encoder-device software --view left-raw".split(' '))
                .args(more))
        };
        use std::os::unix::fs::PermissionsExt;
        for open in [dir.path().to_owned(), dir.path().join("inner")] {
            let mode = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(open, mode).unwrap();
        }
        let started = nobody().arg("--version").output();
        if !started.is_ok_and(|output| output.status.success()) {
            eprintln!("NOT CHECKED: no user without rights can start the programs here");
            return;
        }
        (as_nobody(&["--dry-run"]), as_nobody(&[]))
    };
    set(0o755);
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    let said = dry.stdout.contains("locked: the folder cannot be read: ");
    assert!(said && dry.stdout.contains("fail "), "{}", dry.stdout);
    assert_eq!(
        (all.code, all.stdout.as_str()),
        (Some(1), "converted=2 skipped=0 failed=1\n"),
        "{}",
        all.stderr
    );
    assert!(
        all.stderr.contains("the folder cannot be read: "),
        "{}",
        all.stderr
    );
    assert_eq!(names(&dir.path().join("inner")), ["c.mp4", "c.svo2"]);
}

/// A recording under the name that another's MP4 would have, by either kind of link too.
#[test]
fn no_recording_is_replaced_by_the_mp4_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(fixture("h264_svga.svo2")).unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["a.svo2", "b.svo2", "c.svo2", "d.svo2"] {
        std::fs::copy(fixture("h264_svga.svo2"), at(name)).unwrap();
    }
    // A recording that is called an MP4, and two that are reached by such a name.
    std::fs::copy(fixture("h264_svga.svo2"), at("a.mp4")).unwrap();
    std::os::unix::fs::symlink("d.svo2", at("b.mp4")).unwrap();
    std::fs::hard_link(at("d.svo2"), at("c.mp4.part")).unwrap();
    let words = [path(dir.path()), "--overwrite", "--pattern", "*.svo2"];
    let own = at("a.mp4");
    let run = run(batch(&words).arg(&own));
    assert_eq!(
        run.stdout, "converted=1 skipped=0 failed=4\n",
        "{}",
        run.stderr
    );
    assert_eq!(run.code, Some(1));
    let said = run
        .stderr
        .matches("would take the place of the recording")
        .count();
    assert_eq!(said, 4, "{}", run.stderr);
    for name in [
        "a.svo2",
        "b.svo2",
        "c.svo2",
        "d.svo2",
        "a.mp4",
        "c.mp4.part",
    ] {
        assert_eq!(std::fs::read(at(name)).unwrap(), bytes, "{name}");
    }
    assert!(at("d.mp4").exists());
}

#[test]
fn options_and_devices_reach_the_conversions() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.svo2"), "").unwrap();
    let fake = dir.path().join("converter");
    std::fs::write(&fake, "#!/bin/sh\necho \"$CUDA_VISIBLE_DEVICES|$*\"\n").unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = run(
        Command::new(env!("CARGO_BIN_EXE_zed_batch_svo_to_mp4")).args([
            path(dir.path()),
            "--zed-bin",
            path(&fake),
            "--cuda-visible-devices",
            "GPU-7",
            "--preset",
            "quality",
            "--start-frame",
            "3",
            "--end-frame",
            "9",
            "--gop",
            "60",
            "--view",
            "side-by-side",
        ]),
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let root = dir.path().display();
    let expected = format!(
        "GPU-7|--input {root}/a.svo2 --output {root}/a.mp4 --start-frame 3 --end-frame 9 --timing \
         timestamps --codec h265 --encoder-device auto --preset quality --quality 23 --gop 60 \
         --b-frames 0 --view side-by-side --backend auto --progress never"
    );
    assert!(run.stderr.contains(&expected), "{}", run.stderr);
}

/// Ctrl-C while conversions run: each is told once, waits to finish its file, and nothing more is
/// started.
#[test]
fn a_signal_is_handed_on_once_and_ends_the_batch() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.svo2", "b.svo2", "c.svo2"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let fake = dir.path().join("converter");
    // It ends with its input, at the latest: with this test.
    let script = "#!/bin/sh\ntrap 'echo told >> \"$2.told\"; exit 130' TERM\ntouch \"$2.started\"\nwhile [ -e \"$2\" ]; do sleep 0.05; done\n";
    std::fs::write(&fake, script).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let child = Program::start(
        Command::new(env!("CARGO_BIN_EXE_zed_batch_svo_to_mp4"))
            .args([path(dir.path()), "--zed-bin", path(&fake), "--jobs", "2"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !["a", "b"]
        .iter()
        .all(|name| dir.path().join(format!("{name}.svo2.started")).exists())
    {
        assert!(
            std::time::Instant::now() < deadline,
            "the conversions were not started"
        );
        std::thread::yield_now();
    }
    let killed = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let output: Run = finish_child(child).into();
    assert_eq!(output.code, Some(130), "{}", output.stderr);
    for name in ["a", "b"] {
        let told = std::fs::read_to_string(dir.path().join(format!("{name}.svo2.told"))).unwrap();
        assert_eq!(told, "told\n");
    }
    assert!(!dir.path().join("c.svo2.started").exists());
}

#[test]
fn the_script_starts_the_program_with_its_arguments() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/zed_batch_svo_to_mp4.py");
    let dir = folder();
    let output = Command::new("python3")
        .arg(script)
        .args([path(dir.path()), "--dry-run", "--recursive"])
        .args(["--zed-bin", env!("CARGO_BIN_EXE_zed_svo_to_mp4")])
        .env(
            "ZED_BATCH_SVO_TO_MP4",
            env!("CARGO_BIN_EXE_zed_batch_svo_to_mp4"),
        )
        .output();
    let run: Run = match output {
        Ok(output) => output.into(),
        Err(error) => {
            eprintln!("NOT CHECKED: python3 cannot be run: {error}");
            return;
        }
    };
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.stdout.lines().count(), 3, "{}", run.stdout);
}
