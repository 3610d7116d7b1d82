//! The fake `libnvidia-encode.so.1`: its two exported functions and the list that they give.

#![allow(non_snake_case, clippy::missing_safety_doc)]

mod ask;
mod buffer;
mod lifecycle;
mod picture;
mod resource;

use std::ffi::c_void;

use nvenc_sys::*;

use self::ask::*;
use self::buffer::*;
use self::lifecycle::*;
use self::picture::*;
use self::resource::*;
use crate::config::config;
use crate::report::count_call;
use crate::rules::{self, Versioned};
use crate::session::{Session, refuse, with};
use crate::validate;

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
