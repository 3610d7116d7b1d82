//! A publish, played against the session.

use super::*;
use proptest::prelude::*;

fn session(refusal: Option<Refusal>) -> Session {
    let behaviour = Behaviour {
        window: 2_500_000,
        refusal,
        echo_transaction: false,
    };
    let mut session = Session::new(behaviour, Box::new([7; BLOCK_BYTES]));
    let mut hello = vec![3];
    hello.resize(1 + 2 * BLOCK_BYTES, 0);
    session
        .input(&hello, &mut |_| {})
        .expect("a simple handshake");
    assert_eq!(session.take_output().len(), 1 + 2 * BLOCK_BYTES);
    session
}

fn command(stream: u32, values: &[Value]) -> Vec<u8> {
    message(20, stream, 3, amf0::write_all(values))
}

fn message(kind: u8, stream: u32, chunk_stream: u32, body: Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    chunk::write(
        &Message {
            chunk_stream,
            timestamp: 0,
            kind,
            stream,
            body,
        },
        128,
        &mut bytes,
    );
    bytes
}

fn connect() -> Vec<u8> {
    let object = Value::object(&[
        ("app", Value::text("live")),
        ("tcUrl", Value::text("rtmp://h/live")),
    ]);
    command(0, &[Value::text("connect"), Value::Number(1.0), object])
}

fn create() -> Vec<u8> {
    command(
        0,
        &[Value::text("createStream"), Value::Number(4.0), Value::Null],
    )
}

fn publish(stream: u32) -> Vec<u8> {
    let name = Value::text("key?token=1");
    command(
        stream,
        &[
            Value::text("publish"),
            Value::Number(5.0),
            Value::Null,
            name,
            Value::text("live"),
        ],
    )
}

/// Feeds messages; gives the events in words.
fn play(session: &mut Session, messages: &[Vec<u8>]) -> Result<Vec<String>, SessionError> {
    let mut events = Vec::new();
    for message in messages {
        session.input(message, &mut |event| events.push(format!("{event:?}")))?;
    }
    Ok(events)
}

fn replies(session: &mut Session) -> Vec<Vec<Value>> {
    let mut reader = ChunkReader::default();
    reader.push(&session.take_output());
    let mut all = Vec::new();
    while let Some(message) = reader.next_message().expect("our own chunks") {
        if message.kind == 20 {
            all.push(amf0::read_all(&message.body).expect("our own values"));
        }
    }
    all
}

#[test]
fn a_publish_is_answered_step_by_step() {
    let mut session = session(None);
    let events = play(&mut session, &[connect(), create(), publish(1)]).expect("a publish");
    assert_eq!(events, ["Published"]);
    let answers = replies(&mut session);
    let names: Vec<_> = answers
        .iter()
        .map(|values| values[0].as_text().expect("a name").to_owned())
        .collect();
    assert_eq!(names, ["_result", "onBWDone", "_result", "onStatus"]);
    assert_eq!(
        answers[0][3].get("code"),
        Some(&Value::text("NetConnection.Connect.Success"))
    );
    assert_eq!(
        (&answers[2][1], &answers[2][3]),
        (&Value::Number(4.0), &Value::Number(1.0))
    );
    assert_eq!(
        answers[3][3].get("code"),
        Some(&Value::text("NetStream.Publish.Start"))
    );
    assert_eq!(session.facts().stream_name.as_deref(), Some("key?token=1"));
    let events = play(
        &mut session,
        &[
            message(9, 1, 5, vec![0x27, 1, 0, 0, 0]),
            command(
                0,
                &[
                    Value::text("deleteStream"),
                    Value::Number(7.0),
                    Value::Null,
                    Value::Number(1.0),
                ],
            ),
        ],
    );
    let events = events.expect("media");
    assert!(
        events[0].starts_with("Video") && events[1] == "Unpublished",
        "{events:?}"
    );
}

