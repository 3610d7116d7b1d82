//! 7a. Access units to RTP packets, and what goes beside them. Bytes only: no sockets, no clocks,
//! no randomness.
//!
//! | file | document |
//! | --- | --- |
//! | `header` | RTP, RFC 3550 |
//! | `h264` | H.264 over RTP, RFC 6184 |
//! | `h265` | H.265 over RTP, RFC 7798 |
//! | `rtcp` | RFC 3550 section 6, RFC 4585, RFC 5104 |
//! | `sdp` | RFC 8866, with the payload parameters of the two payload formats |

pub mod h264;
pub mod h265;
pub mod header;
pub mod packetizer;
pub mod rtcp;
pub mod sdp;

pub use packetizer::{Packetizer, PacketizerConfig, Packets, RtpPacket};
