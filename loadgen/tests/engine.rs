//! Source and destination on the engine, face to face: all ways to send, all rules of a destination, the delaying proxy.
//!
//! Over loopback. Judged by the ledger and by counts, never by speed.

use ringpost_load::delay::{self, DelayReport};
use ringpost_load::engine;
use ringpost_load::ledger::{Findings, Ledger};
use ringpost_load::receive::{Figures, ReceiveConfig, Receiver, self_signed};
use ringpost_load::record::{self, Record};
use ringpost_load::send::protocol::{AuthMethod, TlsMode};
use ringpost_load::send::schedule::Profile;
use ringpost_load::send::tally::{Point, Tally};
use ringpost_load::send::{SendConfig, Sender, tls_client};
use ringpost_load::workload::{Domains, Workload};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn destination(change: impl FnOnce(&mut ReceiveConfig), record: Record) -> Receiver {
    let mut config = ReceiveConfig::new(ANYWHERE);
    change(&mut config);
    Receiver::start(config, record).expect("a destination")
}

fn with_rules(rules: &[&str]) -> Receiver {
    let rules = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
    destination(|config| config.rules = rules, Record::Nothing)
}

fn source(to: SocketAddr, messages: u64) -> SendConfig {
    let mut config = SendConfig::new(to, "load.example");
    config.messages = messages;
    config.sessions = 4;
    config
}

fn send(config: SendConfig, workload: Workload, record: Record) -> (Tally, Vec<Point>) {
    Sender::start(config, workload, record).and_then(|sender| sender.finish(|_| None)).expect("a source")
}

fn send_plain(config: SendConfig) -> Tally {
    send(config, Workload::plain(1, 600), Record::Nothing).0
}

fn count(figure: impl Fn(&Figures) -> &AtomicU64, receiver: &Receiver) -> u64 {
    figure(&receiver.figures()).load(Ordering::Relaxed)
}

fn assert_clean(findings: &Findings, acknowledged: u64) {
    assert_eq!((findings.lost.len(), findings.repeats()), (0, 0), "{findings}");
    assert!(
        findings.damaged.is_empty() && findings.strange.is_empty(),
        "{:?} {:?}",
        findings.damaged,
        findings.strange
    );
    assert_eq!((findings.acknowledged, findings.unacknowledged), (acknowledged, 0), "{findings}");
}

/// Sends large messages through a proxy that holds less than they have.
#[test]
fn what_a_proxy_cannot_hold_waits_and_is_not_lost() {
    let ledger = Arc::new(Ledger::default());
    let record = Record::Ledger(ledger.clone());
    let receiver = destination(|_| {}, record.clone());
    let listener = engine::listen(ANYWHERE, false).expect("a port");
    let (near, far) = (listener.address, receiver.addresses()[0]);
    let report = Arc::new(Mutex::new(DelayReport::default()));
    let stop = AtomicBool::new(false);
    let size = 3 * delay::HELD_MAX;
    std::thread::scope(|scope| {
        let proxy = scope.spawn(|| delay::run(listener, far, Duration::from_millis(100), &report, &stop));
        let (tally, _) = send(source(near, 2), Workload::plain(3, size), record);
        stop.store(true, Ordering::Relaxed);
        proxy.join().expect("no panic").expect("a good end");
        assert_eq!(tally.acknowledged, 2, "{:?}", tally.reasons);
    });
    assert_clean(&ledger.findings(), 2);
    assert!(report.lock().expect("no panic").octets > 2 * size as u64);
}

/// Sends to a fresh destination with a changed configuration; everything must arrive as it was sent.
fn all_arrives(
    receive: impl FnOnce(&mut ReceiveConfig),
    change: impl FnOnce(&mut SendConfig),
    workload: Workload,
) -> (Tally, Receiver) {
    let ledger = Arc::new(Ledger::default());
    let record = Record::Ledger(ledger.clone());
    let receiver = destination(receive, record.clone());
    let mut config = source(receiver.addresses()[0], 200);
    config.per_connection = 23;
    change(&mut config);
    let (tally, _) = send(config, workload, record);
    assert_eq!(tally.lost_connections, 0, "{:?}", tally.reasons);
    assert_clean(&ledger.findings(), tally.acknowledged);
    assert!(tally.acknowledged > 0, "{:?}", tally.reasons);
    (tally, receiver)
}

