//! Camera frames from shared memory to RTP and RTMP, one straight line:
//!
//! ```text
//! source -> snapshot -> latest queue -> encoder -> access unit -> fan-out -> RTP / RTMP
//! ```
//!
//! The modules stand in the order of the data path. `bitstream`, `rtp`, `flv`, `rtmp` and
//! `source::contract` are bytes in, bytes out; the others hold handles and little logic.

#![deny(unsafe_code)] // allowed on single modules only: each `allow` below and in a mod.rs is the list

pub mod source;

pub mod frame;

pub mod queue;

pub mod encode;

pub mod bitstream;

pub mod fanout;

pub mod rtp;

pub mod flv;

pub mod rtmp;

pub mod sink;

pub mod pipeline;

pub mod offline;

pub mod control;

pub mod cli;
pub mod config;
pub mod exit;

pub mod gpu_info;
#[allow(unsafe_code)] // mallopt: no crate has it
pub mod heap;
#[allow(unsafe_code)] // one system call that no safe crate here has
pub mod realtime;
pub mod replace;
pub mod time;
pub mod trace;
