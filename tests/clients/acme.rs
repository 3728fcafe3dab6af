//! Certificates by ACME, ordered by the real binary from a server of RFC 8555 that was made for these tests (acme_server.rs).

use super::acme_server::AcmeServer;
use super::certificates::{Client, any};
use super::relay::{Directory, Relay, Setup, free_address, text};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A relay that orders from this server; `more` are further keys.
fn start(server: &AcmeServer, more: &str, directory: Directory) -> Relay {
    let section = format!(
        "[tls.acme]\ndirectory = \"{}\"\nterms_agreed = true\ncontact = \"postmaster@a.test\"\n\
         domains = [\"a.test\", \"b.test\"]\n{more}\n",
        server.directory_url()
    );
    Setup::new().listener("tls = \"implicit\"").sections(&section).hold().start_in(directory)
}

fn trusting(server: &AcmeServer) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server.issuer()).expect("a root");
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// Waits until so many notices with this text are in the log; gives the last.
fn wait_notice(relay: &Relay, count: usize, part: &str) -> String {
    let mut seen = 0;
    let notice = relay.wait_log(|event| {
        seen += usize::from(text(event, "text").contains(part));
        seen == count
    });
    text(&notice, "text").to_owned()
}

const ISSUED: &str = "ACME: the certificate for a.test b.test ends on";

#[test]
fn a_certificate_is_ordered_by_http_kept_and_renewed() {
    let http = free_address();
    let server = AcmeServer::start(http.port(), 0);
    server.behave(|behaviour| behaviour.bad_nonces = 2);
    let more = format!("http = \"{http}\"\nauthorities = {:?}", server.root);
    let relay = start(&server, &more, Directory::new());
    wait_notice(&relay, 1, ISSUED);
    let mut open = Client::connect(&relay, &trusting(&server), "a.test").expect("the certificate proves the name");
    let first = open.fingerprint();
    assert_eq!(
        Client::connect(&relay, &trusting(&server), "b.test").expect("the other name, too").fingerprint(),
        first
    );
    assert_eq!(Client::connect(&relay, &any(), "unknown.test").expect("a session").fingerprint(), first);
    let list = relay.json(&["certificate", "list"]);
    assert_eq!((list.as_array().map(Vec::len), text(&list[0], "fingerprint_sha256")), (Some(1), &*first), "{list}");
    assert!(text(&list[0], "issuer").contains("the authority of the certificates"), "{list}");
    let kept = relay.spool().join("tls/acme");
    for (file, wanted) in [("", 0o700), ("account.json", 0o600), ("certificate.pem", 0o600)] {
        let mode = std::fs::metadata(kept.join(file)).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode, wanted, "{file}");
    }
    let log = relay.log.all().join("\n");
    assert!(!log.contains("PRIVATE") && !log.contains("key_pkcs8"), "{log}");

    // Another one, under the same account and an open session.
    relay.command(&["certificate", "renew"]).succeeded();
    wait_notice(&relay, 2, ISSUED);
    let second = Client::connect(&relay, &trusting(&server), "a.test").expect("a session").fingerprint();
    assert_ne!(first, second);
    open.expect("NOOP", "250");
    assert_eq!(server.counts(), (1, 2, 2), "one account, two orders, two nonces refused");
    drop(open);
    let directory = relay.stop();

    // After a restart it is used as it is, and a new one is ordered when two thirds of its life are over.
    let relay = start(&server, &more, directory);
    assert_eq!(Client::connect(&relay, &trusting(&server), "a.test").expect("a session").fingerprint(), second);
    server.behave(|behaviour| behaviour.life = (DAY * 61, DAY * 29));
    relay.command(&["certificate", "renew"]).succeeded();
    wait_notice(&relay, 1, ISSUED);
    let directory = relay.stop();
    assert_eq!(server.counts().1, 3, "nothing was ordered but what was asked for");
    server.behave(|behaviour| behaviour.life = (DAY, DAY * 89));
    let relay = start(&server, &more, directory);
    wait_notice(&relay, 1, ISSUED);
    assert_eq!(server.counts(), (1, 4, 2));
    relay.stop();
}