#[test]
fn a_mixed_load_arrives_whole_in_every_way_of_saying_it() {
    for (pipelining, chunking) in [(true, false), (true, true), (false, false), (false, true)] {
        let change = |config: &mut SendConfig| {
            config.client.pipelining = pipelining;
            config.client.chunking = chunking;
        };
        let (tally, receiver) = all_arrives(|_| {}, change, Workload::mixed(5));
        assert_eq!(tally.begun, 200);
        assert!(tally.refused_recipients > 0 && tally.connections >= 9, "{tally:?}");
        assert_eq!(count(|figures| &figures.messages, &receiver), tally.acknowledged);
    }
}

#[test]
fn threads_share_sessions_and_messages() {
    let domains = Some(Domains::zipf(50, 1.0));
    let workload = Workload { recipients_min: 3, recipients_max: 3, domains, ..Workload::plain(6, 300) };
    let change = |config: &mut SendConfig| (config.threads, config.sessions) = (3, 7);
    let (tally, receiver) = all_arrives(|config| config.threads = 2, change, workload);
    assert_eq!((tally.acknowledged, tally.recipients, tally.latency.count()), (200, 600, 200));
    assert_eq!(count(|figures| &figures.recipients, &receiver), 600);
}

#[test]
fn every_session_has_its_source_address() {
    let change = |config: &mut SendConfig| {
        config.sources = (1..=4).map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 1, last))).collect();
    };
    all_arrives(|_| {}, change, Workload::plain(8, 100));
    let mut config = source(destination(|_| {}, Record::Nothing).addresses()[0], 5);
    config.sources = vec![IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7))];
    config.patience = Duration::from_secs(1);
    let tally = send_plain(config);
    assert_eq!(tally.acknowledged, 0);
    assert!(!tally.reasons.is_empty());
}

#[test]
fn tls_in_both_forms() {
    for mode in [TlsMode::Start, TlsMode::Implicit] {
        let receive = |config: &mut ReceiveConfig| {
            config.tls = Some(self_signed().expect("a certificate"));
            if mode == TlsMode::Implicit {
                config.listen_tls = std::mem::take(&mut config.listen);
            }
        };
        let change = |config: &mut SendConfig| {
            config.client.tls = mode;
            config.client.chunking = true;
            config.tls = Some((tls_client(mode == TlsMode::Start).expect("a set-up"), "sink.example".to_owned()));
        };
        let (tally, _) = all_arrives(receive, change, Workload::mixed(9));
        assert_eq!(tally.begun, 200);
    }
}

#[test]
fn logs_in_or_is_refused() {
    let user = Some(("user".to_owned(), "secret".to_owned()));
    for method in [AuthMethod::Plain, AuthMethod::Login] {
        let change = |config: &mut SendConfig| {
            config.client.auth = Some((method, "user".to_owned(), "secret".to_owned()));
        };
        all_arrives(|config| config.auth = user.clone(), change, Workload::plain(3, 100));
        let receiver = destination(|config| config.auth = user.clone(), Record::Nothing);
        let mut config = source(receiver.addresses()[0], 5);
        config.client.auth = Some((method, "user".to_owned(), "wrong".to_owned()));
        config.patience = Duration::from_secs(1);
        let tally = send_plain(config);
        assert_eq!(tally.acknowledged, 0);
        assert!(tally.reasons.iter().any(|reason| reason.starts_with("535 ")), "{:?}", tally.reasons);
    }
}

#[test]
fn an_open_loop_sends_what_is_due_and_counts_from_then() {
    for profile in
        ["constant:2000", "ramp:500-4000:100ms", "burst:50:20ms", "sine:2000:1000:50ms", "step:500,5000:50ms"]
    {
        for cold in [false, true] {
            let change = |config: &mut SendConfig| {
                config.profile = profile.parse().expect("a profile");
                config.cold = cold;
                config.random_by = Some(4);
                config.threads = 2;
            };
            let (tally, _) = all_arrives(|_| {}, change, Workload::plain(2, 300));
            assert_eq!((tally.acknowledged, tally.unsent), (200, 0), "{profile}");
        }
    }
    // One session and an answer that takes 20 ms: of ten messages due at once the last waits for nine others.
    let receiver = with_rules(&["* slow=20ms"]);
    let mut config = source(receiver.addresses()[0], 10);
    config.sessions = 1;
    config.profile = "burst:10:1ms".parse().expect("a profile");
    let tally = send_plain(config);
    assert!(tally.latency.percentile_us(100.0) >= 200_000, "{}", tally.latency);
    assert!(tally.service.percentile_us(10.0) >= 20_000, "{}", tally.service);
}

/// A timer for each reply that comes before the timer's own turn would add up to a source that does nothing else.
#[test]
fn an_open_loop_sets_one_timer_for_a_message() {
    let receiver = destination(|_| {}, Record::Nothing);
    let mut config = source(receiver.addresses()[0], 3000);
    config.profile = Profile::Constant(20_000.0);
    let tally = send_plain(config);
    assert_eq!(tally.acknowledged, 3000);
    assert!(tally.due_timers <= 3000, "{} timers", tally.due_timers);
}

