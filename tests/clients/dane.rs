//! DANE (RFC 7672) with real name servers: knot signs the zone, unbound hands on what it says without looking at it, so that it is
//! ringpost that proves it. Hosts whose TLSA records are good, bad, unusable, spoiled or not there.

use super::outbound_tls::{Authority, hosts, put_off};
use super::programs::{program, stop_with_parent};
use super::relay::{Directory, Lines, Setup, free_address, text};
use super::sink::{ALL, Sink};
use super::smtplib::send_one;
use aws_lc_rs::digest::{SHA256, digest};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};

/// A program that ends with the test.
struct Server(Child);

impl Server {
    /// Starts it and waits until it says this.
    fn start(mut command: Command, says: &str) -> Server {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        stop_with_parent(&mut command);
        let mut child = command.spawn().expect("the program starts");
        let lines = Lines::read(child.stderr.take().expect("its standard error"));
        let server = Server(child);
        let ready = lines.wait(|lines| lines.iter().any(|line| line.contains(says)).then_some(()));
        assert!(ready.is_some(), "{}", lines.all().join("\n"));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that is free by UDP and TCP.
fn free_for_both() -> SocketAddr {
    loop {
        let address = free_address();
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The name servers, where to ask them, and a file with the key of the zone `test`. None: they are not installed.
fn name_servers(directory: &Directory, signed: &str, unsigned: &str) -> Option<(Vec<Server>, SocketAddr, String)> {
    let (knot_program, unbound_program) = (program("knotd")?, program("unbound")?);
    let mut keymgr = program("keymgr")?;
    let (knot, unbound) = (free_for_both(), free_for_both());
    let at = |address: SocketAddr| format!("{}@{}", address.ip(), address.port());
    let root = directory.join("").display().to_string();
    directory.file("test.zone", signed);
    directory.file("unsigned.zone", unsigned);
    let config = format!(
        "server:\n  listen: {}\n  rundir: {root}\ndatabase:\n  storage: {root}\nlog:\n  - target: stderr\n    any: info\n\
         policy:\n  - id: p\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n    ksk-lifetime: 0\n\
         template:\n  - id: default\n    storage: {root}\n    zonefile-sync: -1\n\
         zone:\n  - domain: test\n    file: test.zone\n    dnssec-signing: on\n    dnssec-policy: p\n\
         \x20 - domain: unsigned.test\n    file: unsigned.zone\n  - domain: spoiled.test\n    file: unsigned.zone\n",
        at(knot)
    );
    let config = directory.file("knot.conf", config);
    let mut command = knot_program;
    command.arg("-c").arg(&config);
    let first = Server::start(command, "server started");
    keymgr.arg("-c").arg(&config).args(["test", "dnskey"]);
    let key = super::programs::run(keymgr, b"").succeeded().stdout;
    let key = directory.file("anchor", key.replacen("DNSKEY", "3600 IN DNSKEY", 1)).display().to_string();
    let config = format!(
        "server:\n  interface: {}\n  port: {}\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{root}\"\n  \
         pidfile: \"\"\n  use-syslog: no\n  module-config: \"iterator\"\n  do-not-query-localhost: no\n  \
         local-zone: \"test.\" nodefault\n  num-threads: 1\nstub-zone:\n  name: \"test.\"\n  stub-addr: {}\n\
         remote-control:\n  control-enable: no\n",
        at(unbound),
        unbound.port(),
        at(knot)
    );
    let config = directory.file("unbound.conf", config);
    let mut command = unbound_program;
    command.arg("-c").arg(config);
    let second = Server::start(command, "start of service");
    Some((vec![first, second], unbound, key))
}

#[test]
fn tlsa_records_are_proven_and_obeyed() {
    let (authority, foreign, directory) = (Authority::new(), Authority::new(), Directory::new());
    let (good, good_der) = foreign.server("whatever.test");
    let (bad, _) = foreign.server("mx.bad.test");
    let (vouched, _) = authority.server("mx.vouched.test");
    let (misnamed, _) = authority.server("mx.else.test");
    let hosts = hosts(&[Some(good), Some(bad), Some(vouched), Some(misnamed), None, Some(foreign.server("x.test").0)]);
    let port = hosts[0].address.port();
    let sha256 = |der: &[u8]| hexadecimal(digest(&SHA256, der).as_ref());
    let (own, issuer, wrong) = (sha256(&good_der), sha256(&authority.der()), "00".repeat(32));
    let mut zone = "$TTL 5\n@ SOA ns root 1 60 60 600 5\n@ NS ns\nns A 127.0.0.1\n\
                    unsigned NS ns\nspoiled NS ns\nspoiled DS 12345 13 2 "
        .to_owned();
    zone.extend([wrong.as_str(), "\n"]);
    for (name, octet, records) in [
        // Neither names nor issuers count for a host's own record; of several records one is enough.
        ("good", 31, vec![format!("3 0 1 {wrong}"), format!("3 0 1 {own}")]),
        ("bad", 32, vec![format!("3 0 1 {own}"), format!("2 0 1 {issuer}")]),
        ("vouched", 33, vec![format!("2 0 1 {issuer}")]),
        ("misnamed", 34, vec![format!("2 0 1 {issuer}")]),
        ("clear", 35, vec![format!("3 0 1 {own}")]),
        ("unusable", 36, vec![format!("1 0 1 {own}")]),
        ("unusableclear", 35, vec![format!("0 0 1 {own}")]),
        ("none", 35, vec![]),
    ] {
        zone.push_str(&format!("{name} MX 10 mx.{name}\nmx.{name} A 127.0.0.{octet}\n"));
        zone.extend(records.iter().map(|record| format!("_{port}._tcp.mx.{name} TLSA {record}\n")));
    }
    // No MX record: the domain is its own host.
    zone.push_str(&format!("implicit A 127.0.0.31\n_{port}._tcp.implicit TLSA 3 0 1 {own}\n"));
    // What is not signed counts for nothing.
    let unsigned = format!(
        "$TTL 5\n@ SOA ns.test. root.test. 1 60 60 600 5\n@ NS ns.test.\n@ MX 10 mx\nmx A 127.0.0.36\n\
         _{port}._tcp.mx TLSA 3 0 1 {wrong}\n"
    );
    let Some((_servers, resolver, anchors)) = name_servers(&directory, &zone, &unsigned) else { return };
    let sections = format!(
        "[dns]\nservers = \"{resolver}\"\n[[route]]\ntarget = \"mx\"\nport = {port}\ntls_options = {{ dane = true }}\n\
         [outbound_tls]\ntrust_anchors = \"{anchors}\""
    );
    let relay = Setup::new().flag("--retry", 1).sections(&sections).start_in(directory);
    for (domain, host, version, policy) in [
        ("good.test", 0, "TLSv1.3", "dane"),
        ("implicit.test", 0, "TLSv1.3", "dane"),
        ("vouched.test", 2, "TLSv1.3", "dane"),
        ("unusable.test", 5, "TLSv1.3", "dane"),
        ("none.test", 4, "", ""),
        ("unsigned.test", 5, "TLSv1.3", ""),
    ] {
        let to = format!("bob@{domain}");
        let Some(id) = send_one(&relay, "ann@origin.test", &[&to], b"x\r\n") else { return };
        let delivered = relay.wait_event("delivered", &id, &to);
        assert_eq!((text(&delivered, "tls"), text(&delivered, "tls_policy")), (version, policy), "{delivered}");
        hosts[host].wait_for(&to);
    }
    let before: Vec<usize> = hosts.iter().map(|host| host.mails().len()).collect();
    for (domain, why) in [
        ("bad.test", "no TLSA record of mx.bad.test means the certificate that it presents"),
        ("misnamed.test", "does not prove the name mx.misnamed.test"),
        ("clear.test", "does not offer STARTTLS (STARTTLS); DANE (the host's TLSA records) asks for it"),
        ("unusableclear.test", "does not offer STARTTLS (STARTTLS); DANE (the host's TLSA records) asks for it"),
        ("spoiled.test", "the MX records of spoiled.test are neither proven nor proven to be unsigned"),
    ] {
        let to = format!("bob@{domain}");
        send_one(&relay, "ann@origin.test", &[&to], b"x\r\n").expect("Python is there");
        put_off(&relay, &to, why);
    }
    assert_eq!(hosts.iter().map(|host| host.mails().len()).collect::<Vec<_>>(), before, "nothing came there");
    relay.stop();
}

#[test]
fn a_resolver_that_hands_on_no_proofs_is_told() {
    let names = super::dns::NameServer::new().mx("dest.test", 10, "mx.dest.test").a("mx.dest.test", [127, 0, 0, 31]);
    let host = Sink::offering(ALL);
    let sections = format!(
        "[dns]\nservers = \"{}\"\n[[route]]\ntarget = \"mx\"\nport = {}\ntls_options = {{ dane = true }}",
        names.address,
        host.address.port()
    );
    let relay = Setup::new().flag("--retry", 1).sections(&sections).start();
    if send_one(&relay, "ann@origin.test", &["bob@dest.test"], b"x\r\n").is_none() {
        return;
    }
    put_off(&relay, "bob@dest.test", "the MX records of dest.test are neither proven nor proven to be unsigned");
    assert_eq!(host.connections(), 0);
    relay.stop();
}
