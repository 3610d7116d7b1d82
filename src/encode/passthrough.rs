//! The producer's own access units (metadata v2.1): no decoding, no encoding.

use std::any::Any;

use crate::bitstream::{AccessUnitPool, NalKind, NalUnit, annexb};
use crate::frame::{FillError, FrameView, Surface, SurfaceMemory, SurfacePool};

use super::registry::Announce;
use super::{
    Codec, EncodeError, EncodedPicture, EncodedQueue, EncoderBackend, EncoderConfig, Picture,
};

/// The name that the operator knows it by.
pub const NAME: &str = "passthrough";

/// Hands the producer's access units on.
///
/// A picture whose predecessors are not all there cannot be decoded, and over shared memory some
/// get lost (contract section 2.3, "AU pairing"): after a gap it leaves pictures out, counted by
/// [`EncodedQueue::leave_out`], until the next one from which decoding can start. What starts
/// decoding is read from the bytes; the producer's flag is not trusted. It cannot make a key
/// frame: `Picture::force_key` has no effect.
pub struct Passthrough {
    codec: Codec,
    pool: SurfacePool,
    /// True until a picture has come from which decoding can start.
    waits_for_key: bool,
    epoch: u32,
    /// The last parameter sets, with start codes: for key frames that come without.
    sets: Vec<u8>,
    warned: bool,
}

/// Opens it.
///
/// # Errors
///
/// [`EncodeError::Open`] if the producer sends no access units, or those of the other codec.
pub fn open(
    config: &EncoderConfig,
    _announce: &mut Announce<'_>,
) -> Result<Box<dyn EncoderBackend>, EncodeError> {
    Ok(Box::new(Passthrough::open(config)?))
}

impl Passthrough {
    /// # Errors
    ///
    /// As [`open`].
    pub fn open(config: &EncoderConfig) -> Result<Self, EncodeError> {
        let codec = config.codec;
        let refused = |reason: String| EncodeError::Open {
            encoder: NAME,
            reason,
        };
        match config.shape.encoded {
            Some(found) if found == codec => {}
            Some(found) => {
                return Err(refused(format!(
                    "the producer's access units are {found}, not {codec}: --codec {found} takes \
                     them, --encoder auto encodes its pictures as {codec}"
                )));
            }
            None => {
                return Err(refused(
                    "the producer sends no access units beside its pictures: --encoder auto \
                     encodes the pictures"
                        .to_owned(),
                ));
            }
        }
        let surfaces = (0..=config.surfaces_in_flight)
            .map(|_| Box::new(AccessUnitSurface::new(codec)) as Surface)
            .collect();
        Ok(Self {
            codec,
            pool: SurfacePool::new(surfaces),
            waits_for_key: true,
            epoch: 0,
            sets: Vec::new(),
            warned: false,
        })
    }

    /// Keeps the parameter sets of `data`, drops its access unit delimiters, and puts the kept
    /// sets in front of a key frame that comes without. Says what kind of access unit it is.
    fn prepare(&mut self, data: &mut Vec<u8>, spare: Vec<u8>) -> (Content, Vec<u8>) {
        let codec = self.codec;
        let mut content = Content::default();
        let mut plain = true;
        for range in annexb::nal_ranges(data) {
            let kind = NalUnit(&data[range]).kind(codec);
            content.key |= kind == NalKind::KeySlice;
            content.picture |= kind.is_vcl();
            content.sets |= kind.is_parameter_set();
            plain &= kind != NalKind::AccessUnitDelimiter;
        }
        if content.sets {
            self.sets.clear();
            for range in annexb::nal_ranges(data) {
                if NalUnit(&data[range.clone()]).kind(codec).is_parameter_set() {
                    self.sets.extend_from_slice(&START_CODE);
                    self.sets.extend_from_slice(&data[range]);
                }
            }
        }
        let add_sets = content.key && !content.sets;
        if plain && !add_sets {
            return (content, spare);
        }
        let mut rebuilt = spare;
        rebuilt.clear();
        if add_sets {
            rebuilt.extend_from_slice(&self.sets);
        }
        for range in annexb::nal_ranges(data) {
            if NalUnit(&data[range.clone()]).kind(codec) != NalKind::AccessUnitDelimiter {
                rebuilt.extend_from_slice(&START_CODE);
                rebuilt.extend_from_slice(&data[range]);
            }
        }
        content.sets |= add_sets && !self.sets.is_empty();
        (content, std::mem::replace(data, rebuilt))
    }
}

