//! `[classification]`: the operator's own rules about replies, read from a file of their own.

use super::ConfigError;
use crate::limits::RULES_FILE_OCTETS_MAX;
use crate::policy::classify::Classifier;
use serde::Deserialize;
use std::path::PathBuf;

/// `[classification]`: what the replies of destinations mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassificationSection {
    /// A file of rules that are asked before the shipped ones.
    pub rules: Option<PathBuf>,
}

impl ClassificationSection {
    /// The rules, compiled.
    ///
    /// # Errors
    /// For a file that cannot be read or that holds a mistake, with its place there.
    pub fn classifier(&self) -> Result<Classifier, ConfigError> {
        let Some(file) = &self.rules else { return Ok(Classifier::shipped()) };
        let trouble = |error: std::io::Error| {
            ConfigError::new(format!("the rules about replies cannot be read: {error}"))
                .in_file(file)
                .with_hint("rules = \"…\" in [classification] names a TOML file that this user may read")
        };
        let length = std::fs::metadata(file).map_err(trouble)?.len();
        if length > RULES_FILE_OCTETS_MAX {
            return Err(ConfigError::new(format!("{length} octets are too many for a file of rules")).in_file(file));
        }
        let text = std::fs::read_to_string(file).map_err(trouble)?;
        let name = file.display().to_string();
        Classifier::with_rules(Some((&name, &text))).map_err(|error| {
            let shown = ConfigError::at(&text, error.span, error.message).in_file(file);
            match error.hint {
                Some(hint) => shown.with_hint(hint),
                None => shown,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of rules with this text, and what is said of it.
    fn of(name: &str, text: &str) -> Result<Classifier, ConfigError> {
        let file = std::env::temp_dir().join(format!("ringpost-rules-{}-{name}.toml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let result = ClassificationSection { rules: Some(file.clone()) }.classifier();
        std::fs::remove_file(file).unwrap();
        result
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let rule = "[[rule]]\nname = \"a\"\n";
        let table = [
            ("class", format!("{rule}class = \"spma\"\npatterns = [\"x\"]\n"), 3, "`spma` is no class", "classes are"),
            (
                "pattern",
                format!("{rule}class = \"policy\"\npatterns = [\n  \"x\",\n  \"(\"]\n"),
                6,
                "unclosed group",
                "",
            ),
            ("empty", format!("{rule}class = \"policy\"\npatterns = [\"x*\"]\n"), 4, "fits every reply", ""),
            ("none", format!("{rule}class = \"policy\"\npatterns = []\n"), 2, "without patterns", ""),
            (
                "large",
                format!("{rule}class = \"policy\"\npatterns = [\"(a{{900}}){{900}}{{900}}\"]\n"),
                4,
                "size limit",
                "",
            ),
            (
                "provider",
                format!("{rule}provider = [\"gogle\"]\nclass = \"policy\"\npatterns = [\"x\"]\n"),
                3,
                "no provider",
                "[[provider]]",
            ),
            (
                "code",
                format!("{rule}codes = [250]\nclass = \"policy\"\npatterns = [\"x\"]\n"),
                3,
                "the code 250",
                "400 to 599",
            ),
            ("kind", format!("{rule}kind = \"warm\"\nclass = \"policy\"\npatterns = [\"x\"]\n"), 3, "no kind", "block"),
            ("key", format!("{rule}clas = \"policy\"\npatterns = [\"x\"]\n"), 3, "unknown field `clas`", ""),
        ];
        for (name, text, line, message, hint) in table {
            let error = of(name, &text).expect_err(name);
            assert_eq!(error.place.as_ref().map(|place| place.line), Some(line), "{error}");
            assert!(error.message.contains(message), "{error}");
            assert!(error.hint.as_deref().unwrap_or("").contains(hint), "{error}");
        }
        let missing = ClassificationSection { rules: Some("/nowhere/rules.toml".into()) }.classifier().unwrap_err();
        assert!(missing.to_string().contains("/nowhere/rules.toml: "), "{missing}");
    }
}
