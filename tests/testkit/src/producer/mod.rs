//! A cv-mmap producer: segment, sync socket, and the order in which the real one writes them
//! (contract `cv-mmap.md` sections 2, 3 and 5.3).
//!
//! [`Producer::publish`] is the four steps of one frame. Each of them is public, so that a fault can
//! stand between two: a writer that stops half way, repeats a frame, or announces what is not there.

pub mod faults;
pub mod segment;
pub mod wire;

use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::bitstream::Codec;
use crate::names::Names;
use crate::noise::Noise;
use crate::pattern::{self, PixelFormat};
use segment::Segment;
use wire::{Description, EncodedPlane, Plane};

/// How the metadata block is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataVersion {
    V1,
    /// Minor version 0, and 1 for a frame that carries an encoded plane: the real producer's way.
    V2,
    /// Minor version 1 on every frame.
    V2Sparse,
}

impl FromStr for MetadataVersion {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "v1" => Ok(Self::V1),
            "v2.0" | "v2" => Ok(Self::V2),
            "v2.1" => Ok(Self::V2Sparse),
            _ => Err(format!("'{name}' is none of v1, v2.0, v2.1")),
        }
    }
}

/// Frames per second as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    pub numerator: u16,
    pub denominator: u16,
}

impl FrameRate {
    /// Rounded down, as the real producer computes it.
    pub fn interval_ns(self) -> u64 {
        1_000_000_000 * u64::from(self.denominator) / u64::from(self.numerator)
    }
}

impl FromStr for FrameRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is neither a rate such as 30 or 29.97 nor a fraction such as 30000/1001"
            )
        };
        let (numerator, denominator) = match text.split_once('/') {
            Some((n, d)) => (
                n.parse().map_err(|_| wrong())?,
                d.parse().map_err(|_| wrong())?,
            ),
            None => match text.parse::<u16>() {
                Ok(rate) => (rate, 1),
                Err(_) => {
                    let rate: f64 = text.parse().map_err(|_| wrong())?;
                    // Hundredths: the fields of the metadata hold 16 bits each.
                    let hundredths = (rate * 100.0).round();
                    if !(1.0..=65535.0).contains(&hundredths) {
                        return Err(wrong());
                    }
                    (hundredths as u16, 100)
                }
            },
        };
        if numerator == 0 || denominator == 0 {
            return Err(wrong());
        }
        Ok(Self {
            numerator,
            denominator,
        })
    }
}

/// The shape of a stream; it stays until [`Producer::reconfigure`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub format: PixelFormat,
    pub width: u16,
    pub height: u16,
    /// Bytes after each row's pixels.
    pub row_padding: u32,
    pub metadata: MetadataVersion,
    pub frame_rate: FrameRate,
    pub depth: bool,
    pub confidence: bool,
}

/// One frame to publish. Pictures are tight; the producer adds the padding.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub id: u32,
    pub capture_ns: u64,
    pub left: &'a [u8],
    pub depth: &'a [f32],
    pub confidence: &'a [f32],
    pub encoded: Option<Encoded<'a>>,
}

/// One access unit, Annex B.
#[derive(Debug, Clone, Copy)]
pub struct Encoded<'a> {
    pub bytes: &'a [u8],
    pub codec: Codec,
    pub key_frame: bool,
}

#[derive(Debug, Error)]
pub enum ProducerError {
    #[error("shared memory segment '{name}': {source}")]
    Segment { name: String, source: io::Error },
    #[error("sync socket {endpoint}: {source}")]
    Socket {
        endpoint: String,
        source: zmq::Error,
    },
    #[error("{0} bytes of payload do not fit a segment (4 GiB)")]
    TooLarge(u64),
    #[error("a {what} of {found} where {wanted} fit the shape")]
    WrongSize {
        what: &'static str,
        found: usize,
        wanted: usize,
    },
}

