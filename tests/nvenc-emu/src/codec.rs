//! The software encoders behind the fake driver, and what they are given.

/// A picture in 4:2:0 planes.
#[derive(Debug, Clone)]
pub struct I420 {
    pub width: usize,
    pub height: usize,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
}

impl I420 {
    pub fn new(width: usize, height: usize) -> Self {
        let chroma = width * height / 4;
        Self {
            width,
            height,
            y: vec![0; width * height],
            u: vec![0; chroma],
            v: vec![0; chroma],
        }
    }
}

/// Colour as a VUI says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour {
    pub full_range: bool,
    pub primaries: u32,
    pub transfer: u32,
    pub matrix: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub width: usize,
    pub height: usize,
    pub rate: (u32, u32),
    pub bitrate: u32,
    pub colour: Option<Colour>,
}

/// One picture in, one access unit in Annex B out, with parameter sets in front of every IDR.
pub trait Codec: Send {
    fn encode(&mut self, picture: &mut I420, idr: bool, out: &mut Vec<u8>) -> Result<(), String>;
    fn headers(&mut self) -> Result<Vec<u8>, String>;
    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), String>;
}

pub fn open(hevc: bool, settings: Settings) -> Result<Box<dyn Codec>, String> {
    if hevc {
        #[cfg(feature = "x265")]
        return Ok(Box::new(crate::hevc::Hevc::open(settings)?));
        #[cfg(not(feature = "x265"))]
        return Err("built without x265".to_owned());
    }
    Ok(Box::new(crate::h264::H264::open(settings)?))
}

/// NAL units of an Annex B stream, without their start codes.
pub fn nal_units(stream: &[u8]) -> Vec<&[u8]> {
    let mut starts = Vec::new();
    for at in 0..stream.len().saturating_sub(2) {
        if stream[at..at + 3] == [0, 0, 1] {
            starts.push(at + 3);
        }
    }
    starts
        .iter()
        .enumerate()
        .map(|(i, start)| {
            let end = starts.get(i + 1).map_or(stream.len(), |next| next - 3);
            let mut nal = &stream[*start..end];
            while let [rest @ .., 0] = nal {
                nal = rest;
            }
            nal
        })
        .collect()
}

/// Parameter set, picture, or other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NalKind {
    ParameterSet,
    Picture,
    Other,
}

pub fn kind_of(hevc: bool, nal: &[u8]) -> NalKind {
    let Some(first) = nal.first() else {
        return NalKind::Other;
    };
    let kind = if hevc {
        first >> 1 & 0x3F
    } else {
        first & 0x1F
    };
    match (hevc, kind) {
        (false, 7 | 8) | (true, 32..=34) => NalKind::ParameterSet,
        (false, 1..=5) | (true, 0..=31) => NalKind::Picture,
        _ => NalKind::Other,
    }
}
