//! The control thread against shards that are only mailboxes: questions, answers, silence, stop.

use super::certificates::CertificatePlan;
use super::http::{Changed, QueuePage, Selection, Status};
use super::log_output::LogOutput;
use super::*;
use crate::config::{Config, settings};
use crate::event::AttemptFacts;
use crate::id::MessageId;
use crate::io::dns::{DnsConfig, Query};
use crate::io::mailbox::{InboxSender, Mailbox, inbox, mailbox};
use crate::metrics::ShardMetrics;
use crate::shard::message::{AdminReply, MessageSummary, RecipientSummary, SiteSummary};
use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// How a shard of the test behaves.
#[derive(Clone, Default)]
struct Fake {
    /// Ids of the messages that wait in it.
    messages: Vec<u64>,
    /// Messages it looks at for one question.
    step: usize,
    silent: bool,
}

struct World {
    socket: PathBuf,
    reports: InboxSender<Report>,
    signals: UnboundedSender<&'static str>,
    ended: UnboundedSender<(Option<u8>, Result<(), String>)>,
    notices: Arc<Mutex<Vec<Notice>>>,
    asked: Arc<Mutex<Vec<(u8, AdminRequest)>>>,
    written: log_output::tests::Written,
    outcome: tokio::task::JoinHandle<Ended>,
}

fn summary(id: u64, shard: u8) -> MessageSummary {
    let recipient = RecipientSummary {
        address: "ann@dest.test".into(),
        state: "scheduled".into(),
        attempts: 1,
        next: None,
        site: None,
        class: None,
        why: "451 later".into(),
    };
    MessageSummary {
        id: MessageId(id).to_string(),
        arrived: "2026-11-24T18:20:00.123Z".into(),
        sender: "a@x.test".into(),
        size: 7,
        tenant: "default".into(),
        shard,
        recipients: vec![recipient],
        done: 0,
    }
}

fn reply(shard: u8, fake: &Fake, request: &AdminRequest) -> AdminReply {
    let seen = |after: &Option<u64>| -> (Vec<u64>, Option<u64>) {
        let left: Vec<u64> = fake.messages.iter().copied().filter(|id| after.is_none_or(|after| *id > after)).collect();
        let page: Vec<u64> = left.iter().copied().take(fake.step).collect();
        let next = (left.len() > page.len()).then(|| page.last().copied()).flatten();
        (page, next)
    };
    match request {
        AdminRequest::List { after, limit, .. } => {
            let (mut page, mut next) = seen(after);
            if page.len() > *limit {
                page.truncate(*limit);
                next = page.last().copied();
            }
            AdminReply::Messages { messages: page.iter().map(|id| summary(*id, shard)).collect(), next }
        }
        AdminRequest::Show { id } => {
            AdminReply::Message(fake.messages.contains(id).then(|| Box::new(summary(*id, shard))))
        }
        AdminRequest::Sites => AdminReply::Sites(vec![SiteSummary {
            name: "mx.dest.test".into(),
            ready: fake.messages.len(),
            connections: 3,
            max_connections: 20,
            state: if shard == 1 { "down for 5 s: refused".into() } else { "up".into() },
        }]),
        AdminRequest::Metrics => {
            let mut metrics = ShardMetrics::new(shard);
            metrics.delivered = 10;
            metrics.queue.messages = fake.messages.len() as u64;
            AdminReply::Metrics(Box::new(metrics))
        }
        AdminRequest::Retry { after, .. }
        | AdminRequest::Hold { after, .. }
        | AdminRequest::Release { after, .. }
        | AdminRequest::Delete { after, .. } => {
            let (page, next) = seen(after);
            AdminReply::Changed { recipients: page.len() as u64, next }
        }
    }
}

type Asked = Arc<Mutex<Vec<(u8, AdminRequest)>>>;

