//! The RTMP sink against servers that are absent, unwilling or hostile, played by hand.

mod rtmp_support;

use std::io::{Read, Write};
use std::net::TcpListener;

use cvmmap_streamer::sink::rtmp::RtmpSinkConfig;
use cvmmap_streamer::sink::{Sink, SinkError};

use rtmp_support::{Driver, Guest, listen, quick, reserve_tcp};

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
