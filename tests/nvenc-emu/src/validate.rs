//! Versions, reserved words, and the fields of a configuration.

use nvenc_sys::*;

use crate::config::{Gpu, config};
use crate::report::{Class, violation};
use crate::rules::{self, Versioned, version_of};
use crate::session::{Init, refuse};

/// The structure's version must be the one of the declared API.
pub fn version(call: &str, structure: Versioned, got: u32, api: (u32, u32)) -> Result<(), u32> {
    if version_of(structure, api) == Some(got) {
        return Ok(());
    }
    refuse(
        "version",
        call,
        rules::INVALID_VERSION,
        format!("{structure:?} has version {got:#x}"),
    )
}

/// Reserved memory must be zero.
pub fn reserved(call: &str, what: &str, zero: bool) {
    if !zero {
        violation(
            Class::P,
            "reserved",
            call,
            None,
            format!("{what}: reserved fields are not zero"),
        );
    }
}

/// Checks the named reserved arrays of a structure.
macro_rules! all_zero {
    ($call:expr, $structure:expr, $($field:ident),+) => {
        $(crate::validate::reserved(
            $call,
            concat!(stringify!($structure), ".", stringify!($field)),
            $structure.$field.iter().all(|word| *word as usize == 0),
        );)+
    };
}
pub(crate) use all_zero;

pub fn limits(hevc: bool) -> ((u32, u32), (u32, u32)) {
    let least = config()
        .min
        .unwrap_or(if hevc { (129, 129) } else { (145, 145) });
    let most = match (config().gpu, hevc) {
        (Gpu::Small, _) => (640, 480),
        (_, false) => (4096, 4096),
        (_, true) => (8192, 8192),
    };
    (least, most)
}

pub fn most_b_frames(hevc: bool) -> i32 {
    match (config().gpu, hevc) {
        (Gpu::Pascal, true) => 0,
        (_, true) => 5,
        (_, false) => 4,
    }
}

/// Whether a client may size the VBV.
fn custom_vbv() -> bool {
    config().gpu != Gpu::Small
}

/// The value of a capability by its number in the header; `None` for a number that is not one.
pub fn capability(hevc: bool, cap: u32) -> Option<i32> {
    let (least, most) = limits(hevc);
    Some(match cap {
        0 => most_b_frames(hevc),
        1 => 0x3F,
        7 | 8 => i32::from(!hevc),
        10 => 4,
        13 => 62,
        14 => 10,
        16 => most.0 as i32,
        17 => most.1 as i32,
        26 => i32::from(custom_vbv()),
        19..=22 | 25 | 28 | 34 | 37 | 38 => 1,
        31 => 262_144,
        32 => 983_040,
        33 => 1,
        39 => i32::from(hevc),
        40 => 8,
        41 => 1,
        43 => 3,
        45 => least.0 as i32,
        46 => least.1 as i32,
        47 => 1,
        49 => 1,
        51.. => return None,
        _ => 0,
    })
}

/// A field value that a preset sets and nobody has reason to change: a configuration without it was
/// not derived from a preset.
pub const FINGERPRINT: NV_ENC_MV_PRECISION = NV_ENC_MV_PRECISION::NV_ENC_MV_PRECISION_QUARTER_PEL;

/// What a preset holds.
pub fn preset_config(hevc: bool, tuning: u32, api: (u32, u32)) -> NV_ENC_CONFIG {
    let mut config = NV_ENC_CONFIG {
        version: version_of(Versioned::Config, api).unwrap_or(0),
        gopLength: 30,
        frameIntervalP: 1,
        frameFieldMode: NV_ENC_PARAMS_FRAME_FIELD_MODE(1),
        mvPrecision: FINGERPRINT,
        profileGUID: if hevc {
            NV_ENC_HEVC_PROFILE_MAIN_GUID
        } else {
            NV_ENC_H264_PROFILE_HIGH_GUID
        },
        ..Default::default()
    };
    config.rcParams.version = version_of(Versioned::RcParams, api).unwrap_or(0);
    config.rcParams.rateControlMode = NV_ENC_PARAMS_RC_MODE(if tuning == 1 { 1 } else { 2 });
    config.rcParams.averageBitRate = 5_000_000;
    config.rcParams.lowDelayKeyFrameScale = if tuning == 3 { 1 } else { 2 };
    config.rcParams.set_zeroReorderDelay(u32::from(tuning == 3));
    // SAFETY: either arm is plain numbers.
    unsafe {
        if hevc {
            let hevc = &mut config.encodeCodecConfig.hevcConfig;
            hevc.idrPeriod = 30;
            hevc.set_chromaFormatIDC(1);
        } else {
            let h264 = &mut config.encodeCodecConfig.h264Config;
            h264.idrPeriod = 30;
            h264.chromaFormatIDC = 1;
            h264.sliceMode = 3;
            h264.sliceModeData = 1;
        }
    }
    config
}

