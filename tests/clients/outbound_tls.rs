//! TLS of deliveries: what routes ask of hosts, and what domains ask by policies of MTA-STS, against hosts with certificates that
//! are good, foreign, misnamed or not there. What does not satisfy a policy never gets a message, in clear least of all.

use super::dns::NameServer;
use super::relay::{Directory, Relay, Setup, text};
use super::sink::{ALL, Sink};
use super::smtplib::{mail, queued_as, send, send_one};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// An authority of the test's own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The certificate of the authority itself (DER).
    pub fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// Files with a certificate for this name and its key.
    fn files(&self, directory: &Directory, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (directory.file("own.pem", certificate.pem()), directory.secret("own.key", &key.serialize_pem()))
    }

    /// A server with a certificate for this name, that asks for one of this authority.
    fn asking_server(&self, name: &str) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate").der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder().with_client_cert_verifier(verifier);
        Arc::new(config.with_single_cert(vec![certificate], key).expect("they belong together"))
    }

    /// A server with a certificate for this name, and that certificate (DER).
    pub fn server(&self, name: &str) -> (Arc<ServerConfig>, Vec<u8>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate").der().clone();
        let chain = vec![certificate.clone(), self.0.der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        (Arc::new(config.expect("they belong together")), certificate.to_vec())
    }
}

/// What the server of policies answers, and how often it was asked.
#[derive(Default)]
struct Policies {
    answer: Mutex<String>,
    asked: Mutex<usize>,
}

/// A server of policies for one domain.
struct PolicyServer {
    address: SocketAddr,
    shared: Arc<Policies>,
}

impl PolicyServer {
    fn start(tls: Arc<ServerConfig>) -> PolicyServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let (address, shared) = (listener.local_addr().expect("its address"), Arc::<Policies>::default());
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let connection = ServerConnection::new(Arc::clone(&tls)).expect("a connection");
                let mut stream = BufReader::new(StreamOwned::new(connection, socket));
                let mut first = String::new();
                // One that does not trust this server goes away.
                let _ = stream.read_line(&mut first);
                let mut line = String::new();
                while stream.read_line(&mut line).unwrap_or(0) > 2 {
                    line.clear();
                }
                if first.starts_with("GET /.well-known/mta-sts.txt ") {
                    *of_thread.asked.lock().expect("a count") += 1;
                    let answer = of_thread.answer.lock().expect("an answer").clone();
                    let _ = stream.get_mut().write_all(answer.as_bytes());
                }
            }
        });
        PolicyServer { address, shared }
    }

    fn answer(&self, status: &str, kind: &str, body: &str) {
        let length = body.len();
        *self.shared.answer.lock().expect("an answer") =
            format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}");
    }

    fn policy(&self, mode: &str, hosts: &[&str]) {
        let hosts: String = hosts.iter().map(|host| format!("mx: {host}\r\n")).collect();
        self.answer("200 OK", "text/plain", &format!("version: STSv1\r\nmode: {mode}\r\n{hosts}max_age: 86400\r\n"));
    }

    fn asked(&self) -> usize {
        *self.shared.asked.lock().expect("a count")
    }
}

/// Destinations on one port of 127.0.0.x, for x from 31 on: each with TLS as given, or with none.
pub fn hosts(tls: &[Option<Arc<ServerConfig>>]) -> Vec<Sink> {
    let offering: Vec<_> = tls.iter().map(|tls| (tls.clone(), &[][..])).collect();
    hosts_offering(&offering)
}

