//! A writer that races the reader.

use std::collections::BTreeMap;
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

/// Frames per second.
const RATES: [u32; 4] = [30, 60, 200, 1000];
/// Of the interval, that the writer takes for its payload.
const WRITE_SHARE: f64 = 0.25;

/// Races that are run side by side, and the pictures that each of them needs. Writers keep a quarter of a core busy
/// each: as many as leave the readers one core of two.
fn heats(case: &Case) -> Vec<Vec<(u32, u64)>> {
    let wanted = case.settings.torn_frames;
    let is_wanted = |fps: u32| {
        let rates = &case.settings.torn_fps;
        rates.is_empty() || rates.contains(&fps)
    };
    let heats: Vec<Vec<(u32, u64)>> = if case.is_control() {
        return vec![vec![(60, 60)]];
    } else if wanted <= 1000 {
        vec![
            vec![(30, wanted), (60, wanted)],
            vec![(200, wanted)],
            vec![(1000, wanted)],
        ]
    } else {
        let rates = RATES.into_iter().zip([4_usize, 4, 2, 1]);
        rates
            .map(|(fps, pairs)| vec![(fps, wanted.div_ceil(pairs as u64)); pairs])
            .collect()
    };
    heats
        .into_iter()
        .map(|heat| {
            heat.into_iter()
                .filter(|(fps, _)| is_wanted(*fps))
                .collect()
        })
        .collect()
}

fn torn_read(case: &mut Case) -> Result<(), Fail> {
    let raised = Priority::raise().is_some();
    case.say(match raised {
        true => "the writers run in front of other programs, as a capture thread does",
        false => "the writers compete with other programs: this user may not raise its priority",
    });
    let mut table = Vec::new();
    for (heat, races) in heats(case).into_iter().enumerate() {
        let mut lanes = Vec::new();
        for (lane, (fps, wanted)) in races.into_iter().enumerate() {
            let beside = case.beside(&format!("{heat}{lane}"), &format!("rate_{fps}_{lane}"))?;
            lanes.push((beside, fps, wanted));
        }
        // Each with its own producer, streamer and receiver; what one takes from another is what other programs do.
        let raced: Vec<(Case, u32, Result<Race, String>)> = std::thread::scope(|scope| {
            let lanes = lanes.into_iter().map(|(mut beside, fps, wanted)| {
                scope.spawn(move || {
                    let race = race(&mut beside, fps, wanted).map_err(|error| error.to_string());
                    (beside, fps, race)
                })
            });
            let lanes: Vec<_> = lanes.collect();
            let ended = lanes.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended
                .map(|lane| lane.expect("a race does not panic"))
                .collect()
        });
        let mut of_rate: BTreeMap<u32, Race> = BTreeMap::new();
        for (beside, fps, race) in raced {
            case.take_in(beside);
            let race = race.map_err(|error| format!("{fps} fps: {error}"))?;
            of_rate.entry(fps).or_default().add(race);
        }
        for (fps, mut of_rate) in of_rate {
            // A thousand pictures tell a reader that tears from one that does not, and not one in 10,000 from none: on a
            // machine without a core for the writer that was seen. Once more, and both are in the numbers.
            let once_more =
                !case.is_control() && of_rate.wanted <= 1000 && !of_rate.torn.is_empty();
            if once_more {
                let first = of_rate.torn.len();
                case.say(format!("     {fps} fps: {first} torn; this rate once more"));
                case.number("torn_at_first", json!([[fps, first]]));
                let mut beside = case.beside(&format!("{heat}m"), &format!("rate_{fps}_more"))?;
                let again = race(&mut beside, fps, of_rate.wanted);
                case.take_in(beside);
                of_rate = again?;
            }
            table.push(judge(case, fps, &of_rate));
        }
    }
    case.number("rates", table);
    Ok(())
}

/// What one rate came to.
#[derive(Debug, Default)]
struct Race {
    wanted: u64,
    published: u64,
    /// Pictures that were decoded and looked at.
    looked_at: u64,
    torn: Vec<String>,
    /// A writer that stands still in the middle of the next frame for as long as a whole read cannot be told from
    /// one that has not begun: counted apart (docs/threat-model.md).
    by_held_writer: u64,
    /// Before anybody knew the producer's rhythm, or what is late.
    in_first_second: u64,
    frames_with_held_writer: u64,
    wrong: u64,
    unreadable: u64,
    counters: BTreeMap<&'static str, u64>,
}

impl Race {
    fn add(&mut self, other: Race) {
        self.wanted += other.wanted;
        self.published += other.published;
        self.looked_at += other.looked_at;
        self.torn.extend(other.torn);
        self.by_held_writer += other.by_held_writer;
        self.in_first_second += other.in_first_second;
        self.frames_with_held_writer += other.frames_with_held_writer;
        self.wrong += other.wrong;
        self.unreadable += other.unreadable;
        for (name, count) in other.counters {
            *self.counters.entry(name).or_default() += count;
        }
    }

    fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

/// Reasons for which a read was refused that had a frame before it.
const REFUSED: [&str; 5] = [
    "torn_metadata",
    "torn_payload",
    "too_late",
    "not_ready",
    "bad_metadata",
];

fn judge(case: &mut Case, fps: u32, race: &Race) -> serde_json::Value {
    let count = |name| race.counter(name);
    let refused: u64 = REFUSED.map(count).iter().sum();
    let read = refused + count("frames");
    let share = refused as f64 / read.max(1) as f64;
    let torn = race.torn.len() as u64;
    let allowed = if fps > 200 {
        race.looked_at / 10_000
    } else {
        0
    };
    let Race {
        wanted,
        published,
        looked_at,
        by_held_writer,
        in_first_second,
        frames_with_held_writer,
        wrong,
        unreadable,
        ..
    } = race;
    case.check(
        "pictures",
        torn <= allowed && *wrong == 0 && *unreadable == 0 && looked_at >= wanted,
        format!(
            "{fps} fps: {looked_at} accepted pictures looked at, {torn} torn (at most {allowed}), {wrong} wrong, {unreadable} unreadable, \
             {by_held_writer} torn by a writer that stood still in mid-payload ({frames_with_held_writer} of its frames did), \
             {in_first_second} in the first second; of {read} frames read {:.1} % were refused: {} torn metadata, {} torn payload, \
             {} too late; {} of {published} published were skipped for newer ones",
            share * 100.0,
            count("torn_metadata"),
            count("torn_payload"),
            count("too_late"),
            count("skipped"),
        ),
    );
    json!({
        "fps": fps, "published": published, "accepted": count("frames"), "verified": looked_at, "torn": torn,
        "torn_by_held_writer": by_held_writer, "torn_in_first_second": in_first_second,
        "frames_with_held_writer": frames_with_held_writer, "refused": refused, "refused_share": share,
        "torn_metadata": count("torn_metadata"), "torn_payload": count("torn_payload"),
        "too_late": count("too_late"), "skipped": count("skipped"),
    })
}

/// One writer against one reader, until `wanted` pictures have arrived.
fn race(case: &mut Case, fps: u32, wanted: u64) -> Result<Race, Fail> {
    let setup = Setup {
        fps,
        ..Setup::with(&["--quality", "24"])
    };
    let mut rig = Rig::start_as(case, setup, |feed| {
        feed.write_time = Duration::from_secs_f64(WRITE_SHARE / f64::from(fps));
    })?;
    // Not before the streamer is started, which would inherit it.
    let raised = Priority::raise();
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
    let held = rig.held(case);
    let times = std::mem::take(&mut rig.feed()?.times);
    let outcome = rig.finish(case, Pictures::Any)?;
    let stream = case.path("streamer.h264");
    let verified = crate::faults::probe::verify(&stream, &outcome.ids, 640, 360)?;
    // A hundred thousand pictures are a quarter of a gigabyte.
    if verified.torn.is_empty() {
        let _ = std::fs::remove_file(stream);
    }
    for mixed in verified.torn.iter().take(20) {
        let when = |id: u32| times.get(&id).copied();
        let (before, this, next) = (
            when(mixed.id.wrapping_sub(1)),
            when(mixed.id),
            when(mixed.id.wrapping_add(1)),
        );
        let apart = |a: Option<Instant>, b: Option<Instant>| {
            a.zip(b).map(|(a, b)| b.saturating_duration_since(a))
        };
        case.say(format!(
            "     torn: {fps} fps, {}; announced {:.1?} after the one before, its writing took {:.1?}, the next was begun {:.1?} after it and took {:.1?}",
            mixed.text,
            apart(before.map(|t| t.1), this.map(|t| t.1)),
            apart(this.map(|t| t.0), this.map(|t| t.1)),
            apart(this.map(|t| t.1), next.map(|t| t.0)),
            apart(next.map(|t| t.0), next.map(|t| t.1)),
        ));
    }
    let (early, later): (Vec<&Mixed>, Vec<&Mixed>) =
        verified.torn.iter().partition(|mixed| mixed.id < first_id);
    let (by_held, torn): (Vec<&Mixed>, Vec<&Mixed>) = later
        .into_iter()
        .partition(|mixed| held.contains(&mixed.id));
    let counters = REFUSED.into_iter().chain(["frames", "skipped"]);
    Ok(Race {
        wanted,
        published,
        looked_at: verified.pictures,
        torn: torn.into_iter().map(|mixed| mixed.text.clone()).collect(),
        by_held_writer: by_held.len() as u64,
        in_first_second: early.len() as u64,
        frames_with_held_writer: held.len() as u64,
        wrong: verified.wrong,
        unreadable: verified.unreadable,
        counters: counters
            .map(|name| (name, source_count(&outcome.report, name)))
            .collect(),
    })
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
