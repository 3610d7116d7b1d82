//! An FLV file of what was published (FLV 10.1 sections E.2 to E.4).

use std::io::{self, Write};

use super::amf0::{self, Value};

const SCRIPT: u8 = 18;
const VIDEO: u8 = 9;

/// Writes tags as they come.
#[derive(Debug)]
pub struct FlvWriter<W>(W);

impl<W: Write> FlvWriter<W> {
    /// Writes the file's header: video only.
    ///
    /// # Errors
    ///
    /// The writer's; likewise below.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(b"FLV\x01\x01\0\0\0\x09\0\0\0\0")?;
        Ok(FlvWriter(out))
    }

    pub fn metadata(&mut self, values: &Value) -> io::Result<()> {
        let body = amf0::write_all(&[Value::text("onMetaData"), values.clone()]);
        self.tag(SCRIPT, 0, &body)
    }

    pub fn video(&mut self, timestamp_ms: u32, body: &[u8]) -> io::Result<()> {
        self.tag(VIDEO, timestamp_ms, body)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn tag(&mut self, kind: u8, timestamp: u32, body: &[u8]) -> io::Result<()> {
        let size = (body.len() as u32).to_be_bytes();
        let [high, a, b, c] = timestamp.to_be_bytes();
        let head = [kind, size[1], size[2], size[3], a, b, c, high, 0, 0, 0];
        self.0.write_all(&head)?;
        self.0.write_all(body)?;
        self.0.write_all(&(body.len() as u32 + 11).to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_laid_out_as_the_format_says() {
        let mut writer = FlvWriter::new(Vec::new()).expect("memory");
        writer.video(0x0102_0304, &[0x17, 1]).expect("memory");
        #[rustfmt::skip]
        let expected = [
            b'F', b'L', b'V', 1, 1, 0, 0, 0, 9, 0, 0, 0, 0,
            9, 0, 0, 2, 2, 3, 4, 1, 0, 0, 0, 0x17, 1, 0, 0, 0, 13,
        ];
        assert_eq!(writer.0, expected);
    }
}
