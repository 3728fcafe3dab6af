//! Which class a failed reply has, and by which rule.
//!
//! Asked in this order, and the first answer counts: the operator's rules, the shipped ones (replies.toml), both in the
//! order of their files; the enhanced status where it says something certain (RFC 3463); the rules marked `weak`, whose
//! words are vague; the rest of the enhanced status; the basic code with the stage of the dialogue (RFC 5321 4.2.3). All patterns are
//! searched for at once, in time linear in the text, of which [`limits::CLASSIFIED_OCTETS_MAX`] octets are looked at.
//!
//! Pure, and it does not fail: what tells nothing is [`ReplyClass::Unknown`]. A file of rules is checked when it is
//! read, and a [`RuleError`] says where it is wrong.

use crate::limits;
use crate::reply::class::{BounceKind, Meaning, ReplyClass};
use crate::reply::{EnhancedCode, Reply};
use crate::smtp::client::Stage;
use regex::bytes::{RegexSet, RegexSetBuilder};
use serde::Deserialize;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use toml::Spanned;

/// The rules that are shipped.
const SHIPPED: &str = include_str!("replies.toml");
/// What decisions call that file.
pub const SHIPPED_NAME: &str = "replies.toml";

/// What is known of a reply.
#[derive(Copy, Clone, Debug)]
pub struct Question<'a> {
    /// The reply.
    pub reply: &'a Reply,
    /// Whether a peer said it; our own words are classified by their codes alone.
    pub from_peer: bool,
    /// When it came, if that is known.
    pub stage: Option<Stage>,
    /// The name of the host that said it, or of the site: what providers are known by. May be empty.
    pub host: &'a str,
}

/// What a reply was found to mean.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its class.
    pub class: ReplyClass,
    /// For whom it is bad news.
    pub kind: BounceKind,
    /// What decided.
    pub by: DecidedBy,
}

impl Decision {
    /// Without what decided.
    pub fn meaning(&self) -> Meaning {
        Meaning { class: self.class, kind: self.kind }
    }
}

/// What decided about a reply.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// A pattern, by its place: [`Classifier::place`] tells more.
    Pattern(u16),
    /// The enhanced status.
    Status,
    /// The basic code.
    Code,
}

/// Where a rule stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RulePlace<'a> {
    /// The rule's name.
    pub name: &'a str,
    /// Its file.
    pub file: &'a str,
    /// The line of the pattern that fitted.
    pub line: u32,
}

/// Why a file of rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuleError {
    /// What is wrong.
    pub message: String,
    /// The octets of the file that it is about.
    pub span: Range<usize>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// The compiled rules. A clone has its own memory for searching, so that shards share nothing that changes.
#[derive(Clone, Debug)]
pub struct Classifier {
    set: RegexSet,
    rules: Arc<Rules>,
}

#[derive(Debug)]
struct Rules {
    providers: Vec<Provider>,
    rules: Vec<Rule>,
    /// For each pattern, in order: its rule and its line.
    patterns: Vec<(u16, u32)>,
    /// The names of the files.
    files: Vec<Box<str>>,
}

#[derive(Debug)]
struct Provider {
    name: Box<str>,
    /// A host with one of these names, or below one of these.
    hosts: Vec<Box<str>>,
}

/// A pattern and its rule.
type Fit<'a> = (u16, &'a Rule);

#[derive(Debug)]
struct Rule {
    name: Box<str>,
    file: u8,
    class: ReplyClass,
    kind: Option<BounceKind>,
    /// Places among the providers; empty: all.
    providers: Vec<u16>,
    /// Basic codes, or their first digits; empty: all.
    codes: Vec<u16>,
    /// Empty: all.
    stages: Vec<Point>,
    weak: bool,
}

/// The stages that rules tell apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Point {
    /// Connecting and the greeting.
    Connect,
    /// EHLO or HELO.
    Hello,
    /// STARTTLS.
    Tls,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, the content, its end.
    Data,
}

impl Point {
    /// The point that a stage belongs to; between messages there is none.
    pub fn of(stage: Stage) -> Option<Point> {
        Some(match stage {
            Stage::Connect | Stage::Greeting => Point::Connect,
            Stage::Hello => Point::Hello,
            Stage::StartTls => Point::Tls,
            Stage::Mail => Point::Mail,
            Stage::Recipient => Point::Rcpt,
            Stage::Data | Stage::Content | Stage::FinalReply => Point::Data,
            Stage::Idle => return None,
        })
    }
}

