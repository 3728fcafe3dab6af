//! `ringpost classify`: what replies of mail servers mean, and by which rule. It needs no running relay.

use super::{Failure, exit};
use crate::config::Config;
use crate::control::log::sanitised;
use crate::policy::classify::{Classifier, DecidedBy, Decision, Point, Question};
use crate::reply::{Reply, ReplyReader};
use crate::smtp::client::Stage;
use clap::Args;
use clap::ValueEnum;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// `ringpost classify …`
#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// A reply with its code, as in \"550 5.1.1 User unknown\"; without one, replies are read from standard input
    reply: Option<String>,
    /// The mail host, site or provider that said it
    #[arg(long, default_value = "")]
    site: String,
    /// What it was said to
    #[arg(long)]
    stage: Option<StageArg>,
    /// The configuration whose rules are asked before the shipped ones
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// The stages that rules tell apart.
#[derive(Copy, Clone, Debug, ValueEnum)]
enum StageArg {
    Connect,
    Hello,
    Tls,
    Mail,
    Rcpt,
    Data,
}

impl From<StageArg> for Stage {
    fn from(stage: StageArg) -> Stage {
        match stage {
            StageArg::Connect => Stage::Greeting,
            StageArg::Hello => Stage::Hello,
            StageArg::Tls => Stage::StartTls,
            StageArg::Mail => Stage::Mail,
            StageArg::Rcpt => Stage::Recipient,
            StageArg::Data => Stage::FinalReply,
        }
    }
}

/// What is printed of one reply as JSON.
#[derive(serde::Serialize)]
struct Answer<'a> {
    class: &'static str,
    kind: &'static str,
    by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
    reply: String,
}

/// Carries out the command.
pub fn run(args: &ClassifyArgs) -> Result<u8, Failure> {
    let classifier = match &args.config {
        Some(file) => Config::load(file)?.classification.classifier()?,
        None => Classifier::shipped(),
    };
    let input = match &args.reply {
        Some(reply) => complete(reply),
        None => {
            let mut input = Vec::new();
            io::stdin().lock().read_to_end(&mut input)?;
            input
        }
    };
    let out = &mut io::stdout().lock();
    for reply in replies(&input)? {
        answer(out, &classifier, args, &reply)?;
    }
    Ok(exit::OK)
}

/// A reply given as an argument: its last line is the last, whatever stands behind its code.
fn complete(reply: &str) -> Vec<u8> {
    let mut octets = reply.trim_end().as_bytes().to_vec();
    let last = memchr::memrchr(b'\n', &octets).map_or(0, |end| end + 1);
    if let Some(dash @ b'-') = octets.get_mut(last + 3) {
        *dash = b' ';
    }
    octets.push(b'\n');
    octets
}

/// The replies in a text, those of several lines too; empty lines are passed over.
fn replies(input: &[u8]) -> Result<Vec<Reply>, Failure> {
    let mut reader = ReplyReader::new();
    let mut found = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        if !reader.is_partial() && matches!(rest[0], b'\n' | b'\r') {
            rest = &rest[1..];
            continue;
        }
        let (taken, reply) = reader.handle_input(rest);
        rest = &rest[taken..];
        match reply {
            Some(Ok(reply)) if reply.is_positive() => {
                let text = format!(
                    "`{}` is no failure: only replies of 4xx and 5xx have a class",
                    sanitised(&reply.to_string())
                );
                return Err(Failure::new(exit::DATA, text));
            }
            Some(Ok(reply)) => found.push(reply),
            Some(Err(error)) => {
                let line = input[..input.len() - rest.len()].iter().filter(|&&octet| octet == b'\n').count();
                let text =
                    format!("line {line}: {error}; give replies with their codes, as in `550 5.1.1 User unknown`");
                return Err(Failure::new(exit::DATA, text));
            }
            None => {}
        }
    }
    if reader.is_partial() {
        // The last line has no end.
        let mut last = input.to_vec();
        last.push(b'\n');
        if input.last() != Some(&b'\n') {
            return replies(&last);
        }
        return Err(Failure::new(exit::DATA, "the last reply has a `-` behind its code, but no further line"));
    }
    Ok(found)
}

fn answer(out: &mut dyn Write, classifier: &Classifier, args: &ClassifyArgs, reply: &Reply) -> Result<(), Failure> {
    let stage = args.stage.map(Stage::from);
    let question = Question { reply, from_peer: true, stage, host: &args.site };
    let Decision { class, kind, by } = classifier.classify(&question);
    let place = classifier.place(by);
    if args.json {
        let answer = Answer {
            class: class.name(),
            kind: kind.name(),
            by: match by {
                DecidedBy::Pattern(_) => "pattern",
                DecidedBy::Status => "status",
                DecidedBy::Code => "code",
            },
            rule: place.map(|place| place.name),
            file: place.map(|place| place.file),
            line: place.map(|place| place.line),
            provider: classifier.provider_of(&args.site),
            reply: reply.to_string(),
        };
        let text = serde_json::to_string(&answer).map_err(io::Error::other)?;
        writeln!(out, "{text}")?;
        return Ok(());
    }
    let decided = match (by, place) {
        (DecidedBy::Pattern(_), Some(place)) => format!("rule {} ({}:{})", place.name, place.file, place.line),
        (DecidedBy::Status, _) => "the enhanced status".to_owned(),
        _ => match stage.and_then(Point::of) {
            Some(_) => format!("the code {} at this stage", reply.code),
            None => format!("the code {}", reply.code),
        },
    };
    writeln!(out, "{}\t{}\t{decided}\t{}", class.name(), kind.name(), sanitised(&reply.to_string()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_several_lines_and_without_a_last_end_are_read() {
        let found = replies(b"550-5.1.1 no such\r\n550 5.1.1 user\r\n\n421 busy").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].text, "no such\nuser");
        assert_eq!(replies(&complete("550-5.7.1 no")).unwrap().len(), 1);
        let wrong = replies(b"550 no\nhello\n").unwrap_err();
        assert!(wrong.text.starts_with("line 2: "), "{}", wrong.text);
        assert!(replies(b"250 ok\n").unwrap_err().text.contains("no failure"));
        assert!(replies(b"550-no\n").unwrap_err().text.contains("no further line"));
    }
}
