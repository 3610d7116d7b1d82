//! What the user typed. What it means is decided in `config`.

pub mod control;
pub mod offline;
#[allow(rustdoc::broken_intra_doc_links)] // help texts: [default: x] and rtmp[s]:// are no links
pub mod streamer;

/// Made by `build.rs` from the flags.
pub mod generated {
    pub const BASH: &str =
        include_str!(concat!(env!("OUT_DIR"), "/generated/cvmmap_streamer.bash"));
    pub const ZSH: &str = include_str!(concat!(env!("OUT_DIR"), "/generated/_cvmmap_streamer"));
    pub const FISH: &str =
        include_str!(concat!(env!("OUT_DIR"), "/generated/cvmmap_streamer.fish"));
    pub const MAN: &str = include_str!(concat!(env!("OUT_DIR"), "/generated/cvmmap_streamer.1"));
}
