//! `zed_svo_to_mp4`: one recording to one MP4.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Parser;

use super::{EncoderArgs, RangeArgs, ViewArgs, device_name};
use crate::cli::say;
use crate::offline::convert::{ConvertJob, Converted, convert};
use crate::offline::error::{OfflineError, exit};
use crate::offline::input::Input;
use crate::offline::output::refuse_recordings;
use crate::offline::progress::{Progress, ProgressChoice};
use crate::pipeline::stop::StopToken;

/// Converts a ZED recording (SVO2) to MP4; the ZED SDK is not needed
#[derive(Debug, Clone, Parser)]
#[command(name = "zed_svo_to_mp4", version)]
pub struct SingleArgs {
    /// The recording
    #[arg(long, value_name = "PATH")]
    pub input: PathBuf,

    /// The MP4; default: beside the recording, with its name
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub range: RangeArgs,

    #[command(flatten)]
    pub encoder: EncoderArgs,

    #[command(flatten)]
    pub view: ViewArgs,

    /// A bar on standard error
    #[arg(long, value_enum, default_value_t)]
    pub progress: ProgressChoice,
}

/// Runs the tool and gives its exit code; errors go to standard error.
pub fn run(args: &SingleArgs, stop: &StopToken) -> u8 {
    match convert_one(args, stop) {
        Ok(done) => {
            say(&summary(&done, args));
            if done.interrupted {
                exit::INTERRUPTED
            } else {
                exit::SUCCESS
            }
        }
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

fn convert_one(args: &SingleArgs, stop: &StopToken) -> Result<Converted, OfflineError> {
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| args.input.with_extension("mp4"));
    refuse_recordings(&output, std::slice::from_ref(&args.input))?;
    let request = args.view.request();
    let input = Input::open(&args.input, args.view.backend, &request)?;
    let (first, last, clipped) = range(&args.range, input.frames())?;
    let name = args
        .input
        .file_name()
        .unwrap_or(OsStr::new("recording"))
        .to_string_lossy();
    let total = (last - first + 1) as u64;
    let progress = Progress::new(args.progress, &name, "frame", total);
    for warning in input.warnings() {
        progress.warn(&format!("{}: {warning}", args.input.display()));
    }
    if let Some(clipped) = clipped {
        progress.warn(&clipped);
    }
    let job = ConvertJob {
        output,
        first,
        last,
        view: request,
        encode: args.encoder.options(),
        timing: args.range.timing,
    };
    let result = convert(&input, &job, &progress, stop);
    match &result {
        Ok(done) if done.interrupted => progress.end("interrupted"),
        Ok(done) => progress.end(&format!(
            "{} frames in {:.1} s",
            done.frames,
            done.time.as_secs_f64()
        )),
        Err(_) => progress.end("failed"),
    }
    result
}

/// First and last frame of `count`, and a warning where the end was moved.
fn range(args: &RangeArgs, count: usize) -> Result<(usize, usize, Option<String>), OfflineError> {
    let start = args.start_frame;
    let end = args.end_frame.unwrap_or(count - 1);
    if start >= count {
        return Err(OfflineError::Usage(format!(
            "--start-frame {start} is past the end: the last of {count} frames is {}",
            count - 1
        )));
    }
    if start > end {
        return Err(OfflineError::Usage(format!(
            "--start-frame {start} is behind --end-frame {end}"
        )));
    }
    let clipped = (end >= count)
        .then(|| format!("--end-frame {end} is past the end; taken as {}", count - 1));
    Ok((start, end.min(count - 1), clipped))
}

fn summary(done: &Converted, args: &SingleArgs) -> String {
    format!(
        "{}: {} frames, {} x {}, {}, {}, {:.2} s",
        done.output.display(),
        done.frames,
        done.width,
        done.height,
        args.encoder.codec,
        device_name(done.encoder),
        done.time.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::clock::Timing;

    fn args(start_frame: usize, end_frame: Option<usize>) -> RangeArgs {
        RangeArgs {
            start_frame,
            end_frame,
            timing: Timing::Timestamps,
        }
    }

    #[test]
    fn the_end_frame_is_included_and_clipped() {
        assert_eq!(range(&args(0, Some(89)), 200).unwrap(), (0, 89, None));
        assert_eq!(range(&args(3, None), 24).unwrap(), (3, 23, None));
        let (first, last, warning) = range(&args(3, Some(24)), 24).unwrap();
        assert_eq!((first, last), (3, 23));
        assert_eq!(
            warning.unwrap(),
            "--end-frame 24 is past the end; taken as 23"
        );
        assert_eq!(range(&args(24, None), 24).unwrap_err().exit_code(), 2);
        assert_eq!(range(&args(5, Some(4)), 24).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_words_of_the_flags_are_those_of_the_contract() {
        let parse =
            |words: &[&str]| SingleArgs::try_parse_from([&["zed_svo_to_mp4"], words].concat());
        let given = parse(&[
            "--input",
            "a.svo2",
            "--encoder-device",
            "nvidia",
            "--view",
            "right-rectified",
            "--quality",
            "51",
            "--timing",
            "constant",
        ])
        .unwrap();
        assert_eq!(
            given.encoder.words().join(" "),
            "--codec h265 --encoder-device nvidia --preset balanced --quality 51 --gop 30 --b-frames 0"
        );
        assert_eq!(
            given.view.words().join(" "),
            "--view right-rectified --backend auto"
        );
        assert_eq!(
            given.range.words().join(" "),
            "--start-frame 0 --timing constant"
        );
        assert!(parse(&["--input", "a", "--quality", "52"]).is_err());
        assert!(parse(&["--input", "a", "--codec", "av1"]).is_err());
        assert!(parse(&[]).is_err());
    }
}
