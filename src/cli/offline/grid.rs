//! `zed_svo_grid_to_mp4`: four recordings in one MP4, two by two.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::{EncoderArgs, ViewArgs, device_name};
use crate::cli::say;
use crate::encode::FrameRate;
use crate::offline::error::{OfflineError, exit};
use crate::offline::grid::{GridDone, GridJob, make_grid};
use crate::offline::input::Input;
use crate::offline::output::refuse_recordings;
use crate::offline::progress::{Progress, ProgressChoice};
use crate::offline::timeline::GridTimeline;
use crate::pipeline::stop::StopToken;

/// Puts four ZED recordings of the same time into one MP4, two by two, with a clock
#[derive(Debug, Clone, Parser)]
#[command(name = "zed_svo_grid_to_mp4", version)]
pub struct GridArgs {
    /// A folder with the four recordings NAME_zed1.svo2 to NAME_zed4.svo2
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "input",
        required_unless_present = "input"
    )]
    pub segment_dir: Option<PathBuf>,

    /// One of the recordings; four times, row by row
    #[arg(long, value_name = "PATH")]
    pub input: Vec<PathBuf>,

    /// The MP4; default: DIR/DIR_grid.mp4, after the name of the folder
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,

    /// Stop after this many seconds of output
    #[arg(long, value_name = "S", value_parser = positive)]
    pub duration_seconds: Option<f64>,

    /// Size of a tile against the view of one camera
    #[arg(long, value_name = "F", default_value_t = 0.5, value_parser = tile_scale)]
    pub tile_scale: f64,

    /// Frames per second; default: those of the recordings
    #[arg(long, value_name = "F", value_parser = frame_rate)]
    pub fps: Option<FrameRate>,

    #[command(flatten)]
    pub encoder: EncoderArgs,

    #[command(flatten)]
    pub view: ViewArgs,

    /// A bar on standard error
    #[arg(long, value_enum, default_value_t)]
    pub progress: ProgressChoice,
}

