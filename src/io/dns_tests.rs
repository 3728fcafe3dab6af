//! The resolver against a name server of the test's own, on loopback, by UDP and TCP.

use super::dns::{DnsConfig, DnsFailure, MxHost, Query, Resolver, TTL_MAX, TTL_MIN, TTL_TEMPORARY};
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn mx(of: &str, preference: u16, host: &str) -> Record {
    Record::from_rdata(name(of), 300, RData::MX(MX::new(preference, name(host))))
}

fn a(of: &str, last: u8) -> Record {
    Record::from_rdata(name(of), 300, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
}

fn aaaa(of: &str, last: u16) -> Record {
    Record::from_rdata(name(of), 300, RData::AAAA(AAAA(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))))
}

/// What the server knows; for other names it says NXDOMAIN.
fn records(zone: &str, kind: RecordType) -> Option<Vec<Record>> {
    let found = match (zone, kind) {
        ("plain.test.", RecordType::MX) => vec![mx(zone, 20, "b.plain.test."), mx(zone, 10, "A.Plain.test.")],
        ("a.plain.test.", RecordType::A) => vec![a(zone, 1), a(zone, 2)],
        ("a.plain.test.", RecordType::AAAA) => vec![aaaa(zone, 1)],
        ("b.plain.test.", RecordType::A) => vec![a(zone, 3)],
        ("implicit.test.", RecordType::A) => vec![a(zone, 4)],
        ("null.test.", RecordType::MX) => vec![mx(zone, 0, ".")],
        ("mixed.test.", RecordType::MX) => vec![mx(zone, 0, "."), mx(zone, 5, "a.plain.test.")],
        ("alias.test.", RecordType::MX) => {
            vec![
                Record::from_rdata(name(zone), 300, RData::CNAME(CNAME(name("plain.test.")))),
                mx("plain.test.", 1, "b.plain.test."),
            ]
        }
        ("dangling.test.", RecordType::MX) => vec![mx(zone, 10, "nowhere.test.")],
        ("half.test.", RecordType::MX) => vec![mx(zone, 10, "broken.test."), mx(zone, 20, "b.plain.test.")],
        ("brokenhosts.test.", RecordType::MX) => vec![mx(zone, 10, "broken.test.")],
        ("odd.test.", RecordType::A) => {
            vec![a(zone, 9), Record::from_rdata(name(zone), 300, RData::A(A(Ipv4Addr::UNSPECIFIED)))]
        }
        ("brief.test.", RecordType::A) => {
            vec![Record::from_rdata(name(zone), 0, RData::A(A(Ipv4Addr::new(192, 0, 2, 7))))]
        }
        ("long.test.", RecordType::A) => {
            vec![Record::from_rdata(name(zone), 900_000, RData::A(A(Ipv4Addr::new(192, 0, 2, 8))))]
        }
        ("crowd.test.", RecordType::MX) => (0..60).map(|n| mx(zone, n, &format!("h{n}.crowd.test."))).collect(),
        (host, RecordType::A) if host.ends_with(".crowd.test.") => vec![a(host, 5)],
        _ => Vec::new(),
    };
    let known = [
        "plain.test.",
        "a.plain.test.",
        "b.plain.test.",
        "implicit.test.",
        "null.test.",
        "mixed.test.",
        "alias.test.",
        "dangling.test.",
        "half.test.",
        "brokenhosts.test.",
        "odd.test.",
        "brief.test.",
        "long.test.",
        "nothing.test.",
        "crowd.test.",
    ];
    (known.contains(&zone) || zone.ends_with(".crowd.test.")).then_some(found)
}

/// The answer to one question; none: the server is silent.
fn answer(request: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let request = Message::from_vec(request).ok()?;
    let query = request.queries.first()?.clone();
    let zone = query.name().to_lowercase().to_ascii();
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.add_query(query.clone());
    match zone.as_str() {
        "silent.test." => return None,
        "broken.test." | "servfail.test." => response.metadata.response_code = ResponseCode::ServFail,
        "refused.test." => response.metadata.response_code = ResponseCode::Refused,
        // More than fits: by UDP only the flag comes.
        "crowd.test." if !tcp && query.query_type() == RecordType::MX => response.metadata.truncation = true,
        _ => match records(&zone, query.query_type()) {
            Some(found) => {
                if found.is_empty() {
                    add_soa(&mut response);
                }
                response.add_answers(found);
            }
            None => {
                response.metadata.response_code = ResponseCode::NXDomain;
                add_soa(&mut response);
            }
        },
    }
    response.to_vec().ok()
}

/// How long "no" is true: the smaller of the record's TTL and its minimum (RFC 2308 5).
fn add_soa(response: &mut Message) {
    let soa = SOA::new(name("ns.test."), name("root.test."), 1, 3600, 600, 86_400, 77);
    response.add_authority(Record::from_rdata(name("test."), 600, RData::SOA(soa)));
}

struct Server {
    address: SocketAddr,
    asked: Arc<AtomicU32>,
}

