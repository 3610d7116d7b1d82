//! The fake `libnvidia-encode.so.1`: its two exported functions and the list that they give.

#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::ffi::{c_char, c_void};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nvenc_sys::*;

use crate::codec::{self, Settings};
use crate::config::{Gpu, HangIn, config};
use crate::memory::memory;
use crate::picture::hang;
use crate::report::{self, Class, count_call, stats, violation};
use crate::rules::{self, Versioned};
use crate::session::{
    InputBuffer, Map, Output, OutputState, Resource, Session, refuse, sessions, with,
};
use crate::validate::{self, all_zero};

type Status = NVENCSTATUS;
type Handle = *mut c_void;

const API: (u32, u32) = (API_VERSION.major, API_VERSION.minor);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn NvEncodeAPIGetMaxSupportedVersion(version: *mut u32) -> Status {
    count_call("NvEncodeAPIGetMaxSupportedVersion");
    give(
        "NvEncodeAPIGetMaxSupportedVersion",
        version,
        config().max_version,
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn NvEncodeAPICreateInstance(
    list: *mut NV_ENCODE_API_FUNCTION_LIST,
) -> Status {
    let call = "NvEncodeAPICreateInstance";
    count_call(call);
    if list.is_null() {
        return code(refuse::<()>("list", call, rules::INVALID_PTR, "null list"));
    }
    // SAFETY: not null; the client says that it is a list.
    let list = unsafe { &mut *list };
    if let Err(status) = validate::version(call, Versioned::FunctionList, list.version, API) {
        return NVENCSTATUS(status);
    }
    fill(list);
    NVENCSTATUS(0)
}

fn fill(list: &mut NV_ENCODE_API_FUNCTION_LIST) {
    macro_rules! set {
        ($($field:ident = $function:expr),* $(,)?) => {$(
            if !config().hides(stringify!($field)) {
                list.$field = Some($function);
            }
        )*};
    }
    set! {
        nvEncOpenEncodeSessionEx = open_session,
        nvEncGetEncodeGUIDCount = guid_count,
        nvEncGetEncodeGUIDs = guids,
        nvEncGetEncodeCaps = caps,
        nvEncGetInputFormatCount = format_count,
        nvEncGetInputFormats = formats,
        nvEncGetEncodePresetConfig = preset_config_old,
        nvEncGetEncodePresetConfigEx = preset_config,
        nvEncInitializeEncoder = initialize,
        nvEncReconfigureEncoder = reconfigure,
        nvEncSetIOCudaStreams = set_streams,
        nvEncCreateBitstreamBuffer = create_bitstream,
        nvEncDestroyBitstreamBuffer = destroy_bitstream,
        nvEncCreateInputBuffer = create_input,
        nvEncDestroyInputBuffer = destroy_input,
        nvEncLockInputBuffer = lock_input,
        nvEncUnlockInputBuffer = unlock_input,
        nvEncRegisterResource = register,
        nvEncUnregisterResource = unregister,
        nvEncMapInputResource = map,
        nvEncUnmapInputResource = unmap,
        nvEncEncodePicture = encode_picture,
        nvEncLockBitstream = lock_bitstream,
        nvEncUnlockBitstream = unlock_bitstream,
        nvEncGetSequenceParams = sequence_params,
        nvEncDestroyEncoder = destroy,
        nvEncGetLastErrorString = last_error,
    }
}

fn code(result: Result<(), u32>) -> Status {
    NVENCSTATUS(result.err().unwrap_or(rules::SUCCESS))
}

fn give<T>(call: &str, to: *mut T, value: T) -> Status {
    if to.is_null() {
        return code(refuse::<()>("pointer", call, rules::INVALID_PTR, "null"));
    }
    // SAFETY: not null; the rest is the client's promise.
    unsafe { to.write(value) };
    NVENCSTATUS(rules::SUCCESS)
}

/// A client's structure; a null pointer is refused.
unsafe fn arg<'a, T>(call: &str, pointer: *mut T) -> Result<&'a mut T, u32> {
    if pointer.is_null() {
        return refuse("pointer", call, rules::INVALID_PTR, "null");
    }
    // SAFETY: not null; the rest is the client's promise.
    Ok(unsafe { &mut *pointer })
}

fn session_call(
    call: &'static str,
    session: Handle,
    run: impl FnOnce(&mut Session) -> Result<(), u32>,
) -> Status {
    NVENCSTATUS(with(call, session, run))
}

fn is_hevc(call: &str, guid: GUID) -> Result<bool, u32> {
    match guid {
        guid if guid == rules::H264 => Ok(false),
        guid if guid == rules::HEVC => Ok(true),
        other => refuse(
            "guid",
            call,
            rules::INVALID_PARAM,
            format!("codec {other:?}"),
        ),
    }
}

unsafe extern "C" fn open_session(
    params: *mut NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS,
    session: *mut Handle,
) -> Status {
    let call = "nvEncOpenEncodeSessionEx";
    count_call(call);
    hang(HangIn::Open, u64::MAX);
    std::thread::sleep(Duration::from_millis(config().open_ms));
    // SAFETY: pointers as the client gave them.
    code((|| unsafe {
        let params = arg(call, params)?;
        let session = arg(call, session)?;
        let api = (params.apiVersion & 0xFF, params.apiVersion >> 24);
        let most = (config().max_version >> 4, config().max_version & 0xF);
        if api > most {
            return refuse(
                "api-version",
                call,
                rules::INVALID_VERSION,
                format!("{api:?}, the driver has {most:?}"),
            );
        }
        if api != API {
            return refuse(
                "api-version",
                call,
                rules::INVALID_VERSION,
                format!("{api:?}: the emulator was built with the header of {API:?}"),
            );
        }
        validate::version(call, Versioned::OpenSession, params.version, api)?;
        all_zero!(call, params, reserved1, reserved2);
        if params.deviceType.0 != 1 {
            return refuse(
                "open",
                call,
                rules::INVALID_PARAM,
                format!("deviceType {}", params.deviceType.0),
            );
        }
        let context = params.device as usize;
        if !crate::cuda::context_is_alive(context) {
            return refuse(
                "open",
                call,
                rules::INVALID_ENCODERDEVICE,
                "no such context",
            );
        }
        if config().open_status != 0 {
            return Err(config().open_status);
        }
        if config().gpu == Gpu::None {
            return Err(rules::UNSUPPORTED_DEVICE);
        }
        let opened = Session::open(api, context)?;
        let handle = crate::cuda::new_handle();
        sessions().insert(handle, opened);
        *session = handle as Handle;
        report::write();
        Ok(())
    })())
}

unsafe extern "C" fn guid_count(session: Handle, count: *mut u32) -> Status {
    let call = "nvEncGetEncodeGUIDCount";
    session_call(call, session, |_| {
        // SAFETY: as the client gave it.
        *unsafe { arg(call, count) }? = 2;
        Ok(())
    })
}

unsafe extern "C" fn guids(session: Handle, list: *mut GUID, size: u32, count: *mut u32) -> Status {
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

unsafe extern "C" fn caps(
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

unsafe extern "C" fn format_count(session: Handle, guid: GUID, count: *mut u32) -> Status {
    let call = "nvEncGetInputFormatCount";
    session_call(call, session, |_| {
        is_hevc(call, guid)?;
        // SAFETY: as the client gave it.
        *unsafe { arg(call, count) }? = rules::FORMATS.len() as u32;
        Ok(())
    })
}

unsafe extern "C" fn formats(
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

unsafe extern "C" fn preset_config_old(
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

unsafe extern "C" fn preset_config(
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

unsafe extern "C" fn initialize(session: Handle, params: *mut NV_ENC_INITIALIZE_PARAMS) -> Status {
    let call = "nvEncInitializeEncoder";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        if session.init.is_some() {
            return refuse("order", call, rules::INVALID_CALL, "initialised already");
        }
        let init = validate::initialize(call, params, session.api)?;
        if config().init_status != 0 {
            return Err(config().init_status);
        }
        // SAFETY: checked by `initialize`.
        let nv = unsafe { &*params.encodeConfig };
        let settings = Settings {
            width: init.width,
            height: init.height,
            rate: init.frame_rate,
            bitrate: nv.rcParams.averageBitRate.max(200_000),
            colour: validate::colour(nv, init.hevc),
        };
        match codec::open(init.hevc, settings) {
            Ok(codec) => session.codec = Some(codec),
            Err(error) => {
                eprintln!("nvenc-emu: {error}");
                return Err(rules::GENERIC);
            }
        }
        session.init = Some(init);
        Ok(())
    })
}

unsafe extern "C" fn reconfigure(
    session: Handle,
    params: *mut NV_ENC_RECONFIGURE_PARAMS,
) -> Status {
    let call = "nvEncReconfigureEncoder";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        validate::version(call, Versioned::Reconfigure, params.version, session.api)?;
        let old = session.init(call)?;
        let new = validate::initialize(call, &params.reInitEncodeParams, session.api)?;
        let fixed = |init: &crate::session::Init| (init.hevc, init.interval, init.gop, init.preset);
        if fixed(&old) != fixed(&new) || new.width > old.width || new.height > old.height {
            return refuse(
                "reconfigure",
                call,
                rules::INVALID_PARAM,
                "codec, GOP structure or a larger size",
            );
        }
        // SAFETY: checked by `initialize`.
        let nv = unsafe { &*params.reInitEncodeParams.encodeConfig };
        if let Some(codec) = &mut session.codec {
            let _ = codec.set_bitrate(nv.rcParams.averageBitRate);
        }
        if params.forceIDR() == 1 {
            session.since_idr = u32::MAX;
        }
        stats().reconfigured += 1;
        Ok(())
    })
}

unsafe extern "C" fn set_streams(session: Handle, input: Handle, output: Handle) -> Status {
    let call = "nvEncSetIOCudaStreams";
    session_call(call, session, |session| {
        session.init(call)?;
        if input.is_null() || output.is_null() {
            return refuse("streams", call, rules::INVALID_PARAM, "null");
        }
        // SAFETY: the client passes pointers to stream variables.
        let (first, second) = unsafe { (*input.cast::<usize>(), *output.cast::<usize>()) };
        for stream in [first, second] {
            // 0 is the default stream, which ffmpeg uses.
            if stream != 0 && crate::cuda::stream_of(stream).is_none() {
                return refuse("streams", call, rules::INVALID_PARAM, "no such stream");
            }
        }
        session.stream = Some((input as usize, first));
        Ok(())
    })
}

unsafe extern "C" fn create_bitstream(
    session: Handle,
    params: *mut NV_ENC_CREATE_BITSTREAM_BUFFER,
) -> Status {
    let call = "nvEncCreateBitstreamBuffer";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        validate::version(
            call,
            Versioned::CreateBitstream,
            params.version,
            session.api,
        )?;
        session.init(call)?;
        all_zero!(call, params, reserved1, reserved2);
        let handle = crate::cuda::new_handle();
        session.outputs.insert(
            handle,
            Output {
                state: OutputState::Free,
                data: Vec::new(),
                timestamp: 0,
                kind: 0,
            },
        );
        params.bitstreamBuffer = handle as Handle;
        Ok(())
    })
}

unsafe extern "C" fn destroy_bitstream(session: Handle, buffer: NV_ENC_OUTPUT_PTR) -> Status {
    let call = "nvEncDestroyBitstreamBuffer";
    session_call(call, session, |session| {
        session
            .submitted
            .retain(|handle| *handle != buffer as usize);
        match session.outputs.remove(&(buffer as usize)) {
            Some(output) => {
                if output.state == OutputState::Locked {
                    violation(Class::P, "destroy-locked", call, None, String::new());
                }
                Ok(())
            }
            None => refuse("output", call, rules::INVALID_PARAM, "unknown output"),
        }
    })
}

unsafe extern "C" fn create_input(
    session: Handle,
    params: *mut NV_ENC_CREATE_INPUT_BUFFER,
) -> Status {
    let call = "nvEncCreateInputBuffer";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        validate::version(call, Versioned::CreateInput, params.version, session.api)?;
        session.init(call)?;
        let format = params.bufferFmt.0;
        if !rules::FORMATS.contains(&format) {
            return refuse("format", call, rules::INVALID_PARAM, format!("{format:#x}"));
        }
        let bytes_per_pixel = if format >= 0x0100_0000 { 4 } else { 1 };
        let pitch = (params.width as usize * bytes_per_pixel).next_multiple_of(512);
        let handle = crate::cuda::new_handle();
        let data = vec![0; pitch * params.height as usize * 3 / 2];
        session.inputs.insert(
            handle,
            InputBuffer {
                data,
                pitch,
                format,
                locked: false,
            },
        );
        params.inputBuffer = handle as Handle;
        Ok(())
    })
}

