//! H.265 by x265: one slice, no lookahead, no key frames of its own.

use std::ffi::CString;

use x265_sys::*;

use crate::codec::{Codec, I420, Settings};

pub struct Hevc {
    api: *const x265_api,
    param: *mut x265_param,
    encoder: *mut x265_encoder,
    picture: *mut x265_picture,
    count: i64,
    headers: Vec<u8>,
}

// SAFETY: used by whoever holds the session's lock, one thread at a time; x265 has no thread affinity.
unsafe impl Send for Hevc {}

macro_rules! table {
    ($api:expr, $name:ident) => {
        ((*$api).$name.expect("x265's table is complete"))
    };
}

impl Hevc {
    pub fn open(settings: Settings) -> Result<Self, String> {
        let mut options: Vec<(&str, String)> = vec![
            (
                "input-res",
                format!("{}x{}", settings.width, settings.height),
            ),
            ("fps", format!("{}/{}", settings.rate.0, settings.rate.1)),
            ("bframes", "0".into()),
            ("keyint", "-1".into()),
            ("scenecut", "0".into()),
            ("open-gop", "0".into()),
            ("frame-threads", "1".into()),
            ("pools", "none".into()),
            ("annexb", "1".into()),
            ("repeat-headers", "1".into()),
            ("aud", "0".into()),
            ("info", "0".into()),
            ("rc-lookahead", "0".into()),
            ("bitrate", (settings.bitrate / 1000).max(50).to_string()),
            ("log-level", "none".into()),
        ];
        if let Some(colour) = settings.colour {
            options.push((
                "range",
                if colour.full_range { "full" } else { "limited" }.into(),
            ));
            options.push(("colorprim", colour.primaries.to_string()));
            options.push(("transfer", colour.transfer.to_string()));
            options.push(("colormatrix", colour.matrix.to_string()));
        }
        // SAFETY: x265's table as its header describes it; strings live over each call; what was
        // allocated is freed by Drop.
        unsafe {
            let mut error = 0;
            let api = x265_api_query(8, X265_BUILD as i32, &raw mut error);
            if api.is_null() {
                return Err(format!("x265 has no 8-bit interface: {error}"));
            }
            let mut this = Self {
                api,
                param: table!(api, param_alloc)(),
                encoder: std::ptr::null_mut(),
                picture: table!(api, picture_alloc)(),
                count: 0,
                headers: Vec::new(),
            };
            let (preset, tune) = (c"ultrafast", c"zerolatency");
            if table!(api, param_default_preset)(this.param, preset.as_ptr(), tune.as_ptr()) != 0 {
                return Err("x265 has no preset ultrafast".to_owned());
            }
            for (name, value) in options {
                let (key, text) = (
                    CString::new(name).unwrap_or_default(),
                    CString::new(value).unwrap_or_default(),
                );
                // Numbers are refused for colour names by some builds: colour is then left unsaid.
                let code = table!(api, param_parse)(this.param, key.as_ptr(), text.as_ptr());
                if code != 0 && !name.starts_with("color") && name != "transfer" {
                    return Err(format!("x265 refuses {name}={text:?}: {code}"));
                }
            }
            this.encoder = table!(api, encoder_open)(this.param);
            if this.encoder.is_null() {
                return Err(format!(
                    "x265 refuses {}x{}",
                    settings.width, settings.height
                ));
            }
            let (mut nals, mut count) = (std::ptr::null_mut(), 0);
            table!(api, encoder_headers)(this.encoder, &raw mut nals, &raw mut count);
            let mut headers = Vec::new();
            collect(nals, count, &mut headers);
            this.headers = headers;
            Ok(this)
        }
    }
}

unsafe fn collect(nals: *mut x265_nal, count: u32, out: &mut Vec<u8>) {
    for at in 0..count as usize {
        // SAFETY: x265 gives `count` units of `sizeBytes` bytes each.
        unsafe {
            let nal = &*nals.add(at);
            out.extend_from_slice(std::slice::from_raw_parts(
                nal.payload,
                nal.sizeBytes as usize,
            ));
        }
    }
}

impl Codec for Hevc {
    fn encode(&mut self, picture: &mut I420, idr: bool, out: &mut Vec<u8>) -> Result<(), String> {
        // SAFETY: the planes live over the call and have the strides given with them.
        unsafe {
            table!(self.api, picture_init)(self.param, self.picture);
            let target = &mut *self.picture;
            target.planes = [
                picture.y.as_mut_ptr().cast(),
                picture.u.as_mut_ptr().cast(),
                picture.v.as_mut_ptr().cast(),
            ];
            target.stride = [
                picture.width as i32,
                picture.width as i32 / 2,
                picture.width as i32 / 2,
            ];
            target.bitDepth = 8;
            target.pts = self.count;
            target.sliceType = if idr {
                X265_TYPE_IDR as i32
            } else {
                X265_TYPE_P as i32
            };
            self.count += 1;
            let (mut nals, mut count) = (std::ptr::null_mut(), 0);
            let got = table!(self.api, encoder_encode)(
                self.encoder,
                &raw mut nals,
                &raw mut count,
                self.picture,
                std::ptr::null_mut(),
            );
            if got < 1 {
                return Err(format!("x265 gives no picture: {got}"));
            }
            collect(nals, count, out);
        }
        Ok(())
    }

    fn headers(&mut self) -> Result<Vec<u8>, String> {
        Ok(self.headers.clone())
    }

    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), String> {
        // SAFETY: the parameters are the encoder's own copy's source; reconfig reads them.
        unsafe {
            (*self.param).rc.bitrate = (bits_per_second / 1000).max(50) as i32;
            // Without a VBV x265 refuses a change; what the emulator codes is approximate anyway.
            let _ = table!(self.api, encoder_reconfig)(self.encoder, self.param);
        }
        Ok(())
    }
}

impl Drop for Hevc {
    fn drop(&mut self) {
        // SAFETY: each was made by its counterpart in `open`, freed once.
        unsafe {
            if !self.encoder.is_null() {
                table!(self.api, encoder_close)(self.encoder);
            }
            table!(self.api, picture_free)(self.picture);
            table!(self.api, param_free)(self.param);
        }
    }
}
