//! What the driver is asked for: `EncoderConfig` and the GPU's capabilities in, NVENC structures out.
//!
//! The configuration always starts from the driver's own preset (P1 to P7 with a tuning, through
//! the `Ex` call); what is not edited here stays as the driver wants it.

use nvenc_sys::*;

use crate::encode::{Codec, EncoderConfig, FrameRate, Preset, RateControl, Tuning};

/// What a GPU says about one codec; asked before anything is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Caps {
    pub width: (u32, u32),
    pub height: (u32, u32),
    pub max_b_frames: u32,
    pub custom_vbv: bool,
    pub dynamic_bitrate: bool,
    pub cabac: bool,
    pub intra_refresh: bool,
    pub macroblocks_per_second: u32,
    pub engines: u32,
}

impl Caps {
    /// Asks through `get`, which gives 0 for a capability that the driver does not know.
    pub fn ask(mut get: impl FnMut(NV_ENC_CAPS) -> i32) -> Self {
        use NV_ENC_CAPS as C;
        let mut number = |cap| u32::try_from(get(cap)).unwrap_or(0);
        Self {
            width: (
                number(C::NV_ENC_CAPS_WIDTH_MIN),
                number(C::NV_ENC_CAPS_WIDTH_MAX),
            ),
            height: (
                number(C::NV_ENC_CAPS_HEIGHT_MIN),
                number(C::NV_ENC_CAPS_HEIGHT_MAX),
            ),
            max_b_frames: number(C::NV_ENC_CAPS_NUM_MAX_BFRAMES),
            custom_vbv: number(C::NV_ENC_CAPS_SUPPORT_CUSTOM_VBV_BUF_SIZE) != 0,
            dynamic_bitrate: number(C::NV_ENC_CAPS_SUPPORT_DYN_BITRATE_CHANGE) != 0,
            cabac: number(C::NV_ENC_CAPS_SUPPORT_CABAC) != 0,
            intra_refresh: number(C::NV_ENC_CAPS_SUPPORT_INTRA_REFRESH) != 0,
            macroblocks_per_second: number(C::NV_ENC_CAPS_MB_PER_SEC_MAX),
            engines: number(C::NV_ENC_CAPS_NUM_ENCODER_ENGINES),
        }
    }

    /// Why pictures of this size cannot be coded, if so.
    pub fn refusal(&self, width: u32, height: u32) -> Option<String> {
        let outside = |value, (min, max): (u32, u32)| value < min || (max != 0 && value > max);
        (outside(width, self.width) || outside(height, self.height)).then(|| {
            format!(
                "this GPU codes {}x{} to {}x{}, the picture is {width}x{height}",
                self.width.0, self.height.0, self.width.1, self.height.1
            )
        })
    }
}

/// What was decided before the driver is asked to initialise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub codec: Codec,
    /// Even.
    pub width: u32,
    /// Even.
    pub height: u32,
    pub frame_rate: FrameRate,
    pub rate: RateControl,
    pub gop: u32,
    pub b_frames: u32,
    /// Only without B-frames, for the driver ignores it beside them (nvEncodeAPI.h).
    pub intra_refresh: bool,
    pub preset: Preset,
    pub tuning: Tuning,
    /// Dropped where an old chip refuses it.
    pub multi_pass: bool,
    /// Dropped where the GPU lacks the capability or refuses it.
    pub custom_vbv: bool,
}

impl Plan {
    pub fn new(config: &EncoderConfig, caps: &Caps) -> Self {
        let most = match config.gop {
            0 => caps.max_b_frames,
            gop => caps.max_b_frames.min(gop - 1),
        };
        let (width, height) = config.coded_size();
        let b_frames = config.b_frames.min(most);
        Self {
            codec: config.codec,
            width,
            height,
            frame_rate: config.frame_rate,
            rate: config.rate,
            gop: config.gop,
            b_frames,
            intra_refresh: config.intra_refresh
                && caps.intra_refresh
                && b_frames == 0
                && config.gop > 1,
            preset: config.preset,
            tuning: config.tuning,
            multi_pass: config.tuning == Tuning::LowLatency,
            custom_vbv: caps.custom_vbv && config.tuning == Tuning::LowLatency,
        }
    }

