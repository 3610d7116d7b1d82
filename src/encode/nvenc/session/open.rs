//! Opening a session: ask before set, and every refusal in words that say what would help.

use std::ffi::c_void;
use std::sync::Arc;

use nvenc_sys::*;

use super::super::cuda::Handle;
use super::super::failure::*;
use super::super::params::{Plan, codec_guid};
use super::super::surface::CudaSurface;
use super::{RegisteredSurface, Session};
use crate::encode::EncoderConfig;
use crate::frame::{Surface, SurfacePool};

#[allow(unsafe_code)] // calls through the driver's tables; each block says why the arguments hold
impl Session {
    pub(super) fn prepare(&mut self, config: &EncoderConfig) -> Result<(), Refusal> {
        let opened = self.calls.open(self.device.context);
        opened.map_err(|failure| self.refused(failure))?;
        let guid = codec_guid(config.codec);
        let codecs = self.calls.codecs();
        let codecs = codecs.map_err(|failure| self.refused(failure))?;
        if !codecs.contains(&guid) {
            return Err(Refusal::Codec {
                gpu: self.opened.gpu.clone(),
                codec: config.codec.name(),
            });
        }
        let caps = self.calls.caps(guid);
        let plan = Plan::new(config, &caps);
        if let Some(reason) = caps.refusal(plan.width, plan.height) {
            return Err(Refusal::Size {
                gpu: self.opened.gpu.clone(),
                reason,
            });
        }
        if plan.b_frames < config.b_frames {
            log::warn!(
                "nvenc: --b-frames {} becomes {}: {} allows {} with this codec, and the GOP has {} pictures",
                config.b_frames,
                plan.b_frames,
                self.opened.gpu,
                caps.max_b_frames,
                config.gop,
            );
        }
        if config.intra_refresh && !plan.intra_refresh {
            log::warn!(
                "nvenc: {} has no intra refresh with this codec: a key frame every {} pictures in \
                 its place",
                self.opened.gpu,
                config.gop,
            );
        }
        (self.opened.caps, self.opened.plan) = (caps, plan);
        let rest = |session: &mut Self| -> Result<(), Failure> {
            session.need_nv12(guid)?;
            session.initialize()?;
            session.set_streams()?;
            session.make_ring(config.surfaces_in_flight)
        };
        rest(self).map_err(|failure| self.refused(failure))
    }

    /// A failure at open, in words that say what would help.
    fn refused(&self, failure: Failure) -> Refusal {
        let gpu = self.opened.gpu.clone();
        match failure.status {
            NO_ENCODE_DEVICE | UNSUPPORTED_DEVICE => Refusal::NoEngine { gpu, failure },
            OUT_OF_MEMORY | INCOMPATIBLE_CLIENT_KEY => Refusal::SessionLimit { gpu, failure },
            _ => {
                let plan = &self.opened.plan;
                let wanted = format!(
                    "{} {}x{}, {:?}, {:?}",
                    plan.codec, plan.width, plan.height, plan.preset, plan.tuning
                );
                Refusal::Call {
                    gpu,
                    failure,
                    wanted,
                }
            }
        }
    }

    fn need_nv12(&self, codec: GUID) -> Result<(), Failure> {
        let mut count = 0;
        // SAFETY: pointers to live variables; a list has room for as many formats as are asked for.
        self.call(Call::GetFormats, |api, session| unsafe {
            (api.get_input_format_count)(session, codec, &raw mut count)
        })?;
        let nv12 = NV_ENC_BUFFER_FORMAT::NV_ENC_BUFFER_FORMAT_NV12;
        let mut list = vec![NV_ENC_BUFFER_FORMAT(0); count as usize];
        let mut given = 0;
        // SAFETY: pointers to live variables; a list has room for as many formats as are asked for.
        self.call(Call::GetFormats, |api, session| unsafe {
            (api.get_input_formats)(session, codec, list.as_mut_ptr(), count, &raw mut given)
        })?;
        if list
            .iter()
            .take(given as usize)
            .any(|format| *format == nv12)
        {
            return Ok(());
        }
        Err(Failure {
            call: Call::GetFormats.name(),
            status: 0,
            detail: "NV12 is not among the input formats".to_owned(),
        })
    }