// ---- the file ----

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    provider: Vec<ProviderEntry>,
    #[serde(default)]
    rule: Vec<RuleEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderEntry {
    name: Spanned<String>,
    hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    name: Spanned<String>,
    class: Spanned<String>,
    kind: Option<Spanned<String>>,
    #[serde(default)]
    provider: Vec<Spanned<String>>,
    #[serde(default)]
    codes: Vec<Spanned<u16>>,
    #[serde(default)]
    stages: Vec<Point>,
    #[serde(default)]
    weak: bool,
    patterns: Vec<Spanned<String>>,
}

impl Classifier {
    /// The shipped rules.
    pub fn shipped() -> Classifier {
        static SHIPPED_RULES: OnceLock<Classifier> = OnceLock::new();
        // The file is part of the program and a test compiles it.
        let compiled =
            SHIPPED_RULES.get_or_init(|| Classifier::with_rules(None).expect("the shipped rules are in order"));
        compiled.clone()
    }

    /// The shipped rules behind the operator's, which are given as the name and the text of their file.
    pub fn with_rules(operators: Option<(&str, &str)>) -> Result<Classifier, RuleError> {
        let mut rules = Rules { providers: Vec::new(), rules: Vec::new(), patterns: Vec::new(), files: Vec::new() };
        let mut patterns = Vec::new();
        let shipped = read(SHIPPED)?;
        // Providers first: the operator's rules may name the shipped ones.
        let own = operators.map(|(_, text)| read(text)).transpose()?;
        for entry in own.iter().flat_map(|file| &file.provider).chain(&shipped.provider) {
            rules.add_provider(entry);
        }
        if let (Some((name, text)), Some(file)) = (operators, &own) {
            rules.add_file(name, text, file, &mut patterns)?;
        }
        rules.add_file(SHIPPED_NAME, SHIPPED, &shipped, &mut patterns)?;
        let set = compile(&patterns).map_err(|error| RuleError {
            message: format!("the patterns together are too large: {error}"),
            span: 0..0,
            hint: Some("write fewer of them, and without large repetitions".into()),
        })?;
        Ok(Classifier { set, rules: Arc::new(rules) })
    }

    /// What a reply means.
    pub fn classify(&self, question: &Question<'_>) -> Decision {
        let reply = question.reply;
        let status = reply.enhanced.or_else(|| status_in_text(reply));
        let decide = |class: ReplyClass, kind: Option<BounceKind>, by| Decision {
            class,
            kind: kind.unwrap_or_else(|| class.kind(reply.is_permanent())),
            by,
        };
        let (strong, weak) = if question.from_peer { self.fitting(question) } else { (None, None) };
        if let Some((pattern, rule)) = strong {
            return decide(rule.class, rule.kind, DecidedBy::Pattern(pattern));
        }
        if let Some(class) = status.and_then(|status| certain_status(status, question.from_peer)) {
            return decide(class, None, DecidedBy::Status);
        }
        if let Some((pattern, rule)) = weak {
            return decide(rule.class, rule.kind, DecidedBy::Pattern(pattern));
        }
        if let Some(class) = status.and_then(vague_status) {
            return decide(class, None, DecidedBy::Status);
        }
        decide(by_code(reply.code, question.stage.and_then(Point::of)), None, DecidedBy::Code)
    }

