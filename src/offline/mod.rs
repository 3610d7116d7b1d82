//! SVO2 recordings to MP4: a reader, a decoder, the rectified view, and a file writer around the
//! same encoders as the streamer's.

pub mod calibration;
pub mod decode;
pub mod picture;
pub mod rectify;
pub mod svo;
