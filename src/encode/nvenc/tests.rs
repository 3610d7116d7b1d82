//! The session over a driver of fakes: which calls, in which order, with which flags.

use super::fake::{BYTES, FLAGS, Fake};
use super::*;
use crate::encode::{Codec, FrameRate, Preset, RateControl, Tuning};
use crate::frame::{FrameInfo, FrameView, PictureShape, PixelFormat, PlaneLayout, Snapshot};
use crate::time::MediaTime;
use crate::trace::FrameTrace;
use std::sync::atomic::Ordering;

/// As large as the fakes' least size, which is their answer to every question.
const SIZE: u32 = 4096;

fn config() -> EncoderConfig {
    EncoderConfig {
        codec: Codec::H264,
        shape: PictureShape {
            width: SIZE,
            height: SIZE,
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

fn open(fake: &Fake) -> Result<NvencEncoder, EncodeError> {
    let options = NvencOptions {
        driver: Some(fake.driver()),
        ..NvencOptions::default()
    };
    NvencEncoder::open(&config(), &options)
}

fn picture(encoder: &NvencEncoder, force_key: bool) -> Picture {
    let info = FrameInfo {
        frame_id: 7,
        capture_ts_ns: 0,
        format: PixelFormat::Gray,
        left: PlaneLayout {
            width: SIZE,
            height: SIZE,
            stride: SIZE,
            offset: 0,
            size: SIZE * SIZE,
        },
        encoded: None,
        frame_rate: None,
        payload_size: SIZE * SIZE,
    };
    let pixels = vec![9; (SIZE * SIZE) as usize];
    let mut surface = encoder.surfaces().take().unwrap();
    surface.fill(&FrameView::from_slice(info, &pixels)).unwrap();
    Picture {
        snapshot: Snapshot {
            info,
            surface,
            epoch: 0,
            gap: false,
            time: MediaTime(5),
            trace: FrameTrace::default(),
        },
        force_key,
    }
}

/// The order of the API guide: children go before their parents, the session before surfaces and
/// streams, the context last.
#[test]
fn calls_come_in_the_order_of_the_guide_and_everything_is_given_back() {
    let fake = Fake::take();
    let mut encoder = open(&fake).unwrap();
    let mut queue = EncodedQueue::new();
    encoder
        .encode(picture(&encoder, false), &mut queue)
        .unwrap();
    let unit = queue.pop().unwrap();
    assert_eq!(unit.data, [0, 0, 0, 1, 0x65, 1, 2, 3]);
    assert_eq!((unit.key, unit.frame_id, unit.pts), (true, 7, MediaTime(5)));
    encoder.flush(&mut queue).unwrap();
    drop(encoder);
    let wanted = [
        "cuDevicePrimaryCtxRetain",
        "nvEncOpenEncodeSessionEx",
        "nvEncGetEncodeGUIDCount",
        "nvEncGetEncodeGUIDs",
        "nvEncGetEncodeCaps",
        "nvEncGetInputFormatCount",
        "nvEncGetInputFormats",
        "nvEncGetEncodePresetConfigEx",
        "nvEncInitializeEncoder",
        "nvEncSetIOCudaStreams",
        "nvEncCreateBitstreamBuffer",
        "nvEncRegisterResource",
        "nvEncMapInputResource",
        "nvEncEncodePicture",
        "nvEncLockBitstream",
        "nvEncUnlockBitstream",
        "nvEncUnmapInputResource",
        "nvEncEncodePicture(EOS)",
        "nvEncUnregisterResource",
        "nvEncDestroyBitstreamBuffer",
        "nvEncDestroyEncoder",
        "cuMemFree",
        "cuEventDestroy",
    ];
    // Behind these come the rest of memory, events, streams and module in turns, and the context.
    let mut calls = fake.calls();
    calls.dedup();
    assert_eq!(calls[..wanted.len()], wanted);
    assert_eq!(calls.last(), Some(&"cuDevicePrimaryCtxRelease"));
    let pairs = [
        ("nvEncCreateBitstreamBuffer", "nvEncDestroyBitstreamBuffer"),
        ("nvEncRegisterResource", "nvEncUnregisterResource"),
        ("nvEncMapInputResource", "nvEncUnmapInputResource"),
        ("nvEncOpenEncodeSessionEx", "nvEncDestroyEncoder"),
        ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
        ("cuStreamCreate", "cuStreamDestroy"),
        ("cuEventCreate", "cuEventDestroy"),
        ("cuMemHostAlloc", "cuMemFreeHost"),
        ("cuModuleLoadData", "cuModuleUnload"),
    ];
    for (made, freed) in pairs {
        assert_eq!(fake.count(made), fake.count(freed), "{made}");
    }
    let memory = fake.count("cuMemAlloc") + fake.count("cuMemAllocPitch");
    assert_eq!(fake.count("cuMemFree"), memory);
}

#[test]
fn a_handle_that_comes_with_a_failed_open_is_destroyed_once() {
    let fake = Fake::take();
    fake.refuse("nvEncOpenEncodeSessionEx", 10);
    let error = open(&fake).err().unwrap().to_string();
    assert!(error.contains("all encoder sessions are in use"), "{error}");
    assert_eq!(fake.count("nvEncDestroyEncoder"), 1);
    assert_eq!(fake.count("cuDevicePrimaryCtxRelease"), 1);
}

#[test]
fn what_was_made_before_a_refusal_is_given_back() {
    for call in [
        "nvEncRegisterResource",
        "nvEncCreateBitstreamBuffer",
        "cuMemAllocPitch",
        "cuModuleLoadData",
    ] {
        let fake = Fake::take();
        fake.refuse(call, 2);
        assert!(open(&fake).is_err(), "{call}");
        assert_eq!(
            fake.count("cuStreamCreate"),
            fake.count("cuStreamDestroy"),
            "{call}"
        );
        assert_eq!(
            fake.count("cuMemAlloc"),
            fake.count("cuMemFree") - freed_surfaces(&fake, call),
            "{call}"
        );
        assert_eq!(
            fake.count("nvEncOpenEncodeSessionEx"),
            fake.count("nvEncDestroyEncoder"),
            "{call}"
        );
        assert_eq!(fake.count("cuDevicePrimaryCtxRelease"), 1, "{call}");
    }
}

/// Surfaces that were made and freed: the refused one was not made.
fn freed_surfaces(fake: &Fake, refused: &str) -> usize {
    fake.count("cuMemAllocPitch") - usize::from(refused == "cuMemAllocPitch")
}

#[test]
fn the_first_picture_and_those_that_are_asked_for_are_key_frames() {
    let fake = Fake::take();
    let mut encoder = open(&fake).unwrap();
    let mut queue = EncodedQueue::new();
    for force in [false, false, true, false] {
        encoder
            .encode(picture(&encoder, force), &mut queue)
            .unwrap();
    }
    // FORCEIDR | OUTPUT_SPSPPS
    assert_eq!(*FLAGS.lock().unwrap(), [6, 0, 6, 0]);
}

#[test]
fn a_gpu_that_cannot_change_its_rate_is_not_asked_to() {
    let fake = Fake::take();
    let mut encoder = open(&fake).unwrap();
    encoder.set_bitrate(2_000_000).unwrap();
    assert_eq!(fake.count("nvEncReconfigureEncoder"), 1);
    drop(encoder);
    drop(fake);
    let fake = Fake::take();
    // A capability that is not answered is one that is not there.
    fake.refuse("nvEncGetEncodeCaps", 8);
    let mut encoder = open(&fake).unwrap();
    let error = encoder.set_bitrate(2_000_000).unwrap_err();
    assert!(matches!(error, EncodeError::Unsupported { .. }), "{error}");
    assert_eq!(fake.count("nvEncReconfigureEncoder"), 0);
}

#[test]
fn a_status_of_a_newer_driver_is_an_error_with_its_number() {
    let fake = Fake::take();
    fake.refuse("nvEncLockBitstream", 99);
    let mut encoder = open(&fake).unwrap();
    let mut queue = EncodedQueue::new();
    let error = encoder
        .encode(picture(&encoder, false), &mut queue)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("nvEncLockBitstream failed with 99: UNKNOWN (99)"),
        "{error}"
    );
}

#[test]
fn a_picture_without_bytes_gives_nothing_and_keeps_nothing() {
    let fake = Fake::take();
    BYTES.store(0, Ordering::Relaxed);
    let mut encoder = open(&fake).unwrap();
    let mut queue = EncodedQueue::new();
    for _ in 0..20 {
        encoder
            .encode(picture(&encoder, false), &mut queue)
            .unwrap();
    }
    assert!(queue.is_empty());
    assert_eq!(encoder.surfaces().free(), encoder.surfaces().total());
    assert_eq!(fake.count("nvEncUnmapInputResource"), 20);
}

#[test]
fn a_lost_device_is_an_error_and_is_torn_down_within_bounds() {
    let fake = Fake::take();
    let mut encoder = open(&fake).unwrap();
    fake.refuse("nvEncEncodePicture", 5);
    let mut queue = EncodedQueue::new();
    let error = encoder
        .encode(picture(&encoder, false), &mut queue)
        .unwrap_err();
    assert!(
        error.to_string().contains("DEVICE_NOT_EXIST (5)"),
        "{error}"
    );
    drop(encoder);
    assert_eq!(
        fake.count("nvEncMapInputResource"),
        fake.count("nvEncUnmapInputResource")
    );
    assert_eq!(fake.count("nvEncDestroyEncoder"), 1);
}
