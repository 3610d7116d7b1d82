//! Pictures in, access units out: the calls; `crate::picture` does the work.

use nvenc_sys::*;

use super::{Handle, Status, arg, session_call};
use crate::config::HangIn;
use crate::picture::hang;
use crate::session::sessions;

pub(super) unsafe extern "C" fn encode_picture(
    session: Handle,
    params: *mut NV_ENC_PIC_PARAMS,
) -> Status {
    let call = "nvEncEncodePicture";
    hang(HangIn::Encode, pictures_of(session));
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        session.encode(params)
    })
}

pub(super) unsafe extern "C" fn lock_bitstream(
    session: Handle,
    params: *mut NV_ENC_LOCK_BITSTREAM,
) -> Status {
    let call = "nvEncLockBitstream";
    hang(HangIn::Lock, pictures_of(session).saturating_sub(1));
    session_call(call, session, |session| {
        // SAFETY: as the client gave it.
        let params = unsafe { arg(call, params) }?;
        session.lock(params)
    })
}

pub(super) unsafe extern "C" fn unlock_bitstream(
    session: Handle,
    buffer: NV_ENC_OUTPUT_PTR,
) -> Status {
    session_call("nvEncUnlockBitstream", session, |session| {
        session.unlock(buffer as usize)
    })
}

pub(super) fn pictures_of(session: Handle) -> u64 {
    sessions()
        .get(&(session as usize))
        .map_or(0, |session| session.pictures)
}
