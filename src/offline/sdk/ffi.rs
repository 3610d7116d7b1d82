//! The open C wrapper of the ZED SDK, opened at run time (contract section 8).
//!
//! [`Api`] has the functions as plain pointers; [`Camera`] is one open recording. Signatures and
//! layouts are those of the wrapper's headers of versions 4.0 to 5.2.

use std::ffi::{CStr, CString, c_char, c_float, c_int, c_uint, c_ulonglong, c_void};
use std::path::Path;

use libloading::Library;

/// The functions of the library that are used. The library stays open as long as this lives.
pub struct Api {
    get_sdk_version: unsafe extern "C" fn() -> *mut c_char,
    create_camera: unsafe extern "C" fn(c_int) -> bool,
    open: Open,
    get_svo_number_of_frames: unsafe extern "C" fn(c_int) -> c_int,
    set_svo_position: unsafe extern "C" fn(c_int, c_int),
    grab: unsafe extern "C" fn(c_int, *mut c_void) -> c_int,
    get_image_timestamp: unsafe extern "C" fn(c_int) -> c_ulonglong,
    get_width: unsafe extern "C" fn(c_int) -> c_int,
    get_height: unsafe extern "C" fn(c_int) -> c_int,
    get_camera_fps: unsafe extern "C" fn(c_int) -> c_float,
    mat_create_new: unsafe extern "C" fn(c_int, c_int, c_int, c_int) -> *mut c_void,
    retrieve_image: RetrieveImage,
    mat_get_ptr: unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_int,
    mat_get_step_bytes: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    mat_free: unsafe extern "C" fn(*mut c_void, c_int),
    close_camera: unsafe extern "C" fn(c_int),
    _library: Library,
}

type RetrieveImage =
    unsafe extern "C" fn(c_int, *mut c_void, c_int, c_int, c_int, c_int, *mut c_void) -> c_int;

/// How a recording is opened, which changed with version 5.2.
enum Open {
    FromFile(
        unsafe extern "C" fn(
            c_int,
            *mut c_void,
            *const c_char,
            *const c_char,
            *const c_char,
            *const c_char,
        ) -> c_int,
    ),
    Older(
        unsafe extern "C" fn(
            c_int,
            *mut c_void,
            c_uint,
            *const c_char,
            *const c_char,
            c_int,
            *const c_char,
            *const c_char,
            *const c_char,
        ) -> c_int,
    ),
}

impl Api {
    /// # Errors
    ///
    /// What is missing, in words: the library, a symbol, or a version that is understood.
    pub fn load() -> Result<Self, String> {
        let mut refused = Vec::new();
        let library = NAMES.iter().find_map(|name| {
            // SAFETY: loading runs the library's initialisers; it is the SDK that the user
            // installed, found under its own name, and is asked for only where it is wanted.
            match unsafe { Library::new(*name) } {
                Ok(library) => Some(library),
                Err(error) => {
                    refused.push(error.to_string());
                    None
                }
            }
        });
        let Some(library) = library else {
            let absent = !Path::new(NAMES[1]).exists()
                && refused.iter().all(|why| why.contains("No such file"));
            return Err(match absent {
                true => format!("{} was not found", NAMES[0]),
                false => format!("{} cannot be loaded: {}", NAMES[0], refused.join("; ")),
            });
        };
        /// A function of the library by its name.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the type of the field that takes it is the signature in the wrapper's
                // header for this symbol, and the pointer does not outlive the library, which
                // is kept in the same structure.
                let symbol = unsafe { library.get($name) };
                *symbol.map_err(|_| format!("it has no {}", String::from_utf8_lossy($name)))?
            }};
        }
        let get_sdk_version: unsafe extern "C" fn() -> *mut c_char =
            function!(b"sl_get_sdk_version");
        let version = version_text(get_sdk_version);
        let (major, minor) = version
            .as_deref()
            .and_then(parse_version)
            .ok_or_else(|| format!("its version {version:?} is not understood"))?;
        let open = match (major, minor) {
            (5.., 2..) | (6.., _) => Open::FromFile(function!(b"sl_open_camera_from_svo_file")),
            (4.., _) => Open::Older(function!(b"sl_open_camera")),
            _ => return Err(format!("version {major}.{minor} is older than 4.0")),
        };
        Ok(Self {
            get_sdk_version,
            create_camera: function!(b"sl_create_camera"),
            open,
            get_svo_number_of_frames: function!(b"sl_get_svo_number_of_frames"),
            set_svo_position: function!(b"sl_set_svo_position"),
            grab: function!(b"sl_grab"),
            get_image_timestamp: function!(b"sl_get_image_timestamp"),
            get_width: function!(b"sl_get_width"),
            get_height: function!(b"sl_get_height"),
            get_camera_fps: function!(b"sl_get_camera_fps"),
            mat_create_new: function!(b"sl_mat_create_new"),
            retrieve_image: function!(b"sl_retrieve_image"),
            mat_get_ptr: function!(b"sl_mat_get_ptr"),
            mat_get_step_bytes: function!(b"sl_mat_get_step_bytes"),
            mat_free: function!(b"sl_mat_free"),
            close_camera: function!(b"sl_close_camera"),
            _library: library,
        })
    }

    pub fn version(&self) -> String {
        version_text(self.get_sdk_version).unwrap_or_default()
    }
}

