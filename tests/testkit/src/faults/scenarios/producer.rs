//! Producers that end, come back, change and lie.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::faults::case::Case;
use crate::faults::feed::Feed;
use crate::faults::process::Process;
use crate::faults::rig::{Fail, GAP, Pictures, Rig, Setup, source_count};
use crate::faults::suite::Scenario;
use crate::noise::Noise;
use crate::producer::unix_ns;

/// From the first frame of a producer that is back to the first unit of it.
const BACK: Duration = Duration::from_secs(2);

/// A producer begins, but not in the control: the stream has to be back with it.
fn come_back(case: &mut Case, rig: &mut Rig) -> Result<(), Fail> {
    let fault = Instant::now();
    if !case.is_control() {
        rig.feed = Some(Feed::open(&case.names, 640, 360, &rig.writes)?);
    }
    rig.check_recovery(case, fault, BACK)
}

pub const CLEAN_RESTART: Scenario = Scenario {
    name: "clean_restart",
    promise: "a producer that ends and begins anew is followed into its new segment",
    play: clean_restart,
    control_fails: &["recovered"],
};

fn clean_restart(case: &mut Case) -> Result<(), Fail> {
    let mut rig = Rig::start(case, Setup::default())?;
    for away in [0, 300, 1500] {
        rig.feed = None;
        std::thread::sleep(Duration::from_millis(away));
        come_back(case, &mut rig)?;
        if case.is_control() {
            break;
        }
        rig.run(1.0)?;
    }
    let outcome = rig.finish(case, Pictures::All)?;
    let epochs = source_count(&outcome.report, "epochs");
    case.number("epochs", epochs);
    case.check(
        "epochs",
        epochs == 3,
        format!("{epochs} epochs for 3 restarts"),
    );
    Ok(())
}

pub const KILLED_PRODUCER: Scenario = Scenario {
    name: "killed_producer",
    promise: "a producer that was killed and started again is followed, in the same segment",
    play: killed_producer,
    control_fails: &["recovered"],
};

fn killed_producer(case: &mut Case) -> Result<(), Fail> {
    let mut rig = Rig::start(case, Setup::default())?;
    // What a killed process leaves: both names.
    if let Some(feed) = rig.feed.take() {
        feed.producer.abandon();
    }
    for _ in 0..3 {
        let fault = Instant::now();
        let mut child = None;
        if !case.is_control() {
            let names = &case.names;
            let arguments = [
                "--as-producer",
                &names.shm_name,
                &names.zmq_endpoint,
                &names.label,
            ];
            let mut command = Command::new(&case.settings.itself);
            child = Some(Process::spawn(
                command.args(arguments).stdin(Stdio::null()),
            )?);
        }
        // The child's start counts too.
        rig.check_recovery(case, fault, BACK + Duration::from_millis(500))?;
        std::thread::sleep(Duration::from_millis(500));
        // Dropped, it is killed: SIGKILL at any moment of a frame.
        drop(child);
        if case.is_control() {
            break;
        }
    }
    rig.finish(case, Pictures::All)?;
    Ok(())
}

pub const RESIZE: Scenario = Scenario {
    name: "resize",
    promise: "pictures that change their size, and a segment that shrinks while it is read, cost frames and nothing else",
    play: resize,
    control_fails: &["exit"],
};

/// What pictures of 1920x1080 take: the mapping, the surfaces, the encoder. It has to be given back.
pub(super) const WORKING_SET_MIB: u64 = 96;

fn resize(case: &mut Case) -> Result<(), Fail> {
    let sizes = [
        (1280, 720),
        (320, 180),
        (1920, 1080),
        (640, 360),
        (160, 120),
        (640, 360),
    ];
    let setup = Setup {
        growth_mib: WORKING_SET_MIB,
        ..Setup::with(&["--bitrate", "4M"])
    };
    let mut rig = Rig::start(case, setup)?;
    let rounds = if case.is_control() { 1 } else { 3 };
    for (width, height) in sizes.into_iter().cycle().take(sizes.len() * rounds) {
        let feed = rig.feed()?;
        // Announced, and gone the moment after: the reader is in the middle of it.
        feed.publish()?;
        feed.resize(width, height)?;
        feed.run(60, Duration::from_millis(250))?;
    }
    if case.is_control() {
        // What an unexpected SIGBUS would come to.
        rig.streamer.process.signal(rustix::process::Signal::ABORT);
    }
    let fault = Instant::now();
    rig.check_recovery(case, fault, BACK)?;
    let outcome = rig.finish(case, Pictures::Any)?;
    let opened = outcome.report["encode"]["encoders_opened"]
        .as_u64()
        .unwrap_or(0);
    case.number("encoders_opened", opened);
    let changes = (sizes.len() * rounds) as u64;
    case.check(
        "followed",
        opened > changes / 2,
        format!("{opened} encoders opened for {changes} changes of size"),
    );
    Ok(())
}

