//! A session from open to destroy.

use std::time::Duration;

use nvenc_sys::*;

use super::picture::pictures_of;
use super::{API, Handle, Status, arg, code, session_call};
use crate::codec::{self, Settings};
use crate::config::{Gpu, HangIn, config};
use crate::picture::hang;
use crate::report::{self, count_call, stats};
use crate::rules::{self, Versioned};
use crate::session::{Init, Session, refuse, sessions};
use crate::validate::{self, all_zero};

pub(super) unsafe extern "C" fn open_session(
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

pub(super) unsafe extern "C" fn initialize(
    session: Handle,
    params: *mut NV_ENC_INITIALIZE_PARAMS,
) -> Status {
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

pub(super) unsafe extern "C" fn reconfigure(
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
        let fixed = |init: &Init| (init.hevc, init.interval, init.gop, init.preset);
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

pub(super) unsafe extern "C" fn set_streams(
    session: Handle,
    input: Handle,
    output: Handle,
) -> Status {
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

pub(super) unsafe extern "C" fn destroy(session: Handle) -> Status {
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
