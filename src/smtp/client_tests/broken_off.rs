//! Connections that end before their time, or with replies to nothing: what is certain then, and what is not.

use super::*;

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