fn version_text(get: unsafe extern "C" fn() -> *mut c_char) -> Option<String> {
    // SAFETY: the function takes nothing and gives a string that the library keeps, or null.
    let text = unsafe { get() };
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and a C string by the wrapper's contract.
    Some(
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    )
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// One open recording.
pub struct Camera<'a> {
    api: &'a Api,
    id: c_int,
    mat: *mut c_void,
    pub width: usize,
    pub height: usize,
}

// SAFETY: the wrapper keeps its cameras in a table by id and binds none to a thread; a `Camera` is
// used by one thread at a time, for it is not `Sync`.
unsafe impl Send for Camera<'_> {}

impl<'a> Camera<'a> {
    /// Opens the recording at `path` as camera `id`, with the calibrations in `settings` where
    /// that is given.
    ///
    /// # Errors
    ///
    /// What the SDK says, in words.
    pub fn open(
        api: &'a Api,
        id: i32,
        path: &Path,
        settings: Option<&Path>,
    ) -> Result<Self, String> {
        use std::os::unix::ffi::OsStrExt;
        let text = |path: &Path| {
            CString::new(path.as_os_str().as_bytes()).map_err(|_| "a NUL in a path".to_owned())
        };
        let svo = text(path)?;
        let settings = text(settings.unwrap_or(Path::new("")))?;
        let (svo, settings, empty) = (svo.as_ptr(), settings.as_ptr(), c"".as_ptr());
        let mut parameters = init_parameters();
        let init: *mut c_void = parameters.0.as_mut_ptr().cast();
        // SAFETY: takes a number; no camera of this id is open, for ids are given out once.
        if !unsafe { (api.create_camera)(id) } {
            return Err("it cannot make a camera".to_owned());
        }
        // SAFETY: `init` points at 256 bytes, more than any version's structure has, and the
        // strings live until the end of this function; the wrapper keeps copies.
        let status = unsafe {
            match api.open {
                Open::FromFile(open) => open(id, init, svo, empty, settings, empty),
                Open::Older(open) => open(id, init, 0, svo, empty, 0, empty, settings, empty),
            }
        };
        // The camera exists from here on: an early return closes it.
        let mut camera = Self {
            api,
            id,
            mat: std::ptr::null_mut(),
            width: 0,
            height: 0,
        };
        if status > 0 {
            return Err(error_text(status));
        }
        // SAFETY: the camera is open.
        let (width, height) = unsafe { ((api.get_width)(id), (api.get_height)(id)) };
        let sound = |side: c_int| (1..=LARGEST_SIDE).contains(&side);
        if !sound(width) || !sound(height) {
            return Err(format!("it gives a picture size of {width} x {height}"));
        }
        // SAFETY: plain numbers.
        camera.mat = unsafe { (api.mat_create_new)(width, height, MAT_U8_C4, MEM_CPU) };
        if camera.mat.is_null() {
            return Err("it has no memory for a picture".to_owned());
        }
        (camera.width, camera.height) = (width as usize, height as usize);
        Ok(camera)
    }

    pub fn frames(&self) -> Option<usize> {
        // SAFETY: the camera is open until drop; so in the functions below.
        usize::try_from(unsafe { (self.api.get_svo_number_of_frames)(self.id) }).ok()
    }

    pub fn fps(&self) -> f32 {
        // SAFETY: see `frames`.
        unsafe { (self.api.get_camera_fps)(self.id) }
    }

    /// The next grab gives frame `index`.
    pub fn seek(&mut self, index: usize) {
        // SAFETY: see `frames`; a position past the end is the SDK's to refuse.
        unsafe { (self.api.set_svo_position)(self.id, index.try_into().unwrap_or(c_int::MAX)) };
    }

    /// Takes the next frame and gives its timestamp in ns; `None` at the end of the file.
    ///
    /// # Errors
    ///
    /// What the SDK says, in words. Its warnings (negative) are no errors.
    pub fn grab(&mut self) -> Result<Option<u64>, String> {
        let mut parameters = runtime_parameters();
        let runtime: *mut c_void = parameters.0.as_mut_ptr().cast();
        // SAFETY: `runtime` points at more bytes than the structure has.
        let status = unsafe { (self.api.grab)(self.id, runtime) };
        match status {
            END_OF_SVO => Ok(None),
            status if status > 0 => Err(error_text(status)),
            // SAFETY: see `frames`.
            _ => Ok(Some(unsafe { (self.api.get_image_timestamp)(self.id) })),
        }
    }

