use std::cell::RefCell;

use super::*;
use crate::encode::{Codec, EncodedPicture, FrameRate, Preset, Tuning};
use crate::frame::surface::I420Surface;
use crate::frame::{FrameInfo, PictureShape, PixelFormat, PlaneLayout, Snapshot, Surface};
use crate::trace::FrameTrace;

/// When a fake breaks, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// `encode` fails at this picture, counted from 0.
    Fails(u64),
    /// Takes everything and gives nothing from this picture on.
    Silent(u64),
    Flush,
}

/// A backend whose access units are the picture's number and its own letter.
struct Fake {
    name: &'static str,
    pool: SurfacePool,
    fault: Fault,
    delay: usize,
    pictures: u64,
    held: Vec<EncodedPicture>,
}

thread_local! {
    /// What happened, in order; each test has its own thread.
    static JOURNAL: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn journal() -> Vec<String> {
    JOURNAL.take()
}

fn note(line: String) {
    JOURNAL.with_borrow_mut(|journal| journal.push(line));
}

fn fake(
    name: &'static str,
    config: &EncoderConfig,
    fault: Fault,
    delay: usize,
) -> Result<Box<dyn EncoderBackend>, EncodeError> {
    note(format!("open {name} {:?}", config.rate));
    let surface = || Box::new(I420Surface::new(16, 16, PixelFormat::Gray)) as Surface;
    Ok(Box::new(Fake {
        name,
        pool: SurfacePool::new(vec![surface(), surface()]),
        fault,
        delay,
        pictures: 0,
        held: Vec::new(),
    }))
}

impl EncoderBackend for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn surfaces(&self) -> SurfacePool {
        self.pool.clone()
    }

    fn encode(&mut self, picture: Picture, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        if picture.snapshot.surface.pool_id() != self.pool.id() {
            return Err(EncodeError::ForeignSurface { encoder: self.name });
        }
        let n = self.pictures;
        self.pictures += 1;
        if self.fault == Fault::Fails(n) {
            return Err(broken(self.name));
        }
        if matches!(self.fault, Fault::Silent(from) if n >= from) {
            return Ok(());
        }
        let mut coded = EncodedPicture::of(&picture.snapshot, out.buffer());
        coded.key = picture.force_key || n == 0;
        if self.delay > 0 {
            coded.dts = MediaTime(coded.pts.as_nanos() - 50);
        }
        self.held.push(coded);
        if self.held.len() > self.delay {
            out.push(self.held.remove(0));
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut EncodedQueue) -> Result<(), EncodeError> {
        if self.fault == Fault::Flush {
            return Err(broken(self.name));
        }
        self.held.drain(..).for_each(|coded| out.push(coded));
        Ok(())
    }

    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), EncodeError> {
        note(format!("{} at {bits_per_second}", self.name));
        Ok(())
    }

    fn b_frames(&self) -> u32 {
        0
    }

    fn delay(&self) -> usize {
        self.delay
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        note(format!("close {}", self.name));
    }
}

fn broken(encoder: &'static str) -> EncodeError {
    EncodeError::Failed {
        encoder,
        call: "encode",
        status: 20,
        detail: "by order".to_owned(),
    }
}

const BOTH: &[Codec] = &[Codec::H264, Codec::H265];

fn hardware(open: super::super::registry::OpenFn) -> Candidate {
    Candidate {
        name: "nvenc",
        codecs: BOTH,
        kind: Kind::Hardware,
        open,
        help: "buy one",
    }
}

const SOFT: Candidate = Candidate {
    name: "soft",
    codecs: BOTH,
    kind: Kind::Software,
    open: |config, _| fake("soft", config, Fault::None, 0),
    help: "",
};

