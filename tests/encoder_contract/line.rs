//! A backend with pictures going in and access units coming out.

use cvmmap_streamer::encode::registry::{CANDIDATES, Candidate, Kind};
use cvmmap_streamer::encode::{
    Codec, EncodedPicture, EncodedQueue, EncoderBackend, EncoderConfig, FrameRate, Picture, Preset,
    RateControl, Tuning,
};
use cvmmap_streamer::frame::{FrameInfo, PictureShape, PixelFormat, PlaneLayout, Snapshot};
use cvmmap_streamer::time::MediaTime;
use cvmmap_streamer::trace::FrameTrace;

use super::oracle::{self, Nal};
use super::scene::{Scene, Yuv, fill};

/// An open backend and where its access units go.
pub struct Line {
    pub backend: Box<dyn EncoderBackend>,
    pub out: EncodedQueue,
}

impl Line {
    pub fn open(candidate: &Candidate, config: EncoderConfig) -> Self {
        let backend =
            (candidate.open)(&config, &mut |_| ()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(backend.name(), candidate.name);
        Self {
            backend,
            out: EncodedQueue::new(),
        }
    }

    pub fn picture(&self, yuv: &Yuv, n: u32, force_key: bool) -> Picture {
        let mut surface = self.backend.surfaces().take().expect("a surface is free");
        fill(&mut surface, yuv);
        let (width, height) = (yuv.width, yuv.height);
        let info = FrameInfo {
            frame_id: n + 1000,
            capture_ts_ns: u64::from(n) + 7,
            format: PixelFormat::Yuv,
            left: PlaneLayout {
                width,
                height,
                stride: width * 3,
                offset: 0,
                size: width * 3 * height,
            },
            encoded: None,
            frame_rate: None,
            payload_size: width * 3 * height,
        };
        Picture {
            snapshot: Snapshot {
                info,
                surface,
                epoch: 3,
                gap: false,
                time: time_of(n),
                trace: FrameTrace::default(),
            },
            force_key,
        }
    }

    pub fn push(&mut self, yuv: &Yuv, n: u32, force_key: bool) {
        let picture = self.picture(yuv, n, force_key);
        self.backend.encode(picture, &mut self.out).unwrap();
    }
}

/// Codes `pictures` pictures of `scene` and gives all access units, flushed.
pub fn code(
    candidate: &Candidate,
    config: EncoderConfig,
    pictures: u32,
    scene: &mut Scene,
) -> Vec<EncodedPicture> {
    let mut line = Line::open(candidate, config);
    for n in 0..pictures {
        line.push(&scene.next(), n, false);
    }
    line.backend.flush(&mut line.out).unwrap();
    let units: Vec<_> = std::iter::from_fn(|| line.out.pop()).collect();
    assert_eq!(units.len(), pictures as usize, "{}", candidate.name);
    units
}

/// Uneven, so that an invented time would show.
pub fn time_of(n: u32) -> MediaTime {
    MediaTime(i64::from(n) * 33_333_333 + i64::from(n % 3) * 1_000_000)
}

pub fn config(codec: Codec, width: u32, height: u32) -> EncoderConfig {
    EncoderConfig {
        codec,
        shape: PictureShape {
            width,
            height,
            format: PixelFormat::Yuv,
            encoded: None,
        },
        frame_rate: FrameRate::THIRTY,
        rate: RateControl::Bitrate(1_000_000),
        gop: 30,
        b_frames: 0,
        intra_refresh: false,
        preset: Preset::Fastest,
        tuning: Tuning::LowLatency,
        surfaces_in_flight: 2,
    }
}

/// Annex B, one picture, parameter sets exactly in front of key frames, no delimiters.
pub fn check_syntax(codec: Codec, unit: &EncodedPicture) {
    assert!(
        unit.data.starts_with(&[0, 0, 1]) || unit.data.starts_with(&[0, 0, 0, 1]),
        "no start code"
    );
    let nals = oracle::nals(codec, &unit.data);
    assert!(nals.iter().all(|nal| !nal.is_delimiter()));
    let pictures = nals.iter().filter(|nal| nal.starts_picture()).count();
    assert_eq!(pictures, 1, "access units in one buffer");
    let first_slice = nals.iter().position(Nal::is_slice).unwrap();
    assert!(nals[first_slice..].iter().all(Nal::is_slice));
    assert!(
        nals[first_slice..]
            .iter()
            .all(|nal| nal.is_idr() == unit.key)
    );
    let sets: Vec<_> = nals[..first_slice]
        .iter()
        .filter(|nal| nal.is_parameter_set())
        .map(|nal| nal.kind)
        .collect();
    let wanted: &[u8] = match (unit.key, codec) {
        (false, _) => &[],
        (true, Codec::H264) => &[7, 8],
        (true, Codec::H265) => &[32, 33, 34],
    };
    assert_eq!(sets, wanted);
}

/// Every candidate that encodes pictures, with each of its codecs.
pub fn pairs() -> Vec<(&'static Candidate, Codec)> {
    let encoding = CANDIDATES.iter().filter(|c| c.kind != Kind::Passthrough);
    let all = encoding.flat_map(|c| c.codecs.iter().map(move |codec| (c, *codec)));
    all.filter(|(candidate, codec)| {
        match (candidate.open)(&config(*codec, 320, 192), &mut |_| ()) {
            Ok(_) => true,
            // Software always opens; hardware may not be there.
            Err(why) => {
                assert_ne!(candidate.kind, Kind::Software, "{why}");
                println!("not run for {} {codec}: {why}", candidate.name);
                false
            }
        }
    })
    .collect()
}

pub fn for_each(test: impl Fn(&'static Candidate, Codec)) {
    let pairs = pairs();
    assert!(!pairs.is_empty());
    for (candidate, codec) in pairs {
        test(candidate, codec);
    }
}
