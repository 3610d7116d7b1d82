//! The faults, one function each. A function plays the fault, or the control that its check has to complain about.

mod reset;
mod stall;
mod torn;

use super::suite::Scenario;

/// In the order of a run.
pub const ALL: &[Scenario] = &[
    torn::TORN_READ,
    stall::SINK_STALL,
    reset::RESET_STORM,
];
