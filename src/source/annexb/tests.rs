use std::io::Write;

use super::*;
use crate::encode::passthrough::Passthrough;
use crate::encode::{
    EncodedQueue, EncoderBackend, EncoderConfig, Picture, Preset, RateControl, Tuning,
};
use crate::frame::surface::I420Surface;
use crate::frame::{PictureShape, Surface, SurfaceLease, SurfacePool};

const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xC0, 0x1E];
const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xCE, 0x3C, 0x80];
const IDR: &[u8] = &[0, 0, 0, 1, 0x65, 0x88, 0x84];
const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9A, 0x02];

struct Pool(SurfacePool);

impl SurfaceSource for Pool {
    fn surface_for(&mut self, _: &FrameInfo) -> Option<SurfaceLease> {
        self.0.take()
    }
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn passthrough() -> Passthrough {
    Passthrough::open(&EncoderConfig {
        codec: Codec::H264,
        shape: PictureShape {
            width: 0,
            height: 0,
            format: PixelFormat::Gray,
            encoded: Some(Codec::H264),
        },
        frame_rate: FrameRate::THIRTY,
        rate: RateControl::Bitrate(1),
        gop: 0,
        b_frames: 0,
        intra_refresh: false,
        preset: Preset::Fastest,
        tuning: Tuning::LowLatency,
        surfaces_in_flight: 1,
    })
    .unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn every_access_unit_of_a_long_file_goes_through_unchanged() {
    // longer than a few reads, with access units larger than one
    let large = [P, &vec![0x55; CHUNK * 2 + 17]].concat();
    let mut units: Vec<Vec<u8>> = vec![[SPS, PPS, IDR].concat()];
    for n in 0..40 {
        units.push([P, &vec![0xAA; n * 997]].concat());
    }
    units.insert(7, large);
    let file = file(&units.concat());
    let mut source = AnnexBSource::open(file.path(), Codec::H264, None).unwrap();
    let mut passthrough = passthrough();
    let mut out = EncodedQueue::new();
    let mut pool = Pool(passthrough.surfaces());
    for (n, unit) in units.iter().enumerate() {
        let SourceEvent::Frame(snapshot) = source.next(soon(), &mut pool).unwrap() else {
            panic!("no frame {n}");
        };
        assert_eq!(snapshot.time.as_nanos(), n as i64 * 1_000_000_000 / 30);
        assert_eq!(snapshot.info.frame_id as usize, n);
        let picture = Picture {
            snapshot,
            force_key: false,
        };
        passthrough.encode(picture, &mut out).unwrap();
        let coded = out.pop().unwrap();
        assert!(coded.data == *unit, "access unit {n}");
        assert_eq!(coded.key, n == 0);
        out.recycle(coded.data);
    }
    assert!(matches!(
        source.next(soon(), &mut pool),
        Ok(SourceEvent::End)
    ));
    assert!(matches!(
        source.next(soon(), &mut pool),
        Ok(SourceEvent::End)
    ));
    let frames = source.counters().frames.load(Ordering::Relaxed);
    assert_eq!(frames as usize, units.len());
}

#[test]
fn without_a_free_surface_it_waits_and_loses_nothing() {
    let file = file(&[SPS, PPS, IDR, P].concat());
    let mut source = AnnexBSource::open(file.path(), Codec::H264, None).unwrap();
    let mut pool = Pool(passthrough().surfaces());
    let held: Vec<_> = std::iter::from_fn(|| pool.0.take()).collect();
    let now = Instant::now();
    assert!(matches!(source.next(now, &mut pool), Ok(SourceEvent::Idle)));
    drop(held);
    let first = source.next(soon(), &mut pool).unwrap();
    assert!(matches!(first, SourceEvent::Frame(frame) if frame.info.frame_id == 0 && !frame.gap));
}

#[test]
fn at_a_pace_it_gives_nothing_before_its_time() {
    let file = file(&[SPS, PPS, IDR, P].concat());
    let hour = FrameRate { num: 1, den: 3600 };
    let mut source = AnnexBSource::open(file.path(), Codec::H264, Some(hour)).unwrap();
    let mut pool = Pool(passthrough().surfaces());
    let first = source.next(soon(), &mut pool).unwrap();
    assert!(matches!(first, SourceEvent::Frame(_)));
    let moment = Instant::now() + Duration::from_millis(1);
    assert!(matches!(
        source.next(moment, &mut pool),
        Ok(SourceEvent::Idle)
    ));
}

#[test]
fn a_surface_of_an_encoder_that_encodes_is_counted_and_leaves_a_gap() {
    let file = file(&[SPS, PPS, IDR, P, P].concat());
    let mut source = AnnexBSource::open(file.path(), Codec::H264, None).unwrap();
    /// First a surface of the wrong kind, then right ones.
    struct Mixed(SurfacePool, SurfacePool);
    impl SurfaceSource for Mixed {
        fn surface_for(&mut self, info: &FrameInfo) -> Option<SurfaceLease> {
            if info.frame_id == 0 { &self.0 } else { &self.1 }.take()
        }
    }
    let wrong = Box::new(I420Surface::new(16, 16, PixelFormat::Gray)) as Surface;
    let mut pool = Mixed(SurfacePool::new(vec![wrong]), passthrough().surfaces());
    let event = source.next(soon(), &mut pool).unwrap();
    assert!(matches!(event, SourceEvent::Frame(frame) if frame.info.frame_id == 1 && frame.gap));
    assert_eq!(source.counters().unfilled.load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_no_stream_is_an_error_with_the_name_of_the_file() {
    let missing = AnnexBSource::open(Path::new("/nowhere/clip.264"), Codec::H264, None);
    assert!(
        missing
            .err()
            .unwrap()
            .to_string()
            .contains("/nowhere/clip.264")
    );

    let endless = file(&vec![7; AccessUnitPool::LARGEST + 2 * CHUNK]);
    let mut source = AnnexBSource::open(endless.path(), Codec::H264, None).unwrap();
    let mut pool = Pool(passthrough().surfaces());
    let error = source.next(soon(), &mut pool).err().unwrap().to_string();
    assert!(error.contains("Annex B"), "{error}");
}
