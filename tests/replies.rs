//! How often replies of real mail servers get the class that they were given by hand (tests/corpus/replies.tsv).
//!
//! A third of the lines is held back: the shipped rules were written with the other two thirds at hand. Which lines
//! these are follows from a fixed hash of the reply, so that nobody chooses. What must hold is said of both parts.

use ringpost::policy::classify::{Classifier, Question};
use ringpost::reply::class::ReplyClass;
use ringpost::reply::{Reply, ReplyReader};
use ringpost::smtp::client::Stage;
use std::collections::{HashMap, HashSet};

/// Replies that were assembled before the rules were written.
const CORPUS: &str = include_str!("corpus/replies.tsv");

/// One reply with the class that it was given by hand.
struct Line<'a> {
    class: ReplyClass,
    provider: &'a str,
    stage: Option<Stage>,
    source: &'a str,
    text: &'a str,
}

fn stage(name: &str) -> Option<Stage> {
    Some(match name {
        "connect" => Stage::Greeting,
        "hello" => Stage::Hello,
        "tls" => Stage::StartTls,
        "mail" => Stage::Mail,
        "rcpt" => Stage::Recipient,
        "data" => Stage::Data,
        "content" => Stage::FinalReply,
        "-" => return None,
        other => panic!("no stage is called {other}"),
    })
}

fn lines(corpus: &str) -> Vec<Line<'_>> {
    let rows = corpus.lines().filter(|row| !row.is_empty() && !row.starts_with(['#', '@']));
    rows.map(|row| {
        let columns: Vec<&str> = row.split('\t').collect();
        let [class, provider, at, source, text] = columns[..] else { panic!("five columns: {row}") };
        let class = ReplyClass::of_name(class).unwrap_or_else(|| panic!("no such class: {row}"));
        Line { class, provider: if provider == "-" { "" } else { provider }, stage: stage(at), source, text }
    })
    .collect()
}

fn reply(text: &str) -> Reply {
    let (_, reply) = ReplyReader::new().handle_input(format!("{text}\r\n").as_bytes());
    reply.unwrap_or_else(|| panic!("{text}: not whole")).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Whether a reply belongs to the third that is held back: FNV-1a of its text, folded.
fn is_held_back(text: &str) -> bool {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ hash >> 32).is_multiple_of(3)
}

/// How many of these get their class; what is wrong is printed.
fn right(rules: &Classifier, lines: &[&Line<'_>]) -> usize {
    let is_right = |line: &&&Line<'_>| {
        let reply = reply(line.text);
        let question = Question { reply: &reply, from_peer: true, stage: line.stage, host: line.provider };
        let decision = rules.classify(&question);
        if decision.class != line.class {
            let rule = rules.place(decision.by).map(|place| place.name);
            println!("{} but {} by {:?}: {}", line.class.name(), decision.class.name(), rule, line.text);
        }
        decision.class == line.class
    };
    lines.iter().filter(is_right).count()
}

#[test]
fn replies_of_real_servers_get_their_class() {
    let lines = lines(CORPUS);
    assert!(lines.len() >= 300, "{} lines", lines.len());
    let (held_back, seen): (Vec<&Line<'_>>, Vec<&Line<'_>>) = lines.iter().partition(|line| is_held_back(line.text));
    assert!(held_back.len() * 4 > lines.len(), "{} of {} are held back", held_back.len(), lines.len());
    let rules = Classifier::shipped();
    for (name, part, least) in [("seen", seen, 980), ("held back", held_back, 950)] {
        let right = right(&rules, &part);
        println!("{name}: {right} of {} right", part.len());
        assert!(right * 1000 >= part.len() * least, "{name}: {right} of {} are right", part.len());
    }
}

#[test]
fn every_line_names_its_source_and_stands_once() {
    let mut sources: HashMap<&str, usize> = HashMap::new();
    for row in CORPUS.lines().filter_map(|row| row.strip_prefix('@')) {
        let (key, address) = row.split_once(' ').unwrap();
        assert!(address.starts_with("http"), "{row}");
        assert!(sources.insert(key, 0).is_none(), "{key} stands twice");
    }
    let mut stood = HashSet::new();
    for line in lines(CORPUS) {
        *sources.get_mut(line.source).unwrap_or_else(|| panic!("{} is no source", line.source)) += 1;
        assert!(stood.insert((line.provider, line.text)), "{} stands twice", line.text);
        let known = Classifier::shipped().provider_of(line.provider).is_some();
        assert!(line.provider.is_empty() || known, "no provider is called {}", line.provider);
    }
    let unused: Vec<&&str> = sources.iter().filter(|(_, count)| **count == 0).map(|(key, _)| key).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
