//! The metrics as a page for people.

use std::fmt::Write;

use crate::metric::{ALL, Buckets, Kind};

const HEAD: &str = "# Metrics

Made from `shared/telemetry/src/metric.rs` by `cargo run -p berth-telemetry --example metrics > docs/metrics.md`.

Every service serves its own as Prometheus text on `/metrics`, with `/livez` and `/readyz` beside it: the gateway at its
endpoint (an API key of scope admin is asked for, where keys are), and each of the four where `[gateway] metrics_listen`,
`[scheduler] metrics_listen`, `[host] metrics_listen` or `[health] listen` says, without a key. By default only the
gateway's endpoint serves them. All roles of one `berth up` are one process and share one set. None of these routes wakes
or keeps an engine.

Labels are bounded: `model` and `gen_ai_request_model` are ids of the catalog, never what a client wrote; `key` is the name of
a known API key; `host` and `accelerator` are those that report. No session, job, address or content is in any of them.
The names `gen_ai_*` and their labels are those of
[OpenTelemetry's conventions](https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/) as Prometheus writes them;
`gen_ai_operation_name` is the route.

| metric | kind | labels | recorded by | what it tells |
|---|---|---|---|---|
";

/// The page `docs/metrics.md`.
#[must_use]
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for metric in ALL {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            metric.name,
            metric.kind.as_str(),
            labels.join(", "),
            metric.by,
            metric.help.trim()
        );
    }
    page.push_str("\nBuckets of the histograms:\n\n");
    for (buckets, of) in [
        (Buckets::Seconds, "requests, waits and loads, in seconds"),
        (Buckets::TokenSeconds, "time per output token, in seconds"),
        (Buckets::DecisionSeconds, "decisions, in seconds"),
        (Buckets::Tokens, "tokens"),
    ] {
        let names: Vec<String> = ALL
            .iter()
            .filter(|metric| metric.kind == Kind::Histogram(buckets))
            .map(|metric| format!("`{}`", metric.name))
            .collect();
        let bounds: Vec<String> = buckets.bounds().iter().map(f64::to_string).collect();
        let _ = writeln!(page, "- {of} ({}): {}", names.join(", "), bounds.join(", "));
    }
    page
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_in_docs_is_as_the_code_is() {
        let committed = include_str!("../../../docs/metrics.md");
        assert!(
            committed == super::page(),
            "stale: run `cargo run -p berth-telemetry --example metrics > docs/metrics.md`"
        );
    }
}
