//! Finds `nvEncodeAPI.h` and makes bindings, GUIDs and version constants of that one file, so
//! that layouts and version numbers can never come from different headers.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Searched in this order; a variable that is set but holds no header is an error, never passed over.
const VARIABLES: [&str; 2] = ["NV_CODEC_HEADERS", "NVIDIA_VIDEO_CODEC_SDK_PATH"];
const INSIDE: [&str; 5] = ["", "include/ffnvcodec", "ffnvcodec", "Interface", "include"];
const SYSTEM: [&str; 2] = ["/usr/include/ffnvcodec", "/usr/local/include/ffnvcodec"];
const HEADER: &str = "nvEncodeAPI.h";
const OLDEST: (u32, u32) = (11, 0);
const NEWEST: (u32, u32) = (13, 0);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(nvenc_ge_12_0, nvenc_ge_12_2)");
    if let Err(message) = generate() {
        // One readable block instead of a panic with a backtrace: this is what a user sees first.
        eprintln!("\n{message}\n");
        std::process::exit(1);
    }
}

fn generate() -> Result<(), String> {
    let header = find_header()?;
    println!("cargo:rerun-if-changed={}", header.display());
    let text =
        fs::read_to_string(&header).map_err(|error| format!("{}: {error}", header.display()))?;
    let version = (
        macro_number(&text, "NVENCAPI_MAJOR_VERSION")?,
        macro_number(&text, "NVENCAPI_MINOR_VERSION")?,
    );
    if version < OLDEST || version > NEWEST {
        return Err(format!(
            "{} is NVENC API {}.{}; this crate knows {}.{} to {}.{}. Name another header by {}.",
            header.display(),
            version.0,
            version.1,
            OLDEST.0,
            OLDEST.1,
            NEWEST.0,
            NEWEST.1,
            VARIABLES[0],
        ));
    }
    if version >= (12, 0) {
        println!("cargo:rustc-cfg=nvenc_ge_12_0");
    }
    if version >= (12, 2) {
        println!("cargo:rustc-cfg=nvenc_ge_12_2");
    }
    // For crates that use the structures: read in their build scripts as DEP_NVENC_API_*.
    println!("cargo:major={}", version.0);
    println!("cargo:minor={}", version.1);

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    write_guids(&text, &out.join("guids.rs"))?;
    write_bindings(&header, &out)
}

fn find_header() -> Result<PathBuf, String> {
    for variable in VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for variable in VARIABLES {
        let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        let root = PathBuf::from(value);
        return INSIDE
            .iter()
            .map(|inside| root.join(inside).join(HEADER))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                format!(
                    "{variable} is {}, but there is no {HEADER} in it, nor in {} below it.",
                    root.display(),
                    INSIDE[1..].join(", ")
                )
            });
    }
    SYSTEM
        .iter()
        .map(|folder| Path::new(folder).join(HEADER))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            format!(
                "{HEADER} was not found in {}.\n\
                 Install it:       apt-get install --no-install-recommends libffmpeg-nvenc-dev libclang-dev\n\
                 or name its place: {}=/path/to/headers\n\
                 or leave NVENC out: cargo build --no-default-features --features x265",
                SYSTEM.join(" or "),
                VARIABLES[0],
            )
        })
}

fn macro_number(text: &str, name: &str) -> Result<u32, String> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("#define"))
        .filter_map(|rest| rest.trim_start().strip_prefix(name))
        .find_map(|rest| rest.trim().parse().ok())
        .ok_or_else(|| format!("{HEADER} does not define {name} as a number"))
}

/// Bindgen makes an external static of a `static const GUID`, which nothing could link against;
/// so the eleven numbers of each initialiser are read from the text.
fn write_guids(text: &str, to: &Path) -> Result<(), String> {
    let mut rust = String::new();
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("static const GUID") {
        rest = &rest[start + "static const GUID".len()..];
        let equals = rest.find('=').ok_or("a GUID without an initialiser")?;
        let name = rest[..equals].trim().to_owned();
        let end = rest
            .find(';')
            .ok_or_else(|| format!("{name}: no semicolon"))?;
        let numbers = rest[equals + 1..end]
            .split(['{', '}', ','])
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                u32::from_str_radix(part.trim_start_matches("0x"), 16)
                    .map_err(|error| format!("{name}: {part}: {error}"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let [data1, data2, data3, data4 @ ..] = numbers.as_slice() else {
            return Err(format!("{name}: too few numbers"));
        };
        if data4.len() != 8 {
            return Err(format!("{name}: {} numbers, not 11", numbers.len()));
        }
        rust.push_str(&format!(
            "pub const {name}: GUID = GUID {{ Data1: {data1:#x}, Data2: {data2:#x}, Data3: {data3:#x}, Data4: {data4:#x?} }};\n"
        ));
        names.push(name);
        rest = &rest[end..];
    }
    let list: String = names
        .iter()
        .map(|name| format!("({name:?}, {name}), "))
        .collect();
    rust.push_str(&format!(
        "/// Every GUID of the header, by name.\npub const ALL_GUIDS: &[(&str, GUID)] = &[{list}];\n"
    ));
    fs::write(to, rust).map_err(|error| format!("{}: {error}", to.display()))
}

fn write_bindings(header: &Path, out: &Path) -> Result<(), String> {
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .allowlist_file(format!(".*{}", HEADER.replace('.', "\\.")))
        // Nothing may link: only the types of the functions are wanted, and those stay.
        .blocklist_function(".*")
        .blocklist_var("NV_ENC_\\w+_GUID")
        // A driver may answer with values that this header does not know; a Rust enum could not hold them.
        .default_enum_style(bindgen::EnumVariation::NewType {
            is_bitfield: false,
            is_global: false,
        })
        .derive_default(true)
        .derive_debug(false)
        .layout_tests(true)
        .generate_comments(false)
        .use_core()
        // The *_VER constants use a function-like macro and are dropped silently without this.
        .clang_macro_fallback()
        .clang_macro_fallback_build_dir(out)
        .generate()
        .map_err(|error| format!("bindings for {}: {error}", header.display()))?;
    bindings
        .write_to_file(out.join("bindings.rs"))
        .map_err(|error| error.to_string())
}
