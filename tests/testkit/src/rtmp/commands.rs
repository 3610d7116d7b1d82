//! The commands of a publish, answered (RTMP 1.0 section 7.2; contract `rtp-rtmp.md` section 12).

use super::amf0::{self, Value};
use super::chunk::Message;
use super::session::{CHUNK_SIZE, Event, Phase, Refusal, STREAM, Session, SessionError, Sink};

impl Session {
    pub(super) fn data(&mut self, message: &Message, sink: Sink) -> Result<(), SessionError> {
        let values = values_of(message)?;
        let mut values = &values[..];
        if values.first().and_then(Value::as_text) == Some("@setDataFrame") {
            values = &values[1..];
        } else {
            sink(Event::Warning(
                "a data message without @setDataFrame".into(),
            ));
        }
        if values.first().and_then(Value::as_text) != Some("onMetaData") {
            return Ok(());
        }
        self.media(message, "metadata")?;
        match values.get(1) {
            Some(metadata @ (Value::EcmaArray(_) | Value::Object(_))) => {
                sink(Event::Metadata(metadata));
                Ok(())
            }
            _ => Err(SessionError::Incomplete {
                command: "onMetaData",
                what: "its values",
            }),
        }
    }

    pub(super) fn command(&mut self, message: &Message, sink: Sink) -> Result<(), SessionError> {
        let values = values_of(message)?;
        let name = values
            .first()
            .and_then(Value::as_text)
            .unwrap_or_default()
            .to_owned();
        let transaction = values.get(1).and_then(Value::as_number).unwrap_or_default();
        if self.facts.commands.len() < 100 {
            self.facts.commands.push(name.clone());
        }
        let needs = |phase: Phase, needed: &'static str| {
            let command = name.clone();
            move |now: Phase| {
                if now < phase {
                    Err(SessionError::TooEarly { command, needed })
                } else {
                    Ok(())
                }
            }
        };
        match name.as_str() {
            "connect" => self.connect(transaction, values.get(2), sink),
            "releaseStream" | "FCPublish" => {
                needs(Phase::Connected, "connect")(self.phase)?;
                self.reply(
                    0,
                    &[
                        Value::text("_result"),
                        Value::Number(transaction),
                        Value::Null,
                        Value::Undefined,
                    ],
                );
                if name == "FCPublish" {
                    let info = status("status", "NetStream.Publish.Start", "FCPublish taken");
                    self.reply(
                        0,
                        &[
                            Value::text("onFCPublish"),
                            Value::Number(0.0),
                            Value::Null,
                            info,
                        ],
                    );
                }
                Ok(())
            }
            "createStream" => {
                needs(Phase::Connected, "connect")(self.phase)?;
                self.phase = self.phase.max(Phase::Created);
                let id = Value::Number(f64::from(STREAM));
                self.reply(
                    0,
                    &[
                        Value::text("_result"),
                        Value::Number(transaction),
                        Value::Null,
                        id,
                    ],
                );
                Ok(())
            }
            "publish" => {
                needs(Phase::Created, "createStream")(self.phase)?;
                on_stream("publish", message.stream)?;
                self.publish(transaction, &values, sink)
            }
            "FCUnpublish" => {
                self.reply(
                    0,
                    &[
                        Value::text("onFCUnpublish"),
                        Value::Number(0.0),
                        Value::Null,
                    ],
                );
                self.phase = self.phase.max(Phase::Unpublished);
                Ok(())
            }
            "deleteStream" | "closeStream" => {
                let info = status("status", "NetStream.Unpublish.Success", "unpublished");
                self.reply(
                    STREAM,
                    &[
                        Value::text("onStatus"),
                        Value::Number(0.0),
                        Value::Null,
                        info,
                    ],
                );
                self.close(sink);
                Ok(())
            }
            // Answers of the client, and what some clients ask in passing.
            "_result" | "_error" | "_checkbw" | "getStreamLength" | "onStatus" => Ok(()),
            _ => {
                sink(Event::Warning(format!(
                    "command '{name}', which no publisher needs"
                )));
                Ok(())
            }
        }
    }

    fn connect(
        &mut self,
        transaction: f64,
        object: Option<&Value>,
        sink: Sink,
    ) -> Result<(), SessionError> {
        let Some(object @ Value::Object(pairs)) = object else {
            return Err(SessionError::Incomplete {
                command: "connect",
                what: "its object",
            });
        };
        let text = |key: &str| object.get(key).and_then(Value::as_text).map(str::to_owned);
        self.facts.app = text("app");
        self.facts.tc_url = text("tcUrl");
        self.facts.flash_version = text("flashVer");
        if self.facts.app.is_none() {
            return Err(SessionError::Incomplete {
                command: "connect",
                what: "app",
            });
        }
        if self.facts.tc_url.is_none() {
            return Err(SessionError::Incomplete {
                command: "connect",
                what: "tcUrl",
            });
        }
        if transaction != 1.0 {
            sink(Event::Warning(format!(
                "connect has transaction id {transaction} instead of 1"
            )));
        }
        let enhanced = [
            "fourCcList",
            "videoFourCcInfoMap",
            "audioFourCcInfoMap",
            "capsEx",
        ];
        let named = pairs.iter().map(|(key, _)| key.clone());
        self.facts.capabilities = named
            .filter(|key| enhanced.contains(&key.as_str()))
            .collect();

        if let Some(Refusal::Code(code)) = &self.behaviour.refusal
            && code.starts_with("NetConnection.")
        {
            let info = status("error", &code.clone(), "refused by rtmp_stub_tester");
            self.reply(
                0,
                &[
                    Value::text("_error"),
                    Value::Number(transaction),
                    Value::Null,
                    info,
                ],
            );
            self.phase = Phase::Refused;
            sink(Event::Refused { close: false });
            return Ok(());
        }
        self.phase = self.phase.max(Phase::Connected);
        self.control(5, self.behaviour.window.to_be_bytes().to_vec());
        let mut bandwidth = self.behaviour.window.to_be_bytes().to_vec();
        bandwidth.push(2); // dynamic
        self.control(6, bandwidth);
        self.control(1, CHUNK_SIZE.to_be_bytes().to_vec());
        self.out_chunk_size = CHUNK_SIZE;
        let server = Value::object(&[
            ("fmsVer", Value::text("FMS/3,0,1,123")),
            ("capabilities", Value::Number(31.0)),
        ]);
        let mut info = status("status", "NetConnection.Connect.Success", "connected");
        if let Value::Object(pairs) = &mut info {
            pairs.push(("objectEncoding".into(), Value::Number(0.0)));
        }
        self.reply(
            0,
            &[
                Value::text("_result"),
                Value::Number(transaction),
                server,
                info,
            ],
        );
        self.reply(
            0,
            &[Value::text("onBWDone"), Value::Number(0.0), Value::Null],
        );
        Ok(())
    }

    fn publish(
        &mut self,
        transaction: f64,
        values: &[Value],
        sink: Sink,
    ) -> Result<(), SessionError> {
        let name = values
            .get(3)
            .and_then(Value::as_text)
            .filter(|name| !name.is_empty());
        self.facts.stream_name = name.map(str::to_owned);
        if name.is_none() {
            return Err(SessionError::Incomplete {
                command: "publish",
                what: "a stream name",
            });
        }
        match values.get(4).and_then(Value::as_text) {
            Some("live") => {}
            other => return Err(SessionError::PublishType(other.unwrap_or_default().into())),
        }
        let id = Value::Number(if self.behaviour.echo_transaction {
            transaction
        } else {
            0.0
        });
        match self.behaviour.refusal.clone() {
            Some(refusal) => {
                if let Refusal::Code(code) = &refusal {
                    let info = status("error", code, "refused by rtmp_stub_tester");
                    self.reply(STREAM, &[Value::text("onStatus"), id, Value::Null, info]);
                }
                self.phase = Phase::Refused;
                sink(Event::Refused {
                    close: refusal == Refusal::Silent,
                });
            }
            None => {
                let mut begin = vec![0, 0];
                begin.extend(STREAM.to_be_bytes());
                self.control(4, begin);
                let info = status("status", "NetStream.Publish.Start", "publishing");
                self.reply(STREAM, &[Value::text("onStatus"), id, Value::Null, info]);
                self.phase = Phase::Publishing;
                sink(Event::Published);
            }
        }
        Ok(())
    }
}

fn values_of(message: &Message) -> Result<Vec<Value>, SessionError> {
    // The AMF3 kinds put a zero byte ahead of what is AMF0 all the same.
    let body = match (message.kind, message.body.as_slice()) {
        (15 | 17, [0, rest @ ..]) => rest,
        (_, body) => body,
    };
    amf0::read_all(body).map_err(|error| SessionError::Amf {
        kind: message.kind,
        error,
    })
}

pub(super) fn on_stream(what: &str, found: u32) -> Result<(), SessionError> {
    if found == STREAM {
        Ok(())
    } else {
        Err(SessionError::MessageStream {
            what: what.to_owned(),
            found,
            wanted: STREAM,
        })
    }
}

fn status(level: &str, code: &str, description: &str) -> Value {
    Value::object(&[
        ("level", Value::text(level)),
        ("code", Value::text(code)),
        ("description", Value::text(description)),
    ])
}
