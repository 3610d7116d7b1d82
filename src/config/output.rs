//! How the stream is encoded, and where it goes.

use std::time::Duration;

use super::value::{bit_rate, frame_rate, value};
use super::{ConfigError, EncoderSettings, RtmpOutput, RtpOutput, StreamConfig};
use crate::cli::streamer::{
    CodecArg, EncoderArg, InputModeArg, PacingArg, PresetArg, RtmpModeArg, StreamerArgs,
};
use crate::encode::registry::EncoderChoice;
use crate::encode::{Codec, Preset, RateControl};
use crate::flv::packaging::{Packaging, RtmpMode};
use crate::rtmp::url::RtmpUrl;
use crate::sink::rtmp::TlsOptions;
use crate::sink::rtp::Pacing;

pub(super) fn stream(args: &StreamerArgs) -> Result<StreamConfig, ConfigError> {
    let codec = match args.encoder.codec {
        Some(CodecArg::H264) => Codec::H264,
        Some(CodecArg::H265) => Codec::H265,
        None => {
            return Err(ConfigError::Missing {
                flag: "--codec",
                why: "",
                instead: "give --codec h264 or --codec h265, or --run-mode ingest to encode nothing",
            });
        }
    };
    Ok(StreamConfig {
        encoder: encoder(args, codec)?,
        embed_timestamps: args.encoder.embed_timestamps,
        rtp: rtp(args)?,
        rtmp: rtmp(args, codec)?,
    })
}

fn encoder(args: &StreamerArgs, codec: Codec) -> Result<EncoderSettings, ConfigError> {
    let given = &args.encoder;
    let rate = match (given.bitrate, given.quality) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::Conflict {
                flag: "--quality",
                other: "--bitrate",
                instead: "a constant quality has no bit rate: choose one",
            });
        }
        (Some(rate), None) => Some(RateControl::Bitrate(bit_rate("--bitrate", rate)?)),
        (None, Some(quality @ 0..=51)) => Some(RateControl::Quality(quality as u8)),
        (None, Some(quality)) => {
            return Err(value("--quality", quality, "use 0 (best) to 51"));
        }
        (None, None) => None,
    };
    let gop = given.gop.unwrap_or(30);
    if gop == 0 || gop > 1_000_000 {
        return Err(value(
            "--gop",
            gop,
            "use 1 (key frames only) to 1000000 pictures",
        ));
    }
    let b_frames = given.b_frames.unwrap_or(0);
    if b_frames > 16 {
        return Err(value("--b-frames", b_frames, "use 0 to 16"));
    }
    if given.intra_refresh && b_frames > 0 {
        return Err(ConfigError::Conflict {
            flag: "--intra-refresh",
            other: "--b-frames",
            instead: "a picture is refreshed from those before it: use --b-frames 0",
        });
    }
    if given.intra_refresh && gop < 2 {
        return Err(ConfigError::Conflict {
            flag: "--intra-refresh",
            other: "--gop 1",
            instead: "nothing is to be refreshed between key frames: use --gop 2 or more",
        });
    }
    let annexb = args.input.input_mode == Some(InputModeArg::Annexb);
    let choice = match given.encoder {
        None | Some(EncoderArg::Auto) if annexb => EncoderChoice::Passthrough,
        None | Some(EncoderArg::Auto) => EncoderChoice::Auto,
        Some(EncoderArg::Nvenc) => EncoderChoice::Nvenc,
        Some(EncoderArg::Software) => EncoderChoice::Software,
        Some(EncoderArg::Passthrough) => EncoderChoice::Passthrough,
    };
    let coding = [
        ("--bitrate", given.bitrate.is_some()),
        ("--quality", given.quality.is_some()),
        ("--intra-refresh", given.intra_refresh),
    ];
    let coding = coding.iter().find(|(_, given)| *given);
    if let (EncoderChoice::Passthrough, Some((flag, _))) = (choice, coding) {
        return Err(ConfigError::Conflict {
            flag,
            other: "--encoder passthrough",
            instead: "the producer decides how its stream is coded: leave it out",
        });
    }
    Ok(EncoderSettings {
        codec,
        choice,
        gop,
        b_frames,
        intra_refresh: given.intra_refresh,
        rate,
        preset: match given.preset.unwrap_or(PresetArg::Fastest) {
            PresetArg::Fastest => Preset::Fastest,
            PresetArg::Fast => Preset::Fast,
            PresetArg::Balanced => Preset::Balanced,
            PresetArg::Quality => Preset::Quality,
        },
        frame_rate: if annexb {
            None
        } else {
            frame_rate("--fps", given.fps)?
        },
    })
}

