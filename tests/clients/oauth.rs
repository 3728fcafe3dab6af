//! Logging in with tokens: real clients, an issuer on loopback, and tokens that are wrong in one way each.

use super::programs::{program, run};
use super::relay::{Directory, Relay, Setup};
use super::sink::Sink;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

const ISSUER: &str = "https://id.test";

/// A key of the issuer and its public half.
pub struct Key {
    id: &'static str,
    private: EncodingKey,
}

impl Key {
    pub fn new(id: &'static str) -> Key {
        let pair = rcgen::KeyPair::generate().expect("a key of P-256");
        Key { id, private: EncodingKey::from_ec_der(&pair.serialize_der()) }
    }

    fn public(&self) -> Jwk {
        let mut key = Jwk::from_encoding_key(&self.private, Algorithm::ES256).expect("a public key");
        key.common.key_id = Some(self.id.to_owned());
        key
    }

    pub fn set(&self) -> String {
        serde_json::to_string(&JwkSet { keys: vec![self.public()] }).expect("JSON")
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.private).expect("a token")
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

/// Good claims for this login, with some of them changed.
pub fn claims(login: &str, changes: Value) -> Value {
    let mut claims =
        json!({ "iss": ISSUER, "aud": ["mail", "ringpost"], "sub": login, "exp": now() + 600, "scope": "openid smtp" });
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims
}

pub fn section(more: &str) -> String {
    format!("[oauth]\nissuers = \"{ISSUER}\"\naudiences = \"ringpost\"\nscope = \"smtp\"\n{more}\n")
}

/// A relay in the clear whose clients log in with tokens, and "app" that may.
fn relay(more: &str, hop: SocketAddr, directory: Directory) -> Relay {
    let listener = "kind = \"submission\"\nauth_in_clear = true\nauth_mechanisms = [\"OAUTHBEARER\", \"XOAUTH2\"]";
    let relay = Setup::new().listener(listener).next_hop(hop).sections(&section(more)).start_in(directory);
    relay.command(&["tenant", "add", "acme", "--unverified", "pass"]).succeeded();
    relay.json(&["credential", "add", "app", "--tenant", "acme"]);
    relay
}

/// Logs in with this answer of XOAUTH2; gives the last reply.
fn try_token(relay: &Relay, user: &str, token: &str) -> String {
    use base64::Engine as _;
    let answer = format!("user={user}\u{1}auth=Bearer {token}\u{1}\u{1}");
    let answer = base64::engine::general_purpose::STANDARD.encode(answer);
    let mut socket = BufReader::new(std::net::TcpStream::connect(relay.address).expect("a connection"));
    let mut say = |command: &str| {
        socket.get_mut().write_all(command.as_bytes()).expect("a command is sent");
        let mut reply = String::new();
        while reply.lines().last().is_none_or(|line| line.as_bytes().get(3) == Some(&b'-')) {
            socket.read_line(&mut reply).expect("a reply");
        }
        reply
    };
    say("");
    say("EHLO app.test\r\n");
    let reply = say(&format!("AUTH XOAUTH2 {answer}\r\n"));
    if reply.starts_with("334 ") { say("\r\n") } else { reply }
}

/// An issuer: each request's path and body, answered with a text or 404.
fn issuer(answer: impl Fn(&str, &str) -> Option<String> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = BufReader::new(socket.expect("a connection"));
            let (mut first, mut length, mut authorized) = (String::new(), 0, String::new());
            loop {
                let mut line = String::new();
                if socket.read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                if lower.starts_with("authorization:") {
                    authorized = line.trim_end().to_owned();
                }
                if first.is_empty() {
                    first = line;
                }
            }
            let mut body = vec![0; length];
            socket.read_exact(&mut body).expect("the body");
            let path = first.split(' ').nth(1).unwrap_or_default();
            let body = format!("{authorized}\n{}", String::from_utf8_lossy(&body));
            let (status, text) = answer(path, &body).map_or(("404 Not Found", String::new()), |text| ("200 OK", text));
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
            let _ = socket.get_mut().write_all(format!("{head}{text}").as_bytes());
        }
    });
    address
}

#[test]
fn tokens_of_the_issuer_for_the_login_are_taken_and_others_refused() {
    let sink = Sink::new();
    let (key, other) = (Key::new("one"), Key::new("one"));
    let directory = Directory::new();
    let file = directory.file("keys.json", key.set());
    let relay = relay(&format!("keys = \"{}\"", file.display()), sink.address, directory);
    let good = key.sign(&claims("app", json!({})));
    for _ in 0..2 {
        assert_eq!(try_token(&relay, "app", &good), "235 2.7.0 Authentication successful\r\n");
    }
    // Each failure is answered later than the one before; more of them are in the tests of what judges tokens.
    for (what, user, token) in [
        ("another's token", "other", good.clone()),
        ("another key", "app", other.sign(&claims("app", json!({})))),
        ("an expired one", "app", key.sign(&claims("app", json!({ "exp": now() - 120 })))),
    ] {
        assert_eq!(try_token(&relay, user, &token), "535 5.7.8 Authentication credentials invalid\r\n", "{what}");
    }
    let log = relay.log.all().join("\n");
    assert!(log.contains("the token has expired") && !log.contains(&good), "reasons are told, tokens are not");
    relay.stop();
}

