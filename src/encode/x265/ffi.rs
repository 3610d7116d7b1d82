//! The calls into libx265, and nothing else: its table of functions, checked before the first
//! use, and an encoder that is opened by names, used and closed in order.

use std::ffi::{CStr, CString, c_int};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use x265_sys as sys;

use crate::frame::surface::I420Planes;

/// An open encoder with the memory that its calls need. Every call comes from the thread that
/// owns it: it is not `Send`.
pub(super) struct Handle {
    api: Functions,
    param: NonNull<sys::x265_param>,
    input: NonNull<sys::x265_picture>,
    output: NonNull<sys::x265_picture>,
    /// `None` only while it is being opened.
    encoder: Option<NonNull<sys::x265_encoder>>,
}

/// One coded picture; borrows the library's memory until the next call.
pub(super) struct Coded<'a> {
    /// The number that the picture was given.
    pub number: i64,
    pub key: bool,
    nals: &'a [sys::x265_nal],
}

/// How much the library holds back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depth {
    pub lookahead: usize,
    pub frame_threads: usize,
    pub b_frames: usize,
}

/// The entries of the library's table that are used here; none is missing.
#[derive(Clone, Copy)]
struct Functions {
    param_alloc: unsafe extern "C" fn() -> *mut sys::x265_param,
    param_free: unsafe extern "C" fn(*mut sys::x265_param),
    param_default_preset: unsafe extern "C" fn(
        *mut sys::x265_param,
        *const std::ffi::c_char,
        *const std::ffi::c_char,
    ) -> c_int,
    param_parse: unsafe extern "C" fn(
        *mut sys::x265_param,
        *const std::ffi::c_char,
        *const std::ffi::c_char,
    ) -> c_int,
    picture_alloc: unsafe extern "C" fn() -> *mut sys::x265_picture,
    picture_free: unsafe extern "C" fn(*mut sys::x265_picture),
    picture_init: unsafe extern "C" fn(*mut sys::x265_param, *mut sys::x265_picture),
    encoder_open: unsafe extern "C" fn(*mut sys::x265_param) -> *mut sys::x265_encoder,
    encoder_parameters: unsafe extern "C" fn(*mut sys::x265_encoder, *mut sys::x265_param),
    encoder_encode: unsafe extern "C" fn(
        *mut sys::x265_encoder,
        *mut *mut sys::x265_nal,
        *mut u32,
        *mut sys::x265_picture,
        *mut sys::x265_picture,
    ) -> c_int,
    encoder_close: unsafe extern "C" fn(*mut sys::x265_encoder),
}

/// Opening fills tables that all encoders of the process share (`x265_setup_primitives` and the
/// bit-cost tables look whether they are filled without a lock of their own), so only one opens
/// at a time. Coding needs no lock.
static OPENING: Mutex<()> = Mutex::new(());

impl Handle {
    /// Opens an encoder with a preset, a tuning and settings by name.
    ///
    /// # Errors
    ///
    /// A sentence that names what is refused.
    pub fn open(
        preset: &str,
        tuning: Option<&str>,
        settings: &[(&str, String)],
    ) -> Result<Self, String> {
        let api = Functions::load()?;
        // SAFETY: plain allocations, owned by the handle below.
        let (param, input, output) = unsafe {
            (
                (api.param_alloc)(),
                (api.picture_alloc)(),
                (api.picture_alloc)(),
            )
        };
        let (Some(param), Some(input), Some(output)) = (
            NonNull::new(param),
            NonNull::new(input),
            NonNull::new(output),
        ) else {
            // Whatever was allocated is lost with a process that has no memory left.
            return Err("no memory".to_owned());
        };
        let mut handle = Self {
            api,
            param,
            input,
            output,
            encoder: None,
        };
        handle.preset(preset, tuning)?;
        for (name, value) in settings {
            handle.parse(name, value)?;
        }
        let encoder = {
            // Not longer: a handle that is dropped on an error below takes the lock itself.
            let _guard = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: `param` is set up; the library copies it.
            unsafe { (api.encoder_open)(param.as_ptr()) }
        };
        handle.encoder = Some(NonNull::new(encoder).ok_or("encoder_open refused the settings")?);
        // SAFETY: both are live; the picture takes its format from the parameters.
        unsafe { (api.picture_init)(param.as_ptr(), input.as_ptr()) };
        Ok(handle)
    }

