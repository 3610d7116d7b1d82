//! One streamer through fault after fault, as a seed says, for a time of choice.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::network::start_again;
use super::rtmp::{Hostile, Manner, Serving, options};
use super::{nats, producer};
use crate::faults::case::Case;
use crate::faults::evidence::Evidence;
use crate::faults::feed::{Feed, Pace};
use crate::faults::probe::{self, Probe, Verified};
use crate::faults::process::{Process, Sample};
use crate::faults::rig::{Fail, Pictures, Rig, Setup};
use crate::faults::suite::Row;
use crate::faults::timeline::Timeline;
use crate::nats::Nats;
use crate::noise::Noise;
use crate::ports::{Reserved, reserve_tcp};
use crate::rtmp::server::{Faults, Server};

/// A fault that the streamer lives through.
struct Fault {
    name: &'static str,
    play: fn(&mut Soak) -> Result<(), Fail>,
}

const FAULTS: &[Fault] = &[
    fault("clean_restart", clean_restart),
    fault("killed_producer", killed_producer),
    fault("resize", resize),
    fault("segment_gone", segment_gone),
    fault("two_producers", two_producers),
    fault("clock_jumps", clock_jumps),
    fault("ids_jump", ids_jump),
    fault("garbage", garbage),
    fault("reset_storm", reset_storm),
    fault("slow_writer", slow_writer),
    fault("receiver_gone", receiver_gone),
    fault("rtmp_killed", rtmp_killed),
    fault("rtmp_stalled", rtmp_stalled),
    fault("rtmp_noise", |soak| rtmp_hostile(soak, Manner::Noise)),
    fault("rtmp_silent", |soak| rtmp_hostile(soak, Manner::HalfOpen)),
    fault("nats_lost", nats_lost),
    fault("stood_still", stood_still),
];

const fn fault(name: &'static str, play: fn(&mut Soak) -> Result<(), Fail>) -> Fault {
    Fault { name, play }
}

/// The streamer and all that it talks to.
struct Soak {
    rig: Rig,
    names: crate::names::Names,
    noise: Noise,
    /// Held: a server that is away is refused, and nobody takes its place.
    rtmp_at: Reserved,
    rtmp: Option<Serving>,
    nats_at: Reserved,
    /// `None` where there is no nats-server on this machine.
    nats: Option<Process>,
    second: Probe,
    second_dump: std::path::PathBuf,
}

/// From the end of a fault to a picture that was taken after it.
const BACK: Duration = Duration::from_secs(3);
/// Units that have to come before the next fault, and how many of them may not be right: with a writer that stood
/// still one cannot be.
const CALM: usize = 15;
const CALM_WRONG: usize = 1;

