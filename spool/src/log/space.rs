//! Prepared segments: asked for ahead, so that no append ever waits for a file to be made, and held back in part, so
//! that outcomes find room on a full disk. Not for freeing segments: see `reclaim`.

use super::config::PREPARE_RETRY_MS;
use super::{Call, Log, LogEvent, LogFull};
use crate::disk::{DiskError, DiskOp};
use crate::segment::{SEQUENCE_MAX, SegmentId};
use bytes::Bytes;

impl Log {
    /// Asks for segments until enough are prepared or being prepared.
    pub(super) fn prepare_more(&mut self) {
        if self.prepare_retry_ms.is_some_and(|at| self.now_ms < at) {
            return;
        }
        self.prepare_retry_ms = None;
        self.prepare_found_full = false;
        // One more than the spares: it is held back for outcomes.
        while self.ready.len() + self.preparing < self.config.spares + 1 {
            if self.next_sequence > SEQUENCE_MAX {
                self.prepare_retry_ms = Some(u64::MAX);
                self.event(LogEvent::Trouble(format!(
                    "log {:02x} has used up its segment numbers: start over with an empty spool directory",
                    self.config.log
                )));
                return;
            }
            let segment = SegmentId::new(self.config.log, self.next_sequence);
            self.next_sequence += 1;
            self.preparing += 1;
            let op = self.call(Call::Prepare(segment));
            self.ops.push_back(DiskOp::Prepare { op, segment });
        }
    }

    /// Why there are too few prepared segments.
    pub(super) fn why_no_segment(&self) -> LogFull {
        match self.prepare_retry_ms {
            // Of several that were prepared together the last may have found a spare though the disk is full.
            _ if self.disk_full || self.prepare_found_full => LogFull::NoSpace,
            Some(u64::MAX) => LogFull::NoSpace,
            Some(_) => LogFull::Failing,
            None => LogFull::Behind,
        }
    }

    /// Whether segments are on their way: they are being prepared, or will be in a moment, after a first failure. After a
    /// second one nobody is to wait for a third.
    pub(super) fn segments_are_coming(&self) -> bool {
        let retry = self.prepare_retry_ms.is_some_and(|at| at != u64::MAX);
        let first = self.prepare_failures <= 1 && !self.prepare_found_full;
        !self.disk_full && (self.preparing > 0 || (retry && first))
    }

    /// A segment is prepared, or cannot be.
    pub(super) fn prepared(&mut self, segment: SegmentId, result: Result<Bytes, DiskError>) {
        self.preparing = self.preparing.saturating_sub(1);
        match result {
            Ok(_) => {
                self.prepare_failures = 0;
                if self.disk_full {
                    self.disk_full = false;
                    self.event(LogEvent::SpaceBack);
                }
                // Segments are filled in the order of their sequences, so one that comes late is given back.
                let newest = self.open.back().map(|open| open.id).max(self.last.map(|(id, _)| id));
                if newest.is_some_and(|newest| segment < newest) {
                    self.keep_unused(segment);
                } else {
                    self.ready.insert(segment);
                }
            }
            Err(error) => {
                // Several are prepared at a time: those that fail together count once.
                self.prepare_found_full |= error == DiskError::NoSpace;
                self.prepare_failures += u32::from(self.prepare_retry_ms.is_none());
                self.prepare_retry_ms = Some(self.now_ms + PREPARE_RETRY_MS);
                if error != DiskError::NoSpace {
                    self.event(LogEvent::Trouble(format!("segment {segment} could not be prepared: {error}")));
                } else if !self.disk_full {
                    self.disk_full = true;
                    self.event(LogEvent::SpaceLow);
                }
            }
        }
    }
}
