//! Where the bits of an `EncoderBackend` go, for every candidate that opens here: the rate that was
//! asked for, a constant quality, and pictures without bursts.

#[allow(dead_code)] // the contract uses the rest
mod encoder_contract {
    pub mod line;
    pub mod oracle;
    pub mod scene;
}

use cvmmap_streamer::encode::{EncodedPicture, EncoderConfig, FrameRate, RateControl};

use encoder_contract::line::{Line, code, config, for_each};
use encoder_contract::oracle;
use encoder_contract::scene::Scene;

/// Bits of `units` per second at 30 pictures per second.
fn bits_per_second(units: &[EncodedPicture]) -> f64 {
    let bytes: usize = units.iter().map(|unit| unit.data.len()).sum();
    bytes as f64 * 8.0 * 30.0 / units.len() as f64
}

#[test]
fn the_bit_rate_is_kept_within_a_tenth() {
    for_each(|candidate, codec| {
        for bits in [600_000, 1_500_000] {
            let config = EncoderConfig {
                rate: RateControl::Bitrate(bits),
                ..config(codec, 640, 360)
            };
            let units = code(candidate, config, 150, &mut Scene::new(640, 360));
            let ratio = bits_per_second(&units) / f64::from(bits);
            println!("{}: {ratio:.3} of {bits} bit/s", candidate.name);
            assert!(
                (0.9..=1.1).contains(&ratio),
                "{}: {ratio:.3}",
                candidate.name
            );
        }
    });
}

#[test]
fn the_bit_rate_changes_while_running() {
    for_each(|candidate, codec| {
        let mut line = Line::open(
            candidate,
            EncoderConfig {
                rate: RateControl::Bitrate(1_500_000),
                ..config(codec, 640, 360)
            },
        );
        let mut scene = Scene::new(640, 360);
        let mut n = 0;
        let mut second = |line: &mut Line, bits: u32| {
            line.backend.set_bitrate(bits).unwrap();
            let mut units = Vec::new();
            for _ in 0..90 {
                line.push(&scene.next(), n, false);
                n += 1;
                units.extend(line.out.pop());
            }
            // the first second is the way from one rate to the other
            let ratio = bits_per_second(&units[30..]) / f64::from(bits);
            println!("{}: {ratio:.3} of {bits} bit/s", candidate.name);
            assert!(
                (0.8..=1.2).contains(&ratio),
                "{}: {ratio:.3}",
                candidate.name
            );
            units.iter().filter(|unit| unit.key).count()
        };
        second(&mut line, 1_500_000);
        // down and up again; at most one IDR beside the three of each 90 pictures
        assert!(second(&mut line, 700_000) <= 4);
        assert!(second(&mut line, 2_500_000) <= 4);
    });
}

#[test]
fn a_rate_above_sixty_pictures_per_second_gets_its_bits() {
    for_each(|candidate, codec| {
        let config = EncoderConfig {
            rate: RateControl::Bitrate(2_000_000),
            frame_rate: FrameRate { num: 120, den: 1 },
            gop: 120,
            ..config(codec, 320, 192)
        };
        let units = code(candidate, config, 360, &mut Scene::new(320, 192));
        let bytes: usize = units.iter().map(|unit| unit.data.len()).sum();
        let ratio = bytes as f64 * 8.0 / 3.0 / 2_000_000.0;
        println!("{}: {ratio:.3} at 120 pictures per second", candidate.name);
        assert!(
            (0.85..=1.15).contains(&ratio),
            "{}: {ratio:.3}",
            candidate.name
        );
    });
}

#[test]
fn a_better_quality_is_larger_and_nearer() {
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        let mut last: Option<(usize, f64)> = None;
        for quality in [44, 30, 18, 0] {
            let config = EncoderConfig {
                rate: RateControl::Quality(quality),
                ..config(codec, 320, 192)
            };
            let units = code(candidate, config, 12, &mut Scene::new(320, 192));
            let bytes: usize = units.iter().map(|unit| unit.data.len()).sum();
            let decoded = ffmpeg.decode(codec, &units, 320, 192);
            assert_eq!(decoded.len(), 12);
            let mut scene = Scene::new(320, 192);
            let psnr = decoded.iter().map(|d| scene.next().psnr(d)).sum::<f64>() / 12.0;
            println!(
                "{} at quality {quality}: {bytes} bytes, {psnr:.1} dB",
                candidate.name
            );
            if let Some((fewer, lower)) = last {
                assert!(bytes > fewer && psnr > lower, "{}", candidate.name);
            }
            last = Some((bytes, psnr));
        }
    });
}

/// A strip of each picture is coded anew, so that none is a burst and a loss heals without an IDR.
#[test]
fn an_intra_refresh_has_no_bursts_and_heals_a_lost_picture() {
    const CYCLE: u32 = 30;
    let Some(ffmpeg) = oracle::Ffmpeg::find() else {
        return;
    };
    for_each(|candidate, codec| {
        let with = |intra_refresh| EncoderConfig {
            gop: CYCLE,
            intra_refresh,
            ..config(codec, 320, 192)
        };
        let refreshes = Line::open(candidate, with(true)).backend.intra_refresh();
        let mut units = code(candidate, with(true), 4 * CYCLE, &mut Scene::new(320, 192));
        let keys = |units: &[EncodedPicture]| -> Vec<usize> {
            (0..units.len()).filter(|n| units[*n].key).collect()
        };
        if !refreshes {
            // What it warns about: key frames as without the wish.
            assert_eq!(keys(&units), [0, 30, 60, 90], "{}", candidate.name);
            println!("{} {codec} has no intra refresh", candidate.name);
            return;
        }
        assert_eq!(keys(&units), [0], "{}", candidate.name);
        let burst = |units: &[EncodedPicture]| {
            let mut sizes: Vec<_> = units[1..].iter().map(|unit| unit.data.len()).collect();
            sizes.sort_unstable();
            sizes[sizes.len() - 1] as f64 / sizes[sizes.len() / 2] as f64
        };
        let plain = code(candidate, with(false), 4 * CYCLE, &mut Scene::new(320, 192));
        println!(
            "{} {codec}: largest to median {:.2}, with key frames {:.2}",
            candidate.name,
            burst(&units),
            burst(&plain)
        );
        assert!(burst(&units) < 1.5, "{}", candidate.name);
        assert!(burst(&plain) > 1.5, "{}", candidate.name);

        let whole = ffmpeg.decode(codec, &units, 320, 192);
        units.remove(20);
        let healed = ffmpeg.decode_lossy(codec, &units, 320, 192);
        assert_eq!((whole.len(), healed.len()), (120, 119));
        let after = |n: usize| whole[n].psnr(&healed[n - 1]);
        println!(
            "{}: {:.1} dB, healed {:.1} dB",
            candidate.name,
            after(22),
            after(119)
        );
        assert!(after(22) < 40.0, "the loss does not show: {:.1}", after(22));
        assert!(after(119) > 45.0, "it has not healed: {:.1}", after(119));
    });
}
