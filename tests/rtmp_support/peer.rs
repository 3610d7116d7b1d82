//! Servers of other people: Debian's nginx with its RTMP module, and a new ffmpeg from PyPI.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Child, LIMIT, Reserved, reserve_tcp};

/// nginx that records what is published under `live/`.
pub struct Nginx {
    pub port: u16,
    _hold: Reserved,
    pub dir: tempfile::TempDir,
    pub child: Child,
}

impl Nginx {
    /// # Panics
    ///
    /// If nginx or its RTMP module is not installed (Debian: libnginx-mod-rtmp).
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hold = reserve_tcp();
        let port = hold.port;
        let child = Self::launch(dir.path(), port);
        Self {
            port,
            _hold: hold,
            dir,
            child,
        }
    }

    /// Anew on the same port, after the child was ended.
    pub fn restart(&mut self) {
        self.child = Self::launch(self.dir.path(), self.port);
    }

    fn launch(dir: &Path, port: u16) -> Child {
        let module = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]
            .map(|folder| Path::new(folder).join("ngx_rtmp_module.so"))
            .into_iter()
            .find(|path| path.exists())
            .expect("nginx's RTMP module: apt-get install nginx libnginx-mod-rtmp");
        let user = match rustix::process::geteuid().is_root() {
            true => "user root;",
            false => "",
        };
        let text = format!(
            "load_module {};
             {user}
             daemon off; master_process off; worker_processes 1;
             pid {dir}/nginx.pid; error_log {dir}/error.log info;
             events {{ worker_connections 64; }}
             rtmp {{ access_log off; server {{
                 listen 127.0.0.1:{port};
                 chunk_size 4096;
                 application live {{ live on; record all; record_path {dir}; record_unique off; }}
             }} }}",
            module.display(),
            dir = dir.display(),
        );
        std::fs::write(dir.join("nginx.conf"), text).unwrap();
        let child = Command::new("nginx")
            .args(["-p".as_ref(), dir, "-c".as_ref(), &dir.join("nginx.conf")])
            .args(["-e".as_ref(), dir.join("error.log").as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx can be started");
        let child = Child(child);
        wait_for_port(port);
        child
    }

    pub fn recording(&self, key: &str) -> PathBuf {
        self.dir.path().join(format!("{key}.flv"))
    }
}

pub fn wait_for_port(port: u16) {
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a file has at least `len` bytes and has stopped growing.
pub fn wait_for_file(path: &Path, len: u64) {
    let deadline = Instant::now() + LIMIT;
    let size = || std::fs::metadata(path).map_or(0, |file| file.len());
    loop {
        let before = size();
        std::thread::sleep(Duration::from_millis(200));
        if before >= len && size() == before {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{}: {before} bytes",
            path.display()
        );
    }
}

/// One tag of an FLV file, read by the table of FLV 10.1 section E.4.1.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    pub kind: u8,
    pub timestamp: u32,
    pub body: Vec<u8>,
}

/// # Panics
///
/// If it is no FLV.
pub fn read_flv(path: &Path) -> Vec<Tag> {
    let data = std::fs::read(path).unwrap();
    assert_eq!(data[..3], *b"FLV");
    let mut rest = &data[9 + 4..]; // header, size of no tag
    let mut tags = Vec::new();
    while rest.len() >= 11 {
        let len = u32::from_be_bytes([0, rest[1], rest[2], rest[3]]) as usize;
        if rest.len() < 11 + len + 4 {
            break; // the file was cut while it was written
        }
        tags.push(Tag {
            kind: rest[0],
            timestamp: u32::from_be_bytes([rest[7], rest[4], rest[5], rest[6]]),
            body: rest[11..11 + len].to_vec(),
        });
        rest = &rest[11 + len + 4..];
    }
    tags
}

/// An ffmpeg of version 8 or later, which takes all three packagings: the one that PyPI's
/// imageio-ffmpeg ships, installed below the build folder by `scripts/get_new_ffmpeg.sh`.
/// `None`, with a line that says why, where there is none to be had.
pub fn new_ffmpeg() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/get_new_ffmpeg.sh");
    let output = Command::new("bash")
        .arg(script)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI needs a new ffmpeg from PyPI: {errors}"
        );
        println!("SKIP: no ffmpeg of version 8 or later from PyPI: {errors}");
        return None;
    }
    Some(PathBuf::from(
        String::from_utf8(output.stdout).unwrap().trim(),
    ))
}