pub const SEGMENT_GONE: Scenario = Scenario {
    name: "segment_gone",
    promise: "a segment that is unlinked or emptied under the reader is waited for",
    play: segment_gone,
    control_fails: &["recovered"],
};

fn segment_gone(case: &mut Case) -> Result<(), Fail> {
    let mut rig = Rig::start(case, Setup::default())?;
    for _ in 0..3 {
        // Emptied by somebody else: the producer does not survive that, so it is let go first.
        let feed = rig.feed.take().ok_or("a producer")?;
        let flags = rustix::shm::OFlags::RDWR;
        let name = case.names.shm_name.as_str();
        let file = rustix::shm::open(name, flags, rustix::fs::Mode::empty())?;
        feed.producer.abandon();
        rustix::fs::ftruncate(&file, 0)?;
        std::thread::sleep(Duration::from_millis(200));
        rustix::shm::unlink(name)?;
        std::thread::sleep(Duration::from_millis(1200));
        come_back(case, &mut rig)?;
        if case.is_control() {
            break;
        }
        rig.run(0.5)?;
    }
    rig.finish(case, Pictures::All)?;
    Ok(())
}

pub const TWO_PRODUCERS: Scenario = Scenario {
    name: "two_producers",
    promise: "two producers that write one segment at once confuse each other; the stream is back with the one that stays",
    play: two_producers,
    control_fails: &["raced", "recovered"],
};

fn two_producers(case: &mut Case) -> Result<(), Fail> {
    let mut rig = Rig::start(case, Setup::default())?;
    if case.is_control() {
        rig.feed = None;
    } else {
        // Opened here: the endpoint is taken over from the first one, whose socket stays.
        let mut second = Feed::open(&case.names, 640, 360, &rig.writes)?;
        second.id = 5000;
        let slowly = Duration::from_millis(4);
        (second.write_time, rig.feed()?.write_time) = (slowly, slowly);
        let (writes, begun) = (rig.writes.clone(), Instant::now());
        let often = move || begun.elapsed() > Duration::from_secs(2) && writes.met() >= 10;
        let (enough, limit) = (often.clone(), Duration::from_secs(20));
        // Rates that drift through each other: at 30 and 60 they would keep their distance, and might never meet.
        let other = std::thread::spawn(move || second.run_until(47, limit, |_| often()));
        rig.feed()?.run_until(30, limit, |_| enough())?;
        // It ends and takes both names with it; the first one is unreachable then and ends too.
        other.join().map_err(|_| "the second producer panicked")??;
        rig.run(0.5)?;
        rig.feed = None;
    }
    let met = rig.writes.met();
    case.number("writes_at_once", met);
    case.check(
        "raced",
        met >= 10,
        format!("{met} times one wrote while the other did"),
    );
    come_back(case, &mut rig)?;
    if !case.is_control() {
        rig.run(2.0)?;
    }
    // While two write at once a frame is a mixture before it is announced: what counts is that it ends.
    let outcome = rig.finish(case, Pictures::AfterLoss)?;
    case.number("torn_while_two_wrote", outcome.verified.torn.len());
    Ok(())
}

pub const CLOCK_JUMPS: Scenario = Scenario {
    name: "clock_jumps",
    promise: "capture times that jump by an hour or go back do not stop the stream, and no outgoing time goes back",
    play: clock_jumps,
    control_fails: &["jumped"],
};

