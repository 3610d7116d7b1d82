//! avcC and hvcC, read and compared with the parameter sets in them (ISO/IEC 14496-15 sections 5.3.3.1 and
//! 8.3.3.1; contract `rtp-rtmp.md` section 15).

use thiserror::Error;

use crate::bitstream::sps::{self, Sps};
use crate::bitstream::{Codec, NalClass};

/// A record that is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigRecord {
    /// VPS, SPS, PPS in the order of the record, without start codes.
    pub parameter_sets: Vec<Vec<u8>>,
    pub sps: Sps,
    /// What readers live with.
    pub warnings: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    #[error("the record is cut off")]
    Short,
    #[error("record version {0} instead of 1")]
    Version(u8),
    #[error("{field} is {found:#04x} instead of {wanted:#04x}")]
    Field {
        field: &'static str,
        found: u8,
        wanted: u8,
    },
    #[error("NAL unit lengths of {0} bytes; 4 are expected")]
    LengthSize(u8),
    #[error("no {0:?} in the record")]
    Missing(NalClass),
    #[error("a {found:?} where the record says {wanted:?}")]
    WrongSet { wanted: NalClass, found: NalClass },
    #[error("an SPS that cannot be read")]
    Sps,
    #[error("{0} bytes behind the record's end")]
    Trailing(usize),
}

impl ConfigRecord {
    /// # Errors
    ///
    /// If the record is cut off, contradicts itself, or contradicts its SPS.
    pub fn parse(codec: Codec, bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let version = reader.byte()?;
        if version != 1 {
            return Err(RecordError::Version(version));
        }
        match codec {
            Codec::H264 => avc(&mut reader),
            Codec::H265 => hevc(&mut reader),
        }
    }
}

fn avc(reader: &mut Reader) -> Result<ConfigRecord, RecordError> {
    let profile = reader.take(3)?;
    let lengths = reader.byte()?;
    expect("reserved bits and lengthSizeMinusOne", lengths | 3, 0xFF)?;
    if lengths & 3 != 3 {
        return Err(RecordError::LengthSize((lengths & 3) + 1));
    }
    let mut sets = Vec::new();
    let count = reader.byte()?;
    expect(
        "reserved bits ahead of the number of SPS",
        count & 0xE0,
        0xE0,
    )?;
    reader.sets(
        Codec::H264,
        NalClass::Sps,
        usize::from(count & 0x1F),
        &mut sets,
    )?;
    let count = reader.byte()?;
    reader.sets(Codec::H264, NalClass::Pps, usize::from(count), &mut sets)?;
    let sps = checked_sps(Codec::H264, &sets)?;
    for (field, found, wanted) in [
        ("AVCProfileIndication", profile[0], sps.profile[0]),
        ("profile_compatibility", profile[1], sps.profile[1]),
        ("AVCLevelIndication", profile[2], sps.profile[2]),
    ] {
        expect(field, found, wanted)?;
    }
    let mut warnings = Vec::new();
    if matches!(profile[0], 100 | 110 | 122 | 144 | 244) {
        if reader.0.is_empty() {
            warnings.push("an avcC of a High profile without chroma format and bit depths");
        } else {
            expect("chroma_format", reader.byte()?, 0xFC | sps.chroma_format)?;
            expect(
                "bit_depth_luma",
                reader.byte()?,
                0xF8 | sps.bit_depth_luma.wrapping_sub(8),
            )?;
            expect(
                "bit_depth_chroma",
                reader.byte()?,
                0xF8 | sps.bit_depth_chroma.wrapping_sub(8),
            )?;
            for _ in 0..reader.byte()? {
                reader.nal()?;
            }
        }
    }
    reader.end()?;
    Ok(ConfigRecord {
        parameter_sets: sets,
        sps,
        warnings,
    })
}

