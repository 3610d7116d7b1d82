//! The walk over the records of a recording that finds its frames (MCAP; contract sections 1, 2).
//!
//! Chunks that are not compressed are not stepped over but into: what follows is then one flat
//! run of records, which can be read to the last whole one where a file was cut, and taken up
//! again behind damaged bytes. Only the starts of messages are read, through one buffer, so the
//! memory used does not grow with the length of the file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mcap::records::{ChunkHeader, Record, op};

use super::chunk::{self, chunk_header};
use super::frame::{self, FrameFooter, KeySigns, PayloadKind, Sniffed};

/// What the walk has found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// By channel id.
    pub channels: HashMap<u16, ChannelInfo>,
    pub video: Option<u16>,
    /// Video topics beside the first.
    pub more_video: usize,
    pub frames: Vec<ScannedFrame>,
    pub chunks: Vec<Chunk>,
    pub kind: Option<PayloadKind>,
    /// The first bytes of the first payload, for the error where no kind is known.
    pub first_payload: Vec<u8>,
    pub header: Vec<u8>,
    /// There is a footer; empty where it is too long to be looked at.
    pub footer: Option<Vec<u8>>,
    /// The data section has its end and the file its closing magic.
    pub ended: bool,
    /// Messages of the video channel as the summary counts them.
    pub counted: Option<u64>,
    /// Video messages whose lengths contradict each other.
    pub damaged_messages: usize,
    /// Places at which bytes had to be skipped to find the next record.
    pub skipped: usize,
}

#[derive(Debug, Clone)]
pub(super) struct ChannelInfo {
    pub topic: String,
    pub encoding: String,
}

#[derive(Debug)]
pub(super) struct ScannedFrame {
    pub place: Place,
    pub timestamp_ns: u64,
    pub signs: KeySigns,
    /// Index into the chunks, where the message lies in one.
    pub chunk: Option<u32>,
    /// Frames in front of this one may be missing: its picture can build on what is not there.
    pub after_loss: bool,
}

/// Where the data of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    File {
        offset: u64,
        len: u32,
    },
    /// In a compressed chunk: the how-manieth video message of it.
    Packed {
        nth: u32,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub header: ChunkHeader,
    /// Where its records start, and how many bytes of them there are in the file.
    pub records: u64,
    /// The file holds all of it.
    pub whole: bool,
}

impl Scan {
    /// Walks `file`, of `len` bytes, whose first eight bytes are known to be the MCAP magic.
    ///
    /// # Errors
    ///
    /// Only what reading the file gives; damage is counted and passed over.
    pub fn run(file: &File, len: u64) -> io::Result<Self> {
        let mut walk = Walk {
            window: Window::new(file, len),
            scan: Self::default(),
            chunk: None,
            loss: false,
            last_index: None,
        };
        walk.read_summary()?;
        walk.records()?;
        Ok(walk.scan)
    }
}

struct Walk<'f> {
    window: Window<'f>,
    scan: Scan,
    /// The chunk that the walk is in, and where it ends.
    chunk: Option<(u32, u64)>,
    /// Bytes were passed over since the last frame.
    loss: bool,
    /// The last frame as its writer counted.
    last_index: Option<u32>,
}