fn config() -> EncoderConfig {
    EncoderConfig {
        codec: Codec::H264,
        shape: PictureShape {
            width: 16,
            height: 16,
            format: PixelFormat::Gray,
            encoded: None,
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

/// Picture `n`, 100 ns after the one before, in a surface of `pool`.
fn picture(pool: &SurfacePool, n: u32) -> Picture {
    let left = PlaneLayout {
        width: 16,
        height: 16,
        stride: 16,
        offset: 0,
        size: 256,
    };
    Picture {
        snapshot: Snapshot {
            info: FrameInfo {
                frame_id: n,
                capture_ts_ns: 0,
                format: PixelFormat::Gray,
                left,
                encoded: None,
                frame_rate: None,
                payload_size: 256,
            },
            surface: pool.take().expect("a surface is free"),
            epoch: 0,
            gap: false,
            time: MediaTime(i64::from(n) * 100),
            trace: FrameTrace::default(),
        },
        force_key: false,
    }
}

/// Encodes pictures `range` and gives the outcomes.
fn run(encoder: &mut Encoder, out: &mut EncodedQueue, range: std::ops::Range<u32>) -> Vec<Outcome> {
    let encode = |n| {
        let picture = picture(&encoder.surfaces(), n);
        encoder.encode(picture, out).unwrap()
    };
    range.map(encode).collect()
}

fn units(out: &mut EncodedQueue) -> Vec<(u32, bool)> {
    std::iter::from_fn(|| out.pop())
        .map(|unit| (unit.frame_id, unit.key))
        .collect()
}

#[test]
fn a_candidate_that_is_refused_gives_way_to_the_next() {
    let refusing = hardware(|_, _| {
        Err(EncodeError::Open {
            encoder: "nvenc",
            reason: "no driver".to_owned(),
        })
    });
    let encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[refusing, SOFT]).unwrap();
    assert_eq!((encoder.name(), encoder.kind()), ("soft", Kind::Software));
    // a refusal at open is not a fallback in mid-run
    assert_eq!((encoder.fallbacks(), encoder.counters().refused), (0, 1));
}

#[test]
fn an_explicit_nvenc_is_never_replaced() {
    let refusing = hardware(|_, _| {
        Err(EncodeError::Open {
            encoder: "nvenc",
            reason: "no driver".to_owned(),
        })
    });
    let refusal = Encoder::open_among(EncoderChoice::Nvenc, config(), &[refusing, SOFT]);
    assert!(refusal.err().unwrap().to_string().contains("no driver"));

    let failing = hardware(|config, _| fake("nvenc", config, Fault::Fails(1), 0));
    let mut encoder =
        Encoder::open_among(EncoderChoice::Nvenc, config(), &[failing, SOFT]).unwrap();
    let mut out = EncodedQueue::new();
    run(&mut encoder, &mut out, 0..1);
    let second = picture(&encoder.surfaces(), 1);
    let error = encoder.encode(second, &mut out).err().unwrap();
    assert!(error.to_string().contains("by order"));
    assert!(journal().iter().all(|line| !line.starts_with("open soft")));
}

#[test]
fn a_build_without_nvenc_says_so() {
    let refusal = Encoder::open_among(EncoderChoice::Nvenc, config(), &[SOFT]);
    let words = refusal.err().unwrap().to_string();
    assert!(
        words.contains("no NVENC") && words.contains("--encoder auto"),
        "{words}"
    );
}

#[test]
fn a_fatal_error_leads_to_the_next_candidate_and_an_idr() {
    let failing = hardware(|config, _| fake("nvenc", config, Fault::Fails(2), 0));
    let mut encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[failing, SOFT]).unwrap();
    let mut out = EncodedQueue::new();
    let old = encoder.surfaces();
    let waiting = picture(&old, 3);
    let outcomes = run(&mut encoder, &mut out, 0..3);
    assert_eq!(
        outcomes,
        [Outcome::Taken, Outcome::Taken, Outcome::Replaced]
    );
    // what ingest had filled for the old one cannot be coded by the new one
    assert_eq!(encoder.encode(waiting, &mut out).unwrap(), Outcome::Stale);
    assert_eq!(run(&mut encoder, &mut out, 4..6), [Outcome::Taken; 2]);
    assert_eq!(
        units(&mut out),
        [(0, true), (1, false), (4, true), (5, false)]
    );
    assert_ne!(encoder.surfaces().id(), old.id());
    assert_eq!(
        encoder.counters(),
        EncoderCounters {
            pictures: 6,
            units: 4,
            keys: 2,
            left_out: 0,
            stale: 1,
            lost: 1,
            fallbacks: 1,
            refused: 1,
        }
    );
    drop(encoder);
    let journal = journal();
    let closed = journal.iter().position(|line| line == "close nvenc");
    assert!(closed.is_some(), "{journal:?}");
}

#[test]
fn exactly_sixty_silent_pictures_are_too_many() {
    let silent = hardware(|config, _| fake("nvenc", config, Fault::Silent(0), 0));
    let mut encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[silent, SOFT]).unwrap();
    let mut out = EncodedQueue::new();
    let outcomes = run(&mut encoder, &mut out, 0..60);
    assert_eq!(outcomes[..59], [Outcome::Taken; 59]);
    assert_eq!(outcomes[59], Outcome::Replaced);
    assert_eq!((encoder.counters().lost, encoder.fallbacks()), (60, 1));
}

