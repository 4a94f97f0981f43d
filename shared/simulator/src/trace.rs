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

/// Where the columns stand.
struct Columns {
    arrival: usize,
    session: usize,
    model: usize,
    prompt: usize,
    output: usize,
}

impl Columns {
    fn find(heading: &StringRecord) -> Result<Self, TraceError> {
        let at = |column: &'static str| {
            let found = || heading.iter().collect::<Vec<_>>().join(",");
            let place = heading.iter().position(|name| name.trim_start_matches('\u{feff}') == column);
            place.ok_or_else(|| TraceError::Column { column, found: found() })
        };
        Ok(Self {
            arrival: at("arrival_s")?,
            session: at("session")?,
            model: at("model")?,
            prompt: at("prompt_tokens")?,
            output: at("output_tokens")?,
        })
    }

    fn read(&self, line: u64, record: &StringRecord) -> Result<Request, TraceError> {
        let text = |place, column| record.get(place).ok_or(TraceError::Short { line, column });
        let wrong = |column, value: &str, rule| TraceError::Field { line, column, value: value.into(), rule };
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
