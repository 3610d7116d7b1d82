//! Decoder output of other depths and chroma forms to 4:2:0 with eight bits.

use super::super::picture::Yuv420;

/// Chroma subsampling of a decoded picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chroma {
    Yuv420,
    Yuv422,
    Yuv444,
}

/// `value` of `depth` bits with eight, rounded.
pub fn to_eight_bits(value: u16, depth: u8) -> u8 {
    let shift = depth.saturating_sub(8);
    if shift == 0 {
        return value.min(255) as u8;
    }
    ((u32::from(value) + (1 << (shift - 1))) >> shift).min(255) as u8
}

/// Puts planes together whose chroma is subsampled as `chroma` says; `None` if their lengths do
/// not fit the size.
pub fn assemble(
    (width, height): (usize, usize),
    chroma: Chroma,
    [y, u, v]: [Vec<u8>; 3],
) -> Option<Yuv420> {
    let (w, h) = (width.div_ceil(2), height.div_ceil(2));
    let reduce = |plane: Vec<u8>| match chroma {
        Chroma::Yuv420 => Some(plane),
        Chroma::Yuv422 if plane.len() == w * height => Some(average_rows(&plane, w, height)),
        Chroma::Yuv444 if plane.len() == width * height => {
            Some(average_rows(&average_columns(&plane, width), w, height))
        }
        _ => None,
    };
    let picture = Yuv420 {
        width,
        height,
        y,
        u: reduce(u)?,
        v: reduce(v)?,
    };
    debug_assert!(picture.u.len() != w * h || picture.chroma_width() == w);
    picture.is_sound().then_some(picture)
}

/// The mean of each pair of rows; a last single row stays as it is.
pub fn average_rows(plane: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(width * height.div_ceil(2));
    for pair in plane.chunks(width * 2) {
        let (upper, lower) = pair.split_at(width);
        let lower = if lower.is_empty() { upper } else { lower };
        out.extend(upper.iter().zip(lower).map(|(a, b)| mean(*a, *b)));
    }
    out
}

fn average_columns(plane: &[u8], width: usize) -> Vec<u8> {
    plane
        .chunks(width)
        .flat_map(|row| {
            row.chunks(2)
                .map(|pair| mean(pair[0], *pair.last().unwrap_or(&pair[0])))
        })
        .collect()
}

fn mean(a: u8, b: u8) -> u8 {
    (u16::from(a) + u16::from(b)).div_ceil(2) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_samples_are_rounded() {
        let pairs = [(0, 0), (1, 0), (2, 1), (4, 1), (940, 235), (1023, 255)];
        for (ten, eight) in pairs {
            assert_eq!(to_eight_bits(ten, 10), eight, "{ten}");
        }
        assert_eq!(to_eight_bits(200, 8), 200);
    }

    #[test]
    fn chroma_is_averaged_down_to_a_quarter() {
        let y = vec![16; 8];
        let full = vec![10, 20, 30, 40, 20, 30, 40, 50];
        let planes = [y.clone(), full.clone(), full];
        let picture = assemble((4, 2), Chroma::Yuv444, planes).unwrap();
        // (10 + 20)/2 = 15, (20 + 30)/2 = 25; (15 + 25)/2 = 20; likewise 40
        assert_eq!(picture.u, [20, 40]);
        let half = vec![10, 20, 30, 40];
        let picture = assemble((4, 2), Chroma::Yuv422, [y.clone(), half.clone(), half]).unwrap();
        assert_eq!(picture.v, [20, 30]);
        assert_eq!(
            assemble((4, 2), Chroma::Yuv420, [y, vec![1; 3], vec![1; 2]]),
            None
        );
    }
}
