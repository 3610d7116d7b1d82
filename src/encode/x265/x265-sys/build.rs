//! Makes bindings of the installed `x265.h`, so that they belong to the library they are linked with.
//!
//! The published crate of this name needs bindgen 0.51, which cannot stand in one build with the
//! bindgen that knows NVENC's version macros: only one `clang-sys` may be linked.

use std::env;
use std::path::PathBuf;

const DIRECTORIES: [&str; 2] = ["/usr/include", "/usr/local/include"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=X265_INCLUDE_DIR");
    let given = env::var_os("X265_INCLUDE_DIR").map(PathBuf::from);
    let header = given
        .into_iter()
        .chain(DIRECTORIES.map(PathBuf::from))
        .map(|folder| folder.join("x265.h"))
        .find(|path| path.is_file());
    let Some(header) = header else {
        eprintln!(
            "\nx265.h was not found in {}.\n\
             Install it:             apt-get install --no-install-recommends libx265-dev libclang-dev\n\
             or name its place:      X265_INCLUDE_DIR=/path/to/include\n\
             or leave the encoder out: build without the feature x265\n",
            DIRECTORIES.join(" or ")
        );
        std::process::exit(1);
    };
    println!("cargo:rerun-if-changed={}", header.display());
    println!("cargo:rustc-link-lib=x265");
    let out =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    let made = bindgen::Builder::default()
        .header(header.display().to_string())
        .allowlist_file(".*x265(_config)?\\.h")
        .generate_comments(false)
        .derive_debug(false)
        .use_core()
        .generate()
        .map_err(|error| error.to_string())
        .and_then(|bindings| {
            bindings
                .write_to_file(&out)
                .map_err(|error| error.to_string())
        });
    if let Err(error) = made {
        eprintln!("\nbindings for {}: {error}\n", header.display());
        std::process::exit(1);
    }
}
