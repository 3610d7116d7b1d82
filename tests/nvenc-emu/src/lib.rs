//! A stand-in for the NVIDIA driver: one shared library that takes the place of both
//! `libcuda.so.1` and `libnvidia-encode.so.1` under an unchanged program.
//!
//! It checks every call as a strict driver would, encodes for real with software encoders, injects
//! faults on demand (`config`), and writes what it saw as JSON (`report`). Rules, version numbers and
//! valid values are written out here from the SDK's headers and documentation (`rules`), not taken from
//! the program under test, so that one mistake cannot excuse itself on both sides.
//!
//! Two classes of violation: *E*, the real driver refuses and so does this one; *P*, the real driver may
//! tolerate it, and we do not.
//!
//! Nothing here has been compared with an encode engine; a Debian ffmpeg is the second client that must pass.

#![cfg(feature = "driver")]

pub mod config;
pub mod report;
pub mod rules;

pub mod cuda;
mod kernels;
mod memory;
mod stream;
mod stubs;

mod codec;
mod h264;
#[cfg(feature = "x265")]
mod hevc;
mod lock;
pub mod nvenc;
mod picture;
mod planes;
mod session;
mod validate;

pub use stream::hold;