/// A running producer. Dropping it removes its names, as the real one does on SIGINT; see also
/// [`Producer::abandon`].
pub struct Producer {
    names: Names,
    shape: Shape,
    segment: Segment,
    socket: zmq::Socket,
    /// Kept for its destructor, which flushes the socket.
    _context: zmq::Context,
    description: Description,
    noise: Noise,
    subscribers: i64,
    keep_names: bool,
}

impl Producer {
    /// Binds the socket, then creates the segment, which has size 0 until [`Producer::initialise`].
    ///
    /// # Errors
    ///
    /// If either cannot be had.
    pub fn open(names: &Names, shape: Shape) -> Result<Self, ProducerError> {
        let context = zmq::Context::new();
        let socket_error = |source| ProducerError::Socket {
            endpoint: names.zmq_endpoint.clone(),
            source,
        };
        // XPUB sends what PUB sends, and also tells who subscribes.
        let socket = context.socket(zmq::XPUB).map_err(socket_error)?;
        // A peer that stopped reading must not hold up the exit for ever.
        socket.set_linger(500).map_err(socket_error)?;
        socket.bind(&names.zmq_endpoint).map_err(socket_error)?;
        if let Some(path) = names.zmq_endpoint.strip_prefix("ipc://") {
            use std::os::unix::fs::PermissionsExt;
            // The real producer lets everyone connect.
            let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777));
        }
        let segment = Segment::open(&names.shm_name).map_err(|source| ProducerError::Segment {
            name: names.shm_name.clone(),
            source,
        })?;
        let description = describe(&shape)?;
        Ok(Producer {
            names: names.clone(),
            shape,
            segment,
            socket,
            _context: context,
            description,
            noise: Noise::new(unix_ns()),
            subscribers: 0,
            keep_names: false,
        })
    }

    /// Sizes the region (which can shrink it), then writes metadata that describes frame 0 with no frame
    /// behind it, and announces nothing. Every start and every change of shape does this.
    ///
    /// # Errors
    ///
    /// If the memory is not to be had.
    pub fn initialise(&mut self) -> Result<(), ProducerError> {
        let first = Description {
            frame_id: 0,
            // The wall clock, even where the frames will carry media time.
            capture_ns: unix_ns(),
            depth: None,
            confidence: None,
            encoded: None,
            sparse: false,
            ..self.description
        };
        self.segment
            .initialise(first.payload_bytes())
            .map_err(|e| self.segment_error(e))?;
        self.segment.write_metadata(&block(&self.shape, &first));
        Ok(())
    }

    /// Another shape from the next frame on, in the same segment.
    ///
    /// # Errors
    ///
    /// As [`Producer::initialise`].
    pub fn reconfigure(&mut self, shape: Shape) -> Result<(), ProducerError> {
        self.description = describe(&shape)?;
        self.shape = shape;
        self.initialise()
    }

    /// Waits until somebody subscribes. False if `stop` was set or the time ran out.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn wait_for_reader(
        &mut self,
        limit: Option<Duration>,
        stop: &AtomicBool,
    ) -> Result<bool, ProducerError> {
        let start = Instant::now();
        loop {
            self.note_subscriptions()?;
            if self.subscribers > 0 {
                return Ok(true);
            }
            // Relaxed: the flag guards no other data.
            if stop.load(Ordering::Relaxed) || limit.is_some_and(|limit| start.elapsed() >= limit) {
                return Ok(false);
            }
            match self.socket.poll(zmq::POLLIN, 50) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(source) => return Err(self.socket_error(source)),
            }
        }
    }

    /// Payload, metadata, sync message, in this order.
    ///
    /// # Errors
    ///
    /// If a plane's size is not the shape's, or the region cannot grow.
    pub fn publish(&mut self, frame: &Frame) -> Result<(), ProducerError> {
        self.describe_frame(frame)?;
        self.write_payload(frame)?;
        self.write_metadata();
        self.announce()
    }

    /// Step 1: says what the next frame is, and makes room for it.
    ///
    /// # Errors
    ///
    /// As [`Producer::publish`].
    pub fn describe_frame(&mut self, frame: &Frame) -> Result<(), ProducerError> {
        self.check(frame)?;
        let encoded = match frame.encoded {
            Some(unit) => Some(EncodedPlane {
                size: u32::try_from(unit.bytes.len())
                    .map_err(|_| ProducerError::TooLarge(unit.bytes.len() as u64))?,
                codec: unit.codec,
                key_frame: unit.key_frame,
                pts_ns: frame.capture_ns,
            }),
            None => None,
        };
        self.description = Description {
            frame_id: frame.id,
            capture_ns: frame.capture_ns,
            encoded,
            ..self.description
        };
        let payload = self.description.payload_bytes();
        if payload > u64::from(u32::MAX) {
            return Err(ProducerError::TooLarge(payload));
        }
        self.segment
            .make_room(payload)
            .map_err(|e| self.segment_error(e))?;
        Ok(())
    }

    /// Step 2: the pictures, then the access unit. A reader can see this half done.
    ///
    /// # Errors
    ///
    /// If a plane's size is not the shape's.
    pub fn write_payload(&mut self, frame: &Frame) -> Result<(), ProducerError> {
        self.check(frame)?;
        let tight = usize::from(self.shape.width) * self.shape.format.channels();
        let left = self.description.left;
        let mut room = self.segment.payload_mut();
        let rows = take(&mut room, left.size as usize);
        if left.stride as usize == tight {
            rows.copy_from_slice(frame.left);
        } else {
            for (row, source) in rows
                .chunks_exact_mut(left.stride as usize)
                .zip(frame.left.chunks_exact(tight))
            {
                row[..tight].copy_from_slice(source);
                // Visible if somebody takes the padding for pixels.
                row[tight..].fill(0xA5);
            }
        }
        for plane in [frame.depth, frame.confidence] {
            let cells = take(&mut room, plane.len() * 4);
            for (cell, value) in cells.chunks_exact_mut(4).zip(plane) {
                cell.copy_from_slice(&value.to_le_bytes());
            }
        }
        if let Some(unit) = frame.encoded {
            take(&mut room, unit.bytes.len()).copy_from_slice(unit.bytes);
        }
        Ok(())
    }

    /// Step 3: the 256 bytes.
    pub fn write_metadata(&mut self) {
        self.segment
            .write_metadata(&block(&self.shape, &self.description));
    }

    /// Step 4: the sync message. Never waits: a slow reader loses messages, as with the real one.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn announce(&mut self) -> Result<(), ProducerError> {
        self.note_subscriptions()?;
        let message = wire::sync(
            self.description.frame_id,
            self.description.capture_ns,
            &self.names.label,
            self.noise.next_u64(),
        );
        match self.socket.send(&message[..], zmq::DONTWAIT) {
            Ok(()) | Err(zmq::Error::EAGAIN) => Ok(()),
            Err(source) => Err(self.socket_error(source)),
        }
    }

    /// Ends without removing the names: what a killed producer leaves behind.
    pub fn abandon(mut self) {
        self.keep_names = true;
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// For faults that damage the region itself.
    pub fn segment_mut(&mut self) -> &mut Segment {
        &mut self.segment
    }

    fn check(&self, frame: &Frame) -> Result<(), ProducerError> {
        let pixels = usize::from(self.shape.width) * usize::from(self.shape.height);
        let cells = |wanted| if wanted { pixels } else { 0 };
        for (what, found, wanted) in [
            (
                "picture",
                frame.left.len(),
                pixels * self.shape.format.channels(),
            ),
            ("depth plane", frame.depth.len(), cells(self.shape.depth)),
            (
                "confidence plane",
                frame.confidence.len(),
                cells(self.shape.confidence),
            ),
        ] {
            if found != wanted {
                return Err(ProducerError::WrongSize {
                    what,
                    found,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// Reads what subscribers sent; unread, it would pile up.
    fn note_subscriptions(&mut self) -> Result<(), ProducerError> {
        loop {
            match self.socket.recv_bytes(zmq::DONTWAIT) {
                Ok(message) => match message.first() {
                    Some(1) => self.subscribers += 1,
                    Some(0) => self.subscribers -= 1,
                    _ => {}
                },
                Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => return Ok(()),
                Err(source) => return Err(self.socket_error(source)),
            }
        }
    }

    fn segment_error(&self, source: io::Error) -> ProducerError {
        ProducerError::Segment {
            name: self.names.shm_name.clone(),
            source,
        }
    }

    fn socket_error(&self, source: zmq::Error) -> ProducerError {
        ProducerError::Socket {
            endpoint: self.names.zmq_endpoint.clone(),
            source,
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if self.keep_names {
            return;
        }
        self.segment.unlink();
        let _ = self.socket.unbind(&self.names.zmq_endpoint);
        if let Some(path) = self.names.zmq_endpoint.strip_prefix("ipc://") {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Nanoseconds since 1970 by the system clock.
pub fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// Memory for pictures of one shape, filled with the pattern.
#[derive(Debug)]
pub struct PatternBuffers {
    pub left: Vec<u8>,
    pub depth: Vec<f32>,
    pub confidence: Vec<f32>,
}

impl PatternBuffers {
    pub fn new(shape: &Shape) -> Self {
        let pixels = usize::from(shape.width) * usize::from(shape.height);
        PatternBuffers {
            left: vec![0; pixels * shape.format.channels()],
            depth: vec![0.0; if shape.depth { pixels } else { 0 }],
            confidence: vec![0.0; if shape.confidence { pixels } else { 0 }],
        }
    }

    /// Draws frame `id`; the picture too unless it comes from elsewhere.
    pub fn draw(&mut self, shape: &Shape, id: u32, picture: bool) {
        let (width, height) = (usize::from(shape.width), usize::from(shape.height));
        if picture {
            pattern::fill(shape.format, id, width, height, &mut self.left);
        }
        pattern::fill_depth(id, width, &mut self.depth);
        pattern::fill_confidence(id, width, &mut self.confidence);
    }

    pub fn frame<'a>(
        &'a self,
        id: u32,
        capture_ns: u64,
        encoded: Option<Encoded<'a>>,
    ) -> Frame<'a> {
        Frame {
            id,
            capture_ns,
            left: &self.left,
            depth: &self.depth,
            confidence: &self.confidence,
            encoded,
        }
    }
}

fn describe(shape: &Shape) -> Result<Description, ProducerError> {
    let (width, height) = (u32::from(shape.width), u32::from(shape.height));
    let plane = |row: u64| {
        let size = row * u64::from(height);
        match (u32::try_from(row), u32::try_from(size)) {
            (Ok(stride), Ok(size)) => Ok(Plane {
                width,
                height,
                stride,
                size,
            }),
            _ => Err(ProducerError::TooLarge(size)),
        }
    };
    let row = u64::from(width) * shape.format.channels() as u64 + u64::from(shape.row_padding);
    let floats = |wanted: bool| wanted.then(|| plane(u64::from(width) * 4)).transpose();
    Ok(Description {
        frame_id: 0,
        capture_ns: 0,
        format: shape.format,
        left: plane(row)?,
        depth: floats(shape.depth)?,
        confidence: floats(shape.confidence)?,
        encoded: None,
        sparse: shape.metadata == MetadataVersion::V2Sparse,
        frame_rate: (shape.frame_rate.numerator, shape.frame_rate.denominator),
    })
}

fn block(shape: &Shape, description: &Description) -> [u8; wire::METADATA_BYTES] {
    match shape.metadata {
        MetadataVersion::V1 => wire::metadata_v1(description),
        MetadataVersion::V2 | MetadataVersion::V2Sparse => wire::metadata_v2(description),
    }
}

fn take<'a>(room: &mut &'a mut [u8], bytes: usize) -> &'a mut [u8] {
    let (head, tail) = std::mem::take(room).split_at_mut(bytes);
    *room = tail;
    head
}
