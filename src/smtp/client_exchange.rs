//! One transaction of the SMTP client: from MAIL to the final reply, in flights or command by command.
//!
//! The part of [`Client`]'s state machine that knows a transaction is open. Four ways lead through it, by what the
//! peer offers: each command for itself; MAIL, RCPT and DATA in one flight (PIPELINING); all with the content in one
//! flight (and CHUNKING); and, for a content that is streamed, BDAT piece by piece. Greetings, TLS and the end of
//! the connection are in `client.rs`; whatever fails here ends the connection there.

use super::client::{Client, ClientTimeouts, State, Telling};
use super::client_content::{ContentPieces, LineState};
use super::client_event::{ClientEvent, RecipientOutcome, Stage};
use super::client_transaction::{OutgoingContent, Transaction};
use super::peer::Peer;
use crate::clock::Instant;
use crate::limits::{CLIENT_AHEAD_TIME, CLIENT_CHUNKS_UNANSWERED_MAX, CLIENT_CONTENT_PIECE_OCTETS_MAX};
use crate::reply::Reply;
use bytes::Bytes;
use std::time::Duration;

/// The reply awaited within a transaction.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Mail,
    Recipient(usize),
    Data,
    /// A streamed content is on its way; by BDAT, replies to chunks come meanwhile.
    Content,
    Final,
}

/// How the content goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    Data,
    Chunks,
}

/// Whether a transaction began behind the content of another.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    No,
    /// At a peer that may not take it: nothing it refuses before the content counts.
    Trial,
    Known,
}

/// The transaction under way.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) transaction: Transaction,
    /// One per recipient: has an outcome. The accepted ones are those without, once RCPT is answered.
    pub(super) decided: Vec<bool>,
    step: Step,
    transfer: Transfer,
    /// The commands go in flights; otherwise each waits for the reply to the one before.
    pipelined: bool,
    pub(super) ahead: Ahead,
    /// DATA, or BDAT with the content, went with the envelope.
    one_flight: bool,
    /// The peer took MAIL, so a transaction is open there.
    open: bool,
    /// Recipients the peer accepted that have no outcome yet.
    accepted: usize,
    /// The outcome of all recipients is known; what replies remain are only consumed.
    pub(super) settled: bool,
    /// Octets of a streamed content asked of and provided by the owner.
    pub(super) provided: u64,
    line: LineState,
    /// The end of the content stands in the outgoing queue or left it.
    end_queued: bool,
    chunks_unanswered: u32,
}

impl Client {
    /// The next reply within a transaction.
    pub(super) fn handle_transaction_reply(&mut self, reply: Reply, now: Instant) {
        let Some(current) = self.current.as_mut() else { return self.fail_unexpected(&reply) };
        let class = reply.code / 100;
        let expected = match current.step {
            Step::Data => matches!(class, 3..=5),
            _ => matches!(class, 2 | 4 | 5),
        };
        if !expected {
            // Behind a refused MAIL or BDAT only consumption matters, but the framing must still be right.
            return self.fail_unexpected(&reply);
        }
        if current.has_lost_commands(&reply) {
            let text = format!("commands behind a content were not understood: {reply}");
            return self.fail_protocol(&text);
        }
        match current.step {
            Step::Mail if class == 2 => {
                current.open = true;
                self.ask_recipient(0);
            }
            Step::Mail => {
                let pipelined = current.pipelined;
                self.settle(RecipientOutcome::Refused { reply, stage: Stage::Mail });
                if pipelined { self.ask_recipient(0) } else { self.finish(now) }
            }
            Step::Recipient(index) => {
                if class == 2 && !current.settled {
                    current.accepted += 1;
                } else if !current.settled {
                    current.decided[index] = true;
                    let outcome = RecipientOutcome::Refused { reply, stage: Stage::Recipient };
                    self.tell(ClientEvent::Recipient { index, outcome });
                }
                self.after_recipient(index + 1, now);
            }
            Step::Data if class == 3 => self.send_after_354(),
            Step::Data => {
                self.settle(RecipientOutcome::Refused { reply, stage: Stage::Data });
                self.finish(now);
            }
            Step::Content | Step::Final => self.handle_content_reply(reply, now),
        }
    }

