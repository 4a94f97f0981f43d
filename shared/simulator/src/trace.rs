//! Traces: CSV with a heading, one request a line.

use std::io::Read;

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
    /// It cannot be read at all.
    #[error("it cannot be read as CSV in UTF-8: {0}")]
    Csv(#[from] csv::Error),
    /// There is nothing below the heading.
    #[error("it has no requests; a trace has the line `{COLUMNS}` and then one line for each request")]
    Empty,
}

/// Reads a trace. Columns may stand in any order; others than the five are ignored.
///
/// # Errors
/// Names the line and the field that is wrong.
pub fn read_trace(input: impl Read) -> Result<Vec<Request>, TraceError> {
    let mut reader = ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(input);
    let columns = Columns::find(reader.headers()?)?;
    let mut requests = Vec::new();
    let mut record = StringRecord::new();
    while reader.read_record(&mut record)? {
        requests.push(columns.read(&record)?);
    }
    if requests.is_empty() { Err(TraceError::Empty) } else { Ok(requests) }
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

    fn read(&self, record: &StringRecord) -> Result<Request, TraceError> {
        let line = record.position().map_or(0, csv::Position::line);
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
