//! Files that others read while they are written anew: they see the old text or the new one,
//! never half of it.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Puts `bytes` into the file at `path` by way of a new file beside it, whose name begins with
/// `prefix`.
///
/// What is there and is no regular file, such as a terminal, a pipe or `/dev/null`, is written to
/// instead: renaming a file onto it would take a device away from the whole machine.
///
/// # Errors
///
/// The file system's. A pipe that nobody reads is one; it is not waited for.
pub fn replace(path: &Path, prefix: &str, bytes: &[u8]) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?
            .write_all(bytes);
    }
    let mut file = tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder_of(path))?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for text in ["one", "two"] {
            replace(&path, ".x-", text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_pipe_stays_a_pipe_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let nobody = replace(&path, ".x-", b"text").unwrap_err();
        assert_eq!(nobody.raw_os_error(), Some(libc::ENXIO));
        let is_pipe = std::fs::metadata(&path).unwrap().file_type().is_fifo();
        assert!(is_pipe, "a file took its place");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let error = replace(Path::new("/dev/full"), ".x-", b"text").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
