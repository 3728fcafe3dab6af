//! The figures in Prometheus' text format, version 0.0.4. Names keep to its conventions: base units (seconds, bytes),
//! `_total` for counters. docs/OPERATIONS.md may rely on them; a name that is out does not change any more.

use super::certificates::CertificateFigures;
use super::identities::hashes_computed;
use crate::metrics::{ShardMetrics, Times};
use crate::policy::admission::Refusal;
use crate::reply::class::ReplyClass;
use std::fmt::Write;

/// The media type of the answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Sites shown by name; all others are summed as "other", so that a queue for very many sites cannot flood the
/// monitoring.
pub const MAX_SITES_SHOWN: usize = 200;

/// Upper bounds of the buckets, in microseconds: from 100 us to an hour, about three for each power of ten.
const BUCKETS_US: [u64; 22] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// What is known about the process and the control thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    /// Octets of memory in use (resident set).
    pub resident_octets: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Shards that run.
    pub shards: u64,
    /// Seconds since 1970 at the start of the process.
    pub started_unix_s: u64,
    /// DNS lookups done.
    pub dns_lookups: u64,
    /// Of these, those that failed for now.
    pub dns_failures: u64,
    /// Messages that the sandbox took.
    pub sandbox_taken: u64,
    /// Password hashes computed to check logins.
    pub password_hashes: u64,
}

impl ProcessFigures {
    /// With memory and descriptors as /proc tells them, 0 where it does not, and the hashes computed by this process.
    pub fn measure(self) -> ProcessFigures {
        let resident_kib = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|text| {
                let value = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
                value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
            })
            .unwrap_or(0);
        // One of the entries is the directory that is being read.
        let open_fds =
            std::fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1));
        let password_hashes = hashes_computed();
        ProcessFigures { resident_octets: resident_kib * 1024, open_fds, password_hashes, ..self }
    }
}

/// The whole answer to a scrape.
pub fn render(total: &ShardMetrics, process: &ProcessFigures) -> String {
    let mut text = String::with_capacity(16 * 1024);
    header(&mut text, "ringpost_build_info", "gauge", "The version that runs");
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(text, "ringpost_build_info{{version=\"{version}\"}} 1");
    counters(&mut text, total);
    gauges(&mut text, total);
    queue(&mut text, total);
    histograms(&mut text, total);
    process_figures(&mut text, process);
    text
}

