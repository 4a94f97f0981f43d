//! The metrics of requests, kept by model: a request looks its model up and counts, without making labels anew.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::metric;
use berth_wire::Usage;
use metrics::{Counter, Histogram};

thread_local! {
    static MODELS: RefCell<HashMap<Arc<str>, Rc<ModelMeters>>> = RefCell::default();
    static OFFERS: RefCell<HashMap<&'static str, Counter>> = RefCell::default();
    static STATUSES: RefCell<HashMap<u16, Counter>> = RefCell::default();
}

/// The metrics of one model, which is one of the catalog.
pub(crate) struct ModelMeters {
    model: Arc<str>,
    first_byte: Histogram,
    per_token: Histogram,
    input: Histogram,
    output: Histogram,
    queue: Histogram,
    load: Histogram,
    bytes: Counter,
    requests: RefCell<HashMap<(&'static str, u16), Histogram>>,
}

/// This thread's meters of a model.
pub(crate) fn of(model: &Arc<str>) -> Rc<ModelMeters> {
    MODELS.with_borrow_mut(|models| match models.get(model) {
        Some(meters) => Rc::clone(meters),
        None => {
            let meters = Rc::new(ModelMeters::new(Arc::clone(model)));
            models.insert(Arc::clone(model), Rc::clone(&meters));
            meters
        }
    })
}

/// Counts an answer of the endpoint.
pub(crate) fn answered(status: u16) {
    STATUSES.with_borrow_mut(|statuses| {
        statuses
            .entry(status)
            .or_insert_with(|| metrics::counter!(metric::HTTP_RESPONSES, "status" => status.to_string()))
            .increment(1);
    });
}

/// Counts what came of an offer of the express lane.
pub(crate) fn offer(outcome: &'static str) {
    OFFERS.with_borrow_mut(|offers| {
        offers
            .entry(outcome)
            .or_insert_with(|| metrics::counter!(metric::LANE_OFFERS, "outcome" => outcome))
            .increment(1);
    });
}

impl ModelMeters {
    fn new(model: Arc<str>) -> Self {
        let named =
            |name: &'static str| metrics::histogram!(name, "gen_ai_request_model" => Arc::clone(&model));
        let own = |name: &'static str| metrics::histogram!(name, "model" => Arc::clone(&model));
        let tokens = |kind: &'static str| {
            metrics::histogram!(
                metric::TOKENS,
                "gen_ai_request_model" => Arc::clone(&model),
                "gen_ai_token_type" => kind
            )
        };
        Self {
            first_byte: named(metric::TIME_TO_FIRST_TOKEN),
            per_token: named(metric::TIME_PER_OUTPUT_TOKEN),
            input: tokens("input"),
            output: tokens("output"),
            queue: own(metric::QUEUE_SECONDS),
            load: own(metric::LOAD_SECONDS),
            bytes: metrics::counter!(metric::OUTPUT_BYTES, "model" => Arc::clone(&model)),
            requests: RefCell::default(),
            model,
        }
    }

    /// An answer began so long after its request; of that it had waited `queued`, and `load` of it for an engine to load.
    pub(crate) fn began(&self, took: Duration, queued: Option<Duration>, load: Duration) {
        self.first_byte.record(took.as_secs_f64());
        if let Some(queued) = queued {
            self.queue.record(queued.as_secs_f64());
        }
        if !load.is_zero() {
            self.load.record(load.as_secs_f64());
        }
    }

    /// An engine told what a request took.
    pub(crate) fn used(&self, usage: &Usage) {
        for (meter, tokens) in [(&self.input, usage.prompt_tokens), (&self.output, usage.completion_tokens)] {
            if let Some(tokens) = tokens {
                meter.record(tokens as f64);
            }
        }
        let (Some(tokens), Some(first)) = (usage.completion_tokens, usage.first_byte) else { return };
        if tokens > 1 && usage.total > first {
            self.per_token.record((usage.total - first).as_secs_f64() / (tokens - 1) as f64);
        }
    }

    /// A request ended, or its client left: status 0 if it had been told none.
    pub(crate) fn ended(&self, route: &'static str, status: u16, took: Duration, bytes: u64) {
        self.bytes.increment(bytes);
        self.requests
            .borrow_mut()
            .entry((route, status))
            .or_insert_with(|| {
                metrics::histogram!(
                    metric::REQUEST_DURATION,
                    "gen_ai_request_model" => Arc::clone(&self.model),
                    "gen_ai_operation_name" => route,
                    "status" => if status == 0 { "gone".to_owned() } else { status.to_string() }
                )
            })
            .record(took.as_secs_f64());
    }
}