    pub fn codec_guid(&self) -> GUID {
        codec_guid(self.codec)
    }

    pub fn preset_guid(&self) -> GUID {
        match self.preset {
            Preset::Fastest => NV_ENC_PRESET_P1_GUID,
            Preset::Fast => NV_ENC_PRESET_P2_GUID,
            Preset::Balanced => NV_ENC_PRESET_P4_GUID,
            Preset::Quality => NV_ENC_PRESET_P6_GUID,
        }
    }

    /// Ultra low latency is documented for streams without reordering only.
    pub fn tuning_info(&self) -> NV_ENC_TUNING_INFO {
        use NV_ENC_TUNING_INFO as T;
        match (self.tuning, self.b_frames) {
            (Tuning::LowLatency, 0) => T::NV_ENC_TUNING_INFO_ULTRA_LOW_LATENCY,
            (Tuning::LowLatency, _) => T::NV_ENC_TUNING_INFO_LOW_LATENCY,
            (Tuning::Quality, _) => T::NV_ENC_TUNING_INFO_HIGH_QUALITY,
        }
    }

    /// Output slots, and input slots that the encoder may keep: what B-frames hold back, twice, and two.
    pub fn ring(&self) -> usize {
        (2 * (self.b_frames as usize + 1) + 2).max(4)
    }

    /// The initialise parameters; `encodeConfig` is left for the caller, who owns it.
    pub fn initialize_params(&self) -> NV_ENC_INITIALIZE_PARAMS {
        NV_ENC_INITIALIZE_PARAMS {
            version: NV_ENC_INITIALIZE_PARAMS_VER,
            encodeGUID: self.codec_guid(),
            presetGUID: self.preset_guid(),
            tuningInfo: self.tuning_info(),
            encodeWidth: self.width,
            encodeHeight: self.height,
            maxEncodeWidth: self.width,
            maxEncodeHeight: self.height,
            // Square pixels.
            darWidth: self.width,
            darHeight: self.height,
            frameRateNum: self.frame_rate.num,
            frameRateDen: self.frame_rate.den,
            enableEncodeAsync: 0,
            enablePTD: 1,
            ..Default::default()
        }
    }

    /// Edits the preset's configuration.
    pub fn apply(&self, config: &mut NV_ENC_CONFIG, caps: &Caps) {
        self.apply_structure(config);
        self.apply_rate(&mut config.rcParams);
        match self.codec {
            Codec::H264 => self.apply_h264(config, caps),
            Codec::H265 => self.apply_hevc(config),
        }
    }

    fn apply_structure(&self, config: &mut NV_ENC_CONFIG) {
        config.version = NV_ENC_CONFIG_VER;
        config.profileGUID = match self.codec {
            Codec::H264 => NV_ENC_H264_PROFILE_HIGH_GUID,
            Codec::H265 => NV_ENC_HEVC_PROFILE_MAIN_GUID,
        };
        config.gopLength = self.gop_length();
        config.frameIntervalP = match self.gop {
            1 => 0,
            _ => self.b_frames as i32 + 1,
        };
    }