    /// A reply to a chunk, or to the end of the content.
    fn handle_content_reply(&mut self, reply: Reply, now: Instant) {
        let content_left = self.content_left();
        let Some(current) = self.current.as_mut() else { return };
        current.chunks_unanswered = current.chunks_unanswered.saturating_sub(1);
        let last = current.end_queued && current.chunks_unanswered == 0;
        let positive = reply.code / 100 == 2;
        let stage = if last { Stage::FinalReply } else { Stage::Content };
        if !positive {
            self.settle(RecipientOutcome::Refused { reply, stage });
        } else if last && current.accepted > 0 {
            if content_left {
                return self.fail_protocol("the content was accepted before its end");
            }
            // The final reply holds for all accepted recipients (RFC 5321 4.2.5).
            self.settle(RecipientOutcome::Delivered(reply));
            if let Some(current) = self.current.as_mut() {
                current.open = false;
            }
        }
        let Some(current) = self.current.as_mut() else { return };
        if current.transfer == Transfer::Data {
            // The final dot ends the transaction whatever the reply (RFC 5321 4.1.1.4).
            current.open = false;
        }
        if last || (current.settled && current.chunks_unanswered == 0) {
            self.finish(now);
        }
    }

    /// Goes on to the recipient at `index`: its reply is next, its command is sent unless that is done.
    fn ask_recipient(&mut self, index: usize) {
        let Some(current) = self.current.as_mut() else { return };
        current.step = Step::Recipient(index);
        if !current.pipelined {
            let mut command = Vec::with_capacity(320);
            current.transaction.write_recipient(index, &self.peer, &mut command);
            self.send(Bytes::from(command), 1);
        }
    }

    /// The recipients before `next` are answered.
    fn after_recipient(&mut self, next: usize, now: Instant) {
        let Some(current) = self.current.as_mut() else { return };
        if next < current.transaction.recipients.len() {
            return self.ask_recipient(next);
        }
        if current.one_flight {
            current.step = if current.transfer == Transfer::Data { Step::Data } else { Step::Final };
            return;
        }
        if current.accepted == 0 {
            return self.finish(now);
        }
        match current.transfer {
            Transfer::Data => {
                current.step = Step::Data;
                self.send(Bytes::from_static(b"DATA\r\n"), 1);
            }
            Transfer::Chunks => self.start_content(),
        }
    }

    /// The peer waits for the content behind DATA. Where it accepted no recipient, only for its end.
    fn send_after_354(&mut self) {
        let Some(current) = self.current.as_mut() else { return };
        if current.accepted > 0 {
            return self.start_content();
        }
        current.step = Step::Final;
        current.end_queued = true;
        self.send(LineState::Start.final_dot(), 1);
    }

    /// Sends MAIL, and in a flight all that goes with it.
    pub(super) fn send_envelope(&mut self) {
        let Some(current) = self.current.as_mut() else { return };
        if !current.pipelined {
            let mut command = Vec::with_capacity(512);
            current.transaction.write_mail(&self.peer, &mut command);
            return self.send(Bytes::from(command), 1);
        }
        if current.one_flight && current.transfer == Transfer::Data {
            let (commands, replies) = current.data_flight(&self.peer);
            return self.send(commands, replies);
        }
        let recipients = current.transaction.recipients.len();
        let commands = current.envelope(&self.peer);
        if !current.one_flight {
            self.send(Bytes::from(commands), 1 + recipients);
        } else {
            self.send_chunk_behind(commands, 1 + recipients);
        }
    }

    /// Begins with the content, now that the peer is ready for it.
    fn start_content(&mut self) {
        let Some(current) = self.current.as_mut() else { return };
        current.step = Step::Content;
        match (&current.transaction.content, current.transfer) {
            (OutgoingContent::Streamed, _) if current.transaction.content_len > 0 => {}
            (_, Transfer::Chunks) => self.send_chunk_behind(Vec::new(), 0),
            (_, Transfer::Data) => {
                let chunks = current.take_chunks();
                self.send_content(chunks);
            }
        }
    }

