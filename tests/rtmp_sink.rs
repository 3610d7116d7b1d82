//! The RTMP sink against servers that are absent, slow, unwilling or hostile, played by hand.

#[path = "common/authority.rs"]
mod authority;
mod rtmp_support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use authority::{Authority, GOOD_YEAR};
use cvmmap_streamer::encode::Codec;
use cvmmap_streamer::flv::Packaging;
use cvmmap_streamer::pipeline::stop::StopReason;
use cvmmap_streamer::sink::rtmp::RtmpSinkConfig;
use cvmmap_streamer::sink::{Sent, Sink, SinkError};

use rtmp_support::{Driver, Film, Guest, LIMIT, Received, config, reserve_tcp};

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn quick(port: u16) -> RtmpSinkConfig {
    RtmpSinkConfig {
        backoff_cap: Duration::from_millis(20),
        ..config(port, "live/sekret?token=abcdef", Packaging::LegacyAvc)
    }
}

/// Polls a sink whose server never lets it in, until it gives up after `retries`.
fn refused(
    server: impl Fn(Guest) + Send + Sync,
    listener: &TcpListener,
    retries: u32,
) -> SinkError {
    let port = listener.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..=retries {
                server(Guest::accept(listener));
            }
        });
        let mut driver = Driver::open(RtmpSinkConfig {
            max_retries: retries,
            ..quick(port)
        });
        driver.connect().unwrap_err()
    })
}

#[test]
fn an_absent_server_is_retried_as_often_as_allowed() {
    let absent = reserve_tcp();
    let port = absent.port;
    let mut driver = Driver::open(RtmpSinkConfig {
        max_retries: 2,
        ..quick(port)
    });
    let error = driver.connect().unwrap_err().to_string();
    assert!(
        error.contains("refused") && error.contains("2 retries"),
        "{error}"
    );
    assert!(
        error.contains(&format!("rtmp://127.0.0.1:{port}/live/***")),
        "{error}"
    );
    assert_eq!(driver.count(|stats| &stats.errors), 3);
}

#[test]
fn a_refusal_is_reported_in_the_servers_own_words_without_the_key() {
    let (listener, _) = listen();
    let server = |mut guest: Guest| {
        guest.up_to_publish();
        guest.status("error", "NetStream.Publish.BadName", "sekret is taken");
        while guest.next().is_some() {}
    };
    let error = refused(server, &listener, 1).to_string();
    assert!(
        error.contains("NetStream.Publish.BadName: *** is taken"),
        "{error}"
    );
    assert!(
        !error.contains("sekret") && !error.contains("abcdef"),
        "{error}"
    );
}

#[test]
fn a_server_that_hangs_up_at_publish_reads_as_refused_or_in_use() {
    let (listener, _) = listen();
    let server = |mut guest: Guest| {
        guest.up_to_publish();
        drop(guest);
    };
    let error = refused(server, &listener, 1).to_string();
    assert!(error.contains("name is in use"), "{error}");
}

#[test]
fn the_other_handshake_is_tried_when_a_server_hangs_up_on_the_first() {
    let (listener, port) = listen();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Insists on the digest form: bytes 4 to 7 of C1 are not zero then.
            let mut first = Guest::accept(&listener);
            let mut c0c1 = [0; 1537];
            first.socket.read_exact(&mut c0c1).unwrap();
            assert_eq!(c0c1[5..9], [0; 4]);
            drop(first);
            let mut second = Guest::accept(&listener);
            let mut seen = [0; 9];
            second.socket.peek(&mut seen).unwrap();
            assert_ne!(seen[5..9], [0; 4]);
            second.start();
            while second.next().is_some() {}
        });
        let mut driver = Driver::open(quick(port));
        driver.connect().unwrap();
        driver.sink.close();
    });
}

/// What the hostile server does after it was connected to.
fn hostile(what: impl Fn(&mut Guest) + Send + Sync) -> SinkError {
    let (listener, _) = listen();
    refused(
        |mut guest| {
            what(&mut guest);
            // The publisher hangs up; whatever is still written then may fail.
            let mut rest = Vec::new();
            let _ = guest.socket.read_to_end(&mut rest);
        },
        &listener,
        1,
    )
}