/// What an access unit holds.
#[derive(Debug, Clone, Copy, Default)]
struct Content {
    key: bool,
    picture: bool,
    sets: bool,
}

const START_CODE: [u8; 4] = [0, 0, 0, 1];

impl EncoderBackend for Passthrough {
    fn name(&self) -> &'static str {
        NAME
    }

    fn surfaces(&self) -> SurfacePool {
        self.pool.clone()
    }

    fn encode(&mut self, mut picture: Picture, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        let snapshot = &mut picture.snapshot;
        if snapshot.surface.pool_id() != self.pool.id() {
            return Err(EncodeError::ForeignSurface { encoder: NAME });
        }
        if snapshot.gap || snapshot.epoch != self.epoch {
            self.waits_for_key = true;
            self.epoch = snapshot.epoch;
        }
        let mut coded = EncodedPicture::of(snapshot, out.buffer());
        let surface = snapshot
            .surface
            .get_mut::<AccessUnitSurface>()
            .ok_or(EncodeError::ForeignSurface { encoder: NAME })?;
        // The bytes are taken over; the surface gets the buffer in exchange and fills it next.
        std::mem::swap(&mut coded.data, &mut surface.bytes);
        let spare = std::mem::take(&mut surface.bytes);
        let (content, spare) = self.prepare(&mut coded.data, spare);
        surface.bytes = spare;
        let starts = content.key && content.sets;
        if !content.picture || (self.waits_for_key && !starts) {
            if !self.warned {
                self.warned = true;
                log::info!(
                    "passthrough waits for a key frame with parameter sets: frame {} is left out",
                    coded.frame_id
                );
            }
            out.recycle(coded.data);
            out.leave_out();
            return Ok(());
        }
        self.waits_for_key = false;
        self.warned = false;
        coded.key = content.key;
        out.push(coded);
        Ok(())
    }

    fn flush(&mut self, _out: &mut EncodedQueue) -> Result<(), EncodeError> {
        Ok(()) // it holds nothing back
    }

    fn set_bitrate(&mut self, _bits_per_second: u32) -> Result<(), EncodeError> {
        Err(EncodeError::Unsupported {
            encoder: NAME,
            what: "another bit rate than the producer's".to_owned(),
        })
    }

    fn b_frames(&self) -> u32 {
        0
    }

    fn delay(&self) -> usize {
        0
    }
}

/// A producer's access unit on the host.
#[derive(Debug)]
pub struct AccessUnitSurface {
    codec: Codec,
    bytes: Vec<u8>,
}

impl AccessUnitSurface {
    fn new(codec: Codec) -> Self {
        Self {
            codec,
            bytes: Vec::new(),
        }
    }

    /// For sources whose access units are not in shared memory: `data` is copied in.
    ///
    /// # Errors
    ///
    /// As [`SurfaceMemory::fill`].
    pub fn set(&mut self, codec: Codec, data: &[u8]) -> Result<(), FillError> {
        if codec != self.codec {
            return Err(FillError::NoAccessUnit);
        }
        check_len(data.len())?;
        self.bytes.clear();
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl SurfaceMemory for AccessUnitSurface {
    fn fill(&mut self, view: &FrameView<'_>) -> Result<(), FillError> {
        match view.info().encoded {
            Some(plane) if plane.codec == self.codec => check_len(plane.size as usize)?,
            _ => return Err(FillError::NoAccessUnit),
        }
        view.copy_access_unit(&mut self.bytes)
            .map(|_| ())
            .ok_or(FillError::NoAccessUnit)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// The limit of everything downstream, looked at before memory is taken for what metadata says.
fn check_len(len: usize) -> Result<(), FillError> {
    if len > AccessUnitPool::LARGEST {
        return Err(FillError::Upload(format!(
            "an access unit of {len} bytes is larger than {}",
            AccessUnitPool::LARGEST
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
