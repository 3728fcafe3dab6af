//! What is wrong with a configuration, shown so that a person can put it right: where, the line itself, and a hint.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, if it came from one.
    pub file: Option<PathBuf>,
    /// Where in it, when known.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// A place in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counts from 1.
    pub line: usize,
    /// In characters, counts from 1.
    pub column: usize,
    /// The line itself, without its end.
    pub text: String,
    /// How many characters are meant; at least 1.
    pub width: usize,
}

impl Place {
    /// The place of these octets of the text; a span over several lines is cut at the end of its first.
    pub fn of(text: &str, span: Range<usize>) -> Place {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let mut end = span.end.clamp(start, line_end);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Place {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: text[line_start..line_end].trim_end_matches('\r').to_owned(),
            width: text[start..end].chars().count().max(1),
        }
    }
}

impl ConfigError {
    /// An error that belongs to no place in a text.
    pub fn new(message: impl Into<String>) -> ConfigError {
        ConfigError { file: None, place: None, message: message.into(), hint: None }
    }

    /// An error at these octets of the text.
    pub fn at(text: &str, span: Range<usize>, message: impl Into<String>) -> ConfigError {
        ConfigError { place: Some(Place::of(text, span)), ..ConfigError::new(message) }
    }

    /// With advice.
    pub fn with_hint(mut self, hint: impl Into<String>) -> ConfigError {
        self.hint = Some(hint.into());
        self
    }

    /// In this file.
    pub fn in_file(mut self, file: &Path) -> ConfigError {
        self.file = Some(file.to_owned());
        self
    }

    /// From what the TOML reader says, whose message names an unknown key and the known ones in backticks.
    pub fn from_toml(text: &str, error: &toml::de::Error) -> ConfigError {
        let message = error.message().lines().next().unwrap_or("cannot be read").to_owned();
        let shown = match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
            Some((key, rest)) => {
                let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
                let hint = match super::text::nearest(key, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known keys here: {}", known.join(", ")),
                };
                ConfigError::new(format!("unknown key `{key}`")).with_hint(hint)
            }
            None => ConfigError::new(message),
        };
        ConfigError { place: error.span().map(|span| Place::of(text, span)), ..shown }
    }
}

impl fmt::Display for ConfigError {
    /// `file:line:column: message`, the line with carets below what is meant, the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
        }
        if let Some(place) = &self.place {
            write!(f, "{}:{}:", place.line, place.column)?;
        }
        if self.file.is_some() || self.place.is_some() {
            f.write_str(" ")?;
        }
        f.write_str(&self.message)?;
        if let Some(place) = &self.place {
            let number = place.line.to_string();
            let margin = " ".repeat(number.len());
            // A tab stays a tab, so that the caret stands below its letter however wide tabs are shown.
            let indent: String =
                place.text.chars().take(place.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            write!(f, "\n {margin} |\n {number} | {}\n {margin} | {indent}{}", place.text, "^".repeat(place.width))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_in_lines_and_characters() {
        let text = "a = 1\nbé = \"x\"\r\nc";
        assert_eq!(Place::of(text, 12..15), Place { line: 2, column: 6, text: "bé = \"x\"".into(), width: 3 });
        assert_eq!(Place::of(text, 6..99), Place { line: 2, column: 1, text: "bé = \"x\"".into(), width: 9 });
        assert_eq!(Place::of(text, 99..99).line, 3);
        assert_eq!(Place::of("", 0..0), Place { line: 1, column: 1, text: "".into(), width: 1 });
    }

    #[test]
    fn an_error_shows_its_line_with_a_caret() {
        let error = ConfigError::at("a = 1\nb = 2\n", 6..7, "wrong").with_hint("write c").in_file(Path::new("x.toml"));
        assert_eq!(error.to_string(), "x.toml:2:1: wrong\n   |\n 2 | b = 2\n   | ^\nhint: write c");
    }
}
