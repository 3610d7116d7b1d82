//! Where frames and bodies come from, and which NATS server speaks for the producer.

use super::value::{frame_rate, value};
use super::{BodyOutput, ConfigError, Dummy, Input, Names, StreamConfig};
use crate::cli::streamer::{InputModeArg, NatsArgs, RunModeArg, StreamerArgs};
use crate::control::server::ServerConfig;
use crate::encode::FrameRate;
use crate::encode::registry::EncoderChoice;
use crate::source::contract::Label;
use crate::source::target::{Target, nats_key_of};

/// What a coder of either kind takes; the metadata allows 65535.
const LARGEST_SIDE: u32 = 16384;

/// The producer's default server (contract section 1).
pub const NATS_URL: &str = "nats://localhost:4222";
/// Keeps a password off the command line. Not clap's to read: it takes a variable for a flag that
/// was given, and `--no-nats` for a conflict with it.
const NATS_URL_VARIABLE: &str = "CVMMAP_NATS_URL";
/// As `--input-uri`: the one producer that is there.
const DISCOVER: &str = "discover:";

pub(super) fn nats(
    args: &StreamerArgs,
    input: &Input,
) -> Result<Option<ServerConfig>, ConfigError> {
    let given = &args.nats;
    if args.input.no_nats {
        let other = [
            ("--nats-url", given.nats_url.is_some()),
            ("--nats-creds", given.nats_creds.is_some()),
            ("--nats-ca", given.nats_ca.is_some()),
            ("--input-uri discover:", *input == Input::Discover),
        ];
        return match other.iter().find(|(_, given)| *given) {
            Some((other, _)) => Err(ConfigError::Conflict {
                flag: "--no-nats",
                other,
                instead: "leave one of them out",
            }),
            None => Ok(None),
        };
    }
    server(given).map(Some)
}

/// The server that the flags name, or the variable where they name none.
///
/// # Errors
///
/// If the URL is none, or a file cannot be read.
pub fn server(given: &NatsArgs) -> Result<ServerConfig, ConfigError> {
    let variable = || {
        let value = std::env::var_os(NATS_URL_VARIABLE)?;
        (!value.is_empty()).then(|| value.to_string_lossy().into_owned())
    };
    let (from, url) = match (&given.nats_url, variable()) {
        (Some(url), _) => ("--nats-url", url.clone()),
        (None, Some(url)) => (NATS_URL_VARIABLE, url),
        (None, None) => ("--nats-url", NATS_URL.to_owned()),
    };
    // The value is not repeated: it may hold a password.
    let mut server =
        ServerConfig::parse(&url).map_err(|error| value(from, "(not shown)", error.to_string()))?;
    for (flag, path) in [
        ("--nats-creds", &given.nats_creds),
        ("--nats-ca", &given.nats_ca),
    ] {
        if let Some(path) = path
            && let Err(error) = std::fs::File::open(path)
        {
            return Err(ConfigError::File {
                flag,
                path: path.display().to_string(),
                reason: error.to_string(),
            });
        }
    }
    server.credentials = given.nats_creds.clone();
    server.authorities = given.nats_ca.clone();
    Ok(server)
}

pub(super) fn body_output(
    args: &StreamerArgs,
    input: &Input,
    nats: bool,
) -> Result<BodyOutput, ConfigError> {
    let output = match args.input.body_output.as_deref() {
        None | Some("none") => return Ok(BodyOutput::None),
        Some("sei") => BodyOutput::Sei,
        Some(other) => match other.strip_prefix("jsonl:") {
            Some(path) if !path.is_empty() => BodyOutput::Jsonl(path.into()),
            _ => {
                return Err(value("--body-output", other, "use none, sei or jsonl:PATH"));
            }
        },
    };
    let conflict = |other, instead| {
        Err(ConfigError::Conflict {
            flag: "--body-output",
            other,
            instead,
        })
    };
    if !nats {
        return conflict("--no-nats", "bodies come over NATS: leave one of them out");
    }
    if matches!(input, Input::Annexb { .. }) {
        return conflict("--input-mode annexb", "a file has no bodies: leave it out");
    }
    if args.run_mode == Some(RunModeArg::Ingest) {
        return conflict(
            "--run-mode ingest",
            "bodies are paired with encoded pictures: use --run-mode pipeline",
        );
    }
    Ok(output)
}