/// Plays faults for so long, and gives a row for each and one of the whole.
///
/// # Errors
///
/// If the streamer cannot be started, or the evidence not be written.
pub fn run(
    mut case: Case,
    seconds: u64,
    evidence: &mut Evidence,
    facts: &serde_json::Value,
) -> Result<Vec<Row>, Fail> {
    println!("=== soak: one streamer for {seconds} s, in the order of the seed");
    let (start, length) = (Instant::now(), Duration::from_secs(seconds));
    // A minute is what memory has to settle; of a short soak a quarter.
    let settled = (length / 4).min(Duration::from_secs(60));
    let mut measured = false;
    let mut soak = Soak::start(&mut case)?;
    let (mut rows, mut calms, mut order) = (Vec::new(), Vec::new(), Vec::new());
    while start.elapsed() < length {
        if !measured && start.elapsed() >= settled {
            measured = true;
            soak.rig.measure_from_now();
        }
        // Each once, in another order each time.
        if order.is_empty() {
            order = (0..FAULTS.len()).collect();
            for n in (1..order.len()).rev() {
                order.swap(n, soak.noise.below(n as u64 + 1) as usize);
            }
        }
        let fault = order.pop().map_or(&FAULTS[0], |n| &FAULTS[n]);
        if fault.name == "nats_lost" && soak.nats.is_none() {
            continue;
        }
        let (began, checks) = (Instant::now(), case.checks.len());
        let before = (soak.rig.writes.published(), soak.rig.probe.count() as u64);
        case.numbers.clear();
        case.say(format!(
            "{:5.1} s {}",
            (began - start).as_secs_f64(),
            fault.name
        ));
        if let Err(error) = (fault.play)(&mut soak) {
            case.check("played", false, format!("{}: {error}", fault.name));
        }
        let calm = soak.calm(&mut case)?;
        calms.push((fault.name, calm));
        let published = soak.rig.writes.published() - before.0;
        let received = soak.rig.probe.count() as u64 - before.1;
        case.number("published", published);
        case.number("received", received);
        let row = soak.row(&case, fault.name, began, checks);
        rows.push(with_lost(row, published.saturating_sub(received)));
        evidence.write(&rows, facts)?;
    }
    if !measured {
        soak.rig.measure_from_now();
    }
    let (began, checks) = (Instant::now(), case.checks.len());
    case.numbers.clear();
    soak.end(&mut case, &calms)?;
    rows.push(Row {
        name: "whole",
        promise: "one streamer through all of it: nothing leaks, and what it sends is right again after each fault",
        ..row(&case, "whole", began, checks)
    });
    if let Some(last) = rows.last_mut() {
        last.timeline = std::mem::take(&mut case.timeline);
        last.exit_codes = std::mem::take(&mut case.exit_codes);
    }
    evidence.write(&rows, facts)?;
    Ok(rows)
}

/// A row of what has been checked since.
fn row(case: &Case, name: &'static str, began: Instant, checks: usize) -> Row {
    let checks = case.checks[checks..].to_vec();
    let failed: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
    let reason = failed
        .iter()
        .map(|check| format!("{}: {}", check.name, check.text))
        .collect::<Vec<_>>()
        .join("; ");
    Row {
        name,
        promise: "a picture that was taken after the fault within 3 s, and right ones from then on",
        status: if failed.is_empty() { "pass" } else { "fail" },
        reason,
        seconds: began.elapsed().as_secs_f64(),
        exit_codes: serde_json::Map::new(),
        counts: case.numbers.clone(),
        checks,
        control: Default::default(),
        log: case.path("scenario.log").display().to_string(),
        began,
        timeline: Timeline::default(),
    }
}

/// Of a fault, the frames that no unit came of: known now, while the streamer's own report comes at its end.
fn with_lost(mut row: Row, lost: u64) -> Row {
    if let Some(last) = row.timeline.0.last_mut() {
        last.lost = lost;
    }
    row
}

impl Soak {
    fn start(case: &mut Case) -> Result<Self, Fail> {
        let (rtmp_at, nats_at) = (reserve_tcp(), reserve_tcp());
        let rtmp = Serving::start(Server::open(options(rtmp_at.port))?);
        let nats = nats::server(nats_at.port).ok();
        if nats.is_none() {
            case.say("without nats_lost: nats-server is not installed (scripts/setup.sh --test)");
        }
        let second_dump = case.path("second.h264");
        let second = Probe::start(0, second_dump.clone())?;
        let mut setup = Setup {
            // Pictures of 1280x720 are among it, and have to be given back.
            growth_mib: producer::WORKING_SET_MIB,
            ..Setup::with(&["--quality", "24", "--rtmp", "--rtmp-max-backoff-ms", "500"])
        };
        let further = [
            "--rtp-endpoint".to_owned(),
            SocketAddr::from(([127, 0, 0, 1], second.port)).to_string(),
            "--rtmp-url".to_owned(),
            format!("rtmp://127.0.0.1:{}/live/key", rtmp_at.port),
            "--rtp-sdp".to_owned(),
            case.path("soak.sdp").display().to_string(),
        ];
        setup.flags.extend(further);
        if nats.is_some() {
            let url = format!("nats://127.0.0.1:{}", nats_at.port);
            setup.flags.extend(["--nats-url".to_owned(), url]);
        }
        Ok(Soak {
            rig: Rig::start(case, setup)?,
            names: case.names.clone(),
            noise: Noise::new(case.random()),
            rtmp_at,
            rtmp: Some(rtmp),
            nats_at,
            nats,
            second,
            second_dump,
        })
    }

