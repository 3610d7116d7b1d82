#![no_main]

#[path = "../../fuzz_checks/mod.rs"]
#[allow(dead_code)] // each target uses one check
mod fuzz_checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_checks::nats_url(bytes));
