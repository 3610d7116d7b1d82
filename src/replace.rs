//! Files that others read while they are written anew: they see the old text or the new one,
//! never half of it.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Puts `bytes` into the file at `path` by way of a new file beside it, whose name begins with
/// `prefix`.
///
/// What is there and is no regular file, such as a terminal, a pipe or `/dev/null`, is written to
/// instead: renaming a file onto it would take a device away from the whole machine. Links to one are
/// followed, except a [stranger's](is_strangers_link), which is replaced.
///
/// # Errors
///
/// The file system's. A pipe that nobody reads is one; it is not waited for.
pub fn replace(path: &Path, prefix: &str, bytes: &[u8]) -> io::Result<()> {
    let special = std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if special && !is_strangers_link(path) {
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

/// Whether a link stands at `path` that neither we nor the system nor the folder's owner made, in a
/// folder that every user may write: it may lead to any file or device that only we may write. The
/// kernel follows none of these either where `fs.protected_symlinks` is set.
pub fn is_strangers_link(path: &Path) -> bool {
    let (Ok(link), Ok(folder)) = (path.symlink_metadata(), folder_of(path).metadata()) else {
        return false;
    };
    let own = rustix::process::geteuid().as_raw();
    link.file_type().is_symlink()
        && folder.mode() & 0o002 != 0
        && ![own, 0, folder.uid()].contains(&link.uid())
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

    /// A link at `path` to `target`, of a user who is nobody else here; false where we may make none.
    fn strangers_link(path: &Path, target: &Path) -> bool {
        std::os::unix::fs::symlink(target, path).unwrap();
        std::os::unix::fs::lchown(path, Some(4_000_000), None).is_ok()
    }

    #[test]
    fn a_strangers_link_to_a_device_is_replaced_and_our_own_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let open = |mode| std::fs::set_permissions(folder.path(), Permissions::from_mode(mode));
        let path = folder.path().join("link");
        open(0o1777).unwrap();
        if strangers_link(&path, Path::new("/dev/full")) {
            assert!(is_strangers_link(&path));
            replace(&path, ".x-", b"text").unwrap();
            assert!(path.symlink_metadata().unwrap().is_file());
            std::fs::remove_file(&path).unwrap();
            // Nobody but its owner may have put it into a folder like this.
            assert!(strangers_link(&path, Path::new("/dev/full")));
            open(0o755).unwrap();
            assert!(!is_strangers_link(&path));
            open(0o1777).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        assert!(!is_strangers_link(&path));
        let error = replace(&path, ".x-", b"text").unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::StorageFull,
            "it was not followed"
        );
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let error = replace(Path::new("/dev/full"), ".x-", b"text").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
