use super::*;
use proptest::prelude::*;

const ANY: ReaderLimits = ReaderLimits {
    message: 1 << 20,
    chunk_streams: 16,
};

#[derive(Debug, Clone, PartialEq)]
struct Owned {
    chunk_stream: u32,
    timestamp: u32,
    kind: u8,
    stream: u32,
    body: Vec<u8>,
}

fn read_all(reader: &mut ChunkReader, mut input: &[u8]) -> Result<Vec<Owned>, RtmpError> {
    let mut messages = Vec::new();
    while let Some(message) = reader.read(&mut input)? {
        messages.push(Owned {
            chunk_stream: message.chunk_stream,
            timestamp: message.timestamp,
            kind: message.kind,
            stream: message.stream,
            body: message.body.to_vec(),
        });
    }
    Ok(messages)
}

fn video(timestamp: u32, len: u32) -> MessageHeader {
    MessageHeader {
        chunk_stream: 6,
        timestamp,
        kind: 9,
        stream: 1,
        len,
    }
}

#[test]
fn a_message_in_three_chunks_byte_for_byte() {
    // RTMP 1.0 section 5.3.2.2: 307 bytes in chunks of 128, 128 and 51.
    let body: Vec<u8> = (0..307).map(|i| i as u8).collect();
    let header = MessageHeader {
        chunk_stream: 4,
        timestamp: 1000,
        kind: 9,
        stream: 12346,
        len: 307,
    };
    let mut wire = Vec::new();
    ChunkWriter::default().append(header, &body, &mut wire);
    let expected = [
        &[0x04][..],               // fmt 0, csid 4
        &[0x00, 0x03, 0xE8],       // timestamp 1000
        &[0x00, 0x01, 0x33],       // length 307
        &[0x09],                   // video
        &[0x3A, 0x30, 0x00, 0x00], // stream 12346, little-endian
        &body[..128],
        &[0xC4], // fmt 3
        &body[128..256],
        &[0xC4],
        &body[256..],
    ]
    .concat();
    assert_eq!(wire, expected);
    let headers = ChunkWriter::default().headers(header);
    assert_eq!(headers.wire_len(307), wire.len());
}

#[test]
fn extended_timestamps_are_repeated_in_every_chunk() {
    let mut writer = ChunkWriter::default();
    writer.set_chunk_size(2);
    let mut wire = Vec::new();
    // The last that fits, the first that does not, and the largest.
    writer.append(video(0xFF_FFFE, 1), &[7], &mut wire);
    writer.append(video(0xFF_FFFF, 3), &[1, 2, 3], &mut wire);
    writer.append(video(0xFFFF_FFFF, 1), &[9], &mut wire);
    let expected = [
        &[0x06, 0xFF, 0xFF, 0xFE, 0, 0, 1, 9, 1, 0, 0, 0, 7][..],
        &[0x06, 0xFF, 0xFF, 0xFF, 0, 0, 3, 9, 1, 0, 0, 0],
        &[0x00, 0xFF, 0xFF, 0xFF, 1, 2],
        &[0xC6, 0x00, 0xFF, 0xFF, 0xFF, 3],
        &[0x06, 0xFF, 0xFF, 0xFF, 0, 0, 1, 9, 1, 0, 0, 0],
        &[0xFF, 0xFF, 0xFF, 0xFF, 9],
    ]
    .concat();
    assert_eq!(wire, expected);
    let mut reader = ChunkReader::new(ANY);
    reader.chunk_size = 2;
    let times: Vec<_> = read_all(&mut reader, &wire)
        .unwrap()
        .iter()
        .map(|message| message.timestamp)
        .collect();
    assert_eq!(times, [0xFF_FFFE, 0xFF_FFFF, 0xFFFF_FFFF]);
}

#[test]
fn the_four_header_forms_and_three_id_forms_are_read() {
    let wire = [
        // csid 3, fmt 0, t 1000, 2 bytes, type 20, stream 5
        &[0x03, 0, 3, 0xE8, 0, 0, 2, 20, 5, 0, 0, 0, b'a', b'b'][..],
        // fmt 1, +20, 1 byte, type 18
        &[0x43, 0, 0, 20, 0, 0, 1, 18, b'c'],
        // fmt 2, +10
        &[0x83, 0, 0, 10, b'd'],
        // fmt 3: +10 again
        &[0xC3, b'e'],
        // csid 64 + 6 in two bytes, csid 64 + 1 + 256 in three
        &[0x00, 6, 0, 0, 1, 0, 0, 1, 9, 1, 0, 0, 0, b'f'],
        &[0x01, 1, 1, 0, 0, 2, 0, 0, 1, 9, 1, 0, 0, 0, b'g'],
    ]
    .concat();
    let rows = [
        (3, 1000, 20, 5, "ab"),
        (3, 1020, 18, 5, "c"),
        (3, 1030, 18, 5, "d"),
        (3, 1040, 18, 5, "e"),
        (70, 1, 9, 1, "f"),
        (321, 2, 9, 1, "g"),
    ];
    let expected: Vec<_> = rows
        .into_iter()
        .map(|(chunk_stream, timestamp, kind, stream, body)| Owned {
            chunk_stream,
            timestamp,
            kind,
            stream,
            body: body.into(),
        })
        .collect();
    assert_eq!(
        read_all(&mut ChunkReader::new(ANY), &wire).unwrap(),
        expected
    );
}