unsafe extern "C" fn destroy_input(session: Handle, buffer: NV_ENC_INPUT_PTR) -> Status {
    let call = "nvEncDestroyInputBuffer";
    session_call(call, session, |session| {
        match session.inputs.remove(&(buffer as usize)) {
            Some(_) => Ok(()),
            None => refuse("input", call, rules::INVALID_PARAM, "unknown input buffer"),
        }
    })
}

unsafe extern "C" fn lock_input(session: Handle, params: *mut NV_ENC_LOCK_INPUT_BUFFER) -> Status {
    let call = "nvEncLockInputBuffer";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        validate::version(call, Versioned::LockInput, params.version, session.api)?;
        let Some(input) = session.inputs.get_mut(&(params.inputBuffer as usize)) else {
            return refuse("input", call, rules::INVALID_PARAM, "unknown input buffer");
        };
        if std::mem::replace(&mut input.locked, true) {
            return refuse("input", call, rules::INVALID_CALL, "locked already");
        }
        params.bufferDataPtr = input.data.as_mut_ptr().cast();
        params.pitch = input.pitch as u32;
        Ok(())
    })
}

unsafe extern "C" fn unlock_input(session: Handle, buffer: NV_ENC_INPUT_PTR) -> Status {
    let call = "nvEncUnlockInputBuffer";
    session_call(call, session, |session| {
        match session.inputs.get_mut(&(buffer as usize)) {
            Some(input) if input.locked => {
                input.locked = false;
                Ok(())
            }
            _ => refuse("input", call, rules::INVALID_CALL, "not locked"),
        }
    })
}

