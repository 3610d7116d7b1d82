//! The contract of `EncoderBackend`, written once and run for every candidate that opens here.
//!
//! What comes out is judged by others: ffmpeg decodes it, ffprobe reads its headers. NAL units
//! are told apart by code of this file.

#[allow(dead_code)] // encoder_rate.rs uses the rest
mod encoder_contract {
    pub mod count;
    pub mod line;
    pub mod oracle;
    pub mod scene;
}

use cvmmap_streamer::encode::registry::Kind;
use cvmmap_streamer::encode::{Codec, EncodedPicture, EncoderConfig, Preset, RateControl, Tuning};
use cvmmap_streamer::frame::SurfacePool;

use encoder_contract::count::ALLOCATIONS;
use encoder_contract::line::{Line, check_syntax, code, config, for_each, pairs, time_of};
use encoder_contract::oracle::{self, Nal};
use encoder_contract::scene::Scene;

#[test]
fn one_access_unit_for_each_picture_before_the_next_one_goes_in() {
    for_each(|candidate, codec| {
        let mut line = Line::open(candidate, config(codec, 320, 192));
        let mut scene = Scene::new(320, 192);
        for n in 0..80 {
            line.push(&scene.next(), n, n == 17);
            assert_eq!(line.out.len(), 1, "{} at picture {n}", candidate.name);
            let unit = line.out.pop().unwrap();
            assert_eq!(unit.frame_id, n + 1000);
            assert_eq!((unit.pts, unit.dts), (time_of(n), time_of(n)));
            assert_eq!((unit.epoch, unit.capture_ts_ns), (3, u64::from(n) + 7));
            // an IDR by itself each 30, and a request starts the count anew
            if candidate.kind == Kind::Software || n <= 17 {
                assert_eq!(unit.key, [0, 17, 47, 77].contains(&n), "picture {n}");
            }
            check_syntax(codec, &unit);
            line.out.recycle(unit.data);
        }
        line.backend.flush(&mut line.out).unwrap();
        assert!(line.out.is_empty(), "nothing is left behind");
    });
}

#[test]
fn parameter_sets_are_the_same_in_front_of_every_key_frame() {
    for_each(|candidate, codec| {
        let config = EncoderConfig {
            gop: 5,
            ..config(codec, 320, 192)
        };
        let units = code(candidate, config, 21, &mut Scene::new(320, 192));
        let sets = |unit: &EncodedPicture| -> Vec<Vec<u8>> {
            let nals = oracle::nals(codec, &unit.data).into_iter();
            nals.filter(Nal::is_parameter_set)
                .map(|nal| nal.bytes.to_vec())
                .collect()
        };
        let keys: Vec<_> = units.iter().filter(|unit| unit.key).collect();
        assert_eq!(keys.len(), 5);
        assert!(keys.iter().all(|key| sets(key) == sets(keys[0])));
    });
}

#[test]
fn the_group_of_pictures_is_as_long_as_asked() {
    for_each(|candidate, codec| {
        for (gop, expected) in [(0, 1), (1, 40), (8, 5)] {
            let config = EncoderConfig {
                gop,
                ..config(codec, 160, 96)
            };
            let units = code(candidate, config, 40, &mut Scene::new(160, 96));
            let keys = units.iter().filter(|unit| unit.key).count();
            assert_eq!(keys, expected, "{} with gop {gop}", candidate.name);
        }
    });
}

