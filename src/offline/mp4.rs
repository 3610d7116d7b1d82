//! Encoded pictures to an MP4 file (ISO/IEC 14496-12 and -15), through `shiguredo_mp4`: the
//! tables stand in front of the pictures, and the first picture is shown at time 0.

mod vui;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use shiguredo_mp4::bitstream::h264::{H264SampleEntryConfig, LengthSize, build_avc1_box};
use shiguredo_mp4::bitstream::h265::{
    H265ConstantFrameRate, H265SampleEntryConfig, build_hvc1_box,
};
use shiguredo_mp4::boxes::{SampleEntry, UnknownBox};
use shiguredo_mp4::mux::{
    Mp4FileMuxer, Mp4FileMuxerOptions, Sample, estimate_maximum_moov_box_size,
};
use shiguredo_mp4::{BoxSize, BoxType, TrackKind};

use crate::bitstream::annexb::nal_ranges;
use crate::bitstream::sps::Colour;
use crate::bitstream::{NalKind, NalUnit, ParameterSets};
use crate::encode::{Codec, EncodedPicture};
use crate::time::MediaTime;

/// Writes one video track.
pub struct Mp4Writer {
    file: BufWriter<File>,
    muxer: Mp4FileMuxer,
    codec: Codec,
    colour: Colour,
    /// Whether the encoder reorders: only then each sample has a composition offset.
    reordered: bool,
    period: Duration,
    parameters: ParameterSets,
    position: u64,
    clock: DecodeClock,
    /// The last sample; its duration is known when the next one comes.
    held: Option<Held>,
    samples: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Mp4Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Mux(String),
}

/// What is known before the first picture.
#[derive(Debug, Clone, Copy)]
pub struct Mp4Options {
    pub codec: Codec,
    pub colour: Colour,
    /// At least as many as will come: room for their tables is kept at the start of the file.
    pub pictures: usize,
    pub reordered: bool,
    /// The nominal distance of two pictures, which the last one is shown for.
    pub period: Duration,
    /// Since 1970.
    pub created: Duration,
}

struct Held {
    entry: Option<SampleEntry>,
    key: bool,
    offset: u64,
    size: usize,
    decode_tick: i64,
    composition: i64,
}

