//! Access units out: the locking part of a session.

use std::time::Duration;

use nvenc_sys::*;

use crate::config::config;
use crate::report::stats;
use crate::rules::{self, Versioned};
use crate::session::{OutputState, Session, refuse};
use crate::validate::{self, all_zero};

impl Session {
    pub fn lock(&mut self, lock: &mut NV_ENC_LOCK_BITSTREAM) -> Result<(), u32> {
        let call = "nvEncLockBitstream";
        let started = std::time::Instant::now();
        validate::version(call, Versioned::Lock, lock.version, self.api)?;
        all_zero!(call, lock, reserved1, reserved2);
        let handle = lock.outputBitstream as usize;
        let Some(state) = self.outputs.get(&handle).map(|output| output.state) else {
            return refuse("lock", call, rules::INVALID_PARAM, "unknown output");
        };
        match state {
            OutputState::Ready => (),
            OutputState::Locked => {
                return refuse("lock", call, rules::INVALID_CALL, "locked already");
            }
            OutputState::Submitted => {
                return refuse(
                    "lock",
                    call,
                    rules::INVALID_PARAM,
                    "the encoder wants more input first",
                );
            }
            OutputState::Free => {
                return refuse(
                    "lock",
                    call,
                    rules::INVALID_PARAM,
                    "nothing was submitted with it",
                );
            }
        }
        if self.submitted.front() != Some(&handle) {
            return refuse("lock", call, rules::INVALID_PARAM, "out of order");
        }
        if config().encode_ms > 0 {
            std::thread::sleep(Duration::from_millis(config().encode_ms));
        }
        self.submitted.pop_front();
        let Some(output) = self.outputs.get_mut(&handle) else {
            return Err(rules::INVALID_PARAM);
        };
        output.state = OutputState::Locked;
        lock.bitstreamBufferPtr = output.data.as_mut_ptr().cast();
        lock.bitstreamSizeInBytes = output.data.len() as u32;
        lock.outputTimeStamp = output.timestamp;
        lock.pictureType = NV_ENC_PIC_TYPE(output.kind);
        lock.pictureStruct = NV_ENC_PIC_STRUCT(1);
        lock.numSlices = 1;
        let (bytes, timestamp) = (output.data.len() as u64, output.timestamp);
        if let Some(map) = self
            .maps
            .values_mut()
            .find(|map| map.picture == Some(timestamp))
        {
            map.picture = None;
        }
        let mut stats = stats();
        stats.access_units_out += u64::from(bytes > 0);
        stats.bytes_out += bytes;
        stats.largest_unit = stats.largest_unit.max(bytes);
        stats.lock_us_max = stats.lock_us_max.max(started.elapsed().as_micros() as u64);
        Ok(())
    }

    pub fn unlock(&mut self, handle: usize) -> Result<(), u32> {
        let call = "nvEncUnlockBitstream";
        match self.outputs.get_mut(&handle) {
            Some(output) if output.state == OutputState::Locked => {
                // Whoever still reads it gets garbage, as from a driver that uses the buffer again.
                output.data.fill(0xDD);
                output.state = OutputState::Free;
                Ok(())
            }
            Some(_) => refuse("unlock", call, rules::INVALID_CALL, "not locked"),
            None => refuse("unlock", call, rules::INVALID_PARAM, "unknown output"),
        }
    }
}
