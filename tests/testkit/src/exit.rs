//! Exit codes of the testers, where clap's errors go among them, and what their `main`s share.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

pub const OK: u8 = 0;
/// Arguments that cannot be parsed: unknown flag, missing value, not a number.
pub const UNPARSABLE: u8 = 1;
/// Every other wrong argument, a missing required flag included.
pub const CONFIG: u8 = 2;
pub const PAYLOAD_TYPE_MISMATCH: u8 = 3;
/// Something came, too little of it.
pub const THRESHOLD_NOT_MET: u8 = 4;
/// A socket or segment could not be had.
pub const INITIALIZATION: u8 = 5;
pub const RTMP_MODE_MISMATCH: u8 = 6;
pub const PROTOCOL_VIOLATION: u8 = 7;
/// Nothing came in time.
pub const TIMEOUT: u8 = 124;

/// A referee's `main`: parses the command line, makes a plan of it ([`CONFIG`] if that fails), and
/// runs it ([`INITIALIZATION`] if that fails). The errors are printed.
pub fn main<A: Parser, P>(
    plan: impl FnOnce(&A) -> Result<P, String>,
    run: impl FnOnce(&A, P) -> Result<u8, Box<dyn Error>>,
) -> ExitCode {
    let arguments: A = parse_arguments();
    let result = match plan(&arguments) {
        Ok(plan) => run(&arguments, plan).map_err(|error| (INITIALIZATION, error.to_string())),
        Err(message) => Err((CONFIG, message)),
    };
    ExitCode::from(result.unwrap_or_else(|(code, message)| {
        eprintln!("error: {message}");
        code
    }))
}

/// A flag that the first of these signals sets; the second one ends the process with 1.
///
/// # Errors
///
/// The system's.
pub fn stop_on(signals: &[i32]) -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for &signal in signals {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Parses the command line; on an error prints it and ends the process with 0 (help, version),
/// 1 or 2.
pub fn parse_arguments<T: Parser>() -> T {
    match T::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            std::process::exit(i32::from(code_of(&error)));
        }
    }
}

/// The code for an argument error. Clap's own 2 stands for all of them.
pub fn code_of(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => OK,
        ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict => CONFIG,
        // Clap reports a flag without its value as an invalid empty value.
        ErrorKind::InvalidValue if invalid_value(error).is_empty() => UNPARSABLE,
        ErrorKind::InvalidValue => CONFIG,
        // A number out of its range is a number all the same.
        ErrorKind::ValueValidation if invalid_value(error).parse::<f64>().is_ok() => CONFIG,
        _ => UNPARSABLE,
    }
}

fn invalid_value(error: &clap::Error) -> &str {
    match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[arg(long)]
        port: u16,
        #[arg(long, value_parser = ["h264", "h265"])]
        codec: Option<String>,
    }

    #[test]
    fn wrong_arguments_are_told_apart_from_unparsable_ones() {
        for (line, code) in [
            (&["t", "--port", "1", "--wat"][..], UNPARSABLE),
            (&["t", "--port"], UNPARSABLE),
            (&["t", "--port", "x"], UNPARSABLE),
            (&["t", "--port", "1", "--codec"], UNPARSABLE),
            (&["t", "--port", "70000"], CONFIG),
            (&["t", "--port", "1", "--codec", "av1"], CONFIG),
            (&["t"], CONFIG),
            (&["t", "--help"], OK),
        ] {
            let error = Flags::try_parse_from(line).expect_err("none of these is right");
            assert_eq!(code_of(&error), code, "{line:?}");
        }
    }
}