#[test]
fn an_encoder_that_falls_silent_later_gets_sixty_pictures_too() {
    let silent = hardware(|config, _| fake("nvenc", config, Fault::Silent(10), 0));
    let mut encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[silent, SOFT]).unwrap();
    let mut out = EncodedQueue::new();
    let outcomes = run(&mut encoder, &mut out, 0..70);
    assert!(outcomes[..69].iter().all(|o| *o == Outcome::Taken));
    assert_eq!(outcomes[69], Outcome::Replaced);
}

#[test]
fn a_normal_delay_is_not_silence() {
    let slow = hardware(|config, _| fake("nvenc", config, Fault::None, 100));
    let mut encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[slow, SOFT]).unwrap();
    let mut out = EncodedQueue::new();
    assert!(
        run(&mut encoder, &mut out, 0..200)
            .iter()
            .all(|o| *o == Outcome::Taken)
    );
    assert_eq!(units(&mut out).len(), 100);
    encoder.flush(&mut out).unwrap();
    assert_eq!(units(&mut out).len(), 100);
    assert_eq!(encoder.counters().lost, 0);
}

#[test]
fn decoding_times_grow_across_a_change_of_encoder() {
    let failing = hardware(|config, _| fake("nvenc", config, Fault::Fails(3), 0));
    let reordering = Candidate {
        open: |config, _| fake("soft", config, Fault::None, 1),
        ..SOFT
    };
    let mut encoder =
        Encoder::open_among(EncoderChoice::Auto, config(), &[failing, reordering]).unwrap();
    let mut out = EncodedQueue::new();
    run(&mut encoder, &mut out, 0..3);
    // the failed one, at the time of picture 2 plus 10: the new one starts 50 before its first
    let mut lost = picture(&encoder.surfaces(), 2);
    lost.snapshot.time = MediaTime(210);
    assert_eq!(encoder.encode(lost, &mut out).unwrap(), Outcome::Replaced);
    for time in [220, 320, 420] {
        let mut next = picture(&encoder.surfaces(), 9);
        next.snapshot.time = MediaTime(time);
        encoder.encode(next, &mut out).unwrap();
    }
    let dts: Vec<_> = std::iter::from_fn(|| out.pop())
        .map(|unit| unit.dts.0)
        .collect();
    assert_eq!(dts, [0, 100, 200, 201, 270]);
}

#[test]
fn an_error_at_flush_is_counted_and_only_fatal_where_no_other_is_allowed() {
    let failing = hardware(|config, _| fake("nvenc", config, Fault::Flush, 2));
    for choice in [EncoderChoice::Auto, EncoderChoice::Nvenc] {
        let mut encoder = Encoder::open_among(choice, config(), &[failing, SOFT]).unwrap();
        let mut out = EncodedQueue::new();
        run(&mut encoder, &mut out, 0..5);
        let result = encoder.flush(&mut out);
        assert_eq!(result.is_ok(), choice == EncoderChoice::Auto);
        assert_eq!((encoder.counters().units, encoder.counters().lost), (3, 2));
    }
}

