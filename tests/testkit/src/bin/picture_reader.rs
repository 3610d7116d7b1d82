//! Reads the picture number back out of decoded frames of the dummy's pattern.
//!
//! Raw BGR frames come in on standard input (`ffmpeg ... -f rawvideo -pix_fmt bgr24 -`), one line
//! per frame goes out: the number modulo 256 and the mean absolute error against the pattern of
//! that number. Exits 4 if fewer than `--least` frames came, 7 if a frame shows no pattern or the
//! numbers do not go up.

use std::io::Read;
use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Reads the number of each picture of the dummy's pattern from raw BGR frames"
)]
struct Args {
    #[arg(long)]
    width: usize,
    #[arg(long)]
    height: usize,
    /// Fewer frames are an error
    #[arg(long, default_value_t = 1)]
    least: usize,
    /// Largest mean absolute error per sample
    #[arg(long, default_value_t = 20.0)]
    tolerance: f64,
    /// Only the summary
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut frame = vec![0_u8; args.width * args.height * 3];
    let mut input = std::io::stdin().lock();
    let (mut frames, mut largest_gap, mut worst) = (0_usize, 0_u8, 0.0_f64);
    let mut last: Option<u8> = None;
    while input.read_exact(&mut frame).is_ok() {
        let (number, error) = recognise(&frame, args.width, args.height);
        if !args.quiet {
            println!("{frames} {number} {error:.2}");
        }
        if error > args.tolerance {
            eprintln!("frame {frames}: no pattern (best guess {number}, error {error:.1})");
            return ExitCode::from(7);
        }
        if let Some(last) = last {
            let step = number.wrapping_sub(last);
            if step == 0 || step > 128 {
                eprintln!("frame {frames}: picture number {number} after {last}");
                return ExitCode::from(7);
            }
            largest_gap = largest_gap.max(step - 1);
        }
        last = Some(number);
        worst = worst.max(error);
        frames += 1;
    }
    println!("frames={frames} largest_gap={largest_gap} worst_error={worst:.2}");
    if frames < args.least {
        eprintln!("{frames} frames, fewer than {}", args.least);
        return ExitCode::from(4);
    }
    ExitCode::SUCCESS
}

/// The number whose pattern is nearest, and the mean absolute error of a sample.
fn recognise(frame: &[u8], width: usize, height: usize) -> (u8, f64) {
    let errors = (0..=255_u8).map(|number| (number, error(frame, width, height, number)));
    errors
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .expect("256 candidates")
}

/// Mean over a grid of pixels, away from the borders. Contract section 7: frame n, pixel (x,y), all
/// modulo 256: B = x + 3n, G = 2y + 5n, R = x/2 + y/3 + 7n.
fn error(frame: &[u8], width: usize, height: usize, number: u8) -> f64 {
    let n = usize::from(number);
    let (mut sum, mut samples) = (0_u64, 0_u64);
    for y in (height / 8..height - height / 8).step_by((height / 24).max(1)) {
        for x in (width / 8..width - width / 8).step_by((width / 32).max(1)) {
            let at = (y * width + x) * 3;
            let expected = [x + 3 * n, 2 * y + 5 * n, x / 2 + y / 3 + 7 * n];
            for (seen, expected) in frame[at..at + 3].iter().zip(expected) {
                sum += u64::from(seen.abs_diff((expected % 256) as u8));
                samples += 1;
            }
        }
    }
    sum as f64 / samples as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_told_from_every_other() {
        let (width, height) = (64, 48);
        for n in 0..=255_usize {
            let mut frame = Vec::new();
            for y in 0..height {
                for x in 0..width {
                    let pixel = [x + 3 * n, 2 * y + 5 * n, x / 2 + y / 3 + 7 * n];
                    frame.extend(pixel.map(|value| (value % 256) as u8));
                }
            }
            assert_eq!(recognise(&frame, width, height), (n as u8, 0.0));
        }
    }
}
