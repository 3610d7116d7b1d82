//! Nothing at all, for the checks that every scenario makes: a process that leaks is seen.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::faults::case::Case;
use crate::faults::process::{Process, Vitals};
use crate::faults::rig::{Fail, GAP, Pictures, Rig, Setup, check_vitals};
use crate::faults::suite::Scenario;

pub const WATCHED: Scenario = Scenario {
    name: "watched",
    promise: "a stream that nothing happens to takes no more memory, descriptors or threads as it goes on",
    play: watched,
    control_fails: &["memory", "descriptors"],
};

fn watched(case: &mut Case) -> Result<(), Fail> {
    if case.is_control() {
        return leaks(case);
    }
    let mut rig = Rig::start(case, Setup::default().hostile())?;
    let from = Instant::now();
    rig.run(5.0)?;
    rig.check_gap(case, from, GAP);
    rig.finish(case, Pictures::All)?;
    Ok(())
}

/// The same look at a process that grows by a MiB, a descriptor and a thread at a time.
fn leaks(case: &mut Case) -> Result<(), Fail> {
    let mut process = Process::spawn(
        Command::new(&case.settings.itself)
            .arg("--as-leak")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(case.path("leak.log"))?),
    )?;
    let vitals = Vitals::of(process.id());
    let patience = Instant::now() + Duration::from_secs(30);
    let mut look = |enough: &dyn Fn(&crate::faults::process::Sample) -> bool| {
        while Instant::now() < patience && process.is_running() {
            if let Some(sample) = vitals.look().filter(|sample| enough(sample)) {
                return Ok(sample);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("what should leak does not")
    };
    let before = look(&|sample| sample.threads > 2)?;
    let after = look(&|sample| sample.resident_kib > before.resident_kib + 24 * 1024)?;
    check_vitals(case, before, after, 16);
    Ok(())
}
