//! The least and the greatest of what was seen in the last seconds. No clock of its own.

use std::time::{Duration, Instant};

/// Forgets by pieces of time in which anything was seen: a pause of a minute forgets nothing.
#[derive(Debug, Default)]
pub(super) struct Lately {
    /// Least and greatest of each piece, in a ring.
    pieces: [Option<(i64, i64)>; Self::PIECES],
    newest: usize,
    since: Option<Instant>,
}

impl Lately {
    /// Four seconds.
    pub const PIECES: usize = 4 * Self::SECOND;
    /// Pieces of a second.
    pub const SECOND: usize = 8;
    const EACH: Duration = Duration::from_millis(125);

    pub fn note(&mut self, value: i64, at: Instant) {
        let since = *self.since.get_or_insert(at);
        if at.saturating_duration_since(since) >= Self::EACH {
            self.since = Some(at);
            self.newest = (self.newest + 1) % Self::PIECES;
            self.pieces[self.newest] = None;
        }
        let piece = &mut self.pieces[self.newest];
        *piece = Some(piece.map_or((value, value), |(least, greatest)| {
            (least.min(value), greatest.max(value))
        }));
    }

    /// Least and greatest of the last `pieces`.
    pub fn range(&self, pieces: usize) -> Option<(i64, i64)> {
        (0..pieces.min(Self::PIECES))
            .filter_map(|back| self.pieces[(self.newest + Self::PIECES - back) % Self::PIECES])
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_pieces_asked_for_is_forgotten() {
        let start = Instant::now();
        let mut lately = Lately::default();
        assert_eq!(lately.range(Lately::PIECES), None);
        for ms in (0..6000_u64).step_by(5) {
            // one low in the first piece, one high a second before the end
            let value = match ms {
                50 => 3,
                4600 => 90,
                _ => 10 + (ms % 30) as i64,
            };
            lately.note(value, start + Duration::from_millis(ms));
            let all = lately.range(Lately::PIECES);
            match ms {
                50..4000 => assert_eq!(all.map(|all| all.0), Some(3), "{ms}"),
                4000.. => assert_eq!(all.map(|all| all.0), Some(10), "{ms}"),
                _ => (),
            }
        }
        assert_eq!(lately.range(Lately::PIECES), Some((10, 90)));
        assert_eq!(lately.range(Lately::SECOND), Some((10, 35)));
    }

    #[test]
    fn a_pause_forgets_nothing() {
        let start = Instant::now();
        let mut lately = Lately::default();
        lately.note(4, start);
        lately.note(9, start + Duration::from_secs(3600));
        assert_eq!(lately.range(Lately::SECOND), Some((4, 9)));
    }
}
