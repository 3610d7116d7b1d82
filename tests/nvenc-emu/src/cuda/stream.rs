//! Streams and events, which are places in streams.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use super::{Handle, cuda, enter, give, need_context, new_handle, stream_of};
use crate::report::{Class, violation};
use crate::stream::{Event, Stream};

exported! {
    cuStreamCreate(stream: *mut Handle, flags: c_uint) {
        if flags > 1 { return 1; }
        new_stream(stream)
    }
    cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, _priority: c_int) {
        if flags > 1 { return 1; }
        new_stream(stream)
    }
    cuStreamQuery(stream: Handle) {
        match stream_of(stream as usize) {
            Some(stream) => if stream.is_idle() { 0 } else { 600 },
            None => 400,
        }
    }
    cuStreamSynchronize(stream: Handle) {
        if stream.is_null() { return 0; }
        match stream_of(stream as usize) {
            Some(stream) => { stream.wait(); 0 }
            None => 400,
        }
    }
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) {
        if flags != 0 { return 1; }
        let Some(event) = cuda().events.get(&(event as usize)).cloned() else { return 400; };
        match stream_of(stream as usize) {
            Some(stream) => { stream.push(move || event.wait()); 0 }
            None => 400,
        }
    }
    cuStreamDestroy_v2(stream: Handle) {
        crate::session::stream_goes(stream as usize);
        let removed = cuda().streams.remove(&(stream as usize));
        match removed {
            Some(stream) => { stream.finish(); 0 }
            None => { violation(Class::E, "stream", "cuStreamDestroy", None, "no such stream".to_owned()); 400 }
        }
    }
    cuEventCreate(event: *mut Handle, flags: c_uint) {
        if flags > 7 || !need_context("cuEventCreate") { return 1; }
        let handle = new_handle();
        cuda().events.insert(handle, Event::default());
        give(event, handle as Handle)
    }
    cuEventRecord(event: Handle, stream: Handle) {
        let ticket = if stream.is_null() { None } else {
            match stream_of(stream as usize) { Some(stream) => Some(stream.ticket()), None => return 400 }
        };
        match cuda().events.get_mut(&(event as usize)) {
            Some(event) => { event.0 = ticket; 0 }
            None => 400,
        }
    }
    cuEventQuery(event: Handle) {
        match cuda().events.get(&(event as usize)) {
            Some(event) => if event.is_done() { 0 } else { 600 },
            None => 400,
        }
    }
    cuEventSynchronize(event: Handle) {
        let Some(event) = cuda().events.get(&(event as usize)).cloned() else { return 400; };
        event.wait();
        0
    }
    cuEventDestroy_v2(event: Handle) {
        if cuda().events.remove(&(event as usize)).is_some() { return 0; }
        violation(Class::E, "event", "cuEventDestroy", None, "no such event".to_owned());
        400
    }
}

/// Queues work; on the default stream it is done at once.
pub(super) fn on_stream(stream: usize, work: impl FnOnce() + Send + 'static) -> c_uint {
    if stream == 0 {
        work();
        return 0;
    }
    match stream_of(stream) {
        Some(stream) => {
            stream.push(work);
            0
        }
        None => {
            violation(
                Class::E,
                "stream",
                "work on a stream",
                None,
                "no such stream".to_owned(),
            );
            400
        }
    }
}

fn new_stream(stream: *mut Handle) -> c_uint {
    if !need_context("cuStreamCreate") {
        return 201;
    }
    let handle = new_handle();
    cuda().streams.insert(handle, Arc::new(Stream::new()));
    give(stream, handle as Handle)
}
