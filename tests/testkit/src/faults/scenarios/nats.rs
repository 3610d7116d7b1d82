//! A control plane that dies, comes back, and talks nonsense.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::faults::case::Case;
use crate::faults::process::Process;
use crate::faults::rig::{Fail, GAP, Pictures, Rig, Setup};
use crate::faults::suite::Scenario;
use crate::nats::Nats;
use crate::ports::reserve_tcp;

pub const NATS_LOST: Scenario = Scenario {
    name: "nats_lost",
    promise: "a NATS server that is killed and comes back, and a flood of malformed bodies and events, cost no picture",
    play: nats_lost,
    control_fails: &["gap", "reconnected"],
};

pub(super) fn server(port: u16) -> Result<Process, Fail> {
    let process = Process::spawn(
        Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            return Err("nats-server does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}

pub(super) fn kill(process: &mut Process) {
    process.signal(Signal::KILL);
    process.wait(Duration::from_secs(5));
}

/// Status events and body packets that nobody can read: empty, noise, lying headers, unknown codes.
pub(super) fn nonsense() -> [Vec<Vec<u8>>; 2] {
    let mut lies = vec![0; 64];
    (lies[0], lies[2], lies[24]) = (0x62, 1, 200);
    lies[26..28].copy_from_slice(&3248_u16.to_le_bytes());
    let bodies = [vec![], vec![0xAB; 100], lies];
    let events = [vec![0xFF; 9], vec![0x08], vec![0x08, 77, 0x18, 1]];
    [events, bodies].map(|all| all.into_iter().cycle().take(90).collect())
}

fn nats_lost(case: &mut Case) -> Result<(), Fail> {
    if Command::new("nats-server")
        .arg("--version")
        .output()
        .is_err()
    {
        case.skipped = Some("nats-server is not installed (scripts/setup.sh --test)".to_owned());
        return Ok(());
    }
    let hold = reserve_tcp();
    let port = hold.port;
    let mut running = server(port)?;
    let url = format!("nats://127.0.0.1:{port}");
    let setup = Setup::with(&["--nats-url", &url, "--body-output", "sei"]).hostile();
    let mut rig = Rig::start(case, setup)?;
    let from = Instant::now();
    let key = case.names.nats_key.clone();
    if case.is_control() {
        rig.freeze()?;
    } else {
        kill(&mut running);
        rig.run(2.0)?;
        running = server(port)?;
        let (client, _) = Nats::connect(&url)?;
        let [events, bodies] = nonsense();
        // The streamer tries every second; it hears the last of these seconds at least.
        for _ in 0..40 {
            client.publish_all(&format!("cvmmap.{key}.status"), &events);
            client.publish_all(&format!("cvmmap.{key}.body"), &bodies);
            rig.run(0.1)?;
        }
    }
    rig.check_gap(case, from, GAP);
    let outcome = rig.finish(case, Pictures::All)?;
    kill(&mut running);
    let counters = &outcome.report["control"]["counters"];
    let count = |name: &str| counters[name].as_u64().unwrap_or(0);
    let (again, bad) = (
        count("reconnects"),
        count("bad_bodies") + count("bad_status"),
    );
    case.number("reconnects", again);
    case.number("malformed", json!(bad));
    case.check(
        "reconnected",
        again >= 1 && bad > 100,
        format!("{again} reconnects, {bad} malformed messages counted"),
    );
    Ok(())
}