    /// Hands in a picture, or with `None` asks for what is held back; gives the next coded
    /// picture, if there is one. `number` comes back with it.
    ///
    /// # Errors
    ///
    /// The library's status; the encoder is lost.
    pub fn encode(
        &mut self,
        picture: Option<(&I420Planes<'_>, i64, bool)>,
    ) -> Result<Option<Coded<'_>>, i64> {
        let encoder = self.encoder();
        let input = match picture {
            None => std::ptr::null_mut(),
            Some((planes, number, force_key)) => {
                // SAFETY: allocated by the library for this handle and only used here.
                let input = unsafe { self.input.as_mut() };
                input.pts = number;
                input.planes = [planes.y, planes.u, planes.v].map(|p| p.as_ptr().cast_mut().cast());
                let (luma, chroma) = (planes.luma_stride as c_int, planes.chroma_stride as c_int);
                input.stride = [luma, chroma, chroma];
                input.bitDepth = 8;
                input.colorSpace = sys::X265_CSP_I420 as c_int;
                input.sliceType = if force_key {
                    sys::X265_TYPE_IDR as c_int
                } else {
                    sys::X265_TYPE_AUTO as c_int
                };
                self.input.as_ptr()
            }
        };
        let mut nals: *mut sys::x265_nal = std::ptr::null_mut();
        let mut count = 0_u32;
        // SAFETY: all pointers are live; the planes hold stride * rows bytes each, are borrowed
        // for the call and copied in it.
        let status = unsafe {
            (self.api.encoder_encode)(
                encoder,
                &raw mut nals,
                &raw mut count,
                input,
                self.output.as_ptr(),
            )
        };
        if status < 0 {
            return Err(i64::from(status));
        }
        if status == 0 || count == 0 || nals.is_null() {
            return Ok(None);
        }
        // SAFETY: filled by the call, which returned a picture.
        let output = unsafe { self.output.as_ref() };
        // SAFETY: the call says that `count` NAL units lie there; they stay until the next call,
        // which needs this handle mutably.
        let nals = unsafe { std::slice::from_raw_parts(nals, count as usize) };
        Ok(Some(Coded {
            number: output.pts,
            key: output.sliceType == sys::X265_TYPE_IDR as c_int,
            nals,
        }))
    }

    /// As the library set itself up in the end.
    pub fn depth(&mut self) -> Depth {
        let encoder = self.encoder();
        // SAFETY: both are live, and the layout of the parameters was checked by `load`.
        let param = unsafe {
            (self.api.encoder_parameters)(encoder, self.param.as_ptr());
            self.param.as_ref()
        };
        Depth {
            lookahead: param.lookaheadDepth.max(0) as usize,
            frame_threads: param.frameNumThreads.max(1) as usize,
            b_frames: param.bframes.max(0) as usize,
        }
    }

    fn encoder(&self) -> *mut sys::x265_encoder {
        self.encoder
            .expect("a handle that was given out is open")
            .as_ptr()
    }

    fn preset(&mut self, preset: &str, tuning: Option<&str>) -> Result<(), String> {
        let name = c_string(preset)?;
        let tune = tuning.map(c_string).transpose()?;
        let tune = tune.as_ref().map_or(std::ptr::null(), |tune| tune.as_ptr());
        // SAFETY: `param` is live, the strings end in a zero byte and outlive the call.
        let status =
            unsafe { (self.api.param_default_preset)(self.param.as_ptr(), name.as_ptr(), tune) };
        match status {
            0 => Ok(()),
            _ => Err(format!("preset {preset} with tuning {tuning:?} is unknown")),
        }
    }

