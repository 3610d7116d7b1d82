//! The fuzz checks without a fuzzer: the corpora below `tests/data/fuzz`, damaged copies of them, and plain noise, for a
//! number of inputs that `CVMMAP_FUZZ_INPUTS` sets (20,000 a check; a million, or a minute, in `scripts/test.sh`).

mod fuzz_checks;
#[path = "common/noise.rs"]
mod noise;

use std::path::Path;

/// The files of a corpus, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/fuzz")
        .join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a folder entry").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("a corpus file"))
        .collect()
}

#[test]
fn no_parser_of_outside_bytes_panics_or_breaks_its_limits() {
    let names: Vec<_> = fuzz_checks::ALL.iter().map(|(name, _)| *name).collect();
    let corpora: Vec<_> = names.iter().map(|name| corpus(name)).collect();
    for ((name, check), seeds) in fuzz_checks::ALL.iter().zip(&corpora) {
        assert!(!seeds.is_empty(), "{name} has a corpus");
        seeds.iter().for_each(|seed| check(seed));
    }
    let sums = noise::on_all_cores(&names, 0x5EED_0006, 20_000, |place, noise| {
        let seeds = &corpora[place];
        let input = if noise.below(4) == 0 {
            noise.bytes(600)
        } else {
            let mut input = seeds[noise.below(seeds.len())].clone();
            noise.damage(&mut input, 0);
            input
        };
        fuzz_checks::ALL[place].1(&input);
    });
    for ((name, seeds), (inputs, time)) in names.iter().zip(&corpora).zip(sums) {
        println!(
            "{name}: {} seeds, {inputs} inputs in {time:.1?}",
            seeds.len()
        );
    }
}

#[test]
fn every_check_has_a_fuzz_target_and_every_target_a_check() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/fuzz_targets");
    let mut targets: Vec<_> = std::fs::read_dir(folder)
        .expect("the fuzz targets")
        .map(|entry| entry.expect("a folder entry").path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    let mut checks: Vec<_> = fuzz_checks::ALL
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    // Driven by tests/svo_fuzz.rs on stable, over the recordings of tests/data/svo2.
    checks.extend(["svo_calibration", "svo_frame", "svo_recording"].map(str::to_owned));
    checks.sort();
    assert_eq!(targets, checks);
}