#[test]
fn every_picture_decodes_to_nearly_itself() {
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        for (tuning, b_frames) in [
            (Tuning::LowLatency, 0),
            (Tuning::LowLatency, 2),
            (Tuning::Quality, 0),
            (Tuning::Quality, 3),
        ] {
            let config = EncoderConfig {
                rate: RateControl::Bitrate(2_000_000),
                tuning,
                b_frames,
                ..config(codec, 320, 192)
            };
            let mut scene = Scene::quiet(320, 192);
            let wanted: Vec<_> = (0..60).map(|_| scene.next()).collect();
            let units = code(candidate, config, 60, &mut Scene::quiet(320, 192));
            let decoded = ffmpeg.decode(codec, &units, 320, 192);
            assert_eq!(decoded.len(), 60, "{}", candidate.name);
            for (n, (wanted, decoded)) in wanted.iter().zip(&decoded).enumerate() {
                let psnr = wanted.psnr(decoded);
                assert!(
                    psnr > 34.0,
                    "{} {tuning:?}: picture {n} has {psnr:.1} dB",
                    candidate.name
                );
            }
        }
    });
}

#[test]
fn greys_stay_grey_and_colours_keep_their_order() {
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        let config = EncoderConfig {
            rate: RateControl::Quality(12),
            ..config(codec, 320, 192)
        };
        let wanted = [
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [255, 255, 255],
            [0, 0, 0],
            [64, 64, 64],
            [128, 128, 128],
            [192, 192, 192],
        ];
        let units = code(candidate, config, 4, &mut Scene::patches(320, 192, &wanted));
        // ffmpeg takes matrix and range out of the stream: a wrong VUI is a wrong colour here
        let picture = ffmpeg.decode_rgb(codec, &units, 320, 192).pop().unwrap();
        for (n, wanted) in wanted.iter().enumerate() {
            let (x, y) = (n * 40 + 20, 96);
            let at = (y * 320 + x) * 3;
            let found: [u8; 3] = picture[at..at + 3].try_into().unwrap();
            let off = |i: usize| found[i].abs_diff(wanted[i]);
            assert!(
                (0..3).all(|i| off(i) <= 4),
                "{}: {wanted:?} became {found:?}",
                candidate.name
            );
        }
        // and a grey has no colour at all: chroma is 128 on the spot
        let yuv = ffmpeg.decode(codec, &units, 320, 192).pop().unwrap();
        for n in 3..8 {
            let at = 48 * 160 + n * 20 + 10;
            assert_eq!((yuv.u[at], yuv.v[at]), (128, 128), "patch {n}");
        }
    });
}

#[test]
fn the_headers_say_bt709_limited_and_the_even_size() {
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        for (width, height) in [(320, 192), (641, 361), (64, 64), (1280, 720)] {
            let config = config(codec, width, height);
            let units = code(candidate, config, 2, &mut Scene::new(width, height));
            let found = ffmpeg.probe(
                codec,
                &units,
                "stream=codec_name,width,height,pix_fmt,color_range,color_space,color_transfer,color_primaries",
            );
            let even = |n: u32| n.next_multiple_of(2);
            let name = if codec == Codec::H264 { "h264" } else { "hevc" };
            for line in [
                format!("codec_name={name}"),
                format!("width={}", even(width)),
                format!("height={}", even(height)),
                "pix_fmt=yuv420p".to_owned(),
                "color_range=tv".to_owned(),
                "color_space=bt709".to_owned(),
                "color_transfer=bt709".to_owned(),
                "color_primaries=bt709".to_owned(),
            ] {
                assert!(
                    found.lines().any(|found| found == line),
                    "{} {width}x{height}: no {line} in\n{found}",
                    candidate.name
                );
            }
        }
    });
}

#[test]
fn odd_and_small_sizes_decode() {
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        for (width, height) in [
            (641, 361),
            (322, 182),
            (66, 34),
            (64, 64),
            (130, 16),
            (16, 16),
        ] {
            let config = config(codec, width, height);
            let units = code(candidate, config, 3, &mut Scene::new(width, height));
            let (width, height) = (width.next_multiple_of(2), height.next_multiple_of(2));
            let decoded = ffmpeg.decode(codec, &units, width, height);
            assert_eq!(decoded.len(), 3, "{} {width}x{height}", candidate.name);
        }
    });
}

