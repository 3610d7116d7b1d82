//! Streams that start anew, again and again.

use std::time::Instant;

use crate::faults::case::Case;
use crate::faults::feed::Pace;
use crate::faults::rig::{Fail, GAP, Pictures, Rig, Setup, source_count};
use crate::faults::suite::Scenario;

pub const RESET_STORM: Scenario = Scenario {
    name: "reset_storm",
    promise: "1,000 resets in 10 s, doubled and out of order: one key frame each at most, no time goes back, recovered at once",
    play: reset_storm,
    control_fails: &["stormed"],
};

const RESETS: u32 = 1000;
const PER_SECOND: u32 = 100;

fn reset_storm(case: &mut Case) -> Result<(), Fail> {
    let mut rig = Rig::start(case, Setup::with(&["--bitrate", "4M"]))?;
    let from = Instant::now();
    let resets = if case.is_control() { 0 } else { RESETS };
    let mut pace = Pace::new(PER_SECOND);
    for n in 0..resets {
        let choice = case.random() % 4;
        let label = case.names.label.clone();
        let feed = rig.feed()?;
        // The id goes back, far or a little, or to the end of the numbers, which wrap on the next frame.
        feed.id = match n % 5 {
            0 => u32::MAX,
            1 | 2 => 0,
            _ => feed.id.wrapping_sub(1 + choice as u32),
        };
        feed.draw();
        pace.wait();
        match choice {
            // Twice the same frame.
            0 => {
                feed.publish_drawn()?;
                feed.producer.announce()?;
            }
            // The announcement ahead of its data.
            1 => {
                let (id, time) = (feed.id, crate::producer::unix_ns());
                feed.producer.announce_as(id, time, &label)?;
                feed.publish_drawn()?;
            }
            // An announcement of the frame before, behind this one's.
            2 => {
                feed.publish_drawn()?;
                let old = feed.id.wrapping_sub(2);
                let time = crate::producer::unix_ns().saturating_sub(20_000_000);
                feed.producer.announce_as(old, time, &label)?;
            }
            _ => feed.publish_drawn()?,
        }
    }
    case.number("storm_seconds", from.elapsed().as_secs_f64());
    let end = Instant::now();
    rig.check_recovery(case, end, GAP)?;
    rig.run(2.0)?;
    rig.check_gap(case, end, GAP);
    let outcome = rig.finish(case, Pictures::All)?;
    let epochs = source_count(&outcome.report, "epochs");
    let (units, keys) = (
        outcome.report["encode"]["access_units"]
            .as_u64()
            .unwrap_or(0),
        outcome.report["encode"]["key_frames"].as_u64().unwrap_or(0),
    );
    case.number("epochs", epochs);
    case.number("key_frames", keys);
    case.check(
        "stormed",
        epochs >= u64::from(RESETS) / 2,
        format!("{epochs} epochs seen of {resets} resets, {keys} key frames of {units} units"),
    );
    case.check(
        "one_encoder",
        outcome.report["encode"]["encoders_opened"] == 1,
        format!(
            "{} encoders opened",
            outcome.report["encode"]["encoders_opened"]
        ),
    );
    Ok(())
}