#[test]
fn steps_out_of_order_are_named() {
    let video = message(9, 1, 5, vec![0x17, 1, 0, 0, 0]);
    let no_app = command(
        0,
        &[
            Value::text("connect"),
            Value::Number(1.0),
            Value::object(&[]),
        ],
    );
    let pong = message(4, 0, 2, vec![0, 7, 0, 0, 0, 9]);
    for (messages, text) in [
        (vec![create()], "'createStream' before 'connect'"),
        (
            vec![connect(), publish(1)],
            "'publish' before 'createStream'",
        ),
        (
            vec![connect(), create(), publish(0)],
            "publish on message stream 0",
        ),
        (
            vec![connect(), create(), video.clone()],
            "video before NetStream.Publish.Start",
        ),
        (vec![no_app], "'connect' without app"),
        (vec![connect(), pong], "a PingResponse of 9"),
        (
            vec![message(20, 0, 3, vec![2, 0, 9])],
            "message of type 20: an AMF value is cut off",
        ),
    ] {
        let error = play(&mut session(None), &messages).expect_err(text);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn refusals_come_where_their_code_says() {
    let bad_name = Refusal::Code("NetStream.Publish.BadName".into());
    let mut refused = session(Some(bad_name));
    let events = play(&mut refused, &[connect(), create(), publish(1)]).expect("commands");
    assert_eq!(events, ["Refused { close: false }"]);
    let last = replies(&mut refused).pop().expect("an answer");
    assert_eq!(
        (last[3].get("level"), last[3].get("code")),
        (
            Some(&Value::text("error")),
            Some(&Value::text("NetStream.Publish.BadName"))
        )
    );
    let media = play(&mut refused, &[message(9, 1, 5, vec![0x17])]);
    assert_eq!(media, Err(SessionError::MediaOutside { what: "video" }));

    let mut rejected = session(Some(Refusal::Code("NetConnection.Connect.Rejected".into())));
    assert_eq!(
        play(&mut rejected, &[connect()]).expect("a command"),
        ["Refused { close: false }"]
    );
    assert_eq!(replies(&mut rejected)[0][0].as_text(), Some("_error"));
    let mut silent = session(Some(Refusal::Silent));
    let events = play(&mut silent, &[connect(), create(), publish(1)]).expect("commands");
    assert_eq!(events, ["Refused { close: true }"]);
}

#[test]
fn pings_and_acknowledgements_are_exchanged() {
    let mut session = session(None);
    play(
        &mut session,
        &[connect(), message(5, 0, 2, vec![0, 0, 0, 100])],
    )
    .expect("commands");
    session.take_output();
    session.ping(77);
    assert_eq!(session.take_output()[12..], [0, 6, 0, 0, 0, 77]);
    play(&mut session, &[message(4, 0, 2, vec![0, 7, 0, 0, 0, 77])]).expect("a pong");
    assert_eq!((session.facts().pings, session.facts().pongs), (1, 1));
    // The client's window of 100 bytes has long passed.
    assert!(
        session
            .take_output()
            .windows(8)
            .any(|w| w[..7] == [0, 0, 4, 3, 0, 0, 0])
    );
    play(&mut session, &[message(3, 0, 2, vec![0, 0, 1, 0])]).expect("an acknowledgement");
    assert_eq!(
        (
            session.facts().acknowledgements,
            session.facts().acknowledged
        ),
        (1, 256)
    );
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(prop_oneof![0_u8..22, any::<u8>()], 0..300), kind in 0_u8..23) {
        let mut fresh = session(None);
        let _ = play(&mut fresh, std::slice::from_ref(&bytes));
        let mut publishing = session(None);
        play(&mut publishing, &[connect(), create(), publish(1)]).expect("a publish");
        let chunk_stream = if (1..=6).contains(&kind) { 2 } else { 5 };
        let _ = play(&mut publishing, &[message(kind, u32::from(chunk_stream == 5), chunk_stream, bytes)]);
    }
}