#[test]
fn what_was_due_and_not_sent_is_told() {
    let receiver = with_rules(&["* stall"]);
    let mut config = source(receiver.addresses()[0], 100);
    config.profile = "burst:100:1ms".parse().expect("a profile");
    config.duration = Duration::from_millis(200);
    config.patience = Duration::from_millis(300);
    let tally = send_plain(config);
    assert_eq!((tally.acknowledged, tally.begun, tally.in_doubt, tally.unsent), (0, 4, 4, 96), "{:?}", tally.reasons);
    assert_eq!(count(|figures| &figures.stalled, &receiver), 4);
}

#[test]
fn a_source_stops_when_told_to() {
    let receiver = destination(|_| {}, Record::Nothing);
    let sender = Sender::start(source(receiver.addresses()[0], u64::MAX), Workload::plain(1, 100), Record::Nothing);
    let sender = sender.expect("a source");
    let stop = sender.stop_handle();
    let (tally, points) = sender
        .finish(|_| {
            stop.store(true, Ordering::Relaxed);
            None
        })
        .expect("a source");
    assert!(tally.acknowledged > 0 && tally.in_doubt == 0 && tally.lost_connections == 0, "{:?}", tally.reasons);
    assert_eq!(points.iter().map(|point| point.acknowledged).sum::<u64>(), tally.acknowledged);
}

#[test]
fn replies_by_rule() {
    for (rule, refused, reply) in [
        ("* defer", "450", true),
        ("load.example reject", "550", true),
        ("* defer-content", "451", false),
        ("* reject-content", "554", false),
        ("* greylist=1h", "451", true),
    ] {
        let receiver = with_rules(&["other.example accept", rule]);
        let tally = send_plain(source(receiver.addresses()[0], 10));
        assert_eq!((tally.acknowledged, tally.refused), (0, 10), "{rule}");
        assert!(tally.reasons.iter().any(|reason| reason.starts_with(refused)), "{rule}: {:?}", tally.reasons);
        let figures = (count(|all| &all.refused_recipients, &receiver), count(|all| &all.refused_contents, &receiver));
        assert_eq!(figures, if reply { (10, 0) } else { (0, 10) }, "{rule}");
    }
    let receiver = with_rules(&["* accept", "* defer"]);
    assert_eq!(send_plain(source(receiver.addresses()[0], 10)).acknowledged, 10);
    let receiver = with_rules(&["* reject 500/1000"]);
    let tally = send_plain(source(receiver.addresses()[0], 400));
    assert!((100..300).contains(&tally.acknowledged), "{}", tally.acknowledged);
}

#[test]
fn what_a_rule_refuses_is_noted_as_refused() {
    let ledger = Arc::new(Ledger::default());
    let record = Record::Ledger(ledger.clone());
    let rules =
        vec!["* reject 300/1000".parse().expect("a rule"), "* reject-content 300/1000".parse().expect("a rule")];
    let receiver = destination(|config| config.rules = rules, record.clone());
    // The source plays a relay that was refused: nothing of that is acknowledged, so nothing can be lost.
    let (tally, _) = send(source(receiver.addresses()[0], 200), Workload::plain(3, 300), record);
    assert!(tally.refused > 40 && tally.acknowledged > 40, "{tally:?}");
    assert_clean(&ledger.findings(), tally.acknowledged);
}

#[test]
fn connections_are_dropped_by_rule() {
    for (rule, taken) in [("* drop-before", 0), ("* drop-unanswered", 10)] {
        let receiver = with_rules(&[rule]);
        let tally = send_plain(source(receiver.addresses()[0], 10));
        assert_eq!((tally.begun, tally.in_doubt, tally.acknowledged), (10, 10, 0), "{rule}");
        assert_eq!(count(|figures| &figures.messages, &receiver), taken, "{rule}");
        assert_eq!(count(|figures| &figures.drops, &receiver), 10, "{rule}");
    }
    // The next message may be under way when the connection ends behind the answer to the one before.
    let receiver = with_rules(&["* drop-after"]);
    let tally = send_plain(source(receiver.addresses()[0], 20));
    assert!(tally.acknowledged >= 10 && tally.in_doubt == 0, "{tally:?}");
    assert_eq!(count(|figures| &figures.drops, &receiver), tally.acknowledged);
    let receiver = with_rules(&["* close-after=3"]);
    let tally = send_plain(source(receiver.addresses()[0], 30));
    assert!(tally.acknowledged >= 20 && tally.lost_connections >= 6, "{tally:?}");
    assert!(tally.reasons.iter().any(|reason| reason.starts_with("421 ")), "{:?}", tally.reasons);
}