/// Checks initialise parameters; what the emulator needs of them comes back.
pub fn initialize(
    call: &str,
    params: &NV_ENC_INITIALIZE_PARAMS,
    api: (u32, u32),
) -> Result<Init, u32> {
    let bad = |detail: String| refuse::<Init>("initialize", call, rules::INVALID_PARAM, detail);
    version(call, Versioned::Initialize, params.version, api)?;
    all_zero!(call, params, reserved, reserved2);
    reserved(call, "reservedBitFields", params.reservedBitFields() == 0);
    let hevc = match params.encodeGUID {
        guid if guid == rules::H264 => false,
        guid if guid == rules::HEVC => true,
        other => return bad(format!("codec {other:?}")),
    };
    if !rules::PRESETS.contains(&params.presetGUID) {
        return bad(format!(
            "preset {:?} is not one of P1 to P7",
            params.presetGUID
        ));
    }
    if !(1..=4).contains(&params.tuningInfo.0) {
        return bad(format!("tuning {}", params.tuningInfo.0));
    }
    let (width, height) = (params.encodeWidth, params.encodeHeight);
    let ((least_w, least_h), (most_w, most_h)) = limits(hevc);
    if width < least_w || height < least_h || width > most_w || height > most_h {
        return bad(format!(
            "{width}x{height} is outside {least_w}x{least_h} to {most_w}x{most_h}"
        ));
    }
    if width % 2 != 0 || height % 2 != 0 {
        return bad(format!("{width}x{height} is odd"));
    }
    let too_small = |most: u32, now: u32| most != 0 && most < now;
    if too_small(params.maxEncodeWidth, width) || too_small(params.maxEncodeHeight, height) {
        return bad("maxEncodeWidth or Height is below the encode size".to_owned());
    }
    if params.enableEncodeAsync != 0 {
        return bad("enableEncodeAsync on Linux".to_owned());
    }
    if params.enablePTD != 1 {
        return bad("enablePTD is not 1".to_owned());
    }
    if params.frameRateNum == 0 || params.frameRateDen == 0 {
        return bad("no frame rate".to_owned());
    }
    if params.encodeConfig.is_null() {
        return bad("the emulator wants a configuration".to_owned());
    }
    // SAFETY: not null; the client says that it is a configuration, its version is checked first.
    let nv = unsafe { &*params.encodeConfig };
    version(call, Versioned::Config, nv.version, api)?;
    let (gop, repeat, disable, aud) = codec_config(call, nv, hevc)?;
    rate_control(call, nv, api)?;
    if nv.mvPrecision != FINGERPRINT {
        violation(
            Class::P,
            "not-from-preset",
            call,
            None,
            "the configuration was not derived from a preset".to_owned(),
        );
    }
    let interval = nv.frameIntervalP;
    if interval < 0
        || interval > most_b_frames(hevc) + 1
        || (gop != u32::MAX && interval as u32 > gop)
    {
        return bad(format!("frameIntervalP {interval} with GOP {gop}"));
    }
    if interval > 1 && nv.rcParams.zeroReorderDelay() == 1 {
        return bad("zeroReorderDelay with B-frames".to_owned());
    }
    let mut preset = [0; 16];
    preset[..4].copy_from_slice(&params.presetGUID.Data1.to_ne_bytes());
    Ok(Init {
        hevc,
        width: width as usize,
        height: height as usize,
        gop: if interval == 0 { 1 } else { gop },
        interval: interval.max(1) as usize,
        aud,
        repeat_headers: repeat,
        disable_headers: disable,
        frame_rate: (params.frameRateNum, params.frameRateDen),
        preset,
        coded_before: false,
    })
}

