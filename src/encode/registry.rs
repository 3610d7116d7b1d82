//! The candidates, in order of preference.

use super::{Codec, EncodeError, EncoderBackend, EncoderConfig, FrameRate};
use super::{openh264, passthrough};
use crate::frame::SurfacePool;

/// `--encoder`: which candidates may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EncoderChoice {
    /// Hardware where it works, else software.
    #[default]
    Auto,
    /// NVENC or nothing.
    #[value(alias = "nvidia")]
    Nvenc,
    /// Software even where hardware would work.
    Software,
    /// The producer's own access units.
    Passthrough,
}

/// What a candidate runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Hardware,
    Software,
    Passthrough,
}

/// One way to get access units.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// As the operator knows it; the backend says the same of itself.
    pub name: &'static str,
    pub codecs: &'static [Codec],
    pub kind: Kind,
    pub open: OpenFn,
    /// What the operator can do if it is refused; a sentence, or empty.
    pub help: &'static str,
}

/// Opens a candidate; an error is an ordinary outcome, after which the next one is tried.
pub type OpenFn =
    fn(&EncoderConfig, &mut Announce<'_>) -> Result<Box<dyn EncoderBackend>, EncodeError>;

/// Told the surfaces as soon as they are there. With software that is before the library opens, which
/// takes longer than many a frame interval; the picture's size has been accepted by then. A candidate whose
/// surfaces need an open session says nothing here.
pub type Announce<'a> = dyn FnMut(&SurfacePool) + 'a;

/// All that this build has, best first. A new encoder is one row.
pub const CANDIDATES: &[Candidate] = &[
    #[cfg(feature = "nvenc")]
    Candidate {
        name: super::nvenc::NAME,
        codecs: &[Codec::H264, Codec::H265],
        kind: Kind::Hardware,
        open: super::nvenc::open,
        help: "cvmmap_streamer gpu-info tells what driver and GPUs are there and what is missing",
    },
    Candidate {
        name: openh264::NAME,
        codecs: &[Codec::H264],
        kind: Kind::Software,
        open: openh264::open,
        help: "",
    },
    #[cfg(feature = "x265")]
    Candidate {
        name: super::x265::NAME,
        codecs: &[Codec::H265],
        kind: Kind::Software,
        open: super::x265::open,
        help: "",
    },
    Candidate {
        name: passthrough::NAME,
        codecs: &[Codec::H264, Codec::H265],
        kind: Kind::Passthrough,
        open: passthrough::open,
        help: "",
    },
];

impl EncoderChoice {
    /// Whether this choice lets `candidate` be taken.
    pub fn allows(self, candidate: &Candidate) -> bool {
        match self {
            Self::Auto => candidate.kind != Kind::Passthrough,
            Self::Nvenc => candidate.kind == Kind::Hardware,
            Self::Software => candidate.kind == Kind::Software,
            Self::Passthrough => candidate.kind == Kind::Passthrough,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nvenc => "nvenc",
            Self::Software => "software",
            Self::Passthrough => "passthrough",
        }
    }

    /// The error for a build that has no candidate for this choice and codec.
    pub(super) fn nothing_for(self, codec: Codec) -> EncodeError {
        let reason = match (self, codec) {
            (Self::Nvenc, _) => {
                "this build has no NVENC: --encoder auto or software codes in software".to_owned()
            }
            (_, Codec::H265) => {
                "this build has no encoder for h265: the cargo feature x265 is off. Build with it, \
                 or take --codec h264"
                    .to_owned()
            }
            (_, Codec::H264) => "this build has no encoder for h264".to_owned(),
        };
        EncodeError::Open {
            encoder: self.name(),
            reason,
        }
    }
}

/// The bit rate in bit/s where neither `--bitrate` nor `--quality` says one.
///
/// 4 Mbit/s for 1280x720 at 30 pictures per second in H.264, and from there with the power 3/4 of
/// pixels per second: a larger picture shows the same things in more pixels, which cost less
/// each. H.265 gets six tenths. Rounded to 10 kbit/s; at least 100 kbit/s, at most 100 Mbit/s.
///
/// | | H.264 | H.265 |
/// | --- | --- | --- |
/// | 640x360, 30/s | 1.41 Mbit/s | 0.85 Mbit/s |
/// | 1920x1080, 30/s | 7.35 Mbit/s | 4.41 Mbit/s |
/// | 3840x2160, 30/s | 20.78 Mbit/s | 12.47 Mbit/s |
pub fn default_bitrate(width: u32, height: u32, rate: FrameRate, codec: Codec) -> u32 {
    const GROUND: f64 = 1280.0 * 720.0 * 30.0;
    let pixels = f64::from(width) * f64::from(height) * rate.per_second();
    let share = match codec {
        Codec::H264 => 1.0,
        Codec::H265 => 0.6,
    };
    let bits = 4_000_000.0 * share * (pixels / GROUND).powf(0.75);
    let rounded = (bits / 10_000.0).round() * 10_000.0;
    rounded.clamp(100_000.0, 100_000_000.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_words_of_the_flag_and_its_alias_are_known() {
        let parse = |word| EncoderChoice::from_str(word, false);
        for choice in EncoderChoice::value_variants() {
            assert_eq!(parse(choice.name()), Ok(*choice));
        }
        assert_eq!(parse("nvidia"), Ok(EncoderChoice::Nvenc));
        assert!(parse("x265").is_err());
    }

    #[test]
    fn the_default_bit_rate_follows_its_table() {
        let rate = |w, h, fps, codec| {
            let rate = FrameRate { num: fps, den: 1 };
            default_bitrate(w, h, rate, codec)
        };
        assert_eq!(rate(1280, 720, 30, Codec::H264), 4_000_000);
        // 0.25^0.75 = 0.35355, 2.25^0.75 = 1.83712, 9^0.75 = 5.19615
        assert_eq!(rate(640, 360, 30, Codec::H264), 1_410_000);
        assert_eq!(rate(640, 360, 30, Codec::H265), 850_000);
        assert_eq!(rate(1920, 1080, 30, Codec::H264), 7_350_000);
        assert_eq!(rate(1920, 1080, 30, Codec::H265), 4_410_000);
        assert_eq!(rate(3840, 2160, 30, Codec::H264), 20_780_000);
        assert_eq!(rate(3840, 2160, 30, Codec::H265), 12_470_000);
        assert_eq!(rate(16, 16, 1, Codec::H264), 100_000);
        assert_eq!(rate(65535, 65535, 1000, Codec::H264), 100_000_000);
    }

    #[test]
    fn each_choice_allows_its_own_kind() {
        let names = |choice: EncoderChoice| -> Vec<_> {
            let allowed = CANDIDATES.iter().filter(|c| choice.allows(c));
            allowed.map(|c| c.name).collect()
        };
        assert_eq!(names(EncoderChoice::Passthrough), ["passthrough"]);
        assert!(!names(EncoderChoice::Auto).contains(&"passthrough"));
        assert!(names(EncoderChoice::Software).contains(&"openh264"));
        assert!(!names(EncoderChoice::Nvenc).contains(&"openh264"));
    }
}
