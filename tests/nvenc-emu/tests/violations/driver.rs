//! What is wrong about memory, streams and kernels.

use std::ptr::null_mut;

use nvenc_emu::cuda::*;
use nvenc_emu::hold;
use nvenc_emu::report::Class::{E, P};

use crate::client::*;
use crate::{Control, READ_ONLY, control, shared_mapping};

pub const CONTROLS: &[Control] = &[
    control("free", E, || {
        let _client = Client::bare();
        assert_eq!(cuda!(cuMemFree_v2(0x5000)), 1);
    }),
    control("free-registered", P, || {
        let mut client = Client::ready();
        assert_eq!(cuda!(cuMemFree_v2(client.surface)), 0);
        client.surface = 0;
    }),
    control("free-pending", P, || {
        let mut client = Client::ready();
        let mut upload = null_mut();
        assert_eq!(cuda!(cuStreamCreate(&raw mut upload, 1)), 0);
        let held = hold();
        assert_eq!(cuda!(cuMemsetD8Async(client.surface, 1, 64, upload)), 0);
        assert_eq!(cuda!(cuMemFree_v2(client.surface)), 0);
        drop(held);
        client.surface = 0;
        cuda!(cuStreamDestroy_v2(upload));
    }),
    control("memset", E, || {
        let client = Client::ready();
        assert_eq!(
            cuda!(cuMemsetD8Async(client.surface, 0, 1 << 20, null_mut())),
            1
        );
    }),
    control("context", E, || {
        let mut stream = null_mut();
        cuda!(cuCtxSetCurrent(null_mut()));
        assert_eq!(cuda!(cuStreamCreate(&raw mut stream, 1)), 201);
    }),
    control("stream", E, || {
        assert_eq!(cuda!(cuStreamDestroy_v2(0x70 as Handle)), 400);
    }),
    control("event", E, || {
        assert_eq!(cuda!(cuEventDestroy_v2(0x70 as Handle)), 400);
    }),
    control("module", E, || {
        let _client = Client::bare();
        let mut module = null_mut();
        assert_eq!(
            cuda!(cuModuleLoadData(
                &raw mut module,
                c"no code".as_ptr().cast()
            )),
            218
        );
    }),
    control("kernel", E, || {
        let _client = Client::bare();
        let none = null_mut();
        let code = cuda!(cuLaunchKernel(
            0x80 as Handle,
            1,
            1,
            1,
            1,
            1,
            1,
            0,
            none,
            null_mut(),
            null_mut()
        ));
        assert_eq!(code, 400);
    }),
    control("copy", E, || {
        let client = Client::ready();
        let source = [0_u8; 64];
        let code = cuda!(cuMemcpyHtoDAsync_v2(
            0x90,
            source.as_ptr().cast(),
            64,
            null_mut()
        ));
        assert_eq!(code, 1);
        drop(client);
    }),
    control("pageable-upload", P, || {
        let client = Client::ready();
        let source = [0_u8; 64];
        let code = cuda!(cuMemcpyHtoDAsync_v2(
            client.surface,
            source.as_ptr().cast(),
            64,
            null_mut()
        ));
        assert_eq!(code, 0);
    }),
    control("register-host", E, || {
        let _client = Client::bare();
        let memory = shared_mapping(libc::PROT_READ, libc::MAP_SHARED);
        let misaligned = (memory as usize + 64) as Handle;
        assert_eq!(cuda!(cuMemHostRegister_v2(misaligned, 4096, READ_ONLY)), 1);
        // Default flags on memory that may only be read.
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, 1)), 1);
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, READ_ONLY)), 0);
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 4096, READ_ONLY)), 712);
        assert_eq!(cuda!(cuMemHostUnregister(memory)), 0);
        // SAFETY: mapped above.
        unsafe { libc::munmap(memory, 8192) };
    }),
    control("register-private", P, || {
        let _client = Client::bare();
        let memory = shared_mapping(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, 1)), 0);
        assert_eq!(cuda!(cuMemHostUnregister(memory)), 0);
        // SAFETY: mapped above.
        unsafe { libc::munmap(memory, 8192) };
    }),
    control("unregister-pending", P, || pending_copy(false)),
    control("unmapped-under-copy", P, || pending_copy(true)),
];

/// Unregisters, or unmaps, while copies out of the mapping are queued.
fn pending_copy(unmap: bool) {
    let client = Client::ready();
    // The stream's thread maps memory of its own when it starts: that has to be over before ours goes.
    let mut upload = null_mut();
    assert_eq!(cuda!(cuStreamCreate(&raw mut upload, 1)), 0);
    assert_eq!(cuda!(cuMemsetD8Async(client.surface, 1, 64, upload)), 0);
    cuda!(cuStreamSynchronize(upload));
    let memory = shared_mapping(libc::PROT_READ, libc::MAP_SHARED);
    assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, READ_ONLY)), 0);
    let held = hold();
    assert_eq!(
        cuda!(cuMemcpyHtoDAsync_v2(client.surface, memory, 8192, upload)),
        0
    );
    if unmap {
        // SAFETY: mapped above; that something still wants it is the point.
        unsafe { libc::munmap(memory, 8192) };
        drop(held);
        cuda!(cuStreamSynchronize(upload));
        cuda!(cuMemHostUnregister(memory));
    } else {
        assert_eq!(cuda!(cuMemHostUnregister(memory)), 0);
        drop(held);
        cuda!(cuStreamSynchronize(upload));
        // SAFETY: mapped above, and nothing wants it any more.
        unsafe { libc::munmap(memory, 8192) };
    }
    cuda!(cuStreamDestroy_v2(upload));
}
