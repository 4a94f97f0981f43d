//! What is wrong with a configuration file, shown at its line.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use thiserror::Error;

use crate::value::LIST_HELP;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}; name another with --config", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file says something wrong; every problem found is listed, each at its line.
    #[error("{}", list(problems))]
    Invalid {
        /// At least one.
        problems: Vec<Problem>,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line itself, secrets taken out.
    pub excerpt: String,
    /// How many characters of it are at fault.
    pub width: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{number} | {}", self.excerpt)?;
        // Tabs are kept, so that the caret stands where the terminal puts the text.
        let indent: String = self
            .excerpt
            .chars()
            .chain(std::iter::repeat(' '))
            .take(self.column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        write!(f, "{gutter} | {indent}{}", "^".repeat(self.width.max(1)))?;
        if let Some(help) = &self.help {
            write!(f, "\n{gutter} = {help}")?;
        }
        Ok(())
    }
}

/// The text of a file, to point into, and what was found wrong with it.
#[derive(Debug)]
pub(crate) struct Findings<'a> {
    file: &'a str,
    text: &'a str,
    problems: Vec<Problem>,
    notes: Vec<Problem>,
}

impl<'a> Findings<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, problems: Vec::new(), notes: Vec::new() }
    }

    /// Records a problem at `span`, with what to do about it.
    pub(crate) fn add(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.push(span, message.into(), Some(help.into()));
    }

    /// Records what is no mistake, and should be known.
    pub(crate) fn note(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.push(span, message.into(), Some(help.into()));
        self.notes.extend(self.problems.pop());
    }

    /// Records a problem with what may be a secret: nothing in quotes on its line is shown.
    pub(crate) fn add_hidden(&mut self, span: Range<usize>, message: &str, help: &str) {
        self.push(span, message.into(), Some(help.into()));
        if let Some(problem) = self.problems.last_mut() {
            problem.excerpt = hide_quoted(&problem.excerpt);
        }
    }

    /// Records a problem at the first `needle` within `span`, which is a string that may hold it as written.
    pub(crate) fn add_within(&mut self, span: Range<usize>, needle: &str, message: String, help: String) {
        let offset = self.text.get(span.clone()).and_then(|slice| slice.find(needle));
        let narrow = offset.map(|offset| span.start + offset..span.start + offset + needle.len());
        self.push(narrow.unwrap_or(span), message, Some(help));
    }

    /// Records what the TOML reader complained of.
    pub(crate) fn add_toml(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or(0..0);
        let before = self.before(span.start);
        let line = before.rsplit('\n').next().unwrap_or_default();
        let range = out_of_range(error.message(), key(line).unwrap_or_default());
        let (message, help) = range.map_or_else(|| explain(error.message()), |message| (message, None));
        self.push(span, message, help);
    }

    /// The line that `span` begins on, from 1.
    pub(crate) fn line(&self, span: &Range<usize>) -> usize {
        self.before(span.start).matches('\n').count() + 1
    }

    /// Everything found, in the order of the file; the notes, where nothing is wrong.
    pub(crate) fn finish(mut self) -> Result<Vec<Problem>, ConfigError> {
        if self.problems.is_empty() {
            return Ok(self.notes);
        }
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        Err(ConfigError::Invalid { problems: self.problems })
    }

    fn before(&self, offset: usize) -> &'a str {
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        self.text.get(..end).unwrap_or_default()
    }

    fn push(&mut self, span: Range<usize>, message: String, help: Option<String>) {
        let before = self.before(span.start);
        // An error at the very end points at the last line that says something.
        let before = if span.start >= self.text.len() { before.trim_end() } else { before };
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        let line = self.text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        let marked = self.text.get(span.clone()).unwrap_or_default();
        let width = marked.lines().next().unwrap_or_default().chars().count();
        let (excerpt, secret) = redact(line);
        let message = if secret && (message.starts_with("expected ") || message.starts_with("invalid type")) {
            "this must be a string".into()
        } else {
            message
        };
        // What was written is in some of the advice.
        let help = help.map(|help| match is_env(line) && help.starts_with(LIST_HELP) {
            true => "write env = [\"NAME=value\"], or \"NAME\" to hand on the agent's own".into(),
            false => help,
        });
        self.problems.push(Problem {
            file: self.file.into(),
            line: before.matches('\n').count() + 1,
            column: column + 1,
            width: width.clamp(1, line.chars().count().saturating_sub(column).max(1)),
            excerpt,
            message,
            help,
        });
    }
}

