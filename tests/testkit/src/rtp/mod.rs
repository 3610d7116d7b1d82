//! The receiving side of RTP: packets to NAL units to access units, each step with its checks.
//!
//! [`receiver`] and what it uses is bytes in, findings out; [`tester`] puts sockets, clock and files around it.

pub mod assemble;
pub mod depacketize;
pub mod feedback;
pub mod header;
pub mod receiver;
pub mod report;
pub mod rtcp;
pub mod sdp;
pub mod sequence;
pub mod socket;
pub mod tester;
