//! What the tests of this folder share.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The contract's fixtures, which lie beside the repository and not in it.
pub fn fixtures() -> Option<PathBuf> {
    let shared = std::env::var_os("CVMMAP_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let folder = shared.join("contract/fixtures");
    let there = folder.join("metadata_cases.json").is_file();
    if !there {
        println!("NOT RUN: no fixtures in {}", folder.display());
    }
    there.then_some(folder)
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