    /// Where the pattern stands that decided; none where codes did.
    pub fn place(&self, by: DecidedBy) -> Option<RulePlace<'_>> {
        let DecidedBy::Pattern(pattern) = by else { return None };
        let &(rule, line) = self.rules.patterns.get(usize::from(pattern))?;
        let rule = self.rules.rules.get(usize::from(rule))?;
        Some(RulePlace { name: &rule.name, file: self.rules.files.get(usize::from(rule.file))?, line })
    }

    /// The name of the provider that a host belongs to.
    pub fn provider_of(&self, host: &str) -> Option<&str> {
        self.rules.provider_of(host).map(|place| &*self.rules.providers[usize::from(place)].name)
    }

    /// How many patterns there are.
    pub fn patterns(&self) -> usize {
        self.rules.patterns.len()
    }

    /// In the order of the files, the first pattern with a rule that fits and is not weak, and the first whose rule is.
    fn fitting(&self, question: &Question<'_>) -> (Option<Fit<'_>>, Option<Fit<'_>>) {
        let text = one_line(&question.reply.text);
        let matches = self.set.matches(&text);
        if !matches.matched_any() {
            return (None, None);
        }
        let provider = self.rules.provider_of(question.host);
        let point = question.stage.and_then(Point::of);
        let code = question.reply.code;
        let fits = |rule: &Rule| {
            (rule.providers.is_empty() || provider.is_some_and(|provider| rule.providers.contains(&provider)))
                && (rule.codes.is_empty() || rule.codes.iter().any(|&wanted| wanted == code || wanted == code / 100))
                && (rule.stages.is_empty() || point.is_some_and(|point| rule.stages.contains(&point)))
        };
        let rule_of = |pattern: usize| &self.rules.rules[usize::from(self.rules.patterns[pattern].0)];
        let all = matches.iter().map(|pattern| (pattern as u16, rule_of(pattern)));
        let first = |weak| all.clone().find(|(_, rule)| rule.weak == weak && fits(rule));
        (first(false), first(true))
    }
}

impl Rules {
    /// Hosts of a provider that is there already are added to it.
    fn add_provider(&mut self, entry: &ProviderEntry) {
        let hosts = entry.hosts.iter().map(|host| host.to_ascii_lowercase().into());
        match self.providers.iter_mut().find(|known| *known.name == **entry.name.get_ref()) {
            Some(known) => known.hosts.extend(hosts),
            None => {
                let name = entry.name.get_ref().as_str().into();
                self.providers.push(Provider { name, hosts: hosts.collect() });
            }
        }
    }

    fn add_file(
        &mut self,
        name: &str,
        text: &str,
        file: &RulesFile,
        patterns: &mut Vec<String>,
    ) -> Result<(), RuleError> {
        let number = self.files.len() as u8;
        self.files.push(name.into());
        let lines = LineNumbers::of(text);
        for entry in &file.rule {
            let place = self.rules.len() as u16;
            let rule = self.rule(entry, number)?;
            self.rules.push(rule);
            if entry.patterns.is_empty() {
                return Err(wrong(&entry.name, "a rule without patterns fits nothing", None));
            }
            for pattern in &entry.patterns {
                if self.patterns.len() == limits::CLASSIFIER_PATTERNS_MAX {
                    let message = format!("more than {} patterns in all", limits::CLASSIFIER_PATTERNS_MAX);
                    return Err(wrong(pattern, &message, Some("put several into one: `one|other`")));
                }
                if name != SHIPPED_NAME {
                    check_pattern(pattern)?;
                }
                self.patterns.push((place, lines.line(pattern.span().start)));
                patterns.push(pattern.get_ref().clone());
            }
        }
        Ok(())
    }

    fn rule(&self, entry: &RuleEntry, file: u8) -> Result<Rule, RuleError> {
        let class = ReplyClass::of_name(entry.class.get_ref()).ok_or_else(|| {
            let known: Vec<&str> = ReplyClass::ALL.into_iter().map(ReplyClass::name).collect();
            let hint = format!("the classes are {}", known.join(", "));
            wrong(&entry.class, &format!("`{}` is no class of replies", entry.class.get_ref()), Some(&hint))
        })?;
        let kind = entry.kind.as_ref().map(|kind| {
            BounceKind::of_name(kind.get_ref())
                .ok_or_else(|| wrong(kind, &format!("`{}` is no kind", kind.get_ref()), Some("hard, soft or block")))
        });
        let provider = |name: &Spanned<String>| {
            let found = self.providers.iter().position(|known| *known.name == **name.get_ref());
            let message = || format!("there is no provider `{}`", name.get_ref());
            let hint = "define it in a [[provider]] of this file, with its name and hosts";
            found.map(|place| place as u16).ok_or_else(|| wrong(name, &message(), Some(hint)))
        };
        let code = |code: &Spanned<u16>| match *code.get_ref() {
            good @ (4 | 5 | 400..=599) => Ok(good),
            bad => {
                let hint = "a code from 400 to 599, or 4 or 5 for all that begin so";
                Err(wrong(code, &format!("no reply that failed has the code {bad}"), Some(hint)))
            }
        };
        Ok(Rule {
            name: entry.name.get_ref().as_str().into(),
            file,
            class,
            kind: kind.transpose()?,
            providers: entry.provider.iter().map(provider).collect::<Result<_, _>>()?,
            codes: entry.codes.iter().map(code).collect::<Result<_, _>>()?,
            stages: entry.stages.clone(),
            weak: entry.weak,
        })
    }

