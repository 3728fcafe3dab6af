//! Clients that show certificates: AUTH EXTERNAL by real ones, and certificates that are absent, expired or of another authority.

use super::certificates::Client;
use super::programs::{program, run};
use super::relay::{Directory, Relay, Setup, free_address};
use super::sink::Sink;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An authority of clients.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(directory: &Directory, name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let file = directory.file(&format!("{name}.pem"), params.self_signed(&key).expect("a certificate").pem());
        Authority { issuer: Issuer::new(params, key), file }
    }

    /// Files with a certificate for this name and its key, good until this year.
    fn client(&self, directory: &Path, name: &str, until: i32) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |end: &str| directory.join(format!("{name}-{until}.{end}"));
        std::fs::write(file("pem"), certificate.pem()).expect("the certificate");
        std::fs::write(file("key"), key.serialize_pem()).expect("the key");
        (file("pem"), file("key"))
    }
}

/// A client that trusts the relay's certificate, and shows this one.
fn config(relay: &Relay, shown: Option<&(PathBuf, PathBuf)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_file(relay.spool().join("tls/self-signed.pem")).expect("its certificate");
    roots.add(own).expect("a root");
    let builder = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_file(key).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("they belong together")
        }
    })
}

/// A relay that asks for certificates of `own`, and at another address requires some of `other`.
fn relay(own: &Authority, other: &Authority, hop: SocketAddr, tls: &str, directory: Directory) -> (Relay, SocketAddr) {
    let of = |clients: &str, authority: &Authority| {
        format!(
            "kind = \"submission\"\nclient_certificates = \"{clients}\"\nclient_authorities = {:?}\n",
            authority.file
        )
    };
    let second = free_address();
    let required = format!("[[listener]]\naddress = \"{second}\"\ntls = \"implicit\"\n{}", of("require", other));
    let setup = Setup::new().listener(&format!("tls = \"{tls}\"\n{}", of("request", own)));
    let relay = setup.sections(&required).next_hop(hop).start_in(directory);
    relay.command(&["tenant", "add", "acme", "--unverified", "pass"]).succeeded();
    (relay, second)
}

#[test]
fn a_certificate_logs_in_where_its_authority_is_asked_for_and_nowhere_else() {
    let sink = Sink::new();
    let directory = Directory::new();
    let (own, other) = (Authority::new(&directory, "own"), Authority::new(&directory, "other"));
    let files = directory.path().to_owned();
    let (relay, second) = relay(&own, &other, sink.address, "implicit", directory);
    relay.json(&["credential", "add", "app", "--tenant", "acme", "--certificate", "app.test"]);
    let good = config(&relay, Some(&own.client(&files, "app.test", 2100)));
    let external = |config: &Arc<ClientConfig>, offered: bool, reply: &str| {
        let mut client = Client::connect(&relay, config, "relay.test").expect("a session");
        let hello = client.expect("EHLO app.test", "250");
        assert_eq!(hello.contains("EXTERNAL"), offered, "{hello}");
        client.expect("AUTH EXTERNAL =", reply);
        client
    };
    let mut client = external(&good, true, "235 2.7.0");
    client.expect("MAIL FROM:<ann@origin.test>", "250");
    client.expect("RCPT TO:<external@dest.test>", "250");
    client.expect("DATA", "354");
    client.expect("Subject: hello\r\n\r\nHello.\r\n.", "250 2.0.0");
    let mail = sink.wait_for("external@dest.test");
    assert!(mail.text().contains("with ESMTPSA "), "{}", mail.text());
    // Each session anew; those whose certificate proves nothing may still log in otherwise.
    external(&good, true, "235 2.7.0");
    external(&config(&relay, Some(&own.client(&files, "nobody.test", 2100))), true, "535 5.7.8");
    for shown in [None, Some(own.client(&files, "app.test", 2021)), Some(other.client(&files, "app.test", 2100))] {
        external(&config(&relay, shown.as_ref()), false, "504 5.5.4");
    }

    // Where one is required, the handshake fails without a good one; a session of the other listener does not lead in.
    for (what, shown) in [
        ("none", None),
        ("an expired one", Some(other.client(&files, "app.test", 2021))),
        ("of another authority", Some(own.client(&files, "app.test", 2100))),
    ] {
        let error = Client::connect_to(second, &config(&relay, shown.as_ref()), "relay.test").err();
        assert!(error.is_some_and(|error| error.to_string().contains("alert")), "{what}");
    }
    assert!(Client::connect_to(second, &good, "relay.test").is_err());
    let allowed = config(&relay, Some(&other.client(&files, "app.test", 2100)));
    let mut client = Client::connect_to(second, &allowed, "relay.test").expect("a session");
    client.expect("EHLO app.test", "250");
    client.expect("AUTH EXTERNAL =", "235 2.7.0");

    // Authorities are read again, too: from now on `own` is another one.
    let replaced = Authority::new(relay.directory(), "replaced");
    std::fs::copy(&replaced.file, &own.file).expect("the file is replaced");
    relay.command(&["certificate", "reload"]).succeeded();
    external(&good, false, "504 5.5.4");
    external(&config(&relay, Some(&replaced.client(&files, "app.test", 2100))), true, "235 2.7.0");
    // A file without any leaves those from before.
    std::fs::write(&own.file, "nothing").expect("the file is replaced");
    relay.command(&["certificate", "reload"]).fails("own.pem");
    external(&config(&relay, Some(&replaced.client(&files, "app.test", 2100))), true, "235 2.7.0");
    relay.stop();
}

