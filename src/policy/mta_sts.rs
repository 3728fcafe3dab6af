//! MTA-STS (RFC 8461): what a domain says in DNS and in its policy, read strictly, and which hosts a policy names.
//!
//! Not here: asking for either, and keeping what came (src/control/mta_sts.rs).

use crate::address::check_domain_or_literal;
use std::time::Duration;

/// Hosts that a policy may name; further ones are an error.
pub const PATTERNS_MAX: usize = 100;
/// The longest life of a policy (RFC 8461 3.2: a year); longer ones are cut.
pub const MAX_AGE_MAX: Duration = Duration::from_secs(31_557_600);
/// Octets of an id (RFC 8461 3.1).
const ID_OCTETS_MAX: usize = 32;

/// What is to happen where a host does not satisfy a policy.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It gets no mail.
    Enforce,
    /// It is reported, and gets its mail.
    Testing,
    /// Nothing: the domain is about to do without a policy.
    None,
}

impl Mode {
    /// As policies write it.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Testing => "testing",
            Mode::None => "none",
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StsPolicy {
    /// What is to happen.
    pub mode: Mode,
    /// For how long it may be kept.
    pub max_age: Duration,
    /// Names of hosts in lower case; `*.` stands for one label. Empty with [`Mode::None`] alone.
    pub mx: Vec<Box<str>>,
}

/// The id in a domain's record: none when there is no record for this version, or more than one (RFC 8461 3.1).
pub fn record_id<'a>(texts: impl IntoIterator<Item = &'a str>) -> Option<Box<str>> {
    let mut records = texts.into_iter().filter(|text| {
        let version = text.split(';').next().unwrap_or_default();
        version.split_once('=').is_some_and(|(key, value)| key.trim() == "v" && value.trim() == "STSv1")
    });
    let (record, None) = (records.next()?, records.next()) else { return None };
    let mut ids = record.split(';').filter_map(|field| field.split_once('=')).filter(|(key, _)| key.trim() == "id");
    let (_, id) = ids.next()?;
    let id = id.trim();
    let fits = (1..=ID_OCTETS_MAX).contains(&id.len()) && id.bytes().all(|octet| octet.is_ascii_alphanumeric());
    (fits && ids.next().is_none()).then(|| id.into())
}

impl StsPolicy {
    /// Reads a policy. Unknown keys are passed over, and of a key that stands there twice the first counts, save for `mx`
    /// (RFC 8461 3.2).
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<StsPolicy, String> {
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in text.split('\n') {
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.trim().is_empty() {
                continue;
            }
            let Some((key, value)) = line.split_once(':') else {
                return Err("a line is not of the form `key: value`".into());
            };
            let value = value.trim();
            match key.trim() {
                "version" => drop(version.get_or_insert(value)),
                "mode" => drop(mode.get_or_insert(value)),
                "max_age" => drop(max_age.get_or_insert(value)),
                "mx" if mx.len() == PATTERNS_MAX => return Err(format!("it names more than {PATTERNS_MAX} hosts")),
                "mx" => mx.push(pattern(value)?),
                _ => {}
            }
        }
        if version != Some("STSv1") {
            return Err("it is not of version STSv1".into());
        }
        let mode = match mode {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            _ => return Err("its mode is none of enforce, testing and none".into()),
        };
        let seconds = max_age.filter(|age| (1..=10).contains(&age.len()) && age.bytes().all(|o| o.is_ascii_digit()));
        let Some(seconds) = seconds.and_then(|age| age.parse::<u64>().ok()) else {
            return Err("its max_age is no number of seconds".into());
        };
        if mx.is_empty() && mode != Mode::None {
            return Err("it names no hosts".into());
        }
        Ok(StsPolicy { mode, max_age: Duration::from_secs(seconds).min(MAX_AGE_MAX), mx })
    }

    /// Whether it names this host (RFC 8461 4.1).
    pub fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            None => **pattern == *host,
        })
    }
}

fn pattern(text: &str) -> Result<Box<str>, String> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let name = text.strip_prefix("*.").unwrap_or(&text);
    if name.is_empty() || name.starts_with('[') || check_domain_or_literal(name).is_err() {
        return Err("one of its hosts is no domain name".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_record_of_this_version_gives_its_id() {
        assert_eq!(record_id(["v=STSv1; id=20160831085700Z;"]).as_deref(), Some("20160831085700Z"));
        assert_eq!(record_id(["v=spf1 -all", " v = STSv1 ;id = a1 ; extra=x"]).as_deref(), Some("a1"));
        for none in [
            &["v=STSv2; id=1"][..],
            &["v=STSv1; id=1", "v=STSv1; id=1"],
            &["v=STSv1"],
            &["v=STSv1; id="],
            &["v=STSv1; id=a b"],
            &["v=STSv1; id=1; id=2"],
            &["v=STSv1; id=123456789012345678901234567890123"],
            &["id=1; v=STSv1"],
            &[""],
            &[],
        ] {
            assert_eq!(record_id(none.iter().copied()), None, "{none:?}");
        }
    }

    const GOOD: &str =
        "version: STSv1\r\nmode: enforce\r\nmx: Mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n";

    #[test]
    fn a_policy_is_read_and_names_its_hosts() {
        let policy = StsPolicy::parse(GOOD).unwrap();
        assert_eq!((policy.mode, policy.max_age), (Mode::Enforce, Duration::from_secs(604_800)));
        assert_eq!(StsPolicy::parse(&GOOD.replace("\r\n", "\n")).as_ref(), Ok(&policy));
        assert_eq!(
            StsPolicy::parse(&GOOD.replace("mode", "mode: testing\r\nunknown: x\r\nmode")).unwrap().mode,
            Mode::Testing
        );
        for host in ["mail.example.com", "MAIL.example.com.", "a.example.net"] {
            assert!(policy.names(host), "{host}");
        }
        for host in ["example.com", "a.mail.example.com", "example.net", "a.b.example.net", ".example.net", ""] {
            assert!(!policy.names(host), "{host}");
        }
        let long = StsPolicy::parse(&GOOD.replace("604800", "9999999999")).unwrap();
        assert_eq!(long.max_age, MAX_AGE_MAX);
        assert!(StsPolicy::parse("version: STSv1\nmode: none\nmax_age: 0\n").is_ok());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let many = "mx: a.test\n".repeat(PATTERNS_MAX + 1);
        for (from, to, wrong) in [
            ("STSv1", "STSv2", "not of version"),
            ("enforce", "enforced", "its mode"),
            ("604800", "-1", "max_age"),
            ("604800", "99999999999", "max_age"),
            ("max_age: 604800", "", "max_age"),
            ("mode: enforce", "mode enforce", "`key: value`"),
            ("Mail.example.com", "mail.*.example.com", "no domain name"),
            ("Mail.example.com", "*.", "no domain name"),
            ("Mail.example.com", "[192.0.2.1]", "no domain name"),
            ("mx: Mail.example.com\r\n", &many, "more than 100"),
        ] {
            let error = StsPolicy::parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(wrong), "{to}: {error}");
        }
        assert!(StsPolicy::parse("version: STSv1\nmode: testing\nmax_age: 1\n").unwrap_err().contains("no hosts"));
        assert!(StsPolicy::parse("<html>").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,300}") {
            if let Ok(policy) = StsPolicy::parse(&text) {
                prop_assert!(policy.max_age <= MAX_AGE_MAX && policy.mx.len() <= PATTERNS_MAX);
            }
            let _ = record_id([text.as_str()]);
        }
    }
}
