//! Content that was just committed, kept in memory for its first attempt so that it need not be read back.
//!
//! Bounded in octets: the oldest is forgotten first. Forgetting costs a read later and nothing else.

use crate::id::MessageId;
use bytes::Bytes;
use foldhash::HashMap;
use std::collections::VecDeque;

/// Recent content by message.
#[derive(Debug)]
pub struct Retained {
    budget: usize,
    octets: usize,
    chunks: HashMap<MessageId, Vec<Bytes>>,
    order: VecDeque<MessageId>,
}

impl Retained {
    /// Keeps at most `budget` octets.
    pub fn new(budget: usize) -> Retained {
        Retained { budget, octets: 0, chunks: HashMap::default(), order: VecDeque::new() }
    }

    /// Keeps the content of a message, forgetting older content as needed.
    pub fn keep(&mut self, id: MessageId, chunks: Vec<Bytes>) {
        let octets = length(&chunks);
        if octets > self.budget {
            return;
        }
        while self.octets + octets > self.budget {
            let Some(oldest) = self.order.pop_front() else { break };
            self.forget(oldest);
        }
        self.octets += octets;
        self.chunks.insert(id, chunks);
        self.order.push_back(id);
        // Taken entries leave their ids behind in `order`: keep that bounded too.
        if self.order.len() > 2 * self.chunks.len() + 64 {
            self.order.retain(|id| self.chunks.contains_key(id));
        }
    }

    /// Whose content is kept: so many messages.
    pub fn count(&self) -> usize {
        self.chunks.len()
    }

    /// A message's content, which stays.
    pub fn get(&self, id: MessageId) -> Option<&Vec<Bytes>> {
        self.chunks.get(&id)
    }

    /// Forgets one message's content.
    pub fn forget(&mut self, id: MessageId) {
        if let Some(chunks) = self.chunks.remove(&id) {
            self.octets -= length(&chunks);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Retained::new(self.budget);
    }

    /// Octets held.
    pub fn octets(&self) -> usize {
        self.octets
    }
}

fn length(chunks: &[Bytes]) -> usize {
    chunks.iter().map(Bytes::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_the_budget_holds() {
        let mut retained = Retained::new(100);
        for n in 0..10 {
            retained.keep(MessageId(n), vec![Bytes::from_static(&[b'x'; 30])]);
            assert!(retained.octets() <= 100);
        }
        assert!(retained.get(MessageId(6)).is_none());
        assert!(retained.get(MessageId(7)).is_some() && retained.get(MessageId(9)).is_some());
        retained.keep(MessageId(11), vec![Bytes::from_static(&[b'x'; 101])]);
        assert!(retained.get(MessageId(11)).is_none());
    }

    #[test]
    fn forgetting_one_by_one_leaves_nothing_behind() {
        let mut retained = Retained::new(1 << 20);
        for n in 0..10_000 {
            retained.keep(MessageId(n), vec![Bytes::from_static(b"x")]);
            retained.forget(MessageId(n));
        }
        assert_eq!(retained.octets(), 0);
        assert!(retained.order.len() < 200);
    }
}
