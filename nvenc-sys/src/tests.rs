//! Expected numbers are those of the SDK headers 11.0 to 13.0, written out by hand; the bindings
//! under test come from the header that the build found.

use super::*;
use core::mem::size_of;

/// Columns: 11.0, 11.1, 12.0, 12.1, 12.2, 13.0.
const HEADERS: [(u32, u32); 6] = [(11, 0), (11, 1), (12, 0), (12, 1), (12, 2), (13, 0)];

fn column() -> usize {
    HEADERS
        .iter()
        .position(|header| *header == (API_VERSION.major, API_VERSION.minor))
        .expect("the build script admits only these headers")
}

#[test]
fn structure_versions_are_those_of_the_headers_table() {
    let high = 1 << 31;
    let table: [(&str, u32, [u32; 6], u32); 17] = [
        ("FUNCTION_LIST", NV_ENCODE_API_FUNCTION_LIST_VER, [2; 6], 0),
        ("OPEN", NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER, [1; 6], 0),
        ("CAPS", NV_ENC_CAPS_PARAM_VER, [1; 6], 0),
        (
            "PRESET_CONFIG",
            NV_ENC_PRESET_CONFIG_VER,
            [4, 4, 4, 4, 5, 5],
            high,
        ),
        ("CONFIG", NV_ENC_CONFIG_VER, [7, 7, 8, 8, 9, 9], high),
        ("RC_PARAMS", NV_ENC_RC_PARAMS_VER, [1; 6], 0),
        (
            "INITIALIZE",
            NV_ENC_INITIALIZE_PARAMS_VER,
            [5, 5, 5, 6, 7, 7],
            high,
        ),
        (
            "RECONFIGURE",
            NV_ENC_RECONFIGURE_PARAMS_VER,
            [1, 1, 1, 1, 2, 2],
            high,
        ),
        (
            "REGISTER",
            NV_ENC_REGISTER_RESOURCE_VER,
            [3, 3, 4, 4, 5, 5],
            0,
        ),
        ("MAP", NV_ENC_MAP_INPUT_RESOURCE_VER, [4; 6], 0),
        ("BITSTREAM", NV_ENC_CREATE_BITSTREAM_BUFFER_VER, [1; 6], 0),
        (
            "INPUT",
            NV_ENC_CREATE_INPUT_BUFFER_VER,
            [1, 1, 1, 1, 2, 2],
            0,
        ),
        ("LOCK_INPUT", NV_ENC_LOCK_INPUT_BUFFER_VER, [1; 6], 0),
        ("PIC", NV_ENC_PIC_PARAMS_VER, [4, 4, 6, 6, 7, 7], high),
        ("SEQUENCE", NV_ENC_SEQUENCE_PARAM_PAYLOAD_VER, [1; 6], 0),
        ("STAT", NV_ENC_STAT_VER, [1, 1, 1, 1, 2, 2], 0),
        ("EVENT", NV_ENC_EVENT_PARAMS_VER, [1, 1, 1, 1, 2, 2], 0),
    ];
    let api = API_VERSION.major | API_VERSION.minor << 24;
    for (name, value, versions, flag) in table {
        let wanted = api | versions[column()] << 16 | 0x7 << 28 | flag;
        assert_eq!(value, wanted, "{name}: {value:#x} is not {wanted:#x}");
    }
    // LOCK_BITSTREAM alone gains bit 31 on the way, with 12.1.
    let lock = [(1, 0), (1, 0), (2, 0), (1, high), (2, high), (2, high)][column()];
    assert_eq!(
        NV_ENC_LOCK_BITSTREAM_VER,
        api | lock.0 << 16 | 0x7 << 28 | lock.1
    );
}

