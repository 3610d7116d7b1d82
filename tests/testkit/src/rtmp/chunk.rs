//! The chunk stream, read and written (RTMP 1.0 section 5.3).

use std::collections::HashMap;

use thiserror::Error;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub chunk_stream: u32,
    pub timestamp: u32,
    pub kind: u8,
    pub stream: u32,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChunkError {
    #[error("chunk stream {0} begins with a header of form {1}, which refers to one before it")]
    NoHeader(u32, u8),
    #[error("chunk stream {0}: a new message header within a message")]
    HeaderWithin(u32),
    #[error("more than {MAX_STREAMS} chunk streams")]
    Streams,
    #[error("more than {MAX_PARTIAL} bytes of unfinished messages")]
    Partial,
    #[error("Set Chunk Size {0:#x}")]
    ChunkSize(u32),
    #[error("control message {0} of {1} bytes")]
    ControlLength(u8, usize),
    #[error("control message {0} on chunk stream {1}, message stream {2} instead of 2 and 0")]
    ControlStream(u8, u32, u32),
}

/// What the reader lives with and tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// A continuation chunk without the extended timestamp that its first chunk had (section 5.3.1.3).
    MissingExtendedTimestamp { chunk_stream: u32 },
}

const MAX_STREAMS: usize = 64;
const MAX_PARTIAL: usize = 32 << 20;
const FIRST_CHUNK_SIZE: u32 = 128;
const EXTENDED: u32 = 0xFF_FFFF;
const SET_CHUNK_SIZE: u8 = 1;
const ABORT: u8 = 2;

/// Chunks to messages. Set Chunk Size and Abort take effect here, and are given on all the same.
#[derive(Debug)]
pub struct ChunkReader {
    input: Vec<u8>,
    taken: usize,
    chunk_size: u32,
    streams: HashMap<u32, State>,
    partial: usize,
    oddities: Vec<Oddity>,
}

#[derive(Debug, Default, Clone)]
struct State {
    timestamp: u32,
    /// The field of the last header, or its extension: a time after form 0, else a difference.
    field: u32,
    extended: bool,
    length: usize,
    kind: u8,
    stream: u32,
    body: Vec<u8>,
    within: bool,
}

impl Default for ChunkReader {
    fn default() -> Self {
        ChunkReader {
            input: Vec::new(),
            taken: 0,
            chunk_size: FIRST_CHUNK_SIZE,
            streams: HashMap::new(),
            partial: 0,
            oddities: Vec::new(),
        }
    }
}

impl ChunkReader {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 && (self.taken == self.input.len() || self.taken > 1 << 20) {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        self.input.extend_from_slice(bytes);
    }

    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    pub fn take_oddities(&mut self) -> Vec<Oddity> {
        std::mem::take(&mut self.oddities)
    }

    /// The next whole message; `None` until more bytes come.
    ///
    /// # Errors
    ///
    /// If the framing is lost or the limits are passed; the connection is then of no more use.
    pub fn next_message(&mut self) -> Result<Option<Message>, ChunkError> {
        loop {
            match self.chunk()? {
                Progress::Wait => return Ok(None),
                Progress::Chunk => {}
                Progress::Message(message) => {
                    self.control(&message)?;
                    return Ok(Some(message));
                }
            }
        }
    }

    /// Reads one whole chunk, or nothing.
    fn chunk(&mut self) -> Result<Progress, ChunkError> {
        let mut rest = &self.input[self.taken..];
        let Some((form, id)) = basic_header(&mut rest) else {
            return Ok(Progress::Wait);
        };
        let known = self.streams.get(&id);
        let mut state = match (known, form) {
            (Some(state), _) => StateHeader::of(state),
            (None, 0) if self.streams.len() >= MAX_STREAMS => return Err(ChunkError::Streams),
            (None, 0) => StateHeader::default(),
            (None, _) => return Err(ChunkError::NoHeader(id, form)),
        };
        let within = known.is_some_and(|state| state.within);
        if within && form != 3 {
            return Err(ChunkError::HeaderWithin(id));
        }
        let mut oddity = None;
        if !state.read(form, within, id, &mut rest, &mut oddity) {
            return Ok(Progress::Wait);
        }
        let have = known.map_or(0, |state| state.body.len());
        let size = (state.length - if within { have } else { 0 }).min(self.chunk_size as usize);
        let Some((payload, after)) = rest.split_at_checked(size) else {
            return Ok(Progress::Wait);
        };
        self.partial += size;
        if self.partial > MAX_PARTIAL {
            return Err(ChunkError::Partial);
        }
        self.oddities.extend(oddity);
        let entry = self.streams.entry(id).or_default();
        state.store(entry);
        entry.within = true;
        entry.body.extend_from_slice(payload);
        let whole = entry.body.len() == entry.length;
        let message = whole.then(|| {
            entry.within = false;
            Message {
                chunk_stream: id,
                timestamp: entry.timestamp,
                kind: entry.kind,
                stream: entry.stream,
                body: std::mem::take(&mut entry.body),
            }
        });
        self.taken = self.input.len() - after.len();
        Ok(match message {
            Some(message) => {
                self.partial -= message.body.len();
                Progress::Message(message)
            }
            None => Progress::Chunk,
        })
    }

