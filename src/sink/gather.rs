//! A list of borrowed pieces for one vectored write.
//!
//! Payload is pointed at. The few bytes between (packet headers, chunk headers, length fields)
//! are copied into an arena that is as long-lived as the list, so that one list holds both.

use std::io::IoSlice;

/// What one `writev` or `sendmsg` takes at most (`UIO_MAXIOV`, the kernel's `IOV_MAX`).
pub const IOV_MAX: usize = 1024;

/// The memory of gathers between writes; it grows to the largest one and stays.
#[derive(Debug, Default)]
pub struct GatherBuffer {
    pieces: Vec<IoSlice<'static>>,
    arena: Vec<u8>,
}

impl GatherBuffer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for `pieces` pieces and `copied` bytes from the start.
    pub fn with_capacity(pieces: usize, copied: usize) -> Self {
        Self {
            pieces: Vec::with_capacity(pieces),
            arena: vec![0; copied],
        }
    }

    /// An empty list with room for `copied` bytes of small pieces.
    pub fn gather<'a>(&'a mut self, copied: usize) -> Gather<'a> {
        if self.arena.len() < copied {
            self.arena.resize(copied, 0);
        }
        Gather {
            pieces: std::mem::take(&mut self.pieces),
            home: &mut self.pieces,
            arena: &mut self.arena,
            sent: 0,
            len: 0,
        }
    }
}

/// Pieces in order, with a cursor over what was written already.
#[derive(Debug)]
pub struct Gather<'a> {
    pieces: Vec<IoSlice<'a>>,
    /// Where the list's memory goes back to.
    home: &'a mut Vec<IoSlice<'static>>,
    /// What is left of the arena.
    arena: &'a mut [u8],
    /// Pieces before this one are written.
    sent: usize,
    /// Bytes that are not written yet.
    len: usize,
}

impl<'a> Gather<'a> {
    /// Points at `piece`. An empty one takes no place.
    pub fn push(&mut self, piece: &'a [u8]) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(IoSlice::new(piece));
        }
    }

    /// Copies a small piece.
    ///
    /// # Panics
    ///
    /// If more is copied than [`GatherBuffer::gather`] was told.
    pub fn push_copied(&mut self, piece: &[u8]) {
        let room = self.take_arena(piece.len());
        room.copy_from_slice(piece);
        self.push(room);
    }

    /// Lists a packet of two pieces: the first `len` of the sixteen bytes in `head`, which are
    /// copied with an instruction for each word, and `body`. Each takes a place even if empty.
    ///
    /// # Panics
    ///
    /// As [`Gather::push_copied`], where each call takes sixteen bytes; if `len` is over that.
    #[inline]
    pub fn push_packet(&mut self, head: [[u8; 8]; 2], len: usize, body: &'a [u8]) {
        let room = self.take_arena(16);
        room[..8].copy_from_slice(&head[0]);
        room[8..].copy_from_slice(&head[1]);
        self.len += len + body.len();
        self.pieces
            .extend_from_slice(&[IoSlice::new(&room[..len]), IoSlice::new(body)]);
    }

    /// What is not written yet, as far as one call takes it.
    pub fn pieces(&self) -> &[IoSlice<'a>] {
        let rest = &self.pieces[self.sent..];
        &rest[..rest.len().min(IOV_MAX)]
    }

    /// All that is not written yet, which may be more than one call takes.
    pub fn all_pieces(&self) -> &[IoSlice<'a>] {
        &self.pieces[self.sent..]
    }

    /// Bytes that are not written yet.
    pub fn remaining(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Moves the cursor over `written` bytes, which may end inside a piece.
    ///
    /// # Panics
    ///
    /// If so many bytes are not left.
    pub fn advance(&mut self, mut written: usize) {
        assert!(written <= self.len, "nothing writes more than it was given");
        self.len -= written;
        while let Some(piece) = self.pieces.get_mut(self.sent) {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.sent += 1;
        }
    }

    /// Forgets all pieces. The arena is not given back: the list may have been copied from it.
    pub fn clear(&mut self) {
        self.pieces.clear();
        (self.sent, self.len) = (0, 0);
    }

    #[inline]
    fn take_arena(&mut self, len: usize) -> &'a mut [u8] {
        let (room, rest) = std::mem::take(&mut self.arena).split_at_mut(len);
        self.arena = rest;
        room
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.pieces.clear();
        // An empty list of one lifetime becomes one of another in place: the standard library
        // collects into the same allocation, and `copies_no_memory` below holds it to that.
        *self.home = std::mem::take(&mut self.pieces)
            .into_iter()
            .map(|_| IoSlice::new(&[]))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(gather: &Gather<'_>) -> Vec<u8> {
        gather
            .all_pieces()
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect()
    }

    #[test]
    fn copied_and_borrowed_pieces_keep_their_order() {
        let mut buffer = GatherBuffer::new();
        let payload = [1_u8, 2, 3];
        let mut gather = buffer.gather(19);
        gather.push_copied(&[9, 8]);
        gather.push(&payload);
        gather.push_copied(&[7]);
        gather.push(&[]);
        gather.push_packet([[6; 8]; 2], 2, &[]);
        assert_eq!(bytes(&gather), [9, 8, 1, 2, 3, 7, 6, 6]);
        assert_eq!(
            gather.pieces().len(),
            5,
            "the empty body of a packet has its place"
        );
        assert_eq!(gather.pieces()[1].as_ptr(), payload.as_ptr());
    }

    #[test]
    fn copies_no_memory_from_one_gather_to_the_next() {
        let mut buffer = GatherBuffer::new();
        let payload = [0_u8; 4];
        let mut address = |count: usize| {
            let mut gather = buffer.gather(64);
            (0..count).for_each(|_| gather.push(&payload));
            gather.pieces().as_ptr() as usize
        };
        let first = address(100);
        assert_eq!(address(100), first);
        assert_eq!(address(3), first);
        assert_eq!(address(100), first);
    }

    #[test]
    fn one_call_takes_no_more_than_the_kernel_allows() {
        let mut buffer = GatherBuffer::new();
        let mut gather = buffer.gather(0);
        (0..IOV_MAX + 5).for_each(|_| gather.push(&[1]));
        assert_eq!(gather.pieces().len(), IOV_MAX);
        gather.advance(IOV_MAX);
        assert_eq!(gather.pieces().len(), 5);
        gather.advance(5);
        assert!(gather.is_empty() && gather.pieces().is_empty());
    }

    #[test]
    #[should_panic(expected = "nothing writes more")]
    fn a_cursor_past_the_end_is_a_bug() {
        GatherBuffer::new().gather(0).advance(1);
    }

    proptest! {
        #[test]
        fn partial_writes_of_any_length_give_the_same_bytes(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..20),
            steps in prop::collection::vec(0_usize..7, 0..80),
        ) {
            let mut buffer = GatherBuffer::new();
            let mut gather = buffer.gather(pieces.len() * 9);
            for (index, piece) in pieces.iter().enumerate() {
                if index % 2 == 0 { gather.push(piece) } else { gather.push_copied(piece) }
            }
            let mut written = Vec::new();
            for step in steps {
                let step = step.min(gather.remaining());
                written.extend_from_slice(&bytes(&gather)[..step]);
                gather.advance(step);
            }
            written.extend(bytes(&gather));
            prop_assert_eq!(written, pieces.concat());
        }
    }
}
