//! Networks and receivers.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::faults::case::Case;
use crate::faults::probe::Probe;
use crate::faults::relay::Relay;
use crate::faults::rig::{Fail, GAP, Pictures, Rig, Setup};
use crate::faults::suite::Scenario;

pub const RECEIVER_GONE: Scenario = Scenario {
    name: "receiver_gone",
    promise: "a receiver that is gone (ICMP) disturbs no other, and has a picture within a GOP when it is back",
    play: receiver_gone,
    control_fails: &["returned"],
};

fn receiver_gone(case: &mut Case) -> Result<(), Fail> {
    let mut second = Probe::start(0, case.path("second.h264"))?;
    let port = second.port;
    let mut rig = Rig::start(
        case,
        Setup::with(&["--rtp-endpoint", &format!("127.0.0.1:{port}")]),
    )?;
    second.stop()?;
    drop(second);
    let from = Instant::now();
    rig.run(3.0)?;
    let third = match case.is_control() {
        true => None,
        false => Some(start_again(port, case.path("third.h264"))?),
    };
    let back = Instant::now();
    rig.run(3.5)?;
    rig.check_gap(case, from, GAP);
    let key = third
        .as_ref()
        .and_then(|probe| probe.units().into_iter().find(|u| u.key));
    let took = key.map(|key| key.at.saturating_duration_since(back));
    case.number("picture_after_ms", took.map(|took| took.as_millis() as u64));
    case.check(
        "returned",
        took.is_some_and(|took| took < A_GOP),
        format!("first key frame at the receiver that is back after {took:.0?}"),
    );
    rig.finish(case, Pictures::All)?;
    Ok(())
}

/// 30 pictures are a second where none is left out; a busy machine leaves out half of them.
const A_GOP: Duration = Duration::from_millis(2500);

/// A receiver at a port that one was at before. A child that is being started meanwhile may hold a copy of its socket
/// until it runs its program.
pub(super) fn start_again(port: u16, dump: PathBuf) -> io::Result<Probe> {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        match Probe::start(port, dump.clone()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

pub const LOSSY_NETWORK: Scenario = Scenario {
    name: "lossy_network",
    promise: "after lost, doubled, late and reordered packets the picture is right again within one GOP",
    play: lossy_network,
    control_fails: &["repaired"],
};

fn lossy_network(case: &mut Case) -> Result<(), Fail> {
    let probe = Probe::start(0, case.path("streamer.h264"))?;
    let relay = Relay::start(probe.port, case.settings.seed)?;
    case.say("network: a user-space relay");
    let setup = Setup {
        via: Some(relay.port),
        ..Setup::with(&["--bitrate", "2M", "--gop", "30", "--rtp-mtu", "1000"])
    };
    let mut rig = Rig::start_at(case, setup, probe, |feed| feed.add_grain(30))?;
    let weather = &relay.weather;
    weather.lost.store(50, Ordering::Relaxed);
    weather.doubled.store(20, Ordering::Relaxed);
    weather.reordered.store(50, Ordering::Relaxed);
    weather.delay_ms.store(15, Ordering::Relaxed);
    rig.run(6.0)?;
    let dropped = weather.dropped.load(Ordering::Relaxed);
    if case.is_control() {
        weather.lost.store(600, Ordering::Relaxed);
    } else {
        weather.clear();
    }
    let calm = Instant::now();
    rig.run(5.0)?;
    // Whole pictures in a row from the first whole key frame on.
    let units = rig.probe.units();
    let key = units.iter().position(|unit| unit.key && unit.at > calm);
    let after = key.map(|key| units[key].at - calm);
    let clean = key.map_or(0, |key| units.len() - key);
    let gap = key.map_or(Duration::MAX, |key| {
        rig.probe.longest_gap(units[key].at, Instant::now())
    });
    case.number("datagrams_lost", dropped);
    case.number(
        "repaired_after_ms",
        after.map(|after| after.as_millis() as u64),
    );
    case.check(
        "repaired",
        after.is_some_and(|after| after < A_GOP)
            && clean > 30
            && gap < GAP,
        format!("key frame {after:.0?} after the last loss, {clean} whole pictures since, longest gap {gap:.0?}"),
    );
    case.check("lost", dropped > 5, format!("{dropped} datagrams lost"));
    let outcome = rig.finish(case, Pictures::AfterLoss)?;
    case.number("damaged", outcome.counts.damaged);
    Ok(())
}
