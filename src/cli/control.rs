//! `ctl`: what a person asks of a producer, or of a streamer beside it, over NATS.
//!
//! Every way of not getting an answer has its own words and exit code (contract `cli.md` section
//! 1): no server 5, nobody serves it 4, no answer in time 124, a malformed answer or a refusal 7.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use serde::Serialize;
use serde_json::{Value, json};

use super::discover::tell_left_out;
use super::streamer::{CameraAction, CtlAction, CtlArgs, NatsArgs, PlaylistAction};
use super::{complain, printable, say};
use crate::config;
use crate::control::client::{Client, ControlError, LinkCounters};
use crate::control::discover::{Found, producers};
use crate::control::is_subject_token;
use crate::control::messages::{
    ApplyPlaylistRequest, CameraControlResponse, CameraControlWriteMode, ErrorCode,
    GetCameraControlCapabilitiesResponse, GetCameraControlRequest, GetSourceInfoResponse,
    PlaylistResponse, ResetFrameCountResponse, SetCameraControlRangeRequest,
    SetCameraControlRequest,
};
use crate::control::service::Action;
use crate::control::words::{self, CameraState, Playlist, SourceInfo};
use crate::exit::Exit;
use crate::source::target::{Target, nats_key_of};

/// `cvmmap_streamer ctl`.
pub fn ctl(args: &CtlArgs) -> Exit {
    match Talk::begin(args).and_then(|talk| talk.act(&args.action)) {
        Ok(answer) => {
            if args.json {
                say_json(&answer.json);
            } else {
                say(&printable(&answer.text));
            }
            Exit::Success
        }
        Err(failure) => failure.tell(args.json),
    }
}

/// Why there is no answer to show.
#[derive(Debug)]
pub(super) enum Failure {
    Arguments(String),
    Control(ControlError),
    /// Nobody is there to be chosen, several are, or none that can be used.
    Choice(Exit, String),
    /// An answer that says no: its code, and its words.
    Refused {
        code: String,
        words: String,
    },
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

impl Failure {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Arguments(words) | Self::Choice(_, words) => words.clone(),
            Self::Control(error) => error.to_string(),
            Self::Refused { words, .. } => words.clone(),
        }
    }

    /// What kind it is, in one word.
    fn code(&self) -> &str {
        match self {
            Self::Arguments(_) => "arguments",
            Self::Choice(Exit::Protocol, _) => "bad-reply",
            Self::Choice(..) => "choice",
            Self::Control(error) => match error {
                ControlError::NoServer { .. } => "no-server",
                ControlError::Unauthorized { .. } => "unauthorized",
                ControlError::Tls { .. } => "tls",
                ControlError::Lost(_) => "connection-lost",
                ControlError::NoResponders { .. } => "no-responders",
                ControlError::Timeout { .. } => "no-answer",
                ControlError::BadReply { .. } => "bad-reply",
            },
            Self::Refused { code, .. } => code,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Arguments(_) => Exit::Invalid,
            Self::Choice(exit, _) => *exit,
            Self::Control(error) => match error {
                ControlError::NoServer { .. }
                | ControlError::Unauthorized { .. }
                | ControlError::Tls { .. }
                | ControlError::Lost(_) => Exit::Pipeline,
                ControlError::NoResponders { .. } => Exit::NothingFound,
                ControlError::Timeout { .. } => Exit::Timeout,
                ControlError::BadReply { .. } => Exit::Protocol,
            },
            Self::Refused { .. } => Exit::Protocol,
        }
    }

    pub(super) fn tell(&self, as_json: bool) -> Exit {
        if as_json {
            say_json(&json!({"ok": false, "error": self.code(), "message": self.words()}));
        }
        complain(&format!("error: {}", printable(&self.words())));
        self.exit()
    }
}

/// What a command shows.
#[derive(Debug)]
struct Answer {
    text: String,
    json: Value,
}

