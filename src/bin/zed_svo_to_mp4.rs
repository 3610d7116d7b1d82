//! One ZED recording to one MP4.

use std::process::ExitCode;

use clap::Parser;
use cvmmap_streamer::cli::offline::{init_log, signals::stop_on_signals, single};

fn main() -> ExitCode {
    let args = single::SingleArgs::parse();
    init_log();
    match stop_on_signals() {
        Ok(stop) => ExitCode::from(single::run(&args, &stop)),
        Err(error) => {
            eprintln!("error: signals cannot be watched: {error}");
            ExitCode::FAILURE
        }
    }
}
