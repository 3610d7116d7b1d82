//! Pictures that carry their number in every row.
//!
//! Eight vertical stripes are the eight low bits of the frame id, bright for 1 and dark for 0. All rows are equal, so a
//! picture that holds rows of two frames shows two numbers, however few rows they are. The lowest
//! bit is the first stripe: neighbouring frames differ in every row from its first pixels on.

/// Stripes, and bits.
const BITS: usize = 8;
const DARK: u8 = 50;
const BRIGHT: u8 = 200;
/// A sample nearer to the middle than this is neither. Range after decoding: 0 to 255.
const UNSURE: std::ops::RangeInclusive<u8> = 105..=145;

/// Fills a tight picture of `channels` equal channels with the number of frame `id`.
pub fn draw(id: u32, width: usize, channels: usize, rows: &mut [u8]) {
    let row_bytes = width * channels;
    let Some((first, rest)) = rows.split_at_mut_checked(row_bytes) else {
        return;
    };
    for (x, pixel) in first.chunks_exact_mut(channels).enumerate() {
        pixel.fill(match id >> stripe_of(x, width) & 1 {
            1 => BRIGHT,
            _ => DARK,
        });
    }
    for row in rest.chunks_exact_mut(row_bytes) {
        row.copy_from_slice(first);
    }
}

/// What a decoded picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The same number in every row.
    Whole(u8),
    /// Two numbers, in neighbouring rows or far apart.
    Torn { first: u8, other: u8, row: usize },
    /// No number: a broken reference, or no picture of ours.
    Unreadable { row: usize },
}

/// Reads a decoded grey picture, every row of it.
pub fn read(luma: &[u8], width: usize) -> Seen {
    let mut first = None;
    for (row, pixels) in luma.chunks_exact(width).enumerate() {
        let Some(number) = number_of(pixels) else {
            return Seen::Unreadable { row };
        };
        match first {
            None => first = Some(number),
            Some(first) if first != number => {
                return Seen::Torn {
                    first,
                    other: number,
                    row,
                };
            }
            Some(_) => {}
        }
    }
    first.map_or(Seen::Unreadable { row: 0 }, Seen::Whole)
}

fn number_of(row: &[u8]) -> Option<u8> {
    let width = row.len();
    let mut number = 0;
    for stripe in 0..BITS {
        let (from, to) = (stripe * width / BITS, (stripe + 1) * width / BITS);
        // Three places away from the edges, and the one in the middle of their order.
        let quarter = (to - from) / 4;
        let mut samples = [
            row[from + quarter],
            row[(from + to) / 2],
            row[to - 1 - quarter],
        ];
        samples.sort_unstable();
        if UNSURE.contains(&samples[1]) {
            return None;
        }
        number |= u8::from(samples[1] > *UNSURE.end()) << stripe;
    }
    Some(number)
}

fn stripe_of(x: usize, width: usize) -> usize {
    // The inverse of the borders above, which round down.
    ((x * BITS + BITS - 1) / width).min(BITS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luma(id: u32, width: usize, height: usize) -> Vec<u8> {
        let mut rows = vec![0; width * height];
        draw(id, width, 1, &mut rows);
        rows
    }

    #[test]
    fn every_number_is_read_back_at_every_width() {
        for width in [64, 320, 641, 1280] {
            for id in 0..=255 {
                assert_eq!(read(&luma(id, width, 4), width), Seen::Whole(id as u8));
            }
        }
    }

    #[test]
    fn one_row_of_another_frame_is_seen_wherever_it_is() {
        for row in 0..48 {
            let mut picture = luma(6, 64, 48);
            picture[row * 64..(row + 1) * 64].copy_from_slice(&luma(7, 64, 1));
            let at = row.max(1);
            let (first, other) = if row == 0 { (7, 6) } else { (6, 7) };
            assert_eq!(
                read(&picture, 64),
                Seen::Torn {
                    first,
                    other,
                    row: at
                }
            );
        }
    }

    #[test]
    fn a_grey_picture_is_no_number() {
        assert_eq!(read(&[125; 64 * 2], 64), Seen::Unreadable { row: 0 });
    }
}
