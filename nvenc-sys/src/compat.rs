//! The few fields of our list that are not the same in every header.

use crate::*;

/// Says BT.709 in limited range, and that pictures need not be held back for reordering.
pub fn set_vui_bt709_limited(vui: &mut NV_ENC_CONFIG_H264_VUI_PARAMETERS) {
    // ITU-T Rec. H.264 and H.265 annex E: 5 unspecified format; 1 BT.709 in all three tables.
    const UNSPECIFIED: u32 = 5;
    const BT_709: u32 = 1;
    vui.videoSignalTypePresentFlag = 1;
    vui.videoFullRangeFlag = 0;
    vui.colourDescriptionPresentFlag = 1;
    vui.bitstreamRestrictionFlag = 1;
    #[cfg(not(nvenc_ge_12_0))]
    {
        vui.videoFormat = UNSPECIFIED;
        vui.colourPrimaries = BT_709;
        vui.transferCharacteristics = BT_709;
        vui.colourMatrix = BT_709;
    }
    #[cfg(nvenc_ge_12_0)]
    {
        vui.videoFormat = NV_ENC_VUI_VIDEO_FORMAT(UNSPECIFIED);
        vui.colourPrimaries = NV_ENC_VUI_COLOR_PRIMARIES(BT_709);
        vui.transferCharacteristics = NV_ENC_VUI_TRANSFER_CHARACTERISTIC(BT_709);
        vui.colourMatrix = NV_ENC_VUI_MATRIX_COEFFS(BT_709);
    }
}

/// Eight bits in and out.
pub fn set_8_bit_h264(config: &mut NV_ENC_CONFIG_H264) {
    #[cfg(nvenc_ge_12_2)]
    {
        config.inputBitDepth = NV_ENC_BIT_DEPTH(8);
        config.outputBitDepth = NV_ENC_BIT_DEPTH(8);
    }
    let _ = config;
}

/// Eight bits in and out.
pub fn set_8_bit_hevc(config: &mut NV_ENC_CONFIG_HEVC) {
    #[cfg(nvenc_ge_12_2)]
    {
        config.inputBitDepth = NV_ENC_BIT_DEPTH(8);
        config.outputBitDepth = NV_ENC_BIT_DEPTH(8);
    }
    #[cfg(not(nvenc_ge_12_2))]
    config.set_pixelBitDepthMinus8(0);
}
