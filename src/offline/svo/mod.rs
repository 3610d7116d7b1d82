//! Reading a recording: SVO version 2, which is an MCAP file (contract sections 1 and 2).

mod chunk;
mod frame;
mod header;
mod scan;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use frame::{FrameMessage, PayloadKind, strip_ranges};
pub use header::SvoHeader;

use mcap::records::Record;
use scan::{Chunk, Place, Scan};

/// An open recording with the index of its frames. The pictures are read by [`FrameReader`]s.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    file: File,
    header: SvoHeader,
    serial: Option<u32>,
    kind: PayloadKind,
    frames: Vec<FrameEntry>,
    places: Vec<(Place, Option<u32>)>,
    chunks: Vec<Chunk>,
    video: u16,
    warnings: Vec<String>,
}

/// One frame of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// Of the image, on the recorder's clock; usually Unix time.
    pub timestamp_ns: u64,
    /// Decoding can start here.
    pub key: bool,
    /// So many frames behind this one the picture is whole, whatever was lost before it: the
    /// recovery point of a stream that is refreshed piece by piece.
    pub recovery: Option<u16>,
    /// Frames in front of this one may be lost: unless it is a key frame, it can build on what is
    /// not there.
    pub after_loss: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SvoError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The first bytes are those of neither version.
    #[error("{path}: not a ZED recording (first bytes: {bytes})", path = path.display())]
    NotARecording { path: PathBuf, bytes: String },
    #[error(
        "{path}: SVO version 1 recordings can only be read with the ZED SDK ({reason}). \
         Install the SDK and use --backend sdk.",
        path = path.display()
    )]
    Version1 { path: PathBuf, reason: String },
    #[error(
        "{path}: no side-by-side video in this recording; its topics are: {topics}",
        path = path.display()
    )]
    NoVideo { path: PathBuf, topics: String },
    #[error("{path}: the recording holds no frame that can be read", path = path.display())]
    NoFrames { path: PathBuf },
    #[error(
        "{path}: unsupported or encrypted frame data (first bytes: {bytes})",
        path = path.display()
    )]
    UnknownPayload { path: PathBuf, bytes: String },
}

/// The two generations of the format, told apart by the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// Looks at the first bytes of a file; its suffix does not matter.
///
/// # Errors
///
/// If it cannot be read or is no recording.
pub fn version_of(path: &Path) -> Result<Version, SvoError> {
    let io = |source| SvoError::Io {
        path: path.to_owned(),
        source,
    };
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(io(io::Error::other("is not a file")));
    }
    let mut file = File::open(path).map_err(io)?;
    let mut first = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(&mut file, 16), &mut first).map_err(io)?;
    if first.starts_with(mcap::MAGIC) {
        Ok(Version::Two)
    } else if first.starts_with(&VERSION_1) {
        Ok(Version::One)
    } else {
        Err(SvoError::NotARecording {
            path: path.to_owned(),
            bytes: hex(&first),
        })
    }
}

impl Recording {
    /// Opens a recording and indexes its frames in one pass.
    ///
    /// Damaged parts are passed over, and a file that was not closed is read up to its last whole
    /// frame; [`Self::warnings`] says what was found.
    ///
    /// # Errors
    ///
    /// If there is nothing to decode, or the file is of version 1.
    pub fn open(path: &Path) -> Result<Self, SvoError> {
        let io = |source| SvoError::Io {
            path: path.to_owned(),
            source,
        };
        if version_of(path)? == Version::One {
            return Err(SvoError::Version1 {
                path: path.to_owned(),
                reason: "this backend reads version 2".to_owned(),
            });
        }
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let scan = Scan::run(&file, len).map_err(io)?;
        Self::from_scan(path, file, scan)
    }