    fn provider_of(&self, host: &str) -> Option<u16> {
        let host = host.trim_end_matches('.');
        if host.is_empty() {
            return None;
        }
        let belongs = |name: &str| {
            let front = host.len().checked_sub(name.len());
            front.is_some_and(|front| {
                host.is_char_boundary(front)
                    && host[front..].eq_ignore_ascii_case(name)
                    && (front == 0 || host[..front].ends_with('.'))
            })
        };
        let found = self.providers.iter().position(|known| known.hosts.iter().any(|name| belongs(name)));
        // A site may be called as the provider is.
        let called = || self.providers.iter().position(|known| *known.name == *host);
        found.or_else(called).map(|place| place as u16)
    }
}

fn wrong<T>(at: &Spanned<T>, message: &str, hint: Option<&str>) -> RuleError {
    RuleError { message: message.into(), span: at.span(), hint: hint.map(Into::into) }
}

fn read(text: &str) -> Result<RulesFile, RuleError> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().lines().next().unwrap_or("it cannot be read").to_owned();
        RuleError { message, span: error.span().unwrap_or(0..0), hint: None }
    })
}

/// A pattern of the operator's by itself, since an error of all together does not say which one it is.
fn check_pattern(pattern: &Spanned<String>) -> Result<(), RuleError> {
    let alone = compile(std::slice::from_ref(pattern.get_ref())).map_err(|error| {
        let text = error.to_string();
        let message = text.lines().last().unwrap_or("it cannot be read").trim();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        wrong(pattern, &format!("this pattern cannot be used: {message}"), None)
    })?;
    if alone.is_match(b"") {
        return Err(wrong(pattern, "this pattern fits every reply, the empty one too", None));
    }
    Ok(())
}

fn compile(patterns: &[String]) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(patterns)
        .case_insensitive(true)
        .unicode(false)
        .size_limit(limits::CLASSIFIER_OCTETS_MAX)
        .dfa_size_limit(limits::CLASSIFIER_CACHE_OCTETS_MAX)
        .build()
}

/// From octets to line numbers.
struct LineNumbers(Vec<usize>);

impl LineNumbers {
    fn of(text: &str) -> LineNumbers {
        LineNumbers(memchr::memchr_iter(b'\n', text.as_bytes()).collect())
    }

    fn line(&self, octet: usize) -> u32 {
        self.0.partition_point(|&end| end < octet) as u32 + 1
    }
}

/// The text as patterns see it: its lines joined by spaces, no more of it than is looked at.
fn one_line(text: &str) -> Cow<'_, [u8]> {
    let mut kept = Cow::Borrowed(&text.as_bytes()[..text.len().min(limits::CLASSIFIED_OCTETS_MAX)]);
    for end in memchr::memchr_iter(b'\n', text.as_bytes()).take_while(|&end| end < limits::CLASSIFIED_OCTETS_MAX) {
        kept.to_mut()[end] = b' ';
    }
    kept
}

/// An enhanced status that stands within the text behind a `#`, as some programs write it.
fn status_in_text(reply: &Reply) -> Option<EnhancedCode> {
    reply.text.match_indices('#').find_map(|(at, _)| {
        let rest = &reply.text[at + 1..];
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let code = EnhancedCode::parse(rest[..end].trim_end_matches('.'))?;
        (u16::from(code.class) == reply.code / 100).then_some(code)
    })
}

