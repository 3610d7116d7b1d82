//! The referees.
