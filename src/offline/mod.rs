//! SVO2 recordings to MP4: a reader, a decoder, the rectified view, and a file writer around the
//! same encoders as the streamer's.

pub mod calibration;
pub mod clock;
pub mod colour;
pub mod convert;
pub mod decode;
mod decoding;
pub mod encode;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod grid;
pub mod input;
pub mod mp4;
pub mod output;
pub mod overlay;
pub mod picture;
pub mod progress;
pub mod rectify;
pub mod scale;
pub mod sdk;
pub mod svo;
#[cfg(test)]
#[path = "../../tests/common/svo_writer.rs"]
mod svo_writer;
pub mod timeline;
pub mod view;