#[test]
fn the_port_for_challenges_knows_nothing_else_and_no_idle_client_blocks_it() {
    let http = free_address();
    let server = AcmeServer::start(http.port(), 0);
    server.behave(|behaviour| behaviour.failing_challenges = 1);
    let more = format!("http = \"{http}\"\nauthorities = {:?}", server.root);
    let relay = start(&server, &more, Directory::new());
    wait_notice(&relay, 1, "ACME: no certificate");
    // A challenge that is over, other paths, other methods, what is no HTTP at all, and a head without an end.
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000));
    for (request, answer) in [
        ("GET /.well-known/acme-challenge/token_0-a-test HTTP/1.1\r\nHost: a.test\r\n\r\n", "HTTP/1.1 404 "),
        ("GET /.well-known/acme-challenge/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "HTTP/1.1 404 "),
        ("GET /metrics HTTP/1.1\r\nHost: a.test\r\n\r\n", "HTTP/1.1 404 "),
        ("POST /v1/queue/delete HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 404 "),
        ("EHLO a.test\r\n\r\n", "HTTP/1.1 400 "),
        (&long, "HTTP/1.1 4"),
    ] {
        let mut socket = TcpStream::connect(http).expect("the port for challenges");
        socket.write_all(request.as_bytes()).expect("a request");
        // It may be cut short where not all of the request was read.
        let mut got = Vec::new();
        let _ = socket.read_to_end(&mut got);
        let got = String::from_utf8_lossy(&got);
        assert!(got.starts_with(answer), "{request:.60}: {got}");
    }
    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(http).expect("a connection")).collect();
    relay.command(&["certificate", "renew"]).succeeded();
    wait_notice(&relay, 1, ISSUED);
    drop(idle);
    relay.stop();
}

#[test]
fn a_certificate_is_ordered_by_tls_alpn() {
    let alpn = free_address();
    let server = AcmeServer::start(0, alpn.port());
    let more = format!("alpn = \"{alpn}\"\nauthorities = {:?}", server.root);
    let relay = start(&server, &more, Directory::new());
    wait_notice(&relay, 1, ISSUED);
    Client::connect(&relay, &trusting(&server), "b.test").expect("the certificate proves the name");
    // Nothing else is there, and what is over is forgotten.
    let mut config = (*any()).clone();
    for protocols in [vec![], vec![b"h2".to_vec()], vec![b"acme-tls/1".to_vec()]] {
        config.alpn_protocols = protocols;
        let name = "a.test".try_into().expect("a name");
        let mut connection = ClientConnection::new(Arc::new(config.clone()), name).expect("a client");
        let mut socket = TcpStream::connect(alpn).expect("the port for challenges");
        let mut handshake = || {
            while connection.is_handshaking() {
                connection.complete_io(&mut socket)?;
            }
            Ok::<_, std::io::Error>(())
        };
        assert!(handshake().is_err());
    }
    relay.stop();
}

#[test]
fn what_the_server_refuses_is_told_and_the_next_order_may_succeed() {
    let http = free_address();
    let server = AcmeServer::start(http.port(), 0);
    server.behave(|behaviour| behaviour.failing_challenges = 1);
    let more = format!("http = \"{http}\"\nauthorities = {:?}", server.root);
    let relay = start(&server, &more, Directory::new());
    let told = wait_notice(&relay, 1, "ACME: no certificate");
    assert!(told.contains("a.test: Timeout during connect") && told.contains("tried again in 5 minutes"), "{told}");
    // The one that ringpost made for itself stands in.
    Client::connect(&relay, &any(), "a.test").expect("a session");

    server.behave(|behaviour| behaviour.limited = Some(7200));
    relay.command(&["certificate", "renew"]).succeeded();
    let told = wait_notice(&relay, 2, "ACME: no certificate");
    assert!(told.contains("too many certificates") && told.contains("tried again in 120 minutes"), "{told}");

    // A restart does not ask again before its time, however often.
    let directory = relay.stop();
    assert_eq!(server.counts().1, 1);
    let relay = start(&server, &more, directory);
    let told = wait_notice(&relay, 1, "ACME: the last order failed");
    assert!(told.contains("2 times in a row") && told.contains("in 120 minutes"), "{told}");

    server.forget_accounts();
    relay.command(&["certificate", "renew"]).succeeded();
    let told = wait_notice(&relay, 1, "ACME: no certificate");
    assert!(told.contains("no such account here"), "{told}");
    relay.command(&["certificate", "renew"]).succeeded();
    wait_notice(&relay, 1, ISSUED);
    assert_eq!(server.counts().0, 2, "another account was made");
    assert!(!relay.spool().join("tls/acme/failures.json").exists());
    Client::connect(&relay, &trusting(&server), "a.test").expect("the certificate proves the name");
    relay.stop();
}

