//! A negative control for every rule: a client that does one thing wrong, and the emulator says so. The
//! last test holds the list of controls against the rules that the emulator's source knows.

#![cfg(feature = "driver")]

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvenc_emu::cuda::*;
use nvenc_emu::nvenc::NvEncodeAPICreateInstance;
use nvenc_emu::report::{Class, stats};
use nvenc_sys::*;

/// The emulator is one driver for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Takes the driver, and makes its copies slow enough to be overtaken.
fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: under the lock, and the emulator reads its environment after it.
    unsafe { std::env::set_var("NVENC_EMU_COPY_DELAY_US", "50000") };
    guard
}

type Handle = *mut c_void;

/// A client that does everything right as far as it goes.
struct Client {
    list: NV_ENCODE_API_FUNCTION_LIST,
    context: Handle,
    session: Handle,
    output: Handle,
    surface: u64,
    registered: Handle,
    config: Box<NV_ENC_CONFIG>,
    stream: Box<Handle>,
    number: u64,
}

const WIDTH: u32 = 320;
const HEIGHT: u32 = 192;
const PITCH: u32 = 512;

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
    fn bare() -> Self {
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

    fn open_params(&self) -> NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS {
        NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS {
            version: NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER,
            deviceType: NV_ENC_DEVICE_TYPE(1),
            device: self.context,
            apiVersion: NVENCAPI_VERSION,
            ..Default::default()
        }
    }

    fn open(&mut self, mut params: NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS) -> u32 {
        let open = self.list.nvEncOpenEncodeSessionEx.unwrap();
        // SAFETY: live pointers.
        unsafe { open(&raw mut params, &raw mut self.session) }.0
    }

    fn opened() -> Self {
        let mut client = Self::bare();
        let params = client.open_params();
        assert_eq!(client.open(params), 0);
        client
    }

    /// Initialise parameters over a configuration from the preset, changed by `edit`.
    fn initialize(
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

    fn init_params(&mut self) -> NV_ENC_INITIALIZE_PARAMS {
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

    fn register_params(&self, pitch: u32) -> NV_ENC_REGISTER_RESOURCE {
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
    fn ready() -> Self {
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

    fn map(&self) -> (u32, Handle) {
        let mut params = NV_ENC_MAP_INPUT_RESOURCE {
            version: NV_ENC_MAP_INPUT_RESOURCE_VER,
            registeredResource: self.registered,
            ..Default::default()
        };
        let status = call!(self, nvEncMapInputResource, &raw mut params);
        (status, params.mappedResource)
    }

    fn picture(&mut self, input: Handle) -> NV_ENC_PIC_PARAMS {
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

    fn encode(&self, mut params: NV_ENC_PIC_PARAMS) -> u32 {
        call!(self, nvEncEncodePicture, &raw mut params)
    }

    fn lock(&self) -> (u32, NV_ENC_LOCK_BITSTREAM) {
        let mut lock = NV_ENC_LOCK_BITSTREAM {
            version: NV_ENC_LOCK_BITSTREAM_VER,
            outputBitstream: self.output,
            ..Default::default()
        };
        (call!(self, nvEncLockBitstream, &raw mut lock), lock)
    }

    /// One picture, submitted; its map.
    fn submitted(&mut self) -> Handle {
        let (status, input) = self.map();
        assert_eq!(status, 0);
        let params = self.picture(input);
        assert_eq!(self.encode(params), 0);
        input
    }

    fn end(&self) -> u32 {
        self.encode(NV_ENC_PIC_PARAMS {
            version: NV_ENC_PIC_PARAMS_VER,
            encodePicFlags: 8,
            ..Default::default()
        })
    }

    fn destroy(&mut self) -> u32 {
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

/// What one wrong thing leads to.
struct Control {
    rule: &'static str,
    class: Class,
    run: fn(),
}

/// Memory that another process could write, mapped for reading.
fn shared_mapping(protection: i32, flags: i32) -> Handle {
    // SAFETY: a new mapping.
    unsafe {
        libc::mmap(
            null_mut(),
            8192,
            protection,
            flags | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    }
}

const READ_ONLY: u32 = 1 | 8;

const fn control(rule: &'static str, class: Class, run: fn()) -> Control {
    Control { rule, class, run }
}

use Class::{E, P};

const CONTROLS: &[Control] = &[
    control("list", E, || {
        // SAFETY: null is refused.
        assert_eq!(unsafe { NvEncodeAPICreateInstance(null_mut()) }.0, 6);
    }),
    control("version", E, || {
        let mut client = Client::bare();
        let mut params = client.open_params();
        params.version += 1 << 16;
        assert_eq!(client.open(params), 15);
    }),
    control("api-version", E, || {
        let mut client = Client::bare();
        let mut params = client.open_params();
        params.apiVersion = 14;
        assert_eq!(client.open(params), 15);
    }),
    control("open", E, || {
        let mut client = Client::bare();
        let mut params = client.open_params();
        params.device = 0x10 as Handle;
        assert_eq!(client.open(params), 3);
    }),
    control("pointer", E, || {
        let client = Client::opened();
        assert_eq!(call!(client, nvEncGetEncodeGUIDCount, null_mut()), 6);
    }),
    control("handle", E, || {
        let mut client = Client::opened();
        assert_eq!(client.destroy(), 0);
        let mut count = 0;
        assert_eq!(call!(client, nvEncGetEncodeGUIDCount, &raw mut count), 3);
        client.session = null_mut();
    }),
    control("guid", E, || {
        let client = Client::opened();
        let mut count = 0;
        assert_eq!(
            call!(
                client,
                nvEncGetInputFormatCount,
                GUID::default(),
                &raw mut count
            ),
            8
        );
    }),
    control("tuning", E, || {
        let client = Client::opened();
        let mut preset = NV_ENC_PRESET_CONFIG {
            version: NV_ENC_PRESET_CONFIG_VER,
            ..Default::default()
        };
        preset.presetCfg.version = NV_ENC_CONFIG_VER;
        let (codec, p1) = (NV_ENC_CODEC_H264_GUID, NV_ENC_PRESET_P1_GUID);
        assert_eq!(
            call!(
                client,
                nvEncGetEncodePresetConfigEx,
                codec,
                p1,
                NV_ENC_TUNING_INFO(9),
                &raw mut preset
            ),
            8
        );
    }),
    control("old-preset-call", E, || {
        let client = Client::opened();
        let mut preset = NV_ENC_PRESET_CONFIG::default();
        let (codec, p1) = (NV_ENC_CODEC_H264_GUID, NV_ENC_PRESET_P1_GUID);
        assert_eq!(
            call!(
                client,
                nvEncGetEncodePresetConfig,
                codec,
                p1,
                &raw mut preset
            ),
            12
        );
    }),
    control("order", E, || {
        let client = Client::opened();
        let mut bitstream = NV_ENC_CREATE_BITSTREAM_BUFFER {
            version: NV_ENC_CREATE_BITSTREAM_BUFFER_VER,
            ..Default::default()
        };
        assert_eq!(
            call!(client, nvEncCreateBitstreamBuffer, &raw mut bitstream),
            11
        );
    }),
    control("initialize", E, || {
        // Each of these fields alone is enough.
        type Edit = fn(&mut NV_ENC_INITIALIZE_PARAMS, &mut NV_ENC_CONFIG);
        let edits: [Edit; 16] = [
            |params, _| params.enableEncodeAsync = 1,
            |params, _| params.enablePTD = 0,
            |params, _| params.encodeWidth = 321,
            |params, _| params.encodeWidth = 64,
            |params, _| params.encodeHeight = 10_000,
            |params, _| params.maxEncodeWidth = 200,
            |params, _| params.frameRateDen = 0,
            |params, _| params.presetGUID = GUID::default(),
            |params, _| params.tuningInfo = NV_ENC_TUNING_INFO(0),
            |_, config| config.frameIntervalP = 9,
            |_, config| config.gopLength = 60,
            |_, config| config.frameIntervalP = 3,
            |_, config| config.rcParams.rateControlMode = NV_ENC_PARAMS_RC_MODE(0x8),
            |_, config| config.rcParams.multiPass = NV_ENC_MULTI_PASS(3),
            |_, config| config.rcParams.vbvInitialDelay = 7,
            |_, config| {
                config.gopLength = 2;
                config.encodeCodecConfig.h264Config.idrPeriod = 2;
                config.frameIntervalP = 4;
            },
        ];
        for (at, edit) in edits.into_iter().enumerate() {
            assert_eq!(Client::opened().initialize(edit), 8, "edit {at}");
        }
    }),
    control("not-from-preset", P, || {
        let mut client = Client::opened();
        assert_eq!(
            client.initialize(|_, config| config.mvPrecision = NV_ENC_MV_PRECISION(0)),
            0
        );
    }),
    control("reserved", P, || {
        let mut client = Client::opened();
        assert_eq!(client.initialize(|params, _| params.reserved[3] = 1), 0);
    }),
    control("reconfigure", E, || {
        let mut client = Client::ready();
        let mut params = NV_ENC_RECONFIGURE_PARAMS {
            version: NV_ENC_RECONFIGURE_PARAMS_VER,
            reInitEncodeParams: client.init_params(),
            ..Default::default()
        };
        params.reInitEncodeParams.encodeWidth = 640;
        assert_eq!(call!(client, nvEncReconfigureEncoder, &raw mut params), 8);
    }),
    control("streams", E, || {
        let client = Client::ready();
        assert_eq!(
            call!(client, nvEncSetIOCudaStreams, null_mut(), null_mut()),
            8
        );
    }),
    control("stream-variable", P, || {
        let mut client = Client::ready();
        assert_eq!(cuda!(cuStreamCreate(&raw mut *client.stream, 1)), 0);
        let variable: *mut Handle = &raw mut *client.stream;
        assert_eq!(
            call!(
                client,
                nvEncSetIOCudaStreams,
                variable.cast(),
                variable.cast()
            ),
            0
        );
        let stream = std::mem::replace(&mut *client.stream, null_mut());
        let (_, _) = client.map();
        *client.stream = stream;
        client.destroy();
        client.session = null_mut();
        cuda!(cuStreamDestroy_v2(stream));
    }),
    control("stream-first", P, || {
        let mut client = Client::ready();
        assert_eq!(cuda!(cuStreamCreate(&raw mut *client.stream, 1)), 0);
        let variable: *mut Handle = &raw mut *client.stream;
        assert_eq!(
            call!(
                client,
                nvEncSetIOCudaStreams,
                variable.cast(),
                variable.cast()
            ),
            0
        );
        cuda!(cuStreamDestroy_v2(*client.stream));
    }),
    control("format", E, || {
        let client = Client::ready();
        let mut params = NV_ENC_CREATE_INPUT_BUFFER {
            version: NV_ENC_CREATE_INPUT_BUFFER_VER,
            width: WIDTH,
            height: HEIGHT,
            bufferFmt: NV_ENC_BUFFER_FORMAT(2),
            ..Default::default()
        };
        assert_eq!(call!(client, nvEncCreateInputBuffer, &raw mut params), 8);
    }),
    control("register", E, || {
        let client = Client::ready();
        // Twice, past the end, a pitch below the row, a pitch that is no multiple of four.
        for (pitch, status) in [(PITCH, 23), (PITCH * 4, 23), (WIDTH - 4, 8), (PITCH - 1, 8)] {
            let mut params = client.register_params(pitch);
            params.resourceToRegister =
                (client.surface as usize + usize::from(pitch != PITCH) * 512) as Handle;
            assert_eq!(
                call!(client, nvEncRegisterResource, &raw mut params),
                status
            );
        }
    }),
    control("map", E, || {
        let mut client = Client::ready();
        assert_eq!(client.map().0, 0);
        assert_eq!(client.map().0, 16);
        client.registered = 0x30 as Handle;
        assert_eq!(client.map().0, 24);
    }),
    control("unmap", E, || {
        let client = Client::ready();
        assert_eq!(call!(client, nvEncUnmapInputResource, 0x30 as Handle), 25);
    }),
    control("unmap-unfinished", P, || {
        let mut client = Client::ready();
        let input = client.submitted();
        assert_eq!(call!(client, nvEncUnmapInputResource, input), 0);
    }),
    control("unregister", E, || {
        let client = Client::ready();
        assert_eq!(client.map().0, 0);
        assert_eq!(call!(client, nvEncUnregisterResource, client.registered), 9);
        assert_eq!(cuda!(cuMemHostUnregister(0x1000 as Handle)), 713);
    }),
    control("input", E, || {
        let mut client = Client::ready();
        let params = client.picture(0x40 as Handle);
        assert_eq!(client.encode(params), 25);
        let (_, input) = client.map();
        let mut params = client.picture(input);
        params.bufferFmt = NV_ENC_BUFFER_FORMAT(0x100);
        assert_eq!(client.encode(params), 8);
        let mut params = client.picture(input);
        params.inputPitch = PITCH + 4;
        assert_eq!(client.encode(params), 8);
    }),
    control("picture", E, || {
        let mut client = Client::ready();
        let (_, input) = client.map();
        let mut params = client.picture(input);
        params.inputWidth = WIDTH + 2;
        assert_eq!(client.encode(params), 8);
        let mut params = client.picture(input);
        params.encodePicFlags = 0x100;
        assert_eq!(client.encode(params), 8);
    }),
    control("output", E, || {
        let mut client = Client::ready();
        let input = client.submitted();
        // The output is still in use.
        let params = client.picture(input);
        assert_eq!(client.encode(params), 8);
    }),
    control("input-in-use", P, || {
        let mut client = Client::ready();
        let input = client.submitted();
        let mut bitstream = NV_ENC_CREATE_BITSTREAM_BUFFER {
            version: NV_ENC_CREATE_BITSTREAM_BUFFER_VER,
            ..Default::default()
        };
        assert_eq!(
            call!(client, nvEncCreateBitstreamBuffer, &raw mut bitstream),
            0
        );
        client.output = bitstream.bitstreamBuffer;
        let params = client.picture(input);
        assert_eq!(client.encode(params), 0);
    }),
    control("timestamp", P, || {
        let mut client = Client::ready();
        let input = client.submitted();
        let (status, _) = client.lock();
        assert_eq!(status, 0);
        assert_eq!(call!(client, nvEncUnlockBitstream, client.output), 0);
        client.number = 0;
        let params = client.picture(input);
        assert_eq!(client.encode(params), 0);
    }),
    control("writes-pending", P, || {
        let mut client = Client::ready();
        let mut upload = null_mut();
        let mut fence = null_mut();
        assert_eq!(cuda!(cuStreamCreate(&raw mut upload, 1)), 0);
        assert_eq!(cuda!(cuEventCreate(&raw mut fence, 2)), 0);
        // Enough work in front of the last write that the picture is submitted before it.
        for _ in 0..2000 {
            let bytes = PITCH as usize * HEIGHT as usize * 3 / 2;
            assert_eq!(cuda!(cuMemsetD8Async(client.surface, 1, bytes, upload)), 0);
        }
        let (_, input) = client.map();
        let params = client.picture(input);
        assert_eq!(client.encode(params), 0);
        cuda!(cuStreamSynchronize(upload));
        cuda!(cuStreamDestroy_v2(upload));
        cuda!(cuEventDestroy_v2(fence));
    }),
    control("red-zone", P, || {
        let client = Client::ready();
        let end = client.surface as usize + PITCH as usize * HEIGHT as usize * 3 / 2;
        // SAFETY: behind the block lies its red zone, which is this process's own memory.
        unsafe { (end as *mut u8).write(7) };
    }),
    control("picture-after-eos", P, || {
        let mut client = Client::ready();
        assert_eq!(client.end(), 0);
        client.submitted();
    }),
    control("lock", E, || {
        let mut client = Client::ready();
        assert_eq!(client.lock().0, 8);
        client.submitted();
        assert_eq!(client.lock().0, 0);
        assert_eq!(client.lock().0, 9);
    }),
    control("unlock", E, || {
        let client = Client::ready();
        assert_eq!(call!(client, nvEncUnlockBitstream, client.output), 9);
    }),
    control("destroy-locked", P, || {
        let mut client = Client::ready();
        client.submitted();
        assert_eq!(client.lock().0, 0);
        assert_eq!(call!(client, nvEncDestroyBitstreamBuffer, client.output), 0);
    }),
    control("destroy-leaves", P, || {
        let mut client = Client::ready();
        assert_eq!(client.destroy(), 0);
        client.session = null_mut();
    }),
    control("destroy-without-eos", P, || {
        let mut client = Client::ready();
        client.submitted();
        assert_eq!(client.destroy(), 0);
        client.session = null_mut();
    }),
    control("context-current", P, || {
        let client = Client::ready();
        assert_eq!(cuda!(cuCtxSetCurrent(null_mut())), 0);
        let _ = client.map();
    }),
    control("context-first", P, || {
        let client = Client::ready();
        assert_eq!(cuda!(cuDevicePrimaryCtxRelease_v2(0)), 0);
        let mut again = null_mut();
        cuda!(cuDevicePrimaryCtxRetain(&raw mut again, 0));
        drop(client);
    }),
    control("second-thread", P, || {
        let client = Client::ready();
        let (session, context) = (client.session as usize, client.context as usize);
        let count = client.list.nvEncGetEncodeGUIDCount.unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut number = 0;
                cuda!(cuCtxSetCurrent(context as Handle));
                // SAFETY: a live session, from the wrong thread.
                assert_eq!(unsafe { count(session as Handle, &raw mut number) }.0, 0);
            });
        });
    }),
    control("free", E, || {
        let _client = Client::bare();
        assert_eq!(cuda!(cuMemFree_v2(0x5000)), 1);
    }),
    control("free-registered", P, || {
        let mut client = Client::ready();
        assert_eq!(cuda!(cuMemFree_v2(client.surface)), 0);
        client.surface = 0;
    }),
    control("free-pending", P, || {
        let mut client = Client::ready();
        let mut upload = null_mut();
        assert_eq!(cuda!(cuStreamCreate(&raw mut upload, 1)), 0);
        for _ in 0..2000 {
            let bytes = PITCH as usize * HEIGHT as usize * 3 / 2;
            assert_eq!(cuda!(cuMemsetD8Async(client.surface, 1, bytes, upload)), 0);
        }
        assert_eq!(cuda!(cuMemFree_v2(client.surface)), 0);
        client.surface = 0;
        cuda!(cuStreamDestroy_v2(upload));
    }),
    control("memset", E, || {
        let client = Client::ready();
        assert_eq!(
            cuda!(cuMemsetD8Async(client.surface, 0, 1 << 20, null_mut())),
            1
        );
    }),
    control("context", E, || {
        let mut stream = null_mut();
        cuda!(cuCtxSetCurrent(null_mut()));
        assert_eq!(cuda!(cuStreamCreate(&raw mut stream, 1)), 201);
    }),
    control("stream", E, || {
        assert_eq!(cuda!(cuStreamDestroy_v2(0x70 as Handle)), 400);
    }),
    control("event", E, || {
        assert_eq!(cuda!(cuEventDestroy_v2(0x70 as Handle)), 400);
    }),
    control("module", E, || {
        let _client = Client::bare();
        let mut module = null_mut();
        assert_eq!(
            cuda!(cuModuleLoadData(
                &raw mut module,
                c"no code".as_ptr().cast()
            )),
            218
        );
    }),
    control("kernel", E, || {
        let _client = Client::bare();
        let none = null_mut();
        let code = cuda!(cuLaunchKernel(
            0x80 as Handle,
            1,
            1,
            1,
            1,
            1,
            1,
            0,
            none,
            null_mut(),
            null_mut()
        ));
        assert_eq!(code, 400);
    }),
    control("copy", E, || {
        let client = Client::ready();
        let source = [0_u8; 64];
        let code = cuda!(cuMemcpyHtoDAsync_v2(
            0x90,
            source.as_ptr().cast(),
            64,
            null_mut()
        ));
        assert_eq!(code, 1);
        drop(client);
    }),
    control("pageable-upload", P, || {
        let client = Client::ready();
        let source = [0_u8; 64];
        let code = cuda!(cuMemcpyHtoDAsync_v2(
            client.surface,
            source.as_ptr().cast(),
            64,
            null_mut()
        ));
        assert_eq!(code, 0);
    }),
    control("register-host", E, || {
        let _client = Client::bare();
        let memory = shared_mapping(libc::PROT_READ, libc::MAP_SHARED);
        let misaligned = (memory as usize + 64) as Handle;
        assert_eq!(cuda!(cuMemHostRegister_v2(misaligned, 4096, READ_ONLY)), 1);
        // Default flags on memory that may only be read.
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, 1)), 1);
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, READ_ONLY)), 0);
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 4096, READ_ONLY)), 712);
        assert_eq!(cuda!(cuMemHostUnregister(memory)), 0);
        // SAFETY: mapped above.
        unsafe { libc::munmap(memory, 8192) };
    }),
    control("register-private", P, || {
        let _client = Client::bare();
        let memory = shared_mapping(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, 1)), 0);
        assert_eq!(cuda!(cuMemHostUnregister(memory)), 0);
        // SAFETY: mapped above.
        unsafe { libc::munmap(memory, 8192) };
    }),
    control("unregister-pending", P, || pending_copy(false)),
    control("unmapped-under-copy", P, || pending_copy(true)),
];

