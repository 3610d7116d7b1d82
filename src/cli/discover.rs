//! `discover`: who is there, for a person; and `--input-uri discover:`, the one who is there, for a
//! stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::control::{CONNECT, Failure, say_json};
use super::streamer::DiscoverArgs;
use super::{complain, printable, say};
use crate::config::{self, Names, StreamerConfig};
use crate::control::client::{Client, LinkCounters, RETRY};
use crate::control::discover::{Found, Producer, producers};
use crate::control::server::ServerConfig;
use crate::exit::Exit;
use crate::pipeline::stop::{StopReason, StopToken};
use crate::source::contract::Label;

/// `cvmmap_streamer discover`.
pub fn discover(args: &DiscoverArgs) -> Exit {
    let found = match ask_around(args) {
        Ok(found) => found,
        Err(failure) => return failure.tell(args.json),
    };
    tell_left_out(&found);
    if args.json {
        say_json(&json!(found.producers));
    } else {
        say(&printable(&table(&found.producers)));
    }
    match (found.producers.is_empty(), found.bad.is_empty()) {
        (false, _) => Exit::Success,
        (true, false) => Exit::Protocol,
        (true, true) => {
            complain(&format!(
                "no producer answered within {} ms",
                args.timeout_ms
            ));
            Exit::NothingFound
        }
    }
}

fn ask_around(args: &DiscoverArgs) -> Result<Found, Failure> {
    let server =
        config::server(&args.nats).map_err(|error| Failure::Arguments(error.to_string()))?;
    let counters = Arc::new(LinkCounters::default());
    let client = Client::connect_within(&server, &counters, CONNECT)?;
    Ok(producers(&client, Duration::from_millis(args.timeout_ms))?)
}

/// Says which answers cannot be used.
pub(super) fn tell_left_out(found: &Found) {
    for bad in &found.bad {
        complain(&format!("left out: {}", printable(bad)));
    }
}

/// For `--input-uri discover:`: the names of the one producer that is there. Waits for a server
/// and a producer, as the streamer waits for a producer that it knows by name.
///
/// # Errors
///
/// The exit code, with everything said: several are there, the stop, or the idle timeout.
pub fn the_one_producer(config: &StreamerConfig, stop: &StopToken) -> Result<Names, Exit> {
    let Some(server) = &config.nats else {
        return Err(Exit::Invalid);
    };
    let started = Instant::now();
    let counters = Arc::new(LinkCounters::default());
    let mut client = None;
    let mut said = None;
    loop {
        let state = match look(server, &counters, &mut client) {
            Ok(found) => match &found.producers[..] {
                [one] => {
                    log::info!("found {} ({})", one.instance, one.shm_name);
                    return Ok(names_of(one));
                }
                [] if !found.bad.is_empty() => {
                    "no producer describes itself in a usable way (cvmmap_streamer discover says \
                     why); waiting for one"
                        .to_owned()
                }
                [] => "no producer has announced itself; waiting for one".to_owned(),
                several => {
                    complain(&printable(&choices(several)));
                    return Err(Exit::Invalid);
                }
            },
            Err(failure) => format!("{}; waiting for it", failure.words()),
        };
        if said.as_ref() != Some(&state) {
            log::info!("--input-uri discover: {}", printable(&state));
            said = Some(state);
        }
        let idle = config
            .idle_timeout
            .is_some_and(|limit| started.elapsed() >= limit);
        if idle {
            log::error!("no producer came within --ingest-idle-timeout-ms");
            return Err(Exit::Timeout);
        }
        if stop.wait(RETRY.min(config.idle_timeout.unwrap_or(RETRY))) {
            return Err(match stop.reason() {
                Some(StopReason::Signal) | None => Exit::Success,
                Some(_) => Exit::Pipeline,
            });
        }
    }
}

/// One look around, over the connection of the look before while that one holds. It reconnects by
/// itself: a new one for each look would be missed by its server, and warn of that.
fn look(
    server: &ServerConfig,
    counters: &Arc<LinkCounters>,
    kept: &mut Option<Client>,
) -> Result<Found, Failure> {
    let client = match kept.take() {
        Some(client) => client,
        None => Client::connect_within(server, counters, CONNECT_AGAIN)?,
    };
    let found = producers(&client, LISTEN)?;
    *kept = Some(client);
    Ok(found)
}

fn names_of(producer: &Producer) -> Names {
    Names {
        shm_name: producer.shm_name.clone(),
        zmq_endpoint: producer.zmq_endpoint.clone(),
        label: Label::new(&producer.instance).ok(),
        nats_key: producer.nats_key.clone(),
    }
}

fn choices(producers: &[Producer]) -> String {
    let mut text = format!(
        "error: --input-uri discover: finds {} producers; choose one:\n{}\n",
        producers.len(),
        table(producers)
    );
    for one in producers {
        text.push_str(&format!(
            "  --shm-name {} --zmq-endpoint {}\n",
            one.shm_name, one.zmq_endpoint
        ));
    }
    text
}

fn table(producers: &[Producer]) -> String {
    let mut text = String::new();
    for one in producers {
        text.push_str(&format!(
            "{}\n  segment  {}\n  sync     {}\n  NATS key {}\n",
            one.instance, one.shm_name, one.zmq_endpoint, one.nats_key
        ));
        if !one.backend.is_empty() || !one.build.is_empty() {
            let parts = [&one.backend, &one.build].map(String::as_str);
            let known: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            text.push_str(&format!("  backend  {}\n", known.join(", ")));
        }
        if one.retired_control {
            text.push_str("  an old producer: its control subjects are not known here\n");
        }
    }
    text
}

/// Each look waits no longer for a server, so that a stop is seen soon; the next one tries again.
const CONNECT_AGAIN: Duration = Duration::from_secs(2);
/// For answers.
const LISTEN: Duration = Duration::from_secs(1);