#[test]
fn structure_versions_of_the_default_header_in_full() {
    if API_VERSION
        != (ApiVersion {
            major: 11,
            minor: 1,
        })
    {
        eprintln!("built with header {API_VERSION}, not 11.1: the full values are not compared");
        return;
    }
    assert_eq!(NVENCAPI_VERSION, 0x0100_000B);
    assert_eq!(NV_ENCODE_API_FUNCTION_LIST_VER, 0x7102_000B);
    assert_eq!(NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER, 0x7101_000B);
    assert_eq!(NV_ENC_PRESET_CONFIG_VER, 0xF104_000B);
    assert_eq!(NV_ENC_CONFIG_VER, 0xF107_000B);
    assert_eq!(NV_ENC_INITIALIZE_PARAMS_VER, 0xF105_000B);
    assert_eq!(NV_ENC_RECONFIGURE_PARAMS_VER, 0xF101_000B);
    assert_eq!(NV_ENC_REGISTER_RESOURCE_VER, 0x7103_000B);
    assert_eq!(NV_ENC_MAP_INPUT_RESOURCE_VER, 0x7104_000B);
    assert_eq!(NV_ENC_PIC_PARAMS_VER, 0xF104_000B);
    assert_eq!(NV_ENC_LOCK_BITSTREAM_VER, 0x7101_000B);
}

#[test]
fn structure_sizes_are_those_of_the_headers() {
    let before_12_1 = (API_VERSION.major, API_VERSION.minor) < (12, 1);
    let at = |old, new| if column() == 5 { new } else { old };
    assert_eq!(size_of::<NV_ENC_CONFIG>(), 3584);
    assert_eq!(size_of::<NV_ENC_REGISTER_RESOURCE>(), 1536);
    assert_eq!(size_of::<NV_ENC_MAP_INPUT_RESOURCE>(), 1544);
    assert_eq!(size_of::<NV_ENC_PRESET_CONFIG>(), 5128);
    assert_eq!(size_of::<NV_ENCODE_API_FUNCTION_LIST>(), 2552);
    assert_eq!(size_of::<NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS>(), 1552);
    assert_eq!(size_of::<NV_ENC_CAPS_PARAM>(), 256);
    assert_eq!(size_of::<NV_ENC_CREATE_BITSTREAM_BUFFER>(), 776);
    assert_eq!(size_of::<NV_ENC_RC_PARAMS>(), 128);
    assert_eq!(size_of::<GUID>(), 16);
    if before_12_1 || column() == 5 {
        assert_eq!(size_of::<NV_ENC_INITIALIZE_PARAMS>(), at(1808, 1800));
        assert_eq!(size_of::<NV_ENC_RECONFIGURE_PARAMS>(), at(1824, 1816));
        assert_eq!(size_of::<NV_ENC_PIC_PARAMS>(), at(3344, 3360));
        assert_eq!(size_of::<NV_ENC_LOCK_BITSTREAM>(), 1544);
    }
}

#[test]
fn guids_are_read_from_the_header_and_are_distinct() {
    assert_eq!(ALL_GUIDS.len(), [29, 29, 31, 22, 22, 24][column()]);
    for (at, (name, guid)) in ALL_GUIDS.iter().enumerate() {
        let twin = ALL_GUIDS[..at].iter().find(|(_, other)| other == guid);
        assert_eq!(twin, None, "{name}");
    }
    for preset in 1..=7 {
        let name = format!("NV_ENC_PRESET_P{preset}_GUID");
        assert!(ALL_GUIDS.iter().any(|(other, _)| *other == name), "{name}");
    }
    // Numbers as the public SDK documentation prints them.
    let h264 = NV_ENC_CODEC_H264_GUID;
    assert_eq!(
        (h264.Data1, h264.Data2, h264.Data3),
        (0x6BC8_2762, 0x4E63, 0x4CA4)
    );
    assert_eq!(h264.Data4, [0xAA, 0x85, 0x1E, 0x50, 0xF3, 0x21, 0xF6, 0xBF]);
    let p1 = NV_ENC_PRESET_P1_GUID;
    assert_eq!(
        (p1.Data1, p1.Data2, p1.Data3),
        (0xFC0A_8D3E, 0x45F8, 0x4CF8)
    );
    assert_eq!(
        format!("{:?}", NV_ENC_CODEC_HEVC_GUID),
        "NV_ENC_CODEC_HEVC_GUID"
    );
}