/// Runs the tool and gives its exit code; errors go to standard error.
pub fn run(args: &GridArgs, stop: &StopToken) -> u8 {
    match make(args, stop) {
        Ok(done) => {
            say(&format!(
                "{}: {} frames, {} x {}, {}, {}, {:.2} s",
                done.output.display(),
                done.frames,
                done.width,
                done.height,
                args.encoder.codec,
                device_name(done.encoder),
                done.time.as_secs_f64()
            ));
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

fn make(args: &GridArgs, stop: &StopToken) -> Result<GridDone, OfflineError> {
    let (inputs, output) = files(args)?;
    refuse_recordings(&output, &inputs)?;
    let request = args.view.request();
    let open = |path: &PathBuf| Input::open(path, args.view.backend, &request);
    let recordings: Vec<Input> = inputs.iter().map(open).collect::<Result<_, _>>()?;
    let recordings: [Input; 4] = recordings
        .try_into()
        .map_err(|_| OfflineError::Internal("four inputs were checked"))?;
    let names: Vec<String> = inputs
        .iter()
        .map(|path| path.display().to_string())
        .collect();

    let rates: Vec<u32> = recordings.iter().map(Input::fps).collect();
    let slowest = rates.iter().copied().min().unwrap_or(30);
    let rate = args.fps.unwrap_or(FrameRate {
        num: slowest,
        den: 1,
    });
    let times: Vec<Vec<u64>> = recordings
        .iter()
        .map(Input::timestamps)
        .collect::<Result<_, _>>()?;
    let timeline = GridTimeline::new(&times, &names, rate, args.duration_seconds)?;

    let label = output
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let progress = Progress::new(args.progress, &label, "frame", timeline.frames());
    for (recording, name) in recordings.iter().zip(&names) {
        for warning in recording.warnings() {
            progress.warn(&format!("{name}: {warning}"));
        }
    }
    if args.fps.is_none() && rates.iter().any(|rate| *rate != slowest) {
        progress.warn(&format!(
            "the recordings differ in frame rate ({rates:?}); taking {slowest}"
        ));
    }
    let colour = recordings[0].colour();
    for (recording, name) in recordings.iter().zip(&names).skip(1) {
        if recording.colour() != colour {
            progress.warn(&format!(
                "{name}: its colours are coded in another way than those of {} and will look off",
                names[0]
            ));
        }
    }
    let job = GridJob {
        output,
        rate,
        tile_scale: args.tile_scale,
        view: request.clone(),
        encode: args.encoder.options(),
    };
    let result = make_grid(&recordings, &timeline, &job, &progress, stop);
    match &result {
        Ok(done) if done.interrupted => progress.end("interrupted"),
        Ok(done) => {
            progress.end(&format!(
                "{} frames in {:.1} s",
                done.frames,
                done.time.as_secs_f64()
            ));
        }
        Err(_) => progress.end("failed"),
    }
    result
}

/// The four recordings and the MP4.
fn files(args: &GridArgs) -> Result<([PathBuf; 4], PathBuf), OfflineError> {
    let Some(folder) = &args.segment_dir else {
        let inputs: [PathBuf; 4] = args.input.clone().try_into().map_err(|given: Vec<_>| {
            OfflineError::Usage(format!("--input is needed four times, not {}", given.len()))
        })?;
        let output = args
            .output
            .clone()
            .ok_or_else(|| OfflineError::Usage("--output is needed with --input".to_owned()))?;
        return Ok((inputs, output));
    };
    let inputs = segment(folder)?;
    let name = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let name = name
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| folder.join(format!("{name}_grid.mp4")));
    Ok((inputs, output))
}

/// The recordings of cameras 1 to 4 in a folder.
fn segment(folder: &Path) -> Result<[PathBuf; 4], OfflineError> {
    let entries = std::fs::read_dir(folder).map_err(|error| {
        OfflineError::Usage(format!("--segment-dir {}: {error}", folder.display()))
    })?;
    let mut found: Vec<(u64, bool, PathBuf)> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| {
            let (camera, second) = camera_of(path.file_name()?.to_str()?)?;
            Some((camera, second, path))
        })
        .collect();
    found.sort();
    // The newer format wins over the older one of the same camera.
    let seconds: Vec<u64> = found
        .iter()
        .filter(|(_, second, _)| *second)
        .map(|(camera, ..)| *camera)
        .collect();
    found.retain(|(camera, second, _)| *second || !seconds.contains(camera));
    let cameras: Vec<u64> = found.iter().map(|(camera, ..)| *camera).collect();
    if cameras != [1, 2, 3, 4] {
        let names: Vec<_> = found
            .iter()
            .filter_map(|(.., path)| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        let names = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        return Err(OfflineError::Usage(format!(
            "--segment-dir {}: one recording each of _zed1, _zed2, _zed3 and _zed4 is needed; \
             found: {names}",
            folder.display()
        )));
    }
    let mut paths = found.into_iter().map(|(.., path)| path);
    Ok(std::array::from_fn(|_| {
        paths.next().expect("there are four")
    }))
}

/// The camera's number in a name that ends in `_zed<digits>.svo` or `.svo2`, in any case, and
/// whether it is the latter.
fn camera_of(name: &str) -> Option<(u64, bool)> {
    let name = name.to_ascii_lowercase();
    let (stem, second) = match name.strip_suffix(".svo2") {
        Some(stem) => (stem, true),
        None => (name.strip_suffix(".svo")?, false),
    };
    let (_, digits) = stem.rsplit_once("_zed")?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((digits.parse().ok().filter(|_| all_digits)?, second))
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err("must be above 0".to_owned())
    }
}

fn tile_scale(text: &str) -> Result<f64, String> {
    positive(text).and_then(|value| {
        if (0.01..=4.0).contains(&value) {
            Ok(value)
        } else {
            Err("must be 0.01 to 4".to_owned())
        }
    })
}

/// A rate with up to three decimals.
fn frame_rate(text: &str) -> Result<FrameRate, String> {
    let value = positive(text)?;
    let thousandths = (value * 1000.0).round();
    if !(1.0..=1_000_000.0).contains(&thousandths) {
        return Err("must be 0.001 to 1000".to_owned());
    }
    let thousandths = thousandths as u32;
    Ok(match thousandths % 1000 {
        0 => FrameRate {
            num: thousandths / 1000,
            den: 1,
        },
        _ => FrameRate {
            num: thousandths,
            den: 1000,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_camera_number_is_in_the_name() {
        let all = [
            ("2026-03-18T11-59-41_zed1.svo2", Some((1, true))),
            ("x_ZED12.SVO", Some((12, false))),
            ("zed1.svo2", None),
            ("a_zed1.svo2.part", None),
            ("a_zed+1.svo2", None),
            ("a_zed.svo2", None),
            ("a_zed1x.svo2", None),
            ("a_zed99999999999999999999.svo2", None),
        ];
        for (name, expected) in all {
            assert_eq!(camera_of(name), expected, "{name}");
        }
    }

    #[test]
    fn a_segment_needs_each_camera_once_and_svo2_wins() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| std::fs::write(dir.path().join(name), "").unwrap();
        for name in [
            "s_zed1.svo2",
            "s_zed2.svo",
            "s_zed3.svo2",
            "s_zed3.svo",
            "notes.txt",
        ] {
            touch(name);
        }
        let error = segment(dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error
                .to_string()
                .ends_with("found: s_zed1.svo2, s_zed2.svo, s_zed3.svo2"),
            "{error}"
        );
        touch("s_zed4.svo2");
        let names = segment(dir.path())
            .unwrap()
            .map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(
            names,
            ["s_zed1.svo2", "s_zed2.svo", "s_zed3.svo2", "s_zed4.svo2"]
        );
        touch("other_zed4.svo2");
        assert!(segment(dir.path()).is_err());
        assert_eq!(
            segment(Path::new("/nonexistent")).unwrap_err().exit_code(),
            2
        );
    }

    #[test]
    fn the_output_is_named_after_the_segment() {
        let parse =
            |words: &[&str]| GridArgs::try_parse_from([&["zed_svo_grid_to_mp4"], words].concat());
        let dir = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/svo2/2026-03-18T11-59-41"
        );
        let (_, output) = files(&parse(&["--segment-dir", dir]).unwrap()).unwrap();
        assert!(output.ends_with("2026-03-18T11-59-41/2026-03-18T11-59-41_grid.mp4"));
        let three = parse(&[
            "--input", "a", "--input", "b", "--input", "c", "--output", "o",
        ])
        .unwrap();
        assert_eq!(files(&three).unwrap_err().exit_code(), 2);
        let no_output = parse(&[
            "--input", "a", "--input", "b", "--input", "c", "--input", "d",
        ])
        .unwrap();
        assert_eq!(files(&no_output).unwrap_err().exit_code(), 2);
        assert!(parse(&["--segment-dir", "x", "--input", "a"]).is_err());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn rates_may_have_decimals() {
        assert_eq!(frame_rate("30").unwrap(), FrameRate { num: 30, den: 1 });
        assert_eq!(
            frame_rate("29.97").unwrap(),
            FrameRate {
                num: 29_970,
                den: 1000
            }
        );
        for bad in ["0", "-1", "nan", "inf", "x", "1e9"] {
            assert!(frame_rate(bad).is_err(), "{bad}");
        }
    }
}
