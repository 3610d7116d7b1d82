//! Pictures in, access units out: the encoding part of a session.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nvenc_sys::*;

use crate::codec::{I420, NalKind, kind_of, nal_units};
use crate::config::{HangIn, Silent, config};
use crate::planes::planes;
use crate::report::{Class, OwnWork, stats, violation};
use crate::rules::{self, Versioned};
use crate::session::{Init, OutputState, Pending, Session, refuse};
use crate::validate::{self, all_zero};

const CALL: &str = "nvEncEncodePicture";

/// Never returns. Nothing is locked meanwhile, so that other threads go on.
pub fn hang(at: HangIn, picture: u64) {
    let due = |from| {
        let number = config().fault_number_so_far(picture);
        number.is_some_and(|n| n >= from)
    };
    if config()
        .hang
        .is_some_and(|(which, from)| which == at && due(from))
    {
        crate::report::write();
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

impl Session {
    pub fn encode(&mut self, params: &NV_ENC_PIC_PARAMS) -> Result<(), u32> {
        let _work = OwnWork::begin();
        validate::version(CALL, Versioned::Picture, params.version, self.api)?;
        let init = self.init(CALL)?;
        all_zero!(CALL, params, reserved1, reserved2, reserved3, reserved4);
        validate::reserved(
            CALL,
            "PIC_PARAMS.reservedBitFields",
            params.reservedBitFields == 0,
        );
        if params.encodePicFlags & !0xF != 0 {
            return refuse(
                "picture",
                CALL,
                rules::INVALID_PARAM,
                format!("flags {:#x}", params.encodePicFlags),
            );
        }
        if params.encodePicFlags & rules::FLAG_EOS != 0 {
            return self.end(params, init);
        }
        let number = self.pictures;
        let fault = config().fault_number(number);
        if config()
            .device_lost
            .is_some_and(|at| fault.is_some_and(|n| n >= at))
        {
            crate::cuda::lose_device();
            return Err(rules::DEVICE_NOT_EXIST);
        }
        if let Some((status, at)) = config().encode_status
            && Some(at) == fault
        {
            return Err(status);
        }
        if let Some((times, at)) = config().busy
            && Some(at) == fault
        {
            let left = self.busy_left.get_or_insert(times);
            if *left > 0 {
                *left -= 1;
                return Err(rules::BUSY);
            }
        }
        self.check_picture(params, init)?;
        let init = Init {
            coded_before: !self.first_coded.is_empty(),
            ..init
        };
        let picture = self.read_input(params, init)?;
        let output = params.outputBitstream as usize;
        self.accept(params, output);
        if let Some((Silent::NeedMore, from)) = config().silent
            && fault.is_some_and(|n| n >= from)
        {
            return Err(rules::NEED_MORE_INPUT);
        }
        self.schedule(params, picture, init)
    }

    fn end(&mut self, params: &NV_ENC_PIC_PARAMS, init: Init) -> Result<(), u32> {
        if !params.inputBuffer.is_null() || !params.outputBitstream.is_null() {
            return refuse(
                "picture",
                CALL,
                rules::INVALID_PARAM,
                "an end of stream with buffers",
            );
        }
        self.ended = true;
        self.finish_group(init)?;
        // After an end of stream every output may be locked, also of a driver that gave nothing.
        for output in self.outputs.values_mut() {
            if output.state == OutputState::Submitted {
                output.state = OutputState::Ready;
                output.data.clear();
            }
        }
        Ok(())
    }

    fn check_picture(&mut self, params: &NV_ENC_PIC_PARAMS, init: Init) -> Result<(), u32> {
        let number = self.pictures;
        if self.ended {
            violation(
                Class::P,
                "picture-after-eos",
                CALL,
                Some(number),
                String::new(),
            );
        }
        if params.inputBuffer.is_null() || params.outputBitstream.is_null() {
            return refuse("picture", CALL, rules::INVALID_PTR, "no input or no output");
        }
        if params.inputWidth as usize != init.width || params.inputHeight as usize != init.height {
            return refuse(
                "picture",
                CALL,
                rules::INVALID_PARAM,
                format!("{}x{}", params.inputWidth, params.inputHeight),
            );
        }
        if params.pictureStruct.0 != 1 {
            return refuse(
                "picture",
                CALL,
                rules::INVALID_PARAM,
                format!("pictureStruct {}", params.pictureStruct.0),
            );
        }
        match self.outputs.get(&(params.outputBitstream as usize)) {
            None => return refuse("output", CALL, rules::INVALID_PARAM, "unknown output"),
            Some(output) if output.state != OutputState::Free => {
                return refuse(
                    "output",
                    CALL,
                    rules::INVALID_PARAM,
                    format!("the output is {:?}", output.state),
                );
            }
            Some(_) => (),
        }
        if self
            .last_timestamp
            .is_some_and(|last| params.inputTimeStamp <= last)
        {
            violation(
                Class::P,
                "timestamp",
                CALL,
                Some(number),
                format!("{} after {:?}", params.inputTimeStamp, self.last_timestamp),
            );
        }
        Ok(())
    }

    /// The picture in planes, after the checks on where it lies.
    fn read_input(&mut self, params: &NV_ENC_PIC_PARAMS, init: Init) -> Result<I420, u32> {
        let number = self.pictures;
        let handle = params.inputBuffer as usize;
        if let Some(input) = self.inputs.get(&handle) {
            if input.locked {
                return refuse(
                    "input",
                    CALL,
                    rules::INVALID_PARAM,
                    "the input buffer is locked",
                );
            }
            if params.bufferFmt.0 != input.format {
                return refuse(
                    "input",
                    CALL,
                    rules::INVALID_PARAM,
                    format!("bufferFmt {:#x}", params.bufferFmt.0),
                );
            }
            return Ok(planes(
                input.data.as_ptr() as usize,
                input.pitch,
                input.format,
                init,
            ));
        }
        let Some(map) = self.maps.get(&handle) else {
            return refuse("input", CALL, rules::NOT_MAPPED, "the input is not mapped");
        };
        if map.picture.is_some() {
            violation(
                Class::P,
                "input-in-use",
                CALL,
                Some(number),
                "the mapped input is in another picture".to_owned(),
            );
        }
        let Some(resource) = self.resources.get(&map.resource) else {
            return refuse(
                "input",
                CALL,
                rules::NOT_REGISTERED,
                "the input is not registered",
            );
        };
        if params.bufferFmt.0 != resource.format {
            return refuse(
                "input",
                CALL,
                rules::INVALID_PARAM,
                format!("bufferFmt {:#x}", params.bufferFmt.0),
            );
        }
        if params.inputPitch as usize != resource.pitch {
            return refuse(
                "input",
                CALL,
                rules::INVALID_PARAM,
                format!("inputPitch {}", params.inputPitch),
            );
        }
        // The encoder runs behind what is queued on its stream, and behind nothing else.
        if let Some((_, stream)) = self.stream
            && let Some(stream) = crate::cuda::stream_of(stream)
        {
            stream.wait();
        }
        if resource.block.pending.load(Ordering::Acquire) > 0 {
            violation(
                Class::P,
                "writes-pending",
                CALL,
                Some(number),
                "the surface is still being written".to_owned(),
            );
        }
        if !resource.block.zones_are_whole() {
            violation(
                Class::P,
                "red-zone",
                CALL,
                Some(number),
                "around the surface".to_owned(),
            );
        }
        Ok(planes(
            resource.address,
            resource.pitch,
            resource.format,
            init,
        ))
    }

    fn accept(&mut self, params: &NV_ENC_PIC_PARAMS, output: usize) {
        if let Some(map) = self.maps.get_mut(&(params.inputBuffer as usize)) {
            map.picture = Some(params.inputTimeStamp);
        }
        if let Some(output) = self.outputs.get_mut(&output) {
            output.state = OutputState::Submitted;
            output.timestamp = params.inputTimeStamp;
        }
        self.submitted.push_back(output);
        self.last_timestamp = Some(params.inputTimeStamp);
        self.pictures += 1;
        let mut stats = stats();
        stats.pictures_in += 1;
        stats.ring_peak = stats.ring_peak.max(self.submitted.len() as u64);
    }

    /// Decides the picture's place and type, and codes what is complete.
    fn schedule(
        &mut self,
        params: &NV_ENC_PIC_PARAMS,
        picture: I420,
        init: Init,
    ) -> Result<(), u32> {
        let forced = params.encodePicFlags & rules::FLAG_FORCE_IDR != 0;
        let first = self.pictures == 1;
        let due = init.gop != u32::MAX && self.since_idr >= init.gop;
        if forced || first || due {
            self.finish_group(init)?;
            self.since_idr = 1;
            let mut stats = stats();
            stats.forced_idr += u64::from(forced && !first && !due);
            if stats.idr.len() < 1000 {
                stats.idr.push(self.pictures - 1);
            }
            drop(stats);
            let sets =
                params.encodePicFlags & rules::FLAG_SPSPPS != 0 || init.repeat_headers || first;
            let sei = sei_payloads(params, init.hevc);
            return self.code(
                params.inputTimeStamp,
                picture,
                rules::TYPE_IDR,
                sets,
                &sei,
                init,
            );
        }
        self.since_idr += 1;
        if init.interval == 1 {
            let sei = sei_payloads(params, init.hevc);
            return self.code(
                params.inputTimeStamp,
                picture,
                rules::TYPE_P,
                false,
                &sei,
                init,
            );
        }
        self.pending.push(Pending {
            timestamp: params.inputTimeStamp,
            picture,
        });
        if self.pending.len() < init.interval {
            return Err(rules::NEED_MORE_INPUT);
        }
        self.finish_group(init)
    }

    /// Codes what waits: the last picture first, then those before it in order.
    fn finish_group(&mut self, init: Init) -> Result<(), u32> {
        let mut group = std::mem::take(&mut self.pending);
        if let Some(last) = group.pop() {
            self.code(
                last.timestamp,
                last.picture,
                rules::TYPE_P,
                false,
                &[],
                init,
            )?;
        }
        for picture in group {
            self.code(
                picture.timestamp,
                picture.picture,
                rules::TYPE_B,
                false,
                &[],
                init,
            )?;
        }
        Ok(())
    }

    /// Codes one picture into the next output that was handed in.
    fn code(
        &mut self,
        timestamp: u64,
        mut picture: I420,
        kind: u32,
        sets: bool,
        sei: &[u8],
        init: Init,
    ) -> Result<(), u32> {
        let mut coded = Vec::new();
        let idr = kind == rules::TYPE_IDR;
        let codec = self.codec.as_mut().ok_or(rules::NOT_INITIALIZED)?;
        if config().idle && !self.first_coded.is_empty() {
            coded.clone_from(&self.first_coded);
        } else if let Err(error) = codec.encode(&mut picture, idr, &mut coded) {
            eprintln!("nvenc-emu: {error}");
            return Err(rules::GENERIC);
        }
        if config().idle && self.first_coded.is_empty() {
            self.first_coded.clone_from(&coded);
        }
        let outputs = &self.outputs;
        let waits = |handle: &&usize| {
            outputs
                .get(handle)
                .is_some_and(|output| output.state == OutputState::Submitted)
        };
        let next = self.submitted.iter().find(waits).copied();
        let Some(output) = next.and_then(|handle| self.outputs.get_mut(&handle)) else {
            return Err(rules::GENERIC);
        };
        let fault = config().fault_number_so_far(timestamp);
        let silent = config()
            .silent
            .is_some_and(|(how, from)| how == Silent::Zero && fault.is_some_and(|n| n >= from));
        output.data.clear();
        if !silent {
            write_unit(
                &coded,
                sets && !init.disable_headers,
                sei,
                init,
                &mut output.data,
            );
        }
        output.state = OutputState::Ready;
        output.timestamp = timestamp;
        output.kind = kind;
        Ok(())
    }
}

/// Filters and completes an access unit: delimiter, parameter sets or not, messages before the picture.
fn write_unit(coded: &[u8], sets: bool, sei: &[u8], init: Init, out: &mut Vec<u8>) {
    let start = [0, 0, 0, 1];
    if init.aud {
        out.extend_from_slice(&start);
        out.extend_from_slice(if init.hevc {
            &[0x46, 0x01, 0x50]
        } else {
            &[0x09, 0xF0]
        });
    }
    let mut sei = Some(sei).filter(|sei| !sei.is_empty());
    for nal in nal_units(coded) {
        match kind_of(init.hevc, nal) {
            NalKind::ParameterSet if !sets => continue,
            NalKind::Picture => {
                if let Some(sei) = sei.take() {
                    out.extend_from_slice(sei);
                }
            }
            _ => (),
        }
        out.extend_from_slice(&start);
        out.extend_from_slice(nal);
    }
}

/// The client's messages as NAL units with start codes.
fn sei_payloads(params: &NV_ENC_PIC_PARAMS, hevc: bool) -> Vec<u8> {
    // SAFETY: the arm belongs to the codec; the client gives `count` payloads that live over the call.
    let payloads = unsafe {
        let (array, count) = if hevc {
            let arm = &params.codecPicParams.hevcPicParams;
            (arm.seiPayloadArray, arm.seiPayloadArrayCnt)
        } else {
            let arm = &params.codecPicParams.h264PicParams;
            (arm.seiPayloadArray, arm.seiPayloadArrayCnt)
        };
        if array.is_null() || count == 0 {
            return Vec::new();
        }
        std::slice::from_raw_parts(array, count as usize)
    };
    let mut out = Vec::new();
    for payload in payloads {
        // SAFETY: as above.
        let bytes =
            unsafe { std::slice::from_raw_parts(payload.payload, payload.payloadSize as usize) };
        let mut body = Vec::new();
        let mut number = |mut value: u32| {
            while value >= 255 {
                body.push(255);
                value -= 255;
            }
            body.push(value as u8);
        };
        number(payload.payloadType);
        number(payload.payloadSize);
        body.extend_from_slice(bytes);
        body.push(0x80);
        out.extend_from_slice(&[0, 0, 0, 1]);
        out.extend_from_slice(if hevc { &[0x4E, 0x01] } else { &[0x06] });
        let mut zeros = 0;
        for byte in body {
            if zeros == 2 && byte <= 3 {
                out.push(3);
                zeros = 0;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            out.push(byte);
        }
    }
    out
}
