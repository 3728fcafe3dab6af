//! Questions to all shards at once: each gets a ticket, the answers come back as reports, and the wait for them is
//! bounded. A shard that does not answer makes an error that names it; nobody waits for ever.

use crate::io::mailbox::Sender;
use crate::shard::message::{AdminReply, AdminRequest, ToShard};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// How long to wait for the shards' answers. A shard answers within milliseconds unless it is in trouble.
pub const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Requests under way at a time; further ones are refused, so that a loop in a script cannot fill the mailboxes.
pub const MAX_REQUESTS: usize = 64;

/// Why a question has no complete answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Too many questions are under way.
    #[error("{MAX_REQUESTS} requests are under way already")]
    TooMany,
    /// A mailbox is full.
    #[error("the mailbox of shard {shard} is full, so it was not asked")]
    Full {
        /// Whose.
        shard: u8,
    },
    /// Some did not answer. What they were asked to do they may still do.
    #[error("shards {silent:?} did not answer within {} s; see the log and `ringpost status`", ANSWER_TIME.as_secs())]
    Silent {
        /// Who.
        silent: Vec<u8>,
    },
}

/// Asks shards and gathers their answers.
#[derive(Debug)]
pub struct Requests {
    shards: Vec<Sender<ToShard>>,
    next_ticket: AtomicU64,
    waiting: Mutex<HashMap<u64, UnboundedSender<(u8, AdminReply)>>>,
}

/// Forgets a ticket when its asker is done or gone.
struct Ticket<'a> {
    requests: &'a Requests,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.requests.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

impl Requests {
    /// For these shards, in the order of their numbers.
    pub fn new(shards: Vec<Sender<ToShard>>) -> Requests {
        Requests { shards, next_ticket: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// The shards' mailboxes.
    pub fn shards(&self) -> &[Sender<ToShard>] {
        &self.shards
    }

    /// Asks every shard the same and waits for all answers, which come in no order.
    pub async fn ask(&self, request: AdminRequest) -> Result<Vec<AdminReply>, AskError> {
        let questions = (0..self.shards.len()).map(|shard| (shard as u8, request.clone())).collect();
        Ok(self.ask_each(questions).await?.into_iter().map(|(_, reply)| reply).collect())
    }

    /// Asks some shards, each at most once, and waits for all answers, which come in no order with who gave them.
    pub async fn ask_each(&self, questions: Vec<(u8, AdminRequest)>) -> Result<Vec<(u8, AdminReply)>, AskError> {
        let (answers, mut answered) = unbounded_channel();
        let number = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= MAX_REQUESTS {
                return Err(AskError::TooMany);
            }
            waiting.insert(number, answers);
        }
        let ticket = Ticket { requests: self, number };
        let mut silent = Vec::with_capacity(questions.len());
        for (shard, request) in questions {
            let message = ToShard::Admin { ticket: ticket.number, request };
            let mailbox = self.shards.get(usize::from(shard)).ok_or(AskError::Full { shard })?;
            mailbox.push(message).map_err(|_| AskError::Full { shard })?;
            silent.push(shard);
        }
        let mut replies = Vec::with_capacity(silent.len());
        let gather = async {
            while !silent.is_empty() {
                let Some((shard, reply)) = answered.recv().await else { break };
                silent.retain(|other| *other != shard);
                replies.push((shard, reply));
            }
        };
        let _ = tokio::time::timeout(ANSWER_TIME, gather).await;
        if silent.is_empty() { Ok(replies) } else { Err(AskError::Silent { silent }) }
    }

    /// A shard's answer has come. An answer that nobody waits for any more is dropped.
    pub fn answered(&self, shard: u8, ticket: u64, reply: AdminReply) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = waiting.get(&ticket) {
            let _ = answers.send((shard, reply));
        }
    }
}
