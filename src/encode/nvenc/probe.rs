//! What a GPU's encoder says of itself, for `gpu-info`: a session is opened, asked, and closed; nothing is coded.

use nvenc_sys::*;

use super::cuda::DeviceInfo;
use super::driver::Driver;
use super::params::{Caps, codec_guid};
use crate::encode::Codec;

/// Codecs and their capabilities; a reason where there is no encoder.
///
/// # Errors
///
/// In words; each is an ordinary outcome.
#[allow(unsafe_code)] // calls through the driver's tables; each block says why the arguments hold
pub fn probe(driver: &Driver, info: &DeviceInfo) -> Result<Vec<(Codec, Caps)>, String> {
    let (cuda, encode) = (&driver.cuda, &driver.encode);
    let mut context = std::ptr::null_mut();
    // SAFETY: a live pointer and an ordinal that the driver gave; released below.
    let got = unsafe { (cuda.primary_retain)(&raw mut context, info.ordinal) };
    cuda.check("cuDevicePrimaryCtxRetain", got)
        .map_err(|error| error.to_string())?;
    // SAFETY: the context was just retained.
    let got = unsafe { (cuda.set_current)(context) };
    let result = cuda
        .check("cuCtxSetCurrent", got)
        .map_err(|error| error.to_string())
        .and_then(|()| ask(encode, context));
    // SAFETY: nothing uses the context any more.
    unsafe {
        (cuda.set_current)(std::ptr::null_mut());
        (cuda.primary_release)(info.ordinal);
    }
    result
}

#[allow(unsafe_code)] // as above
fn ask(api: &EncodeApi, context: *mut std::ffi::c_void) -> Result<Vec<(Codec, Caps)>, String> {
    let in_words = |call: &str, status: NVENCSTATUS| {
        let info = StatusInfo::of(status);
        format!("{call}: {info}, {}", info.meaning)
    };
    let mut params = NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS {
        version: NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER,
        deviceType: NV_ENC_DEVICE_TYPE::NV_ENC_DEVICE_TYPE_CUDA,
        device: context,
        apiVersion: NVENCAPI_VERSION,
        ..Default::default()
    };
    let mut session = std::ptr::null_mut();
    // SAFETY: the structure has its version, the context is current, the handle is live.
    let status = unsafe { (api.open_session_ex)(&raw mut params, &raw mut session) };
    let mut found = Vec::new();
    let mut refused = (status.0 != 0).then(|| in_words("nvEncOpenEncodeSessionEx", status));
    if refused.is_none() {
        let (mut count, mut given) = (0, 0);
        // SAFETY: live pointers; the list holds `count` GUIDs.
        let (status, list) = unsafe {
            let first = (api.get_guid_count)(session, &raw mut count);
            let mut list = vec![GUID::default(); count as usize];
            let second = (api.get_guids)(session, list.as_mut_ptr(), count, &raw mut given);
            list.truncate(given as usize);
            (if first.0 != 0 { first } else { second }, list)
        };
        refused = (status.0 != 0).then(|| in_words("nvEncGetEncodeGUIDs", status));
        for codec in [Codec::H264, Codec::H265] {
            let guid = codec_guid(codec);
            if list.contains(&guid) {
                let caps = Caps::ask(|cap| {
                    let mut params = NV_ENC_CAPS_PARAM {
                        version: NV_ENC_CAPS_PARAM_VER,
                        capsToQuery: cap,
                        ..Default::default()
                    };
                    let mut value = 0;
                    // SAFETY: the structure has its version; both pointers are live.
                    let got =
                        unsafe { (api.get_caps)(session, guid, &raw mut params, &raw mut value) };
                    if got.0 == 0 { value } else { 0 }
                });
                found.push((codec, caps));
            }
        }
    }
    if !session.is_null() {
        // SAFETY: given above, also with a failure; destroyed once.
        unsafe { (api.destroy_encoder)(session) };
    }
    match refused {
        Some(reason) => Err(reason),
        None => Ok(found),
    }
}
