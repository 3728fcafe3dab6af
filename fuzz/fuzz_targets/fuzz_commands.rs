//! The session as a server: any bytes give the same replies and the same questions to the owner however they are cut;
//! the owner is asked in order; every reply is well formed and within its bound; a closed session says nothing more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpost::clock::{Instant, Now};
use ringpost::envelope::{Envelope, Recipient};
use ringpost::id::MessageId;
use ringpost::limits::{LOGIN_OCTETS_MAX, SESSION_REPLIES_OCTETS_MAX, TOKEN_OCTETS_MAX};
use ringpost::pieces::Pieces;
use ringpost::reply::Reply;
use ringpost::smtp::sasl::{Channel, Login, Mechanism, Mechanisms, Proof};
use ringpost::smtp::scram::{ITERATIONS, SALT_OCTETS, ScramKeys, ScramOffer};
use ringpost::smtp::server::{BareNewlines, MailFrom, Session, SessionConfig, Step, Transactions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const SIZE_MAX: usize = 64;

#[derive(Default)]
struct Owner {
    calls: Vec<String>,
    envelope: Option<Envelope>,
    in_content: bool,
    content: Vec<u8>,
    logged_in: bool,
    /// The login that is to be judged later.
    judging: Option<Login>,
}

/// Logins whose names start with this letter are refused.
fn judge(login: &Login) -> Result<(), Reply> {
    if login.name.starts_with('x') { Err(Reply::new(535, (5, 7, 8), "no")) } else { Ok(()) }
}

/// Local parts that start with this letter are refused where it says.
fn refused(address: &str, letter: &str) -> Result<(), Reply> {
    if address.starts_with(letter) { Err(Reply::new(550, (5, 0, 0), letter)) } else { Ok(()) }
}

impl Owner {
    fn sender(&self) -> String {
        let path = self.envelope.as_ref().and_then(|envelope| envelope.reverse_path.as_ref());
        path.map(|path| path.to_string()).unwrap_or_default()
    }
}

impl Transactions for Owner {
    fn proxied(&mut self, client: SocketAddr, _now: Now) -> Result<(), Reply> {
        assert!(self.calls.is_empty());
        self.calls.push(format!("proxied {client}"));
        Ok(())
    }

    fn hello(&mut self, name: &str, extended: bool) {
        assert!(self.envelope.is_none());
        assert!((1..=255).contains(&name.len()) && name.bytes().all(|octet| octet.is_ascii_graphic()));
        self.calls.push(format!("hello {name} {extended}"));
    }

    fn authenticate(&mut self, login: Login, _now: Now) -> Option<Result<(), Reply>> {
        assert!(self.envelope.is_none() && !self.logged_in && self.judging.is_none());
        // A token or a certificate may be what names the login.
        let nameless = matches!(login.proof, Proof::Token(_) | Proof::Certificate);
        assert!((usize::from(!nameless)..=LOGIN_OCTETS_MAX).contains(&login.name.len()));
        let secret = login.proof.secret().map(|secret| secret.expose()).unwrap_or_default();
        match &login.proof {
            Proof::Password(_) => assert!((1..=LOGIN_OCTETS_MAX).contains(&secret.len())),
            Proof::Token(_) => assert!((1..=TOKEN_OCTETS_MAX).contains(&secret.len())),
            // No proof is found by chance.
            Proof::Scram(_) | Proof::Certificate => assert!(secret.is_empty()),
        }
        self.calls.push(format!("login {:?} {} {}", login.mechanism, login.name.escape_debug(), secret.escape_ascii()));
        if login.name.starts_with('l') {
            self.judging = Some(login);
            return None;
        }
        let judged = judge(&login);
        self.logged_in = judged.is_ok();
        Some(judged)
    }

    fn channel(&self) -> Channel {
        Channel { exporter: Some([7; 32]), certified: true }
    }

    fn scram(&mut self, name: &str, _now: Now) -> Option<ScramOffer> {
        assert!((1..=LOGIN_OCTETS_MAX).contains(&name.len()));
        self.calls.push(format!("scram {}", name.escape_debug()));
        let keys = ScramKeys { salt: [1; SALT_OCTETS], iterations: ITERATIONS, stored: [2; 32], server: [3; 32] };
        Some(ScramOffer { nonce: "server".into(), salt: keys.salt, iterations: keys.iterations, keys: vec![keys] })
    }

    fn mail(&mut self, mail: MailFrom, now: Now) -> Result<(), Reply> {
        assert!(self.envelope.is_none());
        assert!(mail.size.is_none_or(|size| size <= SIZE_MAX as u64));
        self.calls.push(format!("{mail:?}"));
        let sender = mail.reverse_path.as_ref().map(|path| path.to_string()).unwrap_or_default();
        refused(&sender, "m")?;
        assert!(mail.smtputf8 || sender.is_ascii());
        self.envelope = Some(Envelope {
            reverse_path: mail.reverse_path,
            body: mail.body,
            smtputf8: mail.smtputf8,
            ret: mail.ret,
            envid: mail.envid,
            recipients: Vec::new(),
            tenant: "t".into(),
            arrived: now.unix,
            client: "c".into(),
            require_tls: false,
            is_dsn: false,
            held: None,
        });
        Ok(())
    }

    fn recipient(&mut self, recipient: Recipient, _now: Now) -> Result<(), Reply> {
        assert!(!self.in_content);
        self.calls.push(format!("{recipient:?}"));
        let envelope = self.envelope.as_mut().expect("a recipient within a transaction");
        assert!(envelope.smtputf8 || recipient.address.is_ascii());
        refused(recipient.address.as_str(), "r")?;
        envelope.recipients.push(recipient);
        assert!(envelope.recipients.len() <= 2);
        Ok(())
    }

    fn begin_content(&mut self, _now: Now) -> Result<(), Reply> {
        let envelope = self.envelope.as_ref().expect("content within a transaction");
        assert!(!self.in_content && !envelope.recipients.is_empty());
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        assert_eq!(Envelope::decode(&bytes).as_ref(), Ok(envelope));
        self.in_content = true;
        self.content.clear();
        self.calls.push("begin".into());
        refused(&self.sender(), "b")
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), Reply> {
        assert!(self.in_content && !bytes.is_empty());
        refused(&self.sender(), "c")?;
        self.content.extend_from_slice(bytes);
        assert!(self.content.len() <= SIZE_MAX);
        Ok(())
    }

    fn end_content(&mut self, _now: Now) -> Result<(), Reply> {
        assert!(self.in_content);
        self.calls.push(format!("end {}", self.content.escape_ascii()));
        refused(&self.sender(), "e")?;
        self.in_content = false;
        self.envelope = None;
        Ok(())
    }

    fn abort(&mut self) {
        assert!(self.envelope.take().is_some());
        self.in_content = false;
        self.calls.push(format!("abort {}", self.content.escape_ascii()));
        self.content.clear();
    }
}

fn talk(config: &Arc<SessionConfig>, pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>, Step) {
    // Logins come under TLS alone.
    let mut session = Session::new(config.clone(), config.auth, Instant::ZERO);
    let (mut owner, mut out, mut step, mut stored) = (Owner::default(), Vec::new(), Step::Read, 0);
    session.start(Instant::ZERO, &mut out);
    if config.auth {
        session.handle_tls_started(Instant::ZERO, &mut out);
    }
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let before = out.len();
            let closed = step == Step::Close;
            let (consumed, next) = session.handle_input(rest, Now::default(), &mut owner, &mut out);
            // What is left after a Read is offered again once the replies are sent, of which there are many then.
            let many = consumed > 0 && out.len() - before >= SESSION_REPLIES_OCTETS_MAX;
            assert!(consumed == rest.len() || next != Step::Read || many);
            assert!(out.len() - before <= SESSION_REPLIES_OCTETS_MAX + 1024);
            assert!(!closed || (next == Step::Close && out.len() == before));
            rest = &rest[consumed..];
            step = next;
            if step == Step::Read && !rest.is_empty() {
                continue;
            }
            if step == Step::AwaitAuthentication {
                let waits = session.handle_input(rest, Now::default(), &mut owner, &mut out);
                assert_eq!(waits, (0, Step::AwaitAuthentication));
                let judged = owner.judging.take().map(|login| judge(&login)).expect("a login to judge");
                owner.logged_in = judged.is_ok();
                step = session.handle_authenticated(judged, Instant::ZERO, &mut out);
                continue;
            }
            if step != Step::AwaitStorage {
                break;
            }
            assert_eq!(session.handle_input(rest, Now::default(), &mut owner, &mut out), (0, Step::AwaitStorage));
            stored += 1;
            step = session.handle_stored(Ok(MessageId(stored)), Instant::ZERO, &mut out);
        }
    }
    (owner.calls, out, step)
}

