//! Who else may write what frames are read from. It is said, once each, and never refused: whose
//! machine this is decides whom it trusts (`docs/threat-model.md`).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use log::Level;

use super::region::{Identity, Region};

/// What has been said, so that nothing is said twice.
#[derive(Debug, Default)]
pub struct Writers {
    /// The segment that was looked at last.
    seen: Option<Identity>,
    said: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    SegmentOwner,
    SegmentMode,
    SocketLink,
    SocketFolder,
}

/// One thing that is worth saying.
type Finding = (Kind, Level, String);

impl Writers {
    /// Says what is new about a segment that was opened, and about the sync socket beside it.
    pub fn look(&mut self, name: &str, region: &Region, endpoint: &str) {
        if self.seen == Some(region.identity()) {
            return;
        }
        self.seen = Some(region.identity());
        if let Some((owner, mode)) = region.owner_and_mode() {
            self.say(name, owner, mode, endpoint);
        }
    }

    fn say(&mut self, name: &str, owner: u32, mode: u32, endpoint: &str) {
        let own = rustix::process::geteuid().as_raw();
        let socket = endpoint.strip_prefix("ipc://").map(Path::new);
        let findings = segment(name, owner, mode, own)
            .into_iter()
            .chain(socket.into_iter().flat_map(|path| self::socket(path, own)));
        for (kind, level, words) in findings {
            if !self.said.contains(&kind) {
                self.said.push(kind);
                log::log!(level, "{words}");
            }
        }
    }
}

/// Of a segment with that owner and mode, to a process of the user `own`.
fn segment(name: &str, owner: u32, mode: u32, own: u32) -> Vec<Finding> {
    let mut found = Vec::new();
    // The superuser may write everything anyway.
    if owner != own && owner != 0 {
        found.push((
            Kind::SegmentOwner,
            Level::Warn,
            format!(
                "the segment {name} belongs to the user {owner}: the stream shows what that user puts there"
            ),
        ));
    }
    if mode & 0o002 != 0 {
        found.push((
            Kind::SegmentMode,
            Level::Warn,
            format!(
                "every user may write the segment {name} (mode {:03o}): let the producer run with a umask of 022",
                mode & 0o777
            ),
        ));
    } else if mode & 0o020 != 0 {
        found.push((
            Kind::SegmentMode,
            Level::Info,
            format!(
                "the producer's group may write the segment {name} (mode {:03o})",
                mode & 0o777
            ),
        ));
    }
    found
}

/// Of the sync socket at `path`.
fn socket(path: &Path, own: u32) -> Vec<Finding> {
    let mut found = Vec::new();
    let shown = path.display();
    if path
        .symlink_metadata()
        .is_ok_and(|about| about.file_type().is_symlink())
    {
        let target = path.read_link().unwrap_or_default();
        found.push((
            Kind::SocketLink,
            Level::Warn,
            format!(
                "the sync socket {shown} is a link to {}: who may change it decides who is heard",
                target.display()
            ),
        ));
    }
    let folder = crate::replace::folder_of(path);
    if let Ok(about) = folder.metadata() {
        let (mode, owner, shown) = (about.mode(), about.uid(), folder.display());
        let others = if owner == own || owner == 0 {
            mode & 0o002 != 0
        } else {
            true
        };
        let (level, how) = match (mode & 0o002 != 0, mode & 0o1000 != 0) {
            // The name is safe while the producer has it.
            (true, true) => (Level::Info, "any user may take the socket's name first"),
            (true, false) => (Level::Warn, "any user may take the socket's place"),
            (false, _) => (Level::Warn, "its owner may take the socket's place"),
        };
        if others {
            found.push((
                Kind::SocketFolder,
                level,
                format!("{shown}: {how} there; a folder of the producer's own is safer"),
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn kinds(found: &[Finding]) -> Vec<(Kind, Level)> {
        found
            .iter()
            .map(|(kind, level, _)| (*kind, *level))
            .collect()
    }

    #[test]
    fn a_segment_of_our_own_or_of_the_system_is_ordinary() {
        assert!(segment("x", 1000, 0o100_644, 1000).is_empty());
        assert!(segment("x", 0, 0o100_644, 1000).is_empty());
        assert!(segment("x", 0, 0o100_600, 0).is_empty());
    }

    #[test]
    fn who_else_may_write_a_segment_is_named() {
        let found = segment("cam", 1001, 0o100_644, 1000);
        assert_eq!(kinds(&found), [(Kind::SegmentOwner, Level::Warn)]);
        assert!(found[0].2.contains("cam") && found[0].2.contains("1001"));
        // A producer of another user matters to the superuser too.
        assert_eq!(segment("cam", 1001, 0o100_644, 0).len(), 1);
        let found = segment("cam", 1000, 0o100_666, 1000);
        assert_eq!(kinds(&found), [(Kind::SegmentMode, Level::Warn)]);
        assert!(found[0].2.contains("mode 666"), "{}", found[0].2);
        let found = segment("cam", 1000, 0o100_664, 1000);
        assert_eq!(kinds(&found), [(Kind::SegmentMode, Level::Info)]);
    }

    #[test]
    fn a_socket_that_is_a_link_or_lies_open_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let set = |mode| std::fs::set_permissions(folder.path(), Permissions::from_mode(mode));
        let path = folder.path().join("sync");
        set(0o700).unwrap();
        assert!(
            socket(&path, own).is_empty(),
            "nothing there, nothing wrong"
        );
        set(0o777).unwrap();
        assert_eq!(
            kinds(&socket(&path, own)),
            [(Kind::SocketFolder, Level::Warn)]
        );
        set(0o1777).unwrap();
        assert_eq!(
            kinds(&socket(&path, own)),
            [(Kind::SocketFolder, Level::Info)]
        );
        // To another user the folder is a stranger's, unless the system owns it.
        set(0o755).unwrap();
        let others = usize::from(own != 0);
        assert_eq!(socket(&path, own + 1).len(), others);
        std::os::unix::fs::symlink("/elsewhere/sync", &path).unwrap();
        let found = socket(&path, own);
        assert_eq!(kinds(&found), [(Kind::SocketLink, Level::Warn)]);
        assert!(found[0].2.contains("/elsewhere/sync"), "{}", found[0].2);
    }

    #[test]
    fn each_thing_is_said_once() {
        let mut writers = Writers::default();
        let own = rustix::process::geteuid().as_raw();
        for _ in 0..3 {
            writers.say("cam", own, 0o100_666, "tcp://127.0.0.1:1");
        }
        assert_eq!(writers.said, [Kind::SegmentMode]);
    }
}
