//! What one API key may still use at this gateway: requests at a time, requests and tokens within a minute.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use berth_telemetry::metric;
use berth_wire::{ApiError, ErrorKind, KeyId, KeyLimits, Usage};

use crate::bucket::Bucket;

/// When a key at its limit of concurrent requests may come back: nobody knows how long answers take.
const AGAIN: Duration = Duration::from_secs(1);

const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// A key's books. All threads of a gateway share them; nothing is awaited while they are locked.
#[derive(Debug)]
pub(crate) struct Allowance {
    name: Arc<str>,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    limits: KeyLimits,
    running: u32,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Allowance {
    pub(crate) fn new(name: &KeyId, limits: KeyLimits) -> Arc<Self> {
        let allowance = Self { name: Arc::from(name.as_str()), books: Mutex::default() };
        allowance.limit(limits, Instant::now());
        Arc::new(allowance)
    }

    /// Other limits, from now on; what was used stays used.
    pub(crate) fn limit(&self, limits: KeyLimits, now: Instant) {
        let mut books = self.books();
        let bucket = |held: &mut Option<Bucket>, limit: Option<u32>| match (held.as_mut(), limit) {
            (Some(bucket), Some(limit)) => bucket.set_limit(limit, now),
            (None, Some(limit)) => *held = Some(Bucket::new(limit, now)),
            (_, None) => *held = None,
        };
        bucket(&mut books.requests, limits.requests_per_minute);
        bucket(&mut books.tokens, limits.tokens_per_minute);
        books.limits = limits;
    }

    /// Lets a request in, before its body is read.
    pub(crate) fn begin(self: &Arc<Self>, now: Instant) -> Result<Permit, ApiError> {
        let mut books = self.books();
        if let Some(most) = books.limits.concurrency
            && books.running >= most
        {
            drop(books);
            let message = format!("this API key has {most} requests waiting or running, which is its most");
            return Err(self.over("concurrency", &message, AGAIN));
        }
        if let Some(requests) = &mut books.requests
            && let Err(wait) = requests.take(1, now)
        {
            let limit = requests.limit();
            drop(books);
            let message = format!("this API key has used its {limit} requests per minute");
            return Err(self.over("requests_per_minute", &message, wait));
        }
        books.running += 1;
        drop(books);
        metrics::counter!(metric::KEY_REQUESTS, "key" => Arc::clone(&self.name)).increment(1);
        Ok(Permit { allowance: Arc::clone(self), reserved: 0, served: false, settled: false })
    }

    fn over(&self, limit: &'static str, message: &str, wait: Duration) -> ApiError {
        metrics::counter!(metric::KEY_REFUSED, "key" => Arc::clone(&self.name), "limit" => limit)
            .increment(1);
        let message = format!("{message}; try again in {} s", wait.as_millis().div_ceil(1000).max(1));
        ApiError::new(ErrorKind::Overloaded, "rate_limit_exceeded", message).param(limit).retry_after(wait)
    }

    /// `x-ratelimit-*`, as OpenAI writes them.
    pub(crate) fn headers(&self, headers: &mut HeaderMap, now: Instant) {
        let mut books = self.books();
        let books = &mut *books;
        let buckets = [(&REQUESTS, books.requests.as_mut()), (&TOKENS, books.tokens.as_mut())];
        for ([limit, remaining, until], bucket) in buckets {
            let Some(bucket) = bucket else { continue };
            headers.insert(HeaderName::from_static(limit), HeaderValue::from(bucket.limit()));
            headers.insert(HeaderName::from_static(remaining), HeaderValue::from(bucket.left(now)));
            headers.insert(HeaderName::from_static(until), reset(bucket.until_full(now)));
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Every change is a single step: a panic leaves nothing half done.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A span as `6m0s`, `1.5s` or `20ms`.
fn reset(span: Duration) -> HeaderValue {
    let ms = span.as_nanos().div_ceil(1_000_000);
    let text = match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", (ms as f64) / 1000.0),
        _ => format!("{}m{}s", ms.div_ceil(1000) / 60, ms.div_ceil(1000) % 60),
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0ms"))
}

/// One request that was let in. Dropped, its place is free again.
#[derive(Debug)]
pub(crate) struct Permit {
    allowance: Arc<Allowance>,
    /// Tokens taken for it ahead of time.
    reserved: u64,
    /// Some of the answer has come.
    served: bool,
    settled: bool,
}

impl Permit {
    /// Takes about as many tokens as the prompt has.
    pub(crate) fn reserve(&mut self, tokens: u64, now: Instant) -> Result<(), ApiError> {
        let mut books = self.allowance.books();
        if let Some(bucket) = &mut books.tokens
            && let Err(wait) = bucket.take(tokens, now)
        {
            let limit = bucket.limit();
            drop(books);
            let message = format!("this API key has used its {limit} tokens per minute");
            return Err(self.allowance.over("tokens_per_minute", &message, wait));
        }
        drop(books);
        self.reserved += tokens;
        Ok(())
    }

    /// The key may not make this request at all: it does not count.
    pub(crate) fn forgive(self, now: Instant) {
        if let Some(requests) = &mut self.allowance.books().requests {
            requests.refund(1, now);
        }
    }

    /// The engine answers: what was reserved is used.
    pub(crate) fn served(&mut self) {
        self.served = true;
    }

    /// The tokens that it really took, where the engine told.
    pub(crate) fn settle(&mut self, usage: &Usage, now: Instant) {
        for (kind, tokens) in [("input", usage.prompt_tokens), ("output", usage.completion_tokens)] {
            let key = Arc::clone(&self.allowance.name);
            metrics::counter!(metric::KEY_TOKENS, "key" => key, "type" => kind)
                .increment(tokens.unwrap_or_default());
        }
        if self.settled || (usage.prompt_tokens.is_none() && usage.completion_tokens.is_none()) {
            return;
        }
        self.settled = true;
        let used =
            usage.prompt_tokens.unwrap_or(self.reserved).saturating_add(usage.completion_tokens.unwrap_or(0));
        if let Some(bucket) = &mut self.allowance.books().tokens {
            match used.checked_sub(self.reserved) {
                Some(more) => bucket.charge(more),
                None => bucket.refund(self.reserved - used, now),
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut books = self.allowance.books();
        books.running = books.running.saturating_sub(1);
        // Nothing was served for it.
        if !self.served
            && !self.settled
            && let Some(bucket) = &mut books.tokens
        {
            bucket.refund(self.reserved, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(limits: KeyLimits) -> Arc<Allowance> {
        Allowance::new(&"k".into(), limits)
    }

    fn header(allowance: &Allowance, name: &str, now: Instant) -> String {
        let mut headers = HeaderMap::new();
        allowance.headers(&mut headers, now);
        headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    #[test]
    fn a_place_is_free_again_when_its_request_is_over() {
        let allowance = of(KeyLimits { concurrency: Some(1), ..KeyLimits::default() });
        let now = Instant::now();
        let permit = allowance.begin(now).unwrap();
        let error = allowance.begin(now).unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.param.as_deref()),
            ("rate_limit_exceeded", Some("concurrency"))
        );
        drop(permit);
        allowance.begin(now).unwrap();
    }

    #[test]
    fn tokens_are_reserved_and_then_corrected() {
        let allowance = of(KeyLimits { tokens_per_minute: Some(600), ..KeyLimits::default() });
        let now = Instant::now();
        let left = || header(&allowance, "x-ratelimit-remaining-tokens", now);
        let usage = |prompt, completion| Usage {
            prompt_tokens: Some(prompt),
            completion_tokens: Some(completion),
            ..Usage::default()
        };
        let mut permit = allowance.begin(now).unwrap();
        permit.reserve(100, now).unwrap();
        assert_eq!(left(), "500");
        permit.served();
        permit.settle(&usage(40, 10), now);
        permit.settle(&usage(40, 10), now);
        drop(permit);
        assert_eq!(left(), "550", "once");
        // One that failed before any of its answer came costs nothing, one that was left in the midst its estimate.
        let mut failed = allowance.begin(now).unwrap();
        failed.reserve(100, now).unwrap();
        drop(failed);
        assert_eq!(left(), "550");
        let mut left_early = allowance.begin(now).unwrap();
        left_early.reserve(100, now).unwrap();
        left_early.served();
        drop(left_early);
        assert_eq!(left(), "450");
        // More than there is: owed, and the next one waits for it.
        let mut long = allowance.begin(now).unwrap();
        long.reserve(1, now).unwrap();
        long.settle(&usage(1, 1049), now);
        let error = allowance.begin(now).unwrap().reserve(1, now).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tokens_per_minute"));
        let owed = error.retry_after.unwrap();
        assert!((60..=61).contains(&owed.as_secs()), "{owed:?}");
    }

    #[test]
    fn headers_are_written_as_openai_writes_them() {
        let limits = KeyLimits { requests_per_minute: Some(2), ..KeyLimits::default() };
        let allowance = of(limits);
        let now = Instant::now() + Duration::from_secs(1);
        allowance.begin(now).unwrap();
        allowance.begin(now).unwrap();
        let shown = |name: &str| header(&allowance, name, now);
        assert_eq!(shown("x-ratelimit-limit-requests"), "2");
        assert_eq!(shown("x-ratelimit-remaining-requests"), "0");
        assert_eq!(shown("x-ratelimit-reset-requests"), "1m0s");
        assert_eq!(shown("x-ratelimit-limit-tokens"), "", "no limit, no header");
        assert_eq!(allowance.begin(now).unwrap_err().retry_after, Some(Duration::from_secs(30)));
        allowance.limit(KeyLimits { requests_per_minute: Some(5), ..limits }, now);
        assert_eq!(shown("x-ratelimit-remaining-requests"), "3", "what was used stays used");
        assert_eq!(reset(Duration::from_millis(1500)), "1.5s");
        assert_eq!(reset(Duration::from_micros(19_100)), "20ms");
    }
}