    /// The rectified picture of an eye of the frame grabbed last, as BGRA rows without padding.
    ///
    /// # Errors
    ///
    /// What the SDK says, in words.
    pub fn picture(&mut self, right: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let view = if right { VIEW_RIGHT } else { VIEW_LEFT };
        let (w, h) = (self.width as c_int, self.height as c_int);
        let stream = std::ptr::null_mut();
        // SAFETY: the matrix was made for this size and lives until drop; the last argument does
        // not exist before 5.0 and is harmless there (it is passed in a register).
        let status =
            unsafe { (self.api.retrieve_image)(self.id, self.mat, view, MEM_CPU, w, h, stream) };
        if status > 0 {
            return Err(error_text(status));
        }
        // SAFETY: the matrix lives until drop.
        let (start, step) = unsafe {
            (
                (self.api.mat_get_ptr)(self.mat, MEM_CPU)
                    .cast::<u8>()
                    .cast_const(),
                (self.api.mat_get_step_bytes)(self.mat, MEM_CPU),
            )
        };
        let row = self.width * 4;
        let step = usize::try_from(step).unwrap_or(0);
        if start.is_null() || step < row {
            return Err(format!("a picture with rows of {step} bytes"));
        }
        out.clear();
        for y in 0..self.height {
            // SAFETY: the matrix has `height` rows of `step` bytes, at least `row` of them used,
            // and nothing writes to it between `retrieve_image` calls, which need `&mut self`.
            out.extend(unsafe { std::slice::from_raw_parts(start.add(y * step), row) });
        }
        Ok(())
    }
}

impl Drop for Camera<'_> {
    fn drop(&mut self) {
        // SAFETY: both were made in `open` and are freed once, the matrix first.
        unsafe {
            if !self.mat.is_null() {
                (self.api.mat_free)(self.mat, MEM_CPU);
            }
            (self.api.close_camera)(self.id);
        }
    }
}

/// Room for a structure of the wrapper, aligned for its widest field.
#[repr(C, align(8))]
struct Block<const N: usize>([u8; N]);

impl<const N: usize> Block<N> {
    fn put<const M: usize>(&mut self, at: usize, bytes: [u8; M]) {
        self.0[at..at + M].copy_from_slice(&bytes);
    }
}

/// `SL_InitParameters`: 84 bytes in 5.x and fewer before, every field at the same place; the rest
/// is zero.
fn init_parameters() -> Block<256> {
    let mut block = Block([0; 256]);
    block.put(0, 1_i32.to_le_bytes()); // input_type: SVO
    block.put(20, [1]); // camera_disable_self_calib: repeatable pixels
    block.put(32, (-1.0_f32).to_le_bytes()); // depth_minimum_distance
    block.put(36, (-1.0_f32).to_le_bytes()); // depth_maximum_distance
    block.put(48, (-1_i32).to_le_bytes()); // sdk_gpu_id: any
    block.put(57, [1]); // enable_image_enhancement
    block.put(60, 5.0_f32.to_le_bytes()); // open_timeout_sec
    block
}

/// `SL_RuntimeParameters`: 20 bytes; without depth.
fn runtime_parameters() -> Block<64> {
    let mut block = Block([0; 64]);
    block.put(0, 1_i32.to_le_bytes()); // reference_frame: camera
    block.put(8, 95_i32.to_le_bytes()); // confidence_threshold
    block.put(12, 100_i32.to_le_bytes()); // texture_confidence_threshold
    block.put(16, [1]); // remove_saturated_areas
    block
}

fn error_text(status: c_int) -> String {
    let text = match status {
        2 => "no NVIDIA GPU that it can use",
        9 => "the calibration file of the camera is not available",
        11 => "not a recording that it can read",
        _ => return format!("error {status}"),
    };
    format!("{text} (error {status})")
}

const NAMES: [&str; 2] = ["libsl_zed_c.so", "/usr/local/zed/lib/libsl_zed_c.so"];
const VIEW_LEFT: c_int = 0;
const VIEW_RIGHT: c_int = 1;
const MEM_CPU: c_int = 0;
const MAT_U8_C4: c_int = 7;
const END_OF_SVO: c_int = 14;
const LARGEST_SIDE: c_int = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_two_numbers_at_least() {
        assert_eq!(parse_version("5.2.0"), Some((5, 2)));
        assert_eq!(parse_version("4.0"), Some((4, 0)));
        assert_eq!(parse_version("five"), None);
    }

    /// Contract section 8, field by field.
    #[test]
    fn the_structures_have_their_fields_in_place() {
        let init = init_parameters().0;
        let word = |at: usize| i32::from_le_bytes(init[at..at + 4].try_into().unwrap());
        let real = |at: usize| f32::from_le_bytes(init[at..at + 4].try_into().unwrap());
        assert_eq!(
            [0, 4, 8, 12, 16, 24, 28, 40, 44, 48, 52].map(word),
            [1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0]
        );
        assert_eq!(
            [20, 21, 22, 56, 57, 64, 72].map(|at| init[at]),
            [1, 0, 0, 0, 1, 0, 0]
        );
        assert_eq!([32, 36, 60, 68].map(real), [-1.0, -1.0, 5.0, 0.0]);
        let runtime = runtime_parameters().0;
        let word = |at: usize| i32::from_le_bytes(runtime[at..at + 4].try_into().unwrap());
        assert_eq!(
            ([0, 8, 12].map(word), runtime[4], runtime[5], runtime[16]),
            ([1, 95, 100], 0, 0, 1)
        );
    }
}