#[test]
fn every_preset_opens_and_is_decodable() {
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        for preset in [
            Preset::Fastest,
            Preset::Fast,
            Preset::Balanced,
            Preset::Quality,
        ] {
            for tuning in [Tuning::LowLatency, Tuning::Quality] {
                let config = EncoderConfig {
                    preset,
                    tuning,
                    ..config(codec, 320, 192)
                };
                let units = code(candidate, config, 12, &mut Scene::new(320, 192));
                let decoded = ffmpeg.decode(codec, &units, 320, 192);
                assert_eq!(
                    decoded.len(),
                    12,
                    "{} {preset:?} {tuning:?}",
                    candidate.name
                );
            }
        }
    });
}

#[test]
fn b_frames_come_in_coding_order_with_times_that_work() {
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        for b_frames in [1, 2, 3] {
            let config = EncoderConfig {
                b_frames,
                ..config(codec, 320, 192)
            };
            let mut line = Line::open(candidate, config);
            let in_use = line.backend.b_frames();
            let mut scene = Scene::quiet(320, 192);
            let (mut units, mut held_most) = (Vec::new(), 0);
            for n in 0..100 {
                line.push(&scene.next(), n, n == 50);
                while let Some(unit) = line.out.pop() {
                    units.push(unit);
                }
                held_most = held_most.max(n as usize + 1 - units.len());
            }
            assert!(held_most <= line.backend.delay(), "holds back {held_most}");
            line.backend.flush(&mut line.out).unwrap();
            while let Some(unit) = line.out.pop() {
                units.push(unit);
            }
            assert_eq!(units.len(), 100, "{}", candidate.name);
            units.iter().for_each(|unit| check_syntax(codec, unit));
            assert!(units.iter().any(|unit| unit.key && unit.frame_id == 1050));
            assert!(units.iter().all(|unit| unit.dts <= unit.pts));
            assert!(units.windows(2).all(|pair| pair[0].dts < pair[1].dts));
            // each picture once, with the time that it had
            let mut shown: Vec<_> = units.iter().map(|unit| (unit.pts, unit.frame_id)).collect();
            let reordered = shown.windows(2).any(|pair| pair[0] > pair[1]);
            shown.sort_unstable();
            let wanted: Vec<_> = (0..100).map(|n| (time_of(n), n + 1000)).collect();
            assert_eq!(shown, wanted);
            // B-frames where the backend says so, and nowhere else
            let types = ffmpeg.probe(codec, &units, "frame=pict_type");
            assert_eq!(types.contains("=B"), in_use > 0, "{}", candidate.name);
            assert_eq!(reordered, in_use > 0);
        }
    });
}

#[test]
fn offline_tuning_gives_every_picture_once() {
    for_each(|candidate, codec| {
        let config = EncoderConfig {
            tuning: Tuning::Quality,
            preset: Preset::Balanced,
            b_frames: 3,
            ..config(codec, 160, 96)
        };
        let mut line = Line::open(candidate, config);
        let mut scene = Scene::new(160, 96);
        let mut held_most = 0;
        for n in 0..120 {
            line.push(&scene.next(), n, false);
            held_most = held_most.max(n as usize + 1 - line.out.len());
        }
        assert!(
            held_most <= line.backend.delay(),
            "{} holds back {held_most}, says {}",
            candidate.name,
            line.backend.delay()
        );
        line.backend.flush(&mut line.out).unwrap();
        assert_eq!(line.out.len(), 120);
    });
}