pub(super) fn input(
    args: &StreamerArgs,
    stream: Option<&StreamConfig>,
) -> Result<Input, ConfigError> {
    let mode = args.input.input_mode.unwrap_or(InputModeArg::Cvmmap);
    if mode == InputModeArg::Annexb {
        let path = args.input.input_file.clone().ok_or(ConfigError::Missing {
            flag: "--input-file",
            why: " with --input-mode annexb",
            instead: "give the elementary stream to replay",
        })?;
        let fps = args.encoder.fps;
        let pace = match fps {
            Some(0.0) => None,
            _ => Some(frame_rate("--fps", fps)?.unwrap_or(FrameRate::THIRTY)),
        };
        if let Some(stream) = stream
            && !matches!(
                stream.encoder.choice,
                EncoderChoice::Auto | EncoderChoice::Passthrough
            )
        {
            return Err(ConfigError::Conflict {
                flag: "--encoder",
                other: "--input-mode annexb",
                instead: "a recorded stream is forwarded as it is: use --encoder passthrough",
            });
        }
        return Ok(Input::Annexb { path, pace });
    }
    if args.input.input_file.is_some() {
        return Err(ConfigError::Conflict {
            flag: "--input-file",
            other: "--input-mode cvmmap",
            instead: "add --input-mode annexb to replay a file",
        });
    }
    if args.input.input_uri.as_deref() == Some(DISCOVER) {
        if mode == InputModeArg::Dummy {
            return Err(ConfigError::Conflict {
                flag: "--input-uri discover:",
                other: "--input-mode dummy",
                instead: "a producer of one's own has a name: give it",
            });
        }
        refuse_names(
            args,
            "--input-uri discover:",
            "discovery finds both: leave it out",
        )?;
        return Ok(Input::Discover);
    }
    let names = names(args)?;
    if mode == InputModeArg::Dummy {
        return Ok(Input::Dummy(names, dummy(args)?));
    }
    Ok(Input::Cvmmap(names))
}

fn names(args: &StreamerArgs) -> Result<Names, ConfigError> {
    let input = &args.input;
    if let Some(uri) = &input.input_uri {
        refuse_names(
            args,
            "--input-uri",
            "the URI names both: leave the other out",
        )?;
        let target =
            Target::parse(uri).map_err(|error| value("--input-uri", uri, error.to_string()))?;
        return Ok(Names {
            shm_name: target.shm_name(),
            zmq_endpoint: target.zmq_endpoint(),
            label: Label::new(target.instance()).ok(),
            nats_key: target.nats_key(),
        });
    }
    let missing = |flag| ConfigError::Missing {
        flag,
        why: "",
        instead: "give --shm-name and --zmq-endpoint, or --input-uri NAME, which derives both",
    };
    let given = input.shm_name.as_deref().ok_or(missing("--shm-name"))?;
    let zmq_endpoint = input
        .zmq_endpoint
        .as_deref()
        .ok_or(missing("--zmq-endpoint"))?;
    let shm_name = given.strip_prefix('/').unwrap_or(given);
    // shm_open(3): one component of at most NAME_MAX bytes.
    if shm_name.is_empty() || shm_name.len() > 255 || shm_name.contains(['/', '\0']) {
        return Err(value(
            "--shm-name",
            given,
            "a segment's name is one path component of 1 to 255 bytes, a leading / apart",
        ));
    }
    let scheme = zmq_endpoint.split_once("://");
    match scheme {
        Some(("ipc" | "tcp" | "inproc", rest)) if !rest.is_empty() => {}
        _ => {
            return Err(value(
                "--zmq-endpoint",
                zmq_endpoint,
                "an endpoint looks like ipc:///path/of/socket or tcp://127.0.0.1:5555",
            ));
        }
    }
    Ok(Names {
        shm_name: shm_name.to_owned(),
        zmq_endpoint: zmq_endpoint.to_owned(),
        label: None,
        nats_key: nats_key_of(shm_name),
    })
}

fn refuse_names(
    args: &StreamerArgs,
    other: &'static str,
    instead: &'static str,
) -> Result<(), ConfigError> {
    let given = [
        ("--shm-name", args.input.shm_name.is_some()),
        ("--zmq-endpoint", args.input.zmq_endpoint.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(ConfigError::Conflict {
            flag,
            other,
            instead,
        }),
        None => Ok(()),
    }
}

fn dummy(args: &StreamerArgs) -> Result<Dummy, ConfigError> {
    let given = &args.dummy;
    let label = given.dummy_label.clone().unwrap_or_else(|| "dummy".into());
    if label.is_empty() || !label.is_ascii() {
        return Err(value(
            "--dummy-label",
            label,
            "a label is 1 to 24 ASCII bytes",
        ));
    }
    let fps = frame_rate("--dummy-fps", given.dummy_fps)?.unwrap_or(FrameRate::THIRTY);
    let side = |flag, given: Option<u32>, default| {
        let side = given.unwrap_or(default);
        if (2..=LARGEST_SIDE).contains(&side) {
            Ok(side)
        } else {
            Err(value(flag, side, "use 2 to 16384 pixels"))
        }
    };
    Ok(Dummy {
        label,
        frames: given.dummy_frames.unwrap_or(0),
        fps,
        width: side("--dummy-width", given.dummy_width, 640)?,
        height: side("--dummy-height", given.dummy_height, 360)?,
    })
}