/// The same, each with further extensions.
fn hosts_offering(tls: &[(Option<Arc<ServerConfig>>, &[&str])]) -> Vec<Sink> {
    let address = |index: usize| Ipv4Addr::new(127, 0, 0, 31 + index as u8);
    for _ in 0..50 {
        let port = super::relay::free_address().port();
        let free = |index: usize| TcpListener::bind((address(index), port)).is_ok();
        if !(0..tls.len()).all(free) {
            continue;
        }
        let host = |(index, (tls, more)): (usize, &(Option<Arc<ServerConfig>>, &[&str]))| match tls {
            Some(tls) => Sink::under((address(index).into(), port), more, Arc::clone(tls)),
            None => Sink::on((address(index).into(), port), ALL, |_| None),
        };
        return tls.iter().enumerate().map(host).collect();
    }
    panic!("no port is free on all addresses");
}

/// A relay that asks this name server and delivers to this port; `more` belongs to the route, `rest` is what follows it.
fn relay(names: &NameServer, port: u16, more: &str, rest: &str, directory: Directory) -> Relay {
    let sections =
        format!("[dns]\nservers = \"{}\"\n[[route]]\ntarget = \"mx\"\nport = {port}\n{more}\n{rest}", names.address);
    Setup::new().flag("--retry", 1).sections(&sections).start_in(directory)
}

fn authorities(directory: &Directory, authority: &Authority) -> PathBuf {
    directory.file("roots.pem", authority.pem())
}

#[test]
fn routes_have_a_least_version_and_a_certificate_of_their_own() {
    let (authority, directory) = (Authority::new(), Directory::new());
    let (old, asking) = (Sink::of_old_tls(), hosts(&[Some(authority.asking_server("mx.asking.test"))]));
    let (certificate, key) = authority.files(&directory, "relay.test");
    let route = |name: &str, sink: &Sink, more: &str| {
        format!("[[route]]\ndomains = \"{name}.test\"\nnext_hops = \"{}\"\ntls = \"required\"\n{more}\n", sink.address)
    };
    let sections = [
        route("old", &old, ""),
        route("new", &old, "tls_options = { min_version = \"1.3\" }"),
        route("shows", &asking[0], &format!("tls_options = {{ certificate = {certificate:?}, key = {key:?} }}")),
        route("shy", &asking[0], ""),
    ];
    let relay = Setup::new().flag("--retry", 1).sections(&sections.concat()).start_in(directory);
    for (domain, taken) in [("old", true), ("new", false), ("shows", true), ("shy", false)] {
        let to = format!("bob@{domain}.test");
        if send_one(&relay, "ann@origin.test", &[&to], b"x\r\n").is_none() {
            return;
        }
        if taken {
            relay.wait_log(|event| event["event"] == "delivered" && event["to"] == to.as_str());
        } else {
            // The peer may close without telling why.
            put_off(&relay, &to, "");
        }
    }
    assert!(old.wait_for("bob@old.test").tls && asking[0].wait_for("bob@shows.test").tls);
    assert_eq!((old.mails().len(), asking[0].mails().len()), (1, 1));
    relay.stop();
}

/// Waits until a message has been put off for this reason.
pub fn put_off(relay: &Relay, recipient: &str, why: &str) {
    relay.wait_log(|event| {
        event["event"] == "deferred" && event["to"] == recipient && text(event, "reply").contains(why)
    });
}