fn assert_protocol(error: &SinkError, words: &str) {
    assert!(matches!(error, SinkError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn a_server_of_another_protocol_is_named_as_that() {
    let error = hostile(|guest| {
        let _ = guest.socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    assert_protocol(&error, "does not speak RTMP");
}

#[test]
fn giant_lengths_are_refused() {
    let error = hostile(|guest| {
        guest.shake_hands();
        let giant = [0x03, 0, 0, 0, 0xFF, 0xFF, 0xFF, 20, 0, 0, 0, 0];
        let _ = guest.socket.write_all(&giant);
    });
    assert_protocol(&error, "16777215 bytes");
}

#[test]
fn messages_begun_on_ever_more_chunk_streams_are_refused() {
    let error = hostile(|guest| {
        guest.shake_hands();
        for id in 3..60 {
            let mut begun = vec![id, 0, 0, 0, 0, 0xFF, 0xFF, 20, 0, 0, 0, 0];
            begun.extend([0; 128]);
            if guest.socket.write_all(&begun).is_err() {
                return;
            }
        }
    });
    assert_protocol(&error, "chunk streams");
}

#[test]
fn amf_bombs_are_refused() {
    let error = hostile(|guest| {
        guest.shake_hands();
        guest.expect("connect");
        let mut bomb = vec![2, 0, 7];
        bomb.extend(b"_result");
        bomb.extend([0; 9]);
        bomb.extend([10, 0xFF, 0xFF, 0xFF, 0xFF].repeat(1000));
        guest.say(20, &bomb);
    });
    assert_protocol(&error, "nested");
}

#[test]
fn a_server_that_never_stops_talking_does_not_keep_the_sink_from_its_deadline() {
    let (listener, port) = listen();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            let mut data = vec![0x04, 0, 0, 0, 0, 0, 128, 18, 1, 0, 0, 0];
            data.extend([0; 128]);
            let flood = data.repeat(200);
            while guest.socket.write_all(&flood).is_ok() {}
            assert!(done.load(std::sync::atomic::Ordering::Relaxed));
        });
        let mut driver = Driver::open(quick(port));
        driver.connect().unwrap();
        let film = Film::new(Codec::H264, 10, 10);
        driver.send_all(&film);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        driver.sink.close();
    });
}

#[test]
fn a_stalled_server_is_left_after_the_timeout_and_the_stream_starts_over() {
    let (listener, port) = listen();
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(4096)
        .unwrap();
    let film = Film::new(Codec::H264, 40, 10);
    let sessions: Vec<Vec<Received>> = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut stalled = Guest::accept(&listener);
            stalled.start();
            // Reads nothing more, and keeps the connection.
            let mut second = Guest::accept(&listener);
            second.start();
            let read = std::iter::from_fn(|| second.next()).collect();
            let late = std::iter::from_fn(|| stalled.next()).collect();
            vec![late, read]
        });
        let mut driver = Driver::open(RtmpSinkConfig {
            write_timeout: Duration::from_millis(600),
            ..quick(port)
        });
        driver.connect().unwrap();
        let mut taken = 0;
        let start = Instant::now();
        let mut units = film.units.iter().cycle();
        for unit in &mut units {
            match driver.sink.send(unit).unwrap() {
                Sent::All => taken += unit.payload_len(),
                Sent::GivenUp => break,
            }
        }
        assert!(start.elapsed() >= Duration::from_millis(600));
        // What the kernel took for a server that reads nothing: the unsent limit, one wake-up
        // step beyond it, and what fits into the server's window. 512 kB are a second of video.
        assert!(taken < 512 * 1024, "{taken} bytes were taken");
        driver.connect().unwrap();
        assert_eq!(driver.count(|stats| &stats.reconnects), 1);
        let error = driver.sink.last_error().unwrap();
        assert!(error.contains("has not taken a picture"), "{error}");
        // In the middle of a group: given up until the key frame.
        let next: Vec<_> = units.skip_while(|unit| unit.key).take(15).collect();
        let sent: Vec<_> = next
            .iter()
            .map(|unit| driver.sink.send(unit).unwrap())
            .collect();
        let key = next.iter().position(|unit| unit.key).unwrap();
        assert!(sent[..key].iter().all(|sent| *sent == Sent::GivenUp));
        assert!(sent[key..].iter().all(|sent| *sent == Sent::All));
        driver.sink.close();
        server.join().unwrap()
    });
    // Metadata, sequence header and key frame of the second session, at its time 0.
    let media: Vec<_> = sessions[1]
        .iter()
        .filter(|m| matches!(m.kind, 9 | 18))
        .collect();
    assert_eq!(media[0].name().as_deref(), Some("@setDataFrame"));
    assert_eq!(
        (&media[1].body[..2], media[1].timestamp),
        (&[0x17, 0][..], 0)
    );
    assert_eq!(
        (&media[2].body[..2], media[2].timestamp),
        (&[0x17, 1][..], 0)
    );
    assert_eq!(
        (&media[3].body[..2], media[3].timestamp),
        (&[0x27, 1][..], 40)
    );
}

