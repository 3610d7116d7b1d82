use super::*;
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(100);
const RANDOM: [u8; BLOCK] = [0x55; BLOCK];

/// The other side: plays a server by hand and reads what the session puts out.
struct Server {
    session: PublishSession,
    reader: ChunkReader,
    wire: Vec<u8>,
}

impl Server {
    fn new(enhanced: bool) -> Self {
        let url = "rtmp://127.0.0.1:19350/live/sekret?token=abcdef";
        let config = PublishConfig {
            url: url.parse().unwrap(),
            handshake: HandshakeForm::Simple,
            enhanced,
            chunk_size: 65536,
        };
        Self {
            session: PublishSession::new(config, &RANDOM, NOW),
            reader: ChunkReader::new(ReaderLimits::PUBLISHER),
            wire: Vec::new(),
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let out = self.session.output().to_vec();
        self.session.output_sent(out.len());
        out
    }

    fn shake_hands(&mut self) {
        assert_eq!(self.take().len(), 1537);
        self.session.input(&[3; 1 + 2 * BLOCK], NOW).unwrap();
        // C2, and behind it the first command already
        let out = self.take();
        assert_eq!(out[..BLOCK], [3; BLOCK]);
        self.wire = out[BLOCK..].to_vec();
    }

    /// What the session has sent: message type, message stream, first AMF values or raw body.
    fn sent(&mut self) -> Vec<(u8, u32, Vec<u8>)> {
        let mut wire = std::mem::take(&mut self.wire);
        wire.extend(self.take());
        let (mut input, mut messages) = (&wire[..], Vec::new());
        while let Some(message) = self.reader.read(&mut input).unwrap() {
            messages.push((message.kind, message.stream, message.body.to_vec()));
        }
        messages
    }

    fn sent_names(&mut self) -> Vec<(String, f64)> {
        let sent = self.sent();
        sent.iter()
            .filter(|(kind, ..)| *kind == kind::COMMAND)
            .map(|(_, _, body)| {
                let mut amf = amf0::Reader::new(body);
                let name = amf.read().unwrap().unwrap();
                let id = amf.read().unwrap().unwrap();
                (name.as_str().unwrap().to_owned(), id.as_number().unwrap())
            })
            .collect()
    }

    fn say(&mut self, kind: u8, stream: u32, body: &[u8]) -> Result<(), RtmpError> {
        let mut wire = Vec::new();
        let header = MessageHeader {
            chunk_stream: 3,
            timestamp: 0,
            kind,
            stream,
            len: body.len() as u32,
        };
        ChunkWriter::default().append(header, body, &mut wire);
        self.session.input(&wire, NOW)
    }

    fn command(&mut self, write: impl FnOnce(&mut amf0::Writer<'_>)) -> Result<(), RtmpError> {
        let mut body = Vec::new();
        write(&mut amf0::Writer(&mut body));
        self.say(kind::COMMAND, 0, &body)
    }

    fn status(&mut self, level: &str, code: &str, description: &str) -> Result<(), RtmpError> {
        self.command(|amf| {
            amf.string("onStatus").number(0.0).null().object();
            amf.key("level").string(level).key("code").string(code);
            amf.key("description").string(description).end();
        })
    }

    fn accept_connect(&mut self) {
        self.command(|amf| {
            amf.string("_result").number(1.0).object();
            amf.key("fmsVer").string("FMS/3,5,3,888").end().object();
            amf.key("level").string("status");
            amf.key("code")
                .string("NetConnection.Connect.Success")
                .end();
        })
        .unwrap();
    }

    fn accept_stream(&mut self) {
        self.command(|amf| {
            amf.string("_result").number(4.0).null().number(1.0);
        })
        .unwrap();
    }

    fn asked_to_publish() -> Self {
        let mut server = Self::new(false);
        server.shake_hands();
        server.accept_connect();
        server.accept_stream();
        server.sent();
        assert_eq!(server.session.step(), Step::Publish);
        server
    }

    fn live() -> Self {
        let mut server = Self::asked_to_publish();
        server
            .status("status", "NetStream.Publish.Start", "")
            .unwrap();
        assert_eq!(server.session.step(), Step::Live);
        server
    }
}

fn string(text: &str) -> Vec<u8> {
    [&[2, 0, text.len() as u8][..], text.as_bytes()].concat()
}

fn property(key: &str, value: &[u8]) -> Vec<u8> {
    [&[0, key.len() as u8][..], key.as_bytes(), value].concat()
}

fn number(value: f64) -> Vec<u8> {
    [&[0][..], &value.to_be_bytes()].concat()
}

#[test]
fn connect_byte_for_byte_without_and_with_the_enhanced_fields() {
    let flash = format!(
        "FMLE/3.0 (compatible; cvmmap_streamer/{})",
        env!("CARGO_PKG_VERSION")
    );
    let plain = [
        string("connect"),
        number(1.0),
        vec![3],
        property("app", &string("live")),
        property("type", &string("nonprivate")),
        property("flashVer", &string(&flash)),
        property("tcUrl", &string("rtmp://127.0.0.1:19350/live")),
    ]
    .concat();
    let enhanced = [
        property(
            "fourCcList",
            &[&[10, 0, 0, 0, 1][..], &string("hvc1")].concat(),
        ),
        property(
            "videoFourCcInfoMap",
            &[vec![3], property("hvc1", &number(2.0)), vec![0, 0, 9]].concat(),
        ),
        property("capsEx", &number(1.0)),
    ]
    .concat();
    for (on, middle) in [(false, Vec::new()), (true, enhanced)] {
        let mut server = Server::new(on);
        server.shake_hands();
        let expected = [plain.clone(), middle, vec![0, 0, 9]].concat();
        assert_eq!(server.sent(), [(20, 0, expected)]);
    }
}

#[test]
fn a_whole_publish_against_a_scripted_server() {
    let mut server = Server::new(false);
    server.shake_hands();
    server.sent();
    // The order that nginx-rtmp uses, with things in between that ask for nothing.
    server
        .say(kind::WINDOW_ACK_SIZE, 0, &5_000_000_u32.to_be_bytes())
        .unwrap();
    server
        .say(kind::SET_PEER_BANDWIDTH, 0, &[0, 0x4C, 0x4B, 0x40, 2])
        .unwrap();
    server.accept_connect();
    server
        .command(|amf| {
            amf.string("onBWDone").number(0.0).null();
        })
        .unwrap();
    let key = string("sekret?token=abcdef");
    let expected = [
        (5, 0, vec![0, 0x4C, 0x4B, 0x40]), // window acknowledgement size, as asked
        (1, 0, vec![0, 1, 0, 0]),          // chunk size 65536
        (
            20,
            0,
            [string("releaseStream"), number(2.0), vec![5], key.clone()].concat(),
        ),
        (
            20,
            0,
            [string("FCPublish"), number(3.0), vec![5], key.clone()].concat(),
        ),
        (
            20,
            0,
            [string("createStream"), number(4.0), vec![5]].concat(),
        ),
    ];
    assert_eq!(server.sent(), expected);
    // Refused courtesies change nothing.
    server
        .command(|amf| {
            amf.string("_error").number(2.0).null().null();
        })
        .unwrap();
    server
        .command(|amf| {
            amf.string("_result").number(4.0).null().number(7.0);
        })
        .unwrap();
    let publish = [
        string("publish"),
        number(5.0),
        vec![5],
        key.clone(),
        string("live"),
    ]
    .concat();
    assert_eq!(server.sent(), [(20, 7, publish)]);
    assert_eq!(server.session.step(), Step::Publish);
    server
        .say(kind::USER_CONTROL, 0, &[0, 0, 0, 0, 0, 7])
        .unwrap();
    server
        .status(
            "status",
            "NetStream.Publish.Start",
            "sekret is now published",
        )
        .unwrap();
    assert_eq!(server.session.step(), Step::Live);
    assert_eq!(server.session.deadline(), None);

    server.session.send_small(kind::DATA, 0, b"meta");
    assert_eq!(server.sent(), [(18, 7, b"meta".to_vec())]);
    let headers = server.session.video(40, 3);
    let frame: Vec<u8> = headers
        .pieces([&b"ab"[..], b"c"])
        .flatten()
        .copied()
        .collect();
    assert_eq!(
        frame,
        [&[6, 0, 0, 40, 0, 0, 3, 9, 7, 0, 0, 0][..], b"abc"].concat()
    );

    server.session.close(NOW);
    let expected = [
        (
            20,
            0,
            [string("FCUnpublish"), number(6.0), vec![5], key].concat(),
        ),
        (
            20,
            0,
            [string("deleteStream"), number(7.0), vec![5], number(7.0)].concat(),
        ),
    ];
    assert_eq!(server.sent(), expected);
    server
        .status("status", "NetStream.Unpublish.Success", "")
        .unwrap();
    assert_eq!(server.session.step(), Step::Closed);
    assert_eq!(server.session.peer_closed(), Ok(()));
}

#[test]
fn refusals_come_in_the_servers_words_with_the_key_masked() {
    // level, code, description, expected words
    let rows = [
        (
            "error",
            "NetStream.Publish.BadName",
            "Already publishing sekret",
            "NetStream.Publish.BadName: Already publishing ***",
        ),
        (
            "error",
            "NetStream.Publish.Denied",
            "",
            "NetStream.Publish.Denied",
        ),
        (
            "status",
            "NetStream.Publish.Rejected",
            "token abcdef",
            "NetStream.Publish.Rejected: token ***",
        ),
        ("error", "Some.Other", "no", "Some.Other: no"),
        (
            "status",
            "NetConnection.Connect.Closed",
            "x",
            "NetConnection.Connect.Closed: x",
        ),
    ];
    for (level, code, description, words) in rows {
        let mut server = Server::asked_to_publish();
        let error = server.status(level, code, description).unwrap_err();
        let (step, words) = (Step::Publish, words.to_owned());
        assert_eq!(
            error,
            RtmpError::Refused {
                step,
                words: words.clone()
            }
        );

        let error = Server::live().status(level, code, description).unwrap_err();
        assert_eq!(error, RtmpError::Ended { words });

        let mut leaving = Server::live();
        leaving.session.close(NOW);
        assert_eq!(leaving.status(level, code, description), Ok(()));
    }
}

#[test]
fn a_refused_connect_and_publish_by_error_reply() {
    let mut server = Server::new(false);
    server.shake_hands();
    let error = server
        .command(|amf| {
            amf.string("_error").number(1.0).null().object();
            amf.key("code").string("NetConnection.Connect.Rejected");
            amf.key("description")
                .string("[ AccessManager.Reject ] : [ code=403 ]")
                .end();
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused `connect`: NetConnection.Connect.Rejected: [ AccessManager.Reject ] : \
         [ code=403 ]"
    );
    let error = Server::asked_to_publish()
        .command(|amf| {
            amf.string("_error").number(5.0).null().null();
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused `publish`: without saying why"
    );
}

#[test]
fn a_start_with_the_publish_transaction_and_no_null_counts_too() {
    // ZLMediaKit answers with the id of publish (contract section 12).
    let mut server = Server::asked_to_publish();
    server
        .command(|amf| {
            amf.string("onStatus").number(5.0).object();
            amf.key("level").string("status");
            amf.key("code").string("NetStream.Publish.Start").end();
        })
        .unwrap();
    assert_eq!(server.session.step(), Step::Live);
}

#[test]
fn a_connection_that_closes_says_what_that_means() {
    assert_eq!(
        Server::asked_to_publish().session.peer_closed(),
        Err(RtmpError::RefusedOrInUse)
    );
    assert_eq!(
        Server::live().session.peer_closed(),
        Err(RtmpError::Closed { step: Step::Live })
    );
    let mut early = Server::new(false);
    assert_eq!(
        early.session.peer_closed(),
        Err(RtmpError::Closed {
            step: Step::Handshake
        })
    );
}

#[test]
fn a_silent_server_runs_into_a_deadline_at_each_step() {
    let seconds = Duration::from_secs;
    let mut server = Server::new(false);
    assert_eq!(server.session.deadline(), Some(NOW + seconds(5)));
    assert_eq!(
        server.session.check(NOW + Duration::from_millis(4999)),
        Ok(())
    );
    let silent = |step, seconds| Err(RtmpError::Silent { step, seconds });
    assert_eq!(
        server.session.check(NOW + seconds(5)),
        silent(Step::Handshake, 5)
    );
    server.shake_hands();
    assert_eq!(
        server.session.check(NOW + seconds(10)),
        silent(Step::Connect, 10)
    );
    server.accept_connect();
    assert_eq!(
        server.session.check(NOW + seconds(10)),
        silent(Step::CreateStream, 10)
    );
}

#[test]
fn pings_are_answered_and_received_bytes_acknowledged() {
    let mut server = Server::live();
    server
        .say(kind::USER_CONTROL, 0, &[0, 6, 1, 2, 3, 4])
        .unwrap();
    assert_eq!(server.sent(), [(4, 0, vec![0, 7, 1, 2, 3, 4])]);
    server
        .say(kind::WINDOW_ACK_SIZE, 0, &1000_u32.to_be_bytes())
        .unwrap();
    server.sent();
    let before = server.session.window.received;
    server.say(kind::DATA, 1, &[0; 600]).unwrap();
    let sent = server.sent();
    assert_eq!((sent[0].0, sent.len()), (3, 1));
    // 600 bytes of body, one fmt 0 header, four fmt 3 headers (chunks of 128)
    assert_eq!(sent[0].2, (before + 600 + 12 + 4).to_be_bytes());
    server
        .say(kind::ACKNOWLEDGEMENT, 0, &77_u32.to_be_bytes())
        .unwrap();
    assert_eq!(server.session.acknowledged(), 77);
}

#[test]
fn a_flood_of_pings_is_answered_up_to_a_bound() {
    let mut server = Server::live();
    let flood = (0..100_000).find_map(|_| {
        let result = server.say(kind::USER_CONTROL, 0, &[0, 6, 1, 2, 3, 4]);
        result.err()
    });
    assert!(
        matches!(flood, Some(RtmpError::Protocol { .. })),
        "{flood:?}"
    );
    assert!(server.session.output().len() < 300_000);
    assert!(!format!("{:?}", server.session).contains("sekret"));
}

#[test]
fn a_reconnect_request_is_handed_on_once() {
    let mut server = Server::live();
    server
        .command(|amf| {
            amf.string("onStatus").number(0.0).null().object();
            amf.key("level").string("status");
            amf.key("code")
                .string("NetConnection.Connect.ReconnectRequest");
            amf.key("tcUrl").string("rtmp://other/live").end();
        })
        .unwrap();
    assert_eq!(
        server.session.take_reconnect_request(),
        Some(Some("rtmp://other/live".to_owned()))
    );
    assert_eq!(server.session.take_reconnect_request(), None);
    assert_eq!(server.session.step(), Step::Live);
}

#[test]
fn the_names_come_in_the_order_of_the_flow() {
    let mut server = Server::new(true);
    server.shake_hands();
    assert_eq!(server.sent_names(), [("connect".to_owned(), 1.0)]);
    server.accept_connect();
    let names: Vec<_> = server
        .sent_names()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["releaseStream", "FCPublish", "createStream"]);
}

proptest! {
    #[test]
    fn any_bytes_from_the_server_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        commands in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6),
    ) {
        let mut server = Server::new(false);
        server.shake_hands();
        let _ = server.session.input(&bytes, NOW);
        let mut server = Server::asked_to_publish();
        for body in commands {
            let body = [string("onStatus"), body].concat();
            if server.say(kind::COMMAND, 0, &body).is_err() { break; }
        }
    }
}
