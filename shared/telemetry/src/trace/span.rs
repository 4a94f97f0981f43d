//! Spans, and who makes them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use metrics::Counter;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

use crate::trace::Context;

/// The last seven bytes of a trace's id are random; those below the threshold are kept.
const RANDOM: u64 = (1 << 56) - 1;

/// Makes the spans of one role; the default makes none, and costs a look at a pointer.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Sink>>);

pub(super) struct Sink {
    pub(super) queue: mpsc::Sender<SpanData>,
    pub(super) dropped: Counter,
    pub(super) scope: InstrumentationScope,
    pub(super) per_million: u32,
}

impl Sink {
    fn keeps(&self, trace: TraceId) -> bool {
        let [.., a, b, c, d, e, f, g] = trace.to_bytes();
        let random = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
        u128::from(random) * 1_000_000 < u128::from(self.per_million) * u128::from(RANDOM + 1)
    }
}

impl Tracer {
    pub(super) fn new(sink: Sink) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Whether any span is made.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The span of what a client asks: within the trace that it names, which has then decided whether it is recorded,
    /// else the first of the trace `id`.
    #[must_use]
    pub fn enter(
        &self,
        parent: Option<&str>,
        id: u128,
        name: impl Into<Cow<'static, str>>,
    ) -> Option<Box<Span>> {
        let sink = self.0.as_ref()?;
        let (trace, parent) = match parent.and_then(Context::parse) {
            Some(parent) if parent.sampled => (parent.trace, parent.span),
            Some(_) => return None,
            None => (TraceId::from(id), SpanId::INVALID),
        };
        if parent == SpanId::INVALID && !sink.keeps(trace) {
            return None;
        }
        Some(Span::open(sink, trace, parent, SpanKind::Server, name.into()))
    }

    /// A span below one of another role, if that trace is recorded.
    #[must_use]
    pub fn within(
        &self,
        parent: Option<&str>,
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
    ) -> Option<Box<Span>> {
        let sink = self.0.as_ref()?;
        let parent = Context::parse(parent?).filter(|parent| parent.sampled)?;
        Some(Span::open(sink, parent.trace, parent.span, kind, name.into()))
    }
}

/// A span that has begun. Only one that is ended is told of.
pub struct Span {
    sink: Arc<Sink>,
    data: SpanData,
}

impl Span {
    fn open(
        sink: &Arc<Sink>,
        trace: TraceId,
        parent: SpanId,
        kind: SpanKind,
        name: Cow<'static, str>,
    ) -> Box<Self> {
        let id = RandomIdGenerator::default().new_span_id();
        let now = SystemTime::now();
        let data = SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent,
            parent_span_is_remote: true,
            span_kind: kind,
            name,
            start_time: now,
            end_time: now,
            attributes: Vec::with_capacity(16),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: sink.scope.clone(),
        };
        Box::new(Self { sink: Arc::clone(sink), data })
    }

    /// A span below this one.
    #[must_use]
    pub fn child(&self, kind: SpanKind, name: impl Into<Cow<'static, str>>) -> Box<Self> {
        let context = &self.data.span_context;
        let mut child = Self::open(&self.sink, context.trace_id(), context.span_id(), kind, name.into());
        child.data.parent_span_is_remote = false;
        child
    }

    /// What others are told, so that theirs are below this one.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let context = &self.data.span_context;
        Context { trace: context.trace_id(), span: context.span_id(), sampled: true }.to_string()
    }

    /// When it began, if that was not when it was made.
    pub fn began(&mut self, at: SystemTime) {
        self.data.start_time = at;
    }

    /// Calls it so from here on.
    pub fn rename(&mut self, name: impl Into<Cow<'static, str>>) {
        self.data.name = name.into();
    }

    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.data.attributes.push(KeyValue::new(key, value));
    }

    /// Says a number of it, where there is one.
    pub fn count(&mut self, key: &'static str, value: Option<u64>) {
        if let Some(value) = value {
            self.set(key, i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// Something that happened meanwhile.
    pub fn event(&mut self, name: &'static str, at: SystemTime) {
        self.data.events.events.push(Event::new(name, at, Vec::new(), 0));
    }

    /// It went wrong, by the code of an error.
    pub fn fail(&mut self, code: &str) {
        self.set("error.type", code.to_owned());
        self.data.status = Status::error(code.to_owned());
    }

    /// It is over.
    pub fn end(self: Box<Self>) {
        self.ended(SystemTime::now());
    }

    /// It was over at that time.
    pub fn ended(self: Box<Self>, at: SystemTime) {
        let Self { sink, mut data } = *self;
        data.end_time = at.max(data.start_time);
        if sink.queue.try_send(data).is_err() {
            sink.dropped.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(per_million: u32, room: usize) -> (Tracer, mpsc::Receiver<SpanData>) {
        let (queue, spans) = mpsc::channel(room);
        let scope = InstrumentationScope::builder("test").build();
        (Tracer::new(Sink { queue, dropped: Counter::noop(), scope, per_million }), spans)
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_client_decides_for_its_own_trace_and_the_share_for_others() {
        let (none, _spans) = tracer(0, 1);
        assert!(none.enter(None, 7, "a").is_none());
        let span = none.enter(Some(PARENT), 7, "a").unwrap();
        assert!(span.traceparent().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert_ne!(span.traceparent(), PARENT);
        let (all, _spans) = tracer(1_000_000, 1);
        assert!(all.enter(Some(&PARENT.replace("-01", "-00")), 7, "a").is_none());
        assert!(all.enter(None, u128::MAX, "a").is_some());
        assert!(all.within(None, SpanKind::Internal, "a").is_none());
        assert!(Tracer::default().enter(Some(PARENT), 7, "a").is_none());
    }

    #[test]
    fn about_the_share_of_traces_is_kept() {
        let (tracer, _spans) = tracer(100_000, 1);
        let kept = (0..10_000).filter(|_| {
            let id = u128::from_be_bytes(RandomIdGenerator::default().new_trace_id().to_bytes());
            tracer.enter(None, id, "a").is_some()
        });
        assert!((800..1200).contains(&kept.count()));
    }

    #[test]
    fn a_full_queue_loses_spans_and_holds_nobody_up() {
        let (tracer, mut spans) = tracer(1_000_000, 1);
        for _ in 0..3 {
            tracer.enter(None, 1, "a").unwrap().end();
        }
        assert!(spans.try_recv().is_ok() && spans.try_recv().is_err());
    }

    #[test]
    fn a_child_is_below_its_parent_and_ends_no_earlier_than_it_began() {
        let (tracer, mut spans) = tracer(1_000_000, 2);
        let parent = tracer.within(Some(PARENT), SpanKind::Internal, "a").unwrap();
        parent.child(SpanKind::Client, "b").ended(SystemTime::UNIX_EPOCH);
        parent.end();
        let (child, parent) = (spans.try_recv().unwrap(), spans.try_recv().unwrap());
        assert_eq!(child.parent_span_id, parent.span_context.span_id());
        assert_eq!(child.start_time, child.end_time);
        assert_eq!(parent.parent_span_id.to_string(), "b7ad6b7169203331");
    }
}
