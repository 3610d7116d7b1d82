//! Numbers as flags write them.

use super::ConfigError;
use crate::encode::FrameRate;

pub(super) fn bit_rate(flag: &'static str, rate: f64) -> Result<u32, ConfigError> {
    if (1e4..=1e9).contains(&rate) {
        Ok(rate as u32)
    } else {
        Err(value(flag, rate, "use 10k to 1000M bits per second"))
    }
}

/// As a fraction: whole rates and the NTSC ones exactly, others in thousandths.
pub(super) fn frame_rate(
    flag: &'static str,
    fps: Option<f64>,
) -> Result<Option<FrameRate>, ConfigError> {
    let Some(fps) = fps else { return Ok(None) };
    if !(0.1..=1000.0).contains(&fps) {
        return Err(value(flag, fps, "use 0.1 to 1000 frames per second"));
    }
    let ntsc = (fps * 1001.0 / 1000.0).round();
    let rate = if (fps - fps.round()).abs() < 1e-9 {
        FrameRate {
            num: fps as u32,
            den: 1,
        }
    } else if (ntsc * 1000.0 / 1001.0 - fps).abs() < 0.005 {
        FrameRate {
            num: ntsc as u32 * 1000,
            den: 1001,
        }
    } else {
        FrameRate {
            num: (fps * 1000.0).round() as u32,
            den: 1000,
        }
    };
    Ok(Some(rate))
}

pub(super) fn value(
    flag: &'static str,
    value: impl std::fmt::Display,
    reason: impl Into<String>,
) -> ConfigError {
    ConfigError::Value {
        flag,
        value: value.to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_rates_understand_suffixes_and_refuse_nonsense() {
        use crate::cli::streamer::bit_rate as parse;
        assert_eq!(parse("4000000"), Ok(4e6));
        assert_eq!(parse("800k"), Ok(8e5));
        assert_eq!(parse("2.5M"), Ok(2.5e6));
        for bad in ["", "k", "4G", "NaN", "inf", "--"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for out_of_range in [5.0, -1e6, 1e30] {
            assert!(bit_rate("--bitrate", out_of_range).is_err());
        }
    }

    #[test]
    fn frame_rates_become_exact_fractions() {
        let rate = |fps| frame_rate("--fps", Some(fps)).unwrap().unwrap();
        assert_eq!(rate(25.0), FrameRate { num: 25, den: 1 });
        assert_eq!(
            rate(29.97),
            FrameRate {
                num: 30000,
                den: 1001
            }
        );
        assert_eq!(
            rate(12.5),
            FrameRate {
                num: 12500,
                den: 1000
            }
        );
        assert!(frame_rate("--fps", Some(f64::NAN)).is_err());
        assert!(frame_rate("--fps", Some(0.0)).is_err());
    }
}
