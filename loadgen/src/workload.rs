//! What is sent: sizes, recipients and what becomes of them, the same for the same seed.
//!
//! Pure and independent of the order in which messages are asked for, so that any number of sessions share one.

use crate::content::{self, Fingerprint};
use crate::destination::{Behaviour, Destination, Token};
use crate::random::Random;
use bytes::Bytes;
use std::str::FromStr;
use std::sync::Arc;

/// Ranges of sizes of a distribution, at most.
const RANGES_MAX: usize = 1000;
/// Octets of a message, at most.
const SIZE_MAX: usize = 60_000_000;

/// How large messages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All about this many octets.
    Fixed(usize),
    /// Mostly small, some of tens of kilobytes, a few of several hundred, which servers keep apart from the rest.
    Mixed,
    /// By ranges with weights: the sum of the weights so far, and the smallest and the largest size of each range.
    Ranges(Arc<[(u64, usize, usize)]>),
}

impl Sizes {
    fn pick(&self, random: &mut Random) -> usize {
        let draw = random.below(100);
        match (self, draw) {
            (Sizes::Fixed(size), _) => *size,
            (Sizes::Mixed, 0..75) => random.between(300, 4096) as usize,
            (Sizes::Mixed, 75..94) => random.between(4096, 40_000) as usize,
            (Sizes::Mixed, 94..98) => random.between(60_000, 250_000) as usize,
            (Sizes::Mixed, _) => random.between(256_000, 700_000) as usize,
            (Sizes::Ranges(ranges), _) => {
                let draw = random.below(ranges.last().map_or(0, |range| range.0));
                let at = ranges.partition_point(|range| range.0 <= draw);
                ranges.get(at).map_or(0, |range| random.between(range.1 as u64, range.2 as u64) as usize)
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    /// Reads `N`, `mixed`, or ranges `N[-N][*WEIGHT],...`; `k` and `M` stand for 1024 and its square.
    fn from_str(text: &str) -> Result<Sizes, String> {
        let wrong = || format!("{text}: sizes are N, mixed, or ranges N-N*WEIGHT with commas, as in 1k-4k*80,50k*20");
        if text == "mixed" {
            return Ok(Sizes::Mixed);
        }
        if let Some(size) = parse_octets(text) {
            return Ok(Sizes::Fixed(size));
        }
        let (mut ranges, mut sum) = (Vec::new(), 0_u64);
        for range in text.split(',') {
            let (sizes, weight) = range.split_once('*').unwrap_or((range, "1"));
            let (low, high) = sizes.split_once('-').unwrap_or((sizes, sizes));
            let low = parse_octets(low).ok_or_else(wrong)?;
            let high = parse_octets(high).filter(|high| *high >= low).ok_or_else(wrong)?;
            sum += weight.parse::<u64>().ok().filter(|weight| (1..=1_000_000).contains(weight)).ok_or_else(wrong)?;
            ranges.push((sum, low, high));
        }
        if ranges.len() > RANGES_MAX { Err(wrong()) } else { Ok(Sizes::Ranges(ranges.into())) }
    }
}

fn parse_octets(text: &str) -> Option<usize> {
    let (number, unit) = match text.strip_suffix('k') {
        Some(number) => (number, 1024),
        None => text.strip_suffix('M').map_or((text, 1), |number| (number, 1024 * 1024)),
    };
    number.parse::<usize>().ok()?.checked_mul(unit).filter(|size| *size <= SIZE_MAX)
}

/// Many domains, the first of them with more of the recipients than the others (Zipf's law).
#[derive(Clone, Debug)]
pub struct Domains {
    /// The sum of the weights so far.
    sums: Arc<[f64]>,
}

impl Domains {
    /// So many domains, `d0.`, `d1.` and so on before the workload's own; the weight of number n is 1 / (n + 1)^exponent.
    pub fn zipf(count: u32, exponent: f64) -> Domains {
        let mut sum = 0.0;
        let sums = (0..count.max(1)).map(|number| {
            sum += f64::from(number + 1).powf(-exponent);
            sum
        });
        Domains { sums: sums.collect() }
    }

    fn pick(&self, random: &mut Random) -> u32 {
        let all = self.sums.last().copied().unwrap_or_default();
        let draw = random.below(1 << 53) as f64 / (1_u64 << 53) as f64 * all;
        self.sums.partition_point(|sum| *sum <= draw).min(self.sums.len() - 1) as u32
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
    /// Recipients of a message, at least.
    pub recipients_min: u16,
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
    /// Where recipients are spread over many domains below that one.
    pub domains: Option<Domains>,
}

impl Workload {
    /// Messages of one size to one recipient that is never refused.
    pub fn plain(seed: u64, size: usize) -> Workload {
        Workload {
            seed,
            run: seed as u32,
            sizes: Sizes::Fixed(size),
            recipients_min: 1,
            recipients_max: 1,
            refused_for_now: 0,
            content_refused: 0,
            refused_for_good: 0,
            domain: "load.example".to_owned(),
            domains: None,
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
        self.message_like(number, None, None)
    }

    /// The message with this number, with a size or a number of recipients that are given.
    pub fn message_like(&self, number: u32, size: Option<u32>, recipients: Option<u16>) -> Message {
        let mut random = Random::part(self.seed, u64::from(number));
        let token = Token::new(self.run, number);
        let least = u64::from(self.recipients_min.max(1));
        let count =
            recipients.unwrap_or_else(|| random.between(least, u64::from(self.recipients_max).max(least)) as u16);
        let destinations: Vec<Destination> =
            (0..count).map(|index| Destination { behaviour: self.behaviour(&mut random), token, index }).collect();
        let domains = match &self.domains {
            Some(domains) => destinations.iter().map(|_| domains.pick(&mut random)).collect(),
            None => Vec::new(),
        };
        let reverse_path = format!("from-{token}@{}", self.domain);
        let size = size.map_or_else(|| self.sizes.pick(&mut random), |size| size as usize);
        let mut message = Message {
            token,
            reverse_path,
            destinations,
            domains,
            content: Bytes::new(),
            fingerprint: Fingerprint::of(b""),
        };
        let to = message.address(0, &self.domain);
        let (content, fingerprint) = content::compose(token, size, &message.reverse_path, &to, &mut random);
        message.content = content.into();
        message.fingerprint = fingerprint;
        message
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
    /// The number of the domain of each recipient; empty when all are in the workload's own.
    pub domains: Vec<u32>,
    /// Header and body; ends with CRLF.
    pub content: Bytes,
    /// What must arrive behind the token line.
    pub fingerprint: Fingerprint,
}

impl Message {
    /// The address of a recipient, below the workload's domain.
    pub fn address(&self, index: usize, domain: &str) -> String {
        match self.domains.get(index) {
            Some(number) => self.destinations[index].address(&format!("d{number}.{domain}")),
            None => self.destinations[index].address(domain),
        }
    }
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

    #[test]
    fn sizes_are_read_and_kept() {
        assert_eq!("2k".parse(), Ok(Sizes::Fixed(2048)));
        assert_eq!("mixed".parse(), Ok(Sizes::Mixed));
        let sizes: Sizes = "1k-2k*75,10k*25".parse().unwrap();
        let mut random = Random::new(4);
        let picked: Vec<usize> = (0..1000).map(|_| sizes.pick(&mut random)).collect();
        let small = picked.iter().filter(|size| (1024..=2048).contains(*size)).count();
        assert!((700..800).contains(&small) && picked.iter().filter(|size| **size == 10_240).count() == 1000 - small);
        for wrong in ["", "k", "2k-1k", "1*0", "1,,2", "99999999999"] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_domains_have_the_most() {
        let workload = Workload { domains: Some(Domains::zipf(100, 1.0)), ..Workload::plain(3, 100) };
        let mut counts = [0; 100];
        for number in 0..5000 {
            let message = workload.message(number);
            counts[message.domains[0] as usize] += 1;
            assert!(message.address(0, "x.example").ends_with(&format!("@d{}.x.example", message.domains[0])));
        }
        // Of the harmonic sum of 100, which is 5.187, the first has 1 and the tenth 0.1.
        assert!((850..1080).contains(&counts[0]) && (60..140).contains(&counts[9]), "{counts:?}");
    }
}
