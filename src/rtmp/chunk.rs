//! The chunk stream (RTMP 1.0 section 5.3): messages cut into chunks, and put together again.
//!
//! ```text
//! fmt(2) csid(6)              basic header; csid 0: +1 byte, 64 + b; 1: +2 bytes, 64 + b0 + 256 b1
//! fmt 0  timestamp(3) length(3) type(1) message stream id(4, little-endian)
//! fmt 1  delta(3) length(3) type(1)
//! fmt 2  delta(3)
//! fmt 3  -
//! timestamp or delta 0xFFFFFF: the real one follows in 4 bytes, in fmt 3 chunks too (5.3.1.3)
//! ```

use super::RtmpError;
use super::message::{Control, Message};

/// What the first chunk of a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageHeader {
    /// 2 to 63: the one-byte form of the basic header.
    pub chunk_stream: u8,
    /// Milliseconds.
    pub timestamp: u32,
    pub kind: u8,
    pub stream: u32,
    /// Bytes of the body, below 2^24.
    pub len: u32,
}

/// Cuts messages into chunks of the size that was announced.
///
/// Each message starts with an fmt 0 header and an absolute timestamp: 4 bytes more than fmt 1,
/// and no server has to guess what an extended delta means (contract section 10).
#[derive(Debug, Clone)]
pub struct ChunkWriter {
    chunk_size: u32,
}

impl Default for ChunkWriter {
    fn default() -> Self {
        Self {
            chunk_size: DEFAULT_CHUNK_SIZE,
        }
    }
}

impl ChunkWriter {
    /// For what follows; the peer has to be told first.
    pub fn set_chunk_size(&mut self, size: u32) {
        self.chunk_size = size.clamp(1, 0x7FFF_FFFF);
    }

    /// The headers of one message.
    pub fn headers(&self, header: MessageHeader) -> ChunkHeaders {
        let MessageHeader {
            chunk_stream,
            timestamp,
            kind,
            stream,
            len,
        } = header;
        debug_assert!((2..64).contains(&chunk_stream) && len < 1 << 24);
        let extended = timestamp >= EXTENDED;
        let [_, t @ ..] = timestamp.min(EXTENDED).to_be_bytes();
        let [_, l @ ..] = len.to_be_bytes();
        let mut first = [0; 16];
        first[0] = chunk_stream;
        first[1..4].copy_from_slice(&t);
        first[4..7].copy_from_slice(&l);
        first[7] = kind;
        first[8..12].copy_from_slice(&stream.to_le_bytes());
        first[12..].copy_from_slice(&timestamp.to_be_bytes());
        let mut next = [0; 5];
        next[0] = 0xC0 | chunk_stream;
        next[1..].copy_from_slice(&timestamp.to_be_bytes());
        ChunkHeaders {
            first,
            next,
            extended,
            chunk_size: self.chunk_size as usize,
        }
    }

    /// Appends a whole message, for the small ones that are not worth a gather list.
    pub fn append(&self, header: MessageHeader, body: &[u8], out: &mut Vec<u8>) {
        let headers = self.headers(header);
        headers
            .pieces(std::iter::once(body))
            .for_each(|piece| out.extend_from_slice(piece));
    }
}

/// The header of the first chunk of a message, and the one that all its other chunks share.
#[derive(Debug, Clone)]
pub struct ChunkHeaders {
    first: [u8; 16],
    next: [u8; 5],
    extended: bool,
    chunk_size: usize,
}

impl ChunkHeaders {
    /// The bytes on the wire: headers of ours between slices of `body`, which nobody copies.
    pub fn pieces<'a, I>(&'a self, body: I) -> Pieces<'a, I::IntoIter>
    where
        I: IntoIterator<Item = &'a [u8]>,
    {
        let (first, next) = if self.extended { (16, 5) } else { (12, 1) };
        Pieces {
            first: Some(&self.first[..first]),
            next: &self.next[..next],
            chunk_size: self.chunk_size,
            room: self.chunk_size,
            current: &[],
            body: body.into_iter(),
        }
    }

    /// Bytes on the wire of a message with `len` bytes of body.
    pub fn wire_len(&self, len: usize) -> usize {
        let (first, next) = if self.extended { (16, 5) } else { (12, 1) };
        first + len + len.saturating_sub(1) / self.chunk_size * next
    }
}

