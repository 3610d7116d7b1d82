//! The faults, one function each. A function plays the fault, or the control that its check has to complain about.

mod encoder;
mod host;
mod nats;
mod network;
mod producer;
mod reset;
mod rtmp;
pub mod soak;
mod stall;
mod torn;
mod watched;

use super::suite::Scenario;

/// In the order of a run.
pub const ALL: &[Scenario] = &[
    watched::WATCHED,
    torn::TORN_READ,
    stall::SINK_STALL,
    reset::RESET_STORM,
    producer::CLEAN_RESTART,
    producer::KILLED_PRODUCER,
    producer::RESIZE,
    producer::SEGMENT_GONE,
    producer::TWO_PRODUCERS,
    producer::CLOCK_JUMPS,
    producer::ID_WRAP,
    producer::GARBAGE,
    network::RECEIVER_GONE,
    network::LOSSY_NETWORK,
    rtmp::RTMP_REFUSED,
    rtmp::RTMP_KILLED,
    rtmp::RTMP_RESTARTED,
    rtmp::RTMP_HALF_OPEN,
    rtmp::RTMP_HOSTILE,
    nats::NATS_LOST,
    host::SLOW_ENCODER,
    encoder::ENCODER_FAILS,
    host::SIGTERM,
    host::DISK_FULL,
    host::DESCRIPTORS,
    host::THREADS,
];
