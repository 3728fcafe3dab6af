//! Content filters: each complete message of a listener that has some is shown to them, one after the other, and the shard
//! hears one verdict. A filter has a time for it; what happens without an answer is the operator's choice.
//!
//! Not here: how a filter is spoken to (milter.rs, rspamd.rs). The first filter that refuses ends it; what one adds or holds
//! the next does not see.

use super::filter_content::Content;
use super::log::EventLog;
use super::milter;
use super::post::post;
use super::rspamd::Rspamd;
use crate::clock::Instant;
use crate::event::Severity;
use crate::io::clock;
use crate::io::mailbox::Sender;
use crate::limits::{FILTER_HEADERS_MAX, FILTER_TEXT_MAX, FILTERS_TIME, HOLD_REASON_MAX};
use crate::policy::dkim;
use crate::reply::Reply;
use crate::shard::message::{FilterQuestion, FilterVerdict, Passed, Rejected, ToShard};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

/// How often an operator is told of one filter's trouble.
const TROUBLE_PAUSE: Duration = Duration::from_secs(60);

/// What happens to mail when its filter does not answer.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The client is asked to try again.
    #[default]
    Defer,
    /// It goes on as if there were no filter.
    Pass,
    /// It is taken and held.
    Hold,
}

/// Where a milter listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MilterAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// How a filter is asked.
pub enum FilterKind {
    /// By the milter protocol.
    Milter(MilterAddress),
    /// By rspamd's own.
    Rspamd(Rspamd),
}

/// One filter.
pub struct Filter {
    /// As the operator named it.
    pub name: Box<str>,
    /// How it is asked.
    pub kind: FilterKind,
    /// How long it may take, waiting for its turn included.
    pub timeout: Duration,
    /// What happens else.
    pub on_failure: OnFailure,
    /// Messages that it is shown at a time.
    pub concurrency: usize,
}

/// What a filter said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What the client is told; 4xx or 5xx.
    pub refusal: Option<Reply>,
    /// Why the message is to be held.
    pub hold: Option<String>,
    /// Header fields to add: name and value.
    pub headers: Vec<(String, String)>,
    /// What it wanted and did not get.
    pub ignored: Option<&'static str>,
}

/// Why a filter gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The network, or the message's file.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It said something unexpected.
    #[error("{0}")]
    Protocol(String),
    /// Its time was over, or that of all filters together.
    #[error("no answer within {0:.0?}")]
    Late(Duration),
}

impl FilterError {
    pub(super) fn protocol(what: String) -> FilterError {
        FilterError::Protocol(what)
    }

    /// With what lies below it, where hyper hides the cause.
    pub(super) fn http(error: impl std::error::Error) -> FilterError {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        FilterError::Protocol(text)
    }
}

/// The reply to a rejected message, in the filter's words where it has some.
pub(super) fn rejection(words: Option<&str>) -> Reply {
    let clean = |text: &str| -> String {
        let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        text.chars().map(plain).take(FILTER_TEXT_MAX).collect()
    };
    match words.map(clean).filter(|text| !text.trim().is_empty()) {
        Some(text) => Reply::new(554, (5, 7, 1), text),
        None => Reply::fixed(554, 5, 7, 1, "Message rejected by a content filter"),
    }
}

/// All filters.
#[derive(Clone)]
pub struct Filters {
    parts: Arc<Parts>,
}

struct Parts {
    filters: Vec<(Filter, Semaphore, Trouble)>,
    shards: Vec<Sender<ToShard>>,
    log: EventLog,
    hostname: Box<str>,
    /// Where contents in files of their own lie.
    contents: PathBuf,
}

/// When an operator was last told of a failure, and of something that was ignored.
#[derive(Default)]
struct Trouble(Mutex<[Option<Instant>; 2]>);

impl Trouble {
    fn is_due(&self, kind: usize) -> bool {
        let now = clock::now().instant;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last[kind].is_none_or(|at| now.since(at) >= TROUBLE_PAUSE);
        if due {
            last[kind] = Some(now);
        }
        due
    }
}

impl Filters {
    /// These, in the order of the configuration.
    pub fn new(
        filters: Vec<Filter>,
        shards: Vec<Sender<ToShard>>,
        log: EventLog,
        hostname: Box<str>,
        spool: &std::path::Path,
    ) -> Filters {
        let filters = filters
            .into_iter()
            .map(|filter| {
                let places = Semaphore::new(filter.concurrency);
                (filter, places, Trouble::default())
            })
            .collect();
        Filters { parts: Arc::new(Parts { filters, shards, log, hostname, contents: spool.join("content") }) }
    }

    /// Shows a message to its filters and answers the shard. To be called within the control thread's runtime.
    pub fn ask(&self, shard: u8, question: FilterQuestion) {
        let parts = Arc::clone(&self.parts);
        tokio::spawn(async move {
            let verdict = parts.judge(question).await;
            post(&parts.shards, shard, ToShard::Filtered(Box::new(verdict))).await;
        });
    }
}