impl Answer {
    fn new(text: impl Into<String>, value: impl Serialize) -> Self {
        let mut json = serde_json::to_value(value).unwrap_or_default();
        if let Value::Object(fields) = &mut json {
            fields.insert("ok".to_owned(), Value::Bool(true));
        }
        Self {
            text: text.into(),
            json,
        }
    }
}

/// One command's connection and its producer.
struct Talk {
    client: Client,
    nats_key: String,
    limit: Duration,
}

impl Talk {
    fn begin(args: &CtlArgs) -> Result<Self, Failure> {
        let arguments = |words: String| Failure::Arguments(words);
        let server = config::server(&NatsArgs {
            nats_url: args.nats_url.clone(),
            nats_creds: args.nats_creds.clone(),
            nats_ca: args.nats_ca.clone(),
        })
        .map_err(|error| arguments(error.to_string()))?;
        let given = match (&args.input_uri, &args.shm_name) {
            (Some(uri), _) => Some(
                Target::parse(uri)
                    .map_err(|error| arguments(format!("--input-uri {uri}: {error}")))?
                    .nats_key(),
            ),
            (None, Some(name)) => Some(checked_key(name)?),
            (None, None) => None,
        };
        let limit = Duration::from_millis(args.timeout_ms);
        let client = Client::connect_within(&server, &Arc::new(LinkCounters::default()), CONNECT)?;
        let nats_key = match given {
            Some(key) => key,
            None => {
                let found = producers(&client, limit)?;
                tell_left_out(&found);
                the_only(&found)?
            }
        };
        Ok(Self {
            client,
            nats_key,
            limit,
        })
    }

    fn act(&self, action: &CtlAction) -> Result<Answer, Failure> {
        match action {
            CtlAction::Info => self.info(),
            CtlAction::Reset => self.reset(),
            CtlAction::Playlist { action } => self.playlist(action.as_ref()),
            CtlAction::Camera { action } => self.camera(action),
            CtlAction::Stats { which } => {
                let reply = self.streamer(Action::Stats, which.streamer.as_deref(), "")?;
                let text = serde_json::to_string_pretty(&reply["stats"]).unwrap_or_default();
                Ok(Answer::new(text, reply))
            }
            CtlAction::Keyframe { which } => {
                let reply = self.streamer(Action::KeyFrame, which.streamer.as_deref(), "")?;
                Ok(Answer::new("the next picture is a key frame", reply))
            }
            CtlAction::Bitrate { rate, which } => {
                let wish = json!({"bits_per_second": rate}).to_string();
                let reply = self.streamer(Action::Bitrate, which.streamer.as_deref(), &wish)?;
                let text = format!(
                    "{} codes at {} bit/s now",
                    reply["encoder"].as_str().unwrap_or("the encoder"),
                    reply["bits_per_second"]
                );
                Ok(Answer::new(text, reply))
            }
        }
    }

    fn info(&self) -> Result<Answer, Failure> {
        let reply: GetSourceInfoResponse = self.ask("source.info", &[])?;
        accepted(reply.error, "")?;
        let info = SourceInfo::from(&reply);
        let mut text = info.summary();
        text.push_str(&format!(
            "\nframe {} at {}",
            info.current_frame_count,
            words::seconds(info.current_timestamp_ns)
        ));
        if info.kind == "finite" {
            text.push_str(&format!(
                "\ntimeline {} to {}",
                words::seconds(info.timeline_start_ns),
                words::seconds(info.timeline_end_ns)
            ));
        }
        Ok(Answer::new(text, info))
    }

    fn reset(&self) -> Result<Answer, Failure> {
        let reply: ResetFrameCountResponse = self.ask("source.reset", &[])?;
        accepted(reply.error, "")?;
        Ok(Answer::new("the stream starts anew", json!({})))
    }