fn rtp(args: &StreamerArgs) -> Result<Vec<RtpOutput>, ConfigError> {
    let given = &args.rtp;
    if !given.rtp {
        let dangling = [
            ("--rtp-endpoint", !given.rtp_endpoint.is_empty()),
            ("--rtp-payload-type", given.rtp_payload_type.is_some()),
            ("--rtp-sdp", !given.rtp_sdp.is_empty()),
            ("--rtp-mtu", given.rtp_mtu.is_some()),
            ("--rtp-pacing", given.rtp_pacing.is_some()),
        ];
        return match dangling.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(ConfigError::SwitchOff {
                flag,
                switch: "--rtp",
            }),
            None => Ok(Vec::new()),
        };
    }
    if given.rtp_endpoint.is_empty() {
        return Err(ConfigError::Missing {
            flag: "--rtp-endpoint",
            why: " with --rtp",
            instead: "give the receiver as HOST:PORT",
        });
    }
    if given.rtp_sdp.len() > given.rtp_endpoint.len() {
        return Err(value(
            "--rtp-sdp",
            given.rtp_sdp.len(),
            "there are more files than --rtp-endpoint; give at most one for each",
        ));
    }
    let payload_type = given.rtp_payload_type.unwrap_or(96);
    if !(96..=127).contains(&payload_type) {
        return Err(value(
            "--rtp-payload-type",
            payload_type,
            "use a dynamic payload type, 96 to 127",
        ));
    }
    let mtu = given.rtp_mtu.unwrap_or(1200);
    if !(300..=65_000).contains(&mtu) {
        return Err(value("--rtp-mtu", mtu, "use 300 to 65000 bytes"));
    }
    let pacing = match given.rtp_pacing {
        None | Some(PacingArg::Auto) => Pacing::Auto,
        Some(PacingArg::Off) => Pacing::Off,
        Some(PacingArg::Rate(rate)) => Pacing::Rate(u64::from(bit_rate("--rtp-pacing", rate)?)),
    };
    given
        .rtp_endpoint
        .iter()
        .enumerate()
        .map(|(n, endpoint)| {
            check_endpoint(endpoint)?;
            Ok(RtpOutput {
                endpoint: endpoint.clone(),
                payload_type: payload_type as u8,
                mtu: mtu as usize,
                pacing,
                sdp_path: given.rtp_sdp.get(n).cloned(),
            })
        })
        .collect()
}

/// The form only: whether the host exists is known when the sink opens.
fn check_endpoint(endpoint: &str) -> Result<(), ConfigError> {
    let refuse = |reason| Err(value("--rtp-endpoint", endpoint, reason));
    let Some((host, port)) = endpoint.rsplit_once(':') else {
        return refuse("give HOST:PORT, such as 127.0.0.1:5004");
    };
    if host.is_empty() || (host.contains(':') && !(host.starts_with('[') && host.ends_with(']'))) {
        return refuse("give HOST:PORT; an IPv6 address stands in brackets, such as [::1]:5004");
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => refuse("the port is a number from 1 to 65535"),
    }
}

/// Keeps the stream key off the command line.
const RTMP_URL_VARIABLE: &str = "CVMMAP_RTMP_URL";

fn rtmp(args: &StreamerArgs, codec: Codec) -> Result<Vec<RtmpOutput>, ConfigError> {
    let given = &args.rtmp;
    if !given.rtmp {
        let dangling = [
            ("--rtmp-url", !given.rtmp_url.is_empty()),
            ("--rtmp-url-file", given.rtmp_url_file.is_some()),
            ("--rtmp-mode", given.rtmp_mode.is_some()),
            ("--rtmp-max-retries", given.rtmp_max_retries.is_some()),
            ("--rtmp-max-backoff-ms", given.rtmp_max_backoff_ms.is_some()),
            ("--rtmp-tls-ca", given.rtmp_tls_ca.is_some()),
            ("--rtmp-tls-insecure", given.rtmp_tls_insecure),
        ];
        return match dangling.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(ConfigError::SwitchOff {
                flag,
                switch: "--rtmp",
            }),
            None => Ok(Vec::new()),
        };
    }
    let mode = given.rtmp_mode.map(|mode| match mode {
        RtmpModeArg::Enhanced => RtmpMode::Enhanced,
        RtmpModeArg::Domestic => RtmpMode::Domestic,
    });
    let packaging = Packaging::new(codec, mode)?;
    let mut urls: Vec<(&'static str, String)> = given
        .rtmp_url
        .iter()
        .map(|url| ("--rtmp-url", url.clone()))
        .collect();
    if let Some(path) = &given.rtmp_url_file {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File {
            flag: "--rtmp-url-file",
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        let lines = text.lines().map(str::trim);
        urls.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(|line| ("--rtmp-url-file", line.to_owned())),
        );
    }
    if urls.is_empty()
        && let Ok(url) = std::env::var(RTMP_URL_VARIABLE)
    {
        urls.push((RTMP_URL_VARIABLE, url));
    }
    if urls.is_empty() {
        return Err(ConfigError::Missing {
            flag: "--rtmp-url",
            why: " with --rtmp",
            instead: "give rtmp://host/app/key, --rtmp-url-file, or the variable CVMMAP_RTMP_URL",
        });
    }
    urls.into_iter()
        .map(|(flag, text)| {
            // The value is not repeated: it may hold a key.
            let url = text
                .parse::<RtmpUrl>()
                .map_err(|error| ConfigError::Value {
                    flag,
                    value: "(not shown)".to_owned(),
                    reason: error.to_string(),
                })?;
            Ok(RtmpOutput {
                url,
                packaging,
                max_retries: given.rtmp_max_retries.unwrap_or(0),
                max_backoff: Duration::from_millis(
                    given.rtmp_max_backoff_ms.unwrap_or(5000).max(100),
                ),
                tls: TlsOptions {
                    ca_file: given.rtmp_tls_ca.clone(),
                    insecure: given.rtmp_tls_insecure,
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_a_port() {
        for good in ["127.0.0.1:5004", "localhost:1", "[::1]:65535"] {
            assert_eq!(check_endpoint(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "5004",
            ":5004",
            "::1:5004",
            "host:",
            "host:0",
            "host:65536",
            "host:x",
        ] {
            assert!(check_endpoint(bad).is_err(), "{bad}");
        }
    }
}
