//! Access units of any kind to video messages, for the fuzz checks.

use std::time::Duration;

use crate::bitstream::AccessUnit;
use crate::flv::Packaging;
use crate::rtmp::PublishSession;
use crate::rtmp::handshake::BLOCK;

use super::feed::Feed;
use super::{HandshakeForm, PublishConfig, RtmpSinkConfig};

/// A session whose messages nobody sends.
pub struct Messages {
    feed: Feed,
    session: PublishSession,
    config: RtmpSinkConfig,
}

impl Messages {
    pub fn new(packaging: Packaging) -> Self {
        let url = "rtmp://fuzz.example/app/key".parse();
        let config = RtmpSinkConfig::new(url.expect("a fixed address"), packaging);
        let publish = PublishConfig {
            url: config.url.clone(),
            handshake: HandshakeForm::Simple,
            enhanced: true,
            chunk_size: config.chunk_size,
        };
        Self {
            feed: Feed::default(),
            session: PublishSession::new(publish, &[7; BLOCK], Duration::ZERO),
            config,
        }
    }

    /// The body of `unit`'s message, if it becomes one.
    ///
    /// # Panics
    ///
    /// If the body is not as long as it was announced, or longer than a message can be.
    pub fn body(&mut self, unit: &AccessUnit) -> Option<Vec<u8>> {
        let _ = self.session.take_output();
        let picture = self
            .feed
            .picture(unit, &self.config, &mut self.session)
            .ok()?;
        let body: Vec<u8> = self.feed.body(&picture, unit).flatten().copied().collect();
        assert_eq!(body.len(), picture.len as usize);
        assert!(picture.len < 1 << 24);
        Some(body)
    }
}