unsafe extern "C" fn register(session: Handle, params: *mut NV_ENC_REGISTER_RESOURCE) -> Status {
    let call = "nvEncRegisterResource";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        validate::version(call, Versioned::Register, params.version, session.api)?;
        session.init(call)?;
        all_zero!(call, params, reserved1, reserved2);
        let bad = |detail: &str| refuse("register", call, rules::INVALID_PARAM, detail);
        if params.resourceType.0 != 1 {
            return bad("resourceType is not CUDADEVICEPTR");
        }
        if params.bufferUsage.0 != 0 {
            return bad("bufferUsage is not INPUT_IMAGE");
        }
        if params.subResourceIndex != 0 || !rules::FORMATS.contains(&params.bufferFormat.0) {
            return bad("subResourceIndex or bufferFormat");
        }
        let (width, height, pitch) = (
            params.width as usize,
            params.height as usize,
            params.pitch as usize,
        );
        let planar = params.bufferFormat.0 < 0x0100_0000;
        let row = if planar { width } else { width * 4 };
        if pitch < row || pitch % 4 != 0 || width == 0 || height == 0 {
            return bad("pitch");
        }
        if config().register_status != 0 {
            return Err(config().register_status);
        }
        let rows = if planar { height * 3 / 2 } else { height };
        let address = params.resourceToRegister as usize;
        if session
            .resources
            .values()
            .any(|resource| resource.address == address)
        {
            return refuse(
                "register",
                call,
                rules::REGISTER_FAILED,
                "registered already",
            );
        }
        let Some(block) = memory().find(address, pitch * rows) else {
            return refuse(
                "register",
                call,
                rules::REGISTER_FAILED,
                "the picture is in no live allocation",
            );
        };
        block.registered.fetch_add(1, Ordering::AcqRel);
        let handle = crate::cuda::new_handle();
        let format = params.bufferFormat.0;
        session.resources.insert(
            handle,
            Resource {
                block,
                address,
                pitch,
                format,
                mapped: false,
            },
        );
        params.registeredResource = handle as Handle;
        Ok(())
    })
}