/// Iterator of [`ChunkHeaders::pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a, I> {
    first: Option<&'a [u8]>,
    next: &'a [u8],
    chunk_size: usize,
    room: usize,
    current: &'a [u8],
    body: I,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Iterator for Pieces<'a, I> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        while self.current.is_empty() {
            self.current = self.body.next()?;
        }
        if self.room == 0 {
            self.room = self.chunk_size;
            return Some(self.next);
        }
        let (piece, rest) = self.current.split_at(self.room.min(self.current.len()));
        self.room -= piece.len();
        self.current = rest;
        Some(piece)
    }
}

/// How much a peer may make us keep.
#[derive(Debug, Clone, Copy)]
pub struct ReaderLimits {
    /// Bytes of one message.
    pub message: u32,
    /// Chunk streams in use.
    pub chunk_streams: usize,
}

impl ReaderLimits {
    /// What a server has to say to a publisher fits many times over.
    pub const PUBLISHER: Self = Self {
        message: 64 * 1024,
        chunk_streams: 16,
    };
}

/// Puts messages together, whatever the order in which their chunks come. Applies chunk sizes and
/// aborts itself. Memory grows with the bytes that come, up to the limits, not with the lengths
/// that are claimed.
#[derive(Debug)]
pub struct ChunkReader {
    limits: ReaderLimits,
    chunk_size: u32,
    streams: Vec<ChunkStream>,
    header: [u8; LONGEST_HEADER],
    header_len: usize,
    /// The chunk stream whose payload comes now, and how much of it is still to come.
    payload: Option<(usize, usize)>,
    /// The chunk stream whose message was given out last.
    given: Option<usize>,
}

/// What the last header of a chunk stream said, and the message that grows on it.
#[derive(Debug, Default)]
struct ChunkStream {
    id: u32,
    timestamp: u32,
    delta: u32,
    extended: bool,
    len: u32,
    kind: u8,
    stream: u32,
    body: Vec<u8>,
    in_message: bool,
}

impl ChunkReader {
    pub fn new(limits: ReaderLimits) -> Self {
        Self {
            limits,
            chunk_size: DEFAULT_CHUNK_SIZE,
            streams: Vec::new(),
            header: [0; LONGEST_HEADER],
            header_len: 0,
            payload: None,
            given: None,
        }
    }

    /// A stand-in that takes nothing.
    pub(super) fn empty() -> Self {
        Self::new(ReaderLimits {
            message: 0,
            chunk_streams: 0,
        })
    }

