//! 7b. Access units to RTMP message bodies (FLV 10.1 annex E; Enhanced RTMP v2). Bytes only.

pub mod domestic;
pub mod enhanced;
pub mod legacy;
pub mod packaging;
pub mod script;

pub use packaging::{Packaging, PackagingError, RtmpMode, TagHeader};