unsafe extern "C" fn unregister(session: Handle, resource: NV_ENC_REGISTERED_PTR) -> Status {
    let call = "nvEncUnregisterResource";
    session_call(call, session, |session| {
        match session.resources.get(&(resource as usize)) {
            None => return refuse("unregister", call, rules::NOT_REGISTERED, "not registered"),
            Some(found) if found.mapped => {
                return refuse("unregister", call, rules::INVALID_CALL, "still mapped");
            }
            Some(found) => found.block.registered.fetch_sub(1, Ordering::AcqRel),
        };
        session.resources.remove(&(resource as usize));
        Ok(())
    })
}

unsafe extern "C" fn map(session: Handle, params: *mut NV_ENC_MAP_INPUT_RESOURCE) -> Status {
    let call = "nvEncMapInputResource";
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        validate::version(call, Versioned::Map, params.version, session.api)?;
        all_zero!(call, params, reserved1, reserved2);
        if config().map_status != 0 {
            return Err(config().map_status);
        }
        let resource = params.registeredResource as usize;
        let Some(found) = session.resources.get_mut(&resource) else {
            return refuse("map", call, rules::NOT_REGISTERED, "not registered");
        };
        if std::mem::replace(&mut found.mapped, true) {
            return refuse("map", call, rules::MAP_FAILED, "mapped already");
        }
        let handle = crate::cuda::new_handle();
        params.mappedResource = handle as Handle;
        params.mappedBufferFmt = NV_ENC_BUFFER_FORMAT(found.format);
        session.maps.insert(
            handle,
            Map {
                resource,
                picture: None,
            },
        );
        Ok(())
    })
}

