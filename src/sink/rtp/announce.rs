//! The session description as a file or in the log.

use std::io;
use std::path::{Path, PathBuf};

use crate::bitstream::ParameterSets;
use crate::replace::{folder_of, replace};
use crate::rtp::sdp::Description;

/// Knows which parameter sets were announced last.
#[derive(Debug)]
pub(super) struct Announcement {
    path: Option<PathBuf>,
    /// Of the parameter sets; 0 before the first.
    generation: u32,
    version: u64,
    failing: bool,
}

impl Announcement {
    /// An error is a sentence for the operator.
    pub(super) fn new(path: Option<PathBuf>) -> Result<Self, String> {
        if let Some(path) = &path {
            let folder = folder_of(path);
            if !folder.is_dir() {
                return Err(format!(
                    "--rtp-sdp {}: the folder {} is not there; make it, or leave the flag out to \
                     have the description logged",
                    path.display(),
                    folder.display()
                ));
            }
            if path.is_dir() {
                return Err(format!(
                    "--rtp-sdp {}: is a folder, not a file",
                    path.display()
                ));
            }
        }
        Ok(Self {
            path,
            generation: 0,
            version: 0,
            failing: false,
        })
    }

    /// Whether the last description could not be written.
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    /// Writes or logs the description if `parameters` are not those of the last one. A file that
    /// cannot be written is tried again with the next call: at key frames, as that costs time.
    pub(super) fn update<'a>(
        &mut self,
        name: &str,
        parameters: &ParameterSets,
        describe: impl FnOnce(u64) -> Description<'a>,
    ) {
        if parameters.generation == self.generation {
            return;
        }
        let description = describe(self.version + 1);
        match self.publish(name, &description) {
            Ok(()) => {
                self.generation = parameters.generation;
                self.version += 1;
                self.failing = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    let path = self.path.as_deref().unwrap_or(Path::new(""));
                    log::warn!("{name}: {}: cannot be written: {error}", path.display());
                }
            }
        }
    }

    fn publish(&self, name: &str, description: &Description<'_>) -> io::Result<()> {
        let text = description.to_text();
        let Some(path) = &self.path else {
            if self.version == 0 {
                log::info!(
                    "{name}: session description:\n{}\nplay it with either of\n  {}\n  {}",
                    text.replace("\r\n", "\n").trim_end(),
                    description.ffplay_command(None),
                    description.gst_command()
                );
            } else {
                log::info!(
                    "{name}: parameter sets changed:\n{}",
                    text.replace("\r\n", "\n")
                );
            }
            return Ok(());
        };
        replace(path, ".sdp-", text.as_bytes())?;
        log::info!(
            "{name}: session description in {}; play it with either of\n  {}\n  {}",
            path.display(),
            description.ffplay_command(path.to_str()),
            description.gst_command()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use crate::encode::Codec;

    fn description(version: u64, parameters: &ParameterSets) -> Description<'_> {
        Description {
            codec: Codec::H264,
            payload_type: 96,
            destination: "127.0.0.1".parse().unwrap(),
            port: 5004,
            origin: "127.0.0.1".parse().unwrap(),
            session_id: 1,
            version,
            name: "cam",
            ssrc: 1,
            cname: "x",
            parameters,
            bitrate: None,
            frame_rate: None,
            multicast_ttl: 1,
        }
    }

    fn sets(generation: u32) -> ParameterSets {
        ParameterSets {
            generation,
            vps: vec![],
            sps: vec![vec![0x67, 1, 2, generation as u8]],
            pps: vec![vec![0x68, 1]],
        }
    }

    #[test]
    fn the_file_is_replaced_when_parameter_sets_change_and_its_version_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.sdp");
        let mut announcement = Announcement::new(Some(path.clone())).unwrap();
        let mut update = |generation| {
            let sets = sets(generation);
            announcement.update("rtp", &sets, |version| description(version, &sets));
            std::fs::read_to_string(&path).unwrap()
        };
        let first = update(1);
        assert!(first.contains("\r\no=- 1 1 IN"), "{first}");
        std::fs::write(folder.path().join("a b.sdp"), "untouched").unwrap();
        assert_eq!(update(1), "untouched");
        let second = update(2);
        assert!(second.contains("\r\no=- 1 2 IN"), "{second}");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "others can read it");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named_at_open_and_one_that_goes_away_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("not there");
        let error = Announcement::new(Some(missing.join("x.sdp"))).unwrap_err();
        assert!(
            error.contains("--rtp-sdp") && error.contains("not there"),
            "{error}"
        );
        let error = Announcement::new(Some(folder.path().to_owned())).unwrap_err();
        assert!(error.contains("is a folder"), "{error}");

        std::fs::create_dir(&missing).unwrap();
        let path = missing.join("x.sdp");
        let mut announcement = Announcement::new(Some(path.clone())).unwrap();
        std::fs::remove_dir(&missing).unwrap();
        let sets = sets(1);
        announcement.update("rtp", &sets, |version| description(version, &sets));
        std::fs::create_dir(&missing).unwrap();
        announcement.update("rtp", &sets, |version| description(version, &sets));
        assert!(path.is_file());
    }
}
