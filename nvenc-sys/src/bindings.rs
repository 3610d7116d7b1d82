//! What the build script made of the header.

#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused,
    unsafe_op_in_unsafe_fn,
    unnecessary_transmutes,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    rustdoc::all
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
include!(concat!(env!("OUT_DIR"), "/guids.rs"));
