//! H.264 by openh264: one slice, no key frames of its own.

use openh264_sys2::source::APILoader;
use openh264_sys2::*;

use crate::codec::{Codec, I420, Settings};

pub struct H264 {
    encoder: *mut ISVCEncoder,
    timestamp: i64,
}

// SAFETY: the encoder is used by whoever holds the session's lock, one thread at a time; openh264 has
// no thread affinity.
unsafe impl Send for H264 {}

macro_rules! vtable {
    ($encoder:expr, $name:ident $(, $argument:expr)*) => {
        ((**$encoder).$name.expect("openh264's table is complete"))($encoder $(, $argument)*)
    };
}

impl H264 {
    pub fn open(settings: Settings) -> Result<Self, String> {
        // SAFETY: the C++ interface as its header describes it; every pointer is to a live variable.
        unsafe {
            let mut encoder = std::ptr::null_mut();
            if APILoader::WelsCreateSVCEncoder(&raw mut encoder) != 0 || encoder.is_null() {
                return Err("openh264 gives no encoder".to_owned());
            }
            let this = Self {
                encoder,
                timestamp: 0,
            };
            let mut quiet: i32 = WELS_LOG_QUIET;
            vtable!(
                encoder,
                SetOption,
                ENCODER_OPTION_TRACE_LEVEL,
                (&raw mut quiet).cast()
            );
            let mut params: SEncParamExt = std::mem::zeroed();
            vtable!(encoder, GetDefaultParams, &raw mut params);
            let rate = settings.rate.0 as f32 / settings.rate.1.max(1) as f32;
            let bitrate = settings.bitrate.clamp(100_000, 100_000_000) as i32;
            params.iUsageType = CAMERA_VIDEO_REAL_TIME;
            params.iPicWidth = settings.width as i32;
            params.iPicHeight = settings.height as i32;
            params.iTargetBitrate = bitrate;
            params.iMaxBitrate = bitrate;
            params.iRCMode = RC_BITRATE_MODE;
            params.fMaxFrameRate = rate;
            params.iTemporalLayerNum = 1;
            params.iSpatialLayerNum = 1;
            params.uiIntraPeriod = 0;
            params.iNumRefFrame = 1;
            params.eSpsPpsIdStrategy = CONSTANT_ID;
            params.bEnableFrameSkip = false;
            params.bEnableSceneChangeDetect = false;
            params.bEnableLongTermReference = false;
            params.bEnableBackgroundDetection = false;
            params.bEnableDenoise = false;
            params.iMultipleThreadIdc = 1;
            params.iComplexityMode = LOW_COMPLEXITY;
            // As NVENC does, and not as the encoder that a streamer falls back to.
            params.iEntropyCodingModeFlag = 1;
            let layer = &mut params.sSpatialLayers[0];
            layer.iVideoWidth = settings.width as i32;
            layer.iVideoHeight = settings.height as i32;
            layer.fFrameRate = rate;
            layer.iSpatialBitrate = bitrate;
            layer.iMaxSpatialBitrate = bitrate;
            layer.uiProfileIdc = PRO_HIGH;
            layer.sSliceArgument.uiSliceMode = SM_SINGLE_SLICE;
            if let Some(colour) = settings.colour {
                layer.bVideoSignalTypePresent = true;
                layer.uiVideoFormat = 5;
                layer.bFullRange = colour.full_range;
                layer.bColorDescriptionPresent = true;
                layer.uiColorPrimaries = colour.primaries as u8;
                layer.uiTransferCharacteristics = colour.transfer as u8;
                layer.uiColorMatrix = colour.matrix as u8;
            }
            match vtable!(encoder, InitializeExt, &raw const params) {
                0 => Ok(this),
                code => Err(format!(
                    "openh264 refuses {}x{}: {code}",
                    settings.width, settings.height
                )),
            }
        }
    }

    /// The bytes of all layers.
    unsafe fn collect(info: &SFrameBSInfo, out: &mut Vec<u8>) {
        for layer in &info.sLayerInfo[..info.iLayerNum as usize] {
            // SAFETY: openh264 fills `iNalCount` lengths and as many bytes as they add up to.
            unsafe {
                let lengths =
                    std::slice::from_raw_parts(layer.pNalLengthInByte, layer.iNalCount as usize);
                let bytes = lengths.iter().map(|length| *length as usize).sum();
                out.extend_from_slice(std::slice::from_raw_parts(layer.pBsBuf, bytes));
            }
        }
    }
}

impl Codec for H264 {
    fn encode(&mut self, picture: &mut I420, idr: bool, out: &mut Vec<u8>) -> Result<(), String> {
        // SAFETY: the planes live over the call and have the strides given with them.
        unsafe {
            if idr {
                vtable!(self.encoder, ForceIntraFrame, true);
            }
            let mut source: SSourcePicture = std::mem::zeroed();
            source.iColorFormat = videoFormatI420;
            source.iPicWidth = picture.width as i32;
            source.iPicHeight = picture.height as i32;
            source.iStride = [
                picture.width as i32,
                picture.width as i32 / 2,
                picture.width as i32 / 2,
                0,
            ];
            source.pData = [
                picture.y.as_mut_ptr(),
                picture.u.as_mut_ptr(),
                picture.v.as_mut_ptr(),
                std::ptr::null_mut(),
            ];
            self.timestamp += 33;
            source.uiTimeStamp = self.timestamp;
            let mut info: Box<SFrameBSInfo> = Box::new(std::mem::zeroed());
            match vtable!(self.encoder, EncodeFrame, &raw const source, &raw mut *info) {
                0 => Self::collect(&info, out),
                code => return Err(format!("EncodeFrame: {code}")),
            }
        }
        Ok(())
    }

    fn headers(&mut self) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        // SAFETY: the structure is live; openh264 fills it.
        unsafe {
            let mut info: Box<SFrameBSInfo> = Box::new(std::mem::zeroed());
            match vtable!(self.encoder, EncodeParameterSets, &raw mut *info) {
                0 => Self::collect(&info, &mut out),
                code => return Err(format!("EncodeParameterSets: {code}")),
            }
        }
        Ok(out)
    }

    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), String> {
        let mut info = SBitrateInfo {
            iLayer: SPATIAL_LAYER_ALL,
            iBitrate: bits_per_second.clamp(100_000, 100_000_000) as i32,
        };
        // SAFETY: the structure is live over the call.
        let code = unsafe {
            vtable!(
                self.encoder,
                SetOption,
                ENCODER_OPTION_BITRATE,
                (&raw mut info).cast()
            )
        };
        // The maximum may be below the new target for a moment; the emulator's rate is approximate anyway.
        let _ = code;
        Ok(())
    }
}

impl Drop for H264 {
    fn drop(&mut self) {
        // SAFETY: made by WelsCreateSVCEncoder, destroyed once.
        unsafe {
            vtable!(self.encoder, Uninitialize);
            APILoader::WelsDestroySVCEncoder(self.encoder);
        }
    }
}