impl Walk<'_> {
    fn records(&mut self) -> io::Result<()> {
        let mut at = mcap::MAGIC.len() as u64;
        loop {
            if self.chunk.is_some_and(|(_, end)| at >= end) {
                self.chunk = None;
            }
            at = match self.step(at)? {
                Step::To(next) => next,
                Step::End => return Ok(()),
                Step::Damaged => match self.resume(at + 1)? {
                    Some(next) => {
                        self.passed_over();
                        next
                    }
                    None => return Ok(()),
                },
            };
        }
    }

    fn passed_over(&mut self) {
        self.scan.skipped += 1;
        self.loss = true;
    }

    fn damaged_message(&mut self) {
        self.scan.damaged_messages += 1;
        self.loss = true;
    }

    fn step(&mut self, at: u64) -> io::Result<Step> {
        let Some((code, len)) = self.window.record(at)? else {
            return Ok(Step::End);
        };
        let body = at + RECORD_HEAD;
        if code == op::CHUNK {
            return self.chunk(body, len);
        }
        let Some(next) = body
            .checked_add(len)
            .filter(|next| *next <= self.window.len)
        else {
            return Ok(Step::Damaged);
        };
        if code == op::DATA_END && len == 4 {
            let magic = self.window.len - mcap::MAGIC.len() as u64;
            let tail = self.window.get(magic, mcap::MAGIC.len())?;
            self.scan.ended = tail == mcap::MAGIC;
            return Ok(Step::End);
        }
        if !self.window.may_be_record(next)? {
            return Ok(Step::Damaged);
        }
        match code {
            op::CHANNEL if len <= SMALL => {
                let bytes = self.window.get(body, len as usize)?.to_vec();
                self.channel(&bytes);
            }
            op::MESSAGE if !self.message(body, len)? => return Ok(Step::Damaged),
            _ => {}
        }
        Ok(Step::To(next))
    }

    fn channel(&mut self, bytes: &[u8]) {
        if let Ok(Record::Channel(channel)) = mcap::read::parse_record(op::CHANNEL, bytes) {
            self.add_channel(channel);
        }
    }

    fn add_channel(&mut self, channel: mcap::records::Channel) {
        let is_new = !self.scan.channels.contains_key(&channel.id);
        if is_new && channel.topic.ends_with(VIDEO_TOPIC) {
            match self.scan.video {
                None => self.scan.video = Some(channel.id),
                Some(_) => self.scan.more_video += 1,
            }
        }
        let info = ChannelInfo {
            topic: channel.topic,
            encoding: channel.message_encoding,
        };
        self.scan.channels.insert(channel.id, info);
    }

    fn chunk(&mut self, body: u64, len: u64) -> io::Result<Step> {
        let head = self.window.get(body, SMALL.min(len) as usize)?;
        let Some((header, head_len)) = chunk_header(head) else {
            return Ok(Step::Damaged);
        };
        let records = body + head_len;
        let consistent = head_len.checked_add(header.compressed_size) == Some(len);
        let end = records.saturating_add(header.compressed_size);
        let whole = end <= self.window.len;
        let plain = header.compression.is_empty();
        if !consistent {
            // A writer that was killed may have left the lengths of its last chunk open.
            return Ok(if plain && self.window.may_be_record(records)? {
                self.passed_over();
                Step::To(records)
            } else {
                Step::Damaged
            });
        }
        let index = self.scan.chunks.len() as u32;
        self.scan.chunks.push(Chunk {
            header,
            records,
            whole,
        });
        if plain {
            self.chunk = Some((index, end));
            return Ok(Step::To(records));
        }
        if !whole {
            return Ok(Step::End);
        }
        self.packed(index)?;
        Ok(Step::To(end))
    }

    fn packed(&mut self, index: u32) -> io::Result<()> {
        let chunk = self.scan.chunks[index as usize].clone();
        let size = chunk.header.compressed_size;
        if size > chunk::LARGEST_PACKED {
            self.passed_over();
            return Ok(());
        }
        let bytes = self.window.read_whole(chunk.records, size)?;
        let mut nth = 0;
        let unpacked = chunk::unpack(&chunk.header, &bytes, |record| match record {
            Record::Channel(channel) => self.add_channel(channel),
            Record::Message { header, data } => {
                if Some(header.channel_id) != self.scan.video {
                    self.text_message(header.channel_id, &data);
                    return;
                }
                let place = Place::Packed { nth };
                nth += 1;
                let Some(message) = frame::FrameMessage::parse(&data) else {
                    self.damaged_message();
                    return;
                };
                self.look_at(message.payload);
                let signs = KeySigns::of(message.payload);
                self.frame(place, message.footer, header.log_time, signs, Some(index));
            }
            _ => {}
        });
        if let Err(error) = unpacked {
            log::debug!("chunk at byte {}: {error}", chunk.records);
            self.passed_over();
        }
        Ok(())
    }

    /// False if the message cannot be one.
    fn message(&mut self, body: u64, len: u64) -> io::Result<bool> {
        let head = self.window.get(body, MESSAGE_HEAD as usize)?;
        if head.len() < MESSAGE_HEAD as usize || len < MESSAGE_HEAD {
            return Ok(false);
        }
        let channel = u16::from_le_bytes([head[0], head[1]]);
        let log_time = u64::from_le_bytes(head[6..14].try_into().expect("8 bytes"));
        let (data, data_len) = (body + MESSAGE_HEAD, len - MESSAGE_HEAD);
        if Some(channel) == self.scan.video {
            return self.video_message(data, data_len, log_time);
        }
        let Some(info) = self.scan.channels.get(&channel) else {
            return Ok(false);
        };
        match info.topic.as_str() {
            HEADER_TOPIC | FOOTER_TOPIC if data_len <= LARGEST_TEXT => {
                let bytes = self.window.read_whole(data, data_len)?;
                self.text_message(channel, &bytes);
            }
            FOOTER_TOPIC => self.scan.footer = Some(Vec::new()),
            _ => {}
        }
        Ok(true)
    }

    fn text_message(&mut self, channel: u16, data: &[u8]) {
        match self
            .scan
            .channels
            .get(&channel)
            .map(|info| info.topic.as_str())
        {
            Some(HEADER_TOPIC) => self.scan.header = data.to_vec(),
            Some(FOOTER_TOPIC) => self.scan.footer = Some(data.to_vec()),
            _ => {}
        }
    }

    fn video_message(&mut self, data: u64, len: u64, log_time: u64) -> io::Result<bool> {
        let start = self.window.get(data, frame::PREFIX)?;
        let n = frame::payload_len(start).map_or(u64::MAX, |n| n as u64);
        let Some(rest) = len
            .checked_sub(frame::PREFIX as u64)
            .and_then(|room| room.checked_sub(n))
            .filter(|_| n <= frame::LARGEST_PAYLOAD)
        else {
            self.damaged_message();
            return Ok(false);
        };
        // Whatever else a message holds behind its footer is not read.
        let footer_len = rest.min(frame::FOOTER as u64);
        let payload = data + frame::PREFIX as u64;
        if self.scan.kind.is_none() && self.scan.frames.len() < SNIFFED_FRAMES {
            let bytes = self.window.read_whole(payload, n)?;
            self.look_at(&bytes);
        }
        let peek = self.window.get(payload, n.min(PEEK) as usize)?;
        let signs = KeySigns::of(peek);
        let footer = self.window.get(payload + n, footer_len as usize)?;
        let footer = FrameFooter::parse(footer);
        let place = Place::File {
            offset: data,
            len: (frame::PREFIX as u64 + n + footer_len) as u32,
        };
        let chunk = self.chunk.map(|(index, _)| index);
        self.frame(place, footer, log_time, signs, chunk);
        Ok(true)
    }

    fn frame(
        &mut self,
        place: Place,
        footer: Option<FrameFooter>,
        log_time: u64,
        signs: KeySigns,
        chunk: Option<u32>,
    ) {
        let index = footer.map(|footer| footer.index);
        // Where the writer counted on without a gap, what was passed over was no frame.
        let next = self.last_index.map_or(Some(0), |last| last.checked_add(1));
        let after_loss = std::mem::take(&mut self.loss) && (index.is_none() || index != next);
        self.last_index = index;
        self.scan.frames.push(ScannedFrame {
            place,
            timestamp_ns: footer.map_or(log_time, |footer| footer.timestamp_ns),
            signs,
            chunk,
            after_loss,
        });
    }

    fn look_at(&mut self, payload: &[u8]) {
        if self.scan.kind.is_some() || self.scan.frames.len() >= SNIFFED_FRAMES {
            return;
        }
        if self.scan.first_payload.is_empty() {
            self.scan.first_payload = payload[..payload.len().min(16)].to_vec();
        }
        if let Sniffed::Is(kind) = frame::sniff(payload) {
            self.scan.kind = Some(kind);
        }
    }

    /// The next place at or behind `from` where a chunk or a frame starts beyond doubt: their
    /// lengths are written more than once and must agree.
    fn resume(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        loop {
            let block = self.window.get(at, RESUME_BLOCK)?;
            let len = block.len() as u64;
            let Some(found) = memchr::memchr2(op::MESSAGE, op::CHUNK, block) else {
                if len < RESUME_BLOCK as u64 {
                    return Ok(None);
                }
                at += len;
                continue;
            };
            at += found as u64;
            if self.is_certain(at)? {
                return Ok(Some(at));
            }
            at += 1;
        }
    }

    fn is_certain(&mut self, at: u64) -> io::Result<bool> {
        let Some((code, len)) = self.window.record(at)? else {
            return Ok(false);
        };
        let body = at + RECORD_HEAD;
        if code == op::CHUNK {
            let head = self.window.get(body, SMALL.min(len) as usize)?;
            let Some((header, head_len)) = chunk_header(head) else {
                return Ok(false);
            };
            return Ok(matches!(header.compression.as_str(), "" | "lz4" | "zstd")
                && head_len.checked_add(header.compressed_size) == Some(len)
                && (!header.compression.is_empty()
                    || header.compressed_size == header.uncompressed_size));
        }
        let Some(data_len) = len.checked_sub(MESSAGE_HEAD) else {
            return Ok(false);
        };
        if body.saturating_add(len) > self.window.len {
            return Ok(false);
        }
        let head = self
            .window
            .get(body, MESSAGE_HEAD as usize + frame::PREFIX)?;
        let Some(start) = head.get(MESSAGE_HEAD as usize..) else {
            return Ok(false);
        };
        let channel = u16::from_le_bytes([head[0], head[1]]);
        Ok(self.scan.video == Some(channel) && frame::lengths_agree(start, data_len))
    }

    /// The channels and the frame count that a finished file repeats at its end: they help where
    /// the first copy of a channel record is damaged. A file without them is read all the same.
    fn read_summary(&mut self) -> io::Result<()> {
        let Some(tail_at) = self.window.len.checked_sub(FILE_TAIL) else {
            return Ok(());
        };
        let tail = self.window.get(tail_at, FILE_TAIL as usize)?;
        if !tail.ends_with(mcap::MAGIC) || tail[0] != op::FOOTER {
            return Ok(());
        }
        let start = u64::from_le_bytes(tail[9..17].try_into().expect("8 bytes"));
        let Some(len) = tail_at
            .checked_sub(start)
            .filter(|len| start > 0 && *len <= LARGEST_TEXT)
        else {
            return Ok(());
        };
        let bytes = self.window.read_whole(start, len)?;
        for record in mcap::read::LinearReader::sans_magic(&bytes) {
            match record {
                Ok(Record::Channel(channel)) => self.add_channel(channel),
                Ok(Record::Statistics(statistics)) => {
                    let video = self.scan.video.unwrap_or(u16::MAX);
                    self.scan.counted = statistics.channel_message_counts.get(&video).copied();
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }
}

enum Step {
    To(u64),
    End,
    Damaged,
}

/// Reads a file through one buffer that slides over it.
struct Window<'f> {
    file: &'f File,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl<'f> Window<'f> {
    fn new(file: &'f File, len: u64) -> Self {
        Self {
            file,
            len,
            start: 0,
            buffer: Vec::new(),
        }
    }

    /// `want` bytes at `at`, fewer where the file ends.
    fn get(&mut self, at: u64, want: usize) -> io::Result<&[u8]> {
        let want = (want as u64).min(self.len.saturating_sub(at)) as usize;
        let have = self.start + self.buffer.len() as u64;
        if at < self.start || at + want as u64 > have {
            let fill = (want.max(BLOCK) as u64).min(self.len.saturating_sub(at)) as usize;
            self.start = at;
            self.buffer.resize(fill, 0);
            let got = read_up_to(self.file, &mut self.buffer, at)?;
            self.buffer.truncate(got);
        }
        let from = ((at - self.start) as usize).min(self.buffer.len());
        let to = (from + want).min(self.buffer.len());
        Ok(&self.buffer[from..to])
    }

    /// A larger piece, in memory of its own.
    fn read_whole(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let len = len
            .min(self.len.saturating_sub(at))
            .min(chunk::LARGEST_PACKED);
        let mut bytes = vec![0; len as usize];
        let got = read_up_to(self.file, &mut bytes, at)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    /// Code and length of the record at `at`; `None` at the end of the file.
    fn record(&mut self, at: u64) -> io::Result<Option<(u8, u64)>> {
        let head = self.get(at, RECORD_HEAD as usize)?;
        Ok((head.len() == RECORD_HEAD as usize).then(|| {
            (
                head[0],
                u64::from_le_bytes(head[1..9].try_into().expect("8 bytes")),
            )
        }))
    }

    /// Whether a record of a known kind could start at `at`, or the file ends there.
    fn may_be_record(&mut self, at: u64) -> io::Result<bool> {
        Ok(match self.record(at)? {
            None => true,
            Some((code, len)) => {
                let known = (op::HEADER..=op::DATA_END).contains(&code) || code >= 0x80;
                // The last record of a cut file reaches past its end.
                let cut = matches!(code, op::CHUNK | op::MESSAGE) && len < LARGEST_CUT;
                known && (cut || at.saturating_add(len) <= self.len)
            }
        })
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

pub(super) const VIDEO_TOPIC: &str = "/side_by_side";
const HEADER_TOPIC: &str = "svo_header";
const FOOTER_TOPIC: &str = "svo_footer";
/// Op code and length.
const RECORD_HEAD: u64 = 9;
/// u16 channel, u32 sequence, u64 log time, u64 publish time.
const MESSAGE_HEAD: u64 = 22;
/// Footer record (9 + 20 bytes) and closing magic.
const FILE_TAIL: u64 = 9 + 20 + 8;
const BLOCK: usize = 256 << 10;
const RESUME_BLOCK: usize = 64 << 10;
/// Enough of a payload to reach its first slice.
const PEEK: u64 = 4 << 10;
/// Records of our interest other than chunks and messages are smaller.
const SMALL: u64 = 64 << 10;
const LARGEST_TEXT: u64 = 64 << 20;
/// A last record of a cut file that says it is longer is none.
const LARGEST_CUT: u64 = 1 << 30;
/// Messages that are looked at to tell what the payloads are.
const SNIFFED_FRAMES: usize = 300;
