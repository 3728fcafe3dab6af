//! What is sent: sizes, recipients and what becomes of them, the same for the same seed.
//!
//! Pure and independent of the order in which messages are asked for, so that any number of sessions share one.

use crate::content::{self, Fingerprint};
use crate::destination::{Behaviour, Destination, Token};
use crate::random::Random;
use bytes::Bytes;

/// How large messages are.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All about this many octets.
    Fixed(usize),
    /// Mostly small, some of tens of kilobytes, a few of several hundred, which servers keep apart from the rest.
    Mixed,
}

impl Sizes {
    fn pick(self, random: &mut Random) -> usize {
        match (self, random.below(100)) {
            (Sizes::Fixed(size), _) => size,
            (Sizes::Mixed, 0..75) => random.between(300, 4096) as usize,
            (Sizes::Mixed, 75..94) => random.between(4096, 40_000) as usize,
            (Sizes::Mixed, 94..98) => random.between(60_000, 250_000) as usize,
            (Sizes::Mixed, _) => random.between(256_000, 700_000) as usize,
        }
    }
}

/// A stream of messages.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Everything random comes from it.
    pub seed: u64,
    /// Tells the messages of this run from those of others.
    pub run: u32,
    /// How large they are.
    pub sizes: Sizes,
    /// Recipients of a message, at most; each message has a random number of them.
    pub recipients_max: u16,
    /// Recipients in a hundred that the destination refuses for now, once or twice.
    pub refused_for_now: u64,
    /// Recipients in a hundred whose content is refused for now, once.
    pub content_refused: u64,
    /// Recipients in a hundred that are refused for good.
    pub refused_for_good: u64,
    /// The domain of all addresses.
    pub domain: String,
}

impl Workload {
    /// Messages of one size to one recipient that is never refused.
    pub fn plain(seed: u64, size: usize) -> Workload {
        Workload {
            seed,
            run: seed as u32,
            sizes: Sizes::Fixed(size),
            recipients_max: 1,
            refused_for_now: 0,
            content_refused: 0,
            refused_for_good: 0,
            domain: "load.example".to_owned(),
        }
    }

    /// Everything mixed: sizes, up to five recipients, some refused for now or for good.
    pub fn mixed(seed: u64) -> Workload {
        Workload {
            sizes: Sizes::Mixed,
            recipients_max: 5,
            refused_for_now: 10,
            content_refused: 3,
            refused_for_good: 4,
            ..Workload::plain(seed, 0)
        }
    }

    /// The message with this number.
    pub fn message(&self, number: u32) -> Message {
        let mut random = Random::part(self.seed, u64::from(number));
        let token = Token::new(self.run, number);
        let count = random.between(1, u64::from(self.recipients_max.max(1)));
        let destinations: Vec<Destination> = (0..count as u16)
            .map(|index| Destination { behaviour: self.behaviour(&mut random), token, index })
            .collect();
        let reverse_path = format!("from-{token}@{}", self.domain);
        let size = self.sizes.pick(&mut random);
        let to = destinations[0].address(&self.domain);
        let (content, fingerprint) = content::compose(token, size, &reverse_path, &to, &mut random);
        Message { token, reverse_path, destinations, content: content.into(), fingerprint }
    }

    fn behaviour(&self, random: &mut Random) -> Behaviour {
        let mut draw = random.below(100);
        let mut falls = |share: u64| {
            let hit = draw < share;
            draw = draw.wrapping_sub(share);
            hit
        };
        if falls(self.refused_for_now) {
            Behaviour::RefuseFirst(random.between(1, 2) as u32)
        } else if falls(self.content_refused) {
            Behaviour::RefuseContentFirst(1)
        } else if falls(self.refused_for_good) {
            Behaviour::RefuseAlways
        } else {
            Behaviour::Accept
        }
    }
}

/// One message to be sent.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its number.
    pub token: Token,
    /// Where reports on it go.
    pub reverse_path: String,
    /// Its recipients, at least one.
    pub destinations: Vec<Destination>,
    /// Header and body; ends with CRLF.
    pub content: Bytes,
    /// What must arrive behind the token line.
    pub fingerprint: Fingerprint,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_gives_the_same_message() {
        let workload = Workload::mixed(9);
        for number in [0, 1, 77] {
            assert_eq!(workload.message(number).content, workload.message(number).content);
        }
        assert_ne!(workload.message(1).token, workload.message(2).token);
    }

    #[test]
    fn a_mixed_workload_has_everything() {
        let workload = Workload::mixed(9);
        let messages: Vec<Message> = (0..400).map(|number| workload.message(number)).collect();
        assert!(messages.iter().any(|message| message.content.len() > 262_144));
        assert!(messages.iter().any(|message| message.destinations.len() == 5));
        let behaviours: Vec<Behaviour> =
            messages.iter().flat_map(|message| message.destinations.iter().map(|one| one.behaviour)).collect();
        for wanted in [Behaviour::Accept, Behaviour::RefuseFirst(2), Behaviour::RefuseAlways] {
            assert!(behaviours.contains(&wanted));
        }
    }
}
