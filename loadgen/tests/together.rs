//! Source and sink face to face, with no server between them: what one sends the other takes, and the ledger agrees.

use ringpost_load::ledger::Ledger;
use ringpost_load::sink::{Sink, SinkConfig};
use ringpost_load::source::{Source, SourceConfig};
use ringpost_load::workload::Workload;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[test]
fn everything_acknowledged_has_arrived_undamaged() {
    let ledger = Arc::new(Ledger::default());
    let sink = Sink::start(SinkConfig::new(ANYWHERE), ledger.clone()).expect("a sink");
    let config = SourceConfig {
        sessions: 4,
        messages: 300,
        per_connection: 17,
        duration: Duration::from_secs(60),
        ..SourceConfig::new(sink.address())
    };
    let report = Source::start(config, Workload::mixed(5), ledger.clone()).join();
    assert!(ledger.wait_complete(Duration::from_secs(10)));
    let findings = ledger.findings();
    assert_eq!((findings.lost.len(), findings.repeats()), (0, 0), "{findings}");
    assert!(
        findings.damaged.is_empty() && findings.strange.is_empty(),
        "{:?} {:?}",
        findings.damaged,
        findings.strange
    );
    assert_eq!(report.acknowledged, findings.acknowledged);
    assert!(findings.acknowledged > 250 && report.refused_recipients > 0, "{findings}");
    assert_eq!(sink.report().messages, findings.acknowledged);
    assert_eq!(report.lost_connections, 0, "{:?}", report.reasons);
}

#[test]
fn dropped_connections_lose_nothing_that_was_acknowledged() {
    let ledger = Arc::new(Ledger::default());
    let drops = SinkConfig {
        drop_untaken_percent: 10,
        drop_unanswered_percent: 10,
        drop_answered_percent: 10,
        slow_percent: 10,
        slow: Duration::from_millis(2),
        ..SinkConfig::new(ANYWHERE)
    };
    let sink = Sink::start(drops, ledger.clone()).expect("a sink");
    let config = SourceConfig { sessions: 3, messages: 200, ..SourceConfig::new(sink.address()) };
    let report = Source::start(config, Workload::plain(6, 2000), ledger.clone()).join();
    let findings = ledger.findings();
    assert!(findings.lost.is_empty() && findings.damaged.is_empty(), "{findings}");
    assert!(report.lost_connections > 0 && report.in_doubt > 0 && findings.unacknowledged > 0, "{report:?}");
    assert_eq!(findings.acknowledged, report.acknowledged);
}

#[test]
fn a_source_that_finds_no_server_ends_in_its_time() {
    let config = SourceConfig {
        sessions: 2,
        duration: Duration::from_millis(300),
        ..SourceConfig::new(ringpost_load::relay::free_address().expect("a free port"))
    };
    let report = Source::start(config, Workload::plain(7, 100), Arc::default()).join();
    assert!(report.acknowledged == 0 && report.lost_connections > 0);
}
