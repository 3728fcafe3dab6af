//! Certificates while the relay runs: several by name, read again under open sessions and within Landlock's bounds, bad files,
//! what commands and metrics tell.

use super::programs::skip;
use super::relay::{Directory, Relay, Setup, text};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

/// A client under TLS from the first octet.
pub struct Client(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl Client {
    /// Connects and reads the greeting; the error is that of the handshake.
    pub fn connect(relay: &Relay, config: &Arc<ClientConfig>, name: &str) -> Result<Client, std::io::Error> {
        Client::connect_to(relay.address, config, name)
    }

    pub fn connect_to(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Result<Client, std::io::Error> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
        let socket = TcpStream::connect(to).expect("a connection");
        let mut client = Client(BufReader::new(StreamOwned::new(connection, socket)));
        let greeting = client.reply()?;
        assert!(greeting.starts_with("220 "), "{greeting}");
        Ok(client)
    }

    pub fn reply(&mut self) -> Result<String, std::io::Error> {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            reply.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(reply);
            }
        }
    }

    /// Says it and expects this beginning.
    #[track_caller]
    pub fn expect(&mut self, command: &str, reply: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("a command is sent");
        let got = self.reply().expect("a reply");
        assert!(got.starts_with(reply), "{command}: {got}");
        got
    }

    fn connection(&self) -> &ClientConnection {
        &self.0.get_ref().conn
    }

    /// SHA-256 of the relay's certificate, as it is printed.
    pub fn fingerprint(&self) -> String {
        let certificate = &self.connection().peer_certificates().expect("a certificate")[0];
        fingerprint(certificate)
    }
}

fn fingerprint(certificate: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().join(":")
}

pub fn any() -> Arc<ClientConfig> {
    ringpost::io::tls::client_opportunistic().expect("TLS")
}

/// Writes a certificate for this name with its key; gives its fingerprint.
fn write(certificate: &Path, key: &Path, name: &str) -> String {
    let pair = KeyPair::generate().expect("a key");
    let made =
        CertificateParams::new(vec![name.to_owned()]).expect("a name").self_signed(&pair).expect("a certificate");
    std::fs::write(certificate, made.pem()).expect("the certificate");
    std::fs::write(key, pair.serialize_pem()).expect("the key");
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    fingerprint(made.der())
}

/// Leads a link to another file, in one step.
fn lead(link: &Path, to: &str) {
    let new = link.with_extension("new");
    symlink(to, &new).expect("a link");
    std::fs::rename(&new, link).expect("it takes the place");
}

