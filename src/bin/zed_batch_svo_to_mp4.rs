//! Folders of ZED recordings to MP4.

use std::process::ExitCode;

use clap::Parser;
use cvmmap_streamer::cli::offline::{batch, init_log, signals::stop_on_signals};

fn main() -> ExitCode {
    let args = batch::BatchArgs::parse();
    init_log();
    match stop_on_signals() {
        Ok(stop) => ExitCode::from(batch::run(&args, &stop)),
        Err(error) => {
            eprintln!("error: signals cannot be watched: {error}");
            ExitCode::FAILURE
        }
    }
}
