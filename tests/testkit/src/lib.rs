//! The referees: a cv-mmap producer, and receivers for RTP and RTMP.
//!
//! Nothing here depends on the streamer. Every format is written and parsed a second time, from the
//! documents, so that one mistake cannot excuse itself on both sides.
//!
//! | module | is |
//! | --- | --- |
//! | [`exit`] | exit codes, and the mapping of argument errors to them |
//! | [`names`], [`pattern`], [`producer`] | a producer that behaves like the real one |
//! | [`bitstream`], [`stamp`] | NAL units, access units, capture times inside of them |
//! | [`rtp`] | the receiving side of RTP and its checks |
//!
//! The binaries `cvmmap_sim` and `rtp_receiver_tester` are thin wrappers of these.

#![deny(unsafe_code)] // allowed in producer::segment only: a mapping is one

pub mod exit;
pub mod findings;

pub mod names;
pub mod pattern;
pub mod producer;

pub mod bitstream;
pub mod stamp;

pub mod rtp;

pub mod rtmp;
