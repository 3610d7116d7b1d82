use super::*;
use crate::encode::{FrameRate, Preset, RateControl, Tuning};
use crate::frame::{EncodedPlane, FrameInfo, PictureShape, PixelFormat, PlaneLayout, Snapshot};
use crate::time::MediaTime;
use crate::trace::FrameTrace;

const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xC0, 0x1E];
const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xCE, 0x3C, 0x80];
const IDR: &[u8] = &[0, 0, 0, 1, 0x65, 0x88, 0x84];
const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9A, 0x02];
const AUD: &[u8] = &[0, 0, 0, 1, 0x09, 0xF0];

fn info(codec: Option<Codec>, size: u32, keyframe: bool) -> FrameInfo {
    FrameInfo {
        frame_id: 1,
        capture_ts_ns: 5,
        format: PixelFormat::Gray,
        left: PlaneLayout {
            width: 2,
            height: 2,
            stride: 2,
            offset: 0,
            size: 4,
        },
        encoded: codec.map(|codec| EncodedPlane {
            codec,
            keyframe,
            offset: 4,
            size,
            pts_ns: 5,
        }),
        frame_rate: None,
        payload_size: 4 + size,
    }
}

fn config(codec: Codec, encoded: Option<Codec>) -> EncoderConfig {
    EncoderConfig {
        codec,
        shape: PictureShape {
            width: 2,
            height: 2,
            format: PixelFormat::Gray,
            encoded,
        },
        frame_rate: FrameRate::THIRTY,
        rate: RateControl::Bitrate(1_000_000),
        gop: 30,
        b_frames: 0,
        intra_refresh: false,
        preset: Preset::Fastest,
        tuning: Tuning::LowLatency,
        surfaces_in_flight: 1,
    }
}

/// A producer in front of a passthrough.
struct Bench {
    passthrough: Passthrough,
    out: EncodedQueue,
}

impl Bench {
    fn new() -> Self {
        Self {
            passthrough: Passthrough::open(&config(Codec::H264, Some(Codec::H264))).unwrap(),
            out: EncodedQueue::new(),
        }
    }

    /// The bytes that come out for this access unit and whether they are called a key frame.
    fn pass(
        &mut self,
        parts: &[&[u8]],
        flag: bool,
        gap: bool,
        epoch: u32,
    ) -> Option<(Vec<u8>, bool)> {
        let unit = parts.concat();
        let mut payload = vec![0_u8; 4];
        payload.extend(&unit);
        let info = info(Some(Codec::H264), unit.len() as u32, flag);
        let mut surface = self.passthrough.surfaces().take().unwrap();
        surface
            .fill(&FrameView::from_slice(info, &payload))
            .unwrap();
        let snapshot = Snapshot {
            info,
            surface,
            epoch,
            gap,
            time: MediaTime(7),
            trace: FrameTrace::default(),
        };
        let picture = Picture {
            snapshot,
            force_key: false,
        };
        self.passthrough.encode(picture, &mut self.out).unwrap();
        let coded = self.out.pop()?;
        let result = (coded.data.clone(), coded.key);
        assert_eq!((coded.pts, coded.dts), (MediaTime(7), MediaTime(7)));
        self.out.recycle(coded.data);
        Some(result)
    }
}

#[test]
fn it_starts_at_a_key_frame_and_waits_for_the_next_after_a_gap() {
    let mut bench = Bench::new();
    assert_eq!(bench.pass(&[P], false, false, 0), None);
    let key = bench.pass(&[SPS, PPS, IDR], true, false, 0);
    assert_eq!(key, Some(([SPS, PPS, IDR].concat(), true)));
    assert_eq!(bench.pass(&[P], false, false, 0), Some((P.to_vec(), false)));
    assert_eq!(bench.pass(&[P], false, true, 0), None);
    assert_eq!(bench.pass(&[P], false, false, 0), None);
    assert!(bench.pass(&[SPS, PPS, IDR], true, false, 0).is_some());
    // a new epoch is a gap, whatever the flag beside it says
    assert_eq!(bench.pass(&[P], false, false, 1), None);
    assert_eq!(bench.out.left_out(), 4);
}

#[test]
fn the_bytes_say_what_is_a_key_frame_not_the_flag() {
    let mut bench = Bench::new();
    assert_eq!(bench.pass(&[SPS, PPS, P], true, false, 0), None);
    let key = bench.pass(&[SPS, PPS, IDR], false, false, 0);
    assert!(matches!(key, Some((_, true))));
}

#[test]
fn a_key_frame_without_parameter_sets_gets_the_last_ones() {
    let mut bench = Bench::new();
    // an IDR alone cannot be decoded by anyone who joins there
    assert_eq!(bench.pass(&[IDR], true, false, 0), None);
    // sets in an access unit that is left out are remembered all the same
    assert_eq!(bench.pass(&[SPS, PPS], false, false, 0), None);
    let key = bench.pass(&[IDR], true, false, 0);
    assert_eq!(key, Some(([SPS, PPS, IDR].concat(), true)));
}

#[test]
fn access_unit_delimiters_are_dropped() {
    let mut bench = Bench::new();
    let key = bench.pass(&[AUD, SPS, PPS, IDR], true, false, 0);
    assert_eq!(key, Some(([SPS, PPS, IDR].concat(), true)));
    let next = bench.pass(&[AUD, P], false, false, 0);
    assert_eq!(next, Some((P.to_vec(), false)));
}

#[test]
fn a_frame_without_an_access_unit_of_the_codec_does_not_fill_a_surface() {
    let passthrough = Passthrough::open(&config(Codec::H264, Some(Codec::H264))).unwrap();
    let mut surface = passthrough.surfaces().take().unwrap();
    let payload = [0_u8; 64];
    for codec in [None, Some(Codec::H265)] {
        let view = FrameView::from_slice(info(codec, 0, false), &payload);
        assert!(matches!(surface.fill(&view), Err(FillError::NoAccessUnit)));
    }
}

#[test]
fn a_producer_without_the_wanted_codec_is_refused_with_the_way_out() {
    let refusal = |encoded| {
        let result = Passthrough::open(&config(Codec::H264, encoded));
        result.err().unwrap().to_string()
    };
    assert!(refusal(Some(Codec::H265)).contains("--codec h265"));
    assert!(refusal(None).contains("--encoder auto"));
}

#[test]
fn a_surface_of_another_pool_is_refused() {
    let mut bench = Bench::new();
    let other = Passthrough::open(&config(Codec::H264, Some(Codec::H264))).unwrap();
    let snapshot = Snapshot {
        info: info(Some(Codec::H264), 0, false),
        surface: other.surfaces().take().unwrap(),
        epoch: 0,
        gap: false,
        time: MediaTime(0),
        trace: FrameTrace::default(),
    };
    let picture = Picture {
        snapshot,
        force_key: true,
    };
    assert!(matches!(
        bench.passthrough.encode(picture, &mut bench.out),
        Err(EncodeError::ForeignSurface { .. })
    ));
}
