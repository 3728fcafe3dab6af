//! STARTTLS as the client says it: carried out, refused, not offered, and bytes behind it that nobody may read.

use super::*;
use crate::reply::EnhancedCode;

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
fn what_must_be_protected_goes_to_peers_that_protect_it_under_tls() {
    let require_tls = || Transaction { require_tls: true, ..transaction(&["b@mx.example"], b"x\r\n", None) };
    let lacks = |events: &[ClientEvent]| {
        let wanted = EnhancedCode { class: 5, subject: 7, detail: 30 };
        events.iter().any(|event| {
            matches!(event, ClientEvent::Recipient { outcome: RecipientOutcome::Unsupported { enhanced, .. }, .. } if *enhanced == wanted)
        })
    };
    // Offered in clear it counts for nothing, and neither does TLS without it.
    let mut client = new_client(config(TlsUse::Never));
    told(&mut client, "220 mx\r\n");
    told(&mut client, &hello(&["REQUIRETLS"]));
    client.begin(require_tls(), at(1));
    assert!(lacks(&told(&mut client, "").1));
    for (offered, taken) in [(&["DSN"][..], false), (&["REQUIRETLS"], true)] {
        let mut client = starting_tls(TlsUse::Required);
        told(&mut client, "220 go\r\n");
        client.handle_tls_started(at(2));
        sent(&mut client);
        told(&mut client, &hello(offered));
        client.begin(require_tls(), at(3));
        let (text, events) = told(&mut client, "");
        assert_eq!(
            (text.starts_with("MAIL FROM:<a@client.example> REQUIRETLS\r\n"), lacks(&events)),
            (taken, !taken),
            "{text}"
        );
    }
}