impl Parts {
    async fn judge(&self, question: FilterQuestion) -> FilterVerdict {
        let mut passed = Passed::default();
        let (mut failures, mut refusal) = (0, None);
        let begun = tokio::time::Instant::now();
        for &number in question.filters.iter() {
            let Some((filter, places, trouble)) = self.filters.get(usize::from(number)) else { continue };
            // All of them together have a bound, since the client waits for all.
            let time = filter.timeout.min(FILTERS_TIME.saturating_sub(begun.elapsed()));
            let answer = match tokio::time::timeout(time, self.show(filter, places, &question)).await {
                Ok(answer) => answer,
                Err(_) => Err(FilterError::Late(time)),
            };
            let answer = answer.unwrap_or_else(|error| {
                failures += 1;
                self.failed(filter, trouble, &error)
            });
            if let Some(wanted) = answer.ignored.filter(|_| trouble.is_due(1)) {
                let text = format!("filter {}: it wants {wanted}, which is not done", filter.name);
                self.log.notice(Severity::Warning, &text);
            }
            for (name, value) in &answer.headers {
                match field(name, value) {
                    Some(field) if passed.headers.len() + field.len() <= FILTER_HEADERS_MAX => {
                        passed.headers.extend_from_slice(&field);
                    }
                    _ if trouble.is_due(1) => {
                        let text = format!("filter {}: header {name:?} cannot be added, and was left out", filter.name);
                        self.log.notice(Severity::Warning, &text);
                    }
                    _ => {}
                }
            }
            if let (Some(reason), None) = (&answer.hold, &passed.held) {
                passed.held = Some(hold_reason(&filter.name, reason));
            }
            if let Some(reply) = answer.refusal {
                refusal = Some(Rejected { filter: filter.name.clone(), reply });
                break;
            }
        }
        let (id, conn) = (question.id, question.conn);
        FilterVerdict { id, conn, result: refusal.map_or(Ok(passed), Err), failures }
    }

    async fn show(
        &self,
        filter: &Filter,
        places: &Semaphore,
        question: &FilterQuestion,
    ) -> Result<Answer, FilterError> {
        let _place = places.acquire().await.map_err(|error| FilterError::protocol(error.to_string()))?;
        let file = self.contents.join(format!("{:016x}", question.id.0));
        let content = Content::open(&question.content, &file).await?;
        match &filter.kind {
            FilterKind::Rspamd(rspamd) => rspamd.ask(&self.hostname, question, &content).await,
            FilterKind::Milter(MilterAddress::Tcp(address)) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                milter::ask(stream, &self.hostname, question, &content).await
            }
            FilterKind::Milter(MilterAddress::Unix(path)) => {
                milter::ask(UnixStream::connect(path).await?, &self.hostname, question, &content).await
            }
        }
    }

    /// What stands for the answer that did not come.
    fn failed(&self, filter: &Filter, trouble: &Trouble, error: &FilterError) -> Answer {
        let (answer, consequence) = match filter.on_failure {
            OnFailure::Defer => {
                let reply = Reply::fixed(451, 4, 7, 1, "The content filter gives no answer; try again later");
                (Answer { refusal: Some(reply), ..Answer::default() }, "senders are asked to try again")
            }
            OnFailure::Pass => (Answer::default(), "mail goes on unfiltered"),
            OnFailure::Hold => {
                let hold = Some("it gave no answer".into());
                (Answer { hold, ..Answer::default() }, "mail is held until an operator releases it")
            }
        };
        if trouble.is_due(0) {
            let text = format!("filter {}: {error}; {consequence} (on_failure)", filter.name);
            self.log.notice(Severity::Warning, &text);
        }
        answer
    }
}

fn hold_reason(filter: &str, reason: &str) -> Box<str> {
    let whole = format!("filter {filter}: {reason}");
    let plain = whole.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut kept = String::with_capacity(HOLD_REASON_MAX);
    for c in plain {
        if kept.len() + c.len_utf8() > HOLD_REASON_MAX {
            break;
        }
        kept.push(c);
    }
    kept.into()
}

/// A header field with clean line ends; None when it may not be added: its name is none, or one that signatures cover.
fn field(name: &str, value: &str) -> Option<Vec<u8>> {
    /// Octets of a line (RFC 5322 2.1.1).
    const LINE_MAX: usize = 998;
    let good = |octet: u8| octet.is_ascii_graphic() && octet != b':';
    if name.is_empty() || !name.bytes().all(good) || dkim::covers(name) {
        return None;
    }
    let mut field = format!("{name}: ");
    for (number, line) in value.lines().filter(|line| !line.trim().is_empty()).enumerate() {
        if number > 0 {
            field.push_str(if line.starts_with([' ', '\t']) { "\r\n" } else { "\r\n\t" });
        }
        let line = if number == 0 { line.trim_start() } else { line };
        field.extend(line.chars().map(|c| if c == '\t' || c == ' ' || c.is_ascii_graphic() { c } else { '?' }));
    }
    let fits = field.split("\r\n").all(|line| line.len() <= LINE_MAX);
    field.push_str("\r\n");
    fits.then(|| field.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_cannot_end_the_header_section_or_begin_another_one() {
        let text = |name, value| field(name, value).map(|field| String::from_utf8(field).unwrap());
        assert_eq!(text("X-Spam", "Yes").unwrap(), "X-Spam: Yes\r\n");
        assert_eq!(text("X", "a\r\n\r\nBcc: b\n\tc\r").unwrap(), "X: a\r\n\tBcc: b\r\n\tc?\r\n");
        assert_eq!(text("X", "\u{7f}ü\0").unwrap(), "X: ???\r\n");
        assert_eq!(text("X:Y", "a"), None);
        assert_eq!(text("", "a"), None);
        assert_eq!(text("Y Z", "a"), None);
        assert_eq!(text("subject", "a"), None, "it is signed");
        assert_eq!(text("X", &"a".repeat(1000)), None);
    }

    #[test]
    fn reasons_and_words_are_bounded_and_plain() {
        assert_eq!(&*hold_reason("f", "a\nb"), "filter f: a b");
        assert!(hold_reason("f", &"ü".repeat(500)).len() <= HOLD_REASON_MAX);
        assert_eq!(rejection(Some("a\r\nb")).to_string(), "554 5.7.1 a??b");
        assert_eq!(rejection(Some(" ")), rejection(None));
        assert_eq!(rejection(Some(&"x".repeat(5_000))).text.len(), FILTER_TEXT_MAX);
    }
}