#[test]
fn a_server_that_does_not_prove_its_name_gets_nothing() {
    let http = free_address();
    let server = AcmeServer::start(http.port(), 0);
    let relay = start(&server, &format!("http = \"{http}\""), Directory::new());
    let told = wait_notice(&relay, 1, "ACME: no certificate");
    assert!(told.contains("UnknownIssuer"), "{told}");
    assert_eq!(server.counts().0, 0);
    // What stands in is listed, by the relay and from the files.
    let config = relay.directory().join("ringpost.toml").display().to_string();
    let asked = relay.json(&["certificate", "list"]);
    let mut listed = std::process::Command::new(super::relay::RINGPOST);
    listed.args(["certificate", "list", "--files", "--json", "--config", &config]);
    let listed: serde_json::Value =
        serde_json::from_str(&super::programs::run(listed, b"").succeeded().stdout).expect("JSON");
    assert!(asked == listed && asked.as_array().is_some_and(|all| all.len() == 1), "{asked} {listed}");
    relay.stop();
}

#[test]
fn an_account_is_bound_to_one_of_the_authority() {
    let http = free_address();
    let server = AcmeServer::start(http.port(), 0);
    let key: Vec<u8> = (0..32).map(|octet| octet * 7).collect();
    server.behave(|behaviour| behaviour.external = Some(("customer-1".into(), key.clone())));
    let directory = Directory::new();
    // As authorities give it, padded or not.
    let file = directory.secret("eab.key", &format!("{}=\n", URL_SAFE_NO_PAD.encode(&key)));
    let section = |name: &str| {
        let external = format!("external_account = \"{name}\"\nexternal_account_key_file = {file:?}");
        format!("http = \"{http}\"\nauthorities = {:?}\n{external}", server.root)
    };
    let relay = start(&server, &format!("http = \"{http}\"\nauthorities = {:?}", server.root), directory);
    let told = wait_notice(&relay, 1, "ACME: no certificate");
    assert!(told.contains("an account of a customer is needed"), "{told}");
    let directory = relay.stop();

    let relay = start(&server, &section("customer-2"), directory);
    relay.command(&["certificate", "renew"]).succeeded();
    let told = wait_notice(&relay, 1, "ACME: no certificate");
    assert!(told.contains("the binding is not for this account"), "{told}");
    let directory = relay.stop();

    // A key that others could have read proves nothing.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let relay = start(&server, &section("customer-1"), directory);
    relay.command(&["certificate", "renew"]).succeeded();
    let told = wait_notice(&relay, 1, "ACME: no certificate");
    assert!(told.contains("(mode 644): chmod 600 "), "{told}");
    let config = relay.directory().join("ringpost.toml").display().to_string();
    let mut check = std::process::Command::new(super::relay::RINGPOST);
    check.args(["check-config", &config]);
    super::programs::run(check, b"").fails("(mode 644): chmod 600 ");

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    relay.command(&["certificate", "renew"]).succeeded();
    wait_notice(&relay, 1, ISSUED);
    assert_eq!(server.counts().0, 1, "one account was made");
    let log = relay.log.all().join("\n");
    assert!(!log.contains(&URL_SAFE_NO_PAD.encode(&key)), "{log}");
    relay.stop();
}
