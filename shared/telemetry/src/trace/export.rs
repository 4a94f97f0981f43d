//! Spans on their way to a collector: a bounded queue, batches, and an end that sends what is left.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use berth_config::TelemetryConfig;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::InstrumentationScope;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Chain;
use crate::metric;
use crate::post::{PostError, Poster};
use crate::trace::Tracer;
use crate::trace::span::Sink;

/// Spans that may wait; further ones are dropped and counted.
const QUEUE: usize = 4096;
/// Spans of one post.
const BATCH: usize = 512;
/// How long a batch waits for more.
const LINGER: Duration = Duration::from_secs(1);
/// How long a collector may take.
const POST: Duration = Duration::from_secs(10);
/// How long the last posts may take.
const LAST: Duration = Duration::from_secs(3);

/// Why there are no traces.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The exporter.
    #[error("traces cannot be sent as [telemetry] says")]
    Exporter(#[from] ExporterBuildError),
    /// The HTTP client.
    #[error("traces cannot be sent as [telemetry] says")]
    Client(#[from] PostError),
}

/// The task that sends spans.
pub struct Exporting(Option<(JoinHandle<()>, CancellationToken)>);

impl Exporting {
    /// Sends what is left, within a bounded time.
    pub async fn stop(self) {
        let Some((mut task, stop)) = self.0 else { return };
        stop.cancel();
        if tokio::time::timeout(LAST, &mut task).await.is_err() {
            task.abort();
            warn!("the last spans did not reach the collector in time");
        }
    }
}

/// Starts sending the spans of `role`, on the current runtime, if a collector is configured.
///
/// # Errors
/// When what is configured cannot be used.
pub fn start(
    config: &TelemetryConfig,
    role: &str,
    instance: &str,
) -> Result<(Tracer, Exporting), TraceError> {
    let Some(url) = &config.traces_url else { return Ok((Tracer::default(), Exporting(None))) };
    let client = Collector { poster: Poster::new(config.ca.as_deref())?, why: Arc::default() };
    let why = Arc::clone(&client.why);
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url)
        .with_timeout(POST)
        .build()?;
    let service = match &config.service {
        None => format!("berth-{role}"),
        Some(name) if config.several_roles => format!("{name}-{role}"),
        Some(name) => name.clone(),
    };
    exporter.set_resource(
        &Resource::builder()
            .with_service_name(service)
            .with_attribute(opentelemetry::KeyValue::new("service.instance.id", instance.to_owned()))
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build(),
    );
    let (queue, spans) = mpsc::channel(QUEUE);
    let counted = |outcome: &'static str| metrics::counter!(metric::SPANS, "outcome" => outcome);
    let tracer = Tracer::new(Sink {
        queue,
        dropped: counted("dropped"),
        scope: InstrumentationScope::builder("berth").with_version(env!("CARGO_PKG_VERSION")).build(),
        per_million: config.per_million,
    });
    let stop = CancellationToken::new();
    let post = Post { exporter, sent: counted("sent"), failed: counted("failed"), failing: false, why };
    let task = tokio::spawn(export(post, spans, stop.clone()));
    Ok((tracer, Exporting(Some((task, stop)))))
}

async fn export(mut post: Post, mut spans: mpsc::Receiver<SpanData>, stop: CancellationToken) {
    let mut batch = Vec::new();
    while let Some(Some(first)) = stop.run_until_cancelled(spans.recv()).await {
        batch.push(first);
        let fill = async {
            while batch.len() < BATCH {
                let Some(span) = spans.recv().await else { return };
                batch.push(span);
            }
        };
        let _ = tokio::time::timeout(LINGER, stop.run_until_cancelled(fill)).await;
        post.send(std::mem::take(&mut batch)).await;
    }
    spans.close();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        post.send(std::mem::take(&mut batch)).await;
    }
}

struct Post {
    exporter: SpanExporter,
    sent: metrics::Counter,
    failed: metrics::Counter,
    /// It has been said that the collector does not take them.
    failing: bool,
    why: Why,
}

/// What went wrong last, in more words than the exporter has for it.
type Why = Arc<Mutex<String>>;

impl Post {
    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                self.sent.increment(spans);
                if std::mem::take(&mut self.failing) {
                    info!("the collector takes traces again");
                }
            }
            Err(error) => {
                self.failed.increment(spans);
                if !std::mem::replace(&mut self.failing, true) {
                    let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    warn!(
                        error = %Chain(&error),
                        why,
                        "the collector does not take traces, which are lost until it does; see that [telemetry] otlp \
                         (OTEL_EXPORTER_OTLP_ENDPOINT) is the address of one that takes OTLP over HTTP"
                    );
                }
            }
        }
    }
}

/// What the exporter posts by.
#[derive(Debug)]
struct Collector {
    poster: Poster,
    why: Why,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.poster.send(request, POST).await;
        let why = match &answer {
            Ok(answer) => answer.status().to_string(),
            Err(error) => Chain(error).to_string(),
        };
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
        Ok(answer?)
    }
}
