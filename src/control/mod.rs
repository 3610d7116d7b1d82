//! The producer's control plane over NATS (contract sections 5 and 6): status, requests, bodies.

pub mod body;
pub mod messages;
