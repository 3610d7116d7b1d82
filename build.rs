//! Version and git revision, shell completions and the man page. No guessing about libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use clap_complete::Shell;

#[path = "src/cli/streamer.rs"]
#[allow(dead_code)] // the fields are read by the program, not by this script
mod streamer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=src/cli/streamer.rs");
    println!(
        "cargo::rustc-env=CVMMAP_VERSION={} ({})",
        env!("CARGO_PKG_VERSION"),
        git_revision()
    );

    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let generated = out.join("generated");
    std::fs::create_dir_all(&generated)?;
    let mut command = streamer::StreamerArgs::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "cvmmap_streamer", &generated)?;
    }
    clap_mangen::generate_to(command, &generated)?;
    Ok(())
}

/// The revision that is built, `unknown` outside a checkout.
fn git_revision() -> String {
    if Path::new(".git/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/HEAD");
    }
    let output = Command::new("git")
        .args(["describe", "--always", "--abbrev=10"])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
