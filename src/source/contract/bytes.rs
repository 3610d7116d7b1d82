//! Little-endian fields at fixed offsets of a block whose length is known.

pub(super) fn u16_at<const N: usize>(block: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes(field(block, at))
}

pub(super) fn u32_at<const N: usize>(block: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(field(block, at))
}

pub(super) fn u64_at<const N: usize>(block: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(field(block, at))
}

fn field<const N: usize, const LEN: usize>(block: &[u8; N], at: usize) -> [u8; LEN] {
    block[at..at + LEN]
        .try_into()
        .expect("every offset used is a constant inside the block")
}
