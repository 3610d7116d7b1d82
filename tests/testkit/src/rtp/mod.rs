//! The receiving side of RTP: packets to NAL units to access units, each step with its checks.
//!
//! Everything but [`socket`] is bytes in, findings out.

pub mod assemble;
pub mod depacketize;
pub mod header;
pub mod receiver;
pub mod report;
pub mod rtcp;
pub mod sdp;
pub mod sequence;
pub mod socket;
