//! `cvmmap_streamer gpu-info`: what drivers, GPUs and encoders are there, what the streamer would
//! choose, and why. The first thing to run when it falls back to software.

use std::fmt;
use std::time::Duration;

use crate::encode::Codec;

/// What was found. Every part may be missing, with the reason.
#[derive(Debug, Clone)]
pub struct GpuInfo {
    /// `libcuda.so.1` and the CUDA version that it serves.
    pub cuda: Result<String, String>,
    /// `libnvidia-encode.so.1` and the API versions of both sides.
    pub encode: Result<String, String>,
    pub gpus: Vec<Gpu>,
    /// Codec, encoder, reason.
    pub choice: Vec<(Codec, String)>,
}

/// One GPU.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub headline: String,
    pub upload: String,
    /// A line for each codec, or why there is none.
    pub encoder: Result<Vec<String>, String>,
    /// The codecs that it encodes.
    pub codecs: Vec<Codec>,
}

impl GpuInfo {
    /// Asks the drivers, on a thread of its own: one that hangs costs the report, not the program.
    ///
    /// # Errors
    ///
    /// If the driver does not answer in time.
    pub fn collect() -> Result<Self, String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("gpu-info".to_owned())
            .spawn(move || {
                let _ = sender.send(ask());
            })
            .map_err(|error| format!("no thread to ask the driver on: {error}"))?;
        receiver
            .recv_timeout(LIMIT)
            .map_err(|_| format!("the NVIDIA driver has not answered for {LIMIT:?}: it hangs"))
    }
}

impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &Result<String, String>| match part {
            Ok(text) => text.clone(),
            Err(reason) => format!("not usable: {reason}"),
        };
        writeln!(f, "CUDA driver:     {}", part(&self.cuda))?;
        writeln!(f, "NVENC library:   {}", part(&self.encode))?;
        if self.gpus.is_empty() {
            writeln!(f, "GPUs:            none")?;
        }
        for gpu in &self.gpus {
            writeln!(f, "{}", gpu.headline)?;
            writeln!(f, "  upload:        {}", gpu.upload)?;
            match &gpu.encoder {
                Ok(lines) => {
                    for line in lines {
                        writeln!(f, "  {line}")?;
                    }
                }
                Err(reason) => writeln!(f, "  encoder:       none: {reason}")?,
            }
        }
        for (codec, choice) in &self.choice {
            writeln!(f, "{codec} would be encoded by {choice}")?;
        }
        Ok(())
    }
}

const LIMIT: Duration = Duration::from_secs(30);

const fn software(codec: Codec) -> &'static str {
    match codec {
        Codec::H264 => "openh264 (software)",
        Codec::H265 if cfg!(feature = "x265") => "x265 (software)",
        Codec::H265 => "nothing (built without the feature x265)",
    }
}

#[cfg(not(feature = "nvenc"))]
fn ask() -> GpuInfo {
    let reason = || "this program was built without the feature nvenc".to_owned();
    GpuInfo {
        cuda: Err(reason()),
        encode: Err(reason()),
        gpus: Vec::new(),
        choice: [Codec::H264, Codec::H265]
            .map(|codec| (codec, format!("{}: {}", software(codec), reason())))
            .into(),
    }
}

#[cfg(feature = "nvenc")]
fn ask() -> GpuInfo {
    use crate::encode::nvenc::cuda::{self, CudaApi};
    use crate::encode::nvenc::driver::Driver;
    use nvenc_sys::{API_VERSION, EncodeApi};

    let cuda = CudaApi::load();
    let encode = EncodeApi::load();
    let devices = cuda
        .as_ref()
        .map_err(ToString::to_string)
        .and_then(|api| cuda::devices(api).map_err(|error| error.to_string()));
    let driver = match (&cuda, &encode) {
        (Ok(cuda), Ok(encode)) => Ok(Driver {
            cuda: *cuda,
            encode: *encode,
        }),
        (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
    };
    let gpus: Vec<Gpu> = devices
        .iter()
        .flatten()
        .map(|info| describe(info, &driver))
        .collect();
    let choice = [Codec::H264, Codec::H265]
        .map(|codec| {
            let first = gpus.first();
            let chosen = match (first, &driver) {
                (_, Err(reason)) => format!("{}, since {reason}", software(codec)),
                (None, _) => {
                    let reason = devices.as_ref().err().cloned();
                    let reason = reason.unwrap_or_else(|| "the driver sees no GPU".to_owned());
                    format!("{}, since {reason}", software(codec))
                }
                (Some(gpu), _) if gpu.codecs.contains(&codec) => {
                    "nvenc on GPU 0 (--gpu chooses another)".to_owned()
                }
                (Some(gpu), _) => {
                    let reason = gpu.encoder.as_ref().err().cloned();
                    let reason = reason.unwrap_or_else(|| format!("GPU 0 does not encode {codec}"));
                    format!("{}, since {reason}", software(codec))
                }
            };
            (codec, chosen)
        })
        .into();
    GpuInfo {
        cuda: cuda.map_err(|error| error.to_string()).map(|api| {
            let version = cuda::driver_version(&api).unwrap_or(0);
            format!("CUDA {}.{}", version / 1000, version % 1000 / 10)
        }),
        encode: encode.map_err(|error| error.to_string()).map(|api| {
            format!(
                "API {} (this program speaks {API_VERSION}, driver {} or newer)",
                api.max_supported,
                API_VERSION.least_driver()
            )
        }),
        gpus,
        choice,
    }
}

#[cfg(feature = "nvenc")]
fn describe(
    info: &crate::encode::nvenc::cuda::DeviceInfo,
    driver: &Result<crate::encode::nvenc::driver::Driver, String>,
) -> Gpu {
    let probed = driver
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|driver| crate::encode::nvenc::probe::probe(driver, info));
    Gpu {
        headline: format!(
            "GPU {}: {}, {}, compute {}.{}",
            info.index, info.name, info.uuid, info.compute.0, info.compute.1
        ),
        upload: if info.read_only_register {
            "DMA straight out of the producer's segment"
        } else {
            "converted by the CPU, then uploaded: this driver cannot pin read-only memory"
        }
        .to_owned(),
        codecs: probed.iter().flatten().map(|(codec, _)| *codec).collect(),
        encoder: probed.map(|codecs| {
            codecs
                .iter()
                .map(|(codec, caps)| {
                    let yes = |has: bool| if has { "yes" } else { "no" };
                    format!(
                        "{codec}:          {}x{} to {}x{}, up to {} b-frames, custom buffer {}, \
                         bit rate while running {}, intra refresh {}, {} engines, {} macroblocks/s",
                        caps.width.0,
                        caps.height.0,
                        caps.width.1,
                        caps.height.1,
                        caps.max_b_frames,
                        yes(caps.custom_vbv),
                        yes(caps.dynamic_bitrate),
                        yes(caps.intra_refresh),
                        caps.engines,
                        caps.macroblocks_per_second,
                    )
                })
                .collect()
        }),
    }
}