#[test]
fn curl_msmtp_and_smtplib_send_with_tokens() {
    let sink = Sink::new();
    let key = Key::new("one");
    let served = key.set();
    let issuer = issuer(move |path, _| (path == "/jwks").then(|| served.clone()));
    let relay = relay(&format!("keys = \"http://{issuer}/jwks\""), sink.address, Directory::new());
    let token = key.sign(&claims("app", json!({})));
    let Some(mut curl) = program("curl") else { return };
    let file = relay.directory().file("curl.eml", "Subject: hello\r\n\r\nHello.\r\n");
    curl.args(["--silent", "--show-error", &format!("smtp://127.0.0.1:{}", relay.port()), "--user", "app"]);
    curl.args(["--oauth2-bearer", &token, "--mail-from", "ann@origin.test", "--mail-rcpt", "curl@dest.test"]);
    run(
        {
            curl.arg("--upload-file").arg(file);
            curl
        },
        b"",
    )
    .succeeded();
    sink.wait_for("curl@dest.test");
    for mechanism in ["oauthbearer", "xoauth2"] {
        let Some(mut msmtp) = program("msmtp") else { return };
        msmtp.args([
            "--host=127.0.0.1",
            &format!("--port={}", relay.port()),
            "--tls=off",
            &format!("--auth={mechanism}"),
        ]);
        msmtp.args(["--user=app", &format!("--passwordeval=echo {token}"), "--from=ann@origin.test", "--"]);
        msmtp.arg(format!("{mechanism}@dest.test"));
        run(msmtp, b"Subject: hello\r\n\r\nHello.\r\n").succeeded();
        sink.wait_for(&format!("{mechanism}@dest.test"));
    }
    let Some(mut python) = program("python3") else { return };
    let script = "import smtplib, sys\n\
        port, token = int(sys.argv[1]), sys.argv[2]\n\
        with smtplib.SMTP('127.0.0.1', port) as smtp:\n\
        \x20   smtp.ehlo()\n\
        \x20   print(smtp.auth('XOAUTH2', lambda challenge=None: 'user=app\\1auth=Bearer ' + token + '\\1\\1'))\n\
        \x20   smtp.sendmail('ann@origin.test', ['smtplib@dest.test'], 'Subject: hello\\r\\n\\r\\nHello.\\r\\n')\n";
    python.args(["-c", script, &relay.port(), &token]);
    run(python, b"").succeeded();
    sink.wait_for("smtplib@dest.test");
    assert!(!relay.log.all().join("\n").contains(&token), "the token is in the log");
    relay.stop();
}

#[test]
fn an_issuer_that_is_asked_or_does_not_answer() {
    let sink = Sink::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let issuer = issuer(move |path, body| {
        seen.lock().expect("a list").push(body.to_owned());
        let active = body.contains("token=opaque%2Fgood&");
        let answer = if active { claims("app", json!({ "active": true })) } else { json!({ "active": false }) };
        (path == "/introspect").then(|| answer.to_string())
    });
    let directory = Directory::new();
    let secret = directory.file("secret", "s:cret\n");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    let section = |path: &str| {
        let secret = secret.display();
        format!("introspection = \"http://{issuer}{path}\"\nclient_id = \"relay\"\nclient_secret_file = \"{secret}\"")
    };
    let asking = relay(&section("/introspect"), sink.address, directory);
    assert!(try_token(&asking, "app", "opaque/good").starts_with("235 "));
    assert!(try_token(&asking, "app", "opaque/good").starts_with("235 "));
    assert!(try_token(&asking, "app", "opaque/bad").starts_with("535 5.7.8 "));
    {
        let asked = asked.lock().expect("a list");
        assert_eq!(asked.len(), 2, "a token that was good is not asked for again: {asked:?}");
        // "relay:s%3Acret"
        assert!(asked[0].to_lowercase().contains("basic") && asked[0].contains("cmVsYXk6cyUzQWNyZXQ="), "{asked:?}");
    }
    let directory = asking.stop();
    let listener = "kind = \"submission\"\nauth_in_clear = true";
    let sections = self::section(&section("/nowhere"));
    let broken = Setup::new().listener(listener).next_hop(sink.address).sections(&sections).start_in(directory);
    assert!(try_token(&broken, "app", "opaque/good").starts_with("454 4.7.0 "));
    broken.wait_log(|event| {
        event["text"].as_str().is_some_and(|text| text.contains("logins by token cannot be checked"))
    });
    broken.stop();
}
