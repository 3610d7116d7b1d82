//! The machine around the streamer: signals, full disks, too few descriptors, too little time.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::faults::case::Case;
use crate::faults::process::Process;
use crate::faults::rig::{Fail, GAP, Pictures, Rig, Setup};
use crate::faults::suite::Scenario;

pub const SIGTERM: Scenario = Scenario {
    name: "sigterm",
    promise: "SIGTERM at any moment of start and stop ends the process within 3 s and leaves no segment behind",
    play: sigterm,
    control_fails: &["ends"],
};

/// A short run that takes longer hangs.
const END: Duration = Duration::from_secs(15);

/// A streamer that is its own producer, with its socket below the folder of sockets.
fn dummy(case: &Case, socket: &str) -> (Command, PathBuf) {
    let socket = case.settings.sockets.join(socket);
    let mut command = Command::new(case.binary("cvmmap_streamer"));
    command
        .args([
            "--input-mode",
            "dummy",
            "--no-nats",
            "--no-status",
            "--codec",
            "h264",
        ])
        .args(["--encoder", &case.settings.encoder])
        .args(["--shm-name", &case.names.shm_name])
        .arg("--zmq-endpoint")
        .arg(format!("ipc://{}", socket.display()))
        .stdin(Stdio::null());
    (command, socket)
}

fn sigterm(case: &mut Case) -> Result<(), Fail> {
    let rounds = if case.is_control() { 1 } else { 24 };
    let (mut slowest, mut codes, mut left, mut late) = (Duration::ZERO, Vec::new(), 0, 0);
    for n in 0..rounds {
        let (mut command, socket) = dummy(case, &format!("d{n}"));
        let log = File::create(case.path(&format!("round_{n}.log")))?;
        command
            // What is sent is of no interest: discard.
            .args(["--rtp", "--rtp-endpoint", "127.0.0.1:9"])
            // One that is being connected to, for every second round.
            .args(if n % 2 == 0 {
                &["--rtmp", "--rtmp-url", "rtmp://127.0.0.1:9/live/key"][..]
            } else {
                &[]
            })
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut process = Process::spawn(&mut command)?;
        // More of the early moments, where things are being made.
        let delay = case.random() % if n % 3 == 0 { 600 } else { 80 };
        std::thread::sleep(Duration::from_millis(delay));
        if case.is_control() {
            process.signal(Signal::STOP);
        }
        process.signal(Signal::TERM);
        match process.wait(Duration::from_secs(3)) {
            Some(ended) => {
                slowest = slowest.max(ended.took);
                codes.push(ended.code());
                // Killed before it could listen to signals, it has made nothing yet either.
                left += usize::from(exists(&case.names.shm_name) || socket.exists());
            }
            None => late += 1,
        }
    }
    case.number("rounds", rounds);
    case.number("slowest_ms", slowest.as_millis() as u64);
    case.exit_codes.insert("streamers".into(), json!(codes));
    let ordinary = codes.iter().all(|code| [0, 143].contains(code));
    case.check(
        "ends",
        late == 0 && ordinary,
        format!("{late} of {rounds} did not end in time, the slowest took {slowest:.0?}, exit codes {codes:?}"),
    );
    case.check(
        "clean",
        left == 0,
        format!("{left} of {rounds} left segment or socket behind"),
    );
    Ok(())
}

fn exists(shm_name: &str) -> bool {
    rustix::shm::open(
        shm_name,
        rustix::shm::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    )
    .is_ok()
}

pub const DISK_FULL: Scenario = Scenario {
    name: "disk_full",
    promise: "a session description and a report that cannot be written are said, and stop no stream",
    play: disk_full,
    control_fails: &["said"],
};

fn disk_full(case: &mut Case) -> Result<(), Fail> {
    // Every write to this device fails for want of space.
    let full = if case.is_control() {
        case.path("stream.sdp")
    } else {
        PathBuf::from("/dev/full")
    };
    let mut rig = Rig::start(
        case,
        Setup::with(&["--rtp-sdp", &full.display().to_string()]),
    )?;
    let from = Instant::now();
    rig.run(2.0)?;
    rig.check_gap(case, from, GAP);
    let log = rig.streamer.log.clone();
    rig.finish(case, Pictures::All)?;
    let text = std::fs::read_to_string(log)?.to_lowercase();
    let said = text.contains("no space") && text.contains("/dev/full");
    case.check(
        "said",
        said,
        format!("the log names the full device: {said}"),
    );
    let device = std::fs::symlink_metadata("/dev/full")?;
    let kept = std::os::unix::fs::FileTypeExt::is_char_device(&device.file_type());
    case.check("device", kept, "the device is still one");
    if !case.is_control() {
        // The report, on the same device.
        let (mut command, _) = dummy(case, "d0");
        let log = case.path("report.log");
        let mut process = Process::spawn(
            command
                .args(["--dummy-frames", "5", "--report-json", "/dev/full"])
                .stdout(Stdio::null())
                .stderr(File::create(&log)?),
        )?;
        let code = process.wait(END).map(|ended| ended.code());
        let said = std::fs::read_to_string(log)?
            .to_lowercase()
            .contains("no space");
        case.exit_codes.insert("report".into(), json!(code));
        case.check(
            "report",
            code == Some(5) && said,
            format!("a report that cannot be written: exit {code:?}, said: {said}"),
        );
        real_disk(case)?;
    }
    Ok(())
}

