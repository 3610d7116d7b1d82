//! Exit codes, and the one mapping from errors.

use std::process::ExitCode;

/// The codes of `cvmmap_streamer` (README, "Exit codes"). The testers have their own copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Success = 0,
    /// The arguments cannot be parsed: unknown flag, missing value, not a number.
    Unparsable = 1,
    /// Any other wrong argument, missing required flags included.
    Invalid = 2,
    /// Nobody is there who could answer.
    NothingFound = 4,
    /// The pipeline could not start, or lost what it cannot do without.
    Pipeline = 5,
    /// A peer broke its protocol.
    Protocol = 7,
    /// No frame came in time.
    Timeout = 124,
}

/// Number and meaning, as README has them; codes 3, 4 and 6 belong to the testers.
pub const TABLE: &[(u8, &str)] = &[
    (0, "success"),
    (
        1,
        "arguments cannot be parsed: unknown flag, missing value, not a number",
    ),
    (
        2,
        "any other wrong argument or configuration, missing required flags included",
    ),
    (3, "RTP payload type mismatch (RTP tester)"),
    (
        4,
        "packet or frame threshold not met (testers); nobody there (discover, ctl)",
    ),
    (
        5,
        "pipeline could not start, or its encoder or last sink was lost; no NATS server (discover, ctl)",
    ),
    (6, "RTMP mode mismatch (RTMP tester)"),
    (
        7,
        "protocol validation error (testers; a peer that breaks RTMP; a refused or malformed answer: discover, ctl)",
    ),
    (124, "timeout: nothing came in time"),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// What a refusal of the argument parser means. clap gives 2 for all of them.
    pub fn of_parse_error(error: &clap::Error) -> Self {
        use clap::error::{ContextKind, ContextValue, ErrorKind};
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Self::Success,
            ErrorKind::MissingRequiredArgument
            | ErrorKind::ArgumentConflict
            | ErrorKind::MissingSubcommand => Self::Invalid,
            // A word that is not among the possible ones makes no sense; no word at all cannot be
            // parsed. clap reports both as an invalid value.
            ErrorKind::InvalidValue => match error.get(ContextKind::InvalidValue) {
                Some(ContextValue::String(value)) if !value.is_empty() => Self::Invalid,
                _ => Self::Unparsable,
            },
            _ => Self::Unparsable,
        }
    }
}
