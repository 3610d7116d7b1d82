//! What a GPU's encoder says of itself, for `gpu-info`: a session is opened, asked, and closed; nothing is coded.

use super::cuda::{DeviceInfo, Handle};
use super::driver::Driver;
use super::failure::Failure;
use super::params::{Caps, codec_guid};
use super::session::calls::Calls;
use crate::encode::Codec;

/// Codecs and their capabilities; a reason where there is no encoder.
///
/// # Errors
///
/// In words; each is an ordinary outcome.
#[allow(unsafe_code)] // calls through the driver's tables; each block says why the arguments hold
pub fn probe(driver: &Driver, info: &DeviceInfo) -> Result<Vec<(Codec, Caps)>, String> {
    let cuda = &driver.cuda;
    let mut context = std::ptr::null_mut();
    // SAFETY: a live pointer and an ordinal that the driver gave; released below.
    cuda.call("cuDevicePrimaryCtxRetain", || unsafe {
        (cuda.primary_retain)(&raw mut context, info.ordinal)
    })
    .map_err(|error| error.to_string())?;
    // SAFETY: the context was just retained.
    let current = cuda.call("cuCtxSetCurrent", || unsafe { (cuda.set_current)(context) });
    let result = current.map_err(|error| error.to_string()).and_then(|()| {
        let mut calls = Calls::new(driver.encode);
        let found = ask(&mut calls, context);
        calls.destroy();
        found.map_err(|failure| failure.to_string())
    });
    // SAFETY: nothing uses the context any more.
    unsafe {
        (cuda.set_current)(std::ptr::null_mut());
        (cuda.primary_release)(info.ordinal);
    }
    result
}

fn ask(calls: &mut Calls, context: Handle) -> Result<Vec<(Codec, Caps)>, Failure> {
    calls.open(context)?;
    let there = calls.codecs()?;
    Ok([Codec::H264, Codec::H265]
        .into_iter()
        .map(|codec| (codec, codec_guid(codec)))
        .filter(|(_, guid)| there.contains(guid))
        .map(|(codec, guid)| (codec, calls.caps(guid)))
        .collect())
}