    fn from_scan(path: &Path, file: File, scan: Scan) -> Result<Self, SvoError> {
        let path = path.to_owned();
        let Some(video) = scan.video else {
            if scan.channels.is_empty() {
                return Err(SvoError::NoFrames { path });
            }
            let topic = |info: &scan::ChannelInfo| format!("{} ({})", info.topic, info.encoding);
            let mut topics: Vec<_> = scan.channels.values().map(topic).collect();
            topics.sort();
            return Err(SvoError::NoVideo {
                path,
                topics: topics.join(", "),
            });
        };
        if scan.frames.is_empty() {
            return Err(SvoError::NoFrames { path });
        }
        let Some(kind) = scan.kind else {
            let bytes = hex(&scan.first_payload);
            return Err(SvoError::UnknownPayload { path, bytes });
        };
        let topic = &scan.channels[&video].topic;
        let header = SvoHeader::parse(&scan.header);
        let warnings = warnings(&scan, topic);
        Ok(Self {
            serial: header::serial_of_topic(topic).or(header.serial),
            frames: scan
                .frames
                .iter()
                .map(|frame| FrameEntry {
                    timestamp_ns: frame.timestamp_ns,
                    key: frame.signs.is_key(kind),
                    recovery: frame.signs.recovery(kind),
                    after_loss: frame.after_loss,
                })
                .collect(),
            places: scan
                .frames
                .iter()
                .map(|frame| (frame.place, frame.chunk))
                .collect(),
            chunks: scan.chunks,
            path,
            file,
            header,
            kind,
            video,
            warnings,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn header(&self) -> &SvoHeader {
        &self.header
    }

    pub fn serial(&self) -> Option<u32> {
        self.serial
    }

    /// What the payloads hold.
    pub fn kind(&self) -> PayloadKind {
        self.kind
    }

    /// In the order of the file, never sorted by time; not empty.
    pub fn frames(&self) -> &[FrameEntry] {
        &self.frames
    }

    /// What a person should know about the state of the file.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Frames per second: as the header says, else from the median distance of the frames, else
    /// 30.
    pub fn fps(&self) -> u32 {
        self.header.fps.unwrap_or_else(|| {
            let mut steps: Vec<u64> = self
                .frames
                .windows(2)
                .filter_map(|pair| pair[1].timestamp_ns.checked_sub(pair[0].timestamp_ns))
                .filter(|step| *step > 0)
                .collect();
            steps.sort_unstable();
            match steps.get(steps.len() / 2) {
                Some(step) => ((1e9 / *step as f64).round() as u32).clamp(1, 1000),
                None => 30,
            }
        })
    }

    /// The frame at which decoding must start to have frame `index`: the last key frame up to it,
    /// or the first frame of all where everything depends on the past.
    pub fn decode_start(&self, index: usize) -> usize {
        self.frames[..=index]
            .iter()
            .rposition(|frame| frame.key)
            .unwrap_or(0)
    }

    /// The first frame at or behind `from` that is whole whatever was lost before `from`, by the
    /// recovery points of the stream.
    pub fn recovered(&self, from: usize) -> Option<usize> {
        let frames = self.frames.get(from..)?.iter().enumerate();
        let mut points =
            frames.filter_map(|(at, frame)| Some(from + at + usize::from(frame.recovery?)));
        points.next().filter(|index| *index < self.frames.len())
    }

    /// The next key frame behind `index`.
    pub fn next_key(&self, index: usize) -> Option<usize> {
        let from = index + 1;
        Some(
            from + self
                .frames
                .get(from..)?
                .iter()
                .position(|frame| frame.key)?,
        )
    }
}

fn warnings(scan: &Scan, topic: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let found = scan.frames.len();
    match scan.footer.as_deref().filter(|_| scan.ended) {
        None => warnings.push(format!(
            "recording was not closed; recovered {found} frames"
        )),
        Some(footer) => {
            let listed = header::footer_frame_count(footer, topic);
            let counted = scan.counted.map(|count| count as usize);
            if let Some(expected) = listed.or(counted).filter(|expected| *expected != found) {
                warnings.push(format!(
                    "the recording should have {expected} frames; {found} were found"
                ));
            }
        }
    }
    if scan.damaged_messages + scan.skipped > 0 {
        warnings.push(format!(
            "the recording is damaged: {} places were passed over",
            scan.skipped.max(scan.damaged_messages)
        ));
    }
    if scan.more_video > 0 {
        warnings.push(format!(
            "more than one side-by-side video; only {topic} is used"
        ));
    }
    if found > 0 && scan.frames[0].timestamp_ns < UNIX_TIMES {
        warnings.push("the frame times are not Unix time; they are used as they are".to_owned());
    }
    warnings
}

/// Reads the payloads of a recording, one at a time.
#[derive(Debug)]
pub struct FrameReader<'r> {
    recording: &'r Recording,
    buffer: Vec<u8>,
    checked: Vec<ChunkState>,
    unpacked: Option<(u32, Vec<Vec<u8>>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Unchecked,
    Good,
    Bad,
}

/// Why a frame that the index lists cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FrameFault {
    #[error("its part of the recording is damaged (checksum)")]
    Checksum,
    #[error("its message is damaged")]
    Message,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<'r> FrameReader<'r> {
    pub fn new(recording: &'r Recording) -> Self {
        Self {
            recording,
            buffer: Vec::new(),
            checked: vec![ChunkState::Unchecked; recording.chunks.len()],
            unpacked: None,
        }
    }

    /// The payload of frame `index`.
    ///
    /// # Errors
    ///
    /// If the frame, or the chunk that it lies in, is damaged: decoding can go on at the next key
    /// frame.
    ///
    /// # Panics
    ///
    /// If the recording has no such frame.
    pub fn payload(&mut self, index: usize) -> Result<&[u8], FrameFault> {
        let (place, chunk) = self.recording.places[index];
        match (place, chunk) {
            (Place::File { offset, len }, chunk) => {
                if let Some(chunk) = chunk {
                    self.check(chunk)?;
                }
                self.buffer.resize(len as usize, 0);
                self.recording
                    .file
                    .read_exact_at(&mut self.buffer, offset)?;
            }
            (Place::Packed { nth }, Some(chunk)) => {
                self.unpack(chunk)?;
                let messages = self.unpacked.as_ref().map(|(_, messages)| messages);
                let message = messages.and_then(|messages| messages.get(nth as usize));
                self.buffer.clear();
                self.buffer.extend(message.ok_or(FrameFault::Message)?);
            }
            (Place::Packed { .. }, None) => return Err(FrameFault::Message),
        }
        let message = FrameMessage::parse(&self.buffer).ok_or(FrameFault::Message)?;
        Ok(message.payload)
    }

    /// Compares a chunk with its checksum when its first frame is read.
    fn check(&mut self, index: u32) -> Result<(), FrameFault> {
        let (chunk, state) = (
            &self.recording.chunks[index as usize],
            &mut self.checked[index as usize],
        );
        if *state == ChunkState::Unchecked {
            let size = chunk.header.compressed_size;
            // A sum of 0 means "none" (MCAP specification, Chunk).
            let known = chunk.whole && chunk.header.uncompressed_crc != 0;
            *state = ChunkState::Good;
            if known {
                let mut sum = crc32fast::Hasher::new();
                let (mut at, mut left) = (chunk.records, size);
                while left > 0 {
                    self.buffer.resize(left.min(CHECKED_PIECE) as usize, 0);
                    self.recording.file.read_exact_at(&mut self.buffer, at)?;
                    sum.update(&self.buffer);
                    at += self.buffer.len() as u64;
                    left -= self.buffer.len() as u64;
                }
                if sum.finalize() != chunk.header.uncompressed_crc {
                    *state = ChunkState::Bad;
                }
            }
        }
        match *state {
            ChunkState::Bad => Err(FrameFault::Checksum),
            _ => Ok(()),
        }
    }

    fn unpack(&mut self, index: u32) -> Result<(), FrameFault> {
        if self
            .unpacked
            .as_ref()
            .is_some_and(|(held, _)| *held == index)
        {
            return Ok(());
        }
        if self.checked[index as usize] == ChunkState::Bad {
            return Err(FrameFault::Checksum);
        }
        let chunk = &self.recording.chunks[index as usize];
        let size = chunk.header.compressed_size.min(chunk::LARGEST_PACKED);
        let mut bytes = vec![0; size as usize];
        self.recording
            .file
            .read_exact_at(&mut bytes, chunk.records)?;
        let mut messages = Vec::new();
        // Not two at once.
        self.unpacked = None;
        let unpacked = chunk::unpack(&chunk.header, &bytes, |record| {
            if let Record::Message { header, data } = record
                && header.channel_id == self.recording.video
            {
                messages.push(data.into_owned());
            }
        });
        if let Err(error) = unpacked {
            log::debug!("chunk at byte {}: {error}", chunk.records);
            self.checked[index as usize] = ChunkState::Bad;
            return Err(FrameFault::Checksum);
        }
        self.unpacked = Some((index, messages));
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    let words: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(" ")
    }
}

/// The i32 -11 that files of version 1 were seen to start with (contract section 3).
const VERSION_1: [u8; 4] = [0xF5, 0xFF, 0xFF, 0xFF];
/// Smaller timestamps count from another instant than 1970 (contract section 2).
const UNIX_TIMES: u64 = 100_000_000_000_000_000;
/// A chunk is read in pieces to be checked: it may be as large as the file.
const CHECKED_PIECE: u64 = 1 << 20;