async fn play(
    shard: u8,
    fake: Fake,
    own: Mailbox<ToShard>,
    reports: InboxSender<Report>,
    ended: UnboundedSender<(Option<u8>, Result<(), String>)>,
    asked: Asked,
) {
    loop {
        match poll_fn(|context| own.poll_pop(context)).await {
            ToShard::Admin { ticket, request } if !fake.silent => {
                let reply = reply(shard, &fake, &request);
                asked.lock().unwrap().push((shard, request));
                reports.push(Report::Admin { shard, ticket, reply }).unwrap();
            }
            ToShard::Shutdown if !fake.silent => {
                ended.send((Some(shard), Ok(()))).unwrap();
                return;
            }
            ToShard::Resolved { resolution, permits } => {
                let event = Event::Notice {
                    severity: Severity::Info,
                    text: format!("resolved {:?} {:?}", resolution.query, permits.map(|site| site.name.clone())).into(),
                };
                let at = crate::io::clock::now().unix;
                reports.push(Report::Event { shard, at, event }).unwrap();
            }
            _ => {}
        }
    }
}

fn suppressions(directory: &std::path::Path) -> Suppressions {
    let plan = Config::embedded().unwrap().suppression.plan();
    Suppressions::open(directory, [1; 16], plan, crate::io::clock::now().unix).unwrap().0
}