fn clock_jumps(case: &mut Case) -> Result<(), Fail> {
    let mut rig = Rig::start(case, Setup::default())?;
    let from = Instant::now();
    let hour = 3_600_000_000_000_i64;
    let offsets: &[i64] = match case.is_control() {
        true => &[0],
        false => &[
            hour,
            0,
            -hour,
            24 * hour,
            -10_000_000,
            -5 * hour,
            0,
            1_000_000_000,
            i64::MIN / 2,
        ],
    };
    for offset in offsets {
        rig.feed()?.clock_offset = *offset;
        rig.run(0.7)?;
    }
    rig.feed()?.clock_offset = 0;
    rig.run(0.5)?;
    rig.check_gap(case, from, GAP);
    let outcome = rig.finish(case, Pictures::All)?;
    let epochs = source_count(&outcome.report, "epochs");
    case.number("epochs", epochs);
    case.check(
        "jumped",
        epochs >= 4,
        format!("{epochs} times the clock went back"),
    );
    Ok(())
}

pub const ID_WRAP: Scenario = Scenario {
    name: "id_wrap",
    promise: "frame ids that wrap at 2^32 are no discontinuity",
    play: id_wrap,
    control_fails: &["seamless"],
};

fn id_wrap(case: &mut Case) -> Result<(), Fail> {
    let setup = Setup {
        first_id: u32::MAX - 75,
        ..Setup::default()
    };
    let mut rig = Rig::start(case, setup)?;
    let from = Instant::now();
    rig.run(2.0)?;
    if case.is_control() {
        rig.feed()?.id = u32::MAX - 20;
    }
    rig.run(2.0)?;
    rig.check_gap(case, from, GAP);
    let outcome = rig.finish(case, Pictures::All)?;
    let epochs = source_count(&outcome.report, "epochs");
    let wrapped = outcome
        .ids
        .windows(2)
        .any(|ids| ids[0] > ids[1] && ids[1] < 1000);
    case.check(
        "seamless",
        epochs == 0 && wrapped,
        format!("{epochs} discontinuities; ids wrapped: {wrapped}"),
    );
    Ok(())
}

pub const GARBAGE: Scenario = Scenario {
    name: "garbage",
    promise: "a flood of garbage on the sync socket, foreign labels and spoilt metadata are counted and left out",
    play: garbage,
    control_fails: &["counted", "pictures"],
};

fn garbage(case: &mut Case) -> Result<(), Fail> {
    let mut rig = Rig::start(case, Setup::default().hostile())?;
    // The control floods nobody, and shows what a spoilt frame that is not left out looks like.
    rig.feed()?.torn = case.is_control();
    let from = Instant::now();
    let (mut sent, mut message) = (0_u64, [0_u8; 300]);
    let mut noise = Noise::new(case.random());
    while !case.is_control() && from.elapsed() < Duration::from_secs(5) {
        for _ in 0..400 {
            let length = noise.below(300) as usize;
            noise.fill(&mut message[..length]);
            // The first byte is what subscribers filter by: most get past it.
            message[0] = 0x7D;
            let feed = rig.feed()?;
            feed.producer.announce_raw(&message[..length.max(1)])?;
            sent += 1;
        }
        let [spoil, at, length] = [3, 256, 256].map(|end| noise.below(end) as usize);
        let feed = rig.feed()?;
        feed.draw();
        if spoil == 0 {
            feed.write_drawn()?;
            feed.producer.write_spoilt_metadata(at, length);
            feed.producer.announce()?;
            feed.count();
        } else {
            feed.publish_drawn()?;
        }
        feed.producer.announce_as(77, unix_ns(), "somebody else")?;
        std::thread::sleep(Duration::from_millis(20));
    }
    if case.is_control() {
        rig.run(1.0)?;
    }
    rig.check_gap(case, from, GAP);
    let fault = Instant::now();
    rig.check_recovery(case, fault, BACK)?;
    let outcome = rig.finish(case, Pictures::All)?;
    let counted = source_count(&outcome.report, "bad_notices");
    case.number("garbage_sent", sent);
    case.number("garbage_counted", counted);
    case.check(
        "counted",
        counted > sent / 4 && source_count(&outcome.report, "bad_metadata") > 0,
        format!(
            "{counted} of {sent} garbage messages counted, {} spoilt metadata",
            source_count(&outcome.report, "bad_metadata")
        ),
    );
    Ok(())
}
