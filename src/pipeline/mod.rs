//! 9. Assembly: builds the line, starts it, waits for its end.

pub mod keyframe;
pub mod stop;
