//! Four ZED recordings to one MP4, two by two.

use std::process::ExitCode;

use clap::Parser;
use cvmmap_streamer::cli::offline::{grid, init_log, signals::stop_on_signals};

fn main() -> ExitCode {
    let args = grid::GridArgs::parse();
    init_log();
    match stop_on_signals() {
        Ok(stop) => ExitCode::from(grid::run(&args, &stop)),
        Err(error) => {
            eprintln!("error: signals cannot be watched: {error}");
            ExitCode::FAILURE
        }
    }
}