#[test]
fn a_short_stall_costs_no_connection() {
    let (listener, port) = listen();
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(4096)
        .unwrap();
    let film = Film::new(Codec::H264, 40, 10);
    let blocked = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            blocked.wait();
            std::iter::from_fn(|| guest.next())
                .filter(|message| message.kind == 9)
                .count()
        });
        let mut driver = Driver::open(quick(port));
        driver.connect().unwrap();
        let mut sent = 0;
        let waiter = scope.spawn(|| {
            // The sender is stuck in a write by then, or has not begun: both are fine.
            std::thread::sleep(Duration::from_millis(300));
            blocked.wait();
        });
        for unit in film.units.iter().cycle().take(200) {
            assert_eq!(driver.sink.send(unit).unwrap(), Sent::All);
            sent += 1;
        }
        waiter.join().unwrap();
        driver.sink.close();
        assert_eq!(driver.count(|stats| &stats.errors), 0);
        // a sequence header in front, an end behind
        assert_eq!(server.join().unwrap(), sent + 2);
    });
}

#[test]
fn a_silent_server_delays_neither_stop_nor_close() {
    let (listener, port) = listen();
    let mut driver = Driver::open(quick(port));
    let start = Instant::now();
    for _ in 0..5 {
        driver.sink.poll().unwrap();
    }
    let _guest = Guest::accept(&listener);
    driver.stop.stop(StopReason::Signal);
    driver.sink.close();
    // Five waits of a twentieth of a second, and no patience for the handshake's five seconds.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_stop_ends_a_write_to_a_stalled_server() {
    let (listener, port) = listen();
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(4096)
        .unwrap();
    let film = Film::new(Codec::H264, 20, 10);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            guest
        });
        let mut driver = Driver::open(RtmpSinkConfig {
            write_timeout: LIMIT * 10,
            ..quick(port)
        });
        driver.connect().unwrap();
        let _stalled = server.join().unwrap();
        let stop = driver.stop.clone();
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            stop.stop(StopReason::Signal);
        });
        let start = Instant::now();
        let all = film.units.iter().cycle();
        assert!(
            all.take(100_000)
                .any(|unit| driver.sink.send(unit).unwrap() == Sent::GivenUp)
        );
        assert!(start.elapsed() < LIMIT);
    });
}

