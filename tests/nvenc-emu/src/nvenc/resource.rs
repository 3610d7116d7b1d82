//! Memory of the client's that pictures are read from: registered, and mapped for a picture.

use std::sync::atomic::Ordering;

use nvenc_sys::*;

use super::{Handle, Status, arg, session_call};
use crate::config::config;
use crate::memory::memory;
use crate::report::{Class, violation};
use crate::rules::{self, Versioned};
use crate::session::{Map, Resource, refuse};
use crate::validate::{self, all_zero};

pub(super) unsafe extern "C" fn register(
    session: Handle,
    params: *mut NV_ENC_REGISTER_RESOURCE,
) -> Status {
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

pub(super) unsafe extern "C" fn unregister(
    session: Handle,
    resource: NV_ENC_REGISTERED_PTR,
) -> Status {
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

pub(super) unsafe extern "C" fn map(
    session: Handle,
    params: *mut NV_ENC_MAP_INPUT_RESOURCE,
) -> Status {
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

pub(super) unsafe extern "C" fn unmap(session: Handle, mapped: NV_ENC_INPUT_PTR) -> Status {
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