    /// Rate control. With a constant bit rate and low latency each picture may use one frame's
    /// share, so that an IDR cannot stall the link.
    pub fn apply_rate(&self, rc: &mut NV_ENC_RC_PARAMS) {
        use NV_ENC_PARAMS_RC_MODE as Mode;
        if rc.version == 0 {
            rc.version = NV_ENC_RC_PARAMS_VER;
        }
        let low_latency = self.tuning == Tuning::LowLatency;
        match self.rate {
            RateControl::Bitrate(bits) => {
                rc.rateControlMode = if low_latency {
                    Mode::NV_ENC_PARAMS_RC_CBR
                } else {
                    Mode::NV_ENC_PARAMS_RC_VBR
                };
                rc.averageBitRate = bits;
                rc.maxBitRate = if low_latency {
                    bits
                } else {
                    bits.saturating_add(bits / 2)
                };
                if self.custom_vbv {
                    rc.vbvBufferSize = self.vbv(bits);
                    rc.vbvInitialDelay = rc.vbvBufferSize;
                }
            }
            RateControl::Quality(quality) => {
                rc.rateControlMode = Mode::NV_ENC_PARAMS_RC_VBR;
                rc.averageBitRate = 0;
                rc.maxBitRate = 0;
                // 0 would leave the choice to the driver (nvEncodeAPI.h); ours is the best quality.
                rc.targetQuality = quality.max(1);
                rc.targetQualityLSB = 0;
            }
        }
        rc.multiPass = if self.multi_pass {
            NV_ENC_MULTI_PASS::NV_ENC_TWO_PASS_QUARTER_RESOLUTION
        } else {
            NV_ENC_MULTI_PASS::NV_ENC_MULTI_PASS_DISABLED
        };
        rc.set_enableLookahead(0);
        rc.set_enableTemporalAQ(0);
        rc.set_enableAQ(u32::from(!low_latency));
        rc.set_zeroReorderDelay(u32::from(low_latency && self.b_frames == 0));
        if low_latency {
            rc.lowDelayKeyFrameScale = 1;
        }
    }

    /// Bits of one frame's share, times the pictures of a mini-GOP.
    fn vbv(&self, bits: u32) -> u32 {
        let share =
            u64::from(bits) * u64::from(self.frame_rate.den) / u64::from(self.frame_rate.num);
        u32::try_from(share * u64::from(self.b_frames + 1)).unwrap_or(u32::MAX)
    }

    fn gop_length(&self) -> u32 {
        match self.gop {
            _ if self.intra_refresh => NVENC_INFINITE_GOPLENGTH,
            0 => NVENC_INFINITE_GOPLENGTH,
            gop => gop,
        }
    }

    /// The period of the refresh, and the pictures of one that carry it: as many as the driver
    /// allows, "smaller than intraRefreshPeriod" (nvEncodeAPI.h), so that none is a burst.
    fn refresh(&self) -> (u32, u32) {
        (self.gop, self.gop - 1)
    }

    /// A decoder holds nothing back if only one picture is referred to.
    fn references(&self) -> u32 {
        u32::from(self.tuning == Tuning::LowLatency && self.b_frames == 0)
    }

    fn apply_h264(&self, config: &mut NV_ENC_CONFIG, caps: &Caps) {
        let h264 = arm::h264(config);
        h264.idrPeriod = self.gop_length();
        h264.set_repeatSPSPPS(1);
        h264.set_disableSPSPPS(0);
        h264.set_outputAUD(0);
        h264.set_enableFillerDataInsertion(0);
        h264.set_outputBufferingPeriodSEI(0);
        h264.set_outputPictureTimingSEI(0);
        h264.sliceMode = SLICES_PER_PICTURE;
        h264.sliceModeData = 1;
        h264.maxNumRefFrames = self.references();
        if self.intra_refresh {
            h264.set_enableIntraRefresh(1);
            h264.set_outputRecoveryPointSEI(1);
            (h264.intraRefreshPeriod, h264.intraRefreshCnt) = self.refresh();
        }
        h264.level = LEVEL_AUTO;
        h264.chromaFormatIDC = CHROMA_420;
        h264.entropyCodingMode = if caps.cabac {
            NV_ENC_H264_ENTROPY_CODING_MODE::NV_ENC_H264_ENTROPY_CODING_MODE_CABAC
        } else {
            NV_ENC_H264_ENTROPY_CODING_MODE::NV_ENC_H264_ENTROPY_CODING_MODE_CAVLC
        };
        compat::set_8_bit_h264(h264);
        compat::set_vui_bt709_limited(&mut h264.h264VUIParameters);
    }