    /// Up to `limit`, from the seed.
    fn some(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.noise.below(limit))
    }

    /// Everything is as it should be: gives which units came then.
    fn calm(&mut self, case: &mut Case) -> Result<std::ops::Range<usize>, Fail> {
        self.rig.check_recovery(case, Instant::now(), BACK)?;
        let (probe, fps) = (&self.rig.probe, self.rig.setup.fps);
        let from = probe.count();
        let enough = |_: &Feed| probe.count() >= from + CALM;
        let came = match &mut self.rig.feed {
            Some(feed) => feed.run_until(fps, Duration::from_secs(20), enough)?,
            None => false,
        };
        case.check("goes_on", came, format!("{CALM} more units came"));
        Ok(from..from + CALM)
    }

    fn row(&self, case: &Case, name: &'static str, began: Instant, checks: usize) -> Row {
        let mut row = row(case, name, began, checks);
        let samples = self.rig.streamer.vitals.all();
        let since: Vec<Sample> = samples.into_iter().filter(|s| s.at >= began).collect();
        let units = self.rig.probe.units();
        let since_units = units.partition_point(|unit| unit.at < began);
        row.timeline.add(&since, &units[since_units..], 0);
        row
    }

    /// Ends all and judges the whole.
    fn end(
        mut self,
        case: &mut Case,
        calms: &[(&str, std::ops::Range<usize>)],
    ) -> Result<(), Fail> {
        self.rig.run(3.0)?;
        let held = self.rig.writes.held();
        let outcome = self.rig.finish(case, Pictures::Any)?;
        // All of it has been drawn already.
        case.timeline = Timeline::default();
        case.check(
            "wire",
            outcome.counts.violations.is_empty() && outcome.counts.times_going_back == 0,
            format!(
                "{} RTP violations, {} times going back, {} packets lost {}",
                outcome.counts.violations.len(),
                outcome.counts.times_going_back,
                outcome.counts.lost,
                outcome.counts.violations.join("; ")
            ),
        );
        let stream = case.path("streamer.h264");
        let verified = probe::verify(&stream, &outcome.ids, 640, 360)?;
        let wrong = wrong_calms(&verified, calms);
        case.number("faults", calms.len());
        case.number("units", outcome.ids.len());
        case.number("pictures_right", verified.right);
        case.number("undecoded", verified.undecoded);
        case.check(
            "repaired",
            wrong.is_empty(),
            format!(
                "after {} of {} faults more than {CALM_WRONG} of {CALM} pictures were not right: {}; {} of {} pictures right in all, {} torn, {} wrong, {} unreadable, {} undecoded; {} frames of a writer that stood still",
                wrong.len(),
                calms.len(),
                wrong.join(", "),
                verified.right,
                verified.pictures,
                verified.torn.len(),
                verified.wrong,
                verified.unreadable,
                verified.undecoded,
                held.len(),
            ),
        );
        drop((self.rtmp, self.nats, self.second));
        Ok(())
    }
}

/// The faults behind which pictures were not right. `calms`: the units that came when all was well again.
fn wrong_calms(verified: &Verified, calms: &[(&str, std::ops::Range<usize>)]) -> Vec<String> {
    let right = |calm: &std::ops::Range<usize>| {
        let units = verified.units.get(calm.clone()).unwrap_or_default();
        units.iter().filter(|unit| **unit == Some(true)).count()
    };
    calms
        .iter()
        .enumerate()
        .map(|(n, (name, calm))| (n, name, right(calm)))
        .filter(|(_, _, right)| right + CALM_WRONG < CALM)
        .map(|(n, name, right)| format!("{name} (number {n}): {right} right"))
        .collect()
}

fn new_producer(soak: &mut Soak) -> Result<(), Fail> {
    soak.rig.feed = Some(Feed::open(&soak.names, 640, 360, &soak.rig.writes)?);
    Ok(())
}

