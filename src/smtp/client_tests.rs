//! Tests of the SMTP client: joined with a small peer over all combinations of extensions, state by state against
//! scripted replies, and against arbitrary bytes.

use super::client::*;
use super::server::{BareNewlines, MailFrom, Session, SessionConfig, Step, Transactions};
use crate::clock::{Instant, Now};
use crate::envelope::{Body, Notify, Recipient, Ret};
use crate::id::MessageId;
use crate::limits::CLIENT_CONTENT_PIECE_OCTETS_MAX;
use crate::reply::Reply;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const ALL: &[&str] = &["PIPELINING", "CHUNKING", "SIZE 100000000", "8BITMIME", "SMTPUTF8", "DSN", "LIMITS RCPTMAX=50"];

fn at(seconds: u64) -> Instant {
    Instant::ZERO.after(Duration::from_secs(seconds))
}

fn config(tls: TlsUse) -> ClientConfig {
    ClientConfig {
        ehlo_name: "client.example".into(),
        tls,
        assume_8bitmime: false,
        chunking: true,
        pipelining: true,
        timeouts: ClientTimeouts::default(),
    }
}

fn new_client(config: ClientConfig) -> Client {
    Client::new(Arc::new(config), at(0))
}

fn recipient(address: &str) -> OutgoingRecipient {
    OutgoingRecipient { address: address.into(), notify: Notify::DEFAULT, orcpt: None }
}

fn transaction(recipients: &[&str], content: &[u8], chunk: Option<usize>) -> Transaction {
    Transaction {
        reverse_path: Some("a@client.example".into()),
        recipients: recipients.iter().copied().map(recipient).collect(),
        body: Body::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        content_len: content.len() as u64,
        content: match chunk {
            Some(chunk) => OutgoingContent::Whole(content.chunks(chunk).map(Bytes::copy_from_slice).collect()),
            None => OutgoingContent::Streamed,
        },
    }
}