/// Unregisters, or unmaps, while copies out of the mapping are queued.
fn pending_copy(unmap: bool) {
    let client = Client::ready();
    // The stream's thread maps memory of its own when it starts: that has to be over before ours goes.
    let mut upload = null_mut();
    assert_eq!(cuda!(cuStreamCreate(&raw mut upload, 1)), 0);
    assert_eq!(cuda!(cuMemsetD8Async(client.surface, 1, 64, upload)), 0);
    cuda!(cuStreamSynchronize(upload));
    let memory = shared_mapping(libc::PROT_READ, libc::MAP_SHARED);
    assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, READ_ONLY)), 0);
    assert_eq!(
        cuda!(cuMemcpyHtoDAsync_v2(client.surface, memory, 8192, upload)),
        0
    );
    if unmap {
        // SAFETY: mapped above; that something still wants it is the point.
        unsafe { libc::munmap(memory, 8192) };
        cuda!(cuStreamSynchronize(upload));
        cuda!(cuMemHostUnregister(memory));
    } else {
        assert_eq!(cuda!(cuMemHostUnregister(memory)), 0);
        cuda!(cuStreamSynchronize(upload));
        // SAFETY: mapped above, and nothing wants it any more.
        unsafe { libc::munmap(memory, 8192) };
    }
    cuda!(cuStreamDestroy_v2(upload));
}

