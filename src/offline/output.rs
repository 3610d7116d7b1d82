//! The file that a conversion writes: under another name until it is whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::OfflineError;

/// `<output>.part` while it is written, held by a lock so that two processes never write the
/// same; removed on drop unless it was given a name.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    named: bool,
}

impl OutputFile {
    /// # Errors
    ///
    /// If it cannot be made, or another process is writing it.
    pub fn create(path: &Path) -> Result<Self, OfflineError> {
        let part = with_suffix(path, ".part");
        if path.is_dir() {
            let error = io::Error::new(io::ErrorKind::IsADirectory, "is a folder");
            return Err(OfflineError::output(path, error));
        }
        let io = |error| OfflineError::output(&part, error);
        loop {
            // Not truncated before the lock is held: it may be another's. No link is followed: what
            // it leads to is not ours.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&part)
                .map_err(io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(OfflineError::Busy {
                        path: path.to_owned(),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
            // The holder before us may have given the file its name between our two calls; then
            // the lock is on a finished recording, and the name is free again.
            if !same_file(&file, &part) {
                continue;
            }
            let found = file.metadata().map_err(io)?;
            if found.is_file() && found.len() == 0 && found.nlink() == 1 {
                return Ok(Self {
                    path: path.to_owned(),
                    part,
                    file,
                    named: false,
                });
            }
            // Left by a crash. Its name is taken away and not its content: that may have another.
            fs::remove_file(&part).map_err(io)?;
        }
    }

    /// A second handle of the file under its lock.
    ///
    /// # Errors
    ///
    /// If the process has no handle left.
    pub fn handle(&self) -> Result<File, OfflineError> {
        self.file
            .try_clone()
            .map_err(|error| OfflineError::output(&self.part, error))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final name, replacing what had it.
    ///
    /// # Errors
    ///
    /// If it cannot be renamed or the disk did not take it; then it is removed.
    pub fn finish(self) -> Result<PathBuf, OfflineError> {
        let path = self.path.clone();
        self.name(path)
    }

    /// Keeps an interrupted file as `<stem>.partial.mp4`.
    ///
    /// # Errors
    ///
    /// As [`Self::finish`].
    pub fn keep_partial(self) -> Result<PathBuf, OfflineError> {
        let path = partial_name(&self.path);
        self.name(path)
    }

    fn name(mut self, path: PathBuf) -> Result<PathBuf, OfflineError> {
        self.file
            .sync_data()
            .map_err(|error| OfflineError::output(&path, error))?;
        fs::rename(&self.part, &path).map_err(|error| OfflineError::output(&path, error))?;
        self.named = true;
        Ok(path)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // The lock is still held, so the name is ours.
        if !self.named && same_file(&self.file, &self.part) {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// `foo.mp4` to `foo.partial.mp4`.
pub fn partial_name(path: &Path) -> PathBuf {
    path.with_extension("partial.mp4")
}

/// Refuses an output that would take the place of a recording: by its own name, or by those that
/// it has until it is whole or where it is interrupted.
///
/// # Errors
///
/// A usage error that names the recording.
pub fn refuse_recordings(output: &Path, recordings: &[PathBuf]) -> Result<(), OfflineError> {
    for name in names_of(output) {
        if let Some(recording) = recordings.iter().find(|path| is_same_file(path, &name)) {
            return Err(OfflineError::Usage(format!(
                "--output {}: {} is the recording {}; choose another name",
                output.display(),
                name.display(),
                recording.display()
            )));
        }
    }
    Ok(())
}

/// The names that writing `output` gives to files: its own, and those of an unfinished one.
pub fn names_of(output: &Path) -> [PathBuf; 3] {
    [
        output.to_owned(),
        with_suffix(output, ".part"),
        partial_name(output),
    ]
}

/// Whether two names lead to the same file.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    one == other || id(one).is_some_and(|one| Some(one) == id(other))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn same_file(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_final_name_appears_only_with_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mp4");
        fs::write(&path, "old").unwrap();
        let output = OutputFile::create(&path).unwrap();
        output.handle().unwrap().write_all(b"new").unwrap();
        assert_eq!(names(dir.path()), ["a.mp4", "a.mp4.part"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        output.finish().unwrap();
        assert_eq!(names(dir.path()), ["a.mp4"]);
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_failure_leaves_nothing_and_an_interruption_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.b.mp4");
        drop(OutputFile::create(&path).unwrap());
        assert!(names(dir.path()).is_empty());
        OutputFile::create(&path).unwrap().keep_partial().unwrap();
        assert_eq!(names(dir.path()), ["a.b.partial.mp4"]);
    }

    #[test]
    fn two_writers_of_one_file_are_refused_and_a_stale_part_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mp4");
        fs::write(dir.path().join("a.mp4.part"), "left by a crash").unwrap();
        let first = OutputFile::create(&path).unwrap();
        let second = OutputFile::create(&path).unwrap_err();
        assert!(matches!(second, OfflineError::Busy { .. }), "{second}");
        assert_eq!(second.exit_code(), 1);
        first.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        OutputFile::create(&path).unwrap();
    }

    #[test]
    fn a_file_is_known_by_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.svo2");
        fs::write(&path, "").unwrap();
        fs::hard_link(&path, dir.path().join("b.mp4")).unwrap();
        fs::write(dir.path().join("c.mp4"), "").unwrap();
        assert!(is_same_file(&path, &dir.path().join("./a.svo2")));
        assert!(is_same_file(&path, &dir.path().join("b.mp4")));
        assert!(!is_same_file(&path, &dir.path().join("c.mp4")));
        assert!(!is_same_file(&path, &dir.path().join("d.mp4")));
    }

    #[test]
    fn an_output_in_a_recordings_place_is_refused_under_each_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let recordings = [at("b.svo2"), at("a.svo2")];
        recordings.iter().for_each(|path| {
            fs::write(path, "pictures").unwrap();
        });
        std::os::unix::fs::symlink("a.svo2", at("link.mp4")).unwrap();
        fs::hard_link(at("a.svo2"), at("x.mp4.part")).unwrap();
        fs::hard_link(at("b.svo2"), at("y.partial.mp4")).unwrap();
        for bad in ["a.svo2", "b.svo2", "link.mp4", "x.mp4", "y.mp4"] {
            let error = refuse_recordings(&at(bad), &recordings).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}: {error}");
            assert!(error.to_string().contains(".svo2; choose"), "{error}");
        }
        refuse_recordings(&at("c.mp4"), &recordings).unwrap();

        // And where nobody has looked: an unfinished name that leads elsewhere is not written to.
        OutputFile::create(&at("x.mp4")).unwrap();
        std::os::unix::fs::symlink("b.svo2", at("z.mp4.part")).unwrap();
        OutputFile::create(&at("z.mp4")).unwrap_err();
        for path in &recordings {
            assert_eq!(fs::read(path).unwrap(), b"pictures");
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = OutputFile::create(Path::new("/nonexistent/folder/a.mp4")).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/folder/a.mp4.part"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 1);
    }
}