impl Mp4Writer {
    /// `file` is empty and written from its start.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn new(file: File, options: Mp4Options) -> Result<Self, Mp4Error> {
        // Beside what is estimated: composition offsets, and some changes of parameter sets.
        let per_picture = if options.reordered { 8 } else { 0 };
        let reserved = estimate_maximum_moov_box_size(&[options.pictures])
            .saturating_add(options.pictures.saturating_mul(per_picture))
            .saturating_add(SPARE_TABLE_BYTES);
        let muxer = Mp4FileMuxer::with_options(Mp4FileMuxerOptions {
            reserved_moov_box_size: reserved,
            creation_timestamp: options.created,
            ..Mp4FileMuxerOptions::default()
        })
        .map_err(mux)?;
        let mut file = BufWriter::with_capacity(WRITE_BUFFER, file);
        let head = muxer.initial_boxes_bytes();
        file.write_all(head)?;
        let position = head.len() as u64;
        Ok(Self {
            file,
            muxer,
            codec: options.codec,
            colour: options.colour,
            reordered: options.reordered,
            period: options.period,
            parameters: ParameterSets::default(),
            position,
            clock: DecodeClock::default(),
            held: None,
            samples: 0,
        })
    }

    /// Pictures taken so far.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Adds one picture, in decoding order. Parameter sets go into the sample entry and not into
    /// the sample; delimiters and filler go nowhere.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or the first picture comes without parameter sets.
    pub fn push(&mut self, picture: &EncodedPicture) -> Result<(), Mp4Error> {
        let entry = self.new_entry(&picture.data)?;
        let offset = self.position;
        let mut size = 0;
        for range in nal_ranges(&picture.data) {
            let nal = &picture.data[range];
            let kind = NalUnit(nal).kind(self.codec);
            if kind.is_parameter_set()
                || matches!(kind, NalKind::AccessUnitDelimiter | NalKind::Filler)
            {
                continue;
            }
            let len = u32::try_from(nal.len()).map_err(|_| mux("a NAL unit of over 4 GiB"))?;
            self.file.write_all(&len.to_be_bytes())?;
            self.file.write_all(nal)?;
            size += 4 + nal.len();
        }
        self.position += size as u64;
        let decode_tick = self.clock.place(picture.dts);
        let held = Held {
            entry,
            key: picture.key,
            offset,
            size,
            decode_tick,
            composition: ticks(picture.pts) - decode_tick,
        };
        self.samples += 1;
        if let Some(before) = self.held.replace(held) {
            self.append(before, decode_tick)?;
        }
        Ok(())
    }

    /// Writes the tables; the file is whole afterwards.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or no picture came.
    pub fn finish(mut self) -> Result<u64, Mp4Error> {
        let Some(last) = self.held.take() else {
            return Err(mux("no picture to write"));
        };
        let period = ticks(MediaTime(self.period.as_nanos() as i64)).max(1);
        let end = last.decode_tick + period;
        self.append(last, end)?;
        self.file.flush()?;
        let file = self.file.get_ref();
        for (offset, bytes) in self.muxer.finalize().map_err(mux)?.offset_and_bytes_pairs() {
            file.write_all_at(bytes, offset)?;
        }
        Ok(self.samples)
    }

    fn append(&mut self, held: Held, next_tick: i64) -> Result<(), Mp4Error> {
        let duration = (next_tick - held.decode_tick).clamp(1, i64::from(u32::MAX));
        let sample = Sample {
            track_kind: TrackKind::Video,
            sample_entry: held.entry,
            keyframe: held.key,
            timescale: NonZeroU32::new(TIMESCALE).expect("90000 is not zero"),
            duration: duration as u32,
            composition_time_offset: self.reordered.then_some(held.composition),
            data_offset: held.offset,
            data_size: held.size,
        };
        self.muxer.append_sample(&sample).map_err(mux)
    }

    /// A sample entry, if the picture brings other parameter sets than those in force.
    fn new_entry(&mut self, data: &[u8]) -> Result<Option<SampleEntry>, Mp4Error> {
        let nals = || nal_ranges(data).map(|range| NalUnit(&data[range]));
        let brings = nals().any(|nal| nal.kind(self.codec).is_parameter_set());
        if !brings || self.parameters.same_as(self.codec, nals()) {
            return Ok(None);
        }
        let sets = ParameterSets::collect(self.codec, self.parameters.generation + 1, nals());
        if !sets.is_complete(self.codec) {
            return Ok(None);
        }
        let entry = self.sample_entry(&sets)?;
        self.parameters = sets;
        Ok(Some(entry))
    }

    fn sample_entry(&self, sets: &ParameterSets) -> Result<SampleEntry, Mp4Error> {
        let length_size = LengthSize::FourBytes;
        let colour = colour_box(self.colour);
        let sps: Vec<_> = sets
            .sps
            .iter()
            .map(|sps| vui::with_colour(self.codec, sps, self.colour))
            .collect();
        Ok(match self.codec {
            Codec::H264 => {
                let config = H264SampleEntryConfig { length_size };
                let mut entry = build_avc1_box(&sps, &sets.pps, &config).map_err(mux)?;
                entry.unknown_boxes.push(colour);
                SampleEntry::Avc1(entry)
            }
            Codec::H265 => {
                let config = H265SampleEntryConfig {
                    length_size,
                    avg_frame_rate: H265SampleEntryConfig::AVG_FRAME_RATE_UNSPECIFIED,
                    constant_frame_rate: H265ConstantFrameRate::Unknown,
                };
                let mut entry = build_hvc1_box(&sets.vps, &sps, &sets.pps, &config).map_err(mux)?;
                entry.unknown_boxes.push(colour);
                SampleEntry::Hvc1(entry)
            }
        })
    }
}

/// Decoding times in ticks from 0, strictly increasing, each rounded from the origin so that
/// rounding does not add up.
#[derive(Debug, Default)]
struct DecodeClock {
    first: Option<i64>,
    last: i64,
}

impl DecodeClock {
    fn place(&mut self, dts: MediaTime) -> i64 {
        let tick = ticks(dts);
        let Some(first) = self.first else {
            self.first = Some(tick);
            return 0;
        };
        self.last = (tick - first).max(self.last + 1);
        self.last
    }
}

/// On a clock of 90 kHz, rounded half up.
fn ticks(time: MediaTime) -> i64 {
    (i128::from(time.as_nanos()) * 18 + 100_000).div_euclid(200_000) as i64
}

/// `colr` of type `nclx` (ISO/IEC 14496-12 section 12.1.5).
fn colour_box(colour: Colour) -> UnknownBox {
    let mut payload = b"nclx".to_vec();
    for code in [colour.primaries, colour.transfer, colour.matrix] {
        payload.extend(u16::from(code).to_be_bytes());
    }
    payload.push(if colour.full_range { 0x80 } else { 0 });
    UnknownBox {
        box_type: BoxType::Normal(*b"colr"),
        box_size: BoxSize::U32(8 + payload.len() as u32),
        payload,
    }
}

fn mux(error: impl std::fmt::Display) -> Mp4Error {
    Mp4Error::Mux(error.to_string())
}

const TIMESCALE: u32 = 90_000;
const WRITE_BUFFER: usize = 1 << 20;
const SPARE_TABLE_BYTES: usize = 8 << 10;

#[cfg(test)]
mod tests;