fuzz_target!(|input: &[u8]| {
    let Some(pieces) = Pieces::of(input) else { return };
    let bit = |bit: u8| pieces.settings >> bit & 1 != 0;
    let config = Arc::new(SessionConfig {
        hostname: "mx.example.org".into(),
        max_message_size: SIZE_MAX as u64,
        // What comes behind STARTTLS depends on where reads end, by its nature.
        starttls: false,
        auth: bit(6) && !bit(1),
        mechanisms: Mechanisms::of(Mechanism::ALL),
        auth_in_clear: false,
        bare_newlines: if bit(0) { BareNewlines::Convert } else { BareNewlines::Refuse },
        proxy: bit(1),
        strangers: Default::default(),
        max_recipients: 2,
        max_commands: 200,
        max_errors: if bit(2) { 3 } else { 200 },
        max_transactions: 20,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(300),
        message_timeout: Duration::from_secs(300),
        chunking: !bit(3),
        dsn: !bit(4),
        smtputf8: !bit(5),
        pipelining: true,
    });
    let whole = talk(&config, &[pieces.bytes]);
    assert!(whole == talk(&config, &pieces.cut()), "the cut matters");
    for line in whole.1.split_inclusive(|&octet| octet == b'\n') {
        let text = line.strip_suffix(b"\r\n").expect("a reply line ends with CRLF");
        assert!(line.len() <= 512 && text.len() >= 4 && text[..3].iter().all(u8::is_ascii_digit));
        assert!(!text.contains(&b'\r') && !text.contains(&0));
    }
});