/// GOP length, repeat parameter sets, disable them, access unit delimiters.
fn codec_config(
    call: &str,
    nv: &NV_ENC_CONFIG,
    hevc: bool,
) -> Result<(u32, bool, bool, bool), u32> {
    all_zero!(call, nv, reserved, reserved2);
    let gop = nv.gopLength;
    let bad = |detail: String| refuse("initialize", call, rules::INVALID_PARAM, detail);
    // SAFETY: the arm belongs to the codec; either is plain numbers.
    let (period, refresh, slices, chroma, repeat, disable, aud) = unsafe {
        if hevc {
            let h = &nv.encodeCodecConfig.hevcConfig;
            all_zero!(call, h, reserved1, reserved2);
            (
                h.idrPeriod,
                (
                    h.enableIntraRefresh(),
                    h.intraRefreshPeriod,
                    h.intraRefreshCnt,
                ),
                h.sliceMode,
                h.chromaFormatIDC(),
                h.repeatSPSPPS(),
                h.disableSPSPPS(),
                h.outputAUD(),
            )
        } else {
            let h = &nv.encodeCodecConfig.h264Config;
            all_zero!(call, h, reserved1, reserved2);
            reserved(call, "h264 bit fields", h.reservedBitFields() == 0);
            if h.entropyCodingMode.0 > 2 {
                return bad(format!("entropyCodingMode {}", h.entropyCodingMode.0));
            }
            (
                h.idrPeriod,
                (
                    h.enableIntraRefresh(),
                    h.intraRefreshPeriod,
                    h.intraRefreshCnt,
                ),
                h.sliceMode,
                h.chromaFormatIDC,
                h.repeatSPSPPS(),
                h.disableSPSPPS(),
                h.outputAUD(),
            )
        }
    };
    if period != gop {
        return bad(format!("idrPeriod {period} and gopLength {gop}"));
    }
    if gop == 0 {
        return bad("gopLength 0".to_owned());
    }
    // nvEncodeAPI.h: the count "should be smaller than intraRefreshPeriod"; a wave that never meets
    // an IDR needs a GOP without end.
    if let (1, every, count) = refresh
        && (gop != NVENC_INFINITE_GOPLENGTH || count == 0 || count >= every)
    {
        return bad(format!(
            "intra refresh of {count} in {every} pictures with gopLength {gop}"
        ));
    }
    if slices > 3 {
        return bad(format!("sliceMode {slices}"));
    }
    if chroma != 1 {
        return bad(format!(
            "chromaFormatIDC {chroma}: the emulator codes 4:2:0"
        ));
    }
    if repeat == 1 && disable == 1 {
        return bad("repeatSPSPPS with disableSPSPPS".to_owned());
    }
    Ok((gop, repeat == 1, disable == 1, aud == 1))
}

fn rate_control(call: &str, nv: &NV_ENC_CONFIG, api: (u32, u32)) -> Result<(), u32> {
    let rc = &nv.rcParams;
    version(call, Versioned::RcParams, rc.version, api)?;
    all_zero!(call, rc, reserved);
    reserved(call, "rcParams bit fields", rc.reservedBitFields() == 0);
    let bad = |detail: String| refuse("initialize", call, rules::INVALID_PARAM, detail);
    match rc.rateControlMode.0 {
        0..=2 => (),
        mode @ (0x8 | 0x10 | 0x20) => {
            return bad(format!("rate control {mode:#x} was removed from drivers"));
        }
        mode => return bad(format!("rate control {mode:#x}")),
    }
    if rc.multiPass.0 > 2 {
        return bad(format!("multiPass {}", rc.multiPass.0));
    }
    if rc.multiPass.0 != 0 && config().multipass_status != 0 {
        return Err(config().multipass_status);
    }
    if rc.rateControlMode.0 == 2 && rc.averageBitRate == 0 {
        return bad("CBR without a bit rate".to_owned());
    }
    if rc.maxBitRate != 0 && rc.maxBitRate < rc.averageBitRate {
        return bad("maxBitRate is below averageBitRate".to_owned());
    }
    if rc.vbvBufferSize != 0 && !custom_vbv() {
        return bad("vbvBufferSize without the capability".to_owned());
    }
    if rc.vbvInitialDelay > rc.vbvBufferSize {
        return bad("vbvInitialDelay is above vbvBufferSize".to_owned());
    }
    Ok(())
}

/// Colour of the VUI, if there is one.
pub fn colour(nv: &NV_ENC_CONFIG, hevc: bool) -> Option<crate::codec::Colour> {
    // SAFETY: the arm belongs to the codec; either is plain numbers.
    let vui = unsafe {
        if hevc {
            &nv.encodeCodecConfig.hevcConfig.hevcVUIParameters
        } else {
            &nv.encodeCodecConfig.h264Config.h264VUIParameters
        }
    };
    if vui.videoSignalTypePresentFlag == 0 || vui.colourDescriptionPresentFlag == 0 {
        return None;
    }
    // The fields are enumerations from API 12 on, of the same size.
    let number = |field: &dyn Fn() -> u32| field();
    Some(crate::codec::Colour {
        full_range: vui.videoFullRangeFlag != 0,
        primaries: number(&|| as_number(&vui.colourPrimaries)),
        transfer: number(&|| as_number(&vui.transferCharacteristics)),
        matrix: number(&|| as_number(&vui.colourMatrix)),
    })
}

fn as_number<T>(field: &T) -> u32 {
    assert_eq!(size_of::<T>(), 4);
    // SAFETY: four bytes of plain number, in every header.
    unsafe { std::ptr::from_ref(field).cast::<u32>().read() }
}
