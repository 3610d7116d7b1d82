//! The referees: a cv-mmap producer, and receivers for RTP and RTMP.
//!
//! Nothing here depends on the streamer. Every format is written and parsed a second time, from the
//! documents, so that one mistake cannot excuse itself on both sides.
//!
//! | module | is |
//! | --- | --- |
//! | [`exit`], [`findings`] | exit codes and `main`, and what a referee has to say |
//! | [`noise`], [`worker`] | seeded numbers; a thread that can be told to stop |
//! | [`names`], [`pattern`], [`producer`] | a producer that behaves like the real one |
//! | [`nats`], [`nats_messages`], [`nats_body`], [`nats_producer`] | its side of the control plane |
//! | [`bitstream`], [`stamp`], [`body_sei`] | NAL units, access units, capture times and poses inside of them |
//! | [`rtp`] | the receiving side of RTP; [`rtp::tester::Tester`] is a whole run |
//! | [`rtmp`] | the server side of RTMP; [`rtmp::server::Server`] is a whole run |
//! | [`mod@bench`] | the pacer and the receiver of the comparison with other programs |
//! | [`faults`] | the fault suite: the streamer as a black box |
//! | [`ports`] | ports for programs that a run starts; the tests of all packages share it |
//!
//! The binaries `cvmmap_sim`, `rtp_receiver_tester` and `rtmp_stub_tester` are thin wrappers of these. A test runs
//! the same in process:
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use testkit::rtp::tester::{Options, Tester};
//!
//! let options = Options { timeout: std::time::Duration::from_millis(10), ..Options::default() };
//! let tester = Tester::open(options)?;
//! let port = tester.port()?; // where to send
//! let report = tester.run(&AtomicBool::new(false))?;
//! assert_eq!(report.exit_code, testkit::exit::TIMEOUT);
//! # let _ = port;
//! # Ok::<(), std::io::Error>(())
//! ```

#![deny(unsafe_code)] // allowed in producer::segment only: a mapping is one

pub mod exit;
pub mod findings;
pub mod noise;
pub mod worker;

pub mod names;
pub mod pattern;
pub mod producer;

pub mod nats;
pub mod nats_body;
pub mod nats_messages;
pub mod nats_producer;

pub mod bitstream;
pub mod body_sei;
pub mod stamp;

pub mod rtp;

pub mod rtmp;

pub mod bench;
pub mod faults;

#[path = "../../common/ports.rs"]
pub mod ports;
