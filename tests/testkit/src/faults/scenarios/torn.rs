//! A writer that races the reader.

use std::time::{Duration, Instant};

use rustix::process::{getpriority_process, setpriority_process};
use serde_json::json;

use crate::faults::case::Case;
use crate::faults::probe::Mixed;
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
    let rates: Vec<_> = if case.is_control() {
        vec![RATES[1]]
    } else {
        let wanted = &case.settings.torn_fps;
        let among = |(fps, _): &(u32, f64)| wanted.is_empty() || wanted.contains(fps);
        RATES.into_iter().filter(among).collect()
    };
    for (fps, share) in rates {
        let wanted = if case.is_control() {
            60
        } else {
            case.settings.torn_frames
        };
        let setup = Setup {
            fps,
            tag: format!("rate_{fps}"),
            ..Setup::with(&["--quality", "24"])
        };
        let mut rig = Rig::start_as(case, setup, |feed| {
            feed.write_time = Duration::from_secs_f64(share / f64::from(fps));
        })?;
        // Not before the streamer is started, which would inherit it.
        let raised = Priority::raise();
        if fps == 30 {
            case.say(match raised.is_some() {
                true => "the writer runs in front of other programs, as a capture thread does",
                false => {
                    "the writer competes with other programs: this user may not raise its priority"
                }
            });
        }
        // The control publishes what a torn read would give: metadata that say nothing of it.
        rig.feed()?.torn = case.is_control();
        let (probe, first) = (&rig.probe, rig.probe.count());
        let first_id = rig.feed.as_ref().map_or(0, |feed| feed.id);
        let limit = Duration::from_secs(30 + wanted * 4 / u64::from(fps.min(100)));
        if let Some(feed) = &mut rig.feed {
            feed.run_until(fps, limit, |_| (probe.count() - first) as u64 >= wanted)?;
        }
        drop(raised);
        let published = rig.feed()?.published;
        let writer_held = rig.writes.held();
        let times = std::mem::take(&mut rig.feed()?.times);
        let outcome = rig.finish(case, Pictures::Any)?;
        let verified = {
            let stream = case.path(&format!("rate_{fps}.h264"));
            crate::faults::probe::verify(&stream, &outcome.ids, 640, 360)?
        };
        let accepted = verified.pictures;
        // A writer that stands still in the middle of the next frame for as long as a whole read cannot be told from
        // one that has not begun: counted apart (docs/threat-model.md).
        let (held, torn): (Vec<&Mixed>, Vec<&Mixed>) = verified
            .torn
            .iter()
            // In its first moments nobody knows the producer's rhythm, nor what is late.
            .filter(|mixed| mixed.id >= first_id)
            .partition(|mixed| writer_held.contains(&mixed.id));
        let (torn, held) = (
            torn.into_iter().map(|t| &t.text).collect::<Vec<_>>(),
            held.len(),
        );
        let torn_count = torn.len() as u64;
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
        let enough = accepted >= wanted;
        case.check(
            "pictures",
            torn_count <= allowed && verified.wrong == 0 && verified.unreadable == 0 && enough,
            format!(
                "{fps} fps: {accepted} accepted pictures looked at, {torn_count} torn (at most {allowed}), {} wrong, {} unreadable, \
                 {held} torn by a writer that stood still in mid-payload ({} of its frames did); \
                 of {looked_at} frames read {:.1} % were refused: {} torn metadata, {} torn payload, {} too late; \
                 {} of {published} published were skipped for newer ones",
                verified.wrong,
                verified.unreadable,
                writer_held.len(),
                share * 100.0,
                counter("torn_metadata"),
                counter("torn_payload"),
                counter("too_late"),
                counter("skipped"),
            ),
        );
        for mixed in verified.torn.iter().take(20) {
            let line = &mixed.text;
            let when = |id: u32| times.get(&id).copied();
            let (before, this, next) = (
                when(mixed.id.wrapping_sub(1)),
                when(mixed.id),
                when(mixed.id.wrapping_add(1)),
            );
            let apart = |a: Option<Instant>, b: Option<Instant>| {
                a.zip(b).map(|(a, b)| b.saturating_duration_since(a))
            };
            let line = format!(
                "{line}; announced {:.1?} after the one before, its writing took {:.1?}, the next was begun {:.1?} after it and took {:.1?}",
                apart(before.map(|t| t.1), this.map(|t| t.1)),
                apart(this.map(|t| t.0), this.map(|t| t.1)),
                apart(this.map(|t| t.1), next.map(|t| t.0)),
                apart(next.map(|t| t.0), next.map(|t| t.1)),
            );
            case.say(format!("     torn: {line}"));
        }
        table.push(json!({
            "fps": fps, "published": published, "accepted": counter("frames"), "verified": accepted, "torn": torn_count, "torn_by_held_writer": held, "torn_in_first_second": verified.torn.iter().filter(|t| t.id < first_id).count(), "frames_with_held_writer": writer_held.len(),
            "refused": refused, "refused_share": share, "torn_metadata": counter("torn_metadata"),
            "torn_payload": counter("torn_payload"), "too_late": counter("too_late"), "skipped": counter("skipped"),
        }));
    }
    case.number("rates", table);
    Ok(())
}

/// This thread above ordinary ones, as long as this is there: a starved writer says nothing about the reader.
struct Priority {
    before: i32,
}

impl Priority {
    /// `None` where that is not allowed.
    fn raise() -> Option<Self> {
        let before = getpriority_process(None).ok()?;
        setpriority_process(None, -15).ok()?;
        Some(Priority { before })
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        // Back down is always allowed.
        let _ = setpriority_process(None, self.before);
    }
}
