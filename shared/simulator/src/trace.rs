//! Traces: CSV with a heading, one request a line.

use std::io::{self, BufRead, BufReader, Read};

use csv::{ReaderBuilder, StringRecord};
use thiserror::Error;

use crate::time::{Micros, micros};

const COLUMNS: &str = "arrival_s,session,model,prompt_tokens,output_tokens";
/// A bound that no honest number passes, so that sums of them cannot overflow.
const MOST_SECONDS: f64 = 1e9;
const MOST_TOKENS: u64 = 1_000_000_000;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The line of the trace it stands on, from 1; the heading is the first.
    pub line: u64,
    /// When it arrives, since the trace began.
    pub arrival: Micros,
    /// The conversation it belongs to.
    pub session: String,
    /// The model it asks for.
    pub model: String,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Tokens of its answer.
    pub output_tokens: u64,
}

/// A text that is no trace.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The heading lacks a column.
    #[error(
        "line 1: there is no column `{column}` among `{found}`; a trace begins with the line `{COLUMNS}`"
    )]
    Column {
        /// What is missing.
        column: &'static str,
        /// The heading there is.
        found: String,
    },
    /// The heading has a column more than once.
    #[error("line 1: the column `{column}` is there twice; which of the two counts cannot be known")]
    Twice {
        /// Which.
        column: &'static str,
    },
    /// A quote is opened and the line ends before it is closed.
    #[error(
        "line {line}{}: the quote before `{text}` is not closed; a request stands on one line, and a quote within quotes \
         is written twice",
        of(column)
    )]
    Quote {
        /// Where, from 1.
        line: u64,
        /// In which column; empty in the heading.
        column: String,
        /// How what follows begins.
        text: String,
    },
    /// A line goes on after the last column.
    #[error("line {line}: there is `{value}` behind {column}, the last of {columns} columns")]
    Surplus {
        /// Where, from 1.
        line: u64,
        /// The last column.
        column: String,
        /// How many there are.
        columns: usize,
        /// The first field too many.
        value: String,
    },
    /// A field is missing or is not what it should be.
    #[error("line {line}, {column}: `{value}` is not {rule}")]
    Field {
        /// Where, from 1.
        line: u64,
        /// Which field.
        column: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        rule: &'static str,
    },
    /// A line ends too early.
    #[error("line {line}: {column} is missing; every line has the fields `{COLUMNS}`")]
    Short {
        /// Where, from 1.
        line: u64,
        /// The first field that is missing.
        column: &'static str,
    },
    /// It cannot be read on.
    #[error("line {line}: it cannot be read ({source}); a trace is text in UTF-8, one request a line")]
    Unreadable {
        /// Where, from 1.
        line: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is nothing below the heading.
    #[error("it has no requests; a trace has the line `{COLUMNS}` and then one line for each request")]
    Empty,
}

fn of(column: &str) -> String {
    if column.is_empty() { String::new() } else { format!(", {column}") }
}

/// Reads a trace. Columns may stand in any order; others than the five are ignored.
///
/// # Errors
/// Names the line and the field that is wrong.
pub fn read_trace(input: impl Read) -> Result<Vec<Request>, TraceError> {
    let mut input = BufReader::new(input);
    let mut columns = None;
    let mut requests = Vec::new();
    let mut text = String::new();
    for line in 1.. {
        text.clear();
        let unreadable = |source| TraceError::Unreadable { line, source };
        if input.read_line(&mut text).map_err(unreadable)? == 0 {
            break;
        }
        let record = split(&text).map_err(|error| unreadable(error.into()))?;
        if is_open(&text).map_err(|error| unreadable(error.into()))? {
            return Err(open_quote(line, &record, columns.as_ref()));
        }
        match &columns {
            None => columns = Some(Columns::find(&record)?),
            // Blank lines say nothing.
            Some(_) if text.trim().is_empty() => {}
            Some(columns) => requests.push(columns.read(line, &record)?),
        }
    }
    if columns.is_none() {
        Columns::find(&StringRecord::new())?;
    }
    if requests.is_empty() { Err(TraceError::Empty) } else { Ok(requests) }
}

