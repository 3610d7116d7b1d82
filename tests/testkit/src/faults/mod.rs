//! The fault suite: the streamer as a black box, one fault after the other, each with a control that shows that its
//! check can fail.
//!
//! | module | is |
//! | --- | --- |
//! | [`code`] | pictures that carry their number in every row, so that any mixture shows |
//! | [`case`] | one scenario's run: folder, checks, numbers |
//! | [`process`] | the streamer as a child, with its memory and descriptors over time |
//! | [`probe`] | an RTP receiver that remembers what came when, and has it decoded |
//! | [`feed`], [`rig`] | a producer at a pace; producer, streamer and receiver together |
//! | [`relay`] | a network that loses, doubles, reorders and delays |
//! | [`scenarios`] | the faults |
//! | [`suite`], [`evidence`] | the order of a run, and what is kept of it |
//! | [`timeline`], [`plot`] | memory, descriptors, latency and drops over time, as CSV and as a picture |
//! | [`leftovers`] | what must not stay behind when the suite is stopped |

pub mod case;
pub mod code;
pub mod evidence;
pub mod feed;
pub mod leftovers;
pub mod plot;
pub mod probe;
pub mod process;
pub mod relay;
pub mod rig;
pub mod scenarios;
pub mod suite;
pub mod timeline;
