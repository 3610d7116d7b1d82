//! The ZeroMQ subscription to a producer's frame sync (contract section 3).
//!
//! The socket is not set to CONFLATE although only the newest message is acted on: every message
//! is looked at, so that discontinuities inside a backlog are seen and skipped ids counted. The
//! library's own limit of 1000 queued messages bounds that backlog.

use std::time::{Duration, Instant};

use super::SourceError;
use super::contract::SYNC_MAGIC;

/// A SUB socket that connects to a producer, whether it is there yet or not, and again whenever
/// it comes back.
pub struct SyncSubscriber {
    socket: zmq::Socket,
    /// For the next socket: another context would be other threads too.
    context: zmq::Context,
    endpoint: String,
    buffer: [u8; 256],
}

impl SyncSubscriber {
    /// # Errors
    ///
    /// If `endpoint` is no address that ZeroMQ can connect to. An absent peer is none.
    pub fn connect(endpoint: &str) -> Result<Self, SourceError> {
        let context = zmq::Context::new();
        let socket = subscribe(&context, endpoint).map_err(|error| SourceError::Sync {
            endpoint: endpoint.to_owned(),
            reason: match error {
                zmq::Error::EINVAL | zmq::Error::EPROTONOSUPPORT | zmq::Error::ENOCOMPATPROTO => {
                    format!("{error}; write ipc:///path or tcp://host:port")
                }
                _ => error.to_string(),
            },
        })?;
        Ok(Self {
            socket,
            context,
            endpoint: endpoint.to_owned(),
            buffer: [0; 256],
        })
    }

    /// Subscribes again, on a new connection: ZeroMQ makes none by itself after a peer that broke its
    /// protocol, and knows nothing of a path that has another owner by now. What waits is lost.
    /// Without a descriptor for it everything stays as it is.
    pub fn subscribe_anew(&mut self) {
        match subscribe(&self.context, &self.endpoint) {
            Ok(socket) => self.socket = socket,
            Err(error) => log::debug!("{}: no new subscription: {error}", self.endpoint),
        }
    }

    /// Waits for a message until `deadline`; false if there is none.
    ///
    /// # Errors
    ///
    /// If the socket does not work any more.
    pub fn wait(&self, deadline: Instant) -> Result<bool, SourceError> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Up to the next millisecond: rounding down would spin through the last one.
        let millis = (left + Duration::from_micros(999)).as_millis();
        match self
            .socket
            .poll(zmq::POLLIN, i64::try_from(millis).unwrap_or(i64::MAX))
        {
            Ok(ready) => Ok(ready > 0),
            // A signal: whoever handles it has set the stop token, which the caller looks at.
            Err(zmq::Error::EINTR) => Ok(false),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// [`SyncSubscriber::wait`] without sleeping: the core stays awake, and so does this thread.
    ///
    /// # Errors
    ///
    /// As [`SyncSubscriber::wait`].
    pub fn spin(&self, deadline: Instant) -> Result<bool, SourceError> {
        loop {
            let now = Instant::now();
            if self.wait(now)? {
                return Ok(true);
            }
            if now >= deadline {
                return Ok(false);
            }
            // Under `--realtime` another thread of ours that waits for this very core would
            // otherwise wait until a frame comes, which may need that thread.
            std::thread::yield_now();
        }
    }

    /// The next message if there is one; never waits. Bytes behind the first 256 are cut off.
    ///
    /// # Errors
    ///
    /// If the socket does not work any more.
    pub fn receive(&mut self) -> Result<Option<&[u8]>, SourceError> {
        match self.socket.recv_into(&mut self.buffer, zmq::DONTWAIT) {
            Ok(len) => Ok(Some(&self.buffer[..len.min(self.buffer.len())])),
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => Ok(None),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn broken(&self, error: zmq::Error) -> SourceError {
        SourceError::Sync {
            endpoint: self.endpoint.clone(),
            reason: error.to_string(),
        }
    }
}

fn subscribe(context: &zmq::Context, endpoint: &str) -> zmq::Result<zmq::Socket> {
    let socket = context.socket(zmq::SUB)?;
    socket.set_linger(0)?;
    // A frame interval, in place of 100 ms: the first frames after a restart count.
    socket.set_reconnect_ivl(20)?;
    // Whoever sends more loses the connection before memory is taken for it.
    socket.set_maxmsgsize(LONGEST_MESSAGE)?;
    socket.set_subscribe(&[SYNC_MAGIC])?;
    socket.connect(endpoint)?;
    Ok(socket)
}

/// Many times a notice, which has 48 bytes and may grow (contract section 3).
const LONGEST_MESSAGE: i64 = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn spinning_finds_what_waiting_finds() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = format!("ipc://{}/sync", folder.path().display());
        let mut subscriber = SyncSubscriber::connect(&endpoint).unwrap();
        assert!(!subscriber.spin(Instant::now()).unwrap(), "nobody is there");

        let context = zmq::Context::new();
        let publisher = context.socket(zmq::PUB).unwrap();
        publisher.bind(&endpoint).unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        // What is sent before the subscription has arrived is lost.
        loop {
            publisher.send([SYNC_MAGIC, 7].as_slice(), 0).unwrap();
            if subscriber
                .spin(Instant::now() + Duration::from_millis(20))
                .unwrap()
            {
                break;
            }
            assert!(Instant::now() < limit, "nothing came");
        }
        assert_eq!(
            subscriber.receive().unwrap(),
            Some([SYNC_MAGIC, 7].as_slice())
        );
    }
}
