//! The files that are written while something is published.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::amf0::Value;
use super::flv::FlvWriter;
use super::stream::Piece;

/// The files that are written on the way.
#[derive(Debug)]
pub struct Dumps {
    flv: Option<FlvWriter<BufWriter<File>>>,
    annexb: Option<BufWriter<File>>,
}

impl Dumps {
    /// # Errors
    ///
    /// If a file cannot be made; the text names it.
    pub fn open(flv: Option<&PathBuf>, annexb: Option<&PathBuf>) -> io::Result<Self> {
        let flv = flv.map(|path| create(path)).transpose()?;
        Ok(Dumps {
            flv: flv.map(FlvWriter::new).transpose()?,
            annexb: annexb.map(|path| create(path)).transpose()?,
        })
    }

    /// # Errors
    ///
    /// The file's; likewise below.
    pub fn metadata(&mut self, values: &Value) -> io::Result<()> {
        self.flv.as_mut().map_or(Ok(()), |flv| flv.metadata(values))
    }

    pub fn video(&mut self, timestamp: u32, body: &[u8]) -> io::Result<()> {
        self.flv
            .as_mut()
            .map_or(Ok(()), |flv| flv.video(timestamp, body))
    }

    pub fn piece(&mut self, piece: &Piece) -> io::Result<()> {
        let Some(out) = &mut self.annexb else {
            return Ok(());
        };
        let mut write = |nal: &[u8]| {
            out.write_all(&[0, 0, 0, 1])
                .and_then(|()| out.write_all(nal))
        };
        match piece {
            Piece::ParameterSets(sets) => sets.iter().try_for_each(|set| write(set)),
            Piece::Frame { nals, .. } => nals.iter().try_for_each(|nal| write(nal)),
        }
    }

    pub fn close(&mut self) -> io::Result<()> {
        self.flv.as_mut().map_or(Ok(()), FlvWriter::flush)?;
        self.annexb.as_mut().map_or(Ok(()), Write::flush)
    }
}

fn create(path: &Path) -> io::Result<BufWriter<File>> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    File::create(path).map(BufWriter::new).map_err(named)
}