#[test]
fn every_status_of_the_header_has_its_row() {
    for (at, row) in status::TABLE.iter().enumerate() {
        assert_eq!(row.code as usize, at);
        assert!(!row.meaning.is_empty());
    }
    let known = [
        (NVENCSTATUS::NV_ENC_SUCCESS, "SUCCESS"),
        (NVENCSTATUS::NV_ENC_ERR_NO_ENCODE_DEVICE, "NO_ENCODE_DEVICE"),
        (NVENCSTATUS::NV_ENC_ERR_DEVICE_NOT_EXIST, "DEVICE_NOT_EXIST"),
        (NVENCSTATUS::NV_ENC_ERR_INVALID_PARAM, "INVALID_PARAM"),
        (NVENCSTATUS::NV_ENC_ERR_OUT_OF_MEMORY, "OUT_OF_MEMORY"),
        (NVENCSTATUS::NV_ENC_ERR_INVALID_VERSION, "INVALID_VERSION"),
        (NVENCSTATUS::NV_ENC_ERR_NEED_MORE_INPUT, "NEED_MORE_INPUT"),
        (NVENCSTATUS::NV_ENC_ERR_ENCODER_BUSY, "ENCODER_BUSY"),
        (NVENCSTATUS::NV_ENC_ERR_GENERIC, "GENERIC"),
        (
            NVENCSTATUS::NV_ENC_ERR_RESOURCE_NOT_MAPPED,
            "RESOURCE_NOT_MAPPED",
        ),
    ];
    for (status, name) in known {
        assert_eq!(StatusInfo::of(status).name, name);
    }
    assert_eq!(
        StatusInfo::of(NVENCSTATUS(999)).to_string(),
        "UNKNOWN (999)"
    );
}

#[test]
fn the_two_version_packings_are_not_mixed_up() {
    let found = ApiVersion::from_max_supported(208);
    assert_eq!((found.major, found.minor), (13, 0));
    assert!(found > ApiVersion::from_max_supported(0xB1));
}

#[test]
fn a_library_that_is_not_there_is_a_reason_and_no_panic() {
    let error = SharedLibrary::open("libthere-is-no-such-driver.so.1").unwrap_err();
    assert!(
        error.to_string().contains("no NVIDIA driver here"),
        "{error}"
    );
}

#[test]
fn a_library_without_the_symbol_is_a_reason_and_no_panic() {
    let library = SharedLibrary::open("libc.so.6").unwrap();
    let error = library.symbol("NvEncodeAPICreateInstance").unwrap_err();
    assert_eq!(
        error,
        LoadError::Symbol {
            library: "libc.so.6",
            symbol: "NvEncodeAPICreateInstance"
        }
    );
    assert!(library.symbol("strlen").is_ok());
}

mod fake {
    use super::*;

    pub unsafe extern "C" fn version<const PACKED: u32>(out: *mut u32) -> NVENCSTATUS {
        // SAFETY: the loader passes a live u32.
        unsafe { *out = PACKED };
        NVENCSTATUS(0)
    }

    pub unsafe extern "C" fn refuse(_: *mut NV_ENCODE_API_FUNCTION_LIST) -> NVENCSTATUS {
        NVENCSTATUS(15)
    }

    pub unsafe extern "C" fn empty_list(list: *mut NV_ENCODE_API_FUNCTION_LIST) -> NVENCSTATUS {
        // SAFETY: the loader passes a live list.
        assert_eq!(unsafe { (*list).version }, NV_ENCODE_API_FUNCTION_LIST_VER);
        NVENCSTATUS(0)
    }
}

#[test]
fn an_old_driver_is_told_apart_from_a_refusal_and_from_a_gap() {
    // SAFETY: the fakes behave as the header says.
    let (old, refused, gap) = unsafe {
        (
            EncodeApi::negotiate(fake::version::<0xA0>, fake::empty_list),
            EncodeApi::negotiate(fake::version::<0xD0>, fake::refuse),
            EncodeApi::negotiate(fake::version::<0xD0>, fake::empty_list),
        )
    };
    let words = old.unwrap_err().to_string();
    assert!(
        words.contains(&format!("needs NVENC API {API_VERSION}")),
        "{words}"
    );
    assert!(words.ends_with("found 10.0"), "{words}");
    assert_eq!(
        refused.unwrap_err(),
        LoadError::Refused {
            call: "NvEncodeAPICreateInstance",
            status: NVENCSTATUS(15)
        }
    );
    assert_eq!(
        gap.unwrap_err(),
        LoadError::NoFunction {
            function: "nvEncOpenEncodeSessionEx"
        }
    );
}