/// The same on a file system of 64 KiB without room, where this user may have one: a namespace of its own takes it
/// away with the process.
fn real_disk(case: &mut Case) -> Result<(), Fail> {
    let disk = case.path("disk");
    std::fs::create_dir_all(&disk)?;
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        let script = format!("mount -t tmpfs -o size=64k tmpfs \"$0\" && {{ {script}; }}");
        command.args(["--mount", "bash", "-c", &script]).arg(&disk);
        command.stdin(Stdio::null());
        command
    };
    let mut trial = in_namespace("true");
    trial.stdout(Stdio::null()).stderr(Stdio::null());
    if !trial.status().is_ok_and(|status| status.success()) {
        case.say("real disk: not played, this user may not mount one");
        return Ok(());
    }
    let log = case.path("disk.log");
    let file = File::create(&log)?;
    let (dummy, _) = dummy(case, "d1");
    let mut process = Process::spawn(
        in_namespace(
            "head -c 1M /dev/zero >\"$0/fill\"; \"$@\"; code=$?; echo left: $(ls -A \"$0\"); exit $code",
        )
        .arg(dummy.get_program())
        .args(dummy.get_args())
        .args("--dummy-frames 5 --rtp --rtp-endpoint 127.0.0.1:9 --rtp-sdp".split(' '))
        .arg(disk.join("stream.sdp"))
        .arg("--report-json")
        .arg(disk.join("report.json"))
        .stdout(file.try_clone()?)
        .stderr(file),
    )?;
    let code = process.wait(END).map(|ended| ended.code());
    let text = std::fs::read_to_string(log)?;
    let said = |what: &str| {
        let mut lines = text.lines();
        lines.any(|line| line.contains(what) && line.contains("No space left"))
    };
    let (sdp, report) = (said("stream.sdp"), said("report.json"));
    let nothing_left = text.lines().any(|line| line == "left: fill");
    // A busy machine may have left frames out.
    let sent = text.contains(" access units, ") && !text.contains(": 0 access units, ");
    case.exit_codes.insert("real_disk".into(), json!(code));
    case.check(
        "real_disk",
        code == Some(5) && sdp && report && nothing_left && sent,
        format!(
            "a disk of 64 KiB without room: exit {code:?}, said of the description: {sdp}, of the report: {report}; \
             frames sent: {sent}; nothing of either left there: {nothing_left}"
        ),
    );
    Ok(())
}

pub const DESCRIPTORS: Scenario = Scenario {
    name: "few_descriptors",
    promise: "too few descriptors end in a stream or in an error that says so, never in a crash or a hang",
    play: few_descriptors,
    control_fails: &["ends"],
};

fn few_descriptors(case: &mut Case) -> Result<(), Fail> {
    let limits: Vec<u64> = if case.is_control() {
        vec![64]
    } else {
        (4..=40).step_by(4).chain([63, 64, 72, 96]).collect()
    };
    let promised = |_, code| matches!(code, Some(0 | 5 | 124 | 127));
    under_limits(case, &limits, promised, |case, limit| {
        let mut limited = Command::new("bash");
        limited.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "bash"]);
        with_ten_frames(limited, &dummy(case, "few").0)
    })
}

pub const THREADS: Scenario = Scenario {
    name: "few_threads",
    promise: "24 threads make a stream, fewer an error that says so; never a crash or a hang",
    play: few_threads,
    control_fails: &["ends"],
};

/// What the streamer asks for, and the thread that it begins with.
const ENOUGH_THREADS: u64 = 25;

