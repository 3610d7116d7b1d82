//! Damaged servers: every reader of foreign bytes is fed with seeded noise and with a whole,
//! valid answer of a server in which bytes were changed, lost, doubled and swapped.

#[path = "common/noise.rs"]
mod noise;

use cvmmap_streamer::rtmp::chunk::MessageHeader;
use cvmmap_streamer::rtmp::{ChunkWriter, amf0, fuzz};
use noise::Noise;

fn message(kind: u8, body: &[u8], out: &mut Vec<u8>) {
    let header = MessageHeader {
        chunk_stream: if kind < 7 { 2 } else { 3 },
        timestamp: 0x0123_4567, // extended, so that those fields are damaged too
        kind,
        stream: 0,
        len: body.len() as u32,
    };
    ChunkWriter::default().append(header, body, out);
}

fn status(code: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let mut amf = amf0::Writer(&mut body);
    amf.string("onStatus").number(0.0).null().object();
    amf.key("level").string("status").key("code").string(code);
    amf.key("tcUrl").string("rtmp://other.example/app");
    amf.key("list").strict_array(2).number(1.0).boolean(true);
    amf.key("map").ecma_array(1).key("a").null().end().end();
    body
}

/// What a server says from the handshake to the end of a stream.
fn recording() -> Vec<u8> {
    let mut wire = vec![3; 1 + 2 * 1536];
    message(5, &[0, 0, 2, 0], &mut wire);
    message(6, &[0, 0, 2, 0, 2], &mut wire);
    message(4, &[0, 6, 1, 2, 3, 4], &mut wire);
    for (id, value) in [(1.0, 0.0), (4.0, 1.0)] {
        let mut body = Vec::new();
        let mut amf = amf0::Writer(&mut body);
        amf.string("_result").number(id).null().number(value);
        message(20, &body, &mut wire);
    }
    for code in [
        "NetStream.Publish.Start",
        "NetConnection.Connect.ReconnectRequest",
        "NetStream.Unpublish.Success",
    ] {
        message(20, &status(code), &mut wire);
    }
    message(1, &[0, 0, 16, 0], &mut wire);
    message(18, &[5; 3000], &mut wire);
    message(2, &[0, 0, 0, 3], &mut wire);
    wire
}

#[test]
fn damaged_servers_are_survived() {
    let (recording, mut noise) = (recording(), Noise::new(0x5EED_0003));
    let body = status("NetStream.Publish.Start");
    fuzz::server(&recording);
    for _ in 0..4000 {
        let mut bytes = recording.clone();
        // The handshake is long and has little to damage: most rounds spare it.
        let from = if noise.below(8) == 0 { 0 } else { 1 + 2 * 1536 };
        noise.damage(&mut bytes, from);
        fuzz::server(&bytes);
        fuzz::chunks(&bytes[from.min(bytes.len())..]);
        let mut bytes = body.clone();
        noise.damage(&mut bytes, 0);
        fuzz::amf0(&bytes);
    }
}

#[test]
fn plain_noise_is_survived() {
    let mut noise = Noise::new(0x5EED_0004);
    for _ in 0..2000 {
        let mut bytes = noise.bytes(5000);
        fuzz::amf0(&bytes);
        fuzz::chunks(&bytes);
        fuzz::handshake(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = 3;
        }
        fuzz::handshake(&bytes);
        fuzz::server(&bytes);
    }
}
