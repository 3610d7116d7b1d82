//! The file that a conversion writes: under another name until it is whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
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
            // Not truncated before the lock is held: it may be another's.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
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
            if same_file(&file, &part) {
                file.set_len(0).map_err(io)?;
                return Ok(Self {
                    path: path.to_owned(),
                    part,
                    file,
                    named: false,
                });
            }
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
    fn a_missing_folder_is_named() {
        let error = OutputFile::create(Path::new("/nonexistent/folder/a.mp4")).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/folder/a.mp4.part"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 1);
    }
}