/// What an enhanced status says for certain (RFC 3463 3, RFC 7372, RFC 7505): few peers use these for anything else. That
/// a connection failed is certain in our own words; a peer that says so means one of its own, if anything.
fn certain_status(code: EnhancedCode, from_peer: bool) -> Option<ReplyClass> {
    Some(match (code.subject, code.detail) {
        (1, 1 | 3 | 4) => ReplyClass::InvalidRecipient,
        (1, 2 | 10) => ReplyClass::InvalidDomain,
        (1, 6) => ReplyClass::InactiveMailbox,
        (1, 7 | 8) => ReplyClass::InvalidSender,
        (2, 1) if code.class == 5 => ReplyClass::InactiveMailbox,
        (2, 2) => ReplyClass::MailboxFull,
        (2, 3) | (3, 4) => ReplyClass::MessageTooLarge,
        (3, 1) => ReplyClass::TemporaryFailure,
        (4, 1 | 2) if !from_peer => ReplyClass::BadConnection,
        (4, 3) => ReplyClass::DnsFailure,
        (4, 4) if code.class == 5 => ReplyClass::InvalidDomain,
        (4, 4 | 6) => ReplyClass::Routing,
        (5, 3) => ReplyClass::TooManyRecipients,
        (7, 10) => ReplyClass::TlsRequired,
        (7, 20..=24 | 26) => ReplyClass::Authentication,
        (7, 25 | 27) => ReplyClass::ReverseDns,
        _ => return None,
    })
}

/// What an enhanced status hints at.
fn vague_status(code: EnhancedCode) -> Option<ReplyClass> {
    Some(match (code.subject, code.detail) {
        (1, 0) if code.class == 5 => ReplyClass::InvalidRecipient,
        (3, _) if code.class == 4 => ReplyClass::TemporaryFailure,
        (4, 5) => ReplyClass::TemporaryFailure,
        (4, 1 | 2 | 7) if code.class == 4 => ReplyClass::BadConnection,
        (4, _) if code.class == 4 => ReplyClass::TemporaryFailure,
        (5, 1..) => ReplyClass::ProtocolError,
        (6, _) => ReplyClass::ContentError,
        (7, _) if code.class == 5 => ReplyClass::Policy,
        _ => return None,
    })
}

