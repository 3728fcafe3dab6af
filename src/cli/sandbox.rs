//! `ringpost sandbox`: what the built-in destination took.

use super::args::SandboxCommand;
use super::client::{Relay, encoded};
use super::queue::write_json;
use super::table::{Table, counted};
use super::{Failure, exit};
use crate::control::log::sanitised;
use crate::control::sandbox::SandboxMessage;
use std::io::{self, Write};

/// Carries out one of the commands.
pub fn run(command: SandboxCommand) -> Result<u8, Failure> {
    let out = &mut io::stdout().lock();
    match command {
        SandboxCommand::List { json, target } => {
            let messages: Vec<SandboxMessage> = Relay::find(&target)?.get("/v1/sandbox")?;
            if json {
                write_json(out, &messages)?;
                return Ok(exit::OK);
            }
            if messages.is_empty() {
                writeln!(out, "the sandbox has no message yet")?;
                return Ok(exit::OK);
            }
            let mut table = Table::new(&["NUMBER", "QUEUED AS", "DELIVERED", "SIZE", "FROM", "TO", "SUBJECT"]);
            for message in &messages {
                table.row(&[
                    &message.number.to_string(),
                    message.id.as_deref().unwrap_or("-"),
                    &message.arrived,
                    &message.size.to_string(),
                    &format!("<{}>", message.sender),
                    &message.recipients.join(" "),
                    message.subject.as_deref().unwrap_or(""),
                ]);
            }
            table.write(out)?;
            writeln!(out, "{} delivered to the sandbox", counted(messages.len() as u64, "message"))?;
        }
        SandboxCommand::Show { name, json, target } => {
            let message: SandboxMessage = Relay::find(&target)?.get(&format!("/v1/sandbox/{}", encoded(&name)))?;
            if json {
                write_json(out, &message)?;
                return Ok(exit::OK);
            }
            writeln!(out, "number     {}", message.number)?;
            writeln!(out, "queued as  {}", message.id.as_deref().unwrap_or("-"))?;
            writeln!(out, "delivered  {} by {}", message.arrived, sanitised(&message.client))?;
            writeln!(out, "from       <{}>", sanitised(&message.sender))?;
            for recipient in &message.recipients {
                writeln!(out, "to         <{}>", sanitised(recipient))?;
            }
            let size = message.size;
            let note = if message.truncated { "; only the beginning was kept" } else { "" };
            writeln!(out, "size       {size} octets{note}\n")?;
            for line in message.content.unwrap_or_default().lines() {
                writeln!(out, "{}", sanitised(line).replace("\\u{9}", "\t"))?;
            }
        }
    }
    Ok(exit::OK)
}
