//! The acceptance script itself: that it passes, that it can fail, and that its evidence says so.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{finish, text};
use serde_json::Value;

/// Runs the script over the binaries of this test run.
fn acceptance(evidence: &Path, broken_row: Option<&str>) -> Output {
    let root = env!("CARGO_MANIFEST_DIR");
    let binaries = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer")).parent();
    let mut command = Command::new("bash");
    command
        .arg(Path::new(root).join("scripts/acceptance_standalone.sh"))
        .current_dir(root)
        .env("CVMMAP_BIN_DIR", binaries.expect("a folder"))
        .env("CVMMAP_EVIDENCE_DIR", evidence);
    if let Some(row) = broken_row {
        command.env("CVMMAP_ACCEPTANCE_BREAK", row);
    }
    finish(&mut command)
}

#[test]
fn one_broken_row_fails_the_whole_run_and_stands_in_the_evidence() {
    let evidence = tempfile::tempdir().unwrap();
    // Domestic packaging where the tester expects enhanced: it has to see that.
    let output = acceptance(evidence.path(), Some("acc_4_rtmp_h265_enh"));
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    let last = text.lines().rfind(|line| line.starts_with("total="));
    assert_eq!(last, Some("total=5 pass=4 fail=1 skip=0"), "{text}");

    let summary = evidence.path().join("task-14-acceptance-summary.json");
    let summary: Value = serde_json::from_str(&std::fs::read_to_string(summary).unwrap()).unwrap();
    assert_eq!(summary["fail"], 1);
    let rows = summary["rows"].as_array().unwrap();
    let names: Vec<_> = rows
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "acc_1_rtp_h264",
            "acc_2_rtp_h265",
            "acc_3_rtmp_h264",
            "acc_4_rtmp_h265_enh",
            "acc_5_rtmp_h265_dom",
        ]
    );
    for row in rows {
        let broken = row["name"] == "acc_4_rtmp_h265_enh";
        assert_eq!(
            row["status"],
            if broken { "fail" } else { "pass" },
            "{text}"
        );
        // The tester's own word for it: 6, mode mismatch.
        assert_eq!(row["tester_exit"], if broken { 6 } else { 0 }, "{text}");
        assert!(
            broken || row["frames_received"].as_u64() >= Some(80),
            "{text}"
        );
        assert!(Path::new(row["log"].as_str().unwrap()).is_dir());
    }
    assert_eq!(summary["invalid_row"], "refused");
    assert!(evidence.path().join("task-14-acceptance.txt").exists());
}
