//! Chunks by RTMP 1.0 section 5.3, byte by byte.

use super::*;
use proptest::prelude::*;

fn read(bytes: &[u8]) -> Result<Vec<Message>, ChunkError> {
    let mut reader = ChunkReader::default();
    reader.push(bytes);
    let mut messages = Vec::new();
    while let Some(message) = reader.next_message()? {
        messages.push(message);
    }
    Ok(messages)
}

fn video(timestamp: u32, body: &[u8]) -> Message {
    Message {
        chunk_stream: 5,
        timestamp,
        kind: 9,
        stream: 1,
        body: body.to_vec(),
    }
}

#[test]
fn the_four_header_forms_are_read() {
    #[rustfmt::skip]
    let bytes = [
        0x05, 0, 0, 100, 0, 0, 2, 9, 1, 0, 0, 0, b'a', b'b', // form 0, time 100
        0x45, 0, 0, 40, 0, 0, 1, 9, b'c',                    // form 1, 40 later, another length
        0x85, 0, 0, 40, b'd',                                // form 2, 40 later
        0xC5, b'e',                                          // form 3, the same again
    ];
    let messages = read(&bytes).expect("chunks");
    assert_eq!(
        messages,
        [
            video(100, b"ab"),
            video(140, b"c"),
            video(180, b"d"),
            video(220, b"e")
        ]
    );
}

// Section 5.3.1.2.4: after form 0, a new message of form 3 adds the time of form 0.
#[test]
fn form_3_after_form_0_adds_the_time_itself() {
    let bytes = [0x05, 0, 0, 100, 0, 0, 1, 9, 1, 0, 0, 0, b'a', 0xC5, b'b'];
    assert_eq!(
        read(&bytes).expect("chunks"),
        [video(100, b"a"), video(200, b"b")]
    );
}

#[test]
fn long_chunk_stream_ids_are_read() {
    let tail = [0, 0, 0, 0, 0, 1, 9, 1, 0, 0, 0, b'x'];
    assert_eq!(
        read(&[&[0, 6][..], &tail].concat()).expect("chunks")[0].chunk_stream,
        70
    );
    assert_eq!(
        read(&[&[1, 6, 1][..], &tail].concat()).expect("chunks")[0].chunk_stream,
        64 + 6 + 256
    );
}

#[test]
fn chunks_of_two_streams_interleave_and_the_size_can_change_between() {
    let long = [b'L'; 130];
    let mut bytes = vec![0x05, 0, 0, 0, 0, 0, 130, 9, 1, 0, 0, 0];
    bytes.extend(&long[..128]);
    bytes.extend([0x02, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 16, 0]); // Set Chunk Size 4096
    bytes.extend([0x06, 0, 0, 9, 0, 0, 1, 8, 1, 0, 0, 0, b'A']);
    bytes.extend([0xC5, b'L', b'L']);
    let messages = read(&bytes).expect("chunks");
    assert_eq!(
        messages.iter().map(|m| m.kind).collect::<Vec<_>>(),
        [1, 8, 9]
    );
    assert_eq!(messages[2], video(0, &long));
}

#[test]
fn an_abort_drops_what_was_begun() {
    let mut bytes = vec![0x05, 0, 0, 0, 0, 0, 130, 9, 1, 0, 0, 0];
    bytes.extend([b'L'; 128]);
    bytes.extend([0x02, 0, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 0, 0, 0, 5]);
    bytes.extend([0x05, 0, 0, 7, 0, 0, 1, 9, 1, 0, 0, 0, b'n']);
    assert_eq!(read(&bytes).expect("chunks")[1], video(7, b"n"));
}

#[test]
fn extended_timestamps_are_repeated_in_continuations() {
    let time = 0x0100_0000_u32;
    let head = [0x05, 0xFF, 0xFF, 0xFF, 0, 0, 130, 9, 1, 0, 0, 0, 1, 0, 0, 0];
    let mut right = head.to_vec();
    right.extend([b'L'; 128]);
    right.extend([0xC5, 1, 0, 0, 0, b'L', b'L']);
    assert_eq!(read(&right).expect("chunks"), [video(time, &[b'L'; 130])]);

    let mut reader = ChunkReader::default();
    let mut wrong = head.to_vec();
    wrong.extend([b'L'; 128]);
    wrong.extend([0xC5, b'L', b'L', 0x05, 0]);
    reader.push(&wrong);
    assert_eq!(reader.next_message(), Ok(Some(video(time, &[b'L'; 130]))));
    assert_eq!(
        reader.take_oddities(),
        [Oddity::MissingExtendedTimestamp { chunk_stream: 5 }]
    );

    // In forms 1 and 2 the extended value is a difference.
    let mut late = vec![0x05, 0, 0, 1, 0, 0, 1, 9, 1, 0, 0, 0, b'a'];
    late.extend([0x85, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, b'b']);
    assert_eq!(read(&late).expect("chunks")[1], video(time + 1, b"b"));
}

#[test]
fn lost_framing_and_bombs_are_errors() {
    assert_eq!(read(&[0x45, 0]), Err(ChunkError::NoHeader(5, 1)));
    let mut within = vec![0x05, 0, 0, 0, 0, 0, 130, 9, 1, 0, 0, 0];
    within.extend([0; 128]);
    within.push(0x05);
    assert_eq!(read(&within), Err(ChunkError::HeaderWithin(5)));
    let zero_size = [0x02, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(read(&zero_size), Err(ChunkError::ChunkSize(0)));
    assert_eq!(
        read(&[0x02, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]),
        Err(ChunkError::ControlLength(1, 1))
    );
    assert_eq!(
        read(&[0x03, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 1, 0]),
        Err(ChunkError::ControlStream(1, 3, 0))
    );
    let mut streams = Vec::new();
    for id in 0..65_u8 {
        streams.extend([0, id, 0, 0, 0, 0, 0, 0, 9, 1, 0, 0, 0]);
    }
    assert_eq!(read(&streams), Err(ChunkError::Streams));
    // Three unfinished messages of 16 MiB each.
    let mut giant = vec![0x02, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFE];
    for id in 5..8_u8 {
        giant.extend([id, 0, 0, 0, 0xFF, 0xFF, 0xFF, 9, 1, 0, 0, 0]);
        giant.resize(giant.len() + 0xFF_FFFE, 0);
    }
    assert_eq!(read(&giant), Err(ChunkError::Partial));
}

proptest! {
    #[test]
    fn written_messages_are_read_back_however_they_are_cut(
        bodies in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..400), any::<u32>()), 1..5),
        cut in 1_usize..50,
    ) {
        let messages: Vec<_> = bodies.iter().map(|(body, time)| video(*time, body)).collect();
        let mut bytes = Vec::new();
        for message in &messages {
            write(message, 128, &mut bytes);
        }
        let mut reader = ChunkReader::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(cut) {
            reader.push(piece);
            while let Some(message) = reader.next_message().expect("well formed") {
                found.push(message);
            }
        }
        prop_assert_eq!(found, messages);
        prop_assert!(reader.take_oddities().is_empty());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(prop_oneof![0_u8..8, any::<u8>()], 0..400)) {
        let _ = read(&bytes);
    }
}