#[test]
fn the_next_candidate_opens_with_the_bit_rate_in_force() {
    let failing = hardware(|config, _| fake("nvenc", config, Fault::Fails(0), 0));
    let mut encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[failing, SOFT]).unwrap();
    encoder.set_bitrate(777_000).unwrap();
    run(&mut encoder, &mut EncodedQueue::new(), 0..1);
    let journal = journal();
    assert!(
        journal.contains(&"open soft Bitrate(777000)".to_owned()),
        "{journal:?}"
    );
}

#[test]
fn a_key_frame_asked_for_with_a_stale_picture_is_not_forgotten() {
    let mut encoder = Encoder::open_among(EncoderChoice::Software, config(), &[SOFT]).unwrap();
    let mut out = EncodedQueue::new();
    run(&mut encoder, &mut out, 0..2);
    let foreign = SurfacePool::new(vec![Box::new(I420Surface::new(16, 16, PixelFormat::Gray))]);
    let mut stale = picture(&foreign, 2);
    stale.force_key = true;
    assert_eq!(encoder.encode(stale, &mut out).unwrap(), Outcome::Stale);
    run(&mut encoder, &mut out, 3..5);
    assert_eq!(
        units(&mut out),
        [(0, true), (1, false), (3, true), (4, false)]
    );
}

/// Opens what another size of the pictures would be opened with, and gives its name.
fn again(broken: &Broken, candidates: &[Candidate]) -> Result<&'static str, EncodeError> {
    let choice = EncoderChoice::Auto;
    Encoder::open_first(choice, config(), candidates, broken, &mut |_| ()).map(|next| next.name())
}

#[test]
fn hardware_that_broke_is_not_opened_again_for_another_size() {
    let failing = hardware(|config, _| fake("nvenc", config, Fault::Fails(0), 0));
    let flushing = hardware(|config, _| fake("nvenc", config, Fault::Flush, 0));
    for candidate in [failing, flushing] {
        let candidates = [candidate, SOFT];
        let mut encoder = Encoder::open_among(EncoderChoice::Auto, config(), &candidates).unwrap();
        assert_eq!(again(encoder.broken(), &candidates).unwrap(), "nvenc");
        let mut out = EncodedQueue::new();
        run(&mut encoder, &mut out, 0..1);
        encoder.flush(&mut out).unwrap();
        let broken = encoder.broken().clone();
        drop(encoder);
        journal();
        assert_eq!(again(&broken, &candidates).unwrap(), "soft");
        assert!(journal().iter().all(|line| !line.contains("nvenc")));
    }
}

#[test]
fn a_driver_that_gave_no_answer_is_not_asked_again_and_one_that_refused_is() {
    let stuck = hardware(|_, _| {
        Err(EncodeError::NoAnswer {
            encoder: "nvenc",
            reason: "the driver hangs".to_owned(),
        })
    });
    let refusing = hardware(|_, _| {
        Err(EncodeError::Open {
            encoder: "nvenc",
            reason: "too small".to_owned(),
        })
    });
    let working = hardware(|config, _| fake("nvenc", config, Fault::None, 0));
    for (first, second) in [(stuck, "soft"), (refusing, "nvenc")] {
        let encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[first, SOFT]).unwrap();
        assert_eq!(encoder.name(), "soft");
        assert_eq!(again(encoder.broken(), &[working, SOFT]).unwrap(), second);
    }
}

#[test]
fn a_library_that_failed_once_is_opened_again() {
    let failing = Candidate {
        open: |config, _| fake("soft", config, Fault::Flush, 0),
        ..SOFT
    };
    let mut encoder = Encoder::open_among(EncoderChoice::Auto, config(), &[failing]).unwrap();
    encoder.flush(&mut EncodedQueue::new()).unwrap();
    assert_eq!(again(encoder.broken(), &[failing]).unwrap(), "soft");
}