    /// Sends `commands`, which are owed `replies`, and behind them BDAT with a whole content.
    fn send_chunk_behind(&mut self, mut commands: Vec<u8>, replies: usize) {
        let Some(current) = self.current.as_mut() else { return };
        let mut chunks = current.take_chunks();
        current.follow(&chunks);
        let end = current.line.line_end();
        if !end.is_empty() {
            chunks.push(Bytes::from_static(end));
        }
        let len: usize = chunks.iter().map(Bytes::len).sum();
        commands.extend_from_slice(format!("BDAT {len} LAST\r\n").as_bytes());
        current.end_queued = true;
        current.chunks_unanswered = 1;
        if !current.one_flight {
            current.step = Step::Final;
        }
        self.send(Bytes::from(commands), replies + 1);
        self.push_content(ContentPieces::plain(chunks));
    }

    /// Sends a run of content: all of a whole one, or what the owner provided of a streamed one.
    pub(super) fn send_content(&mut self, mut chunks: Vec<Bytes>) {
        let Some(current) = self.current.as_mut() else { return };
        let before = current.line;
        current.follow(&chunks);
        let streamed = matches!(current.transaction.content, OutgoingContent::Streamed);
        let last = !streamed || current.provided >= current.transaction.content_len;
        current.end_queued = last;
        if last {
            current.step = Step::Final;
        }
        let end = current.line;
        match current.transfer {
            Transfer::Data => {
                self.push_content(ContentPieces::stuffed(chunks, before));
                if last {
                    self.send(end.final_dot(), 1);
                }
            }
            Transfer::Chunks => {
                if last && !end.line_end().is_empty() {
                    chunks.push(Bytes::from_static(end.line_end()));
                }
                current.chunks_unanswered += 1;
                let len: usize = chunks.iter().map(Bytes::len).sum();
                let command = format!("BDAT {len}{}\r\n", if last { " LAST" } else { "" });
                self.send(Bytes::from(command), 1);
                self.push_content(ContentPieces::plain(chunks));
            }
        }
    }

    /// Asks for more of a streamed content if all before it was handed out and the peer keeps up.
    pub(super) fn want_content(&mut self) -> Option<ClientEvent> {
        if self.state != State::Transaction || self.wanting || !self.outgoing.is_empty() {
            return None;
        }
        let current = self.current.as_ref()?;
        let unanswered_max = if current.pipelined { CLIENT_CHUNKS_UNANSWERED_MAX } else { 1 };
        let left = current.transaction.content_len.saturating_sub(current.provided);
        if current.step != Step::Content || current.settled || current.chunks_unanswered >= unanswered_max || left == 0
        {
            return None;
        }
        self.wanting = true;
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(CLIENT_CONTENT_PIECE_OCTETS_MAX);
        Some(ClientEvent::WantContent { offset: current.provided, max })
    }

    /// This is the outcome for all recipients that have none. Nothing more is sent of the content.
    pub(super) fn settle(&mut self, outcome: RecipientOutcome) {
        if let Some(current) = self.current.as_mut().filter(|current| !current.settled) {
            current.settled = true;
            current.accepted = 0;
            let decided = std::mem::take(&mut current.decided);
            self.telling.push_back(Telling::Verdict { outcome, decided, next: 0 });
        }
    }

    /// All replies of the transaction have come. A transaction left open at the peer is cleared away.
    fn finish(&mut self, now: Instant) {
        if let Some(next) = self.ahead.take() {
            self.current = Some(next);
            return self.tell(ClientEvent::Next);
        }
        if !self.current.as_ref().is_some_and(|current| current.open) {
            return self.rest(now);
        }
        self.state = State::Reset;
        self.send(Bytes::from_static(b"RSET\r\n"), 1);
        self.arm(now);
    }
}

impl Current {
    /// A transaction of which nothing was sent.
    pub(super) fn new(transaction: Transaction, chunking: bool, pipelined: bool) -> Current {
        let whole = matches!(transaction.content, OutgoingContent::Whole(_));
        Current {
            decided: vec![false; transaction.recipients.len()],
            step: Step::Mail,
            transfer: if chunking { Transfer::Chunks } else { Transfer::Data },
            pipelined,
            ahead: Ahead::No,
            // A streamed content is big: it is not pushed at a peer that may refuse every recipient.
            one_flight: pipelined && (whole || !chunking),
            open: false,
            accepted: 0,
            settled: false,
            provided: 0,
            line: LineState::Start,
            end_queued: false,
            chunks_unanswered: 0,
            transaction,
        }
    }