async fn start(name: &str, fakes: Vec<Fake>) -> World {
    let directory = std::env::temp_dir().join(format!("ringpost-control-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let socket = directory.join("control.sock");
    let (reports, inbox) = inbox(1024, |report| !matches!(report, Report::Event { .. }));
    let (ended, all_ended) = unbounded_channel();
    let (signals, all_signals) = unbounded_channel();
    let (written, sink) = log_output::tests::pipe();
    let asked = Asked::default();
    let mut shards = Vec::new();
    for (shard, fake) in fakes.into_iter().enumerate() {
        let (sender, own) = mailbox(64);
        shards.push(sender);
        tokio::spawn(play(shard as u8, fake, own, reports.clone(), ended.clone(), Arc::clone(&asked)));
    }
    let config = Config::embedded().unwrap();
    let settings = Arc::new(settings::settings(&config, None));
    let notices = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&notices);
    // Nobody answers there: lookups end as temporary failures.
    let dns = DnsConfig {
        servers: vec!["127.0.0.1:9".parse().unwrap()],
        timeout: Duration::from_millis(50),
        attempts: 1,
        concurrency: 4,
    };
    let parts = ControlParts {
        registry: SiteRegistry::new(settings, shards.len() as u8),
        shards,
        inbox,
        identities: identities::Identities::open(&directory).unwrap(),
        suppressions: suppressions(&directory),
        certificates: Certificates::open(CertificatePlan::default(), None, crate::io::clock::now().unix).unwrap(),
        acme: None,
        login_key: [7; 32],
        tokens: None,
        filters: Vec::new(),
        hostname: "mx.example".into(),
        spool: directory.clone(),
        resolver: Arc::new(Resolver::new(&dns).unwrap()),
        mta_sts: None,
        prover: None,
        log: EventLog::new(log::LogFormat::Human, log::LogLevel::Info, LogOutput::new(sink)),
        admin: UnixListener::bind(&socket).unwrap(),
        monitoring: None,
        sandbox: None,
        ended: all_ended,
        signals: all_signals,
        notify: Box::new(move |notice| told.lock().unwrap().push(notice)),
        watchdog: Some(Duration::from_millis(60)),
    };
    let outcome = tokio::spawn(run(parts));
    World { socket, reports, signals, ended, notices, asked, written, outcome }
}

impl World {
    /// Status and body of one request.
    async fn ask(&self, request: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let text = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.ask(&format!("GET {path}"), "").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    fn all_listen(&self, shards: u8) {
        for shard in 0..shards {
            self.reports.push(Report::State { shard, state: ShardState::Listening }).unwrap();
        }
    }

    async fn stop(self) -> (Ended, String) {
        self.signals.send("SIGTERM").unwrap();
        let outcome = self.outcome.await.unwrap();
        if let Some(directory) = self.socket.parent() {
            let _ = std::fs::remove_dir_all(directory);
        }
        (outcome, self.written.text())
    }
}

fn two() -> Vec<Fake> {
    vec![
        Fake { messages: vec![1, 4, 6, 9], step: 2, silent: false },
        Fake { messages: vec![2, 3, 5], step: 100, silent: false },
    ]
}

#[tokio::test]
async fn lists_are_merged_in_the_order_of_ids_and_paged() {
    let world = start("list", two()).await;
    let whole: QueuePage = world.get("/v1/queue").await;
    let ids = |page: &QueuePage| -> Vec<u64> {
        page.messages.iter().map(|message| message.id.parse::<MessageId>().unwrap().0).collect()
    };
    assert_eq!((ids(&whole), &whole.next), (vec![1, 2, 3, 4, 5, 6, 9], &None));
    let mut gathered = Vec::new();
    let mut after = String::new();
    loop {
        let page: QueuePage = world.get(&format!("/v1/queue?limit=3{after}")).await;
        assert!(page.messages.len() <= 3);
        gathered.extend(ids(&page));
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(gathered, [1, 2, 3, 4, 5, 6, 9]);
    let shown: MessageSummary = world.get(&format!("/v1/queue/{}", MessageId(5))).await;
    assert_eq!(shown.shard, 1);
    let sites: Vec<SiteSummary> = world.get("/v1/sites").await;
    assert_eq!((sites[0].ready, sites[0].connections, sites[0].state.as_str()), (7, 3, "down for 5 s: refused"));
    assert_eq!(world.stop().await.0, Ended::Drained);
}

#[tokio::test]
async fn acts_reach_every_shard_until_all_is_done() {
    let world = start("act", two()).await;
    let (status, body) = world.ask("POST /v1/queue/hold", r#"{"domain": "dest.test"}"#).await;
    assert_eq!((status, serde_json::from_str::<Changed>(&body).unwrap()), (200, Changed { changed: 7 }));
    let afters: Vec<(u8, Option<u64>)> = world
        .asked
        .lock()
        .unwrap()
        .iter()
        .filter_map(|(shard, request)| match request {
            AdminRequest::Hold { after, .. } => Some((*shard, *after)),
            _ => None,
        })
        .collect();
    assert_eq!(afters.len(), 3);
    assert!(afters.contains(&(0, Some(4))), "the shard that had more is asked again, from there: {afters:?}");
    world.stop().await;
}

#[tokio::test]
async fn wrong_questions_are_answered_with_what_to_do() {
    let world = start("wrong", two()).await;
    for (request, body, status, hint) in [
        ("GET /v1/queue?limit=0", "", 400, "1 to 1000"),
        ("GET /v1/queue?domian=x", "", 400, "known keys"),
        ("GET /v1/queue?state=odd", "", 400, "waiting"),
        ("GET /v1/queue?after=zz", "", 400, "next"),
        ("GET /v1/queue/zz", "", 400, "ids"),
        ("GET /v1/queue/000000000007Z", "", 404, "log"),
        ("POST /v1/queue/delete", "{}", 400, "\\\"all\\\": true"),
        ("POST /v1/queue/delete", r#"{"domian": "x"}"#, 400, "JSON object"),
        ("POST /v1/queue/delete", "nonsense", 400, "JSON object"),
        ("GET /v1/sandbox", "", 404, "[sandbox]"),
        ("GET /nothing", "", 404, "CONFIGURATION"),
    ] {
        let (got, answer) = world.ask(request, body).await;
        assert_eq!(got, status, "{request}: {answer}");
        let json: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert!(!json["error"].as_str().unwrap().is_empty());
        assert!(answer.contains(hint), "{request}: {answer}");
    }
    assert!(world.asked.lock().unwrap().iter().all(|(_, request)| matches!(request, AdminRequest::Show { .. })));
    let selection = Selection { all: true, ..Selection::default() };
    assert_eq!(serde_json::to_string(&selection).unwrap(), r#"{"all":true}"#);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_shard_makes_an_error_that_names_it_and_cannot_keep_the_stop() {
    let world = start("silent", vec![Fake::default(), Fake { silent: true, ..Fake::default() }]).await;
    let (status, body) = world.ask("GET /v1/status", "").await;
    assert_eq!(status, 504, "{body}");
    assert!(body.contains("[1] did not answer"), "{body}");
    let (outcome, log) = world.stop().await;
    assert_eq!(outcome, Ended::Hurried);
    assert!(log.contains("shards [1] did not stop in time"), "{log}");
}

#[tokio::test]
async fn readiness_follows_the_shards_and_metrics_add_up() {
    let world = start("ready", two()).await;
    assert_eq!(world.ask("GET /healthz", "").await.0, 200);
    assert_eq!(world.ask("GET /readyz", "").await.0, 503);
    world.all_listen(2);
    while world.ask("GET /readyz", "").await.0 != 200 {
        tokio::task::yield_now().await;
    }
    let status: Status = world.get("/v1/status").await;
    assert_eq!((status.state.as_str(), status.delivered, status.messages), ("running", 20, 7));
    let (_, text) = world.ask("GET /metrics", "").await;
    let samples = metrics_text::tests::parse(&text);
    assert_eq!(samples["ringpost_recipients_done_total{disposition=\"delivered\"}"], 20.0);
    assert_eq!(samples["ringpost_shards"], 2.0);
    while !world.notices.lock().unwrap().contains(&Notice::Alive) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let notices = Arc::clone(&world.notices);
    world.stop().await;
    let notices = notices.lock().unwrap();
    // Shards answer before they listen, so that it may be alive before it is ready.
    assert_eq!(notices.iter().find(|notice| **notice != Notice::Alive), Some(&Notice::Ready));
    assert_eq!(notices.iter().filter(|notice| **notice == Notice::Stopping).count(), 1);
}

#[tokio::test]
async fn events_are_logged_and_names_looked_up_for_all_who_ask() {
    let world = start("events", two()).await;
    let facts = AttemptFacts {
        id: MessageId(7),
        recipient: "ann@dest.test".into(),
        tenant: "default".into(),
        site: "x".into(),
        remote: None,
        reply: "550 no".into(),
        meaning: None,
        attempt: 1,
        age_ms: 1,
        took_ms: 1,
        tls: None,
        tls_policy: None,
    };
    let at = crate::io::clock::now().unix;
    world.reports.push(Report::Event { shard: 1, at, event: Event::Bounced(facts) }).unwrap();
    for shard in [0, 1, 1] {
        world.reports.push(Report::Resolve { shard, query: Query::Mail("dest.test".into()) }).unwrap();
    }
    while world.written.text().matches("resolved").count() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, log) = world.stop().await;
    assert_eq!(log.matches("resolved").count(), 2, "one answer for each shard: {log}");
    assert!(log.contains(" WARN bounced id=0000000000007 to=<ann@dest.test>"), "{log}");
    assert!(log.ends_with("INFO notice text=stopped\n"), "{log}");
}

#[tokio::test]
async fn a_dead_shard_and_an_unreadable_spool_end_the_program() {
    let world = start("dead", two()).await;
    world.ended.send((Some(1), Err("it panicked".into()))).unwrap();
    let outcome = world.outcome.await.unwrap();
    assert_eq!(outcome, Ended::ShardDied { shard: 1, reason: "it panicked".into() });
    assert!(world.written.text().contains("ERROR notice text=\"shard 1 is dead: it panicked"));

    let world = start("unreadable", two()).await;
    world.ended.send((None, Err("no directory".into()))).unwrap();
    assert_eq!(world.outcome.await.unwrap(), Ended::SpoolUnreadable("no directory".into()));
}

#[tokio::test]
async fn a_second_signal_hurries() {
    let world = start("hurry", vec![Fake { silent: true, ..Fake::default() }]).await;
    let begin = std::time::Instant::now();
    world.signals.send("SIGINT").unwrap();
    world.signals.send("SIGINT").unwrap();
    assert_eq!(world.outcome.await.unwrap(), Ended::Hurried);
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!(world.written.text().contains("SIGINT again"));
}