    /// Preset, our edits, initialise; then with less where the chip refuses more.
    fn initialize(&mut self) -> Result<(), Failure> {
        loop {
            let plan = self.opened.plan;
            let mut preset = Box::new(NV_ENC_PRESET_CONFIG {
                version: NV_ENC_PRESET_CONFIG_VER,
                ..Default::default()
            });
            preset.presetCfg.version = NV_ENC_CONFIG_VER;
            // SAFETY: both versions are set; the pointer is to a live structure.
            self.call(Call::GetPreset, |api, session| unsafe {
                (api.get_preset_config_ex)(
                    session,
                    plan.codec_guid(),
                    plan.preset_guid(),
                    plan.tuning_info(),
                    &raw mut *preset,
                )
            })?;
            *self.config = preset.presetCfg;
            plan.apply(&mut self.config, &self.opened.caps);
            *self.initialize = plan.initialize_params();
            self.initialize.encodeConfig = &raw mut *self.config;
            let params = &raw mut *self.initialize;
            // SAFETY: the structures have their versions and live as long as the session.
            let got = self.call(Call::Initialize, |api, session| unsafe {
                (api.initialize)(session, params)
            });
            let failure = match got {
                Ok(()) => break,
                Err(failure) => failure,
            };
            let refused = matches!(failure.status, INVALID_PARAM | UNSUPPORTED_PARAM);
            let plan = &mut self.opened.plan;
            if refused && plan.multi_pass {
                plan.multi_pass = false;
                log::warn!("nvenc: {failure}; again without the quarter-resolution pass");
            } else if refused && plan.custom_vbv {
                plan.custom_vbv = false;
                log::warn!("nvenc: {failure}; again with the driver's own buffer size");
            } else {
                return Err(failure);
            }
        }
        *self.picture = self.opened.plan.picture_params();
        Ok(())
    }

    /// Lets the encoder run on a stream of ours, behind the uploads.
    fn set_streams(&mut self) -> Result<(), Failure> {
        *self.stream = self
            .device
            .new_stream()
            .map_err(|error| cuda_failure(&error))?;
        let Some(set) = self.calls.api.set_io_cuda_streams else {
            return Ok(());
        };
        let stream: *mut Handle = &raw mut *self.stream;
        // SAFETY: the boxed variable stays where it is until the session is destroyed.
        let got = self.call(Call::SetStreams, |_, session| unsafe {
            set(session, stream.cast(), stream.cast())
        });
        match got {
            Ok(()) => self.opened.io_streams = true,
            Err(failure) => log::debug!("nvenc: {failure}; uploads are waited for instead"),
        }
        Ok(())
    }

    fn make_ring(&mut self, surfaces_in_flight: usize) -> Result<(), Failure> {
        let ring = self.opened.plan.ring();
        for _ in 0..ring {
            let mut params = NV_ENC_CREATE_BITSTREAM_BUFFER {
                version: NV_ENC_CREATE_BITSTREAM_BUFFER_VER,
                ..Default::default()
            };
            // SAFETY: the structure has its version.
            self.call(Call::CreateBitstream, |api, session| unsafe {
                (api.create_bitstream)(session, &raw mut params)
            })?;
            self.outputs.push(params.bitstreamBuffer);
        }
        let total = ring + surfaces_in_flight;
        for _ in 0..total {
            let memory = self
                .device
                .new_surface()
                .map_err(|error| cuda_failure(&error))?;
            self.surfaces.push(RegisteredSurface {
                memory,
                registered: std::ptr::null_mut(),
            });
            let (plan, at) = (self.opened.plan, self.surfaces.len() - 1);
            let mut params = NV_ENC_REGISTER_RESOURCE {
                version: NV_ENC_REGISTER_RESOURCE_VER,
                resourceType: NV_ENC_INPUT_RESOURCE_TYPE::NV_ENC_INPUT_RESOURCE_TYPE_CUDADEVICEPTR,
                width: plan.width,
                height: plan.height,
                pitch: memory.pitch as u32,
                resourceToRegister: memory.luma as usize as *mut c_void,
                bufferFormat: NV_ENC_BUFFER_FORMAT::NV_ENC_BUFFER_FORMAT_NV12,
                bufferUsage: NV_ENC_BUFFER_USAGE::NV_ENC_INPUT_IMAGE,
                ..Default::default()
            };
            // SAFETY: the structure has its version and names a live allocation of that pitch.
            self.call(Call::Register, |api, session| unsafe {
                (api.register_resource)(session, &raw mut params)
            })?;
            self.surfaces[at].registered = params.registeredResource;
        }
        self.in_flight.reserve(ring + 1);
        self.submitted.reserve(ring + 1);
        self.decode_times.reserve(2 * ring + 1);
        self.pool = SurfacePool::new(
            self.surfaces
                .iter()
                .enumerate()
                .map(|(index, surface)| {
                    let device = Arc::clone(&self.device);
                    Box::new(CudaSurface::new(device, surface.memory, index)) as Surface
                })
                .collect(),
        );
        Ok(())
    }
}
