//! Numbers that the emulator holds clients to, written out from the SDK headers 11.0 to 13.0 and
//! their documentation.

use nvenc_sys::GUID;

/// Structures that carry a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioned {
    FunctionList,
    OpenSession,
    Caps,
    PresetConfig,
    Config,
    RcParams,
    Initialize,
    Reconfigure,
    Register,
    Map,
    CreateBitstream,
    CreateInput,
    LockInput,
    Picture,
    Lock,
    SequenceParams,
}

const HIGH: u32 = 1 << 31;

/// The version word of a structure for an API version; `None` for an API that is not in the table.
pub fn version_of(structure: Versioned, api: (u32, u32)) -> Option<u32> {
    use Versioned as V;
    let column = [(11, 0), (11, 1), (12, 0), (12, 1), (12, 2), (13, 0)]
        .iter()
        .position(|known| *known == api)?;
    let (versions, high): ([u32; 6], u32) = match structure {
        V::FunctionList => ([2; 6], 0),
        V::OpenSession | V::Caps | V::RcParams | V::CreateBitstream | V::LockInput => ([1; 6], 0),
        V::SequenceParams => ([1; 6], 0),
        V::PresetConfig => ([4, 4, 4, 4, 5, 5], HIGH),
        V::Config => ([7, 7, 8, 8, 9, 9], HIGH),
        V::Initialize => ([5, 5, 5, 6, 7, 7], HIGH),
        V::Reconfigure => ([1, 1, 1, 1, 2, 2], HIGH),
        V::Register => ([3, 3, 4, 4, 5, 5], 0),
        V::Map => ([4; 6], 0),
        V::CreateInput => ([1, 1, 1, 1, 2, 2], 0),
        V::Picture => ([4, 4, 6, 6, 7, 7], HIGH),
        V::Lock => ([1, 1, 2, 1, 2, 2], if column >= 3 { HIGH } else { 0 }),
    };
    Some(api.0 | api.1 << 24 | versions[column] << 16 | 0x7 << 28 | high)
}

const fn guid(data1: u32, data2: u16, data3: u16, data4: [u8; 8]) -> GUID {
    GUID {
        Data1: data1,
        Data2: data2,
        Data3: data3,
        Data4: data4,
    }
}

pub const H264: GUID = guid(
    0x6bc8_2762,
    0x4e63,
    0x4ca4,
    [0xaa, 0x85, 0x1e, 0x50, 0xf3, 0x21, 0xf6, 0xbf],
);
pub const HEVC: GUID = guid(
    0x790c_dc88,
    0x4522,
    0x4d7b,
    [0x94, 0x25, 0xbd, 0xa9, 0x97, 0x5f, 0x76, 0x03],
);

/// P1 to P7, the only presets that drivers from 590 on know.
pub const PRESETS: [GUID; 7] = [
    guid(
        0xfc0a_8d3e,
        0x45f8,
        0x4cf8,
        [0x80, 0xc7, 0x29, 0x88, 0x71, 0x59, 0x0e, 0xbf],
    ),
    guid(
        0xf581_cfb8,
        0x88d6,
        0x4381,
        [0x93, 0xf0, 0xdf, 0x13, 0xf9, 0xc2, 0x7d, 0xab],
    ),
    guid(
        0x3685_0110,
        0x3a07,
        0x441f,
        [0x94, 0xd5, 0x36, 0x70, 0x63, 0x1f, 0x91, 0xf6],
    ),
    guid(
        0x90a7_b826,
        0xdf06,
        0x4862,
        [0xb9, 0xd2, 0xcd, 0x6d, 0x73, 0xa0, 0x86, 0x81],
    ),
    guid(
        0x21c6_e6b4,
        0x297a,
        0x4cba,
        [0x99, 0x8f, 0xb6, 0xcb, 0xde, 0x72, 0xad, 0xe3],
    ),
    guid(
        0x8e75_c279,
        0x6299,
        0x4ab6,
        [0x83, 0x02, 0x0b, 0x21, 0x5a, 0x33, 0x5c, 0xf5],
    ),
    guid(
        0x8484_8c12,
        0x6f71,
        0x4c13,
        [0x93, 0x1b, 0x53, 0xe2, 0x83, 0xf5, 0x79, 0x74],
    ),
];

pub const SUCCESS: u32 = 0;
pub const NO_ENCODE_DEVICE: u32 = 1;
pub const UNSUPPORTED_DEVICE: u32 = 2;
pub const INVALID_ENCODERDEVICE: u32 = 3;
pub const DEVICE_NOT_EXIST: u32 = 5;
pub const INVALID_PTR: u32 = 6;
pub const INVALID_PARAM: u32 = 8;
pub const INVALID_CALL: u32 = 9;
pub const OUT_OF_MEMORY: u32 = 10;
pub const NOT_INITIALIZED: u32 = 11;
pub const UNSUPPORTED_PARAM: u32 = 12;
pub const NOT_ENOUGH_BUFFER: u32 = 14;
pub const INVALID_VERSION: u32 = 15;
pub const MAP_FAILED: u32 = 16;
pub const NEED_MORE_INPUT: u32 = 17;
pub const BUSY: u32 = 18;
pub const GENERIC: u32 = 20;
pub const UNIMPLEMENTED: u32 = 22;
pub const REGISTER_FAILED: u32 = 23;
pub const NOT_REGISTERED: u32 = 24;
pub const NOT_MAPPED: u32 = 25;

/// Input formats with their bytes: NV12, YV12, IYUV, ARGB (B,G,R,A in memory), ABGR (R,G,B,A).
pub const FORMATS: [u32; 5] = [0x1, 0x10, 0x100, 0x0100_0000, 0x1000_0000];

pub const FLAG_FORCE_INTRA: u32 = 1;
pub const FLAG_FORCE_IDR: u32 = 2;
pub const FLAG_SPSPPS: u32 = 4;
pub const FLAG_EOS: u32 = 8;

/// Picture types as `NV_ENC_PIC_TYPE` numbers them.
pub const TYPE_P: u32 = 0;
pub const TYPE_B: u32 = 1;
pub const TYPE_IDR: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers here were written by hand; the header that this was built with must agree.
    #[test]
    fn rules_and_header_agree() {
        use nvenc_sys as n;
        let api = (n::API_VERSION.major, n::API_VERSION.minor);
        let pairs = [
            (Versioned::FunctionList, n::NV_ENCODE_API_FUNCTION_LIST_VER),
            (Versioned::Config, n::NV_ENC_CONFIG_VER),
            (Versioned::Initialize, n::NV_ENC_INITIALIZE_PARAMS_VER),
            (Versioned::Picture, n::NV_ENC_PIC_PARAMS_VER),
            (Versioned::Lock, n::NV_ENC_LOCK_BITSTREAM_VER),
            (Versioned::Register, n::NV_ENC_REGISTER_RESOURCE_VER),
        ];
        for (structure, word) in pairs {
            assert_eq!(version_of(structure, api), Some(word), "{structure:?}");
        }
        let names = [
            n::NV_ENC_PRESET_P1_GUID,
            n::NV_ENC_PRESET_P2_GUID,
            n::NV_ENC_PRESET_P3_GUID,
            n::NV_ENC_PRESET_P4_GUID,
            n::NV_ENC_PRESET_P5_GUID,
            n::NV_ENC_PRESET_P6_GUID,
            n::NV_ENC_PRESET_P7_GUID,
        ];
        assert_eq!(names, PRESETS);
        assert_eq!(
            (n::NV_ENC_CODEC_H264_GUID, n::NV_ENC_CODEC_HEVC_GUID),
            (H264, HEVC)
        );
    }
}