#[test]
fn a_type_3_start_repeats_the_delta_also_an_extended_one() {
    let wire = [
        // fmt 0 at 16: the type 3 that follows adds 16 (section 5.3.1.2.4)
        &[0x05, 0, 0, 16, 0, 0, 1, 9, 1, 0, 0, 0, 1][..],
        &[0xC5, 2],
        // fmt 2 with an extended delta, and again
        &[0x85, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 3],
        &[0xC5, 1, 0, 0, 0, 4],
    ]
    .concat();
    let messages = read_all(&mut ChunkReader::new(ANY), &wire).unwrap();
    let times: Vec<_> = messages.iter().map(|message| message.timestamp).collect();
    assert_eq!(times, [16, 32, 32 + 0x0100_0000, 32 + 0x0200_0000]);
    assert_eq!(messages[3].body, [4]);
}

#[test]
fn chunk_streams_interleave_and_an_abort_drops_what_has_come() {
    let mut wire = Vec::new();
    wire.extend([0x04, 0, 0, 0, 0, 0, 130, 8, 1, 0, 0, 0]);
    wire.extend([b'A'; 128]);
    wire.extend([0x06, 0, 0, 0, 0, 0, 129, 9, 1, 0, 0, 0]);
    wire.extend([b'V'; 128]);
    wire.extend([0xC4, b'A', b'A']); // completes the first
    wire.extend([0x02, 0, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 0, 0, 0, 6]); // abort csid 6
    wire.extend([0x06, 0, 0, 9, 0, 0, 1, 9, 1, 0, 0, 0, b'n']);
    let messages = read_all(&mut ChunkReader::new(ANY), &wire).unwrap();
    let seen: Vec<_> = messages.iter().map(|m| (m.kind, m.body.len())).collect();
    assert_eq!(seen, [(8, 130), (2, 4), (9, 1)]);
}

#[test]
fn a_new_chunk_size_counts_at_once() {
    let mut wire = vec![0x02, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 2];
    wire.extend([0x03, 0, 0, 0, 0, 0, 3, 20, 0, 0, 0, 0, 1, 2, 0xC3, 3]);
    let messages = read_all(&mut ChunkReader::new(ANY), &wire).unwrap();
    assert_eq!(messages[1].body, [1, 2, 3]);
}

#[test]
fn what_a_hostile_peer_sends_is_an_error() {
    let refusal = |wire: &[u8]| {
        read_all(&mut ChunkReader::new(ReaderLimits::PUBLISHER), wire)
            .unwrap_err()
            .to_string()
    };
    // 16 MiB announced
    let giant = [0x03, 0, 0, 0, 0xFF, 0xFF, 0xFF, 20, 0, 0, 0, 0];
    assert!(refusal(&giant).contains("16777215"));
    assert!(refusal(&[0xC3]).contains("type 3"));
    assert!(refusal(&[0x02, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0]).contains("chunk size"));
    let mut inside = vec![0x03, 0, 0, 0, 0, 1, 0, 20, 0, 0, 0, 0];
    inside.extend([0; 128]);
    inside.extend(&giant);
    assert!(refusal(&inside).contains("inside another"));
    let many: Vec<u8> = (2..60)
        .flat_map(|id| [id, 0, 0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0])
        .collect();
    assert!(refusal(&many).contains("16 chunk streams"));
}

fn message() -> impl Strategy<Value = (MessageHeader, Vec<u8>)> {
    let times = prop_oneof![
        any::<u32>(),
        0_u32..100,
        0xFF_FFF0_u32..0x100_0010,
        Just(0xFFFF_FFFF),
    ];
    let body = prop::collection::vec(any::<u8>(), 0..600);
    // Not the types that the reader itself obeys.
    (2_u8..8, times, 8_u8..23, any::<u32>(), body).prop_map(
        |(chunk_stream, timestamp, kind, stream, body)| {
            let header = MessageHeader {
                chunk_stream,
                timestamp,
                kind,
                stream,
                len: body.len() as u32,
            };
            (header, body)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        messages in prop::collection::vec(message(), 1..8),
        size in 1_u32..700,
        cut in 1_usize..50,
    ) {
        let mut writer = ChunkWriter::default();
        let mut wire = Vec::new();
        let announce = MessageHeader { chunk_stream: 2, timestamp: 0, kind: 1, stream: 0, len: 4 };
        writer.append(announce, &size.to_be_bytes(), &mut wire);
        writer.set_chunk_size(size);
        for (header, body) in &messages {
            let before = wire.len();
            // The body in several slices, as NAL units are.
            let headers = writer.headers(*header);
            headers.pieces(body.chunks(cut)).for_each(|piece| wire.extend_from_slice(piece));
            prop_assert_eq!(wire.len() - before, headers.wire_len(body.len()));
        }
        // The reader gets the bytes in pieces too.
        let mut reader = ChunkReader::new(ANY);
        let mut read = Vec::new();
        for part in wire.chunks(cut) {
            read.extend(read_all(&mut reader, part).unwrap());
        }
        let expected: Vec<_> = messages.into_iter().map(|(header, body)| Owned {
            chunk_stream: header.chunk_stream.into(),
            timestamp: header.timestamp,
            kind: header.kind,
            stream: header.stream,
            body,
        }).collect();
        prop_assert_eq!(&read[1..], &expected[..]);
    }

    #[test]
    fn any_bytes_stay_within_the_memory_limit(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let limits = ReaderLimits { message: 500, chunk_streams: 4 };
        let mut reader = ChunkReader::new(limits);
        let _ = read_all(&mut reader, &bytes);
        let kept: usize = reader.streams.iter().map(|stream| stream.body.capacity()).sum();
        prop_assert!(kept <= 4 * 1024, "{}", kept);
    }
}
