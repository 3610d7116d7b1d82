//! A client that does everything right as far as it goes.

use std::ffi::c_void;
use std::ptr::null_mut;

use nvenc_emu::cuda::*;
use nvenc_emu::nvenc::NvEncodeAPICreateInstance;
use nvenc_sys::*;

pub type Handle = *mut c_void;

/// A client that does everything right as far as it goes.
pub struct Client {
    pub list: NV_ENCODE_API_FUNCTION_LIST,
    pub context: Handle,
    pub session: Handle,
    pub output: Handle,
    pub surface: u64,
    pub registered: Handle,
    pub config: Box<NV_ENC_CONFIG>,
    pub stream: Box<Handle>,
    pub number: u64,
}

pub const WIDTH: u32 = 320;
pub const HEIGHT: u32 = 192;
pub const PITCH: u32 = 512;

macro_rules! call {
    ($client:expr, $name:ident $(, $argument:expr)*) => {
        // SAFETY: the emulator takes what a careless client gives; that is what it is for.
        unsafe { ($client.list.$name.unwrap())($client.session $(, $argument)*) }.0
    };
}

macro_rules! cuda {
    ($name:ident ( $($argument:expr),* )) => {
        // SAFETY: as above.
        unsafe { $name($($argument),*) }
    };
}

impl Client {
    /// Context, list, nothing else.
    pub fn bare() -> Self {
        let mut list = NV_ENCODE_API_FUNCTION_LIST {
            version: NV_ENCODE_API_FUNCTION_LIST_VER,
            ..Default::default()
        };
        let mut context = null_mut();
        assert_eq!(cuda!(cuInit(0)), 0);
        assert_eq!(cuda!(cuDevicePrimaryCtxRetain(&raw mut context, 0)), 0);
        assert_eq!(cuda!(cuCtxSetCurrent(context)), 0);
        // SAFETY: a live list with its version.
        assert_eq!(unsafe { NvEncodeAPICreateInstance(&raw mut list) }.0, 0);
        Self {
            list,
            context,
            session: null_mut(),
            output: null_mut(),
            surface: 0,
            registered: null_mut(),
            config: Box::default(),
            stream: Box::new(null_mut()),
            number: 0,
        }
    }

    pub fn open_params(&self) -> NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS {
        NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS {
            version: NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER,
            deviceType: NV_ENC_DEVICE_TYPE(1),
            device: self.context,
            apiVersion: NVENCAPI_VERSION,
            ..Default::default()
        }
    }

    pub fn open(&mut self, mut params: NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS) -> u32 {
        let open = self.list.nvEncOpenEncodeSessionEx.unwrap();
        // SAFETY: live pointers.
        unsafe { open(&raw mut params, &raw mut self.session) }.0
    }

    pub fn opened() -> Self {
        let mut client = Self::bare();
        let params = client.open_params();
        assert_eq!(client.open(params), 0);
        client
    }

    /// Initialise parameters over a configuration from the preset, changed by `edit`.
    pub fn initialize(
        &mut self,
        edit: impl FnOnce(&mut NV_ENC_INITIALIZE_PARAMS, &mut NV_ENC_CONFIG),
    ) -> u32 {
        let mut preset = NV_ENC_PRESET_CONFIG {
            version: NV_ENC_PRESET_CONFIG_VER,
            ..Default::default()
        };
        preset.presetCfg.version = NV_ENC_CONFIG_VER;
        let (codec, p1) = (NV_ENC_CODEC_H264_GUID, NV_ENC_PRESET_P1_GUID);
        assert_eq!(
            call!(
                self,
                nvEncGetEncodePresetConfigEx,
                codec,
                p1,
                NV_ENC_TUNING_INFO(3),
                &raw mut preset
            ),
            0
        );
        *self.config = preset.presetCfg;
        let mut params = self.init_params();
        edit(&mut params, &mut self.config);
        call!(self, nvEncInitializeEncoder, &raw mut params)
    }

    pub fn init_params(&mut self) -> NV_ENC_INITIALIZE_PARAMS {
        NV_ENC_INITIALIZE_PARAMS {
            version: NV_ENC_INITIALIZE_PARAMS_VER,
            encodeGUID: NV_ENC_CODEC_H264_GUID,
            presetGUID: NV_ENC_PRESET_P1_GUID,
            tuningInfo: NV_ENC_TUNING_INFO(3),
            encodeWidth: WIDTH,
            encodeHeight: HEIGHT,
            frameRateNum: 30,
            frameRateDen: 1,
            enablePTD: 1,
            encodeConfig: &raw mut *self.config,
            ..Default::default()
        }
    }