#[test]
fn a_verified_route_sends_to_hosts_that_prove_their_names_alone() {
    let (authority, foreign, directory) = (Authority::new(), Authority::new(), Directory::new());
    let tls = [
        Some(authority.server("mx.good.test").0),
        Some(foreign.server("mx.foreign.test").0),
        Some(authority.server("mx.other.test").0),
        None,
    ];
    let hosts = hosts(&tls);
    let names =
        ["good", "foreign", "misnamed", "clear"].iter().enumerate().fold(NameServer::new(), |names, (index, name)| {
            names
                .mx(&format!("{name}.test"), 10, &format!("mx.{name}.test"))
                .a(&format!("mx.{name}.test"), [127, 0, 0, 31 + index as u8])
        });
    let outbound = format!("[outbound_tls]\nauthorities = {:?}", authorities(&directory, &authority));
    let relay = relay(&names, hosts[0].address.port(), "tls = \"verified\"", &outbound, directory);
    let Some(id) = send_one(&relay, "ann@origin.test", &["bob@good.test"], b"x\r\n") else { return };
    assert!(hosts[0].wait_for("bob@good.test").tls);
    let delivered = relay.wait_event("delivered", &id, "bob@good.test");
    assert_eq!((text(&delivered, "tls"), text(&delivered, "tls_policy")), ("TLSv1.3", "verified"), "{delivered}");
    for (host, name, why) in [
        (&hosts[1], "foreign", "does not prove the name mx.foreign.test"),
        (&hosts[2], "misnamed", "does not prove the name mx.misnamed.test"),
        (&hosts[3], "clear", "the host does not offer STARTTLS"),
    ] {
        let to = format!("bob@{name}.test");
        let id = send_one(&relay, "ann@origin.test", &[&to], b"x\r\n").expect("Python is there");
        put_off(&relay, &to, why);
        put_off(&relay, &to, "the route's tls = \"verified\" asks for it");
        let shown = relay.json(&["queue", "show", &id]).to_string();
        assert!(shown.contains("is down") && shown.contains("verified"), "{shown}");
        assert!(host.connections() > 0 && host.mails().is_empty(), "{name}");
    }
    relay.stop();
}

#[test]
fn a_policy_of_mta_sts_is_obeyed_kept_and_renewed() {
    let (authority, foreign, directory) = (Authority::new(), Authority::new(), Directory::new());
    let hosts = hosts(&[Some(authority.server("mx.dest.test").0), Some(foreign.server("evil.dest.test").0), None]);
    let names = NameServer::new()
        .mx("dest.test", 10, "mx.dest.test")
        .a("mx.dest.test", [127, 0, 0, 31])
        .a("evil.dest.test", [127, 0, 0, 32])
        .a("clear.dest.test", [127, 0, 0, 33])
        .a("mta-sts.dest.test", [127, 0, 0, 1]);
    let policies = PolicyServer::start(authority.server("mta-sts.dest.test").0);
    let outbound = format!(
        "[outbound_tls]\nauthorities = {:?}\npolicy_port = {}\npolicy_networks = \"127.0.0.1/32\"",
        authorities(&directory, &authority),
        policies.address.port()
    );
    let start = |directory| relay(&names, hosts[0].address.port(), "", &outbound, directory);
    let record = |id: &str| {
        names.forget("_mta-sts.dest.test");
        names.publish("_mta-sts.dest.test", &format!("v=STSv1; id={id};"));
    };
    let relay = start(directory);
    let send = |relay: &Relay, to: &str| send_one(relay, "ann@origin.test", &[to], b"x\r\n");
    let lead_to = |host: &str| {
        names.forget("dest.test");
        names.lead("dest.test", host);
    };
    let none_came = |host: &Sink| assert!(host.mails().is_empty(), "{:?}", host.mails());

    // What cannot be had or read is no policy, is not asked for again, and is told.
    record("1");
    policies.answer("404 Not Found", "text/plain", "");
    let Some(id) = send(&relay, "before@dest.test") else { return };
    let delivered = relay.wait_event("delivered", &id, "before@dest.test");
    assert_eq!((text(&delivered, "tls"), text(&delivered, "tls_policy")), ("TLSv1.3", ""), "{delivered}");
    relay.wait_log(|event| {
        text(event, "text").contains("policy of dest.test cannot be had: https://mta-sts.dest.test: answered 404")
    });

    // A new id is looked at at once.
    record("2");
    policies.policy("enforce", &["mx.dest.test", "evil.dest.test", "clear.dest.test"]);
    let delivered = loop {
        let id = send(&relay, "enforced@dest.test").expect("Python is there");
        let delivered = relay.wait_event("delivered", &id, "enforced@dest.test");
        // What is known of the domain holds for a second.
        if text(&delivered, "tls_policy") == "mta-sts" {
            break delivered;
        }
    };
    assert!(text(&delivered, "site").contains("(MTA-STS)"), "{delivered}");
    assert_eq!(policies.asked(), 2, "one for each id");

    // It holds over a restart, though nobody answers for it any more; a host that cannot prove its name gets nothing, nor does
    // one that takes STARTTLS away.
    let kept = relay.spool().join("mta-sts.json");
    let deadline = std::time::Instant::now() + super::PATIENCE;
    while !std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("clear.dest.test")) {
        assert!(std::time::Instant::now() < deadline, "the policy is not kept");
    }
    let directory = relay.stop();
    names.forget("_mta-sts.dest.test");
    policies.answer("500 Oops", "text/plain", "");
    lead_to("evil.dest.test");
    let relay = start(directory);
    send(&relay, "evil@dest.test");
    put_off(&relay, "evil@dest.test", "does not prove the name evil.dest.test");
    put_off(&relay, "evil@dest.test", "the domain's MTA-STS policy asks for it");
    none_came(&hosts[1]);
    lead_to("clear.dest.test");
    let directory = relay.stop();
    let relay = start(directory);
    put_off(&relay, "evil@dest.test", "does not offer STARTTLS");
    none_came(&hosts[2]);

    // Hosts that the policy does not name are not even asked.
    lead_to("else.dest.test");
    names.lead_address("else.dest.test", [127, 0, 0, 33]);
    let before = hosts[2].connections();
    let directory = relay.stop();
    let relay = start(directory);
    let id = send(&relay, "else@dest.test").expect("Python is there");
    put_off(
        &relay,
        "else@dest.test",
        "the MTA-STS policy of dest.test (enforce) names none of its mail hosts (else.dest.test)",
    );
    let shown = relay.json(&["queue", "show", &id]).to_string();
    assert!(shown.contains("what the destination's TLS policy asks for is not met"), "{shown}");
    assert_eq!(hosts[2].connections(), before);

    // In testing all goes out, and with mode none nothing is looked at.
    lead_to("evil.dest.test");
    record("3");
    policies.policy("testing", &["mx.dest.test", "evil.dest.test"]);
    let directory = relay.stop();
    let relay = start(directory);
    send(&relay, "tested@dest.test");
    assert!(hosts[1].wait_for("tested@dest.test").tls);
    hosts[1].wait_for("evil@dest.test");
    hosts[1].wait_for("else@dest.test");
    relay.wait_empty();
    assert_eq!(policies.asked(), 3);
    none_came(&hosts[2]);
    relay.stop();
}

