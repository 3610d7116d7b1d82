//! 5. Bits to access units. Bytes only: no sockets, no clocks.

pub mod access_unit;
pub mod annexb;
pub mod config_record;
pub mod nal;
pub mod params;
pub mod rbsp;
pub mod sei;
pub mod split;
pub mod sps;

pub use access_unit::{AccessUnit, AccessUnitPool};
pub use config_record::ConfigRecord;
pub use nal::{NalKind, NalUnit};
pub use params::ParameterSets;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitstreamError {
    #[error("no start code in {len} bytes of bitstream")]
    NoStartCode { len: usize },
    #[error("a NAL unit of {len} bytes at offset {offset} is too short for its header")]
    ShortNal { offset: usize, len: usize },
    #[error("the access unit has no picture data")]
    NoPicture,
    #[error("an access unit of {len} bytes is larger than {limit}")]
    TooLarge { len: usize, limit: usize },
    #[error("more than {most} {what} in an access unit")]
    TooMany { what: &'static str, most: usize },
    #[error("a key frame came before any parameter sets")]
    NoParameterSets,
    #[error("{what}: {detail}")]
    Syntax { what: &'static str, detail: String },
}