/// A line fit to be printed, and whether it held a secret by its key.
fn redact(line: &str) -> (String, bool) {
    let key = line.split('=').next().unwrap_or_default().trim().trim_matches('"');
    if line.contains('=') && matches!(key.rsplit('.').next(), Some("token" | "nkey")) {
        let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
        return (format!("{indent}{} = \"***\"", line.split('=').next().unwrap_or_default().trim()), true);
    }
    if is_env(line) {
        return (hide_quoted(line), false);
    }
    (hide_values(&hide_users(line)), false)
}

fn is_env(line: &str) -> bool {
    line.split_once('=').is_some_and(|(key, _)| key.trim().rsplit('.').next() == Some("env"))
}

/// `"NAME=value"` as `"NAME=***"`, and anything else in quotes as `"***"`.
fn hide_quoted(line: &str) -> String {
    let parts = line.split('"').flat_map(|part| part.split('\'')).enumerate();
    let shown = parts.map(|(n, part)| match part.split_once('=') {
        _ if n % 2 == 0 => part.to_owned(),
        Some((name, _)) => format!("{name}=***"),
        None => "***".into(),
    });
    shown.collect::<Vec<_>>().join("\"")
}

/// `nats://user:password@host` as `nats://***@host`.
fn hide_users(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((head, tail)) = rest.split_once("://") {
        shown.push_str(head);
        shown.push_str("://");
        let end = tail.find(['"', '\'', '/', ',']).unwrap_or(tail.len());
        let authority = tail.get(..end).unwrap_or_default();
        rest = match authority.rfind('@') {
            Some(at) => {
                shown.push_str("***");
                tail.get(at..).unwrap_or_default()
            }
            None => tail,
        };
    }
    shown.push_str(rest);
    shown
}

/// `"HF_TOKEN=hf_abc"` as `"HF_TOKEN=***"`, and `password = "abc"` as `password = "***"`.
fn hide_values(line: &str) -> String {
    let mut secret = false;
    let shown = line.split('"').enumerate().map(|(n, part)| {
        if n % 2 == 0 {
            // Where a file lies is no secret.
            secret = key(part).is_some_and(|key| looks_secret(key) && !key.ends_with("_file"));
            return part.to_owned();
        }
        match part.split_once('=') {
            _ if secret => "***".into(),
            Some((name, _)) if looks_secret(name) => format!("{name}=***"),
            _ => part.to_owned(),
        }
    });
    shown.collect::<Vec<_>>().join("\"")
}

/// The key whose value follows `text`.
fn key(text: &str) -> Option<&str> {
    let key = text.trim_end().strip_suffix('=')?.trim_end();
    key.rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').next()
}

fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["TOKEN", "KEY", "SECRET", "PASSWORD"].iter().any(|word| name.contains(word))
}