#[test]
fn servers_of_policies_are_asked_within_bounds() {
    let (authority, directory) = (Authority::new(), Directory::new());
    let hosts = hosts(&[Some(authority.server("mx.test").0)]);
    let policies = PolicyServer::start(authority.server("mta-sts.a.test").0);
    policies.policy("enforce", &["nowhere.test"]);
    let mut names = NameServer::new();
    // One whose server is misnamed, one that leads into a private network, one that is not there, one with two records.
    for (domain, server) in [("b", Some(1)), ("private", Some(2)), ("gone", None), ("twice", Some(1))] {
        names = names.mx(&format!("{domain}.test"), 10, "mx.test");
        names.publish(&format!("_mta-sts.{domain}.test"), "v=STSv1; id=1");
        if let Some(octet) = server {
            names = names.a(&format!("mta-sts.{domain}.test"), [127, 0, 0, octet]);
        }
    }
    names.publish("_mta-sts.twice.test", "v=STSv1; id=2");
    let names = names.a("mx.test", [127, 0, 0, 31]);
    let outbound = format!(
        "[outbound_tls]\nauthorities = {:?}\npolicy_port = {}\npolicy_networks = \"127.0.0.1/32\"",
        authorities(&directory, &authority),
        policies.address.port()
    );
    let relay = relay(&names, hosts[0].address.port(), "", &outbound, directory);
    for (domain, why) in [
        ("b.test", "mta-sts.b.test: invalid peer certificate"),
        ("private.test", "mta-sts.private.test leads to no public address"),
        ("gone.test", "mta-sts.gone.test has no address"),
        ("twice.test", ""),
    ] {
        let to = format!("bob@{domain}");
        if send_one(&relay, "ann@origin.test", &[&to], b"x\r\n").is_none() {
            return;
        }
        hosts[0].wait_for(&to);
        if !why.is_empty() {
            relay.wait_log(|event| text(event, "text").contains(why));
        }
    }
    assert_eq!(policies.asked(), 0);
    relay.stop();
}

