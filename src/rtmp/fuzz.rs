//! One function for each reader of foreign bytes: whatever the bytes are, it returns, and holds
//! to its limits. `tests/rtmp_fuzz.rs` drives them with damaged recordings of a server; a fuzzer
//! may drive them with its own.

use std::time::Duration;

use super::amf0;
use super::chunk::{ChunkReader, ReaderLimits};
use super::handshake::{BLOCK, ClientHandshake, HandshakeForm};
use super::{PublishConfig, PublishSession};

/// # Panics
///
/// If a limit does not hold.
pub fn chunks(mut bytes: &[u8]) {
    let limits = ReaderLimits::PUBLISHER;
    let mut reader = ChunkReader::new(limits);
    while let Ok(Some(message)) = reader.read(&mut bytes) {
        assert!(message.body.len() <= limits.message as usize);
    }
}

/// # Panics
///
/// If a limit does not hold.
pub fn amf0(bytes: &[u8]) {
    let mut reader = amf0::Reader::new(bytes);
    let mut values = 0;
    while let Ok(Some(_)) = reader.read() {
        values += 1;
    }
    assert!(values <= amf0::Reader::MOST_VALUES);
}

/// # Panics
///
/// If it puts out more than one C2.
pub fn handshake(bytes: &[u8]) {
    for form in [HandshakeForm::Simple, HandshakeForm::Digest] {
        let (mut input, mut out) = (bytes, Vec::new());
        let mut handshake = ClientHandshake::new(form, 0, &[7; BLOCK]);
        while let Ok(false) = handshake.input(&mut input, &mut out) {
            if input.is_empty() {
                break;
            }
        }
        assert!(out.is_empty() || out.len() == BLOCK);
    }
}

/// A whole session that is told `bytes` by its server.
///
/// # Panics
///
/// If a limit does not hold.
pub fn server(bytes: &[u8]) {
    let config = PublishConfig {
        url: "rtmp://fuzz.example/app/key"
            .parse()
            .expect("a fixed address"),
        handshake: HandshakeForm::Simple,
        enhanced: true,
        chunk_size: 65536,
    };
    let mut session = PublishSession::new(config, &[7; BLOCK], Duration::ZERO);
    for part in bytes.chunks(997) {
        if session.input(part, Duration::ZERO).is_err() {
            break;
        }
        let _ = session.take_reconnect_request();
    }
    assert!(session.output().len() < 1 << 20);
    let _ = session.peer_closed();
}
