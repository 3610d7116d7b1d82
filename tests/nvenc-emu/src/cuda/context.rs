//! Contexts: the primary one of a device, a client's own, and the stack of each thread.

use std::ffi::{c_int, c_uint};

use super::{
    CURRENT, Context, Handle, context_is_alive, cuda, current_context, enter, give, new_handle,
};

exported! {
    cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) {
        if !cuda().initialised { return 3; }
        let mut cuda = cuda();
        let found = cuda.contexts.iter_mut().find(|(_, c)| c.primary && c.device == device);
        let handle = if let Some((handle, context)) = found {
            context.references += 1;
            *handle
        } else {
            let handle = new_handle();
            cuda.contexts.insert(handle, Context { device, primary: true, references: 1 });
            handle
        };
        give(context, handle as Handle)
    }
    cuDevicePrimaryCtxRelease_v2(device: c_int) { release_primary(device) }
    cuDevicePrimaryCtxRelease(device: c_int) { release_primary(device) }
    cuDevicePrimaryCtxSetFlags_v2(_device: c_int, _flags: c_uint) { 0 }
    cuDevicePrimaryCtxSetFlags(_device: c_int, _flags: c_uint) { 0 }
    cuCtxCreate_v2(context: *mut Handle, _flags: c_uint, device: c_int) {
        let handle = new_handle();
        cuda().contexts.insert(handle, Context { device, primary: false, references: 1 });
        CURRENT.with_borrow_mut(|stack| stack.push(handle));
        give(context, handle as Handle)
    }
    cuCtxDestroy_v2(context: Handle) {
        let context = context as usize;
        crate::session::context_goes(context);
        CURRENT.with_borrow_mut(|stack| stack.retain(|other| *other != context));
        if cuda().contexts.remove(&context).is_some() { 0 } else { 201 }
    }
    cuCtxSetLimit(_limit: c_uint, _value: usize) { 0 }
    cuCtxGetCurrent(context: *mut Handle) { give(context, current_context() as Handle) }
    cuCtxSetCurrent(context: Handle) {
        let context = context as usize;
        if context != 0 && !context_is_alive(context) { return 201; }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 { stack.push(context); }
        });
        0
    }
    cuCtxPushCurrent_v2(context: Handle) {
        if !context_is_alive(context as usize) { return 201; }
        CURRENT.with_borrow_mut(|stack| stack.push(context as usize));
        0
    }
    cuCtxPopCurrent_v2(context: *mut Handle) {
        let popped = CURRENT.with_borrow_mut(Vec::pop);
        match popped {
            Some(_) if context.is_null() => 0,
            Some(popped) => give(context, popped as Handle),
            None => 201,
        }
    }
    cuCtxGetDevice(device: *mut c_int) { give(device, 0) }
    cuCtxSynchronize() {
        let streams: Vec<_> = cuda().streams.values().cloned().collect();
        streams.iter().for_each(|stream| stream.wait());
        0
    }
    cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) { give(least, 0) | give(greatest, 0) }
}

fn release_primary(device: c_int) -> c_uint {
    let mut cuda = cuda();
    let found = cuda
        .contexts
        .iter_mut()
        .find(|(_, c)| c.primary && c.device == device);
    let Some((handle, context)) = found else {
        return 201;
    };
    context.references -= 1;
    let (handle, gone) = (*handle, context.references == 0);
    if gone {
        cuda.contexts.remove(&handle);
        drop(cuda);
        crate::session::context_goes(handle);
    }
    0
}