    /// Takes bytes from the front of `input` until a message is complete, or none are left.
    ///
    /// # Errors
    ///
    /// If the bytes break the protocol or a limit. The connection is lost then.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Message<'_>>, RtmpError> {
        if let Some(given) = self.given.take() {
            self.streams[given].body.clear();
        }
        loop {
            let (at, left) = match self.payload.take() {
                Some(payload) => payload,
                None => match self.read_header(input)? {
                    Some(payload) => payload,
                    None => return Ok(None),
                },
            };
            let (taken, rest) = input.split_at(left.min(input.len()));
            *input = rest;
            let stream = &mut self.streams[at];
            stream.body.extend_from_slice(taken);
            if taken.len() < left {
                self.payload = Some((at, left - taken.len()));
                return Ok(None);
            }
            if stream.body.len() < stream.len as usize {
                continue;
            }
            stream.in_message = false;
            self.given = Some(at);
            self.apply(at)?;
            return Ok(Some(self.streams[at].message()));
        }
    }

    fn apply(&mut self, at: usize) -> Result<(), RtmpError> {
        match Control::parse(&self.streams[at].message())? {
            Some(Control::SetChunkSize(size)) => self.chunk_size = size,
            Some(Control::Abort(id)) => {
                if let Some(aborted) = self.streams.iter_mut().find(|stream| stream.id == id)
                    && aborted.in_message
                {
                    aborted.body.clear();
                    aborted.in_message = false;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The chunk stream and payload length of the next chunk; `None` if its header is not whole.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<(usize, usize)>, RtmpError> {
        loop {
            if let Some(payload) = self.parse_header()? {
                self.header_len = 0;
                return Ok(Some(payload));
            }
            let Some((byte, rest)) = input.split_first() else {
                return Ok(None);
            };
            self.header[self.header_len] = *byte;
            self.header_len += 1;
            *input = rest;
        }
    }

    fn parse_header(&mut self) -> Result<Option<(usize, usize)>, RtmpError> {
        let header = &self.header[..self.header_len];
        let (id, rest) = match header {
            [first, rest @ ..] if first & 0x3F > 1 => (u32::from(first & 0x3F), rest),
            [first, b, rest @ ..] if first & 0x3F == 0 => (64 + u32::from(*b), rest),
            [first, b0, b1, rest @ ..] if first & 0x3F == 1 => {
                (64 + u32::from(*b0) + 256 * u32::from(*b1), rest)
            }
            _ => return Ok(None),
        };
        let fmt = header[0] >> 6;
        let fields = [11, 7, 3, 0][usize::from(fmt)];
        if rest.len() < fields {
            return Ok(None);
        }
        let (fields, extended_bytes) = rest.split_at(fields);
        let known = self.streams.iter().position(|stream| stream.id == id);
        let time = (fmt < 3).then(|| u32::from_be_bytes([0, fields[0], fields[1], fields[2]]));
        let extended = match (time, known) {
            (Some(time), _) => time == EXTENDED,
            (None, Some(at)) => self.streams[at].extended,
            (None, None) => {
                return Err(RtmpError::protocol(
                    "chunk header",
                    format!("chunk stream {id} starts with a type 3 header"),
                ));
            }
        };
        let extended_time = match (extended, extended_bytes) {
            (false, _) => None,
            (true, [a, b, c, d]) => Some(u32::from_be_bytes([*a, *b, *c, *d])),
            (true, _) => return Ok(None),
        };
        let at = match known {
            Some(at) => at,
            None if self.streams.len() < self.limits.chunk_streams => {
                self.streams.push(ChunkStream {
                    id,
                    ..ChunkStream::default()
                });
                self.streams.len() - 1
            }
            None => {
                return Err(RtmpError::protocol(
                    "chunk header",
                    format!("more than {} chunk streams", self.limits.chunk_streams),
                ));
            }
        };
        let stream = &mut self.streams[at];
        if stream.in_message {
            if fmt != 3 {
                return Err(RtmpError::protocol(
                    "chunk header",
                    format!("a new message on chunk stream {id} inside another one"),
                ));
            }
        } else {
            stream.start(fmt, fields, extended_time.or(time));
            stream.extended = extended;
            if stream.len > self.limits.message {
                return Err(RtmpError::protocol(
                    "message length",
                    format!("{} bytes, more than {}", stream.len, self.limits.message),
                ));
            }
        }
        let left = stream.len as usize - stream.body.len();
        Ok(Some((at, left.min(self.chunk_size as usize))))
    }
}

impl ChunkStream {
    /// Takes over what the header of a message's first chunk says. `time` is `None` in a type 3
    /// header without extension.
    fn start(&mut self, fmt: u8, fields: &[u8], time: Option<u32>) {
        match (fmt, time) {
            (0, Some(time)) => {
                self.timestamp = time;
                // Section 5.3.1.2.4: a type 3 header that follows repeats this as the delta.
                self.delta = time;
                self.stream = u32::from_le_bytes([fields[7], fields[8], fields[9], fields[10]]);
            }
            (1 | 2, Some(delta)) => {
                self.delta = delta;
                self.timestamp = self.timestamp.wrapping_add(delta);
            }
            _ => self.timestamp = self.timestamp.wrapping_add(self.delta),
        }
        if fmt < 2 {
            self.len = u32::from_be_bytes([0, fields[3], fields[4], fields[5]]);
            self.kind = fields[6];
        }
        self.body.clear();
        self.in_message = true;
    }

    fn message(&self) -> Message<'_> {
        Message {
            chunk_stream: self.id,
            timestamp: self.timestamp,
            kind: self.kind,
            stream: self.stream,
            body: &self.body,
        }
    }
}

/// Section 5.4.1.
pub const DEFAULT_CHUNK_SIZE: u32 = 128;
/// In the three timestamp bytes: four more bytes follow.
const EXTENDED: u32 = 0xFF_FFFF;
/// Basic header 3, message header 11, extended timestamp 4.
const LONGEST_HEADER: usize = 18;

#[cfg(test)]
mod tests;