    fn apply_hevc(&self, config: &mut NV_ENC_CONFIG) {
        let hevc = arm::hevc(config);
        hevc.idrPeriod = self.gop_length();
        hevc.set_repeatSPSPPS(1);
        hevc.set_disableSPSPPS(0);
        hevc.set_outputAUD(0);
        hevc.set_enableFillerDataInsertion(0);
        hevc.set_outputBufferingPeriodSEI(0);
        hevc.set_outputPictureTimingSEI(0);
        hevc.sliceMode = SLICES_PER_PICTURE;
        hevc.sliceModeData = 1;
        hevc.maxNumRefFramesInDPB = self.references();
        if self.intra_refresh {
            hevc.set_enableIntraRefresh(1);
            (hevc.intraRefreshPeriod, hevc.intraRefreshCnt) = self.refresh();
        }
        hevc.level = LEVEL_AUTO;
        hevc.tier = TIER_MAIN;
        hevc.set_chromaFormatIDC(CHROMA_420);
        compat::set_8_bit_hevc(hevc);
        compat::set_vui_bt709_limited(&mut hevc.hevcVUIParameters);
    }

    /// The picture parameters that are the same for every picture.
    pub fn picture_params(&self) -> NV_ENC_PIC_PARAMS {
        let mut params = NV_ENC_PIC_PARAMS {
            version: NV_ENC_PIC_PARAMS_VER,
            inputWidth: self.width,
            inputHeight: self.height,
            pictureStruct: NV_ENC_PIC_STRUCT::NV_ENC_PIC_STRUCT_FRAME,
            ..Default::default()
        };
        match self.codec {
            Codec::H264 => {
                let h264 = arm::h264_picture(&mut params);
                h264.sliceMode = SLICES_PER_PICTURE;
                h264.sliceModeData = 1;
            }
            Codec::H265 => {
                let hevc = arm::hevc_picture(&mut params);
                hevc.sliceMode = SLICES_PER_PICTURE;
                hevc.sliceModeData = 1;
            }
        }
        params
    }
}

pub fn codec_guid(codec: Codec) -> GUID {
    match codec {
        Codec::H264 => NV_ENC_CODEC_H264_GUID,
        Codec::H265 => NV_ENC_CODEC_HEVC_GUID,
    }
}

/// The arms of the two unions. Each arm is plain numbers and pointers, valid for any bytes, and the
/// driver reads the one that belongs to `encodeGUID`.
#[allow(unsafe_code)]
pub mod arm {
    use super::*;

    pub fn h264(config: &mut NV_ENC_CONFIG) -> &mut NV_ENC_CONFIG_H264 {
        // SAFETY: as the module says.
        unsafe { &mut config.encodeCodecConfig.h264Config }
    }

    pub fn hevc(config: &mut NV_ENC_CONFIG) -> &mut NV_ENC_CONFIG_HEVC {
        // SAFETY: as the module says.
        unsafe { &mut config.encodeCodecConfig.hevcConfig }
    }

    pub fn h264_picture(params: &mut NV_ENC_PIC_PARAMS) -> &mut NV_ENC_PIC_PARAMS_H264 {
        // SAFETY: as the module says.
        unsafe { &mut params.codecPicParams.h264PicParams }
    }

    pub fn hevc_picture(params: &mut NV_ENC_PIC_PARAMS) -> &mut NV_ENC_PIC_PARAMS_HEVC {
        // SAFETY: as the module says.
        unsafe { &mut params.codecPicParams.hevcPicParams }
    }
}

