//! Traces: spans made by hand where a stage's times are known, and sent to a collector as OTLP.
//!
//! What may enter a span: names, times, ids, counts and codes of errors. What may not: content, keys, session names, or
//! what an error says in words.

mod context;
mod export;
mod span;

pub use context::Context;
pub use export::{Exporting, TraceError, start};
pub use opentelemetry::trace::SpanKind;
pub use span::{Span, Tracer};
