//! The server side of an RTMP publish, and the judge of what is published.
//!
//! Everything is bytes in, bytes and findings out; the sockets are `rtmp_stub_tester`'s.

pub mod amf0;
pub mod chunk;
pub mod config_record;
pub mod flv;
pub mod handshake;
pub mod report;
pub mod session;
pub mod stream;
pub mod video;
