//! Further controls of rules that forbid more than one thing.

use std::ptr::null_mut;

use nvenc_emu::cuda::*;
use nvenc_emu::report::Class::{E, P};
use nvenc_sys::*;

use crate::client::*;
use crate::{Control, control};

/// Another output of the client's.
fn output(client: &Client) -> Handle {
    let mut bitstream = NV_ENC_CREATE_BITSTREAM_BUFFER {
        version: NV_ENC_CREATE_BITSTREAM_BUFFER_VER,
        ..Default::default()
    };
    let made = call!(client, nvEncCreateBitstreamBuffer, &raw mut bitstream);
    assert_eq!(made, 0);
    bitstream.bitstreamBuffer
}

/// A stream that the session runs on.
fn on_stream(client: &mut Client) -> u32 {
    let variable: *mut Handle = &raw mut *client.stream;
    call!(
        client,
        nvEncSetIOCudaStreams,
        variable.cast(),
        variable.cast()
    )
}

pub const CONTROLS: &[Control] = &[
    // Each structure with a version of its own.
    control("version", E, || {
        let mut client = Client::opened();
        let wrong = |version: u32| version ^ 1 << 16;
        assert_eq!(
            client.initialize(|params, _| params.version = wrong(params.version)),
            15
        );
        assert_eq!(
            client.initialize(|_, config| config.version = wrong(config.version)),
            15
        );
        let rate = |_: &mut _, config: &mut NV_ENC_CONFIG| config.rcParams.version = 0;
        assert_eq!(client.initialize(rate), 15);
        let mut client = Client::ready();
        let mut register = client.register_params(PITCH);
        register.version = wrong(register.version);
        assert_eq!(call!(client, nvEncRegisterResource, &raw mut register), 15);
        let mut map = NV_ENC_MAP_INPUT_RESOURCE::default();
        assert_eq!(call!(client, nvEncMapInputResource, &raw mut map), 15);
        let mut picture = client.picture(null_mut());
        picture.version = 0;
        assert_eq!(client.encode(picture), 15);
        let mut lock = NV_ENC_LOCK_BITSTREAM::default();
        assert_eq!(call!(client, nvEncLockBitstream, &raw mut lock), 15);
        let mut again = NV_ENC_RECONFIGURE_PARAMS::default();
        assert_eq!(call!(client, nvEncReconfigureEncoder, &raw mut again), 15);
        let mut bitstream = NV_ENC_CREATE_BITSTREAM_BUFFER::default();
        assert_eq!(
            call!(client, nvEncCreateBitstreamBuffer, &raw mut bitstream),
            15
        );
    }),
    control("handle", E, || {
        let client = Client::bare();
        let mut count = 0;
        assert_eq!(call!(client, nvEncGetEncodeGUIDCount, &raw mut count), 6);
    }),
    control("order", E, || {
        let mut client = Client::ready();
        let mut params = client.init_params();
        assert_eq!(call!(client, nvEncInitializeEncoder, &raw mut params), 9);
    }),
    // Presets of before P1 to P7: this one was "low latency, high performance".
    control("guid", E, || {
        let client = Client::opened();
        let mut preset = NV_ENC_PRESET_CONFIG {
            version: NV_ENC_PRESET_CONFIG_VER,
            ..Default::default()
        };
        preset.presetCfg.version = NV_ENC_CONFIG_VER;
        let old = GUID {
            Data1: 0x6708_2a44,
            Data2: 0x4bad,
            Data3: 0x48fa,
            Data4: [0x98, 0xea, 0x93, 0x05, 0x6d, 0x15, 0x0a, 0x58],
        };
        assert_eq!(
            call!(
                client,
                nvEncGetEncodePresetConfigEx,
                NV_ENC_CODEC_H264_GUID,
                old,
                NV_ENC_TUNING_INFO(3),
                &raw mut preset
            ),
            12
        );
    }),
    control("initialize", E, || {
        type Edit = fn(&mut NV_ENC_INITIALIZE_PARAMS, &mut NV_ENC_CONFIG);
        let edits: [Edit; 8] = [
            // The high-quality modes that drivers from 590 on refuse.
            |_, config| config.rcParams.rateControlMode = NV_ENC_PARAMS_RC_MODE(0x10),
            |_, config| config.rcParams.rateControlMode = NV_ENC_PARAMS_RC_MODE(0x20),
            |_, config| config.rcParams.averageBitRate = 0,
            |_, config| config.rcParams.maxBitRate = 1,
            |_, config| config.encodeCodecConfig.h264Config.sliceMode = 4,
            |_, config| config.encodeCodecConfig.h264Config.chromaFormatIDC = 3,
            |params, _| params.maxEncodeHeight = HEIGHT - 2,
            |params, _| params.encodeGUID = GUID::default(),
        ];
        for (at, edit) in edits.into_iter().enumerate() {
            assert_eq!(Client::opened().initialize(edit), 8, "edit {at}");
        }
    }),
    control("reserved", P, || {
        let mut client = Client::ready();
        let (_, input) = client.map();
        let mut params = client.picture(input);
        params.reserved3[7] = 1;
        assert_eq!(client.encode(params), 0);
    }),
    control("register", E, || {
        let client = Client::ready();
        let mut usage = client.register_params(PITCH);
        usage.bufferUsage = NV_ENC_BUFFER_USAGE(1);
        let mut kind = client.register_params(PITCH);
        kind.resourceType = NV_ENC_INPUT_RESOURCE_TYPE(0);
        let mut format = client.register_params(PITCH);
        format.bufferFormat = NV_ENC_BUFFER_FORMAT(2);
        for mut params in [usage, kind, format] {
            assert_eq!(call!(client, nvEncRegisterResource, &raw mut params), 8);
        }
        let mut nowhere = client.register_params(PITCH);
        nowhere.resourceToRegister = 0x5000 as Handle;
        assert_eq!(call!(client, nvEncRegisterResource, &raw mut nowhere), 23);
    }),
    control("unregister", E, || {
        let client = Client::ready();
        assert_eq!(call!(client, nvEncUnregisterResource, 0x30 as Handle), 24);
    }),
    control("output", E, || {
        let mut client = Client::ready();
        let input = client.submitted();
        assert_eq!(client.lock().0, 0);
        // Locked.
        let params = client.picture(input);
        assert_eq!(client.encode(params), 8);
        // Never made.
        let mut params = client.picture(input);
        params.outputBitstream = 0x30 as Handle;
        assert_eq!(client.encode(params), 8);
        assert_eq!(
            call!(client, nvEncDestroyBitstreamBuffer, 0x30 as Handle),
            8
        );
    }),
    control("picture", E, || {
        let mut client = Client::ready();
        let (_, input) = client.map();
        let mut fields = client.picture(input);
        fields.pictureStruct = NV_ENC_PIC_STRUCT(2);
        assert_eq!(client.encode(fields), 8);
        let nothing = client.picture(null_mut());
        assert_eq!(client.encode(nothing), 6);
        let mut end = client.picture(input);
        end.encodePicFlags = 8;
        assert_eq!(client.encode(end), 8);
    }),
    // What was damaged is seen at the picture, and not only when it is freed.
    control("red-zone", P, || {
        let mut client = Client::ready();
        // SAFETY: in front of the block lies its red zone, which is this process's own memory.
        unsafe { (client.surface as *mut u8).sub(1).write(7) };
        let before = seen("red-zone");
        client.submitted();
        assert_eq!(seen("red-zone"), before + 1);
    }),
    control("lock", E, || {
        let mut client = Client::ready();
        let first = client.output;
        let input = client.submitted();
        client.output = output(&client);
        let params = client.picture(input);
        assert_eq!(client.encode(params), 0);
        // The second one ahead of the first.
        assert_eq!(client.lock().0, 8);
        client.output = first;
        assert_eq!(client.lock().0, 0);
        client.output = 0x30 as Handle;
        assert_eq!(client.lock().0, 8);
    }),
    control("unlock", E, || {
        let client = Client::ready();
        assert_eq!(call!(client, nvEncUnlockBitstream, 0x30 as Handle), 8);
    }),
    control("streams", E, || {
        let mut client = Client::ready();
        assert_eq!(cuda!(cuStreamCreate(&raw mut *client.stream, 1)), 0);
        cuda!(cuStreamDestroy_v2(*client.stream));
        assert_eq!(on_stream(&mut client), 8);
    }),
    // The variable was freed, not changed.
    control("stream-variable", P, || {
        let mut client = Client::ready();
        assert_eq!(cuda!(cuStreamCreate(&raw mut *client.stream, 1)), 0);
        // SAFETY: a new mapping of one page.
        let page = unsafe {
            let (protection, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            libc::mmap(null_mut(), 4096, protection, flags, -1, 0)
        };
        // SAFETY: mapped above.
        unsafe { page.cast::<Handle>().write(*client.stream) };
        assert_eq!(call!(client, nvEncSetIOCudaStreams, page, page), 0);
        // SAFETY: afterwards nothing but the emulator's careful look goes there.
        unsafe { libc::munmap(page, 4096) };
        let _ = client.map();
        client.destroy();
        client.session = null_mut();
        cuda!(cuStreamDestroy_v2(*client.stream));
    }),
    control("context-current", P, || {
        let client = Client::ready();
        let mut other = null_mut();
        assert_eq!(cuda!(cuCtxCreate_v2(&raw mut other, 0, 0)), 0);
        let _ = client.map();
        cuda!(cuCtxDestroy_v2(other));
    }),
    control("register-host", E, || {
        let _client = Client::bare();
        // Nothing is mapped there, flags that there are not, no whole page.
        for (address, bytes, flags) in [(0x1000, 4096, 9), (0x1000, 4096, 0x10), (0x1000, 64, 9)] {
            let code = cuda!(cuMemHostRegister_v2(address as Handle, bytes, flags));
            assert_eq!(code, 1);
        }
    }),
    // Of what was left, each thing alone.
    control("destroy-leaves", P, || {
        for left in ["maps", "registrations", "bitstream buffers"] {
            let mut client = Client::ready();
            if left == "maps" {
                assert_eq!(client.map().0, 0);
            }
            if left != "registrations" {
                call!(client, nvEncUnregisterResource, client.registered);
            }
            if left != "bitstream buffers" {
                call!(client, nvEncDestroyBitstreamBuffer, client.output);
            }
            let before = seen("destroy-leaves");
            assert_eq!(client.destroy(), 0);
            client.session = null_mut();
            assert_eq!(seen("destroy-leaves"), before + 1, "{left}");
        }
    }),
];

/// How often a rule was broken so far.
fn seen(rule: &str) -> u64 {
    let stats = nvenc_emu::report::stats();
    stats.violation_counts.get(rule).copied().unwrap_or(0)
}