async fn start() -> Server {
    // Somebody may have the same port of TCP.
    let (udp, tcp, address) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(address).await {
            break (udp, tcp, address);
        }
    };
    let asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((octets, peer)) = udp.recv_from(&mut buffer).await {
            counter.fetch_add(1, Ordering::Relaxed);
            if let Some(response) = answer(&buffer[..octets], false) {
                udp.send_to(&response, peer).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                while let Ok(octets) = stream.read_u16().await {
                    let mut buffer = vec![0; usize::from(octets)];
                    if stream.read_exact(&mut buffer).await.is_err() {
                        return;
                    }
                    if let Some(response) = answer(&buffer, true) {
                        let _ = stream.write_u16(response.len() as u16).await;
                        let _ = stream.write_all(&response).await;
                    }
                }
            });
        }
    });
    Server { address, asked }
}

fn resolver(server: SocketAddr) -> Resolver {
    let timeout = Duration::from_millis(300);
    Resolver::new(&DnsConfig { servers: vec![server], timeout, attempts: 1, concurrency: 16 }).unwrap()
}

async fn mail(resolver: &Resolver, domain: &str) -> Result<Vec<MxHost>, DnsFailure> {
    resolver.resolve(Query::Mail(domain.into())).await.result
}

fn names(hosts: &[MxHost]) -> Vec<(u16, &str)> {
    hosts.iter().map(|host| (host.preference, &*host.name)).collect()
}

#[tokio::test]
async fn hosts_come_in_order_with_all_their_addresses() {
    let server = start().await;
    let resolver = resolver(server.address);
    let resolution = resolver.resolve(Query::Mail("plain.test".into())).await;
    let hosts = resolution.result.unwrap();
    assert_eq!(names(&hosts), [(10, "a.plain.test"), (20, "b.plain.test")]);
    let addresses: Vec<String> = hosts[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    assert!(resolution.ttl <= Duration::from_secs(300) && resolution.ttl > Duration::from_secs(290));
    let asked = server.asked.load(Ordering::Relaxed);
    mail(&resolver, "plain.test").await.unwrap();
    assert_eq!(server.asked.load(Ordering::Relaxed), asked, "the second time nobody is asked");
}

#[tokio::test]
async fn a_domain_without_mx_is_its_own_host_and_a_null_mx_takes_no_mail() {
    let resolver = resolver(start().await.address);
    assert_eq!(names(&mail(&resolver, "implicit.test").await.unwrap()), [(0, "implicit.test")]);
    assert_eq!(mail(&resolver, "null.test").await, Err(DnsFailure::NullMx));
    assert_eq!(names(&mail(&resolver, "mixed.test").await.unwrap()), [(5, "a.plain.test")]);
    assert_eq!(names(&mail(&resolver, "alias.test").await.unwrap()), [(1, "b.plain.test")]);
    let host = resolver.resolve(Query::Host("A.plain.test".into())).await.result.unwrap();
    assert_eq!((names(&host), host[0].addresses.len()), (vec![(0, "a.plain.test")], 3));
}

#[tokio::test]
async fn what_does_not_exist_is_final_and_believed_as_long_as_the_zone_says() {
    let resolver = resolver(start().await.address);
    for domain in ["absent.test", "nothing.test", "dangling.test", "", "a..b", "x\u{0}y"] {
        assert_eq!(mail(&resolver, domain).await, Err(DnsFailure::NoDomain), "{domain:?}");
    }
    let resolution = resolver.resolve(Query::Mail("absent.test".into())).await;
    assert!(
        resolution.ttl <= Duration::from_secs(77) && resolution.ttl > Duration::from_secs(60),
        "{:?}",
        resolution.ttl
    );
    let host = resolver.resolve(Query::Host("absent.test".into())).await;
    assert_eq!(host.result, Err(DnsFailure::NoDomain));
}

#[tokio::test]
async fn what_is_not_known_is_temporary_and_asked_again_soon() {
    let resolver = resolver(start().await.address);
    for domain in ["servfail.test", "refused.test", "silent.test", "brokenhosts.test"] {
        let resolution = resolver.resolve(Query::Mail(domain.into())).await;
        assert!(matches!(resolution.result, Err(DnsFailure::Temporary(_))), "{domain}: {:?}", resolution.result);
        assert_eq!(resolution.ttl, TTL_TEMPORARY);
    }
    let resolution = resolver.resolve(Query::Mail("half.test".into())).await;
    assert_eq!(names(&resolution.result.unwrap()), [(20, "b.plain.test")]);
    assert!(resolution.ttl <= TTL_TEMPORARY);
}

#[tokio::test]
async fn everything_is_bounded() {
    let resolver = resolver(start().await.address);
    let hosts = mail(&resolver, "crowd.test").await.unwrap();
    assert_eq!(hosts.len(), super::dns::MAX_HOSTS);
    assert_eq!(names(&hosts)[15], (15, "h15.crowd.test"));
    assert_eq!(mail(&resolver, "odd.test").await.unwrap()[0].addresses.len(), 1);
    assert_eq!(resolver.resolve(Query::Mail("brief.test".into())).await.ttl, TTL_MIN);
    assert_eq!(resolver.resolve(Query::Mail("long.test".into())).await.ttl.as_secs() + 1, TTL_MAX.as_secs());
}

#[tokio::test]
async fn many_at_a_time_wait_their_turn() {
    let resolver = Arc::new(resolver(start().await.address));
    let lookups: Vec<_> = (0..200)
        .map(|n| {
            let resolver = Arc::clone(&resolver);
            tokio::spawn(async move { resolver.resolve(Query::Host(format!("h{n}.crowd.test").into())).await })
        })
        .collect();
    for lookup in lookups {
        assert!(lookup.await.unwrap().result.is_ok());
    }
}