    fn playlist(&self, action: Option<&PlaylistAction>) -> Result<Answer, Failure> {
        let reply: PlaylistResponse = match action {
            None | Some(PlaylistAction::Info) => self.ask("source.playlist.info", &[])?,
            Some(PlaylistAction::Apply {
                paths,
                sort_by_recording_time,
            }) => {
                let request = ApplyPlaylistRequest {
                    paths: paths.clone(),
                    sort_by_recording_time: *sort_by_recording_time,
                };
                self.ask("source.playlist.apply", &request.encode_to_vec())?
            }
        };
        accepted(reply.error, &reply.error_message)?;
        let list = Playlist::from(reply.playlist_info.unwrap_or_default());
        let mut text = String::new();
        if list.has_playlist {
            for (n, path) in list.paths.iter().enumerate() {
                let mark = if n == list.current_index as usize {
                    '>'
                } else {
                    ' '
                };
                text.push_str(&format!("{mark} {path}\n"));
            }
            text.push_str(if list.sort_by_recording_time {
                "sorted by recording time"
            } else {
                "in the given order"
            });
        } else {
            text.push_str("no playlist");
        }
        Ok(Answer::new(text, list))
    }

    fn camera(&self, action: &CameraAction) -> Result<Answer, Failure> {
        let number = |name: &str| {
            words::setting(name)
                .map(|setting| setting as i32)
                .ok_or_else(|| {
                    let known: Vec<_> = words::SETTINGS.iter().map(|(name, _)| *name).collect();
                    Failure::Arguments(format!(
                        "{name:?} is no camera setting; there are {}",
                        known.join(", ")
                    ))
                })
        };
        let reply: CameraControlResponse = match action {
            CameraAction::Capabilities => return self.camera_capabilities(),
            CameraAction::Get { setting } => {
                let request = GetCameraControlRequest {
                    setting: number(setting)?,
                };
                self.ask("camera_control.get", &request.encode_to_vec())?
            }
            CameraAction::Set { setting, value } => {
                let mut request = SetCameraControlRequest {
                    setting: number(setting)?,
                    mode: CameraControlWriteMode::Auto as i32,
                    value: 0,
                };
                if value != "auto" {
                    request.mode = CameraControlWriteMode::Manual as i32;
                    request.value = value.parse().map_err(|_| {
                        Failure::Arguments(format!("{value:?} is neither a number nor auto"))
                    })?;
                }
                self.ask("camera_control.set", &request.encode_to_vec())?
            }
            CameraAction::SetRange { setting, min, max } => {
                let request = SetCameraControlRangeRequest {
                    setting: number(setting)?,
                    min_value: *min,
                    max_value: *max,
                };
                self.ask("camera_control.set_range", &request.encode_to_vec())?
            }
        };
        accepted(reply.error, &reply.error_message)?;
        let state = CameraState::from(&reply.control.unwrap_or_default());
        let text = match &state {
            CameraState::Single { setting, value } => format!("{setting} = {value}"),
            CameraState::Range { setting, min, max } => format!("{setting} = {min} to {max}"),
        };
        Ok(Answer::new(text, state))
    }

    fn camera_capabilities(&self) -> Result<Answer, Failure> {
        let reply: GetCameraControlCapabilitiesResponse =
            self.ask("camera_control.capabilities", &[])?;
        accepted(reply.error, &reply.error_message)?;
        let settings = reply.supported_settings.iter();
        let settings: Vec<_> = settings.map(|code| words::setting_name(*code)).collect();
        let text = match (reply.supported, settings.is_empty()) {
            (false, _) => "the camera has no settings to control".to_owned(),
            (true, true) => "camera control, without any setting".to_owned(),
            (true, false) => settings.join("\n"),
        };
        let value = json!({"supported": reply.supported, "settings": settings});
        Ok(Answer::new(text, value))
    }