/// All that is to be sent now, as text.
fn sent(client: &mut Client) -> String {
    let mut all = Vec::new();
    while let Some(bytes) = client.poll_transmit() {
        assert!(!bytes.is_empty());
        all.extend_from_slice(&bytes);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn events(client: &mut Client) -> Vec<ClientEvent> {
    std::iter::from_fn(|| client.poll_event()).collect()
}

/// Tells the client `input` and gives what it sends and says then.
fn told(client: &mut Client, input: &str) -> (String, Vec<ClientEvent>) {
    client.handle_input(input.as_bytes(), at(1));
    let sent = sent(client);
    (sent, events(client))
}

/// A client that has heard the greeting and this EHLO reply, and is ready.
fn ready(config: ClientConfig, extensions: &[&str]) -> Client {
    let mut client = new_client(config);
    assert_eq!(told(&mut client, "220 mx.example ESMTP\r\n").0, "EHLO client.example\r\n");
    assert_eq!(told(&mut client, &hello(extensions)), (String::new(), vec![ClientEvent::Ready]));
    assert!(client.is_idle());
    client
}

fn hello(extensions: &[&str]) -> String {
    extensions.iter().fold("250-mx.example\r\n".to_owned(), |text, one| format!("{text}250-{one}\r\n"))
        + "250 X-LAST\r\n"
}

fn failed(events: &[ClientEvent]) -> &ClientFailure {
    match events.last() {
        Some(ClientEvent::Failed(failure)) => failure,
        other => panic!("no failure but {other:?}"),
    }
}

fn delivered(index: usize) -> ClientEvent {
    ClientEvent::Recipient { index, outcome: RecipientOutcome::Delivered(Reply::new(250, (2, 0, 0), "stored")) }
}

fn refused(index: usize, reply: Reply, stage: Stage) -> ClientEvent {
    ClientEvent::Recipient { index, outcome: RecipientOutcome::Refused { reply, stage } }
}

/// A peer that understands what a client sends, strictly, and keeps what it was given.
#[derive(Default)]
struct TestPeer {
    extensions: Vec<&'static str>,
    /// Answers of this kind are refused with this reply: "MAIL", "RCPT <address>", "DATA", "BDAT", "END".
    refuse: Vec<(&'static str, &'static str)>,
    input: Vec<u8>,
    mail: Option<String>,
    recipients: Vec<String>,
    content: Vec<u8>,
    in_data: bool,
    /// Octets of a chunk that are to come, and whether it is the last.
    chunk: Option<(usize, bool)>,
    messages: Vec<(String, Vec<String>, Vec<u8>)>,
    commands: Vec<String>,
}

impl TestPeer {
    fn handle(&mut self, input: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(input);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    fn refusal(&self, what: &str) -> Option<&'static str> {
        self.refuse.iter().find(|(key, _)| *key == what).map(|(_, reply)| *reply)
    }

    fn end_message(&mut self) -> &'static str {
        let content = std::mem::take(&mut self.content);
        let recipients = std::mem::take(&mut self.recipients);
        let mail = self.mail.take().unwrap_or_default();
        if recipients.is_empty() {
            return "554 5.5.1 no recipients";
        }
        if let Some(reply) = self.refusal("END") {
            return reply;
        }
        self.messages.push((mail, recipients, content));
        "250 2.0.0 stored"
    }

    fn step(&mut self, out: &mut Vec<u8>) -> bool {
        let mut say = |reply: &str| out.extend_from_slice(format!("{reply}\r\n").as_bytes());
        if let Some((length, last)) = self.chunk {
            if self.input.len() < length {
                return false;
            }
            let chunk: Vec<u8> = self.input.drain(..length).collect();
            self.chunk = None;
            if self.recipients.is_empty() {
                say("503 5.5.1 no recipients");
            } else if let Some(reply) = self.refusal("BDAT") {
                self.recipients.clear();
                say(reply);
            } else {
                self.content.extend_from_slice(&chunk);
                let reply = if last { self.end_message() } else { "250 2.0.0 chunk" };
                say(reply);
            }
            return true;
        }
        if self.in_data {
            let Some(end) = memchr::memmem::find(&self.input, b"\r\n") else { return false };
            let line: Vec<u8> = self.input.drain(..end + 2).collect();
            if line == b".\r\n" {
                self.in_data = false;
                let reply = self.end_message();
                say(reply);
            } else {
                self.content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            }
            return true;
        }
        let Some(end) = memchr::memmem::find(&self.input, b"\r\n") else { return false };
        let line: Vec<u8> = self.input.drain(..end + 2).collect();
        let line = String::from_utf8(line[..end].to_vec()).unwrap();
        self.commands.push(line.clone());
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match verb {
            "EHLO" => out.extend_from_slice(hello(&self.extensions).as_bytes()),
            "MAIL" => match self.refusal("MAIL") {
                Some(reply) => say(reply),
                None => {
                    assert!(self.mail.is_none(), "a transaction is open");
                    self.mail = Some(rest.to_owned());
                    say("250 2.1.0 OK");
                }
            },
            "RCPT" => {
                let address = rest.strip_prefix("TO:<").unwrap().split('>').next().unwrap();
                match self.refusal(address) {
                    Some(reply) => say(reply),
                    None if self.mail.is_none() => say("503 5.5.1 MAIL first"),
                    None => {
                        self.recipients.push(address.to_owned());
                        say("250 2.1.5 OK");
                    }
                }
            }
            "DATA" => match self.refusal("DATA") {
                Some(reply) => say(reply),
                None if self.mail.is_none() => say("503 5.5.1 MAIL first"),
                None => {
                    self.in_data = true;
                    say("354 go");
                }
            },
            "BDAT" => {
                let (length, last) = rest.split_once(' ').unwrap_or((rest, ""));
                self.chunk = Some((length.parse().unwrap(), last == "LAST"));
            }
            "RSET" => {
                (self.mail, self.recipients, self.content) = (None, Vec::new(), Vec::new());
                say("250 2.0.0 OK");
            }
            "QUIT" => say("221 2.0.0 bye"),
            other => panic!("unknown command {other}"),
        }
        true
    }
}

/// Runs transactions over a connection to `peer`, feeding replies in pieces of the lengths in `cuts`, round and round.
/// Gives all transmissions and events. `piece`: how much of a streamed content is provided at a time.
fn converse(
    client: &mut Client,
    peer: &mut TestPeer,
    mut transactions: Vec<(Transaction, Vec<u8>)>,
    piece: usize,
    cuts: &[usize],
) -> (Vec<u8>, Vec<ClientEvent>) {
    transactions.reverse();
    let (mut all, mut seen, mut content) = (Vec::new(), Vec::new(), Vec::new());
    let mut to_client = b"220 mx.example ESMTP\r\n".to_vec();
    let mut cuts = cuts.iter().copied().filter(|&cut| cut > 0).cycle();
    for _ in 0..100_000 {
        let mut still = true;
        if let Some(bytes) = client.poll_transmit() {
            all.extend_from_slice(&bytes);
            to_client.extend_from_slice(&peer.handle(&bytes));
            still = false;
        } else if let Some(event) = client.poll_event() {
            match &event {
                ClientEvent::Ready => match transactions.pop() {
                    Some((next, bytes)) => {
                        content = bytes;
                        client.begin(next, at(1));
                    }
                    None => client.quit(at(1)),
                },
                ClientEvent::WantContent { offset, max } => {
                    let from = usize::try_from(*offset).unwrap();
                    let until = content.len().min(from + piece.min(*max));
                    client.provide_content(Bytes::copy_from_slice(&content[from..until]), at(1));
                }
                _ => {}
            }
            seen.push(event);
            still = false;
        } else if !to_client.is_empty() {
            let cut = cuts.next().unwrap_or(usize::MAX).min(to_client.len());
            let input: Vec<u8> = to_client.drain(..cut).collect();
            client.handle_input(&input, at(1));
            still = false;
        }
        if still {
            return (all, seen);
        }
    }
    panic!("the conversation does not end");
}

fn closed_line(content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    if !content.is_empty() && !content.ends_with(b"\r\n") {
        content.extend_from_slice(b"\r\n");
    }
    content
}

fn odd_contents() -> Vec<Vec<u8>> {
    let mut long = b"Subject: long\r\n\r\n".to_vec();
    long.extend(std::iter::repeat_n(b'x', 200_000));
    vec![
        b"Subject: x\r\n\r\nbody\r\n".to_vec(),
        Vec::new(),
        b".".to_vec(),
        b"\r\n".to_vec(),
        b".\r\n".to_vec(),
        b"..\r\n.\r\n\r\n.x".to_vec(),
        b"no end".to_vec(),
        b"ends in cr\r".to_vec(),
        b"\r\n.\r\nQUIT\r\n".to_vec(),
        b".\r\n".repeat(500),
        b"\xff\xfe.\x80\r\n.\xff".to_vec(),
        long,
    ]
}

#[test]
fn content_arrives_exactly_over_every_combination() {
    for extensions in [&["X"][..], &["PIPELINING"], &["CHUNKING"], &["PIPELINING", "CHUNKING"]] {
        for content in odd_contents() {
            for chunk in [Some(1), Some(2), Some(3), Some(4096), Some(1_000_000), None] {
                if chunk.is_some_and(|chunk| chunk < 4096) && content.len() > 10_000 {
                    continue;
                }
                for piece in [1, 3, 5_000, usize::MAX] {
                    if chunk.is_some() && piece > 1 || piece < 5_000 && content.len() > 10_000 {
                        continue;
                    }
                    let mut peer = TestPeer { extensions: extensions.to_vec(), ..TestPeer::default() };
                    let mut client = new_client(config(TlsUse::Opportunistic));
                    let pair = || (transaction(&["b@mx.example", "c@mx.example"], &content, chunk), content.clone());
                    let (_, seen) = converse(&mut client, &mut peer, vec![pair(), pair()], piece, &[]);
                    let told: Vec<_> =
                        seen.into_iter().filter(|event| !matches!(event, ClientEvent::WantContent { .. })).collect();
                    use ClientEvent::{Closed, Ready};
                    let outcome = [delivered(0), delivered(1)];
                    let [first, second] = outcome.clone();
                    let expected =
                        vec![Ready, first, second, Ready, outcome[0].clone(), outcome[1].clone(), Ready, Closed];
                    assert_eq!(told, expected, "{extensions:?} {chunk:?}");
                    assert_eq!(peer.messages.len(), 2);
                    for (_, recipients, arrived) in &peer.messages {
                        assert_eq!(recipients, &["b@mx.example", "c@mx.example"]);
                        assert_eq!(arrived, &closed_line(&content), "{extensions:?} {chunk:?} {piece}");
                    }
                    assert!(!peer.commands.iter().any(|command| command == "RSET"));
                }
            }
        }
    }
}

#[test]
fn refusals_are_told_to_the_right_recipients_and_the_next_message_goes_well() {
    type Case = (&'static [(&'static str, &'static str)], [Option<Stage>; 2]);
    let cases: &[Case] = &[
        (&[("MAIL", "451 4.0.0 no")], [Some(Stage::Mail); 2]),
        (&[("b@x", "550 5.0.0 no")], [Some(Stage::Recipient), None]),
        (&[("c@x", "450 4.0.0 no")], [None, Some(Stage::Recipient)]),
        (&[("b@x", "550 5.0.0 no"), ("c@x", "450 4.0.0 no")], [Some(Stage::Recipient); 2]),
        (&[("b@x", "550 5.0.0 no"), ("END", "554 5.0.0 no")], [Some(Stage::Recipient), Some(Stage::FinalReply)]),
        (&[("END", "554 5.0.0 no")], [Some(Stage::FinalReply); 2]),
        (&[("DATA", "554 5.0.0 no")], [Some(Stage::Data); 2]),
        (&[("BDAT", "554 5.0.0 no")], [Some(Stage::Content); 2]),
    ];
    let content = b"Subject: x\r\n\r\nbody\r\n".repeat(20);
    for extensions in [&["X"][..], &["PIPELINING"], &["CHUNKING"], &["PIPELINING", "CHUNKING"]] {
        let chunking = extensions.contains(&"CHUNKING");
        for (refuse, stages) in cases {
            if refuse[0].0 == if chunking { "DATA" } else { "BDAT" } {
                continue;
            }
            for chunk in [Some(7), None] {
                let mut peer = TestPeer { extensions: extensions.to_vec(), ..TestPeer::default() };
                peer.refuse = refuse.to_vec();
                let mut client = new_client(config(TlsUse::Never));
                let pair = || (transaction(&["b@x", "c@x"], &content, chunk), content.clone());
                let other = (transaction(&["d@x"], &content, chunk), content.clone());
                let (_, seen) = converse(&mut client, &mut peer, vec![pair(), other], 50, &[]);
                let case = format!("{extensions:?} {refuse:?} {chunk:?} {seen:?}");
                assert_eq!(seen.last(), Some(&ClientEvent::Closed), "{case}");
                for (place, stage) in stages.iter().enumerate() {
                    let outcomes: Vec<_> = (seen.split(|event| *event == ClientEvent::Ready).nth(1).unwrap().iter())
                        .filter_map(|event| match event {
                            ClientEvent::Recipient { index, outcome } if *index == place => Some(outcome),
                            _ => None,
                        })
                        .collect();
                    let [outcome] = outcomes[..] else { panic!("not one outcome: {case}") };
                    match (outcome, stage) {
                        (RecipientOutcome::Delivered(_), None) => {}
                        (RecipientOutcome::Refused { stage: found, .. }, Some(stage)) => {
                            // A single chunk is the last: its reply is the final one.
                            let whole = *stage == Stage::Content && chunk.is_some();
                            assert_eq!(*found, if whole { Stage::FinalReply } else { *stage }, "{case}");
                        }
                        _ => panic!("{case}"),
                    }
                }
                let second_goes = !["MAIL", "END", "DATA", "BDAT"].contains(&refuse.last().unwrap().0);
                assert_eq!(peer.messages.iter().any(|(_, to, _)| to == &["d@x"]), second_goes, "{case}");
            }
        }
    }
}

#[test]
fn a_whole_message_is_one_flight_where_the_peer_allows() {
    let mut client = ready(config(TlsUse::Never), ALL);
    assert_eq!(client.peer().recipients_max(), Some(50));
    let mut message = transaction(&["b@x", "c@x"], b"hi\r\n", Some(2));
    message.body = Body::EightBitMime;
    message.ret = Some(Ret::Headers);
    message.envid = Some("id+2B1".into());
    message.recipients[0].notify = Notify::new(true, false, true);
    message.recipients[0].orcpt = Some("rfc822;b+2Bx@x".into());
    client.begin(message, at(1));
    assert_eq!(
        sent(&mut client),
        "MAIL FROM:<a@client.example> SIZE=4 BODY=8BITMIME RET=HDRS ENVID=id+2B1\r\n\
         RCPT TO:<b@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+2Bx@x\r\nRCPT TO:<c@x>\r\nBDAT 4 LAST\r\nhi\r\n"
    );
    assert_eq!(client.deadline(), at(1 + 600), "the reply to MAIL may come with the final one");
    let replies = "250 2.1.0 OK\r\n250 2.1.5 OK\r\n450 4.2.2 full\r\n250 2.0.0 stored\r\n";
    let full = refused(1, Reply::new(450, (4, 2, 2), "full"), Stage::Recipient);
    assert_eq!(told(&mut client, replies), (String::new(), vec![full, delivered(0), ClientEvent::Ready]));
    assert_eq!(client.deadline(), Instant::MAX);
}

#[test]
fn commands_go_one_by_one_where_the_peer_offers_nothing() {
    let mut client = ready(config(TlsUse::Never), &[]);
    let mut message = transaction(&["b@x", "c@x"], b".hi", Some(100));
    message.reverse_path = None;
    message.envid = Some("e".into());
    message.recipients[0].notify = Notify::NEVER;
    client.begin(message, at(1));
    assert_eq!(sent(&mut client), "MAIL FROM:<>\r\n");
    assert_eq!(client.deadline(), at(301));
    assert_eq!(told(&mut client, "250 OK\r\n").0, "RCPT TO:<b@x>\r\n");
    assert_eq!(told(&mut client, "251 will forward\r\n").0, "RCPT TO:<c@x>\r\n");
    assert_eq!(told(&mut client, "250 OK\r\n").0, "DATA\r\n");
    assert_eq!(client.deadline(), at(121));
    assert_eq!(told(&mut client, "354 go\r\n").0, "..hi\r\n.\r\n");
    assert_eq!(client.deadline(), at(601));
    let outcomes = vec![delivered(0), delivered(1), ClientEvent::Ready];
    assert_eq!(told(&mut client, "250 2.0.0 stored\r\n"), (String::new(), outcomes));
}

#[test]
fn a_streamed_content_is_asked_for_piece_by_piece() {
    let want = |offset, max| vec![ClientEvent::WantContent { offset, max }];
    let len = CLIENT_CONTENT_PIECE_OCTETS_MAX + 5;
    let content = vec![b'x'; len];
    let mut client = ready(config(TlsUse::Never), ALL);
    client.begin(transaction(&["b@x"], &content, None), at(1));
    assert_eq!(sent(&mut client), "MAIL FROM:<a@client.example> SIZE=65541\r\nRCPT TO:<b@x>\r\n");
    assert_eq!(told(&mut client, "250 OK\r\n250 OK\r\n"), (String::new(), want(0, len - 5)));
    assert_eq!(client.poll_event(), None);
    assert_eq!(client.deadline(), at(181));
    client.provide_content(Bytes::from(vec![b'x'; len - 5]), at(50));
    assert_eq!(client.deadline(), at(50 + 180));
    assert_eq!(client.poll_event(), None, "what came is to be handed out first");
    assert_eq!(client.poll_transmit().unwrap(), "BDAT 65536\r\n");
    assert_eq!(client.poll_event(), None);
    assert_eq!(client.poll_transmit().unwrap().len(), len - 5);
    assert_eq!(events(&mut client), want(65536, 5));
    client.provide_content(Bytes::from_static(b"xxxxx"), at(60));
    assert_eq!(sent(&mut client), "BDAT 7 LAST\r\nxxxxx\r\n");
    assert_eq!(client.deadline(), at(60 + 600));
    assert_eq!(told(&mut client, "250 2.0.0 chunk\r\n"), (String::new(), vec![]));
    assert_eq!(told(&mut client, "250 2.0.0 stored\r\n").1, vec![delivered(0), ClientEvent::Ready]);
}

#[test]
fn chunks_wait_for_their_replies_without_pipelining_and_within_a_bound_with_it() {
    for (extensions, bound) in [(&["CHUNKING"][..], 1), (&["CHUNKING", "PIPELINING"], 8)] {
        let mut client = ready(config(TlsUse::Never), extensions);
        client.begin(transaction(&["b@x"], &[b'x'; 100], None), at(1));
        sent(&mut client);
        client.handle_input(b"250 OK\r\n", at(1));
        sent(&mut client);
        client.handle_input(b"250 OK\r\n", at(1));
        let mut wishes = 0;
        while let Some(ClientEvent::WantContent { .. }) = client.poll_event() {
            wishes += 1;
            client.provide_content(Bytes::from_static(b"x"), at(1));
            assert_eq!(sent(&mut client), "BDAT 1\r\nx");
        }
        assert_eq!(wishes, bound);
        let (_, events) = told(&mut client, "250 chunk\r\n");
        assert_eq!(events, [ClientEvent::WantContent { offset: bound, max: 100 - bound as usize }]);
    }
}

#[test]
fn a_chunk_refused_midway_ends_the_transaction_once_the_owner_has_answered() {
    let mut client = ready(config(TlsUse::Never), &["CHUNKING", "PIPELINING"]);
    client.begin(transaction(&["b@x"], &[b'x'; 100], None), at(1));
    sent(&mut client);
    told(&mut client, "250 OK\r\n250 OK\r\n");
    client.provide_content(Bytes::from_static(b"xx"), at(1));
    sent(&mut client);
    assert!(matches!(client.poll_event(), Some(ClientEvent::WantContent { offset: 2, .. })));
    let full = refused(0, Reply::new(452, (4, 3, 1), "disk full"), Stage::Content);
    assert_eq!(told(&mut client, "452 4.3.1 disk full\r\n"), ("RSET\r\n".to_owned(), vec![full]));
    assert_eq!(told(&mut client, "250 OK\r\n"), (String::new(), vec![]));
    assert!(!client.is_idle());
    assert_eq!(client.deadline(), at(181));
    client.provide_content(Bytes::from_static(b"late"), at(2));
    assert_eq!(events(&mut client), [ClientEvent::Ready]);
    assert_eq!(sent(&mut client), "");
}

#[test]
fn content_that_cannot_be_had_ends_the_connection() {
    for bytes in [&b""[..], b"more than was said"] {
        for extensions in [&["CHUNKING"][..], &[]] {
            let mut client = ready(config(TlsUse::Never), extensions);
            client.begin(transaction(&["b@x"], b"1234567", None), at(1));
            ["250 OK\r\n", "250 OK\r\n", "354 go\r\n"].iter().take(3 - extensions.len()).for_each(|reply| {
                sent(&mut client);
                client.handle_input(reply.as_bytes(), at(1));
            });
            assert!(matches!(client.poll_event(), Some(ClientEvent::WantContent { .. })));
            client.provide_content(Bytes::copy_from_slice(bytes), at(1));
            let events = events(&mut client);
            let failure =
                ClientFailure { stage: Stage::Content, kind: FailureKind::ContentUnavailable, after_final_dot: false };
            assert_eq!(failed(&events), &failure);
            assert_eq!(client.poll_transmit(), None);
        }
    }
}

#[test]
fn helo_where_ehlo_is_unknown() {
    let mut client = new_client(config(TlsUse::Opportunistic));
    told(&mut client, "220 mx\r\n");
    assert_eq!(told(&mut client, "502 5.5.1 what?\r\n").0, "HELO client.example\r\n");
    assert_eq!(told(&mut client, "250 mx\r\n").1, [ClientEvent::Ready]);
    client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
    assert_eq!(sent(&mut client), "MAIL FROM:<a@client.example>\r\n");
}

#[test]
fn a_peer_that_refuses_to_talk_is_told_as_refused() {
    let no = Reply::new(554, (5, 7, 1), "no");
    let busy = Reply::new(450, (4, 0, 0), "busy");
    for (replies, stage, reply) in [
        (&["554 5.7.1 no\r\n"][..], Stage::Greeting, &no),
        (&["450 4.0.0 busy\r\n"], Stage::Greeting, &busy),
        (&["220 mx\r\n", "450 4.0.0 busy\r\n"], Stage::Hello, &busy),
        (&["220 mx\r\n", "500 what\r\n", "554 5.7.1 no\r\n"], Stage::Hello, &no),
    ] {
        let mut client = new_client(config(TlsUse::Never));
        let mut seen = Vec::new();
        for reply in replies {
            seen = told(&mut client, reply).1;
        }
        let kind = FailureKind::Refused(reply.clone());
        assert_eq!(failed(&seen), &ClientFailure { stage, kind, after_final_dot: false });
        assert_eq!(client.deadline(), Instant::MAX);
        assert_eq!(told(&mut client, "250 OK\r\n"), (String::new(), vec![]), "nothing happens any more");
    }
}

/// A client that has got so far as to say STARTTLS.
fn starting_tls(tls: TlsUse) -> Client {
    let mut client = new_client(config(tls));
    told(&mut client, "220 mx\r\n");
    assert_eq!(told(&mut client, &hello(&["STARTTLS", "PIPELINING"])), ("STARTTLS\r\n".to_owned(), vec![]));
    client
}

#[test]
fn tls_is_started_and_the_peer_asked_anew() {
    let mut client = starting_tls(TlsUse::Required);
    assert_eq!(told(&mut client, "220 go\r\n"), (String::new(), vec![ClientEvent::StartTls]));
    assert_eq!(client.deadline(), at(301));
    assert!(!client.secure());
    client.handle_tls_started(at(2));
    assert!(client.secure());
    assert!(!client.peer().pipelining(), "what was said in clear is forgotten");
    assert_eq!(sent(&mut client), "EHLO client.example\r\n");
    assert_eq!(told(&mut client, &hello(&["STARTTLS", "CHUNKING"])), (String::new(), vec![ClientEvent::Ready]));
    assert!(client.peer().chunking());
}

#[test]
fn bytes_behind_the_reply_to_starttls_are_an_injection() {
    for input in ["220 go\r\n2", "220 go\r\n250 injected\r\n"] {
        let mut client = starting_tls(TlsUse::Opportunistic);
        let events = told(&mut client, input).1;
        assert!(matches!(failed(&events).kind, FailureKind::Protocol(_)));
    }
    let mut client = starting_tls(TlsUse::Opportunistic);
    told(&mut client, "220 go\r\n");
    let events = told(&mut client, "x").1;
    assert!(matches!(failed(&events).kind, FailureKind::Protocol(_)));
    assert_eq!(failed(&events).stage, Stage::StartTls);
}

#[test]
fn tls_refused_or_not_offered() {
    for reply in ["454 4.7.0 not now\r\n", "501 5.5.4 no\r\n"] {
        let mut client = starting_tls(TlsUse::Opportunistic);
        assert_eq!(told(&mut client, reply).1, [ClientEvent::Ready]);
        let mut client = starting_tls(TlsUse::Required);
        let events = told(&mut client, reply).1;
        assert!(matches!(failed(&events).kind, FailureKind::TlsRefused(_)));
    }
    let mut client = starting_tls(TlsUse::Opportunistic);
    assert!(matches!(failed(&told(&mut client, "250 odd\r\n").1).kind, FailureKind::Protocol(_)));
    let mut client = new_client(config(TlsUse::Required));
    told(&mut client, "220 mx\r\n");
    let events = told(&mut client, &hello(&[])).1;
    let kind = FailureKind::TlsNotOffered;
    assert_eq!(failed(&events), &ClientFailure { stage: Stage::StartTls, kind, after_final_dot: false });
}

#[test]
fn what_the_peer_cannot_take_is_not_sent() {
    let mut client = ready(config(TlsUse::Never), &["SIZE 5"]);
    let mut eight_bit = transaction(&["b@x", "c@x"], b"1\r\n", Some(9));
    eight_bit.body = Body::EightBitMime;
    let mut utf8 = transaction(&["b@x", "c@x"], b"1\r\n", Some(9));
    utf8.smtputf8 = true;
    let utf8_path = transaction(&["b@x", "jörg@x"], b"1\r\n", Some(9));
    let big = transaction(&["b@x", "c@x"], b"1234\r\n", Some(9));
    let broken = transaction(&["b@x", "c@x>\r\nRCPT TO:<d@x"], b"1\r\n", Some(9));
    for (message, code) in
        [(eight_bit, "5.6.3"), (utf8, "5.6.7"), (utf8_path, "5.6.7"), (big, "5.3.4"), (broken, "5.1.3")]
    {
        client.begin(message, at(1));
        assert_eq!(sent(&mut client), "");
        let seen = events(&mut client);
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[2], ClientEvent::Ready);
        for event in &seen[..2] {
            let ClientEvent::Recipient { outcome, .. } = event else { panic!("{event:?}") };
            let found = match outcome {
                RecipientOutcome::Unsupported { enhanced, .. } => enhanced.to_string(),
                RecipientOutcome::Refused { reply, stage: Stage::Mail } => reply.enhanced.unwrap().to_string(),
                other => panic!("{other:?}"),
            };
            assert_eq!(found, code);
        }
    }
    let mut client = ready(ClientConfig { assume_8bitmime: true, ..config(TlsUse::Never) }, &[]);
    let mut eight_bit = transaction(&["b@x"], b"1\r\n", Some(9));
    eight_bit.body = Body::EightBitMime;
    client.begin(eight_bit, at(1));
    assert_eq!(sent(&mut client), "MAIL FROM:<a@client.example>\r\n");
    let mut client = ready(config(TlsUse::Never), ALL);
    client.begin(transaction(&["jörg@x"], b"1\r\n", Some(9)), at(1));
    assert!(sent(&mut client).starts_with("MAIL FROM:<a@client.example> SIZE=3 SMTPUTF8\r\nRCPT TO:<jörg@x>\r\n"));
}

#[test]
fn no_recipients_with_data_pipelined_get_a_lone_dot() {
    let mut client = ready(config(TlsUse::Never), &["PIPELINING"]);
    client.begin(transaction(&["b@x"], b"secret\r\n", Some(9)), at(1));
    sent(&mut client);
    let no = refused(0, Reply::new(550, (5, 1, 1), "no"), Stage::Recipient);
    let (dot, events) = told(&mut client, "250 OK\r\n550 5.1.1 no\r\n354 go\r\n");
    assert_eq!((dot.as_str(), events), (".\r\n", vec![no]));
    assert_eq!(told(&mut client, "250 empty but fine\r\n"), (String::new(), vec![ClientEvent::Ready]));
}

#[test]
fn a_transaction_left_open_is_reset() {
    let mut client = ready(config(TlsUse::Never), &[]);
    client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
    sent(&mut client);
    told(&mut client, "250 OK\r\n");
    let (reset, events) = told(&mut client, "550 5.1.1 no\r\n");
    assert_eq!((reset.as_str(), events.len()), ("RSET\r\n", 1));
    assert!(!client.is_idle());
    assert_eq!(client.deadline(), at(301));
    assert_eq!(told(&mut client, "250 OK\r\n").1, [ClientEvent::Ready]);
    // A refused MAIL opened nothing.
    client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
    sent(&mut client);
    let no = refused(0, Reply::new(550, (5, 7, 1), "no"), Stage::Mail);
    assert_eq!(told(&mut client, "550 5.7.1 no\r\n"), (String::new(), vec![no, ClientEvent::Ready]));
}

#[test]
fn a_421_leaves_the_undecided_undecided() {
    let replies = ["250 OK\r\n", "550 5.1.1 no\r\n", "250 OK\r\n", "354 go\r\n"];
    for before in 0..=replies.len() {
        let mut client = ready(config(TlsUse::Never), &["PIPELINING"]);
        client.begin(transaction(&["b@x", "c@x"], b"x\r\n", Some(9)), at(1));
        sent(&mut client);
        let mut seen = Vec::new();
        for reply in &replies[..before] {
            seen.extend(told(&mut client, reply).1);
        }
        seen.extend(told(&mut client, "421 4.3.2 going down\r\n").1);
        let failure = failed(&seen);
        let stages = [Stage::Mail, Stage::Recipient, Stage::Recipient, Stage::Data, Stage::FinalReply];
        assert_eq!(failure.stage, stages[before]);
        assert_eq!(failure.kind, FailureKind::Refused(Reply::new(421, (4, 3, 2), "going down")));
        assert!(!failure.after_final_dot, "421 is an answer: the message was not taken");
        assert_eq!(seen.len(), if before >= 2 { 2 } else { 1 });
    }
    let mut client = ready(config(TlsUse::Never), &[]);
    let seen = told(&mut client, "421 4.4.2 idle too long\r\n").1;
    assert_eq!(failed(&seen).stage, Stage::Idle);
    assert!(matches!(failed(&seen).kind, FailureKind::Refused(_)));
}

#[test]
fn replies_to_no_command_break_the_protocol() {
    // Behind the greeting, between messages, and before the content could be read.
    let mut client = new_client(config(TlsUse::Never));
    assert!(matches!(failed(&told(&mut client, "220 mx\r\n250 mx\r\n").1).kind, FailureKind::Protocol(_)));
    let mut client = ready(config(TlsUse::Never), &[]);
    assert!(matches!(failed(&told(&mut client, "250 OK\r\n").1).kind, FailureKind::Protocol(_)));
    let mut client = ready(config(TlsUse::Never), &["PIPELINING"]);
    client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
    sent(&mut client);
    let seen = told(&mut client, "250 OK\r\n250 OK\r\n354 go\r\n250 2.0.0 stored\r\n").1;
    assert!(matches!(failed(&seen).kind, FailureKind::Protocol(_)));
    assert!(!failed(&seen).after_final_dot && seen.len() == 1);
    // A reply begun before it was asked for does not become the answer to what is asked next.
    let mut client = ready(config(TlsUse::Never), &[]);
    client.handle_input(b"250 ", at(1));
    client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
    sent(&mut client);
    assert!(matches!(failed(&told(&mut client, "OK\r\n").1).kind, FailureKind::Protocol(_)));
    // Of the wrong kind.
    for reply in ["354 go\r\n", "250-x\r\n251 y\r\n", "hello\r\n", "999 x\r\n"] {
        let mut client = ready(config(TlsUse::Never), &[]);
        client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
        sent(&mut client);
        let seen = told(&mut client, reply).1;
        assert!(matches!(failed(&seen).kind, FailureKind::Protocol(_)), "{reply}");
    }
}

#[test]
fn a_whole_content_cannot_be_accepted_before_it_was_sent() {
    let mut client = ready(config(TlsUse::Never), ALL);
    client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
    assert!(client.poll_transmit().is_some());
    let seen = told(&mut client, "250 OK\r\n250 OK\r\n250 2.0.0 stored\r\n").1;
    assert!(matches!(failed(&seen).kind, FailureKind::Protocol(_)));
    assert!(!failed(&seen).after_final_dot);
}

#[test]
fn a_refusal_in_the_midst_of_data_counts_though_the_connection_is_lost() {
    let mut client = ready(config(TlsUse::Never), &[]);
    client.begin(transaction(&["b@x"], &[b'x'; 100], None), at(1));
    for reply in ["250 OK\r\n", "250 OK\r\n", "354 go\r\n"] {
        sent(&mut client);
        client.handle_input(reply.as_bytes(), at(1));
    }
    assert!(matches!(client.poll_event(), Some(ClientEvent::WantContent { .. })));
    let seen = told(&mut client, "552 5.3.4 too big\r\n").1;
    assert_eq!(seen[0], refused(0, Reply::new(552, (5, 3, 4), "too big"), Stage::Content));
    assert!(matches!(failed(&seen).kind, FailureKind::Protocol(_)));
}

#[test]
fn a_connection_lost_behind_the_content_leaves_the_outcome_uncertain() {
    for (extensions, replies, hand_out, uncertain) in [
        (&[][..], &["250 OK\r\n", "250 OK\r\n"][..], true, false),
        (&[], &["250 OK\r\n", "250 OK\r\n", "354 go\r\n"], false, false),
        (&[], &["250 OK\r\n", "250 OK\r\n", "354 go\r\n"], true, true),
        (&["PIPELINING", "CHUNKING"], &[], false, false),
        (&["PIPELINING", "CHUNKING"], &[], true, true),
        (&["PIPELINING", "CHUNKING"], &["250 OK\r\n250 OK\r\n"], true, true),
        (&["PIPELINING", "CHUNKING"], &["250 OK\r\n550 no\r\n"], true, false),
        (&["PIPELINING", "CHUNKING"], &["550 no\r\n"], true, false),
    ] {
        for how in ["closed", "timeout", "garbage"] {
            let mut client = ready(config(TlsUse::Never), extensions);
            client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
            for reply in replies {
                sent(&mut client);
                client.handle_input(reply.as_bytes(), at(1));
            }
            if hand_out {
                sent(&mut client);
            }
            match how {
                "closed" => client.handle_closed("reset by peer", at(2)),
                "timeout" => client.handle_timeout(client.deadline()),
                _ => client.handle_input(b"!\r\n", at(2)),
            }
            let seen = events(&mut client);
            assert_eq!(failed(&seen).after_final_dot, uncertain, "{extensions:?} {replies:?} {hand_out} {how}");
        }
    }
}

#[test]
fn every_wait_has_its_deadline() {
    let mut client = new_client(config(TlsUse::Never));
    assert_eq!(client.deadline(), at(300));
    client.handle_input(b"220-mx\r\n22", at(299));
    assert_eq!(client.deadline(), at(300), "a part of a reply renews nothing");
    client.handle_timeout(at(299));
    assert_eq!(events(&mut client), []);
    client.handle_timeout(at(300));
    let failure = ClientFailure { stage: Stage::Greeting, kind: FailureKind::Timeout, after_final_dot: false };
    assert_eq!(events(&mut client), [ClientEvent::Failed(failure)]);
    client.handle_timeout(Instant::MAX);
    client.handle_closed("late", at(400));
    assert_eq!(events(&mut client), []);
}

#[test]
fn quit_ends_in_closed_whatever_the_peer_does() {
    for how in 0..4 {
        let mut client = ready(config(TlsUse::Never), &[]);
        client.quit(at(10));
        assert_eq!(sent(&mut client), "QUIT\r\n");
        assert_eq!(client.deadline(), at(15));
        match how {
            0 => client.handle_input(b"221 bye\r\n", at(11)),
            1 => client.handle_closed("closed", at(11)),
            2 => client.handle_timeout(at(15)),
            _ => client.handle_input(b"421 gone\r\n", at(11)),
        }
        assert_eq!(events(&mut client), [ClientEvent::Closed]);
        assert!(!client.is_idle());
    }
    let mut client = new_client(config(TlsUse::Never));
    client.quit(at(1));
    assert_eq!((sent(&mut client), events(&mut client)), (String::new(), vec![ClientEvent::Closed]));
}

#[test]
fn a_client_is_lean() {
    assert!(size_of::<Client>() <= 512, "{}", size_of::<Client>());
    let mut client = ready(config(TlsUse::Never), ALL);
    client.begin(transaction(&["b@x"], b"x\r\n", Some(9)), at(1));
    sent(&mut client);
    told(&mut client, "250 OK\r\n250 OK\r\n250 OK\r\n");
    assert!(client.is_idle() && client.current.is_none() && client.outgoing.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_split_of_the_replies_gives_the_same_dialogue(
        cuts in proptest::collection::vec(1usize..40, 1..20),
        offered in 0usize..4,
        refusal in 0usize..7,
        streamed: bool,
        content in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), Just(b'x')], 0..200),
    ) {
        let run = |cuts: &[usize]| {
            let extensions = [&["X"][..], &["PIPELINING"], &["CHUNKING"], &["PIPELINING", "CHUNKING"]][offered].to_vec();
            let refuse = [
                ("-", ""), ("MAIL", "450 no"), ("b@x", "550 5.1.1 no"), ("c@x", "450-4.2.2 no\r\n450 4.2.2 no"),
                ("DATA", "451 no"), ("BDAT", "554 no"), ("END", "421 4.3.2 no"),
            ][refusal];
            let mut peer = TestPeer { extensions, refuse: vec![refuse], ..TestPeer::default() };
            let mut client = new_client(config(TlsUse::Opportunistic));
            let pair = || {
                let chunk = if streamed { None } else { Some(11) };
                (transaction(&["b@x", "c@x"], &content, chunk), content.clone())
            };
            let said = converse(&mut client, &mut peer, vec![pair(), pair()], 17, cuts);
            (said, peer.messages, peer.commands)
        };
        prop_assert_eq!(run(&[]), run(&cuts));
    }

    #[test]
    fn arbitrary_bytes_end_in_a_failure_or_a_wait_with_a_deadline(
        pieces in proptest::collection::vec(
            prop_oneof![
                "[2345][0-9]{2}[ -][ -~]{0,20}\r\n".prop_map(String::into_bytes),
                Just(hello(ALL).into_bytes()),
                Just(hello(&["STARTTLS"]).into_bytes()),
                Just(b"220 mx\r\n".to_vec()),
                Just(b"250 2.0.0 OK\r\n".to_vec()),
                Just(b"354 go\r\n".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..30),
            ],
            0..30,
        ),
        whole: bool,
        tls in prop_oneof![Just(TlsUse::Never), Just(TlsUse::Opportunistic), Just(TlsUse::Required)],
    ) {
        let mut client = new_client(config(tls));
        let content = b"x\r\n.y\r\n";
        let (mut open, mut over, mut wants) = (0, false, false);
        for (turn, piece) in pieces.iter().enumerate() {
            let now = at(turn as u64);
            client.handle_input(piece, now);
            while client.poll_transmit().is_some() {}
            while let Some(event) = client.poll_event() {
                prop_assert!(!over, "nothing comes behind the end");
                match event {
                    ClientEvent::Ready => {
                        prop_assert!(!wants);
                        open = 2;
                        client.begin(transaction(&["b@x", "c@x"], content, whole.then_some(5)), now);
                    }
                    ClientEvent::StartTls => client.handle_tls_started(now),
                    ClientEvent::WantContent { offset, max } => {
                        prop_assert!(!wants && max > 0);
                        wants = turn % 2 == 0;
                        if !wants {
                            client.provide_content(Bytes::copy_from_slice(&content[offset as usize..][..1]), now);
                        }
                    }
                    ClientEvent::Recipient { .. } => {
                        prop_assert!(open > 0);
                        open -= 1;
                    }
                    ClientEvent::Failed(_) | ClientEvent::Closed => over = true,
                }
                while client.poll_transmit().is_some() {}
            }
            prop_assert!(over || client.deadline() < Instant::MAX);
        }
        client.handle_timeout(client.deadline());
        while let Some(event) = client.poll_event() {
            over |= matches!(event, ClientEvent::Failed(_));
        }
        prop_assert!(over);
    }
}

