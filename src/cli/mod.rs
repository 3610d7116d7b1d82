//! What the user typed.

pub mod offline;
