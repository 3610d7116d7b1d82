//! The switches: environment variables `NVENC_EMU_…`, read once. Picture numbers count from 0.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{LazyLock, OnceLock};

/// A kind of GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gpu {
    /// Everything that the rules know.
    Turing,
    /// No B-frames in HEVC, no multi-pass.
    Pascal,
    /// At most 640x480, and the VBV is the driver's own business.
    Small,
    /// No encode engine.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangIn {
    Lock,
    Encode,
    Destroy,
    Open,
    /// `cuInit`.
    Init,
    /// `cuMemAllocPitch`.
    Surface,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silent {
    /// Success, and no bytes.
    Zero,
    /// "Need more input" for ever.
    NeedMore,
}

/// The first picture that faults count.
static FIRST: OnceLock<u64> = OnceLock::new();

#[derive(Debug)]
pub struct Config {
    /// `MAX_VERSION=0xB0`
    pub max_version: u32,
    /// `HIDE=symbol:NAME`: a function of the list that is not there
    pub hide: Vec<String>,
    /// `OPEN_STATUS=2`, `INIT_STATUS`, `MULTIPASS_STATUS`, `REGISTER_STATUS`, `MAP_STATUS`
    pub open_status: u32,
    pub init_status: u32,
    pub multipass_status: u32,
    pub register_status: u32,
    pub map_status: u32,
    /// `SESSIONS=n`, counted over all processes by lock files in `LOCKS`
    pub sessions: Option<u32>,
    pub locks: PathBuf,
    /// `AFTER=path`: the five faults below count pictures from the first one for which this file is there, and not from
    /// the session's first. A test can wait until the stream has arrived everywhere, and then break it.
    pub after: Option<PathBuf>,
    /// `ENCODE_STATUS=20@17`
    pub encode_status: Option<(u32, u64)>,
    /// `BUSY=3@17`
    pub busy: Option<(u32, u64)>,
    /// `DEVICE_LOST=17`
    pub device_lost: Option<u64>,
    /// `SILENT=zero|needmore`, optionally `@n`
    pub silent: Option<(Silent, u64)>,
    /// `HANG=lock|encode|destroy|open|init|surface`, optionally `@n`
    pub hang: Option<(HangIn, u64)>,
    /// `ENCODE_MS`, `OPEN_MS`, `COPY_DELAY_US`
    pub encode_ms: u64,
    pub open_ms: u64,
    pub copy_delay_us: u64,
    /// `UPLOAD_MS=2000@3`: that call of `cuMemcpy2DAsync`, and no other, takes so long to return; counted from `AFTER` too
    pub upload_ms: Option<(u32, u64)>,
    /// `HOSTREG_STATUS=801`, `HOSTREG_RO=0|1`, `ALLOC_FAIL_AT=n`
    pub hostreg_status: u32,
    pub hostreg_ro: bool,
    pub alloc_fail_at: Option<u64>,
    /// `CAPS=pascal|turing|small|none`, `MIN=145x145`, `DEVICES=n`
    pub gpu: Gpu,
    pub min: Option<(u32, u32)>,
    /// Numbers of the machine's devices as the client counts them, after `CUDA_VISIBLE_DEVICES`.
    pub devices: Vec<u32>,
    /// `LASTERROR=null|invalid-utf8|text`
    pub last_error: Option<String>,
    /// `IDLE=1`: bookkeeping only. Copies and kernels move nothing, every picture gives the first one's bytes:
    /// what is left of the CPU time is the client's.
    pub idle: bool,
    /// `STATS=path` (`%p` is the process), `STRICT=abort`
    pub stats: Option<PathBuf>,
    pub abort: bool,
}

pub fn config() -> &'static Config {
    static CONFIG: LazyLock<Config> = LazyLock::new(Config::from_env);
    &CONFIG
}