    /// MAIL and RCPT for all recipients.
    fn envelope(&self, peer: &Peer) -> Vec<u8> {
        let mut commands = Vec::with_capacity(self.transaction.commands_len());
        self.transaction.write_mail(peer, &mut commands);
        (0..self.transaction.recipients.len())
            .for_each(|index| self.transaction.write_recipient(index, peer, &mut commands));
        commands
    }

    /// The same and DATA, and how many replies are owed to it.
    pub(super) fn data_flight(&self, peer: &Peer) -> (Bytes, usize) {
        let mut commands = self.envelope(peer);
        commands.extend_from_slice(b"DATA\r\n");
        (Bytes::from(commands), 2 + self.transaction.recipients.len())
    }

    /// This reply to a transaction that began ahead is that of a peer which threw away what stood behind the content.
    fn has_lost_commands(&self, reply: &Reply) -> bool {
        let before_content = matches!(self.step, Step::Mail | Step::Recipient(_) | Step::Data);
        match self.ahead {
            Ahead::No => false,
            Ahead::Trial => before_content && matches!(reply.code / 100, 4 | 5),
            // Unknown command, bad sequence. Behind a refusal of ours a peer says so with good reason: RCPT without a MAIL that
            // it took, DATA without a recipient.
            Ahead::Known => {
                let after_refusal = self.settled || self.step == Step::Data && self.accepted == 0;
                before_content && !after_refusal && matches!(reply.code, 500 | 503)
            }
        }
    }

    /// The next transaction's commands may stand behind the end of this one's content.
    pub(super) fn allows_next(&self) -> bool {
        let by_data = self.pipelined && self.transfer == Transfer::Data;
        by_data && self.step == Step::Final && self.accepted > 0 && !self.settled
    }

    /// What the next reply answers.
    pub(super) fn stage(&self) -> Stage {
        match self.step {
            Step::Mail => Stage::Mail,
            Step::Recipient(_) => Stage::Recipient,
            Step::Data => Stage::Data,
            Step::Content => Stage::Content,
            Step::Final => Stage::FinalReply,
        }
    }

    /// Content for accepted recipients is on its way behind DATA.
    pub(super) fn is_sending_data(&self) -> bool {
        self.transfer == Transfer::Data && self.accepted > 0 && matches!(self.step, Step::Content | Step::Final)
    }

    /// If all that is queued was handed out: the peer may have taken the message for a recipient without an outcome.
    pub(super) fn is_uncertain(&self) -> bool {
        self.end_queued && !self.settled && (self.accepted > 0 || matches!(self.step, Step::Mail | Step::Recipient(_)))
    }

    /// How long to wait for the next reply. A peer may hold back the replies of a flight until it has dealt with the
    /// flight's last command (RFC 2920 3.2), so the longest time of all commands not yet answered counts.
    pub(super) fn wait(&self, timeouts: &ClientTimeouts) -> Duration {
        let last = match (self.one_flight, self.transfer) {
            (false, _) => Duration::ZERO,
            (true, Transfer::Data) => timeouts.data,
            (true, Transfer::Chunks) => timeouts.final_dot,
        };
        match self.step {
            // A peer that has thrown the commands away would never answer.
            Step::Mail if self.ahead != Ahead::No => timeouts.mail.min(CLIENT_AHEAD_TIME),
            Step::Mail if self.pipelined => timeouts.mail.max(timeouts.rcpt).max(last),
            Step::Mail => timeouts.mail,
            Step::Recipient(_) => timeouts.rcpt.max(last),
            Step::Data => timeouts.data,
            Step::Content => timeouts.block,
            Step::Final => timeouts.final_dot,
        }
    }

    /// The chunks of a whole content, which are given away.
    fn take_chunks(&mut self) -> Vec<Bytes> {
        match &mut self.transaction.content {
            OutgoingContent::Whole(chunks) => std::mem::take(chunks),
            OutgoingContent::Streamed => Vec::new(),
        }
    }

    /// Follows the line state over content that is sent.
    fn follow(&mut self, chunks: &[Bytes]) {
        self.line = chunks.iter().fold(self.line, |line, chunk| line.after(chunk));
    }
}
