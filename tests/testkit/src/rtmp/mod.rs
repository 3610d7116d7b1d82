//! The server side of an RTMP publish, and the judge of what is published.
//!
//! [`session`] and [`stream`] with what they use are bytes in, bytes and findings out; [`server`] puts
//! sockets, clock and files around them.

pub mod amf0;
pub mod chunk;
mod client;
mod commands;
pub mod config_record;
pub mod dump;
pub mod flv;
pub mod handshake;
pub mod report;
pub mod server;
pub mod session;
pub mod stream;
pub mod video;
