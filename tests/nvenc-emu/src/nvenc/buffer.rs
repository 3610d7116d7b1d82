//! Buffers that the driver makes: for the bitstream, and for pictures from the host.

use nvenc_sys::*;

use super::{Handle, Status, arg, session_call};
use crate::report::{Class, violation};
use crate::rules::{self, Versioned};
use crate::session::{InputBuffer, Output, OutputState, refuse};
use crate::validate::{self, all_zero};

pub(super) unsafe extern "C" fn create_bitstream(
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

pub(super) unsafe extern "C" fn destroy_bitstream(
    session: Handle,
    buffer: NV_ENC_OUTPUT_PTR,
) -> Status {
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

pub(super) unsafe extern "C" fn create_input(
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

pub(super) unsafe extern "C" fn destroy_input(session: Handle, buffer: NV_ENC_INPUT_PTR) -> Status {
    let call = "nvEncDestroyInputBuffer";
    session_call(call, session, |session| {
        match session.inputs.remove(&(buffer as usize)) {
            Some(_) => Ok(()),
            None => refuse("input", call, rules::INVALID_PARAM, "unknown input buffer"),
        }
    })
}

pub(super) unsafe extern "C" fn lock_input(
    session: Handle,
    params: *mut NV_ENC_LOCK_INPUT_BUFFER,
) -> Status {
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

pub(super) unsafe extern "C" fn unlock_input(session: Handle, buffer: NV_ENC_INPUT_PTR) -> Status {
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
