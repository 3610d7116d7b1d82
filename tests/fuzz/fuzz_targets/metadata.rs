#![no_main]

#[path = "../../fuzz_checks/mod.rs"]
#[allow(dead_code)] // each target uses one check
mod fuzz_checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (_, check) = fuzz_checks::ALL.iter().find(|(name, _)| *name == "metadata").expect("the table has it");
    check(bytes);
});
