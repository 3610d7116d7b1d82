//! 3. How stages are joined: two bounded queues that never make their producer wait.

pub mod gop;
pub mod latest;

pub use gop::{GopReceiver, GopSender, Offer, gop_queue};
pub use latest::{LatestQueue, Popped};
