//! Bindings to the NVIDIA Video Encoder API, loaded at run time.