    fn parse(&mut self, name: &str, value: &str) -> Result<(), String> {
        let (c_name, c_value) = (c_string(name)?, c_string(value)?);
        // SAFETY: `param` is live, the strings end in a zero byte and outlive the call.
        let status = unsafe {
            (self.api.param_parse)(self.param.as_ptr(), c_name.as_ptr(), c_value.as_ptr())
        };
        match status {
            0 => Ok(()),
            sys::X265_PARAM_BAD_NAME => Err(format!("it has no setting {name}")),
            _ => Err(format!("it refuses {name}={value}")),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Closing frees what opening shares, see `OPENING`.
        let _guard = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = self.encoder.take() {
            // SAFETY: opened once, closed once, not used afterwards.
            unsafe { (self.api.encoder_close)(encoder.as_ptr()) };
        }
        // SAFETY: allocated by the same library in `open`, freed once. `x265_cleanup` is never
        // called: it frees tables that another encoder of the process may be using, and at the
        // end of the process they go anyway.
        unsafe {
            (self.api.picture_free)(self.input.as_ptr());
            (self.api.picture_free)(self.output.as_ptr());
            (self.api.param_free)(self.param.as_ptr());
        }
    }
}

impl Coded<'_> {
    /// Appends the access unit, Annex B, to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        for nal in self.nals {
            if nal.payload.is_null() {
                continue;
            }
            // SAFETY: the library says that `sizeBytes` bytes lie there; they stay while `self`
            // borrows the handle.
            let bytes = unsafe { std::slice::from_raw_parts(nal.payload, nal.sizeBytes as usize) };
            out.extend_from_slice(bytes);
        }
    }
}

impl Functions {
    /// The library's table, if the library at hand is the one that the bindings were made from.
    fn load() -> Result<Self, String> {
        let mut error: c_int = 0;
        let build = sys::X265_BUILD as c_int;
        // SAFETY: the pointer is valid for the call; the table that comes back is static.
        let api = unsafe { sys::x265_api_query(8, build, &raw mut error).as_ref() };
        let api = api.ok_or_else(|| format!("x265_api_query failed with {error}"))?;
        // The query answers for other builds as well, whose structures have another shape.
        let checks = [
            ("build", build, api.api_build_number),
            (
                "sizeof(x265_param)",
                size_of::<sys::x265_param>() as c_int,
                api.sizeof_param,
            ),
            (
                "sizeof(x265_picture)",
                size_of::<sys::x265_picture>() as c_int,
                api.sizeof_picture,
            ),
            ("bit depth", 8, api.bit_depth),
        ];
        for (what, wanted, found) in checks {
            if wanted != found {
                return Err(format!(
                    "libx265 has {what} {found}, this program was built for {wanted}: build it \
                     again where libx265-dev is the installed library's"
                ));
            }
        }
        let gap = |name: &str| format!("libx265 has no {name}");
        Ok(Self {
            param_alloc: api.param_alloc.ok_or_else(|| gap("param_alloc"))?,
            param_free: api.param_free.ok_or_else(|| gap("param_free"))?,
            param_default_preset: api
                .param_default_preset
                .ok_or_else(|| gap("param_default_preset"))?,
            param_parse: api.param_parse.ok_or_else(|| gap("param_parse"))?,
            picture_alloc: api.picture_alloc.ok_or_else(|| gap("picture_alloc"))?,
            picture_free: api.picture_free.ok_or_else(|| gap("picture_free"))?,
            picture_init: api.picture_init.ok_or_else(|| gap("picture_init"))?,
            encoder_open: api.encoder_open.ok_or_else(|| gap("encoder_open"))?,
            encoder_parameters: api
                .encoder_parameters
                .ok_or_else(|| gap("encoder_parameters"))?,
            encoder_encode: api.encoder_encode.ok_or_else(|| gap("encoder_encode"))?,
            encoder_close: api.encoder_close.ok_or_else(|| gap("encoder_close"))?,
        })
    }
}

/// The version of the library at hand, for reports.
pub(super) fn version() -> Option<String> {
    let mut error: c_int = 0;
    // SAFETY: as in `Functions::load`; `version_str` ends in a zero byte and is static.
    unsafe {
        let api = sys::x265_api_query(8, sys::X265_BUILD as c_int, &raw mut error).as_ref()?;
        let version = NonNull::new(api.version_str.cast_mut())?;
        Some(
            CStr::from_ptr(version.as_ptr())
                .to_string_lossy()
                .into_owned(),
        )
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} holds a zero byte"))
}