fn clean_restart(soak: &mut Soak) -> Result<(), Fail> {
    soak.rig.feed = None;
    std::thread::sleep(soak.some(1500));
    new_producer(soak)
}

fn killed_producer(soak: &mut Soak) -> Result<(), Fail> {
    if let Some(feed) = soak.rig.feed.take() {
        feed.producer.abandon();
    }
    std::thread::sleep(soak.some(800));
    new_producer(soak)
}

fn resize(soak: &mut Soak) -> Result<(), Fail> {
    for _ in 0..4 {
        let sizes = [(1280, 720), (320, 180), (960, 540), (160, 120)];
        let (width, height) = sizes[soak.noise.below(sizes.len() as u64) as usize];
        let feed = soak.rig.feed()?;
        // Announced, and gone the moment after.
        feed.publish()?;
        feed.resize(width, height)?;
        soak.rig.run(0.2)?;
    }
    let feed = soak.rig.feed()?;
    feed.publish()?;
    Ok(feed.resize(640, 360)?)
}

fn segment_gone(soak: &mut Soak) -> Result<(), Fail> {
    let feed = soak.rig.feed.take().ok_or("no producer")?;
    let (name, flags) = (soak.names.shm_name.as_str(), rustix::shm::OFlags::RDWR);
    let file = rustix::shm::open(name, flags, rustix::fs::Mode::empty())?;
    feed.producer.abandon();
    rustix::fs::ftruncate(&file, 0)?;
    rustix::shm::unlink(name)?;
    std::thread::sleep(soak.some(1500));
    new_producer(soak)
}

fn two_producers(soak: &mut Soak) -> Result<(), Fail> {
    let time = Duration::from_millis(800);
    let mut second = Feed::open(&soak.names, 640, 360, &soak.rig.writes)?;
    second.id = 5000;
    let other = std::thread::spawn(move || second.run(47, time));
    soak.rig.run(time.as_secs_f64())?;
    other.join().map_err(|_| "the second producer panicked")??;
    soak.rig.feed = None;
    new_producer(soak)
}

fn clock_jumps(soak: &mut Soak) -> Result<(), Fail> {
    let hour = 3_600_000_000_000_i64;
    for _ in 0..3 {
        let jumps = [
            hour,
            -hour,
            24 * hour,
            -10_000_000,
            1_000_000_000,
            i64::MIN / 2,
        ];
        let jump = jumps[soak.noise.below(jumps.len() as u64) as usize];
        soak.rig.feed()?.clock_offset = jump;
        soak.rig.run(0.4)?;
    }
    soak.rig.feed()?.clock_offset = 0;
    soak.rig.run(0.2)
}

fn ids_jump(soak: &mut Soak) -> Result<(), Fail> {
    // To the end of the numbers, which wrap, and anywhere back.
    for id in [u32::MAX - 5, u32::MAX - soak.noise.below(1 << 30) as u32] {
        soak.rig.feed()?.id = id;
        soak.rig.run(0.5)?;
    }
    Ok(())
}

