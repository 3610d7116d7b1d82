//! 7. Access units to the wire. Bytes only.
