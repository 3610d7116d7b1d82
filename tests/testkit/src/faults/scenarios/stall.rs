//! Sinks that do not take what they are given.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::faults::case::Case;
use crate::faults::rig::{Fail, GAP, Pictures, Rig, Setup};
use crate::faults::suite::Scenario;
use crate::rtmp::report::Report;
use crate::rtmp::server::{Faults, Options, Server};
use crate::rtmp::video::Mode;
use crate::worker::Worker;

pub const SINK_STALL: Scenario = Scenario {
    name: "sink_stall",
    promise: "a server that stops reading, one that reads too slowly and a receiver that never reads slow nobody else",
    play: sink_stall,
    control_fails: &["gap", "stalled", "slowed"],
};

/// A server with `faults` at every connection, and where it is. Its small buffer makes a stall felt at once.
fn serve(faults: Faults) -> io::Result<(Worker<io::Result<Report>>, String)> {
    let mut options = Options::new(Mode::H264);
    options.connections = 1000;
    options.timeout = Duration::from_secs(120);
    options.runs_on = true;
    options.receive_buffer = Some(8192);
    options.faults = Faults {
        every_connection: true,
        ..faults
    };
    let server = Server::open(options)?;
    let url = format!("rtmp://{}/live/key", server.address()?);
    Ok((Worker::start(move |stop| server.run(stop)), url))
}

fn sink_stall(case: &mut Case) -> Result<(), Fail> {
    // Closed TCP window: reads 300 kB, then nothing more, each time.
    let stalled = Faults {
        stall_after: (!case.is_control()).then_some(300_000),
        ..Faults::default()
    };
    // A fiftieth of the stream's rate.
    let slow = Faults {
        slow: (!case.is_control()).then_some(20_000),
        ..Faults::default()
    };
    let [stalled, slow] = [stalled, slow].map(serve);
    let ((stalled, stalled_url), (slow, slow_url)) = (stalled?, slow?);
    // A receiver that never reads, with as little room as the system gives.
    let deaf = UdpSocket::bind("127.0.0.1:0")?;
    let deaf_at = deaf.local_addr()?;

    let setup = Setup::with(&[
        "--bitrate",
        "8M",
        "--rtp-endpoint",
        &deaf_at.to_string(),
        "--rtmp",
        "--rtmp-url",
        &stalled_url,
        "--rtmp-url",
        &slow_url,
    ]);
    let mut rig = Rig::start_as(case, setup, |feed| feed.add_grain(40))?;
    let from = Instant::now();
    // Longer than the sink's patience of 8 s, so that it gives up the connection and tries again.
    rig.run(if case.is_control() { 2.0 } else { 14.0 })?;
    if case.is_control() {
        rig.freeze()?;
    }
    rig.check_gap(case, from, GAP);
    let outcome = rig.finish(case, Pictures::Any)?;
    let connections = |server: Worker<io::Result<Report>>| -> Result<usize, Fail> {
        let report = server.end().map_err(|_| "the server panicked")??;
        Ok(report.connections.len())
    };
    let connections = [connections(stalled)?, connections(slow)?];

    let sinks = outcome.report["sinks"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let rtmp = sinks.iter().filter(|sink| {
        let name = sink["name"].as_str();
        name.is_some_and(|name| name.starts_with("rtmp"))
    });
    for ((name, sink), connections) in ["stalled", "slowed"].into_iter().zip(rtmp).zip(connections)
    {
        let counts = ["given_up", "gated", "errors"].iter();
        let dropped: u64 = counts.filter_map(|count| sink[*count].as_u64()).sum();
        case.number(&format!("{name}_connections"), connections);
        case.number(&format!("{name}_drops"), dropped);
        case.check(
            name,
            dropped > 30,
            format!(
                "the {name} sink dropped {dropped} units by count, over {connections} connections"
            ),
        );
    }
    // It validates latency: the sink that works sends while the other one waits.
    let latency = &sinks
        .first()
        .map(|sink| sink["latency"]["notice_to_last_packet"].clone())
        .unwrap_or_default();
    let p50 = latency["p50_us"].as_u64().unwrap_or(u64::MAX);
    case.check(
        "latency",
        p50 < 100_000,
        format!(
            "notice to last packet beside the stall: p50 {} us, p99 {} us",
            p50, latency["p99_us"]
        ),
    );
    deaf.set_nonblocking(true)?;
    let unread = match deaf.recv(&mut [0; 2048]) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => return Err(error.into()),
    };
    case.check(
        "deaf",
        unread,
        "packets lie unread in the buffer of the receiver that never reads",
    );
    Ok(())
}