#[test]
fn new_parameter_sets_are_announced_in_front_of_their_key_frame_only() {
    let (listener, port) = listen();
    let films = Film::changing(Codec::H264);
    let messages = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            let messages: Vec<_> = std::iter::from_fn(|| guest.next()).collect();
            messages
        });
        let mut driver = Driver::open(quick(port));
        driver.connect().unwrap();
        driver.send_all(&films);
        driver.sink.close();
        server.join().unwrap()
    });
    let kinds: String = messages
        .iter()
        .filter_map(|message| match (message.kind, message.body.get(..2)) {
            (18, _) => Some('m'),
            (9, Some([0x17, 0])) => Some('h'),
            (9, Some([0x17, 1])) => Some('K'),
            (9, Some([0x27, 1])) => Some('p'),
            (9, Some([0x17, 2])) => Some('e'),
            _ => None,
        })
        .collect();
    // Two groups of five of one size, two of another.
    assert_eq!(kinds, "mhKppppKppppmhKppppKppppe");
    let times = messages.iter().filter(|message| message.kind == 9);
    let times: Vec<_> = times.map(|message| message.timestamp).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn a_reconnect_request_moves_the_stream_at_a_key_frame() {
    let (old, old_port) = listen();
    let (new, new_port) = listen();
    let film = Film::new(Codec::H264, 40, 10);
    std::thread::scope(|scope| {
        let old_server = scope.spawn(|| {
            let mut guest = Guest::accept(&old);
            guest.start();
            guest.expect("@setDataFrame");
            guest.command(|amf| {
                amf.string("onStatus").number(0.0).null().object();
                amf.key("level").string("status");
                amf.key("code")
                    .string("NetConnection.Connect.ReconnectRequest");
                amf.key("tcUrl")
                    .string(&format!("rtmp://127.0.0.1:{new_port}/other"))
                    .end();
            });
            let messages: Vec<_> = std::iter::from_fn(|| guest.next()).collect();
            messages
        });
        let new_server = scope.spawn(|| {
            let mut guest = Guest::accept(&new);
            guest.start();
            let messages: Vec<_> = std::iter::from_fn(|| guest.next()).collect();
            messages
        });
        let mut driver = Driver::open(quick(old_port));
        driver.connect().unwrap();
        let mut units = film.units.iter().cycle();
        let deadline = Instant::now() + LIMIT;
        while driver.count(|stats| &stats.reconnects) == 0 {
            assert_eq!(driver.sink.send(units.next().unwrap()).unwrap(), Sent::All);
            driver.sink.poll().unwrap();
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        for unit in units.take(25) {
            assert_eq!(driver.sink.send(unit).unwrap(), Sent::All);
        }
        driver.sink.close();
        let (old, new) = (old_server.join().unwrap(), new_server.join().unwrap());
        let names: Vec<_> = old.iter().filter_map(Received::name).collect();
        assert_eq!(names, ["FCUnpublish", "deleteStream"]);
        let video: Vec<_> = new.iter().filter(|message| message.kind == 9).collect();
        assert_eq!(video[0].body[..2], [0x17, 0]);
        assert_eq!(video[1].body[..2], [0x17, 1]);
        // No picture was lost or sent twice.
        let pictures = |messages: &[Received]| {
            messages
                .iter()
                .filter(|m| m.kind == 9 && m.body[1] == 1)
                .count() as u64
        };
        let sent = driver.count(|stats| &stats.units);
        assert_eq!(pictures(&old) + pictures(&new), sent);
        assert_eq!(driver.count(|stats| &stats.given_up), 0);
    });
}

/// The server configuration of a certificate for `name`.
fn tls_server(authority: &Authority, name: &str) -> Arc<rustls::ServerConfig> {
    let (certificate, key) = authority.sign(name, GOOD_YEAR);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    Arc::new(config)
}

/// Publishes `film` over TLS to a server with `name` in its certificate; what it read, or why
/// the sink was lost.
fn over_tls(
    name: &str,
    film: &Film,
    trust: impl FnOnce(&mut RtmpSinkConfig, std::path::PathBuf),
) -> Result<(Option<String>, Vec<u8>), String> {
    let authority = Authority::new("of the server");
    let server_config = tls_server(&authority, name);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &authority.pem).unwrap();
    let (listener, port) = listen();
    let mut sink_config = quick(port);
    sink_config.url = format!("rtmps://localhost:{port}/live/key")
        .parse()
        .unwrap();
    sink_config.max_retries = 1;
    trust(&mut sink_config, file.path().to_owned());
    let mut driver = Driver::open(sink_config);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, listener) = (&stop, &listener);
        // Also when the sink panics: the scope waits for its server.
        let ending = Ending(stop);
        let server = scope.spawn(move || {
            listener.set_nonblocking(true).unwrap();
            loop {
                let Ok((mut socket, _)) = listener.accept() else {
                    if stop.load(Ordering::Relaxed) {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(LIMIT)).unwrap();
                socket.set_write_timeout(Some(LIMIT)).unwrap();
                let mut tls = rustls::ServerConnection::new(Arc::clone(&server_config)).unwrap();
                let mut stream = rustls::Stream::new(&mut tls, &mut socket);
                if let Some(read) = serve_tls(&mut stream) {
                    return Some((tls.server_name().map(str::to_owned), read));
                }
            }
        });
        let result = driver.connect().map_err(|error| error.to_string());
        if result.is_ok() {
            driver.send_all(film);
        }
        driver.sink.close();
        drop(ending);
        let read = server.join().unwrap();
        result.map(|()| read.unwrap())
    })
}