#[test]
fn mail_that_requires_tls_goes_where_it_is_protected_or_comes_back() {
    let (authority, directory) = (Authority::new(), Directory::new());
    let hosts = hosts_offering(&[
        (Some(authority.server("mx.dest.test").0), &["REQUIRETLS"]),
        (Some(authority.server("mx.lacks.test").0), &[]),
    ]);
    let policies = PolicyServer::start(authority.server("mta-sts.dest.test").0);
    policies.policy("enforce", &["mx.dest.test"]);
    let names = NameServer::new()
        .mx("dest.test", 10, "mx.dest.test")
        .mx("open.test", 10, "mx.dest.test")
        .a("mx.dest.test", [127, 0, 0, 31])
        .a("mta-sts.dest.test", [127, 0, 0, 1]);
    names.publish("_mta-sts.dest.test", "v=STSv1; id=1");
    let outbound = format!(
        "[outbound_tls]\nauthorities = {:?}\npolicy_port = {}\npolicy_networks = \"127.0.0.1/32\"\n[[route]]\n\
         domains = \"lacks.test\"\nnext_hops = \"127.0.0.32:{port}\"\ntls = \"verified\"\n\
         tls_options = {{ names = [\"mx.lacks.test\"] }}\n[[route]]\ndomains = \"fixed.test\"\nnext_hops = \"127.0.0.32:{port}\"",
        authorities(&directory, &authority),
        policies.address.port(),
        port = hosts[0].address.port()
    );
    let relay =
        relay(&names, hosts[0].address.port(), "domains = [\"dest.test\", \"open.test\"]", &outbound, directory);
    let send_to = |to: &str, starttls: bool| {
        let mut one = mail("", &[to], b"x\r\n");
        one["mail_options"] = serde_json::json!(["REQUIRETLS"]);
        send(&relay, vec![one], serde_json::json!({ "starttls": starttls }))
    };
    // Where the client itself is in clear there is no such parameter.
    let Some(refused) = send_to("bob@dest.test", false) else { return };
    assert_eq!(refused["results"][0][0][0], 555, "{refused}");
    for (to, outcome, why) in [
        ("bob@dest.test", "delivered", ""),
        ("bob@open.test", "bounced", "550 5.7.30 REQUIRETLS was asked for, and open.test publishes neither"),
        ("bob@lacks.test", "bounced", "550 5.7.30 The host of the recipient does not support REQUIRETLS"),
        ("bob@fixed.test", "bounced", "550 5.7.30 REQUIRETLS was asked for, and the hosts of the route"),
    ] {
        let answer = send_to(to, true).expect("Python is there");
        let id = queued_as(
            answer["results"][0].as_array().expect("replies").last().expect("one")[1].as_str().expect("a text"),
        );
        let event = relay.wait_event(outcome, &id, to);
        assert!(text(&event, "reply").contains(why), "{event}");
    }
    let arrived = hosts[0].wait_for("bob@dest.test");
    assert!(arrived.tls && arrived.from.contains(" REQUIRETLS"), "{}", arrived.from);
    assert!(hosts[1].mails().is_empty());
    // The same host without the wish.
    send_one(&relay, "ann@origin.test", &["eve@open.test"], b"x\r\n");
    assert!(!hosts[0].wait_for("eve@open.test").from.contains("REQUIRETLS"));
    relay.stop();
}