fn metrics(relay: &Relay) -> String {
    let mut socket = UnixStream::connect(relay.spool().join("control.sock")).expect("the admin socket");
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn certificates_are_chosen_by_name_and_read_again_under_open_sessions() {
    // As certbot keeps them: links that lead to files in another directory, which are new at each renewal.
    let directory = Directory::new();
    let (live, archive) = (directory.join("live"), directory.join("archive"));
    std::fs::create_dir_all(&live).expect("a directory");
    std::fs::create_dir_all(&archive).expect("a directory");
    let first = write(&archive.join("cert1.pem"), &archive.join("key1.pem"), "mail.test");
    let (certificate, key) = (live.join("cert.pem"), live.join("key.pem"));
    lead(&certificate, "../archive/cert1.pem");
    lead(&key, "../archive/key1.pem");
    let (other, other_key) = (directory.join("other.pem"), directory.join("other.key"));
    let wildcard = write(&other, &other_key, "*.other.test");
    let section = format!(
        "[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n[[tls.pair]]\ncertificate = {other:?}\nkey = {other_key:?}\n"
    );
    let relay = Setup::new().listener("tls = \"implicit\"").sections(&section).hold().start_in(directory);
    let connect = |config: &Arc<ClientConfig>, name: &str| Client::connect(&relay, config, name).expect("a session");
    for (name, expected) in
        [("mail.test", &first), ("mx.other.test", &wildcard), ("other.test", &first), ("unknown.test", &first)]
    {
        assert_eq!(&connect(&any(), name).fingerprint(), expected, "{name}");
    }
    // A session that stays open, and a ticket for another.
    let returning = any();
    let mut open = connect(&returning, "mail.test");
    open.expect("EHLO a.test", "250");

    let second = write(&archive.join("cert2.pem"), &archive.join("key2.pem"), "mail.test");
    lead(&certificate, "../archive/cert2.pem");
    lead(&key, "../archive/key2.pem");
    let answer = relay.json(&["certificate", "reload"]);
    assert_eq!(answer["changed"].as_array().expect("a list").len(), 1, "{answer}");
    assert_eq!(connect(&any(), "mail.test").fingerprint(), second);
    assert_eq!(connect(&any(), "mx.other.test").fingerprint(), wildcard);
    open.expect("NOOP", "250");
    let mut back = connect(&returning, "mail.test");
    back.expect("NOOP", "250");
    assert_eq!(back.connection().handshake_kind(), Some(HandshakeKind::Resumed), "tickets outlive a reload");
    let told = relay.wait_log(|event| text(event, "text").contains("a new certificate is in use"));
    assert!(text(&told, "text").contains(&second), "{told}");

    // A key that others may read, then one that is no key: the second certificate stays.
    std::fs::set_permissions(&other_key, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    relay.command(&["certificate", "reload"]).fails("chmod 640");
    std::fs::write(&other_key, "nothing").expect("the key");
    std::fs::set_permissions(&other_key, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    relay.signal(libc::SIGHUP);
    relay.wait_log(|event| text(event, "text").contains("holds no private key") && event["level"] == "error");
    relay.wait_log(|event| text(event, "text").starts_with("SIGHUP: certificates were read again: 2 in use"));
    assert_eq!(connect(&any(), "mx.other.test").fingerprint(), wildcard);
    open.expect("NOOP", "250");

    // What lies where no file was at the start is out of reach, and that is told.
    if relay.log.all().iter().any(|line| line.contains("Landlock restricts")) {
        let outside = Directory::new();
        write(&outside.join("cert.pem"), &outside.join("key.pem"), "mail.test");
        lead(&certificate, &outside.join("cert.pem").display().to_string());
        relay.command(&["certificate", "reload"]).fails("[process] readable and restart");
        lead(&certificate, "../archive/cert2.pem");
    } else {
        skip("this kernel has no Landlock");
    }
    relay.command(&["certificate", "reload"]).fails("other.key");

    let list = relay.json(&["certificate", "list"]);
    let fingerprints: Vec<&str> =
        list.as_array().expect("a list").iter().map(|one| text(one, "fingerprint_sha256")).collect();
    assert_eq!(fingerprints, [&second, &wildcard]);
    assert!(text(&list[1], "trouble").contains("other.key") && list[0]["trouble"] == Value::Null, "{list}");
    let shown = relay.command(&["certificate", "list"]).succeeded().stdout;
    assert!(shown.contains(&second) && shown.contains("sha256//") && shown.contains("2 certificates"), "{shown}");
    let metrics = metrics(&relay);
    let wanted = format!(
        "ringpost_certificate_expiry_timestamp_seconds{{file=\"{}\",names=\"mail.test\",sha256=\"{second}\"}} ",
        certificate.display()
    );
    assert!(metrics.contains(&wanted) && metrics.contains("\nringpost_certificates_outdated 1\n"), "{metrics}");
    assert!(metrics.contains("\nringpost_certificate_reloads_total "), "{metrics}");
    drop((open, back));
    let directory = relay.stop();

    // Without a relay, from the files.
    let config = directory.join("ringpost.toml");
    let mut listed = std::process::Command::new(super::relay::RINGPOST);
    listed.args(["certificate", "list", "--files", "--config"]).arg(&config);
    super::programs::run(listed, b"").fails("other.key");
    let other = write(&other, &other_key, "*.other.test");
    let mut listed = std::process::Command::new(super::relay::RINGPOST);
    listed.args(["certificate", "list", "--files", "--config"]).arg(&config);
    let shown = super::programs::run(listed, b"").succeeded().stdout;
    assert!(shown.contains(&second) && shown.contains(&other), "{shown}");
}