/// What a basic code says (RFC 5321 4.2.3, RFC 7504), when nothing else tells.
fn by_code(code: u16, point: Option<Point>) -> ReplyClass {
    match (code, point) {
        (552, Some(Point::Mail | Point::Data)) => ReplyClass::MessageTooLarge,
        (452, Some(Point::Rcpt)) => ReplyClass::TooManyRecipients,
        (400..=499, _) => ReplyClass::TemporaryFailure,
        (500..=504 | 555, _) => ReplyClass::ProtocolError,
        (521 | 556, _) => ReplyClass::InvalidDomain,
        (530..=539, _) => ReplyClass::RelayDenied,
        (552, _) => ReplyClass::MailboxFull,
        (550 | 551 | 553, Some(Point::Rcpt)) => ReplyClass::InvalidRecipient,
        (551, None) => ReplyClass::InvalidRecipient,
        (550..=554, Some(_)) => ReplyClass::Policy,
        _ => ReplyClass::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "[[provider]]\nname = \"ours\"\nhosts = [\"relay.example.net\"]\n\n[[rule]]\nname = \"later\"\n\
        provider = [\"ours\"]\ncodes = [5]\nstages = [\"rcpt\"]\nclass = \"greylisted\"\nkind = \"hard\"\npatterns = [\n\
        \"nothing\",\n\"user unknown\",\n]\n";

    fn reply(line: &str) -> Reply {
        let (_, reply) = crate::reply::ReplyReader::new().handle_input(format!("{line}\n").as_bytes());
        reply.unwrap().unwrap()
    }

    fn ask(rules: &Classifier, line: &str, stage: Option<Stage>, host: &str) -> Decision {
        rules.classify(&Question { reply: &reply(line), from_peer: true, stage, host })
    }

    #[test]
    fn the_operators_rules_come_first_and_only_where_they_fit() {
        let rules = Classifier::with_rules(Some(("own.toml", OWN))).unwrap();
        let line = "550 5.1.1 User Unknown";
        let decision = ask(&rules, line, Some(Stage::Recipient), "mx1.Relay.example.NET");
        assert_eq!((decision.class, decision.kind), (ReplyClass::Greylisted, BounceKind::Hard));
        let place = rules.place(decision.by).unwrap();
        assert_eq!((place.name, place.file, place.line), ("later", "own.toml", 14));
        for (line, stage, host) in [
            (line, Some(Stage::Recipient), "notrelay.example.net"),
            (line, Some(Stage::Recipient), ""),
            (line, Some(Stage::Mail), "relay.example.net"),
            (line, None, "relay.example.net"),
            ("450 4.1.1 User unknown", Some(Stage::Recipient), "relay.example.net"),
        ] {
            assert_eq!(ask(&rules, line, stage, host).class, ReplyClass::InvalidRecipient, "{line} {stage:?} {host}");
        }
    }

    #[test]
    fn words_go_before_certain_codes_and_these_before_vague_words() {
        let rules = Classifier::shipped();
        let class = |line: &str| ask(&rules, line, None, "").class;
        assert_eq!(class("550 5.1.1 inactive user"), ReplyClass::InactiveMailbox);
        assert_eq!(class("550 5.2.2 rejected by policy"), ReplyClass::MailboxFull);
        assert_eq!(class("550 5.7.1 rejected by policy"), ReplyClass::Policy);
        assert_eq!(class("554 xyzzy (#5.2.2)"), ReplyClass::MailboxFull);
        assert_eq!(class("554 xyzzy (#4.2.2)"), ReplyClass::Unknown);
        assert_eq!(class("550 5.7.1 xyzzy"), ReplyClass::Policy);
        assert_eq!(class("499 xyzzy"), ReplyClass::TemporaryFailure);
    }

    #[test]
    fn without_words_the_code_and_the_stage_decide() {
        let rules = Classifier::shipped();
        for (line, stage, class) in [
            ("550 xyzzy", Some(Stage::Recipient), ReplyClass::InvalidRecipient),
            ("550 xyzzy", Some(Stage::FinalReply), ReplyClass::Policy),
            ("550 xyzzy", Some(Stage::Mail), ReplyClass::Policy),
            ("550 xyzzy", None, ReplyClass::Unknown),
            ("552 xyzzy", Some(Stage::Recipient), ReplyClass::MailboxFull),
            ("552 xyzzy", Some(Stage::FinalReply), ReplyClass::MessageTooLarge),
            ("452 xyzzy", Some(Stage::Recipient), ReplyClass::TooManyRecipients),
            ("521 xyzzy", Some(Stage::Greeting), ReplyClass::InvalidDomain),
            ("502 xyzzy", Some(Stage::Idle), ReplyClass::ProtocolError),
        ] {
            let decision = ask(&rules, line, stage, "");
            assert_eq!((decision.class, decision.by), (class, DecidedBy::Code), "{line} {stage:?}");
            assert!(rules.place(decision.by).is_none());
        }
    }

    #[test]
    fn our_own_words_are_classified_by_their_codes_alone() {
        let rules = Classifier::shipped();
        let own = reply("451 4.4.2 the peer is over quota, or so its name says");
        let question = |from_peer| Question { reply: &own, from_peer, stage: None, host: "" };
        assert_eq!(rules.classify(&question(false)).class, ReplyClass::BadConnection);
        assert_eq!(rules.classify(&question(true)).class, ReplyClass::MailboxFull);
    }

    #[test]
    fn only_the_beginning_is_looked_at_and_lines_are_joined() {
        let rules = Classifier::shipped();
        let far = format!("550 {} user unknown", "x".repeat(limits::CLASSIFIED_OCTETS_MAX));
        assert_eq!(ask(&rules, &far, None, "").class, ReplyClass::Unknown);
        assert_eq!(ask(&rules, "550-the user is\n550 unknown", None, "").class, ReplyClass::InvalidRecipient);
    }

    #[test]
    fn the_shipped_file_is_tidy() {
        let rules = Classifier::shipped();
        let mut names: Vec<&str> = rules.rules.rules.iter().map(|rule| &*rule.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "two rules have one name");
        let mut hosts: Vec<&str> =
            rules.rules.providers.iter().flat_map(|known| known.hosts.iter().map(|host| &**host)).collect();
        hosts.sort_unstable();
        let count = hosts.len();
        hosts.dedup();
        assert_eq!(hosts.len(), count, "a host belongs to two providers");
        for rule in &rules.rules.rules {
            assert!(!rule.name.is_empty() && rule.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
        }
    }
}