/// A serde message as a sentence for a person, and what to do.
///
/// Messages of this crate's own readers hold their help after a line break.
fn explain(message: &str) -> (String, Option<String>) {
    if let Some((message, help)) = message.split_once('\n') {
        return (message.into(), Some(help.trim().into()));
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let first = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    if message.starts_with("unknown field") {
        if let Some(help) = crate::adapter::misplaced(first, &known) {
            return (format!("unknown field `{first}`"), Some(help.into()));
        }
        return (format!("unknown field `{first}`"), Some(suggest(first, &known)));
    }
    if message.starts_with("unknown variant") {
        return (format!("`{first}` is none of the values there are"), Some(suggest(first, &known)));
    }
    if let Some(plain) = wrong_type(message) {
        return plain;
    }
    if message.starts_with("missing field") {
        return (message.into(), Some(format!("add `{first} = ...` here")));
    }
    if message.starts_with("duplicate key") {
        return (message.into(), Some("say it once; a list of models is written with [[models]]".into()));
    }
    (message.into(), None)
}

/// serde's "invalid value" of a number, as what the key takes.
fn out_of_range(message: &str, key: &str) -> Option<String> {
    let (found, expected) = message.strip_prefix("invalid value: integer `")?.split_once("`, expected ")?;
    let range = match (expected, key) {
        ("u16", _) => format!("from 1 to {}", u16::MAX),
        ("u32", "context") => format!("from 1 to {}", u32::MAX),
        ("u32", _) => format!("from 1 to {}", crate::model::MOST),
        _ => "of at least 1".into(),
    };
    Some(format!("expected a whole number {range}, not {found}"))
}

/// serde's "invalid type" in plain words.
fn wrong_type(message: &str) -> Option<(String, Option<String>)> {
    let (found, expected) = message.strip_prefix("invalid type: ")?.rsplit_once(", expected ")?;
    if found == "map" && expected == "a sequence" {
        let help = "a list of tables is written with two brackets, as in [[models]]";
        return Some(("expected a list, not a single table".into(), Some(help.into())));
    }
    let expected = match expected {
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "u16" | "u32" | "u64" | "usize" | "i64" => "a whole number",
        "a map" => "a table",
        word if word.starts_with("struct ") => "a table",
        "path string" => "a path in quotes",
        other => other,
    };
    let found = match found.split(' ').next() {
        Some("string") => "text in quotes",
        Some("integer") => "a number",
        Some("floating") => "a number with a point",
        Some("boolean") => "true or false",
        Some("sequence") => "a list",
        Some("map") => "a table",
        _ => found,
    };
    Some((format!("expected {expected}, not {found}"), None))
}

/// "did you mean", or all there is.
pub(crate) fn suggest(word: &str, known: &[&str]) -> String {
    let close = |candidate: &&&str| {
        let similarity = strsim::jaro_winkler(&word.to_lowercase(), candidate);
        similarity > 0.82 || strsim::damerau_levenshtein(word, candidate) <= 1
    };
    let score = |candidate: &&str| strsim::damerau_levenshtein(word, candidate);
    match known.iter().filter(close).min_by_key(|candidate| score(candidate)) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => format!("there are: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show_in_an_excerpt() {
        assert_eq!(redact("  token = \"hunter2\"").0, "  token = \"***\"");
        assert_eq!(redact("bus.nkey = 'SUA'").0, "bus.nkey = \"***\"");
        assert_eq!(
            redact(r#"urls = ["nats://u:p@h:1", "nats://h"]"#).0,
            r#"urls = ["nats://***@h:1", "nats://h"]"#
        );
        assert_eq!(redact(r#"env = ["HF_TOKEN=hf_1", "A=b"]"#).0, r#"env = ["HF_TOKEN=***", "A=***"]"#);
        assert_eq!(redact(r#"args = ["HF_TOKEN=hf_1", "a=b"]"#).0, r#"args = ["HF_TOKEN=***", "a=b"]"#);
        assert_eq!(
            redact(r#"bus = { token = "a", root = "b" }"#).0,
            r#"bus = { token = "***", root = "b" }"#
        );
        for path in [r#"token_file="/no/tok""#, r#"nkey_file = "~/nkey""#] {
            assert_eq!(redact(path).0, path);
        }
    }

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_lists_what_there_is() {
        assert_eq!(suggest("idel_ttl", &["id", "idle_ttl"]), "did you mean `idle_ttl`?");
        assert_eq!(suggest("zebra", &["id", "idle_ttl"]), "there are: id, idle_ttl");
    }

    #[test]
    fn a_position_beyond_the_end_points_at_the_last_line() {
        let mut findings = Findings::new("f", "a = 1\nb = \n");
        findings.add(100..100, "x", "y");
        let problem = findings.problems.pop().unwrap();
        assert_eq!(problem.line, 2);
    }
}
