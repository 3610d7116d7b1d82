//! The candidates, in order of preference.
