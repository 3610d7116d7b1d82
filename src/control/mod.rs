//! The control plane over NATS (contract sections 5 and 6): the producer's status, requests and
//! bodies, and a service of our own.
//!
//! | file | is |
//! | --- | --- |
//! | [`server`] | which server, with which credentials |
//! | [`client`] | NATS itself; the only file that knows the client crate |
//! | [`messages`], [`body`] | the producer's bytes |
//! | [`words`] | their values, for people |
//! | [`plane`] | the thread beside a running stream |
//! | [`service`], [`micro`] | what a running stream serves, and the protocol it announces itself in |
//! | [`pose`], [`jsonl`] | bodies on their way into the stream or a file |
//! | [`discover`] | who is there |
//!
//! Nothing here is waited for: a stream starts, runs and stops the same without a server.

pub mod body;
#[allow(deprecated)]
// the whole crate is; the project's choice until its successor runs without an async runtime
pub mod client;
pub mod discover;
#[doc(hidden)]
pub mod fuzz;
pub mod jsonl;
pub mod messages;
pub mod micro;
pub mod plane;
pub mod pose;
pub mod server;
pub mod service;
pub mod words;

/// Whether a key can stand in a subject: one token, without wildcards (NATS protocol, "subject
/// names"). A segment's name may hold anything.
pub fn is_subject_token(key: &str) -> bool {
    !key.is_empty()
        && key
            .bytes()
            .all(|c| c.is_ascii_graphic() && !b"*>.".contains(&c))
}

pub use client::{Client, ControlError};
pub use server::ServerConfig;
