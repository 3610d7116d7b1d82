//! Modules and kernels, which are run by name.

use std::ffi::{CStr, c_char, c_uint, c_void};

use super::stream::on_stream;
use super::{Handle, cuda, enter, give, need_context, new_handle};
use crate::kernels;
use crate::report::{Class, OwnWork, stats, violation};

exported! {
    cuModuleLoadData(module: *mut Handle, image: *const c_void) { load_module(module, image) }
    cuModuleLoadDataEx(module: *mut Handle, image: *const c_void, _count: c_uint, _options: *mut c_uint, _values: *mut Handle) {
        load_module(module, image)
    }
    cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        // SAFETY: the client passes a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let mut cuda = cuda();
        match cuda.modules.get(&(module as usize)) {
            Some(names) if names.contains(&name) => (),
            Some(_) => return 500,
            None => return 400,
        }
        let handle = new_handle();
        cuda.functions.insert(handle, (module as usize, name));
        give(function, handle as Handle)
    }
    cuModuleUnload(module: Handle) {
        let mut cuda = cuda();
        cuda.functions.retain(|_, (of, _)| *of != module as usize);
        if cuda.modules.remove(&(module as usize)).is_some() { 0 } else { 400 }
    }
}

/// A kernel is run by name, on the stream, after its arguments were checked.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: Handle,
    arguments: *mut Handle,
    extra: *mut Handle,
) -> c_uint {
    enter("cuLaunchKernel", move || {
        let name = cuda()
            .functions
            .get(&(function as usize))
            .map(|(_, name)| name.clone());
        let Some(name) = name else {
            violation(
                Class::E,
                "kernel",
                "cuLaunchKernel",
                None,
                "no such function".to_owned(),
            );
            return 400;
        };
        let threads = block_x as usize * block_y as usize * block_z as usize;
        if grid_z != 1
            || block_z != 1
            || threads == 0
            || threads > 1024
            || shared != 0
            || !extra.is_null()
        {
            violation(
                Class::E,
                "kernel",
                "cuLaunchKernel",
                None,
                format!("{name}: grid or block"),
            );
            return 1;
        }
        let Some(which) = kernels::by_name(&name) else {
            violation(
                Class::E,
                "kernel",
                "cuLaunchKernel",
                None,
                format!("unknown kernel {name}"),
            );
            return 1;
        };
        *stats().kernels.entry(name).or_default() += 1;
        let covered = (
            grid_x as usize * block_x as usize,
            grid_y as usize * block_y as usize,
        );
        // SAFETY: the client's arguments are those of the named kernel; they are read before this returns.
        match unsafe { kernels::prepare(which, covered, arguments) } {
            Some(launch) => on_stream(stream as usize, move || {
                let _work = OwnWork::begin();
                launch.run();
            }),
            None => 1,
        }
    })
}

fn load_module(module: *mut Handle, image: *const c_void) -> c_uint {
    if !need_context("cuModuleLoadData") {
        return 201;
    }
    // SAFETY: the client passes PTX, which ends with a NUL.
    let text = unsafe { CStr::from_ptr(image.cast()) }
        .to_string_lossy()
        .into_owned();
    if !text.contains(".version") || !text.contains(".target") {
        violation(
            Class::E,
            "module",
            "cuModuleLoadData",
            None,
            "no PTX".to_owned(),
        );
        return 218;
    }
    let names = text
        .match_indices(".entry ")
        .filter_map(|(at, word)| text[at + word.len()..].split('(').next())
        .map(|name| name.trim().to_owned())
        .collect();
    let handle = new_handle();
    cuda().modules.insert(handle, names);
    give(module, handle as Handle)
}
