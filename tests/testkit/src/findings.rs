//! What a referee has to say against a stream.

use serde::Serialize;

/// Findings that are kept in words; the rest is counted.
const KEPT: usize = 20;

/// Findings of one weight.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Findings {
    pub texts: Vec<String>,
    pub count: u64,
}

impl Findings {
    pub fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.texts.len() < KEPT {
            self.texts.push(text());
        }
    }

    /// Each on a line, with `kind` ahead.
    pub fn write(&self, kind: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for text in &self.texts {
            writeln!(f, "{kind}: {text}")?;
        }
        if self.count > self.texts.len() as u64 {
            writeln!(f, "{kind}s in all: {}", self.count)?;
        }
        Ok(())
    }
}
