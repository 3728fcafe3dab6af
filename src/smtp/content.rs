//! The part of a session that takes content: DATA and BDAT (RFC 5321 4.1.1.4, RFC 3030).
//!
//! Not here: what counts as the end of content and which octets are refused (data.rs). Content that must not be
//! accepted is skipped to its true end before the refusal is given, so that none of it is ever read as commands.

use crate::clock::{Instant, Now};
use crate::reply::Reply;
use crate::smtp::data::{Fault, Framing, Scanner};
use crate::smtp::replies;
use crate::smtp::server::{Phase, Session, Transaction, Transactions};
use std::io::Write;

impl Session {
    pub(super) fn begin_content(&mut self, framing: Framing, now: Now) {
        self.transaction.scanner = Some(Scanner::new(framing, self.config.bare_newlines));
        self.content_deadline = now.instant.after(self.config.message_timeout);
    }

    /// RFC 3030 2: the octets behind BDAT are taken whatever the reply will be, and the reply comes behind them.
    pub(super) fn bdat<T: Transactions>(
        &mut self,
        octets: u64,
        last: bool,
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        if !self.config.chunking {
            return Err(replies::NOT_IMPLEMENTED);
        }
        if octets == u64::MAX {
            replies::CHUNK_TOO_BIG.write_to(out);
            self.phase = Phase::Closed;
            return Ok(());
        }
        if let Err(reply) = self.check_recipients() {
            self.refusal = Some(reply);
            self.content_deadline = now.instant.after(self.config.message_timeout);
        } else {
            if self.transaction.scanner.is_none() {
                let begun = owner.begin_content(now);
                self.begin_content(Framing::Counted, now);
                self.skip_if(begun, owner);
            }
            let fits = octets <= self.transaction.max_octets - self.transaction.octets;
            self.skip_if(if fits { Ok(()) } else { Err(replies::TOO_BIG) }, owner);
        }
        self.phase = Phase::Chunk { octets, left: octets, last };
        if octets == 0 {
            self.take_chunk(&[], now, owner, out);
        }
        Ok(())
    }

    /// The first refusal ends the transaction for the owner; for the client it ends with the content.
    fn skip_if<T: Transactions>(&mut self, result: Result<(), Reply>, owner: &mut T) {
        if let Err(reply) = result
            && self.refusal.is_none()
        {
            owner.abort();
            self.refusal = Some(reply);
        }
    }

    pub(super) fn take_data<T: Transactions>(
        &mut self,
        input: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> usize {
        let (consumed, ended) = self.scan(input, owner, |scanner, sink| {
            let scanned = scanner.scan(input, sink);
            (scanned.consumed, scanned.ended)
        });
        if ended {
            self.phase = Phase::Command;
            self.end_content(now, owner, out);
        }
        consumed
    }

    pub(super) fn take_chunk<T: Transactions>(
        &mut self,
        input: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> usize {
        let Phase::Chunk { octets, left, last } = self.phase else { return 0 };
        let piece = &input[..left.min(input.len() as u64) as usize];
        let left = left - piece.len() as u64;
        self.scan(piece, owner, |scanner, sink| {
            scanner.scan(piece, sink);
            if left == 0 && last {
                scanner.finish(sink);
            }
            (piece.len(), false)
        });
        if left > 0 {
            self.phase = Phase::Chunk { octets, left, last };
            return piece.len();
        }
        self.phase = Phase::Command;
        if self.transaction.scanner.is_none() {
            // A chunk out of turn: the transaction, if there is one, is as it was.
            if let Some(reply) = self.refusal.take() {
                self.refuse_in_time(&reply, owner, out);
            }
            self.content_deadline = Instant::MAX;
        } else if last || self.refusal.is_some() {
            self.end_content(now, owner, out);
        } else {
            // Writing to a Vec cannot fail.
            let _ = write!(out, "250 2.0.0 OK: {octets} octets\r\n");
        }
        piece.len()
    }

    /// Runs the scanner and hands the owner what it passes on, up to the first refusal. Without a scanner (a chunk out
    /// of turn) there is nothing to hand over.
    fn scan<T: Transactions>(
        &mut self,
        input: &[u8],
        owner: &mut T,
        run: impl FnOnce(&mut Scanner, &mut dyn FnMut(&[u8])) -> (usize, bool),
    ) -> (usize, bool) {
        let Transaction { scanner: Some(scanner), octets, max_octets, .. } = &mut self.transaction else {
            return (input.len(), false);
        };
        let max = *max_octets;
        let skipping = self.refusal.is_some();
        let mut refused = None;
        let result = run(scanner, &mut |bytes| {
            if skipping || refused.is_some() {
                return;
            }
            let (fitting, beyond) = bytes.split_at((max - *octets).min(bytes.len() as u64) as usize);
            *octets += fitting.len() as u64;
            if let Err(reply) = if fitting.is_empty() { Ok(()) } else { owner.content(fitting) } {
                refused = Some(reply);
            } else if !beyond.is_empty() {
                refused = Some(replies::TOO_BIG);
            }
        });
        // What was refused first counts: the scanner passes nothing on after its own fault.
        let fault = scanner.fault().map(|fault| match fault {
            Fault::BareNewline => replies::BARE_NEWLINE,
            Fault::Nul => replies::NUL,
        });
        self.skip_if(refused.or(fault).map_or(Ok(()), Err), owner);
        result
    }

    fn end_content<T: Transactions>(&mut self, now: Now, owner: &mut T, out: &mut Vec<u8>) {
        let result = match self.refusal.take() {
            Some(reply) => Err(reply),
            None => owner.end_content(now).inspect_err(|_| owner.abort()),
        };
        match result {
            Ok(()) => self.phase = Phase::Storing,
            Err(reply) => {
                self.end_transaction();
                self.refuse_in_time(&reply, owner, out);
            }
        }
    }
}
