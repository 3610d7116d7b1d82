//! One-pass copies out of memory that another process may write.

/// Replaces what is in `out` by the `len` bytes at `source`, each read exactly once.
///
/// # Safety
///
/// `len` bytes from `source` are mapped readable for the whole call (or their faults are handled
/// by the mapping's guard), and none of them is memory that Rust owns or borrows mutably.
pub(super) unsafe fn copy_from_foreign(out: &mut Vec<u8>, source: *const u8, len: usize) {
    out.clear();
    out.reserve(len);
    let target = out.as_mut_ptr();
    // A plain copy would be a data race, for which the language makes no promise at all. The
    // compiler cannot look into assembly: it can neither assume the bytes stand still nor read
    // them twice. Microcode copies whole cache lines here.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for `source`; `target` has room for `len` bytes, which `reserve`
    // made, and is owned by us alone. The direction flag is clear on entry (System V ABI).
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for at in 0..len {
        // SAFETY: as above, byte by byte.
        unsafe { target.add(at).write(source.add(at).read_volatile()) };
    }
    // SAFETY: the loop or the string move above has written all `len` bytes.
    unsafe { out.set_len(len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_and_the_capacity_is_kept() {
        let source: Vec<u8> = (0..=255).cycle().take(100_003).collect();
        let mut out = vec![1_u8; 7];
        for len in [0, 1, 63, 64, 65, source.len(), 5] {
            // SAFETY: a shorter or equal length of a live slice of our own.
            unsafe { copy_from_foreign(&mut out, source.as_ptr(), len) };
            assert_eq!(out, source[..len]);
        }
        assert!(out.capacity() >= source.len());
    }
}