fn garbage(soak: &mut Soak) -> Result<(), Fail> {
    let mut message = [0_u8; 300];
    for _ in 0..40 {
        for _ in 0..300 {
            let length = 1 + soak.noise.below(299) as usize;
            soak.noise.fill(&mut message[..length]);
            // What subscribers filter by.
            message[0] = 0x7D;
            let feed = soak.rig.feed()?;
            feed.producer.announce_raw(&message[..length])?;
        }
        let [at, length] = [256, 256].map(|end| soak.noise.below(end) as usize);
        let feed = soak.rig.feed()?;
        feed.draw();
        feed.write_drawn()?;
        feed.producer.write_spoilt_metadata(at, length);
        feed.producer.announce()?;
        feed.count();
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn reset_storm(soak: &mut Soak) -> Result<(), Fail> {
    let mut pace = Pace::new(100);
    for _ in 0..100 {
        let back = soak.noise.below(5) as u32;
        let feed = soak.rig.feed()?;
        feed.id = match back {
            0 => 0,
            back => feed.id.wrapping_sub(back),
        };
        feed.draw();
        pace.wait();
        feed.publish_drawn()?;
        if back == 3 {
            feed.producer.announce()?;
        }
    }
    Ok(())
}

fn slow_writer(soak: &mut Soak) -> Result<(), Fail> {
    soak.rig.feed()?.write_time = Duration::from_millis(12);
    let ran = soak.rig.run(1.0);
    soak.rig.feed()?.write_time = Duration::ZERO;
    ran
}

fn receiver_gone(soak: &mut Soak) -> Result<(), Fail> {
    let port = soak.second.port;
    soak.second.stop()?;
    // Its socket goes with it.
    soak.second = Probe::start(0, soak.second_dump.with_extension("meanwhile"))?;
    soak.rig.run(1.0)?;
    soak.second = start_again(port, soak.second_dump.clone())?;
    Ok(())
}

/// A server again at the address of the one that went.
fn serve_again(soak: &mut Soak, faults: Faults) -> Result<(), Fail> {
    if let Some(server) = soak.rtmp.take() {
        server.end()?;
    }
    let mut options = options(soak.rtmp_at.port);
    options.faults = faults;
    let patience = Instant::now() + Duration::from_secs(10);
    let server = loop {
        match Server::open(options.clone()) {
            // As with a receiver: a child that is being started may hold a copy.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            server => break server?,
        }
    };
    soak.rtmp = Some(Serving::start(server));
    Ok(())
}

fn rtmp_killed(soak: &mut Soak) -> Result<(), Fail> {
    if let Some(server) = soak.rtmp.take() {
        server.end()?;
    }
    soak.rig.run(1.0)?;
    serve_again(soak, Faults::default())
}

fn rtmp_stalled(soak: &mut Soak) -> Result<(), Fail> {
    serve_again(
        soak,
        Faults {
            stall_after: Some(5000),
            every_connection: true,
            ..Faults::default()
        },
    )?;
    soak.rig.run(2.0)?;
    serve_again(soak, Faults::default())
}

fn rtmp_hostile(soak: &mut Soak, manner: Manner) -> Result<(), Fail> {
    if let Some(server) = soak.rtmp.take() {
        server.end()?;
    }
    let hostile = Hostile::start(manner, soak.rtmp_at.port)?;
    soak.rig.run(1.5)?;
    drop(hostile);
    serve_again(soak, Faults::default())
}

fn nats_lost(soak: &mut Soak) -> Result<(), Fail> {
    if let Some(running) = &mut soak.nats {
        nats::kill(running);
    }
    soak.rig.run(1.0)?;
    soak.nats = Some(nats::server(soak.nats_at.port)?);
    let (client, _) = Nats::connect(&format!("nats://127.0.0.1:{}", soak.nats_at.port))?;
    let [events, bodies] = nats::nonsense();
    let key = &soak.names.nats_key;
    for _ in 0..10 {
        client.publish_all(&format!("cvmmap.{key}.status"), &events);
        client.publish_all(&format!("cvmmap.{key}.body"), &bodies);
        soak.rig.run(0.1)?;
    }
    Ok(())
}

/// As a machine that was suspended, with a second of frames behind it.
fn stood_still(soak: &mut Soak) -> Result<(), Fail> {
    soak.rig.streamer.process.signal(Signal::STOP);
    let fed = soak.rig.run(1.0);
    soak.rig.streamer.process.signal(Signal::CONT);
    fed
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_calm_with_wrong_pictures_is_named() {
        let names: HashSet<_> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        let mut units = vec![Some(true); 3 * CALM];
        // One that nobody could see, and two.
        units[3] = Some(false);
        units[CALM + 1] = Some(false);
        units[CALM + 2] = None;
        let verified = Verified {
            units,
            ..Verified::default()
        };
        let calms = [
            ("a", 0..CALM),
            ("b", CALM..2 * CALM),
            ("c", 2 * CALM..3 * CALM),
        ];
        assert_eq!(wrong_calms(&verified, &calms), ["b (number 1): 13 right"]);
        assert_eq!(wrong_calms(&verified, &[("d", 40..40 + CALM)]).len(), 1);
    }
}