#[test]
fn nothing_is_allocated_once_the_buffers_have_grown() {
    for_each(|candidate, codec| {
        if candidate.kind != Kind::Software {
            return;
        }
        for b_frames in [0, 2] {
            let config = EncoderConfig {
                b_frames,
                ..config(codec, 320, 192)
            };
            let mut line = Line::open(candidate, config);
            // the buffers grow to the largest access unit of the warm-up
            let mut scene = Scene::new(320, 192);
            let pictures: Vec<_> = (0..60).map(|_| scene.next()).collect();
            let mut allocations = 0;
            for (n, yuv) in pictures.iter().cycle().take(180).enumerate() {
                let picture = line.picture(yuv, n as u32, n % 30 == 0);
                let before = ALLOCATIONS.get();
                line.backend.encode(picture, &mut line.out).unwrap();
                if n >= 90 {
                    allocations += ALLOCATIONS.get() - before;
                }
                while let Some(mut unit) = line.out.pop() {
                    // as large as any will be: growth of a buffer is warm-up, not the path
                    unit.data.reserve(1 << 16);
                    line.out.recycle(unit.data);
                }
            }
            assert_eq!(
                allocations, 0,
                "{} with {b_frames} B-frames",
                candidate.name
            );
        }
    });
}

#[test]
fn encoders_work_side_by_side() {
    let pairs: Vec<_> = pairs().into_iter().flat_map(|pair| [pair; 3]).collect();
    std::thread::scope(|scope| {
        for (n, (candidate, codec)) in pairs.into_iter().enumerate() {
            scope.spawn(move || {
                for round in 0..3 {
                    // other block sizes and threads than those beside it
                    let config = EncoderConfig {
                        preset: [Preset::Fastest, Preset::Balanced][(n + round) % 2],
                        ..config(codec, 160 + 32 * n as u32, 96)
                    };
                    let mut scene = Scene::new(config.shape.width, 96);
                    assert_eq!(code(candidate, config, 10, &mut scene).len(), 10);
                }
            });
        }
    });
}

#[test]
fn what_cannot_be_coded_is_refused_in_words() {
    for_each(|candidate, codec| {
        let other = match codec {
            Codec::H264 => Codec::H265,
            Codec::H265 => Codec::H264,
        };
        if !candidate.codecs.contains(&other) {
            let refusal = (candidate.open)(&config(other, 320, 192), &mut |_| ())
                .err()
                .unwrap();
            assert!(refusal.to_string().contains(other.name()), "{refusal}");
        }
        let huge = config(codec, 65_535, 65_535);
        let huge = EncoderConfig {
            surfaces_in_flight: 0,
            ..huge
        };
        assert!((candidate.open)(&huge, &mut |_| ()).is_err());
        let tiny = (candidate.open)(&config(codec, 8, 8), &mut |_| ())
            .err()
            .unwrap();
        assert!(tiny.to_string().contains("16x16"), "{tiny}");
        let nothing = EncoderConfig {
            rate: RateControl::Bitrate(0),
            ..config(codec, 320, 192)
        };
        assert!((candidate.open)(&nothing, &mut |_| ()).is_err());
    });
}

/// The first frames are read while the library still opens.
#[test]
fn software_announces_the_surfaces_that_it_reads_and_none_for_a_size_it_refuses() {
    for_each(|candidate, codec| {
        if candidate.kind != Kind::Software {
            return;
        }
        let mut announced = Vec::new();
        let mut announce = |pool: &SurfacePool| announced.push(pool.id());
        let backend = (candidate.open)(&config(codec, 160, 96), &mut announce).unwrap();
        assert_eq!(announced, [backend.surfaces().id()]);
        let huge = config(codec, 65_534, 65_534);
        let refused = (candidate.open)(&huge, &mut |_| panic!("surfaces for no encoder"));
        assert!(refused.is_err());
    });
}

#[test]
fn a_surface_of_another_encoder_concerns_one_picture_only() {
    for_each(|candidate, codec| {
        let mut line = Line::open(candidate, config(codec, 160, 96));
        let stranger = Line::open(candidate, config(codec, 160, 96));
        let mut scene = Scene::new(160, 96);
        let foreign = stranger.picture(&scene.next(), 0, false);
        let error = line.backend.encode(foreign, &mut line.out).err().unwrap();
        assert!(error.to_string().contains("another encoder"), "{error}");
        line.push(&scene.next(), 1, false);
        assert!(line.out.pop().is_some_and(|unit| unit.key));
    });
}