#[test]
fn each_wrong_thing_is_seen_under_its_rule_and_class() {
    let _one = alone();
    for control in CONTROLS {
        let count = || {
            stats()
                .violation_counts
                .get(control.rule)
                .copied()
                .unwrap_or(0)
        };
        let before = count();
        (control.run)();
        assert!(count() > before, "{} was not seen", control.rule);
        let seen = stats()
            .violations
            .iter()
            .find(|v| v.rule == control.rule)
            .map(|v| v.class);
        assert_eq!(seen, Some(control.class), "{}", control.rule);
    }
}

#[test]
fn a_client_that_does_nothing_wrong_is_left_alone() {
    let _one = alone();
    let before = stats().violation_counts.clone();
    let mut client = Client::ready();
    for _ in 0..3 {
        let input = client.submitted();
        let (status, lock) = client.lock();
        assert_eq!(status, 0);
        // SAFETY: locked.
        let unit = unsafe { std::slice::from_raw_parts(lock.bitstreamBufferPtr.cast::<u8>(), 5) };
        assert_eq!(&unit[..4], [0, 0, 0, 1]);
        assert_eq!(call!(client, nvEncUnlockBitstream, client.output), 0);
        // SAFETY: the emulator keeps the buffer, poisoned, until the next picture.
        let after = unsafe { lock.bitstreamBufferPtr.cast::<u8>().read() };
        assert_eq!(after, 0xDD, "what is read after the unlock is garbage");
        assert_eq!(call!(client, nvEncUnmapInputResource, input), 0);
    }
    assert_eq!(client.end(), 0);
    assert_eq!(call!(client, nvEncUnregisterResource, client.registered), 0);
    assert_eq!(call!(client, nvEncDestroyBitstreamBuffer, client.output), 0);
    assert_eq!(client.destroy(), 0);
    client.session = null_mut();
    drop(client);
    assert_eq!(stats().violation_counts, before);
}

#[test]
fn every_rule_of_the_emulator_has_its_control() {
    let sources = [
        "cuda", "kernels", "memory", "nvenc", "picture", "session", "validate",
    ];
    let mut rules = BTreeSet::new();
    for name in sources {
        let path = format!("{}/src/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let flat: String = text.split_whitespace().collect();
        for mark in [
            "violation(Class::E,\"",
            "violation(Class::P,\"",
            "refuse(\"",
            "refuse::<()>(\"",
            "refuse::<Init>(\"",
        ] {
            for (at, _) in flat.match_indices(mark) {
                let rest = &flat[at + mark.len()..];
                rules.insert(rest.split('"').next().unwrap().to_owned());
            }
        }
    }
    let controls: BTreeSet<_> = CONTROLS
        .iter()
        .map(|control| control.rule.to_owned())
        .collect();
    assert!(rules.len() > 40, "{rules:?}");
    assert_eq!(rules, controls);
}