#[test]
fn a_destination_can_be_hostile_before_the_first_word() {
    let receiver = with_rules(&["* refuse"]);
    let mut config = source(receiver.addresses()[0], 3);
    config.patience = Duration::from_secs(1);
    let tally = send_plain(config);
    assert!(tally.acknowledged == 0 && tally.lost_connections > 0);
    let rule = "* broken-tls".parse().expect("a rule");
    let receiver = destination(
        |config| {
            config.tls = Some(self_signed().expect("a certificate"));
            config.rules = vec![rule];
        },
        Record::Nothing,
    );
    let mut config = source(receiver.addresses()[0], 3);
    config.client.tls = TlsMode::Start;
    config.tls = Some((tls_client(true).expect("a set-up"), "sink.example".to_owned()));
    config.patience = Duration::from_secs(1);
    let tally = send_plain(config);
    assert!(tally.acknowledged == 0 && count(|figures| &figures.drops, &receiver) > 0, "{:?}", tally.reasons);
}

#[test]
fn limits_hold_and_violations_are_counted() {
    let receiver = with_rules(&["* connections=2"]);
    let mut config = source(receiver.addresses()[0], 50);
    config.profile = "burst:50:20ms".parse().expect("a profile");
    let tally = send_plain(config);
    assert_eq!(tally.acknowledged, 50, "{:?}", tally.reasons);
    assert!(count(|figures| &figures.violations, &receiver) >= 2);
    let receiver = with_rules(&["* rate=7/1h"]);
    let tally = send_plain(source(receiver.addresses()[0], 50));
    assert_eq!((tally.acknowledged, tally.refused), (7, 43));
    assert_eq!(count(|figures| &figures.violations, &receiver), 43);
}

#[test]
fn two_files_of_notes_are_a_ledger() {
    let directory = std::env::temp_dir().join(format!("ringpost-notes-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (sent, came) = (directory.join("sent"), directory.join("came"));
    let (ours, theirs) = (Record::file(&sent).expect("a file"), Record::file(&came).expect("a file"));
    let receiver = destination(|_| {}, theirs.clone());
    let (tally, _) = send(source(receiver.addresses()[0], 100), Workload::mixed(4), ours.clone());
    receiver.stop().expect("a good end");
    ours.flush().and_then(|()| theirs.flush()).expect("room on the disk");
    let ledger = Ledger::default();
    for file in [&came, &sent] {
        record::read(file, &ledger).expect("lines of ours");
    }
    assert_clean(&ledger.findings(), tally.acknowledged);
    let half = std::fs::read_to_string(&came).expect("text");
    let half: String = half.lines().skip(1).map(|line| format!("{line}\n")).collect();
    std::fs::write(&came, half).expect("room on the disk");
    let ledger = Ledger::default();
    for file in [&came, &sent] {
        record::read(file, &ledger).expect("lines of ours");
    }
    assert!(!ledger.findings().lost.is_empty());
    std::fs::remove_dir_all(directory).expect("the directory");
}

#[test]
fn a_distance_is_kept_and_nothing_is_lost_on_the_way() {
    const ROUND_TRIP: Duration = Duration::from_millis(40);
    let ledger = Arc::new(Ledger::default());
    let record = Record::Ledger(ledger.clone());
    let receiver = destination(|_| {}, record.clone());
    let listener = engine::listen(ANYWHERE, false).expect("a port");
    let (near, far) = (listener.address, receiver.addresses()[0]);
    let report = Arc::new(Mutex::new(DelayReport::default()));
    let stop = AtomicBool::new(false);
    let tally = std::thread::scope(|scope| {
        let proxy = scope.spawn(|| delay::run(listener, far, ROUND_TRIP, &report, &stop));
        let (tally, _) = send(source(near, 12), Workload::plain(3, 100_000), record);
        stop.store(true, Ordering::Relaxed);
        proxy.join().expect("no panic").expect("a good end");
        tally
    });
    assert_clean(&ledger.findings(), 12);
    // MAIL, RCPT and DATA in one flight, then the content.
    assert!(tally.service.percentile_us(0.0) >= 2 * 40_000, "{}", tally.service);
    // The connection, the greeting, EHLO.
    assert!(tally.connecting.percentile_us(0.0) >= 3 * 40_000, "{}", tally.connecting);
    let report = report.lock().expect("no panic");
    assert!(report.octets > 1_200_000 && report.connections == 4 && report.error.count() > 40, "{report:?}");
}