/// `sliceMode`: the data is the number of slices of a picture.
const SLICES_PER_PICTURE: u32 = 3;
const LEVEL_AUTO: u32 = 0;
const TIER_MAIN: u32 = 0;
const CHROMA_420: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{PictureShape, PixelFormat};

    fn config(codec: Codec) -> EncoderConfig {
        EncoderConfig {
            codec,
            shape: PictureShape {
                width: 641,
                height: 361,
                format: PixelFormat::Bgr,
                encoded: None,
            },
            frame_rate: FrameRate {
                num: 30_000,
                den: 1001,
            },
            rate: RateControl::Bitrate(4_000_000),
            gop: 60,
            b_frames: 0,
            intra_refresh: false,
            preset: Preset::Fastest,
            tuning: Tuning::LowLatency,
            surfaces_in_flight: 3,
        }
    }

    fn caps() -> Caps {
        Caps {
            width: (145, 4096),
            height: (49, 4096),
            max_b_frames: 2,
            custom_vbv: true,
            cabac: true,
            ..Caps::default()
        }
    }

    #[test]
    fn low_latency_is_one_picture_in_one_out_with_single_frame_vbv() {
        let plan = Plan::new(&config(Codec::H264), &caps());
        assert_eq!((plan.width, plan.height, plan.ring()), (642, 362, 4));
        assert_eq!(plan.tuning_info().0, 3);
        assert_eq!(plan.preset_guid(), NV_ENC_PRESET_P1_GUID);
        let mut nv = NV_ENC_CONFIG::default();
        plan.apply(&mut nv, &caps());
        assert_eq!((nv.gopLength, nv.frameIntervalP), (60, 1));
        assert_eq!(nv.rcParams.rateControlMode.0, 2);
        // 4 Mbit/s * 1001 / 30000
        assert_eq!(nv.rcParams.vbvBufferSize, 133_466);
        assert_eq!(nv.rcParams.vbvInitialDelay, 133_466);
        assert_eq!(nv.rcParams.zeroReorderDelay(), 1);
        assert_eq!(
            (nv.rcParams.multiPass.0, nv.rcParams.lowDelayKeyFrameScale),
            (1, 1)
        );
        let h264 = arm::h264(&mut nv);
        assert_eq!(
            (h264.idrPeriod, h264.repeatSPSPPS(), h264.outputAUD()),
            (60, 1, 0)
        );
        assert_eq!(
            (h264.sliceMode, h264.sliceModeData, h264.maxNumRefFrames),
            (3, 1, 1)
        );
    }

    #[test]
    fn b_frames_widen_the_buffer_and_give_up_zero_reordering() {
        let mut wanted = config(Codec::H265);
        wanted.b_frames = 5;
        let plan = Plan::new(&wanted, &caps());
        assert_eq!(
            (plan.b_frames, plan.ring(), plan.tuning_info().0),
            (2, 8, 2)
        );
        let mut nv = NV_ENC_CONFIG::default();
        plan.apply(&mut nv, &caps());
        assert_eq!(nv.frameIntervalP, 3);
        assert_eq!(nv.rcParams.vbvBufferSize, 3 * 133_466);
        assert_eq!(nv.rcParams.zeroReorderDelay(), 0);
        assert_eq!(arm::hevc(&mut nv).maxNumRefFramesInDPB, 0);
    }

    #[test]
    fn an_intra_refresh_has_no_end_of_gop_and_is_shorter_than_its_period() {
        let mut wanted = config(Codec::H264);
        wanted.intra_refresh = true;
        let able = Caps {
            intra_refresh: true,
            ..caps()
        };
        for codec in [Codec::H264, Codec::H265] {
            wanted.codec = codec;
            let plan = Plan::new(&wanted, &able);
            let mut nv = NV_ENC_CONFIG::default();
            plan.apply(&mut nv, &able);
            assert_eq!((nv.gopLength, nv.frameIntervalP), (u32::MAX, 1));
            let set = match codec {
                Codec::H264 => {
                    let h264 = arm::h264(&mut nv);
                    assert_eq!(h264.outputRecoveryPointSEI(), 1);
                    (
                        h264.enableIntraRefresh(),
                        h264.idrPeriod,
                        h264.intraRefreshPeriod,
                        h264.intraRefreshCnt,
                    )
                }
                Codec::H265 => {
                    let hevc = arm::hevc(&mut nv);
                    (
                        hevc.enableIntraRefresh(),
                        hevc.idrPeriod,
                        hevc.intraRefreshPeriod,
                        hevc.intraRefreshCnt,
                    )
                }
            };
            assert_eq!(set, (1, u32::MAX, 60, 59));
        }
        // Not without the capability, and not beside B-frames, where the driver would ignore it.
        assert!(!Plan::new(&wanted, &caps()).intra_refresh);
        wanted.b_frames = 1;
        assert!(!Plan::new(&wanted, &able).intra_refresh);
    }

    #[test]
    fn gop_zero_is_infinite_one_is_all_intra_and_short_ones_limit_b_frames() {
        let mut wanted = config(Codec::H264);
        wanted.b_frames = 2;
        let gop = |wanted: &mut EncoderConfig, gop| {
            wanted.gop = gop;
            let plan = Plan::new(wanted, &caps());
            let mut nv = NV_ENC_CONFIG::default();
            plan.apply(&mut nv, &caps());
            (
                nv.gopLength,
                nv.frameIntervalP,
                arm::h264(&mut nv).idrPeriod,
            )
        };
        assert_eq!(gop(&mut wanted, 0), (u32::MAX, 3, u32::MAX));
        assert_eq!(gop(&mut wanted, 1), (1, 0, 1));
        assert_eq!(gop(&mut wanted, 2), (2, 2, 2));
    }

    #[test]
    fn the_vbv_is_left_alone_without_the_capability() {
        let without = Caps {
            custom_vbv: false,
            ..caps()
        };
        let plan = Plan::new(&config(Codec::H264), &without);
        let mut nv = NV_ENC_CONFIG::default();
        nv.rcParams.vbvBufferSize = 77;
        plan.apply(&mut nv, &without);
        assert_eq!(nv.rcParams.vbvBufferSize, 77);
    }

    #[test]
    fn sizes_outside_the_capabilities_are_named() {
        let words = caps().refusal(128, 96).unwrap();
        assert!(words.contains("145x49 to 4096x4096"), "{words}");
        assert!(words.contains("128x96"), "{words}");
        assert_eq!(caps().refusal(640, 360), None);
    }

    #[test]
    fn offline_quality_asks_for_quality_and_not_for_a_rate() {
        let mut wanted = config(Codec::H264);
        wanted.tuning = Tuning::Quality;
        wanted.rate = RateControl::Quality(23);
        wanted.preset = Preset::Balanced;
        let plan = Plan::new(&wanted, &caps());
        assert_eq!(plan.preset_guid(), NV_ENC_PRESET_P4_GUID);
        assert_eq!(plan.tuning_info().0, 1);
        let mut nv = NV_ENC_CONFIG::default();
        plan.apply(&mut nv, &caps());
        assert_eq!(nv.rcParams.rateControlMode.0, 1);
        assert_eq!(
            (nv.rcParams.averageBitRate, nv.rcParams.targetQuality),
            (0, 23)
        );
        // 0 is the best quality here, and "automatic" in nvEncodeAPI.h, which has 1 to 51.
        wanted.rate = RateControl::Quality(0);
        Plan::new(&wanted, &caps()).apply(&mut nv, &caps());
        assert_eq!(nv.rcParams.targetQuality, 1);
        assert_eq!((nv.rcParams.multiPass.0, nv.rcParams.enableAQ()), (0, 1));
        assert_eq!(nv.rcParams.vbvBufferSize, 0);
    }
}
