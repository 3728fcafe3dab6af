//! Tests of the SMTP client: joined with a small peer over all combinations of extensions, state by state against
//! scripted replies, and against arbitrary bytes.

mod ahead;
mod broken_off;
mod own_server;
mod starttls;
mod test_peer;

use super::client::*;
use crate::clock::Instant;
use crate::envelope::{Body, Notify, Ret};
use crate::limits::CLIENT_CONTENT_PIECE_OCTETS_MAX;
use crate::reply::Reply;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use test_peer::{TestPeer, converse};

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
        pipelined_messages: true,
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
        require_tls: false,
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
                    ClientEvent::Next => {
                        prop_assert!(open == 0 && !wants);
                        open = 2;
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
                if client.may_begin_ahead() && turn % 3 > 0 {
                    prop_assert!(client.begin_ahead(transaction(&["b@x", "c@x"], content, Some(5)), turn % 3 > 1).is_ok());
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