fn few_threads(case: &mut Case) -> Result<(), Fail> {
    // As somebody else, since nothing limits the threads of root; and as one who runs nothing beside it, since the
    // limit is on all threads of a user.
    let somebody = 61_000 + std::process::id() % 4000;
    let as_somebody = || {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={somebody}"))
            .arg(format!("--regid={somebody}"))
            .args("--clear-groups --inh-caps=-all --bounding-set=-all --".split(' '));
        command
    };
    let reachable = as_somebody()
        .arg("test")
        .arg("-x")
        .arg(case.binary("cvmmap_streamer"))
        .stderr(Stdio::null())
        .status();
    if !reachable.is_ok_and(|status| status.success()) {
        case.skipped = Some(
            "this user may not start the streamer as another one (setpriv), or that one may not"
                .to_owned(),
        );
        return Ok(());
    }
    let folder = case.settings.sockets.join("anybody");
    std::fs::create_dir_all(&folder)?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
    let counts: Vec<u64> = match case.is_control() {
        true => vec![40],
        false => (1..=22).step_by(3).chain(24..=27).chain([31, 40]).collect(),
    };
    let others = threads_of(somebody);
    let limits: Vec<u64> = counts.iter().map(|count| others + count).collect();
    let promised = |limit: u64, code: Option<i32>| match code {
        Some(0) => limit >= others + ENOUGH_THREADS,
        Some(5 | 127) => limit < others + ENOUGH_THREADS,
        // A machine that is busy for seconds.
        code => code == Some(124),
    };
    under_limits(case, &limits, promised, |case, limit| {
        let mut limited = as_somebody();
        limited.args([
            "bash",
            "-c",
            &format!("ulimit -u {limit}; exec \"$@\""),
            "bash",
        ]);
        with_ten_frames(limited, &dummy(case, "anybody/few").0)
    })
}

/// Threads that a user has now, as the system counts them against its limit.
fn threads_of(uid: u32) -> u64 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let field = |name: &str| -> Option<u32> {
                let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
                rest.split_whitespace().next()?.parse().ok()
            };
            (field("Uid:")? == uid).then(|| field("Threads:").map_or(0, u64::from))
        })
        .sum()
}

fn with_ten_frames(mut limited: Command, dummy: &Command) -> Command {
    limited
        .arg(dummy.get_program())
        .args(dummy.get_args())
        .args("--dummy-frames 10 --rtp --rtp-endpoint 127.0.0.1:9".split(' '))
        .args("--ingest-idle-timeout-ms 3000".split(' '));
    limited
}

/// Runs a command under each limit. In the control it is aborted: what a crash would come to.
///
/// 127 is what a loader ends with that could not even open the libraries.
fn under_limits(
    case: &mut Case,
    limits: &[u64],
    promised: impl Fn(u64, Option<i32>) -> bool,
    command: impl Fn(&Case, u64) -> Command,
) -> Result<(), Fail> {
    let (mut table, mut bad) = (Vec::new(), Vec::new());
    for &limit in limits {
        let log = case.path(&format!("limit_{limit}.log"));
        let file = File::create(&log)?;
        let mut process = Process::spawn(
            command(case, limit)
                .stdin(Stdio::null())
                .stdout(file.try_clone()?)
                .stderr(file),
        )?;
        if case.is_control() {
            process.signal(Signal::ABORT);
        }
        let code = process.wait(END).map(|ended| ended.code());
        let text = std::fs::read_to_string(&log)?;
        let panicked = text.contains("panicked") || text.contains("Assertion failed");
        table.push(json!([limit, code]));
        if panicked || !promised(limit, code) {
            bad.push(format!(
                "limit {limit}: exit {code:?}{}",
                if panicked { ", panicked" } else { "" }
            ));
        }
        let _ = rustix::shm::unlink(case.names.shm_name.as_str());
    }
    case.number("exits", table);
    case.check(
        "ends",
        bad.is_empty(),
        if bad.is_empty() {
            format!("as promised under each of {} limits", limits.len())
        } else {
            bad.join("; ")
        },
    );
    Ok(())
}

pub const SLOW_ENCODER: Scenario = Scenario {
    name: "slow_encoder",
    promise: "an encoder slower than its source drops the oldest frames, by count, and its latency stays",
    play: slow_encoder,
    control_fails: &["overrun"],
};

fn slow_encoder(case: &mut Case) -> Result<(), Fail> {
    let setup = Setup {
        width: 1280,
        height: 720,
        fps: if case.is_control() { 5 } else { 200 },
        ..Setup::with(&["--bitrate", "8M", "--preset", "quality"])
    };
    let mut rig = Rig::start_as(case, setup, |feed| {
        feed.add_grain(30);
    })?;
    rig.run(5.0)?;
    // This producer writes without a pause: torn_read looks at that, with a writer that keeps its time.
    let outcome = rig.finish(case, Pictures::Any)?;
    let evicted = outcome.report["evicted"].as_u64().unwrap_or(0);
    let skipped = outcome.report["source"]["skipped"].as_u64().unwrap_or(0);
    let p99 = outcome.report["latency"]["notice_to_encoded"]["p99_us"]
        .as_u64()
        .unwrap_or(u64::MAX);
    case.number("evicted", evicted);
    case.check(
        "overrun",
        evicted + skipped > 20,
        format!("{evicted} frames evicted, {skipped} skipped"),
    );
    case.check(
        "latency",
        // It would be seconds if frames queued.
        p99 < 1_000_000,
        format!("notice to access unit p99 {p99} us"),
    );
    Ok(())
}
