//! What the user typed, and what is said to the user. What it means is decided in `config`.

use std::io::Write;

pub mod control;
pub mod discover;
pub mod offline;
#[allow(rustdoc::broken_intra_doc_links)] // help texts: [default: x] and rtmp[s]:// are no links
pub mod streamer;

/// Lines on standard output. A reader that has gone away is no reason to fail.
pub fn say(text: &str) {
    put(std::io::stdout().lock(), text);
}

/// Lines on standard error, likewise.
pub fn complain(text: &str) {
    put(std::io::stderr().lock(), text);
}

fn put(mut out: impl Write, text: &str) {
    let missing = !text.is_empty() && !text.ends_with('\n');
    let end = if missing { "\n" } else { "" };
    let _ = write!(out, "{text}{end}");
}

/// What somebody else says, without the characters that a terminal obeys; it keeps its lines.
pub fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', " ")
}

/// Made by `build.rs` from the flags.
pub mod generated {
    pub const BASH: &str =
        include_str!(concat!(env!("OUT_DIR"), "/generated/cvmmap_streamer.bash"));
    pub const ZSH: &str = include_str!(concat!(env!("OUT_DIR"), "/generated/_cvmmap_streamer"));
    pub const FISH: &str =
        include_str!(concat!(env!("OUT_DIR"), "/generated/cvmmap_streamer.fish"));
    pub const MAN: &str = include_str!(concat!(env!("OUT_DIR"), "/generated/cvmmap_streamer.1"));
}