/// Our own server's side of a connection, with an owner that takes everything.
struct OwnPeer {
    session: Session,
    owner: Keeping,
    input: Vec<u8>,
    /// The session waits for the handshake.
    tls_due: bool,
}

#[derive(Default)]
struct Keeping {
    mail: Option<MailFrom>,
    recipients: Vec<Recipient>,
    content: Vec<u8>,
    messages: Vec<(MailFrom, Vec<Recipient>, Vec<u8>)>,
    aborted: usize,
}

impl Transactions for Keeping {
    fn proxied(&mut self, _client: std::net::SocketAddr) {}

    fn hello(&mut self, name: &str, extended: bool) {
        assert_eq!((name, extended), ("client.example", true));
    }

    fn mail(&mut self, mail: MailFrom, _now: Now) -> Result<(), Reply> {
        self.mail = Some(mail);
        (self.recipients, self.content) = (Vec::new(), Vec::new());
        Ok(())
    }

    fn recipient(&mut self, recipient: Recipient, _now: Now) -> Result<(), Reply> {
        if recipient.address.as_str().starts_with("no@") {
            return Err(Reply::fixed(550, 5, 1, 1, "no such user"));
        }
        self.recipients.push(recipient);
        Ok(())
    }

    fn begin_content(&mut self, _now: Now) -> Result<(), Reply> {
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), Reply> {
        self.content.extend_from_slice(bytes);
        if self.content.starts_with(b"refuse") { Err(Reply::fixed(554, 5, 6, 0, "not this")) } else { Ok(()) }
    }

