//! How the C library's heap gives memory back.

/// Gives every allocation of a megabyte or more pages of its own, for good: they go back to the
/// system when it is freed.
///
/// glibc does so from 128 KiB on, but raises the bound with every such block that is freed, up to
/// 32 MiB (mallopt(3)): pictures and encoders of former sizes then leave holes in the heap, tens of
/// megabytes after a few changes of the picture size. Nothing of that size is allocated while a
/// stream runs, so that the system calls cost nothing. Other C libraries are left as they are.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        const BOUND: libc::c_int = 1 << 20;
        // SAFETY: sets a number of the allocator's; called before other threads are started.
        // A refusal leaves the default, which is right too.
        let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, BOUND) };
    }
}
