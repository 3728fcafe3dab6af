//! The next transaction's commands behind a content.

use super::*;

const ENVELOPE: &str = "MAIL FROM:<a@client.example>\r\nRCPT TO:<b@x>\r\nDATA\r\n";

fn message() -> Transaction {
    transaction(&["b@x"], b"Subject: x\r\n", Some(100))
}

/// A client whose content has gone out, and whose next envelope stands behind it.
fn gone_ahead(trial: bool) -> Client {
    let mut client = ready(config(TlsUse::Never), &["PIPELINING"]);
    client.begin(message(), at(1));
    assert_eq!(sent(&mut client), ENVELOPE);
    assert!(!client.may_begin_ahead());
    client.handle_input(b"250 ok\r\n250 ok\r\n354 go\r\n", at(1));
    assert!(client.may_begin_ahead());
    client.begin_ahead(message(), trial).expect("it is the time");
    assert!(!client.may_begin_ahead(), "one is enough");
    assert_eq!(sent(&mut client), format!("Subject: x\r\n.\r\n{ENVELOPE}"));
    assert_eq!(events(&mut client), []);
    client
}

#[test]
fn both_are_delivered_and_each_round_trip_carries_one() {
    for trial in [true, false] {
        let mut client = gone_ahead(trial);
        let (content, events) = told(&mut client, "250 2.0.0 stored\r\n250 ok\r\n250 ok\r\n354 go\r\n");
        assert_eq!(content, "Subject: x\r\n.\r\n");
        assert_eq!(events, [delivered(0), ClientEvent::Next]);
        let (_, events) = told(&mut client, "250 2.0.0 stored\r\n");
        assert_eq!(events, [delivered(0), ClientEvent::Ready]);
        assert!(client.is_idle());
    }
}

#[test]
fn a_refused_content_does_not_touch_the_next_message() {
    let mut client = gone_ahead(false);
    let (_, events) = told(&mut client, "554 5.0.0 no\r\n250 ok\r\n");
    assert_eq!(events, [refused(0, Reply::new(554, (5, 0, 0), "no"), Stage::FinalReply), ClientEvent::Next]);
    let (content, events) = told(&mut client, "250 ok\r\n354 go\r\n");
    assert_eq!((content.as_str(), events), ("Subject: x\r\n.\r\n", vec![]));
}

#[test]
fn replies_of_a_peer_that_lost_commands_decide_nothing() {
    for (trial, reply) in [(false, "503 no MAIL"), (false, "500 what?"), (true, "550 5.1.1 no"), (true, "451 4.0.0 no")]
    {
        for before in ["", "250 ok\r\n", "250 ok\r\n250 ok\r\n"] {
            let mut client = gone_ahead(trial);
            let (_, events) = told(&mut client, &format!("250 2.0.0 stored\r\n{before}{reply}\r\n"));
            assert_eq!(events[..2], [delivered(0), ClientEvent::Next]);
            assert!(matches!(failed(&events).kind, FailureKind::Protocol(_)), "{events:?}");
            assert!(events.len() == 3 && !failed(&events).after_final_dot);
        }
    }
}

#[test]
fn a_host_that_is_known_to_take_it_may_refuse() {
    // The peer finds DATA without a recipient, and RCPT without a sender, out of sequence: nothing was lost.
    for (replies, stage) in [
        ("250 ok\r\n550 5.1.1 no\r\n503 5.5.1 none\r\n", Stage::Recipient),
        ("450 4.0.0 no\r\n503 5.5.1 none\r\n503 5.5.1 none\r\n", Stage::Mail),
    ] {
        let mut client = gone_ahead(false);
        let (rest, events) = told(&mut client, &format!("250 2.0.0 stored\r\n{replies}"));
        assert_eq!(events[..2], [delivered(0), ClientEvent::Next]);
        let refused_at = |event: &ClientEvent| match event {
            ClientEvent::Recipient { outcome: RecipientOutcome::Refused { stage, .. }, .. } => Some(*stage),
            _ => None,
        };
        assert_eq!(refused_at(&events[2]), Some(stage), "{events:?}");
        assert!(events.len() == 3 || events[3] == ClientEvent::Ready, "{events:?}");
        let end = if rest.is_empty() { events } else { told(&mut client, "250 ok\r\n").1 };
        assert_eq!(end.last(), Some(&ClientEvent::Ready), "{rest}");
    }
}

#[test]
fn a_peer_that_threw_the_commands_away_is_not_waited_for_long() {
    let mut client = gone_ahead(false);
    told(&mut client, "250 2.0.0 stored\r\n");
    assert_eq!(client.deadline(), at(31));
    client.handle_timeout(at(31));
    let events = events(&mut client);
    assert_eq!((failed(&events).kind.clone(), failed(&events).stage), (FailureKind::Timeout, Stage::Mail));
}

#[test]
fn what_breaks_before_the_final_reply_leaves_the_first_in_doubt() {
    let mut client = gone_ahead(false);
    client.handle_closed("gone", at(2));
    let events = events(&mut client);
    assert!(events.len() == 1 && failed(&events).after_final_dot, "{events:?}");
}

#[test]
fn it_needs_pipelining_and_data() {
    for extensions in [&["X"][..], &["CHUNKING", "PIPELINING"]] {
        let mut client = ready(config(TlsUse::Never), extensions);
        client.begin(message(), at(1));
        sent(&mut client);
        client.handle_input(b"250 ok\r\n", at(1));
        sent(&mut client);
        client.handle_input(b"250 ok\r\n", at(1));
        sent(&mut client);
        assert!(!client.may_begin_ahead());
        assert!(client.begin_ahead(message(), false).is_err());
    }
    let mut client = ready(config(TlsUse::Never), &["PIPELINING"]);
    client.begin(message(), at(1));
    sent(&mut client);
    client.handle_input(b"250 ok\r\n250 ok\r\n354 go\r\n", at(1));
    let mut other = message();
    other.smtputf8 = true;
    assert!(client.begin_ahead(other, false).is_err(), "the peer lacks SMTPUTF8");
}