/// Sets its flag when it is dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Plays a server blindly: answers are timed by what must have come. Gives all media bytes.
fn serve_tls(stream: &mut (impl Read + Write)) -> Option<Vec<u8>> {
    let mut c0c1 = [0; 1537];
    stream.read_exact(&mut c0c1).ok()?;
    let s = [&[3][..], &[0; 8], &[0x5A; 1528], &c0c1[1..]].concat();
    stream.write_all(&s).ok()?;
    let mut replies = Vec::new();
    let command = |body: &[u8]| {
        let mut wire = vec![3, 0, 0, 0, 0, 0, body.len() as u8, 20, 0, 0, 0, 0];
        wire.extend(body);
        wire
    };
    let result = |id: [u8; 8], tail: &[u8]| {
        let head = [&[2, 0, 7][..], b"_result", &[0], &id, &[5]].concat();
        command(&[&head[..], tail].concat())
    };
    replies.extend(result(1.0_f64.to_be_bytes(), &[5]));
    replies.extend(result(
        4.0_f64.to_be_bytes(),
        &[&[0][..], &1.0_f64.to_be_bytes()].concat(),
    ));
    let start = b"NetStream.Publish.Start";
    let status = [
        &[2, 0, 8][..],
        b"onStatus",
        &[0; 9],
        &[5, 3, 0, 4],
        b"code",
        &[2, 0, start.len() as u8],
        start,
        &[0, 0, 9],
    ]
    .concat();
    replies.extend(command(&status));
    stream.write_all(&replies).ok()?;
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read);
    Some(read)
}

#[test]
fn rtmps_publishes_to_a_server_whose_certificate_is_in_order() {
    let film = Film::new(Codec::H264, 20, 10);
    let (name, read) = over_tls("localhost", &film, |config, ca| {
        config.tls.ca_file = Some(ca)
    })
    .unwrap();
    assert_eq!(name.as_deref(), Some("localhost"), "SNI");
    // The first key frame's slice lies in there in one piece (chunks of 64 KiB).
    let slice = film.units[0].nals().last().unwrap().bytes();
    assert!(memchr::memmem::find(&read, &slice[..slice.len().min(20_000)]).is_some());
    let payload: usize = film.units.iter().map(|unit| unit.payload_len()).sum();
    assert!(read.len() > payload / 2);
}

#[test]
fn a_certificate_that_is_not_in_order_is_explained() {
    let film = Film::new(Codec::H264, 2, 2);
    let folder = tempfile::tempdir().unwrap();
    let stranger = over_tls("localhost", &film, |config, _| {
        // An authority, but not the one that signed.
        let stranger = Authority::new("of somebody else");
        std::fs::write(folder.path().join("ca.pem"), &stranger.pem).unwrap();
        config.tls.ca_file = Some(folder.path().join("ca.pem"));
    });
    let error = stranger.unwrap_err();
    assert!(
        error.contains("signed by nobody") && error.contains("--rtmp-tls-ca"),
        "{error}"
    );
    let error = over_tls("other.example", &film, |config, ca| {
        config.tls.ca_file = Some(ca)
    })
    .unwrap_err();
    assert!(error.contains("another name"), "{error}");
    // The explicit opt-out takes both.
    over_tls("other.example", &film, |config, _| {
        config.tls.insecure = true
    })
    .unwrap();
}