impl Config {
    fn from_env() -> Self {
        Self {
            max_version: text("MAX_VERSION").map_or(0xD0, |value| {
                let digits = value.trim_start_matches("0x");
                u32::from_str_radix(digits, 16).unwrap_or(0xD0)
            }),
            hide: text("HIDE")
                .unwrap_or_default()
                .split(',')
                .filter_map(|part| part.strip_prefix("symbol:"))
                .map(str::to_owned)
                .collect(),
            open_status: number("OPEN_STATUS").unwrap_or(0),
            init_status: number("INIT_STATUS").unwrap_or(0),
            multipass_status: number("MULTIPASS_STATUS").unwrap_or(0),
            register_status: number("REGISTER_STATUS").unwrap_or(0),
            map_status: number("MAP_STATUS").unwrap_or(0),
            sessions: number("SESSIONS"),
            locks: text("LOCKS").map_or_else(std::env::temp_dir, PathBuf::from),
            after: text("AFTER").map(PathBuf::from),
            encode_status: at_picture("ENCODE_STATUS"),
            busy: at_picture("BUSY"),
            device_lost: number("DEVICE_LOST"),
            silent: word_at(
                "SILENT",
                &[("zero", Silent::Zero), ("needmore", Silent::NeedMore)],
            ),
            hang: word_at(
                "HANG",
                &[
                    ("lock", HangIn::Lock),
                    ("encode", HangIn::Encode),
                    ("destroy", HangIn::Destroy),
                    ("open", HangIn::Open),
                    ("init", HangIn::Init),
                    ("surface", HangIn::Surface),
                ],
            ),
            encode_ms: number("ENCODE_MS").unwrap_or(0),
            open_ms: number("OPEN_MS").unwrap_or(0),
            copy_delay_us: number("COPY_DELAY_US").unwrap_or(0),
            upload_ms: at_picture("UPLOAD_MS"),
            hostreg_status: number("HOSTREG_STATUS").unwrap_or(0),
            hostreg_ro: number("HOSTREG_RO").unwrap_or(1) == 1,
            alloc_fail_at: number("ALLOC_FAIL_AT"),
            gpu: match text("CAPS").as_deref() {
                Some("pascal") => Gpu::Pascal,
                Some("small") => Gpu::Small,
                Some("none") => Gpu::None,
                _ => Gpu::Turing,
            },
            min: text("MIN").and_then(|value| {
                let (width, height) = value.split_once('x')?;
                Some((width.parse().ok()?, height.parse().ok()?))
            }),
            devices: visible(
                number("DEVICES").unwrap_or(1),
                std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref(),
            ),
            last_error: text("LASTERROR"),
            idle: number::<u32>("IDLE") == Some(1),
            stats: text("STATS")
                .map(|path| PathBuf::from(path.replace("%p", &std::process::id().to_string()))),
            abort: text("STRICT").as_deref() == Some("abort"),
        }
    }

    /// Whether faults of a running stream count already.
    pub fn faults_count(&self) -> bool {
        self.after.as_ref().is_none_or(|after| after.exists())
    }

    /// The number that faults know the session's picture `number` by; `None` while they do not count yet. They begin to
    /// with a picture that comes in, and not in the middle of one.
    pub fn fault_number(&self, number: u64) -> Option<u64> {
        if self.after.is_some() && self.faults_count() {
            FIRST.get_or_init(|| number);
        }
        self.fault_number_so_far(number)
    }

    /// As [`Config::fault_number`], of a picture that came in before.
    pub fn fault_number_so_far(&self, number: u64) -> Option<u64> {
        match &self.after {
            None => Some(number),
            Some(_) => number.checked_sub(*FIRST.get()?),
        }
    }

    pub fn hides(&self, symbol: &str) -> bool {
        self.hide.iter().any(|hidden| hidden == symbol)
    }
}

/// The number, sixteen times, that a device has as its UUID.
pub fn uuid_byte(device: u32) -> u8 {
    0xE0_u8.wrapping_add(device as u8)
}

/// Which of so many devices a list lets a program see, in its order: indices, or UUIDs or their beginnings. As CUDA
/// documents it, what follows an entry that is no device does not count.
fn visible(devices: u32, list: Option<&str>) -> Vec<u32> {
    let Some(list) = list else {
        return (0..devices).collect();
    };
    let device = |entry: &str| -> Option<u32> {
        match entry.trim().to_ascii_lowercase().strip_prefix("gpu-") {
            None => entry.trim().parse().ok().filter(|index| *index < devices),
            Some(digits) => (0..devices).find(|device| {
                let uuid = format!("{:02x}", uuid_byte(*device)).repeat(16);
                let digits: String = digits.chars().filter(|c| *c != '-').collect();
                !digits.is_empty() && uuid.starts_with(&digits)
            }),
        }
    };
    list.split(',').map_while(device).collect()
}

fn text(name: &str) -> Option<String> {
    std::env::var(format!("NVENC_EMU_{name}")).ok()
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    text(name)?.parse().ok()
}

fn at_picture(name: &str) -> Option<(u32, u64)> {
    let value = text(name)?;
    let (what, at) = value.split_once('@')?;
    Some((what.parse().ok()?, at.parse().ok()?))
}

fn word_at<T: Copy>(name: &str, words: &[(&str, T)]) -> Option<(T, u64)> {
    let value = text(name)?;
    let (word, at) = value.split_once('@').unwrap_or((&value, "0"));
    let (_, meaning) = words.iter().find(|(known, _)| *known == word)?;
    Some((*meaning, at.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::visible;

    // CUDA C++ Programming Guide, "CUDA Environment Variables": CUDA_VISIBLE_DEVICES.
    #[test]
    fn devices_are_counted_anew_in_the_order_of_the_list() {
        for (list, seen) in [
            (None, &[0, 1, 2][..]),
            (Some(""), &[]),
            (Some("2,0"), &[2, 0]),
            (Some("1"), &[1]),
            (Some("0,7,1"), &[0]),
            (Some("-1,0"), &[]),
            (Some("GPU-e1e1,GPU-E0E0E0E0-e0"), &[1, 0]),
            (Some("GPU-ff"), &[]),
        ] {
            assert_eq!(visible(3, list), seen, "{list:?}");
        }
    }
}
