//! What a client may ask: codecs, capabilities, formats, presets, headers, last words.

use std::ffi::c_char;

use nvenc_sys::*;

use super::{Handle, Status, arg, is_hevc, session_call};
use crate::codec;
use crate::config::config;
use crate::report::count_call;
use crate::rules::{self, Versioned};
use crate::session::{refuse, sessions};
use crate::validate::{self, all_zero};

pub(super) unsafe extern "C" fn guid_count(session: Handle, count: *mut u32) -> Status {
    let call = "nvEncGetEncodeGUIDCount";
    session_call(call, session, |_| {
        // SAFETY: as the client gave it.
        *unsafe { arg(call, count) }? = 2;
        Ok(())
    })
}

pub(super) unsafe extern "C" fn guids(
    session: Handle,
    list: *mut GUID,
    size: u32,
    count: *mut u32,
) -> Status {
    let call = "nvEncGetEncodeGUIDs";
    session_call(call, session, |_| {
        let known = [rules::H264, rules::HEVC];
        let given = known.len().min(size as usize);
        // SAFETY: the client gives room for `size` GUIDs.
        unsafe {
            arg(call, list)?;
            std::ptr::copy_nonoverlapping(known.as_ptr(), list, given);
            *arg(call, count)? = given as u32;
        }
        Ok(())
    })
}

pub(super) unsafe extern "C" fn caps(
    session: Handle,
    guid: GUID,
    params: *mut NV_ENC_CAPS_PARAM,
    value: *mut i32,
) -> Status {
    let call = "nvEncGetEncodeCaps";
    session_call(call, session, |session| {
        // SAFETY: as the client gave them.
        let (params, value) = unsafe { (arg(call, params)?, arg(call, value)?) };
        validate::version(call, Versioned::Caps, params.version, session.api)?;
        all_zero!(call, params, reserved);
        let hevc = is_hevc(call, guid)?;
        // An unknown capability is no violation: asking is how a client finds out.
        *value = validate::capability(hevc, params.capsToQuery.0).ok_or(rules::INVALID_PARAM)?;
        Ok(())
    })
}

pub(super) unsafe extern "C" fn format_count(
    session: Handle,
    guid: GUID,
    count: *mut u32,
) -> Status {
    let call = "nvEncGetInputFormatCount";
    session_call(call, session, |_| {
        is_hevc(call, guid)?;
        // SAFETY: as the client gave it.
        *unsafe { arg(call, count) }? = rules::FORMATS.len() as u32;
        Ok(())
    })
}

pub(super) unsafe extern "C" fn formats(
    session: Handle,
    guid: GUID,
    list: *mut NV_ENC_BUFFER_FORMAT,
    size: u32,
    count: *mut u32,
) -> Status {
    let call = "nvEncGetInputFormats";
    session_call(call, session, |_| {
        is_hevc(call, guid)?;
        let given = rules::FORMATS.len().min(size as usize);
        // SAFETY: the client gives room for `size` formats.
        unsafe {
            arg(call, list)?;
            for (at, format) in rules::FORMATS.iter().take(given).enumerate() {
                list.add(at).write(NV_ENC_BUFFER_FORMAT(*format));
            }
            *arg(call, count)? = given as u32;
        }
        Ok(())
    })
}

pub(super) unsafe extern "C" fn preset_config_old(
    session: Handle,
    _codec: GUID,
    _preset: GUID,
    _config: *mut NV_ENC_PRESET_CONFIG,
) -> Status {
    let call = "nvEncGetEncodePresetConfig";
    session_call(call, session, |_| {
        refuse(
            "old-preset-call",
            call,
            rules::UNSUPPORTED_PARAM,
            "drivers from 590 on know only the Ex call",
        )
    })
}

pub(super) unsafe extern "C" fn preset_config(
    session: Handle,
    codec: GUID,
    preset: GUID,
    tuning: NV_ENC_TUNING_INFO,
    to: *mut NV_ENC_PRESET_CONFIG,
) -> Status {
    let call = "nvEncGetEncodePresetConfigEx";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let to = unsafe { arg(call, to) }?;
        let hevc = is_hevc(call, codec)?;
        validate::version(call, Versioned::PresetConfig, to.version, session.api)?;
        validate::version(call, Versioned::Config, to.presetCfg.version, session.api)?;
        if !rules::PRESETS.contains(&preset) {
            return refuse(
                "guid",
                call,
                rules::UNSUPPORTED_PARAM,
                format!("preset {preset:?}"),
            );
        }
        if !(1..=4).contains(&tuning.0) {
            return refuse(
                "tuning",
                call,
                rules::INVALID_PARAM,
                format!("{}", tuning.0),
            );
        }
        to.presetCfg = validate::preset_config(hevc, tuning.0, session.api);
        Ok(())
    })
}

pub(super) unsafe extern "C" fn sequence_params(
    session: Handle,
    params: *mut NV_ENC_SEQUENCE_PARAM_PAYLOAD,
) -> Status {
    let call = "nvEncGetSequenceParams";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        validate::version(call, Versioned::SequenceParams, params.version, session.api)?;
        let init = session.init(call)?;
        let headers = session
            .codec
            .as_mut()
            .ok_or(rules::NOT_INITIALIZED)?
            .headers()
            .map_err(|_| rules::GENERIC)?;
        let mut out = Vec::new();
        for nal in codec::nal_units(&headers) {
            if codec::kind_of(init.hevc, nal) == codec::NalKind::ParameterSet {
                out.extend_from_slice(&[0, 0, 0, 1]);
                out.extend_from_slice(nal);
            }
        }
        if out.len() > params.inBufferSize as usize || params.spsppsBuffer.is_null() {
            return Err(rules::NOT_ENOUGH_BUFFER);
        }
        // SAFETY: the client gives `inBufferSize` bytes there and a place for the length.
        unsafe {
            std::ptr::copy_nonoverlapping(out.as_ptr(), params.spsppsBuffer.cast(), out.len());
            *arg(call, params.outSPSPPSPayloadSize)? = out.len() as u32;
        }
        Ok(())
    })
}

pub(super) unsafe extern "C" fn last_error(session: Handle) -> *const c_char {
    count_call("nvEncGetLastErrorString");
    match config().last_error.as_deref() {
        Some("null") => std::ptr::null(),
        Some("invalid-utf8") => c"\xff\xfe\xfd".as_ptr(),
        Some(_) => c":the driver's own words".as_ptr(),
        None => sessions()
            .get(&(session as usize))
            .map_or(c"".as_ptr(), |session| session.words.as_ptr()),
    }
}
