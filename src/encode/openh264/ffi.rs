//! The calls into libopenh264, and nothing else: a handle that is created, initialised, used and
//! destroyed in the order that `codec_api.h` asks for.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use openh264_sys2 as sys;
use openh264_sys2::source::APILoader;

use crate::frame::surface::I420Planes;

/// What an encoder is initialised with, in the units of the library.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub width: u32,
    pub height: u32,
    /// At most [`Settings::LARGEST_RATE`].
    pub frames_per_second: f32,
    pub rate: Rate,
    /// Pictures from one IDR to the next, 0 for never.
    pub gop: u32,
    /// Slices of a picture, each coded by its own thread.
    pub slices: u16,
    pub complexity: Complexity,
    pub cabac: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Rate {
    BitsPerSecond(i32),
    Quantiser(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complexity {
    Low,
    Medium,
    High,
}

/// A call that failed: its name, what it returned, and what the library said last.
#[derive(Debug)]
pub(super) struct Failure {
    pub call: &'static str,
    pub status: i64,
    pub detail: String,
}

/// What became of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coded {
    Key,
    Inter,
    /// The library chose to code nothing.
    Skipped,
}

/// An initialised encoder. Every call comes from the thread that owns it: it is not `Send`.
pub(super) struct Handle {
    raw: NonNull<sys::ISVCEncoder>,
    /// 7 kB that the library fills for each picture.
    info: Box<sys::SFrameBSInfo>,
    /// The library holds its address until `WelsDestroySVCEncoder`.
    trace: Box<Trace>,
}

impl Settings {
    /// `MAX_FRAME_RATE` of the library, which lowers a higher one without a word.
    pub const LARGEST_RATE: f32 = 60.0;

    fn params(&self, mut params: sys::SEncParamExt) -> sys::SEncParamExt {
        // SCREEN_CONTENT would force scene-change detection, with which a busy picture is all
        // IDRs.
        params.iUsageType = sys::CAMERA_VIDEO_REAL_TIME;
        params.iPicWidth = self.width as c_int;
        params.iPicHeight = self.height as c_int;
        params.fMaxFrameRate = self.frames_per_second;
        params.uiIntraPeriod = self.gop;
        params.iNumRefFrame = 1;
        params.iTemporalLayerNum = 1;
        params.iSpatialLayerNum = 1;
        // Equal parameter sets at every IDR: nobody downstream has to renew anything.
        params.eSpsPpsIdStrategy = sys::CONSTANT_ID;
        params.bPrefixNalAddingCtrl = false;
        params.bEnableSSEI = false;
        params.iComplexityMode = match self.complexity {
            Complexity::Low => sys::LOW_COMPLEXITY,
            Complexity::Medium => sys::MEDIUM_COMPLEXITY,
            Complexity::High => sys::HIGH_COMPLEXITY,
        };
        params.iEntropyCodingModeFlag = c_int::from(self.cabac);
        // A skipped frame would be a lost access unit.
        params.bEnableFrameSkip = false;
        params.bEnableSceneChangeDetect = false;
        params.bEnableDenoise = false;
        params.bEnableBackgroundDetection = false;
        params.bEnableLongTermReference = false;
        params.bEnableAdaptiveQuant = false;
        params.iMultipleThreadIdc = self.slices;
        params.iMinQp = 0;
        params.iMaxQp = 0;
        let layer = &mut params.sSpatialLayers[0];
        layer.iVideoWidth = self.width as c_int;
        layer.iVideoHeight = self.height as c_int;
        layer.fFrameRate = self.frames_per_second;
        layer.uiProfileIdc = if self.cabac {
            sys::PRO_MAIN
        } else {
            sys::PRO_BASELINE
        };
        layer.uiLevelIdc = sys::LEVEL_UNKNOWN;
        match self.rate {
            Rate::BitsPerSecond(bits) => {
                params.iRCMode = sys::RC_BITRATE_MODE;
                params.iTargetBitrate = bits;
                params.iMaxBitrate = bits;
                // The library's own range ends at 42, with which noise overshoots the rate.
                params.iMinQp = 12;
                params.iMaxQp = 51;
                layer.iSpatialBitrate = bits;
                layer.iMaxSpatialBitrate = bits;
            }
            Rate::Quantiser(qp) => {
                params.iRCMode = sys::RC_OFF_MODE;
                layer.iDLayerQp = c_int::from(qp);
            }
        }
        layer.sSliceArgument.uiSliceMode = if self.slices > 1 {
            sys::SM_FIXEDSLCNUM_SLICE
        } else {
            sys::SM_SINGLE_SLICE
        };
        layer.sSliceArgument.uiSliceNum = u32::from(self.slices);
        // BT.709, limited range: H.264 tables E-2 to E-5; 5 is "unspecified video format".
        layer.bVideoSignalTypePresent = true;
        layer.uiVideoFormat = sys::VF_UNDEF as u8;
        layer.bFullRange = false;
        layer.bColorDescriptionPresent = true;
        layer.uiColorPrimaries = 1;
        layer.uiTransferCharacteristics = 1;
        layer.uiColorMatrix = 1;
        params
    }
}

impl Handle {
    /// # Errors
    ///
    /// Whatever the library refuses, with its own words.
    pub fn open(settings: &Settings) -> Result<Self, Failure> {
        let mut raw: *mut sys::ISVCEncoder = std::ptr::null_mut();
        // SAFETY: `raw` is a valid place for the pointer that the call writes.
        let status = unsafe { APILoader::WelsCreateSVCEncoder(&raw mut raw) };
        let mut handle = match NonNull::new(raw) {
            Some(raw) if status == 0 => Self {
                raw,
                info: Box::default(),
                trace: Box::default(),
            },
            _ => {
                return Err(Failure {
                    call: "WelsCreateSVCEncoder",
                    status: i64::from(status),
                    detail: "no memory".to_owned(),
                });
            }
        };
        handle.listen()?;
        let mut defaults = sys::SEncParamExt::default();
        let get = handle.vtbl().GetDefaultParams;
        // SAFETY: the handle is live and `defaults` is a valid place for the parameters.
        let status = get.map_or(-1, |get| unsafe { get(handle.ptr(), &raw mut defaults) });
        handle.check("GetDefaultParams", status)?;
        let params = settings.params(defaults);
        let init = handle.vtbl().InitializeExt;
        // SAFETY: the handle is live; the library copies the parameters.
        let status = init.map_or(-1, |init| unsafe { init(handle.ptr(), &raw const params) });
        handle.check("InitializeExt", status)?;
        // From here on nothing but what is wrong: at INFO the library formats lines per picture.
        handle.set(
            sys::ENCODER_OPTION_TRACE_LEVEL,
            &mut (sys::WELS_LOG_WARNING as c_int),
        )?;
        Ok(handle)
    }

    /// Codes one picture and appends its access unit, Annex B, to `out`.
    ///
    /// # Errors
    ///
    /// The encoder is lost.
    pub fn encode(
        &mut self,
        planes: &I420Planes<'_>,
        millis: i64,
        force_key: bool,
        out: &mut Vec<u8>,
    ) -> Result<Coded, Failure> {
        if force_key {
            let force = self.vtbl().ForceIntraFrame;
            // SAFETY: the handle is live and initialised.
            let status = force.map_or(-1, |force| unsafe { force(self.ptr(), true) });
            self.check("ForceIntraFrame", status)?;
        }
        let (luma, chroma) = (planes.luma_stride as c_int, planes.chroma_stride as c_int);
        let picture = sys::SSourcePicture {
            iColorFormat: sys::videoFormatI420 as c_int,
            iStride: [luma, chroma, chroma, 0],
            pData: [
                planes.y.as_ptr().cast_mut(),
                planes.u.as_ptr().cast_mut(),
                planes.v.as_ptr().cast_mut(),
                std::ptr::null_mut(),
            ],
            iPicWidth: planes.width as c_int,
            iPicHeight: planes.height as c_int,
            uiTimeStamp: millis,
            ..Default::default()
        };
        let encode = self.vtbl().EncodeFrame;
        let info: *mut sys::SFrameBSInfo = &raw mut *self.info;
        // SAFETY: the handle is live and initialised; the planes hold stride * rows bytes each,
        // are borrowed for the call and only read (the library copies them before it works).
        let status = encode.map_or(-1, |encode| unsafe {
            encode(self.ptr(), &raw const picture, info)
        });
        self.check("EncodeFrame", status)?;
        let coded = match self.info.eFrameType {
            sys::videoFrameTypeIDR => Coded::Key,
            sys::videoFrameTypeSkip | sys::videoFrameTypeInvalid => return Ok(Coded::Skipped),
            _ => Coded::Inter,
        };
        let layers = (self.info.iLayerNum.max(0) as usize).min(self.info.sLayerInfo.len());
        for layer in &self.info.sLayerInfo[..layers] {
            if layer.iNalCount <= 0 || layer.pNalLengthInByte.is_null() || layer.pBsBuf.is_null() {
                continue;
            }
            // SAFETY: the library says that `iNalCount` lengths lie at `pNalLengthInByte`; they
            // stay until the next call on this handle.
            let lengths = unsafe {
                std::slice::from_raw_parts(layer.pNalLengthInByte, layer.iNalCount as usize)
            };
            let len: usize = lengths.iter().map(|len| (*len).max(0) as usize).sum();
            // SAFETY: the NAL units of a layer lie one behind the other at `pBsBuf`, for as long.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(layer.pBsBuf, len) });
        }
        Ok(coded)
    }

    /// # Errors
    ///
    /// If the library refuses the rate; it keeps the old one.
    pub fn set_bitrate(&mut self, from: i32, to: i32) -> Result<(), Failure> {
        let mut info = sys::SBitrateInfo {
            iLayer: sys::SPATIAL_LAYER_0,
            iBitrate: to,
        };
        // The library refuses a target above the maximum, so their order depends on the direction.
        let order = if to > from {
            [sys::ENCODER_OPTION_MAX_BITRATE, sys::ENCODER_OPTION_BITRATE]
        } else {
            [sys::ENCODER_OPTION_BITRATE, sys::ENCODER_OPTION_MAX_BITRATE]
        };
        for option in order {
            self.set(option, &mut info)?;
        }
        Ok(())
    }

    /// The set of CPU features that the library's assembler uses, 0 if it was built without;
    /// `None` if it did not say.
    pub fn cpu_features(&self) -> Option<u32> {
        u32::try_from(self.trace.cpu_features.load(Ordering::Relaxed)).ok()
    }

    fn listen(&mut self) -> Result<(), Failure> {
        let mut context: *mut c_void = (&raw mut *self.trace).cast();
        let mut callback: TraceCallback = on_trace;
        // INFO while it starts: the line about CPU features is one.
        let mut level = sys::WELS_LOG_INFO as c_int;
        self.set(sys::ENCODER_OPTION_TRACE_CALLBACK_CONTEXT, &mut context)?;
        self.set(sys::ENCODER_OPTION_TRACE_CALLBACK, &mut callback)?;
        self.set(sys::ENCODER_OPTION_TRACE_LEVEL, &mut level)
    }

    /// `T` is the type that `option` wants.
    fn set<T>(&mut self, option: sys::ENCODER_OPTION, value: &mut T) -> Result<(), Failure> {
        let set = self.vtbl().SetOption;
        // SAFETY: the handle is live; each caller passes the type that the option's line in
        // `codec_app_def.h` names, and the library reads it during the call only.
        let status = set.map_or(-1, |set| unsafe {
            set(self.ptr(), option, std::ptr::from_mut(value).cast())
        });
        self.check("SetOption", status)
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<(), Failure> {
        if status == 0 {
            return Ok(());
        }
        let words = self.trace.words.lock();
        let words = words.unwrap_or_else(PoisonError::into_inner).clone();
        Err(Failure {
            call,
            status: i64::from(status),
            detail: words,
        })
    }

    fn ptr(&self) -> *mut sys::ISVCEncoder {
        self.raw.as_ptr()
    }

    fn vtbl(&self) -> &sys::ISVCEncoderVtbl {
        // SAFETY: a live encoder points at its table of functions, which lives as long as the
        // program.
        unsafe { &**self.raw.as_ptr() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(end) = self.vtbl().Uninitialize {
            // SAFETY: the handle is live; ending one that was never initialised does nothing.
            unsafe { end(self.ptr()) };
        }
        // SAFETY: created by `WelsCreateSVCEncoder`, destroyed once, not used afterwards. The
        // trace context, whose address it held, is dropped after this function.
        unsafe { APILoader::WelsDestroySVCEncoder(self.raw.as_ptr()) };
    }
}

type TraceCallback = unsafe extern "C" fn(*mut c_void, c_int, *const c_char);

/// What the library's own words are needed for. Its slice threads speak too, hence `Sync` parts.
#[derive(Debug)]
struct Trace {
    cpu_features: AtomicI64,
    /// The last error.
    words: Mutex<String>,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            cpu_features: AtomicI64::new(-1),
            words: Mutex::default(),
        }
    }
}

/// Receives the library's log lines, which else go to standard error.
///
/// # Safety
///
/// `context` is the `Trace` of a live handle and `message` a string that ends in a zero byte.
unsafe extern "C" fn on_trace(context: *mut c_void, level: c_int, message: *const c_char) {
    if context.is_null() || message.is_null() {
        return;
    }
    // SAFETY: `listen` passed the address of a boxed `Trace` that outlives the encoder; it has
    // only `Sync` parts and is never borrowed mutably.
    let trace = unsafe { &*context.cast::<Trace>() };
    // SAFETY: the library ends its lines with a zero byte.
    let message = unsafe { CStr::from_ptr(message) };
    // A logger that panics must not unwind through C++.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| trace.hear(level, message)));
}

impl Trace {
    fn hear(&self, level: c_int, message: &CStr) {
        let text = message.to_string_lossy();
        // "[OpenH264] this = 0x..., Error:..." : the address helps nobody.
        let text = text
            .split_once(", ")
            .map_or(text.as_ref(), |(_, rest)| rest);
        let text = text.trim_end();
        if let Some(features) = cpu_features(text) {
            self.cpu_features
                .store(i64::from(features), Ordering::Relaxed);
        }
        if level == sys::WELS_LOG_ERROR as c_int {
            let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
            text.clone_into(&mut words);
            log::debug!("openh264: {text}");
        } else if level == sys::WELS_LOG_WARNING as c_int {
            // Its warnings are about choices of ours (frame skip off), each a line in `params`.
            log::debug!("openh264: {text}");
        } else {
            log::trace!("openh264: {text}");
        }
    }
}

/// Out of "WELS CPU features/capacities (0x4007fff) detected: ...".
fn cpu_features(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("CPU features/capacities (0x")?;
    let (hex, _) = rest.split_once(')')?;
    u32::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_about_cpu_features_is_understood() {
        let line = "Info:WELS CPU features/capacities (0x4007fff) detected: \tHTT: Y";
        assert_eq!(cpu_features(line), Some(0x0400_7FFF));
        assert_eq!(
            cpu_features("Info:WELS CPU features/capacities (0x0) detected"),
            Some(0)
        );
        assert_eq!(cpu_features("Info:something else"), None);
    }
}