#[test]
fn openssl_and_smtplib_log_in_by_certificate() {
    let sink = Sink::new();
    let directory = Directory::new();
    let (own, other) = (Authority::new(&directory, "own"), Authority::new(&directory, "other"));
    let (certificate, key) = own.client(directory.path(), "app.test", 2100);
    let (relay, _) = relay(&own, &other, sink.address, "starttls", directory);
    let printed = {
        let Some(mut openssl) = program("openssl") else { return };
        openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&certificate);
        run(openssl, b"").succeeded().stdout
    };
    let fingerprint = printed.trim().rsplit('=').next().expect("a fingerprint");
    relay.json(&["credential", "add", "app", "--tenant", "acme", "--certificate", fingerprint]);
    let Some(mut openssl) = program("openssl") else { return };
    openssl.args(["s_client", "-starttls", "smtp", "-quiet", "-connect", &relay.address.to_string(), "-cert"]);
    openssl.arg(&certificate).arg("-key").arg(&key);
    let said = run(openssl, b"EHLO app.test\r\nAUTH EXTERNAL YXBw\r\nQUIT\r\n");
    assert!(said.stdout.contains("235 2.7.0 Authentication successful"), "{}{}", said.stdout, said.stderr);

    let Some(mut python) = program("python3") else { return };
    let script = "import smtplib, ssl, sys\n\
        context = ssl._create_unverified_context()\n\
        context.load_cert_chain(sys.argv[2], sys.argv[3])\n\
        with smtplib.SMTP('127.0.0.1', int(sys.argv[1])) as smtp:\n\
        \x20   smtp.starttls(context=context)\n\
        \x20   smtp.ehlo()\n\
        \x20   assert 'EXTERNAL' in smtp.esmtp_features['auth'], smtp.esmtp_features\n\
        \x20   code, text = smtp.docmd('AUTH', 'EXTERNAL =')\n\
        \x20   assert code == 235, (code, text)\n\
        \x20   smtp.sendmail('ann@origin.test', ['smtplib@dest.test'], 'Subject: hello\\r\\n\\r\\nHello.\\r\\n')\n";
    python.args(["-c", script, &relay.port()]).arg(&certificate).arg(&key);
    run(python, b"").succeeded();
    sink.wait_for("smtplib@dest.test");
    relay.stop();
}