unsafe extern "C" fn unmap(session: Handle, mapped: NV_ENC_INPUT_PTR) -> Status {
    let call = "nvEncUnmapInputResource";
    session_call(call, session, |session| {
        let Some(found) = session.maps.remove(&(mapped as usize)) else {
            return refuse("unmap", call, rules::NOT_MAPPED, "not mapped");
        };
        if let Some(picture) = found.picture
            && !crate::cuda::is_lost()
            && !session.ended
        {
            violation(
                Class::P,
                "unmap-unfinished",
                call,
                Some(picture),
                "its output was not locked".to_owned(),
            );
        }
        if let Some(resource) = session.resources.get_mut(&found.resource) {
            resource.mapped = false;
        }
        Ok(())
    })
}

fn pictures_of(session: Handle) -> u64 {
    sessions()
        .get(&(session as usize))
        .map_or(0, |session| session.pictures)
}

unsafe extern "C" fn encode_picture(session: Handle, params: *mut NV_ENC_PIC_PARAMS) -> Status {
    let call = "nvEncEncodePicture";
    hang(HangIn::Encode, pictures_of(session));
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        session.encode(params)
    })
}

unsafe extern "C" fn lock_bitstream(session: Handle, params: *mut NV_ENC_LOCK_BITSTREAM) -> Status {
    let call = "nvEncLockBitstream";
    hang(HangIn::Lock, pictures_of(session).saturating_sub(1));
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        session.lock(params)
    })
}

unsafe extern "C" fn unlock_bitstream(session: Handle, buffer: NV_ENC_OUTPUT_PTR) -> Status {
    session_call("nvEncUnlockBitstream", session, |session| {
        session.unlock(buffer as usize)
    })
}

unsafe extern "C" fn sequence_params(
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

unsafe extern "C" fn destroy(session: Handle) -> Status {
    let call = "nvEncDestroyEncoder";
    hang(HangIn::Destroy, pictures_of(session));
    let status = session_call(call, session, |session| {
        session.check_destroy(call);
        Ok(())
    });
    sessions().remove(&(session as usize));
    report::write();
    status
}

unsafe extern "C" fn last_error(session: Handle) -> *const c_char {
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
