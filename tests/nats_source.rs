//! What a producer says of itself (`source.info`, contract section 5) and what becomes of it: the
//! clock of its capture times, and the end of a recording.

mod common;
mod nats_support;

use std::time::{SystemTime, UNIX_EPOCH};

use common::{expect_exit, free_port_pair};
use nats_support::{Picture, Server, Stage, json, pictures, wait_for};
use serde_json::Value;

/// Ten frames a second from 0 on.
const STEP_NS: u64 = 100_000_000;
const DAY_NS: u64 = 24 * 60 * 60 * 1_000_000_000;

/// The capture time that a picture must carry once the producer has said which clock it uses.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Unknown,
    Now,
    /// That of the recording's first frame.
    Recorded(u64),
}

impl Expected {
    fn is_of(self, picture: &Picture) -> bool {
        let age = picture.encoded_ns.checked_sub(picture.capture_ns);
        match self {
            Self::Unknown => picture.capture_ns == 0,
            Self::Now => age.is_some_and(|age| age < DAY_NS),
            Self::Recorded(first) => picture.capture_ns == first + u64::from(picture.id) * STEP_NS,
        }
    }
}

#[test]
fn capture_times_follow_the_producers_word_and_without_one_what_is_near_now() {
    use Expected::{Now, Recorded, Unknown};
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let first = now.expect("a clock").as_nanos() as u64 - 3 * DAY_NS;
    let old = format!("--media-time --first-capture-ns {first}");
    // Each says another clock than the one before it, by which its answer is known.
    let producers = [
        ("--media-time", "media-time", Unknown),
        ("", "unix-epoch", Now),
        ("--told-clock unknown", "unknown", Now),
        (
            &format!("{old} --told-clock unix-epoch"),
            "unix-epoch",
            Recorded(first),
        ),
        (&format!("{old} --told-clock unknown"), "unknown", Unknown),
        ("--told-clock media-time", "media-time", Unknown),
    ];

    let (stage, server, port) = (Stage::new(), Server::running(), free_port_pair());
    let tester = stage.receiver(port, 60);
    let run = stage.streamer(
        &server,
        &format!(
            "--codec h264 --encoder software --embed-timestamps --no-status \
             --rtp --rtp-endpoint 127.0.0.1:{port}"
        ),
    );
    let client = server.client();
    let live = || wait_for("the streamer", || stage.live(&client));
    live();
    for (arguments, clock, _) in &producers {
        let arguments = format!("--width 64 --height 64 --fps 10 --wait-for-reader {arguments}");
        let mut sim = stage.sim(&server, &arguments);
        sim.wait_for(&format!("the word of {arguments:?}"), || {
            let stats = stage.live(&client)?;
            (stats["control"]["source"]["timestamp_domain"] == *clock).then_some(())
        });
        let frames = live()["frames"].as_u64().expect("a number");
        stage.wait_for_frames(&client, frames + 10);
        expect_exit(&sim.interrupt(), 0);
    }
    expect_exit(&run.interrupt(), 0);
    expect_exit(&tester.finish(), 0);
    let seen = json(&stage.path("tester.json"));
    assert_eq!(seen["violations"]["count"], 0, "{seen:#}");

    let all = pictures(&std::fs::read(stage.path("got.h264")).expect("the dump"));
    let of_each: Vec<_> = all.chunk_by(|one, next| one.id < next.id).collect();
    assert_eq!(of_each.len(), producers.len(), "{all:?}");
    for (pictures, (arguments, _, expected)) in of_each.iter().zip(&producers) {
        // What came before the answer is read by the rule for no answer.
        let last = &pictures[pictures.len() - 5..];
        let right = last.iter().all(|picture| expected.is_of(picture));
        assert!(right, "{arguments}: {expected:?}: {pictures:?}");
    }
    // The word of the one before it may be told of a producer that just begins: never as a time
    // in the first day of 1970.
    let odd = |picture: &&Picture| (1..DAY_NS).contains(&picture.capture_ns);
    assert_eq!(all.iter().find(odd), None);
    // Sender reports are about now, whatever was recorded when (RFC 3550 section 6.4.1): the 32
    // bits of RTP time come round in 13 hours.
    let latency = &seen["latency"]["report_clock_to_last_packet"];
    assert!(latency["max"].as_f64() < Some(60_000.0), "{latency}");
    assert!(latency["count"].as_u64() > Some(40), "{latency}");
}

#[test]
fn a_recording_that_is_over_is_not_called_silent_and_another_may_follow() {
    let (stage, server) = (Stage::new(), Server::running());
    let run = stage.streamer(&server, "--run-mode ingest --no-status");
    let client = server.client();
    let producer_is = |state: &str| {
        wait_for(&format!("a producer that is {state}"), || {
            (stage.live(&client)?["producer"] == state).then_some(())
        });
    };
    producer_is("waiting");
    const SIM: &str = "--width 64 --height 64 --fps 10 --wait-for-reader";
    let recording = stage.sim(&server, &format!("{SIM} --frames 40 --media-time"));
    producer_is("streaming");
    producer_is("ended");
    expect_exit(&recording.finish(), 0);
    let live = stage.sim(&server, SIM);
    producer_is("streaming");
    live.kill();
    producer_is("waiting");
    // A recording that says it is live is none.
    let told = stage.sim(
        &server,
        &format!("{SIM} --frames 20 --media-time --told-kind live"),
    );
    expect_exit(&told.finish(), 0);
    producer_is("waiting");
    let text = expect_exit(&run.interrupt(), 0);
    assert_eq!(text.matches("recording is over").count(), 1, "{text}");
    assert_eq!(text.matches("the producer is silent").count(), 1, "{text}");
    // Before the first, and behind the last.
    assert_eq!(text.matches("the producer is offline").count(), 2, "{text}");
    assert_eq!(stage.report()["producer"], "waiting");
}

#[test]
fn who_did_not_say_what_it_is_is_asked_again_and_so_is_everybody_after_an_outage() {
    let (stage, mut server) = (Stage::new(), Server::running());
    let run = stage.streamer(&server, "--run-mode ingest --no-status");
    let (nats, messages) = server.client();
    let asking = server.client();
    let source = || -> Option<Value> { Some(stage.live(&asking)?["control"].clone()) };
    wait_for("an unanswered question", || {
        (source()?["counters"]["info_failed"].as_u64()? > 0).then_some(())
    });
    let subject = format!("cvmmap.{}.producer.source.info", stage.key());
    nats.subscribe(&subject, Some("q")).expect("a subscription");
    // Fields of contract section 5.1: source_kind=2, timestamp_domain=3.
    let answer = |bytes: &[u8], kind: &str| {
        wait_for(kind, || {
            while let Ok(asked) = messages.try_recv() {
                nats.publish(
                    asked.reply.as_deref().expect("a reply subject"),
                    None,
                    bytes,
                );
            }
            (source()?["source"]["kind"] == kind).then_some(())
        });
    };
    answer(&[0x10, 1, 0x18, 1], "live");
    server.kill();
    server.start();
    answer(&[0x10, 2, 0x18, 2], "finite");
    let asked = source().expect("an answer")["counters"]["info_asked"].as_u64();
    assert!(asked >= Some(3), "{asked:?}");
    expect_exit(&run.interrupt(), 0);
}
