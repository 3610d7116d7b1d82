//! Both driver libraries, opened together, and the choice of a GPU.

use nvenc_sys::{EncodeApi, LoadError};

use super::cuda::{self, CudaApi, CudaError, DeviceInfo};

/// Everything of the driver that is called. Plain data: a unit test builds one from fakes.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    pub cuda: CudaApi,
    pub encode: EncodeApi,
}

impl Driver {
    /// # Errors
    ///
    /// If a library is missing, too old or incomplete: ordinary outcomes.
    pub fn load() -> Result<Self, LoadError> {
        // CUDA first: without it the encode library is of no use, and its absence is the shorter story.
        Ok(Self {
            cuda: CudaApi::load()?,
            encode: EncodeApi::load()?,
        })
    }
}

/// Which GPU the operator wants (`--gpu`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum GpuChoice {
    /// The first one.
    #[default]
    First,
    /// As CUDA counts, after `CUDA_VISIBLE_DEVICES`.
    Index(usize),
    /// As `nvidia-smi -L` prints it, or the beginning of that.
    Uuid(String),
}

impl std::str::FromStr for GpuChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(index) = text.parse() {
            return Ok(Self::Index(index));
        }
        let uuid = text.to_ascii_lowercase();
        let digits = uuid.strip_prefix("gpu-").unwrap_or(&uuid);
        let legal = digits.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        if digits.len() < 4 || !legal {
            return Err(format!(
                "{text} is neither an index nor a UUID like GPU-1a2b3c4d (nvidia-smi -L lists them)"
            ));
        }
        Ok(Self::Uuid(format!("gpu-{digits}")))
    }
}

/// Why no GPU could be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("{0}")]
    Cuda(#[from] CudaError),
    #[error("the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide them)")]
    None,
    #[error("no GPU {wanted}; there are: {present}")]
    NotFound { wanted: String, present: String },
}

/// The GPU that the choice means.
///
/// # Errors
///
/// If there is none, or not that one.
pub fn choose(api: &CudaApi, choice: &GpuChoice) -> Result<DeviceInfo, DeviceError> {
    let devices = match cuda::devices(api) {
        Err(error) if error.code == NO_DEVICE => return Err(DeviceError::None),
        other => other?,
    };
    if devices.is_empty() {
        return Err(DeviceError::None);
    }
    let found = devices.iter().position(|device| match choice {
        GpuChoice::First => true,
        GpuChoice::Index(index) => device.index == *index,
        GpuChoice::Uuid(uuid) => device.uuid.to_ascii_lowercase().starts_with(uuid),
    });
    let mut devices = devices;
    match found {
        Some(at) => Ok(devices.swap_remove(at)),
        None => Err(DeviceError::NotFound {
            wanted: match choice {
                GpuChoice::First => String::new(),
                GpuChoice::Index(index) => index.to_string(),
                GpuChoice::Uuid(uuid) => uuid.clone(),
            },
            present: devices
                .iter()
                .map(|device| format!("{} {} {}", device.index, device.name, device.uuid))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// `CUDA_ERROR_NO_DEVICE`: the driver is there, a GPU is not.
const NO_DEVICE: cuda::CuResult = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_by_index_or_uuid() {
        assert_eq!("1".parse(), Ok(GpuChoice::Index(1)));
        let uuid = GpuChoice::Uuid("gpu-1a2b3c4d".to_owned());
        assert_eq!("GPU-1A2B3C4D".parse(), Ok(uuid.clone()));
        assert_eq!("1a2b3c4d".parse(), Ok(uuid));
        for bad in ["", "-1", "first", "GPU-", "GPU-xyz1"] {
            let refused: Result<GpuChoice, _> = bad.parse();
            assert!(refused.is_err(), "{bad}");
        }
    }
}
