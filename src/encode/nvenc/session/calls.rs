//! The driver's encoder with the session that the calls go to: each call under its name, its status
//! in words, and the questions that are asked of an encoder before anything is set.

use std::ffi::c_void;

use nvenc_sys::*;

use super::super::cuda::Handle;
use super::super::failure::*;
use super::super::params::Caps;
use super::super::watch::named;

/// The driver's encoder, and a session of it once one was opened.
pub struct Calls {
    pub api: EncodeApi,
    /// Null until a session is open.
    session: *mut c_void,
}

#[allow(unsafe_code)] // calls through the driver's tables; each block says why the arguments hold
impl Calls {
    pub fn new(api: EncodeApi) -> Self {
        Self {
            api,
            session: std::ptr::null_mut(),
        }
    }

    /// Opens a session on `context`, which must be current. Whatever comes of it, [`Calls::destroy`]
    /// has to follow: a handle that comes back with a failure is destroyed too, as the header asks.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn open(&mut self, context: Handle) -> Result<(), Failure> {
        let mut params = NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS {
            version: NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER,
            deviceType: NV_ENC_DEVICE_TYPE::NV_ENC_DEVICE_TYPE_CUDA,
            device: context,
            apiVersion: NVENCAPI_VERSION,
            ..Default::default()
        };
        // SAFETY: the structure has its version, the context is current; the handle is a live field.
        let status = named(Call::Open.name(), || unsafe {
            (self.api.open_session_ex)(&raw mut params, &raw mut self.session)
        });
        // The driver's words need a session, and a failed open is not one.
        check(Call::Open, status, None)
    }

    pub fn is_open(&self) -> bool {
        !self.session.is_null()
    }

    /// Ends the session, if there is one. Everything that was made in it must be given up.
    pub fn destroy(&mut self) {
        if self.is_open() {
            // SAFETY: the session's own handle, after all its children; not used again.
            let ended = self.call(Call::Destroy, |api, session| unsafe {
                (api.destroy_encoder)(session)
            });
            if let Err(failure) = ended {
                log::debug!("nvenc: {failure}");
            }
        }
        self.session = std::ptr::null_mut();
    }

    /// The codecs that there are.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn codecs(&self) -> Result<Vec<GUID>, Failure> {
        let mut count = 0;
        // SAFETY: pointers to live variables; a list has room for as many GUIDs as are asked for.
        self.call(Call::GetGuids, |api, session| unsafe {
            (api.get_guid_count)(session, &raw mut count)
        })?;
        let mut list = vec![GUID::default(); count as usize];
        let mut given = 0;
        // SAFETY: pointers to live variables; a list has room for as many GUIDs as are asked for.
        self.call(Call::GetGuids, |api, session| unsafe {
            (api.get_guids)(session, list.as_mut_ptr(), count, &raw mut given)
        })?;
        list.truncate(given as usize);
        Ok(list)
    }

    /// What the GPU can do with `codec`.
    pub fn caps(&self, codec: GUID) -> Caps {
        Caps::ask(|cap| {
            let mut params = NV_ENC_CAPS_PARAM {
                version: NV_ENC_CAPS_PARAM_VER,
                capsToQuery: cap,
                ..Default::default()
            };
            let mut value = 0;
            // SAFETY: the structure has its version; both pointers are to live variables.
            let got = self.call(Call::GetCaps, |api, session| unsafe {
                (api.get_caps)(session, codec, &raw mut params, &raw mut value)
            });
            // A capability that the driver does not know is one that the GPU has not.
            got.map_or(0, |()| value)
        })
    }

    /// One call, under its name, its status turned into words.
    ///
    /// # Errors
    ///
    /// If its status is not success.
    pub fn call(
        &self,
        call: Call,
        run: impl FnOnce(&EncodeApi, *mut c_void) -> NVENCSTATUS,
    ) -> Result<(), Failure> {
        let status = named(call.name(), || run(&self.api, self.session));
        let code = i64::from(status.0);
        // Both are part of ordinary work, and words for them would allocate.
        if code == NEED_MORE_INPUT || code == ENCODER_BUSY {
            return Err(Failure {
                call: call.name(),
                status: code,
                detail: String::new(),
            });
        }
        if code == 0 {
            return Ok(());
        }
        // A lost device may hang in any call, also in that for its last words.
        let words = if code == DEVICE_NOT_EXIST || call == Call::Destroy {
            None
        } else {
            // SAFETY: the session is live and this is its thread.
            named("nvEncGetLastErrorString", || unsafe {
                self.api.last_error(self.session)
            })
        };
        check(call, status, words)
    }
}