fn hevc(reader: &mut Reader) -> Result<ConfigRecord, RecordError> {
    let profile = reader.take(12)?;
    let segmentation = reader.take(2)?;
    expect(
        "reserved bits ahead of min_spatial_segmentation_idc",
        segmentation[0] & 0xF0,
        0xF0,
    )?;
    expect(
        "reserved bits ahead of parallelismType",
        reader.byte()? & 0xFC,
        0xFC,
    )?;
    let (chroma, luma_depth, chroma_depth) = (reader.byte()?, reader.byte()?, reader.byte()?);
    reader.take(2)?; // avgFrameRate
    let layers = reader.byte()?;
    if layers & 3 != 3 {
        return Err(RecordError::LengthSize((layers & 3) + 1));
    }
    let mut sets = Vec::new();
    for _ in 0..reader.byte()? {
        let head = reader.byte()?;
        expect("reserved bit of an array", head & 0x40, 0)?;
        let count = reader.take(2)?;
        let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
        let class = Codec::H265.classify(&[(head & 0x3F) << 1, 1]);
        reader.sets(Codec::H265, class, count, &mut sets)?;
    }
    for needed in [NalClass::Vps, NalClass::Sps, NalClass::Pps] {
        if !sets.iter().any(|set| Codec::H265.classify(set) == needed) {
            return Err(RecordError::Missing(needed));
        }
    }
    let sps = checked_sps(Codec::H265, &sets)?;
    for (&found, wanted) in profile.iter().zip(sps.profile) {
        expect("a byte of profile, tier and level", found, wanted)?;
    }
    expect("chromaFormat", chroma, 0xFC | sps.chroma_format)?;
    expect(
        "bitDepthLuma",
        luma_depth,
        0xF8 | sps.bit_depth_luma.wrapping_sub(8),
    )?;
    expect(
        "bitDepthChroma",
        chroma_depth,
        0xF8 | sps.bit_depth_chroma.wrapping_sub(8),
    )?;
    let mut warnings = Vec::new();
    if layers >> 3 & 7 != sps.temporal_layers {
        warnings.push("numTemporalLayers is not the SPS's");
    }
    if (layers >> 2 & 1 == 1) != sps.temporal_id_nested {
        warnings.push("temporalIdNested is not the SPS's");
    }
    reader.end()?;
    Ok(ConfigRecord {
        parameter_sets: sets,
        sps,
        warnings,
    })
}

fn checked_sps(codec: Codec, sets: &[Vec<u8>]) -> Result<Sps, RecordError> {
    let first = sets.iter().find(|set| codec.classify(set) == NalClass::Sps);
    let first = first.ok_or(RecordError::Missing(NalClass::Sps))?;
    sps::parse(codec, first).ok_or(RecordError::Sps)
}

fn expect(field: &'static str, found: u8, wanted: u8) -> Result<(), RecordError> {
    if found == wanted {
        Ok(())
    } else {
        Err(RecordError::Field {
            field,
            found,
            wanted,
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, RecordError> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(RecordError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn nal(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.take(2)?;
        self.take(usize::from(u16::from_be_bytes([length[0], length[1]])))
    }

    fn sets(
        &mut self,
        codec: Codec,
        wanted: NalClass,
        count: usize,
        sets: &mut Vec<Vec<u8>>,
    ) -> Result<(), RecordError> {
        if count == 0 {
            return Err(RecordError::Missing(wanted));
        }
        for _ in 0..count {
            let nal = self.nal()?;
            let found = codec.classify(nal);
            if found != wanted {
                return Err(RecordError::WrongSet { wanted, found });
            }
            sets.push(nal.to_vec());
        }
        Ok(())
    }

    fn end(&self) -> Result<(), RecordError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(RecordError::Trailing(self.0.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The SPS of the hand-made case in `bitstream::sps`: Baseline, 30x28.
    const SPS: &[u8] = &[
        0x67,
        66,
        0xC0,
        30,
        0b1101_1010,
        0b0010_0101,
        0b1110_1010,
        0b1101_0000,
    ];
    const PPS: &[u8] = &[0x68, 0xCE];

    #[rustfmt::skip]
    fn record() -> Vec<u8> {
        let mut bytes = vec![1, 66, 0xC0, 30, 0xFF, 0xE1, 0, 8];
        bytes.extend(SPS);
        bytes.extend([1, 0, 2]);
        bytes.extend(PPS);
        bytes
    }

    #[test]
    fn an_avcc_is_read_and_compared_with_its_sps() {
        let parsed = ConfigRecord::parse(Codec::H264, &record()).expect("a record");
        assert_eq!(parsed.parameter_sets, [SPS.to_vec(), PPS.to_vec()]);
        assert_eq!((parsed.sps.width, parsed.sps.height), (30, 28));
        let change = |at: usize, value: u8| {
            let mut bytes = record();
            bytes[at] = value;
            ConfigRecord::parse(Codec::H264, &bytes).expect_err("one byte is wrong")
        };
        assert_eq!(change(0, 0), RecordError::Version(0));
        assert_eq!(
            change(1, 77),
            RecordError::Field {
                field: "AVCProfileIndication",
                found: 77,
                wanted: 66
            }
        );
        assert_eq!(change(4, 0xFD), RecordError::LengthSize(2));
        assert_eq!(change(5, 0xE0), RecordError::Missing(NalClass::Sps));
        assert_eq!(
            change(8, 0x68),
            RecordError::WrongSet {
                wanted: NalClass::Sps,
                found: NalClass::Pps
            }
        );
        let mut long = record();
        long.push(0);
        assert_eq!(
            ConfigRecord::parse(Codec::H264, &long),
            Err(RecordError::Trailing(1))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), at in 0_usize..19, value: u8) {
            for codec in [Codec::H264, Codec::H265] {
                let _ = ConfigRecord::parse(codec, &bytes);
                let _ = ConfigRecord::parse(codec, &[&[1], &bytes[..]].concat());
            }
            let mut changed = record();
            changed[at] = value;
            let _ = ConfigRecord::parse(Codec::H264, &changed);
        }
    }
}