    /// Asks the producer; zero bytes are an answer too.
    fn ask<M: Message + Default>(&self, what: &str, request: &[u8]) -> Result<M, Failure> {
        let subject = format!("cvmmap.{}.producer.{what}", self.nats_key);
        let bytes = self.client.request(&subject, request, self.limit)?;
        M::decode(&bytes[..]).map_err(|error| {
            ControlError::BadReply {
                subject,
                reason: error.to_string(),
            }
            .into()
        })
    }

    /// Asks a streamer, in JSON.
    fn streamer(&self, action: Action, id: Option<&str>, request: &str) -> Result<Value, Failure> {
        let subject = match id {
            None => action.subject(&self.nats_key),
            Some(id) if id.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !id.is_empty() => {
                action.subject_of(&self.nats_key, id)
            }
            Some(id) => {
                return Err(Failure::Arguments(format!(
                    "--streamer {id:?}: an id is letters and digits"
                )));
            }
        };
        let limit = match action {
            // It is answered when the encoder has it.
            Action::Bitrate => self.limit.max(ENCODER),
            Action::Stats | Action::KeyFrame => self.limit,
        };
        let bytes = match self.client.request(&subject, request.as_bytes(), limit) {
            Err(ControlError::NoResponders { subject }) => {
                return Err(Failure::Choice(
                    Exit::NothingFound,
                    format!("no streamer serves {subject}"),
                ));
            }
            other => other?,
        };
        let reply: Value =
            serde_json::from_slice(&bytes).map_err(|error| ControlError::BadReply {
                subject: subject.clone(),
                reason: error.to_string(),
            })?;
        if reply["ok"] == true {
            return Ok(reply);
        }
        match reply["error"].as_str() {
            Some(words) => Err(Failure::Refused {
                code: format!("refused-{}", reply["code"]),
                words: words.to_owned(),
            }),
            None => Err(ControlError::BadReply {
                subject,
                reason: "it has neither ok nor error".to_owned(),
            }
            .into()),
        }
    }
}

/// Zero is OK, also where the answer had no bytes at all.
fn accepted(error: i32, message: &str) -> Result<(), Failure> {
    if error == ErrorCode::Ok as i32 {
        return Ok(());
    }
    let mut words = words::error_words(error);
    if !message.is_empty() {
        words.push_str(": ");
        words.push_str(message);
    }
    Err(Failure::Refused {
        code: words::error_name(error),
        words,
    })
}

/// A key is one token of a subject.
fn checked_key(shm_name: &str) -> Result<String, Failure> {
    let key = nats_key_of(shm_name);
    if !is_subject_token(&key) {
        return Err(Failure::Arguments(format!(
            "--shm-name {shm_name:?} gives no NATS key"
        )));
    }
    Ok(key)
}

fn the_only(found: &Found) -> Result<String, Failure> {
    match &found.producers[..] {
        [one] => Ok(one.nats_key.clone()),
        [] if !found.bad.is_empty() => Err(Failure::Choice(
            Exit::Protocol,
            "no producer describes itself in a usable way; give --input-uri NAME if you know it"
                .to_owned(),
        )),
        [] => Err(Failure::Choice(
            Exit::NothingFound,
            "no producer has announced itself; give --input-uri NAME if you know it".to_owned(),
        )),
        several => Err(Failure::Choice(
            Exit::Invalid,
            format!(
                "{} producers are there; give --shm-name with one of:\n{}",
                several.len(),
                several
                    .iter()
                    .map(|one| one.shm_name.as_str())
                    .collect::<Vec<_>>()
                    .join("\n")
            ),
        )),
    }
}

pub(super) fn say_json(value: &Value) {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    say(&escaped(&text));
}

/// The control characters that JSON allows in strings as they are, in the form in which no terminal
/// obeys them (RFC 8259 section 7).
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => text.push(c),
            c if c.is_control() => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

/// A server that does not answer is none.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// A streamer's own patience with its encoder is 3 s.
const ENCODER: Duration = Duration::from_secs(4);