    fn control(&mut self, message: &Message) -> Result<(), ChunkError> {
        // Types 1 to 6 are protocol control messages (section 5.4).
        if !(1..=6).contains(&message.kind) {
            return Ok(());
        }
        let wanted = match message.kind {
            4 => 6,
            6 => 5,
            _ => 4,
        };
        if message.body.len() < wanted {
            return Err(ChunkError::ControlLength(message.kind, message.body.len()));
        }
        if message.chunk_stream != 2 || message.stream != 0 {
            return Err(ChunkError::ControlStream(
                message.kind,
                message.chunk_stream,
                message.stream,
            ));
        }
        let value = u32::from_be_bytes([
            message.body[0],
            message.body[1],
            message.body[2],
            message.body[3],
        ]);
        match message.kind {
            SET_CHUNK_SIZE if value == 0 || value > 0x7FFF_FFFF => {
                return Err(ChunkError::ChunkSize(value));
            }
            SET_CHUNK_SIZE => self.chunk_size = value,
            ABORT => {
                if let Some(state) = self.streams.get_mut(&value) {
                    self.partial -= state.body.len();
                    state.body.clear();
                    state.within = false;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

enum Progress {
    Wait,
    Chunk,
    Message(Message),
}

/// The header part of [`State`], read on the side until the chunk is known to be whole.
#[derive(Default)]
struct StateHeader {
    timestamp: u32,
    field: u32,
    extended: bool,
    length: usize,
    kind: u8,
    stream: u32,
}

impl StateHeader {
    fn of(state: &State) -> Self {
        StateHeader {
            timestamp: state.timestamp,
            field: state.field,
            extended: state.extended,
            length: state.length,
            kind: state.kind,
            stream: state.stream,
        }
    }

    fn store(self, state: &mut State) {
        state.timestamp = self.timestamp;
        state.field = self.field;
        state.extended = self.extended;
        state.length = self.length;
        state.kind = self.kind;
        state.stream = self.stream;
    }

    /// False if bytes are missing.
    fn read(
        &mut self,
        form: u8,
        within: bool,
        id: u32,
        rest: &mut &[u8],
        oddity: &mut Option<Oddity>,
    ) -> bool {
        self.read_header(form, within, id, rest, oddity).is_some()
    }

    fn read_header(
        &mut self,
        form: u8,
        within: bool,
        id: u32,
        rest: &mut &[u8],
        oddity: &mut Option<Oddity>,
    ) -> Option<()> {
        if form == 3 {
            if self.extended {
                let (bytes, after) = rest.split_first_chunk::<4>()?;
                let value = u32::from_be_bytes(*bytes);
                if value == self.field {
                    *rest = after;
                } else {
                    // Taken for payload, as a tolerant server does.
                    *oddity = Some(Oddity::MissingExtendedTimestamp { chunk_stream: id });
                }
            }
            if !within {
                // A new message with everything as before: the field is added again, which after form 0 is the
                // time itself (section 5.3.1.2.4).
                self.timestamp = self.timestamp.wrapping_add(self.field);
            }
            return Some(());
        }
        let field = take_u24(rest)?;
        if form <= 1 {
            self.length = take_u24(rest)? as usize;
            let (kind, after) = rest.split_first()?;
            (self.kind, *rest) = (*kind, after);
        }
        if form == 0 {
            let (stream, after) = rest.split_first_chunk::<4>()?;
            // The one little-endian field.
            (self.stream, *rest) = (u32::from_le_bytes(*stream), after);
        }
        self.extended = field == EXTENDED;
        self.field = field;
        if self.extended {
            let (value, after) = rest.split_first_chunk::<4>()?;
            (self.field, *rest) = (u32::from_be_bytes(*value), after);
        }
        self.timestamp = if form == 0 {
            self.field
        } else {
            self.timestamp.wrapping_add(self.field)
        };
        Some(())
    }
}

/// Form and chunk stream id (section 5.3.1.1).
fn basic_header(rest: &mut &[u8]) -> Option<(u8, u32)> {
    let (&first, after) = rest.split_first()?;
    *rest = after;
    let id = match first & 0x3F {
        0 => {
            let (&b, after) = rest.split_first()?;
            *rest = after;
            64 + u32::from(b)
        }
        1 => {
            let (b, after) = rest.split_first_chunk::<2>()?;
            *rest = after;
            64 + u32::from(b[0]) + 256 * u32::from(b[1])
        }
        id => u32::from(id),
    };
    Some((first >> 6, id))
}

fn take_u24(rest: &mut &[u8]) -> Option<u32> {
    let (b, after) = rest.split_first_chunk::<3>()?;
    *rest = after;
    Some(u32::from_be_bytes([0, b[0], b[1], b[2]]))
}

/// Writes a message as one chunk of form 0 and continuations. The chunk stream id is 2 to 63.
pub fn write(message: &Message, chunk_size: u32, out: &mut Vec<u8>) {
    let extended = message.timestamp >= EXTENDED;
    let field = if extended {
        EXTENDED
    } else {
        message.timestamp
    };
    out.push(message.chunk_stream as u8 & 0x3F);
    out.extend(&field.to_be_bytes()[1..]);
    out.extend(&(message.body.len() as u32).to_be_bytes()[1..]);
    out.push(message.kind);
    out.extend(message.stream.to_le_bytes());
    for (index, piece) in message.body.chunks(chunk_size as usize).enumerate() {
        if index > 0 {
            out.push(0xC0 | message.chunk_stream as u8 & 0x3F);
        }
        if extended {
            out.extend(message.timestamp.to_be_bytes());
        }
        out.extend(piece);
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
