//! What traces tell of an attempt: the call of its engine.

use std::time::SystemTime;

use berth_telemetry::trace::{Span, SpanKind, Tracer};
use berth_wire::{Attempt, Job, Outcome, Usage};

use crate::cell::EngineCell;

/// The span of an attempt that was taken; the engine is told of it instead of what is above it.
pub(crate) fn begin(
    tracer: &Tracer,
    job: &mut Job,
    attempt: Attempt,
    cell: &EngineCell,
) -> Option<Box<Span>> {
    if !tracer.is_on() {
        return None;
    }
    let asked = job.adapter.as_ref().unwrap_or(&job.model);
    let name = format!("{} {asked}", job.route.operation());
    let mut span = tracer.within(job.traceparent.as_deref(), SpanKind::Client, name)?;
    span.set("gen_ai.operation.name", job.route.operation());
    span.set("gen_ai.provider.name", cell.model().engine.kind.as_str());
    span.set("gen_ai.request.model", asked.to_string());
    span.set("berth.job", job.id.to_string());
    span.set("berth.attempt", attempt.to_string());
    span.set("berth.engine", cell.id().to_string());
    job.traceparent = Some(span.traceparent());
    Some(span)
}

/// Ends it as the attempt ended.
pub(crate) fn end(mut span: Box<Span>, outcome: &Outcome, usage: &Usage) {
    let now = SystemTime::now();
    span.count("gen_ai.usage.input_tokens", usage.prompt_tokens);
    span.count("gen_ai.usage.output_tokens", usage.completion_tokens);
    if let Some(at) = usage.first_byte.and_then(|first| now.checked_sub(usage.total.saturating_sub(first))) {
        span.event("first_token", at);
    }
    match outcome {
        Outcome::Completed => {}
        Outcome::Cancelled => span.fail("cancelled"),
        Outcome::Abandoned => span.fail("abandoned"),
        Outcome::Failed { error, .. } => span.fail(&error.code),
    }
    span.ended(now);
}