    pub fn register_params(&self, pitch: u32) -> NV_ENC_REGISTER_RESOURCE {
        NV_ENC_REGISTER_RESOURCE {
            version: NV_ENC_REGISTER_RESOURCE_VER,
            resourceType: NV_ENC_INPUT_RESOURCE_TYPE(1),
            width: WIDTH,
            height: HEIGHT,
            pitch,
            resourceToRegister: self.surface as usize as Handle,
            bufferFormat: NV_ENC_BUFFER_FORMAT(1),
            ..Default::default()
        }
    }

    /// Ready for pictures.
    pub fn ready() -> Self {
        let mut client = Self::opened();
        assert_eq!(client.initialize(|_, _| ()), 0);
        let mut bitstream = NV_ENC_CREATE_BITSTREAM_BUFFER {
            version: NV_ENC_CREATE_BITSTREAM_BUFFER_VER,
            ..Default::default()
        };
        assert_eq!(
            call!(client, nvEncCreateBitstreamBuffer, &raw mut bitstream),
            0
        );
        client.output = bitstream.bitstreamBuffer;
        let bytes = PITCH as usize * HEIGHT as usize * 3 / 2;
        assert_eq!(cuda!(cuMemAlloc_v2(&raw mut client.surface, bytes)), 0);
        let mut params = client.register_params(PITCH);
        assert_eq!(call!(client, nvEncRegisterResource, &raw mut params), 0);
        client.registered = params.registeredResource;
        client
    }

    pub fn map(&self) -> (u32, Handle) {
        let mut params = NV_ENC_MAP_INPUT_RESOURCE {
            version: NV_ENC_MAP_INPUT_RESOURCE_VER,
            registeredResource: self.registered,
            ..Default::default()
        };
        let status = call!(self, nvEncMapInputResource, &raw mut params);
        (status, params.mappedResource)
    }

    pub fn picture(&mut self, input: Handle) -> NV_ENC_PIC_PARAMS {
        self.number += 1;
        NV_ENC_PIC_PARAMS {
            version: NV_ENC_PIC_PARAMS_VER,
            inputWidth: WIDTH,
            inputHeight: HEIGHT,
            inputPitch: PITCH,
            inputBuffer: input,
            outputBitstream: self.output,
            bufferFmt: NV_ENC_BUFFER_FORMAT(1),
            pictureStruct: NV_ENC_PIC_STRUCT(1),
            inputTimeStamp: self.number,
            ..Default::default()
        }
    }

    pub fn encode(&self, mut params: NV_ENC_PIC_PARAMS) -> u32 {
        call!(self, nvEncEncodePicture, &raw mut params)
    }

    pub fn lock(&self) -> (u32, NV_ENC_LOCK_BITSTREAM) {
        let mut lock = NV_ENC_LOCK_BITSTREAM {
            version: NV_ENC_LOCK_BITSTREAM_VER,
            outputBitstream: self.output,
            ..Default::default()
        };
        (call!(self, nvEncLockBitstream, &raw mut lock), lock)
    }

    /// One picture, submitted; its map.
    pub fn submitted(&mut self) -> Handle {
        let (status, input) = self.map();
        assert_eq!(status, 0);
        let params = self.picture(input);
        assert_eq!(self.encode(params), 0);
        input
    }

    pub fn end(&self) -> u32 {
        self.encode(NV_ENC_PIC_PARAMS {
            version: NV_ENC_PIC_PARAMS_VER,
            encodePicFlags: 8,
            ..Default::default()
        })
    }

    pub fn destroy(&mut self) -> u32 {
        call!(self, nvEncDestroyEncoder)
    }
}

impl Drop for Client {
    /// Whatever a control has left behind goes without further words.
    fn drop(&mut self) {
        cuda!(cuCtxSetCurrent(self.context));
        if !self.session.is_null() {
            call!(self, nvEncDestroyEncoder);
        }
        cuda!(cuMemFree_v2(self.surface));
        cuda!(cuDevicePrimaryCtxRelease_v2(0));
    }
}

pub(crate) use {call, cuda};