/// The fields of one line. Each line is read by itself, so that its number is sure whatever came before it.
fn split(text: &str) -> Result<StringRecord, csv::Error> {
    let builder = &mut ReaderBuilder::new();
    let builder = builder.has_headers(false).flexible(true).trim(csv::Trim::All).buffer_capacity(256);
    let mut record = StringRecord::new();
    builder.from_reader(text.as_bytes()).read_record(&mut record)?;
    Ok(record)
}

/// Whether the line ends within quotes: then what comes behind it would belong to it.
fn is_open(text: &str) -> Result<bool, csv::Error> {
    // Most lines have none, and need no second look.
    if !text.contains('"') {
        return Ok(false);
    }
    let builder = &mut ReaderBuilder::new();
    let builder = builder.has_headers(false).flexible(true).buffer_capacity(256);
    let mut reader = builder.from_reader(text.trim_end().as_bytes().chain(&b"\nnext"[..]));
    let mut record = StringRecord::new();
    reader.read_record(&mut record)?;
    Ok(!reader.read_record(&mut record)?)
}

/// The field with the open quote is the last, since it took all that follows.
fn open_quote(line: u64, record: &StringRecord, columns: Option<&Columns>) -> TraceError {
    let column = columns.and_then(|columns| columns.names.get(record.len().saturating_sub(1)));
    let text =
        record.iter().next_back().unwrap_or_default().chars().filter(|c| !c.is_control()).take(40).collect();
    TraceError::Quote { line, column: column.unwrap_or_default().into(), text }
}

/// Where the columns stand.
struct Columns {
    names: StringRecord,
    arrival: usize,
    session: usize,
    model: usize,
    prompt: usize,
    output: usize,
}

impl Columns {
    fn find(heading: &StringRecord) -> Result<Self, TraceError> {
        let names: StringRecord = heading.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
        let at = |column: &'static str| {
            let found = || names.iter().collect::<Vec<_>>().join(",");
            let mut places = names.iter().enumerate().filter(|(_, name)| *name == column);
            let place = places.next().ok_or_else(|| TraceError::Column { column, found: found() })?;
            if places.next().is_some() {
                return Err(TraceError::Twice { column });
            }
            Ok(place.0)
        };
        Ok(Self {
            arrival: at("arrival_s")?,
            session: at("session")?,
            model: at("model")?,
            prompt: at("prompt_tokens")?,
            output: at("output_tokens")?,
            names,
        })
    }

    fn read(&self, line: u64, record: &StringRecord) -> Result<Request, TraceError> {
        let text = |place, column| record.get(place).ok_or(TraceError::Short { line, column });
        let wrong = |column, value: &str, rule| TraceError::Field { line, column, value: value.into(), rule };
        if let Some(value) = record.get(self.names.len()) {
            let column = self.names.iter().next_back().unwrap_or_default().into();
            return Err(TraceError::Surplus { line, column, columns: self.names.len(), value: value.into() });
        }
        let arrival = text(self.arrival, "arrival_s")?;
        let session = text(self.session, "session")?;
        let model = text(self.model, "model")?;
        let tokens = |place, column| -> Result<u64, TraceError> {
            let value = text(place, column)?;
            let count = value.parse().ok().filter(|count| *count <= MOST_TOKENS);
            count.ok_or_else(|| wrong(column, value, "a whole number of tokens, up to 1000000000"))
        };
        let prompt_tokens = tokens(self.prompt, "prompt_tokens")?;
        let output_tokens = tokens(self.output, "output_tokens")?;
        let seconds = arrival.parse().ok().filter(|seconds| (0.0..=MOST_SECONDS).contains(seconds));
        let Some(seconds) = seconds else {
            return Err(wrong(
                "arrival_s",
                arrival,
                "a number of seconds since the trace began, as in `12.345`",
            ));
        };
        if model.is_empty() {
            return Err(wrong("model", model, "the name of a model"));
        }
        Ok(Request {
            line,
            arrival: micros(seconds),
            session: session.into(),
            model: model.into(),
            prompt_tokens,
            output_tokens,
        })
    }
}
