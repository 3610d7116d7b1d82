//! A writer that races the reader.

use std::time::Duration;

use serde_json::json;

use crate::faults::case::Case;
use crate::faults::rig::{Fail, Pictures, Rig, Setup, source_count};
use crate::faults::suite::Scenario;

pub const TORN_READ: Scenario = Scenario {
    name: "torn_read",
    promise: "no frame is accepted that holds rows of two, up to 200 fps; at 1000 fps at most one in 10,000",
    play: torn_read,
    control_fails: &["pictures"],
};

/// Frames per second, and the share of the interval that the writer takes for its payload.
const RATES: [(u32, f64); 4] = [(30, 0.25), (60, 0.25), (200, 0.25), (1000, 0.25)];

fn torn_read(case: &mut Case) -> Result<(), Fail> {
    let mut table = Vec::new();
    let rates: &[_] = if case.is_control() {
        &RATES[1..2]
    } else {
        &RATES
    };
    for &(fps, share) in rates {
        let wanted = if case.is_control() {
            60
        } else {
            case.settings.torn_frames
        };
        let setup = Setup {
            fps,
            ..Setup::with(&["--bitrate", "6M"])
        };
        let mut rig = Rig::start_as(case, setup, &format!("rate_{fps}"), |feed| {
            feed.write_time = Duration::from_secs_f64(share / f64::from(fps));
        })?;
        // The control publishes what a torn read would give: metadata that say nothing of it.
        rig.feed()?.torn = case.is_control();
        let (probe, first) = (&rig.probe, rig.probe.count());
        let limit = Duration::from_secs(30 + wanted * 4 / u64::from(fps.min(100)));
        if let Some(feed) = &mut rig.feed {
            feed.run_until(fps, limit, |_| (probe.count() - first) as u64 >= wanted)?;
        }
        let published = rig.feed()?.published;
        let outcome = rig.finish_as(&format!("rate_{fps}"), case, Pictures::Any)?;
        let verified = {
            let stream = case.path(&format!("rate_{fps}.h264"));
            crate::faults::probe::verify(&stream, &outcome.ids, 640, 360)?
        };
        let (torn, accepted) = (verified.torn.len() as u64, verified.pictures);
        let counter = |name| source_count(&outcome.report, name);
        let refused = [
            "torn_metadata",
            "torn_payload",
            "too_late",
            "not_ready",
            "bad_metadata",
        ]
        .map(counter)
        .iter()
        .sum::<u64>();
        let looked_at = refused + counter("frames");
        let share = refused as f64 / looked_at.max(1) as f64;
        let allowed = if fps > 200 { accepted / 10_000 } else { 0 };
        let enough = accepted >= wanted.min(1000);
        case.check(
            "pictures",
            torn <= allowed && verified.wrong == 0 && verified.unreadable == 0 && enough,
            format!(
                "{fps} fps: {accepted} accepted pictures looked at, {torn} torn (at most {allowed}), {} wrong, {} unreadable; \
                 of {looked_at} frames read {:.1} % were refused: {} torn metadata, {} torn payload, {} too late; \
                 {} of {published} published were skipped for newer ones",
                verified.wrong,
                verified.unreadable,
                share * 100.0,
                counter("torn_metadata"),
                counter("torn_payload"),
                counter("too_late"),
                counter("skipped"),
            ),
        );
        for line in verified.torn.iter().take(8) {
            case.say(format!("     torn: {line}"));
        }
        table.push(json!({
            "fps": fps, "published": published, "accepted": counter("frames"), "verified": accepted, "torn": torn,
            "refused": refused, "refused_share": share, "torn_metadata": counter("torn_metadata"),
            "torn_payload": counter("torn_payload"), "too_late": counter("too_late"), "skipped": counter("skipped"),
        }));
    }
    case.number("rates", table);
    Ok(())
}