    fn end_content(&mut self, _now: Now) -> Result<(), Reply> {
        let mail = self.mail.take().expect("a transaction is open");
        self.messages.push((mail, std::mem::take(&mut self.recipients), std::mem::take(&mut self.content)));
        Ok(())
    }

    fn abort(&mut self) {
        self.aborted += 1;
    }
}

impl OwnPeer {
    fn new(pipelining: bool, chunking: bool, starttls: bool) -> (OwnPeer, Vec<u8>) {
        let config = SessionConfig {
            hostname: "mx.example".into(),
            max_message_size: 1_000_000,
            starttls,
            bare_newlines: BareNewlines::Refuse,
            proxy: false,
            max_recipients: 100,
            max_commands: 1_000,
            max_errors: 100,
            max_transactions: 100,
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(300),
            message_timeout: Duration::from_secs(3_600),
            chunking,
            dsn: true,
            smtputf8: true,
            pipelining,
        };
        let mut out = Vec::new();
        let mut session = Session::new(Arc::new(config), false, at(0));
        session.start(at(0), &mut out);
        (OwnPeer { session, owner: Keeping::default(), input: Vec::new(), tls_due: false }, out)
    }

    fn handle(&mut self, input: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(input);
        let mut out = Vec::new();
        let now = Now { instant: at(1), ..Now::default() };
        loop {
            let (consumed, mut step) = self.session.handle_input(&self.input, now, &mut self.owner, &mut out);
            self.input.drain(..consumed);
            if step == Step::AwaitStorage {
                step = self.session.handle_stored(Ok(MessageId(5)), at(1), &mut out);
            }
            self.tls_due = step == Step::StartTls;
            if self.input.is_empty() || step != Step::Read {
                return out;
            }
        }
    }
}