fn header(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn single(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    header(text, name, kind, help);
    let _ = writeln!(text, "{name} {value}");
}

fn counters(text: &mut String, total: &ShardMetrics) {
    let outcomes = [
        ("delivered", total.delivered),
        ("bounced", total.bounced),
        ("expired", total.expired),
        ("suppressed", total.suppressed),
        ("deleted", total.deleted),
    ];
    for (name, help, value) in [
        ("sessions_total", "Incoming sessions begun", total.sessions_total),
        ("messages_received_total", "Messages made durable and acknowledged", total.messages_received),
        ("received_bytes_total", "Octets read from clients", total.bytes_received),
        ("recipients_received_total", "Recipients of the messages received", total.recipients_received),
        ("rejected_total", "Commands and messages refused", total.rejected),
        ("logins_total", "Logins that succeeded", total.logins),
        ("failed_logins_total", "Logins that failed", total.failed_logins),
        ("delayed_replies_total", "Errors of strangers that were answered later", total.delayed_replies),
        ("signed_messages_total", "Messages that were signed with DKIM", total.signed),
        ("filter_failures_total", "Times that a content filter gave no answer", total.filter_failures),
        ("deferrals_total", "Attempts that ended in a deferral, by recipient", total.deferred),
        ("dsn_total", "Delivery status notifications queued", total.dsn),
        ("outgoing_connections_total", "Outgoing connections begun", total.outgoing_total),
        ("outgoing_connection_failures_total", "Outgoing connections that could not be made", total.connect_failures),
        ("leases_sent_total", "Recipient groups lent to other shards", total.leases_sent),
        ("leases_taken_total", "Recipient groups taken over from other shards", total.leases_taken),
        ("spool_batches_total", "Batches written to the spool", total.batches),
        ("spool_syncs_total", "Batches that were synced", total.syncs),
        ("spool_records_total", "Records appended to the spool", total.records),
        ("spool_sync_failures_total", "Batches that could not be made durable", total.sync_failures),
        ("dropped_events_total", "Events lost because the control thread was behind", total.dropped_events),
    ] {
        single(text, &format!("ringpost_{name}"), "counter", help, value);
    }
    header(text, "ringpost_refused_connections_total", "counter", "Connections refused, by reason");
    for (reason, value) in Refusal::NAMES.iter().zip(total.refused_connections) {
        let _ = writeln!(text, "ringpost_refused_connections_total{{reason=\"{reason}\"}} {value}");
    }
    header(text, "ringpost_recipients_done_total", "counter", "Recipients that are done, by disposition");
    for (disposition, value) in outcomes {
        let _ = writeln!(text, "ringpost_recipients_done_total{{disposition=\"{disposition}\"}} {value}");
    }
    header(text, "ringpost_failed_replies_total", "counter", "Recipients put off or failed, by the class of the reply");
    for class in ReplyClass::ALL {
        let (name, place) = (class.name(), class.index());
        for (outcome, value) in [("deferred", total.deferred_by_class[place]), ("failed", total.failed_by_class[place])]
        {
            let _ = writeln!(text, "ringpost_failed_replies_total{{class=\"{name}\",outcome=\"{outcome}\"}} {value}");
        }
    }
    let verdicts = [
        ("passed", total.filtered_passed),
        ("rejected", total.filtered_rejected),
        ("deferred", total.filtered_deferred),
        ("held", total.filtered_held),
    ];
    header(text, "ringpost_filtered_messages_total", "counter", "Messages that content filters saw, by verdict");
    for (verdict, value) in verdicts {
        let _ = writeln!(text, "ringpost_filtered_messages_total{{verdict=\"{verdict}\"}} {value}");
    }
}

fn gauges(text: &mut String, total: &ShardMetrics) {
    for (name, help, value) in [
        ("sessions_open", "Incoming sessions open", total.sessions_open),
        ("outgoing_connections_open", "Outgoing connections open", total.outgoing_open),
        ("spool_segments", "Log segments that hold something", total.segments),
        ("spool_spare_segments", "Prepared log segments in reserve", total.spare_segments),
        ("spool_bytes", "Octets of the segments that hold something", total.spool_octets),
        ("retained_content_bytes", "Octets of content kept in memory for the first attempt", total.retained_octets),
        ("incoming_content_bytes", "Octets of incoming content in memory", total.content_octets),
    ] {
        single(text, &format!("ringpost_{name}"), "gauge", help, value);
    }
}

fn queue(text: &mut String, total: &ShardMetrics) {
    let queue = &total.queue;
    single(text, "ringpost_queue_messages", "gauge", "Messages with recipients that are not done", queue.messages);
    header(text, "ringpost_queue_recipients", "gauge", "Recipients that are not done, by state");
    for (state, value) in [
        ("unrouted", queue.unrouted),
        ("resolving", queue.resolving),
        ("scheduled", queue.scheduled),
        ("ready", queue.ready),
        ("in_flight", queue.in_flight),
        ("held", queue.held),
    ] {
        let _ = writeln!(text, "ringpost_queue_recipients{{state=\"{state}\"}} {value}");
    }
    header(text, "ringpost_site_ready", "gauge", "Recipient groups ready for a site");
    let mut sites: Vec<(&str, u64)> = total.queue_by_site.iter().map(|(site, ready)| (&**site, *ready)).collect();
    sites.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let (shown, others) = sites.split_at(sites.len().min(MAX_SITES_SHOWN));
    for (site, ready) in shown {
        let _ = writeln!(text, "ringpost_site_ready{{site=\"{}\"}} {ready}", label(site));
    }
    if !others.is_empty() {
        let sum: u64 = others.iter().map(|(_, ready)| ready).sum();
        let _ = writeln!(text, "ringpost_site_ready{{site=\"other\"}} {sum}");
    }
}

fn histograms(text: &mut String, total: &ShardMetrics) {
    for (name, help, times) in [
        ("commit_seconds", "From the end of the content to the 250", &total.commit_us),
        ("queue_seconds", "From the 250 to the first attempt", &total.queue_us),
        ("attempt_seconds", "One attempt, from MAIL to the last reply", &total.attempt_us),
        ("end_to_end_seconds", "From the 250 to the delivery of a recipient", &total.end_to_end_us),
        ("spool_sync_seconds", "One sync of the spool", &total.sync_us),
        ("loop_lag_seconds", "By how much a shard's heartbeat came late", &total.loop_lag_us),
    ] {
        histogram(text, &format!("ringpost_{name}"), help, times);
    }
}

fn histogram(text: &mut String, name: &str, help: &str, times: &Times) {
    header(text, name, "histogram", help);
    let (counts, sum_us) = times.cumulative(&BUCKETS_US);
    for (bound, count) in BUCKETS_US.iter().zip(counts) {
        let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {count}", seconds(*bound));
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", times.len());
    let _ = writeln!(text, "{name}_sum {}", seconds(sum_us));
    let _ = writeln!(text, "{name}_count {}", times.len());
}

fn process_figures(text: &mut String, process: &ProcessFigures) {
    for (name, kind, help, value) in [
        ("process_resident_memory_bytes", "gauge", "Resident memory", process.resident_octets),
        ("process_open_fds", "gauge", "Open file descriptors", process.open_fds),
        ("process_start_time_seconds", "gauge", "Start of the process since 1970", process.started_unix_s),
        ("ringpost_shards", "gauge", "Shards that run", process.shards),
        ("ringpost_dns_lookups_total", "counter", "DNS lookups done", process.dns_lookups),
        ("ringpost_dns_failures_total", "counter", "DNS lookups that failed for now", process.dns_failures),
        (
            "ringpost_password_hashes_total",
            "counter",
            "Password hashes computed to check logins",
            process.password_hashes,
        ),
        ("ringpost_sandbox_messages_total", "counter", "Messages that the sandbox took", process.sandbox_taken),
    ] {
        single(text, name, kind, help, value);
    }
}

/// Adds the listeners' certificates.
pub fn certificates(text: &mut String, figures: &CertificateFigures) {
    let name = "ringpost_certificate_expiry_timestamp_seconds";
    header(text, name, "gauge", "When a certificate of the listeners ends, in seconds since 1970");
    for one in &figures.certificates {
        let (file, names) = (label(&one.file), label(&one.names.join(" ")));
        let (print, end) = (&one.fingerprint_sha256, one.not_after_unix_s);
        let _ = writeln!(text, "{name}{{file=\"{file}\",names=\"{names}\",sha256=\"{print}\"}} {end}");
    }
    for (name, kind, help, value) in [
        ("certificate_reloads_total", "counter", "Times that certificates were read again", figures.reloads),
        ("certificate_failures_total", "counter", "Files with certificates that could not be used", figures.failures),
        (
            "certificates_outdated",
            "gauge",
            "Files with certificates or authorities that cannot be used as they are now",
            figures.outdated,
        ),
    ] {
        single(text, &format!("ringpost_{name}"), kind, help, value);
    }
}

/// Adds the orders of certificates by ACME.
pub fn acme(text: &mut String, orders: u64, failures: u64) {
    single(text, "ringpost_acme_orders_total", "counter", "Certificates ordered by ACME", orders);
    single(text, "ringpost_acme_failures_total", "counter", "Orders by ACME that failed", failures);
}

/// Microseconds as seconds, without superfluous zeros.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A label's value, escaped.
fn label(value: &str) -> String {
    super::log::sanitised(value).replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::certificates::CertificateView;
    use std::collections::HashMap;

    /// Reads the text format strictly enough to find mistakes: every sample has a TYPE before it, names and values are
    /// well formed, no sample comes twice, buckets rise. Gives name with labels and value.
    pub fn parse(text: &str) -> HashMap<String, f64> {
        let mut kinds: HashMap<String, String> = HashMap::new();
        let mut samples = HashMap::new();
        let mut last_bucket: Option<(String, f64)> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(kinds.insert(name.into(), kind.into()).is_none(), "{name} declared twice");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(rest.split_once(' ').is_some_and(|(_, help)| !help.is_empty()), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let value: f64 = value.parse().unwrap();
                let name = series.split('{').next().unwrap();
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| {
                        name.strip_suffix(end).filter(|base| kinds.get(*base).is_some_and(|k| k == "histogram"))
                    })
                    .unwrap_or(name);
                let kind = kinds.get(family).unwrap_or_else(|| panic!("{name} has no TYPE"));
                assert!(kind != "counter" || name.ends_with("_total"), "{name}");
                if name.ends_with("_bucket") {
                    if let Some((last, below)) = &last_bucket {
                        assert!(last != family || *below <= value, "{line}");
                    }
                    last_bucket = Some((family.into(), value));
                }
                assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
            }
        }
        samples
    }

    #[test]
    fn the_text_is_well_formed_and_says_what_was_counted() {
        let mut total = ShardMetrics::new(0);
        total.messages_received = 12;
        total.delivered = 7;
        total.queue.held = 3;
        total.queue_by_site = vec![("mx.\"odd\"\\\n.test".into(), 4)];
        total.commit_us.saturating_record(800);
        total.commit_us.saturating_record(8_000_000);
        let samples = parse(&render(&total, &ProcessFigures::default().measure()));
        assert_eq!(samples["ringpost_messages_received_total"], 12.0);
        assert_eq!(samples["ringpost_recipients_done_total{disposition=\"delivered\"}"], 7.0);
        assert_eq!(samples["ringpost_queue_recipients{state=\"held\"}"], 3.0);
        assert_eq!(samples["ringpost_commit_seconds_bucket{le=\"0.001\"}"], 1.0);
        assert_eq!(samples["ringpost_commit_seconds_bucket{le=\"10\"}"], 2.0);
        assert_eq!(samples["ringpost_commit_seconds_count"], 2.0);
        assert!((samples["ringpost_commit_seconds_sum"] - 8.0).abs() < 0.2);
        assert!(samples["process_resident_memory_bytes"] > 100_000.0);
        assert!(samples["process_open_fds"] > 2.0);
    }

    #[test]
    fn certificates_are_told_by_file_names_and_end() {
        let mut text = render(&ShardMetrics::new(0), &ProcessFigures::default());
        let one = CertificateView {
            file: "a\"b.pem".into(),
            names: vec!["a.test".into(), "*.a.test".into()],
            default: true,
            subject: String::new(),
            issuer: String::new(),
            not_before: String::new(),
            not_after: String::new(),
            not_after_unix_s: 1_790_000_000,
            days_left: 1,
            fingerprint_sha256: "00:FF".into(),
            public_key_sha256: String::new(),
            trouble: None,
        };
        let certificates = vec![one];
        super::certificates(&mut text, &CertificateFigures { certificates, reloads: 3, failures: 2, outdated: 1 });
        acme(&mut text, 5, 4);
        let samples = parse(&text);
        let series = "ringpost_certificate_expiry_timestamp_seconds{file=\"a\\\"b.pem\",names=\"a.test *.a.test\",sha256=\"00:FF\"}";
        assert_eq!(samples[series], 1_790_000_000.0);
        for (name, value) in [
            ("certificate_reloads_total", 3.0),
            ("certificate_failures_total", 2.0),
            ("certificates_outdated", 1.0),
            ("acme_orders_total", 5.0),
            ("acme_failures_total", 4.0),
        ] {
            assert_eq!(samples[&format!("ringpost_{name}")], value, "{name}");
        }
    }

    #[test]
    fn many_sites_are_summed() {
        let mut total = ShardMetrics::new(0);
        total.queue_by_site = (0..1_000u64).map(|n| (format!("mx{n}.test").into(), n)).collect();
        let samples = parse(&render(&total, &ProcessFigures::default()));
        assert_eq!(samples["ringpost_site_ready{site=\"mx999.test\"}"], 999.0);
        assert_eq!(samples["ringpost_site_ready{site=\"other\"}"], (0..800).sum::<u64>() as f64);
    }
}
