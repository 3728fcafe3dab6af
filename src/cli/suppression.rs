//! `ringpost suppression`: the addresses to which nothing is sent any more. Asked of the running relay, in force at once.

use super::args::Target;
use super::client::Relay;
use super::identity::{day, print, unexpected};
use super::queue::write_json;
use super::table::{Table, counted};
use super::{Failure, exit};
use crate::address::Address;
use crate::config::text;
use crate::control::suppression_requests::{EntryView, NewEntry, SuppressionReply, SuppressionRequest};
use crate::limits::SUPPRESSION_PAGE_MAX;
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATH: &str = "/v1/suppression";
const COLUMNS: [&str; 6] = ["address", "tenant", "reason", "source", "since", "until"];
/// Wrong lines of a file that are shown.
const WRONG_SHOWN: usize = 10;

/// Whose list is meant.
#[derive(Debug, Args)]
pub struct List {
    /// This tenant's list [default: the one of all tenants]
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

/// `ringpost suppression …`
#[derive(Debug, Subcommand)]
pub enum SuppressionCommand {
    /// Send nothing more to an address
    Add {
        /// The address
        address: String,
        /// Whose list.
        #[command(flatten)]
        list: List,
        /// Why, in words
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// It ends after so long, as in 90d [default: never]
        #[arg(long, value_name = "TIME", value_parser = text::parse_duration)]
        expires: Option<Duration>,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// List suppressed addresses, in the order in which they came
    List {
        /// Those of this tenant alone [default: of all lists]
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Show why an address is suppressed, and until when
    Show {
        /// The address
        address: String,
        /// For this tenant [default: for each that was added]
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Let mail be sent to an address again
    Remove {
        /// The address
        address: String,
        /// Whose list.
        #[command(flatten)]
        list: List,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Add the addresses of a file: one a line, or CSV with a line of names as `export` writes it
    Import {
        /// The file
        file: PathBuf,
        /// Whose list, where the file does not say.
        #[command(flatten)]
        list: List,
        /// Why, where the file does not say
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// They end after so long, where the file does not say [default: never]
        #[arg(long, value_name = "TIME", value_parser = text::parse_duration)]
        expires: Option<Duration>,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Print all entries as CSV
    Export {
        /// Those of this tenant alone [default: of all lists]
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
}

/// Carries out one of the commands.
pub fn suppression(command: SuppressionCommand) -> Result<u8, Failure> {
    match command {
        SuppressionCommand::Add { address, list, reason, expires, target } => {
            let done = format!("nothing is sent to {address} any more");
            let entries = vec![NewEntry { address, reason, until_ms: end(expires) }];
            let request = SuppressionRequest::Add { tenant: list.tenant, entries, import: false };
            let _: SuppressionReply = Relay::find(&target)?.post(PATH, &request)?;
            writeln!(io::stdout(), "{done}")?;
            Ok(exit::OK)
        }
        SuppressionCommand::List { tenant, limit, json, target } => show_list(tenant, limit, json, &target),
        SuppressionCommand::Show { address, tenant, json, target } => {
            let request = SuppressionRequest::Show { address, tenant };
            let (entries, _, _) = entries(&Relay::find(&target)?, &request)?;
            show(&entries, entries.len(), json)
        }
        SuppressionCommand::Remove { address, list, target } => {
            let done = format!("mail is sent to {address} again");
            let request = SuppressionRequest::Remove { tenant: list.tenant, address };
            let _: SuppressionReply = Relay::find(&target)?.post(PATH, &request)?;
            writeln!(io::stdout(), "{done}")?;
            Ok(exit::OK)
        }
        SuppressionCommand::Import { file, list, reason, expires, target } => {
            let usual = Usual { tenant: list.tenant, reason, until_ms: end(expires) };
            import(&file, &usual, &Relay::find(&target)?)
        }
        SuppressionCommand::Export { tenant, target } => export(tenant, &Relay::find(&target)?),
    }
}

fn end(expires: Option<Duration>) -> Option<u64> {
    expires.map(|time| crate::io::clock::now().unix.after(time).as_millis())
}

type Page = (Vec<EntryView>, Option<u64>, usize);

fn entries(relay: &Relay, request: &SuppressionRequest) -> Result<Page, Failure> {
    match relay.post(PATH, request)? {
        SuppressionReply::Entries { entries, next, total } => Ok((entries, next, total)),
        _ => unexpected(),
    }
}

fn show_list(tenant: Option<String>, limit: usize, json: bool, target: &Target) -> Result<u8, Failure> {
    let relay = Relay::find(target)?;
    let (mut all, mut after, mut total) = (Vec::new(), None, 0);
    while all.len() < limit {
        let limit = Some(limit - all.len());
        let page = entries(&relay, &SuppressionRequest::List { tenant: tenant.clone(), after, limit })?;
        all.extend(page.0);
        (after, total) = (page.1, page.2);
        if after.is_none() {
            break;
        }
    }
    show(&all, total, json)
}

fn show(entries: &[EntryView], total: usize, json: bool) -> Result<u8, Failure> {
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &entries)?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["ADDRESS", "TENANT", "SOURCE", "SINCE", "UNTIL", "REASON"]);
    for entry in entries {
        let until = entry.until_ms.map_or("for ever".to_owned(), day);
        let tenant = entry.tenant.as_deref().unwrap_or("all");
        table.row(&[&entry.address, tenant, entry.source.name(), &day(entry.since_ms), &until, &entry.reason]);
    }
    if entries.len() < total {
        table.write(out)?;
        writeln!(out, "{} of {} in all lists", entries.len(), counted(total as u64, "suppression"))?;
        return Ok(exit::OK);
    }
    print(out, &table, entries.len(), "suppression")
}

fn export(tenant: Option<String>, relay: &Relay) -> Result<u8, Failure> {
    let mut out = csv::Writer::from_writer(io::stdout().lock());
    let broken = |error: csv::Error| Failure::new(exit::IO, format!("the output cannot be written: {error}"));
    out.write_record(COLUMNS).map_err(broken)?;
    let mut after = None;
    loop {
        let limit = Some(SUPPRESSION_PAGE_MAX);
        let (page, next, _) = entries(relay, &SuppressionRequest::List { tenant: tenant.clone(), after, limit })?;
        for entry in page {
            let (since, until) = (day(entry.since_ms), entry.until_ms.map(day).unwrap_or_default());
            let tenant = entry.tenant.unwrap_or_default();
            let fields = [&*entry.address, &*tenant, &*entry.reason, entry.source.name(), &*since, &*until];
            out.write_record(fields).map_err(broken)?;
        }
        match next {
            Some(_) => after = next,
            None => break,
        }
    }
    out.flush()?;
    Ok(exit::OK)
}

/// What holds where a file does not say.
struct Usual {
    tenant: Option<String>,
    reason: String,
    until_ms: Option<u64>,
}

/// Which column of a file has what.
#[derive(Default)]
struct Columns([Option<usize>; COLUMNS.len()]);

impl Columns {
    /// By the names in a file's first line; None when it is no line of names.
    fn named(line: &csv::StringRecord) -> Option<Columns> {
        let place = |name: &str| line.iter().position(|field| field.trim().eq_ignore_ascii_case(name));
        let columns = Columns(COLUMNS.map(place));
        columns.0[0].map(|_| columns)
    }

    fn get<'a>(&self, line: &'a csv::StringRecord, column: usize) -> &'a str {
        self.0[column].and_then(|place| line.get(place)).unwrap_or_default().trim()
    }
}

/// The entry of a line with its list; none of an empty line and a comment; or what is wrong with it.
type Line = Result<Option<(Option<String>, NewEntry)>, String>;

fn entry_of(line: &csv::StringRecord, columns: &Columns, usual: &Usual) -> Line {
    let address = columns.get(line, 0);
    if address.is_empty() || address.starts_with('#') {
        return Ok(None);
    }
    if let Err(error) = Address::parse(address.as_bytes(), true) {
        return Err(format!("`{address}` is no address: {error}"));
    }
    let given = |column, usual: &str| {
        Some(columns.get(line, column)).filter(|text| !text.is_empty()).unwrap_or(usual).to_owned()
    };
    let until_ms = match columns.get(line, 5) {
        "" => usual.until_ms,
        text => match text.parse::<jiff::Timestamp>() {
            Ok(until) => Some(u64::try_from(until.as_millisecond()).unwrap_or(1)),
            Err(_) => return Err(format!("`{text}` is no time, as in 2027-01-31T00:00:00Z")),
        },
    };
    let tenant = Some(given(1, usual.tenant.as_deref().unwrap_or_default())).filter(|tenant| !tenant.is_empty());
    Ok(Some((tenant, NewEntry { address: address.into(), reason: given(2, &usual.reason), until_ms })))
}

fn import(file: &Path, usual: &Usual, relay: &Relay) -> Result<u8, Failure> {
    let unreadable = |error: csv::Error| Failure::new(exit::IO, format!("{}: {error}", file.display()));
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_path(file).map_err(unreadable)?;
    let mut columns = Columns([Some(0), None, None, None, None, None]);
    let (mut batch, mut list, mut added, mut wrong) = (Vec::new(), None, 0, 0usize);
    let mut send = |list: &Option<String>, batch: &mut Vec<NewEntry>| -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(batch);
        let request = SuppressionRequest::Add { tenant: list.clone(), entries, import: true };
        match relay.post(PATH, &request)? {
            SuppressionReply::Added { entries } => added += entries,
            _ => return unexpected(),
        }
        Ok(())
    };
    for (number, line) in reader.records().enumerate() {
        let line = line.map_err(unreadable)?;
        if number == 0
            && let Some(named) = Columns::named(&line)
        {
            columns = named;
            continue;
        }
        match entry_of(&line, &columns, usual) {
            Ok(None) => {}
            Ok(Some((tenant, entry))) => {
                if tenant != list || batch.len() >= SUPPRESSION_PAGE_MAX {
                    send(&list, &mut batch)?;
                    list = tenant;
                }
                batch.push(entry);
            }
            Err(text) => {
                wrong += 1;
                if wrong <= WRONG_SHOWN {
                    let at = line.position().map_or(0, csv::Position::line);
                    writeln!(io::stderr(), "{}, line {at}: {text}", file.display())?;
                }
            }
        }
    }
    send(&list, &mut batch)?;
    writeln!(io::stdout(), "{} added", counted(added as u64, "suppression"))?;
    if wrong > 0 {
        let text = format!("{} of {} were left out", counted(wrong as u64, "line"), file.display());
        return Err(Failure::new(exit::USAGE, text));
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Line> {
        let usual = Usual { tenant: Some("acme".into()), reason: "usual".into(), until_ms: Some(5) };
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
        let mut columns = Columns([Some(0), None, None, None, None, None]);
        let mut all = Vec::new();
        for (number, line) in reader.records().enumerate() {
            let line = line.unwrap();
            match Columns::named(&line).filter(|_| number == 0) {
                Some(named) => columns = named,
                None => all.push(entry_of(&line, &columns, &usual)),
            }
        }
        all
    }

    #[test]
    fn files_of_lines_and_of_columns_are_read() {
        let entry = |address: &str, reason: &str, until_ms| NewEntry {
            address: address.into(),
            reason: reason.into(),
            until_ms,
        };
        let acme = || Some("acme".to_owned());
        let lines = read("a@b.test\n# why\n  c@d.test , ignored\nnobody\n");
        assert_eq!(lines[0], Ok(Some((acme(), entry("a@b.test", "usual", Some(5))))));
        assert_eq!((&lines[1], &lines[2]), (&Ok(None), &Ok(Some((acme(), entry("c@d.test", "usual", Some(5)))))));
        assert!(lines[3].as_ref().unwrap_err().contains("`nobody` is no address"));
        let text = "Reason,Address,until,tenant\n\"left, for good\",a@b.test,1970-01-01T00:00:01Z,shop\n,c@d.test,,\nx,e@f.test,soon,\n";
        let columns = read(text);
        assert_eq!(columns[0], Ok(Some((Some("shop".into()), entry("a@b.test", "left, for good", Some(1_000))))));
        assert_eq!(columns[1], Ok(Some((acme(), entry("c@d.test", "usual", Some(5))))));
        assert!(columns[2].as_ref().unwrap_err().contains("is no time"));
    }
}
