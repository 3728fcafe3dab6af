//! `ringpost queue`: lists, shows and acts on waiting mail.

use super::args::{ActArgs, QueueCommand, Target, Which};
use super::client::{Relay, encoded};
use super::table::{Table, counted};
use super::{Failure, exit};
use crate::config::text::format_size;
use crate::control::http::{Changed, QueuePage, Selection};
use crate::control::log::sanitised;
use crate::limits::ADMIN_PAGE_MAX;
use crate::shard::message::MessageSummary;
use std::io::{self, Write};

/// Carries out one of the commands.
pub fn run(command: QueueCommand) -> Result<u8, Failure> {
    match command {
        QueueCommand::List { which, limit, json, target } => list(&which, limit, json, &target),
        QueueCommand::Show { id, json, target } => show(&id, json, &target),
        QueueCommand::Retry(args) => act("retry", "made due now", args),
        QueueCommand::Hold(args) => act("hold", "held", args),
        QueueCommand::Release(args) => act("release", "released", args),
        QueueCommand::Delete(args) => act("delete", "deleted", args),
    }
}

fn list(which: &Which, limit: usize, json: bool, target: &Target) -> Result<u8, Failure> {
    let relay = Relay::find(target)?;
    let wanted = if limit == 0 { usize::MAX } else { limit };
    let mut messages: Vec<MessageSummary> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page_size = (wanted - messages.len()).min(ADMIN_PAGE_MAX);
        let page: QueuePage = relay.get(&list_path(which, page_size, after.as_deref()))?;
        messages.extend(page.messages);
        after = page.next;
        if after.is_none() || messages.len() >= wanted {
            break;
        }
    }
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &messages)?;
        return Ok(exit::OK);
    }
    if messages.is_empty() {
        writeln!(out, "no message waits")?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["ID", "ARRIVED", "SIZE", "FROM", "TO", "STATE", "TRIES", "NEXT", "WHY"]);
    for message in &messages {
        for (place, recipient) in message.recipients.iter().enumerate() {
            let first = place == 0;
            let size = format_size(message.size);
            let from = format!("<{}>", message.sender);
            let tries = recipient.attempts.to_string();
            table.row(&[
                if first { &message.id } else { "" },
                if first { without_fraction(&message.arrived) } else { "" },
                if first { &size } else { "" },
                if first { &from } else { "" },
                &recipient.address,
                &recipient.state,
                &tries,
                recipient.next.as_deref().map_or("", without_fraction),
                &recipient.why,
            ]);
        }
    }
    table.write(out)?;
    writeln!(out, "{}", counted(messages.len() as u64, "message"))?;
    if after.is_some() {
        writeln!(out, "more wait: use --limit 0 to see all")?;
    }
    Ok(exit::OK)
}

/// "2026-11-24T18:20:00.123Z" without its fraction of a second.
fn without_fraction(time: &str) -> &str {
    time.split_once('.').map_or(time, |(seconds, _)| seconds)
}

fn list_path(which: &Which, limit: usize, after: Option<&str>) -> String {
    let mut path = format!("/v1/queue?limit={limit}");
    for (key, value) in [
        ("domain", which.domain.as_deref()),
        ("sender", which.sender.as_deref()),
        ("recipient", which.recipient.as_deref()),
        ("tenant", which.tenant.as_deref()),
        ("state", which.state.as_deref()),
        ("after", after),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", encoded(value)));
        }
    }
    path
}

fn show(id: &str, json: bool, target: &Target) -> Result<u8, Failure> {
    let message: MessageSummary = Relay::find(target)?.get(&format!("/v1/queue/{}", encoded(id)))?;
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &message)?;
        return Ok(exit::OK);
    }
    writeln!(out, "id       {}", message.id)?;
    writeln!(out, "arrived  {}", message.arrived)?;
    writeln!(out, "from     <{}>", sanitised(&message.sender))?;
    writeln!(out, "size     {} octets", message.size)?;
    writeln!(out, "tenant   {}", sanitised(&message.tenant))?;
    writeln!(out, "shard    {}", message.shard)?;
    writeln!(out, "waiting  {}, {} done", counted(message.recipients.len() as u64, "recipient"), message.done)?;
    for recipient in &message.recipients {
        writeln!(out, "\n  <{}>", sanitised(&recipient.address))?;
        writeln!(out, "    state  {}, {}", recipient.state, counted(u64::from(recipient.attempts), "attempt"))?;
        if let Some(site) = &recipient.site {
            writeln!(out, "    site   {}", sanitised(site))?;
        }
        if let Some(next) = &recipient.next {
            writeln!(out, "    next   {next}")?;
        }
        if let Some(class) = &recipient.class {
            writeln!(out, "    class  {}", sanitised(class))?;
        }
        writeln!(out, "    why    {}", sanitised(&recipient.why))?;
    }
    Ok(exit::OK)
}

fn act(act: &str, done: &str, args: ActArgs) -> Result<u8, Failure> {
    let ActArgs { ids, which, all, json, target } = args;
    let selections = selections(act, ids, which, all)?;
    let relay = Relay::find(&target)?;
    let mut sum = Changed::default();
    for selection in selections {
        let changed: Changed = relay.post(&format!("/v1/queue/{act}"), &selection)?;
        if let (Some(id), 0) = (&selection.id, changed.changed) {
            eprintln!("ringpost: no recipient of message {id} could be {done}; `ringpost queue show {id}` says more");
        }
        sum.changed += changed.changed;
    }
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &sum)?;
    } else {
        writeln!(out, "{} {done}", counted(sum.changed, "recipient"))?;
    }
    Ok(if sum.changed == 0 { exit::NOTHING } else { exit::OK })
}

fn selections(act: &str, ids: Vec<String>, which: Which, all: bool) -> Result<Vec<Selection>, Failure> {
    if !ids.is_empty() {
        return Ok(ids.into_iter().map(|id| Selection { id: Some(id), ..Selection::default() }).collect());
    }
    let Which { domain, sender, recipient, tenant, state } = which;
    let selection = Selection { id: None, domain, sender, recipient, tenant, state, all };
    if selection == Selection::default() {
        let text = format!("{act} what? Give ids or a filter (--domain, --sender, …), or --all for the whole queue");
        return Err(Failure::new(exit::USAGE, text));
    }
    Ok(vec![selection])
}

/// Pretty JSON with a newline.
pub fn write_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    writeln!(out, "{text}")?;
    Ok(())
}
