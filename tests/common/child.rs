//! Programs that a test starts: none outlives it, and none runs for ever.

#![allow(dead_code)] // each test uses its part

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// For whatever takes seconds on a machine with nothing else to do.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Runs to the end, but no longer than a generous limit.
pub fn finish(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    finish_child(child)
}

/// A program that does not outlive its test, also when that fails.
pub struct Program(Option<Child>);

impl Program {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(Some(child.unwrap_or_else(|e| panic!("{command:?}: {e}"))))
    }
}

impl std::ops::Deref for Program {
    type Target = Child;

    fn deref(&self) -> &Child {
        self.0.as_ref().expect("until it is taken out")
    }
}

impl std::ops::DerefMut for Program {
    fn deref_mut(&mut self) -> &mut Child {
        self.0.as_mut().expect("until it is taken out")
    }
}

impl From<Program> for Child {
    fn from(mut program: Program) -> Self {
        program.0.take().expect("taken out once")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for the end, but no longer than a generous limit.
pub fn finish_child(child: impl Into<Child>) -> Output {
    use std::io::Read;
    let mut child = child.into();
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let readers = std::thread::spawn(move || {
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(err) = &mut err {
                let _ = err.read_to_end(&mut text);
            }
            text
        });
        let mut text = Vec::new();
        if let Some(out) = &mut out {
            let _ = out.read_to_end(&mut text);
        }
        (text, errors.join().expect("reader"))
    });
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            let (out, err) = readers.join().expect("readers");
            panic!(
                "still running after {LIMIT:?}:\n{}\n{}",
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(&err)
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (stdout, stderr) = readers.join().expect("readers");
    Output {
        status,
        stdout,
        stderr,
    }
}
