//! What is wrong about a session.

use std::ptr::null_mut;

use nvenc_emu::cuda::*;
use nvenc_emu::hold;
use nvenc_emu::nvenc::NvEncodeAPICreateInstance;
use nvenc_emu::report::Class::{E, P};
use nvenc_sys::*;

use crate::client::*;
use crate::{Control, control};

pub const CONTROLS: &[Control] = &[
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
        assert_eq!(cuda!(cuStreamCreate(&raw mut upload, 1)), 0);
        let held = hold();
        assert_eq!(cuda!(cuMemsetD8Async(client.surface, 1, 64, upload)), 0);
        let (_, input) = client.map();
        let params = client.picture(input);
        assert_eq!(client.encode(params), 0);
        drop(held);
        cuda!(cuStreamSynchronize(upload));
        cuda!(cuStreamDestroy_v2(upload));
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
];