#[test]
fn our_own_server_gets_what_the_client_sends() {
    let contents: Vec<Vec<u8>> = odd_contents()
        .into_iter()
        .filter(|content| !content.ends_with(b"\r"))
        .chain([b"refuse this\r\n".repeat(50)])
        .collect();
    for (pipelining, chunking, starttls) in
        [(false, false, false), (true, false, true), (false, true, false), (true, true, false), (true, true, true)]
    {
        for content in &contents {
            for chunk in [Some(3_000), None] {
                let (mut peer, mut to_client) = OwnPeer::new(pipelining, chunking, starttls);
                let mut client = new_client(config(TlsUse::Opportunistic));
                let (mut outcomes, mut messages_left) = (Vec::new(), 3);
                'conversation: loop {
                    if !to_client.is_empty() {
                        client.handle_input(&std::mem::take(&mut to_client), at(1));
                    }
                    while let Some(bytes) = client.poll_transmit() {
                        to_client.extend(peer.handle(&bytes));
                    }
                    while let Some(event) = client.poll_event() {
                        match event {
                            ClientEvent::Ready if messages_left == 0 => client.quit(at(1)),
                            ClientEvent::Ready => {
                                messages_left -= 1;
                                let mut message = transaction(&["b@x.example", "no@x.example"], content, chunk);
                                message.ret = Some(Ret::Full);
                                message.envid = Some("id+2B".into());
                                message.recipients[0].notify = Notify::new(true, true, false);
                                message.recipients[0].orcpt = Some("rfc822;o@x.example".into());
                                client.begin(message, at(1));
                            }
                            ClientEvent::StartTls => {
                                assert!(std::mem::take(&mut peer.tls_due));
                                peer.session.handle_tls_started(at(1), &mut Vec::new());
                                client.handle_tls_started(at(1));
                            }
                            ClientEvent::WantContent { offset, max } => {
                                let from = offset as usize;
                                let until = content.len().min(from + max.min(10_000));
                                client.provide_content(Bytes::copy_from_slice(&content[from..until]), at(1));
                            }
                            ClientEvent::Recipient { index, outcome } => outcomes.push((index, outcome)),
                            ClientEvent::Failed(failure) => panic!("{failure}"),
                            ClientEvent::Closed => break 'conversation,
                        }
                    }
                }
                assert_eq!(client.secure(), starttls);
                assert_eq!(outcomes.len(), 6);
                let taken = !content.starts_with(b"refuse");
                for (index, outcome) in outcomes {
                    match outcome {
                        RecipientOutcome::Refused { stage: Stage::Recipient, .. } => assert_eq!(index, 1),
                        RecipientOutcome::Refused { reply, .. } => assert!(!taken && reply.text == "not this"),
                        RecipientOutcome::Delivered(reply) => {
                            assert!(taken && index == 0);
                            assert_eq!(reply.to_string(), "250 2.0.0 OK: queued as 0000000000005");
                        }
                        other => panic!("{other:?}"),
                    }
                }
                let messages = &peer.owner.messages;
                assert_eq!(messages.len(), if taken { 3 } else { 0 });
                for (mail, recipients, arrived) in messages {
                    assert_eq!(arrived, &closed_line(content));
                    assert_eq!(mail.size, Some(content.len() as u64));
                    assert_eq!((mail.ret, mail.envid.as_deref()), (Some(Ret::Full), Some("id+2B")));
                    assert_eq!(recipients.len(), 1);
                    assert_eq!(recipients[0].notify, Notify::new(true, true, false));
                    assert_eq!(recipients[0].orcpt.as_deref(), Some("rfc822;o@x.example"));
                }
                assert!(!taken || peer.owner.aborted == 0);
            }
        }
    }
}
