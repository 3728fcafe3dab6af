//! The client joined with the server of this program: what one sends the other takes, octet by octet.

use super::*;
use crate::clock::Now;
use crate::envelope::Recipient;
use crate::id::MessageId;
use crate::smtp::server::{BareNewlines, MailFrom, Session, SessionConfig, Step, Transactions};

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
    fn proxied(&mut self, _client: std::net::SocketAddr, _now: Now) -> Result<(), Reply> {
        Ok(())
    }

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
            auth: false,
            mechanisms: Default::default(),
            auth_in_clear: false,
            bare_newlines: BareNewlines::Refuse,
            proxy: false,
            strangers: Default::default(),
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
                let (mut outcomes, mut messages_left, mut went_ahead) = (Vec::new(), 3, 0);
                let message = || {
                    let mut message = transaction(&["b@x.example", "no@x.example"], content, chunk);
                    message.ret = Some(Ret::Full);
                    message.envid = Some("id+2B".into());
                    message.recipients[0].notify = Notify::new(true, true, false);
                    message.recipients[0].orcpt = Some("rfc822;o@x.example".into());
                    message
                };
                'conversation: loop {
                    if !to_client.is_empty() {
                        client.handle_input(&std::mem::take(&mut to_client), at(1));
                    }
                    if client.may_begin_ahead() && messages_left > 0 {
                        messages_left -= 1;
                        went_ahead += 1;
                        client.begin_ahead(message(), false).expect("the peer lacks nothing");
                    }
                    while let Some(bytes) = client.poll_transmit() {
                        to_client.extend(peer.handle(&bytes));
                    }
                    while let Some(event) = client.poll_event() {
                        match event {
                            ClientEvent::Ready if messages_left == 0 => client.quit(at(1)),
                            ClientEvent::Ready => {
                                messages_left -= 1;
                                client.begin(message(), at(1));
                            }
                            ClientEvent::Next => {}
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
                assert_eq!(went_ahead > 0, pipelining && !chunking, "{chunk:?}");
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
