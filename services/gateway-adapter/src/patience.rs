//! How long a request may wait: what its headers say, within our own limits.

use std::time::Duration;

use actix_web::http::header::HeaderMap;
use berth_wire::{ApiError, ErrorKind};

use crate::error;

/// No header asks for more than a day.
const MOST: f64 = 86_400.0;

/// How long a client waits, and what it is told when that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Until the answer, or of a stream until its first data.
    pub(crate) wait: Duration,
    /// The client's own deadline: after it nobody wants the answer.
    pub(crate) deadline: Option<Duration>,
}

impl Patience {
    /// Of a request with these headers; we wait for `limit` at most. A client that streams is kept by heartbeats, so
    /// there only the header that asks for it counts.
    pub(crate) fn of(headers: &HeaderMap, stream: bool, limit: Duration) -> Result<Self, ApiError> {
        let deadline = seconds(headers, "x-berth-deadline")?;
        if deadline == Some(Duration::ZERO) {
            return Err(invalid("x-berth-deadline"));
        }
        let own = if stream { None } else { time_out(headers).map(before) };
        let wait = [own, deadline].into_iter().flatten().fold(limit, Duration::min);
        Ok(Self { wait, deadline })
    }

    /// Whether the end of the wait is the end of the job, by the client's own word.
    pub(crate) fn is_final(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= self.wait)
    }

    /// What a client is told of an error: that its job's time is over may be the scheduler's word on what is our own
    /// limit.
    pub(crate) fn said(&self, error: ApiError) -> ApiError {
        let ours = matches!(error.code.as_str(), error::DEADLINE_EXCEEDED | error::WAIT_LIMIT);
        if ours && self.deadline.is_none() { self.over() } else { error }
    }

    /// What a client is told that has waited in vain.
    pub(crate) fn over(&self) -> ApiError {
        if self.is_final() { error::expired(self.wait) } else { error::waited(self.wait) }
    }
}

/// The time-out that the client's SDK has: it writes it by itself, and not always as a number.
pub(crate) fn time_out(headers: &HeaderMap) -> Option<Duration> {
    let read = seconds(headers, "x-stainless-read-timeout").unwrap_or_default();
    read.or_else(|| seconds(headers, "x-stainless-timeout").unwrap_or_default())
}

/// Our answer must be there before the client gives up. Clients that count in whole seconds say 0 for less than one.
fn before(own: Duration) -> Duration {
    let own = if own.is_zero() { Duration::from_secs(1) } else { own };
    own.saturating_sub((own / 10).min(Duration::from_secs(2)))
}

fn seconds(headers: &HeaderMap, name: &'static str) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<f64>().ok())
        .filter(|seconds| *seconds >= 0.0)
        .map(|seconds| Some(Duration::from_secs_f64(seconds.min(MOST))))
        .ok_or_else(|| invalid(name))
}

fn invalid(name: &str) -> ApiError {
    let message = format!("the header `{name}` must be a number of seconds above 0, as in `{name}: 30`");
    ApiError::new(ErrorKind::InvalidRequest, "invalid_header", message).param(name)
}

/// How often the client's SDK has sent this request before; none: it does not count.
pub(crate) fn retries(headers: &HeaderMap) -> Option<u32> {
    headers.get("x-stainless-retry-count")?.to_str().ok()?.trim().parse().ok()
}

/// The client's name for what it wants done once.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let name = "idempotency-key";
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().ok().map(str::trim).filter(|text| (1..=255).contains(&text.len()));
    text.map(|text| Some(text.to_owned())).ok_or_else(|| {
        let message = format!("the header `{name}` must have 1 to 255 characters of ASCII");
        ApiError::new(ErrorKind::InvalidRequest, "invalid_header", message).param(name)
    })
}

/// Whether the client would rather come back for its answer (RFC 7240).
pub(crate) fn prefers_async(headers: &HeaderMap) -> bool {
    headers
        .get_all("prefer")
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split([',', ';']))
        .any(|preference| preference.trim().eq_ignore_ascii_case("respond-async"))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(240);

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn wait(pairs: &[(&'static str, &'static str)], stream: bool) -> Duration {
        Patience::of(&headers(pairs), stream, LIMIT).unwrap().wait
    }

    #[test]
    fn a_clients_own_time_out_bounds_only_answers_that_do_not_stream() {
        let sdk = [("x-stainless-read-timeout", "60"), ("x-stainless-timeout", "5")];
        assert_eq!(wait(&sdk, false), Duration::from_secs(58));
        assert_eq!(wait(&sdk, true), LIMIT);
        assert_eq!(wait(&[("x-stainless-timeout", "600")], false), LIMIT);
        assert_eq!(wait(&[("x-stainless-timeout", "inf")], false), LIMIT);
        assert_eq!(wait(&[("x-stainless-timeout", "0")], false), Duration::from_millis(900));
        for odd in ["NaN", "", "Timeout(timeout=60)", "NOT_GIVEN"] {
            assert_eq!(wait(&[("x-stainless-timeout", odd)], false), LIMIT, "{odd}");
        }
        assert_eq!(wait(&[("x-berth-deadline", "30")], true), Duration::from_secs(30));
        let both = [("x-stainless-timeout", "10"), ("x-berth-deadline", "30")];
        assert_eq!(wait(&both, false), Duration::from_secs(9));
    }

    #[test]
    fn only_the_deadline_ends_the_job_with_the_wait() {
        let over = |pairs: &[(&'static str, &'static str)]| {
            Patience::of(&headers(pairs), false, LIMIT).unwrap().over().kind
        };
        assert_eq!(over(&[("x-berth-deadline", "30")]), ErrorKind::Expired);
        assert_eq!(over(&[("x-berth-deadline", "300")]), ErrorKind::Unavailable);
        assert_eq!(
            over(&[("x-stainless-timeout", "10"), ("x-berth-deadline", "30")]),
            ErrorKind::Unavailable
        );
    }

    #[test]
    fn our_own_limit_is_told_as_such_whoever_notices_it() {
        let said = |pairs: &[(&'static str, &'static str)]| {
            let late = error::expired(Duration::from_secs(1));
            let theirs = ApiError { code: error::WAIT_LIMIT.into(), ..late.clone() };
            let patience = Patience::of(&headers(pairs), false, LIMIT).unwrap();
            assert!(patience.deadline.is_some() || patience.said(theirs) == patience.over());
            patience.said(late).kind
        };
        assert_eq!(said(&[]), ErrorKind::Unavailable);
        assert_eq!(said(&[("x-berth-deadline", "30")]), ErrorKind::Expired);
    }

    #[test]
    fn a_header_that_is_no_time_is_named() {
        for (name, value) in
            [("x-berth-deadline", "0"), ("x-berth-deadline", "-1"), ("x-berth-deadline", "soon")]
        {
            let error = Patience::of(&headers(&[(name, value)]), true, LIMIT).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.contains(name), "{}", error.message);
        }
        assert_eq!(retries(&headers(&[("x-stainless-retry-count", "2")])), Some(2));
        assert_eq!(retries(&headers(&[("x-stainless-retry-count", "two")])), None);
        assert!(idempotency_key(&headers(&[("idempotency-key", " ")])).is_err());
    }

    #[test]
    fn respond_async_is_found_among_other_preferences() {
        assert!(prefers_async(&headers(&[("prefer", "wait=10, Respond-Async")])));
        assert!(!prefers_async(&headers(&[("prefer", "respond-asynchronously")])));
    }
}
