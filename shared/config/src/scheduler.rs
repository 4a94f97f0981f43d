//! `[scheduler]`, checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::problem::Findings;
use crate::raw::RawScheduler;
use crate::resolve::{below, listener};
use crate::settings::SchedulerConfig;
use crate::spanned::Spanned;

/// How long a lease may last: the bucket forgets what was not written for 25 h.
pub(crate) const LEASE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// The least that a host may be silent for: they report every 5 s.
pub(crate) const HOST_TIMEOUT: Duration = Duration::from_secs(6);

pub(crate) fn resolve(raw: &RawScheduler, base: &Path, findings: &mut Findings<'_>) -> SchedulerConfig {
    let default = SchedulerConfig::default();
    let host_timeout = raw.host_timeout.as_ref().map_or(default.host_timeout, |span| {
        if span.get_ref().0 < HOST_TIMEOUT {
            findings.add(span.span(), "hosts report every 5s", "a host may be silent for at least 6s");
        }
        span.get_ref().0
    });
    let lease_ceiling = raw.lease_ceiling.as_ref().map_or(default.lease_ceiling, |span| {
        if !LEASE.contains(&span.get_ref().0) {
            findings.add(span.span(), "a lease lasts for 1s to 24h", "the default is \"1h\"");
        }
        span.get_ref().0
    });
    let mut limit = |value: Option<&Spanned<u64>>, default: u64, message: &str| {
        let Some(value) = value else { return default };
        if *value.get_ref() == 0 {
            findings.add(value.span(), message, format!("the default is {default}"));
        }
        *value.get_ref()
    };
    let queue = "a queue holds at least 1 job";
    let queue_limit = limit(raw.queue_limit.as_ref(), default.queue_limit, queue);
    let model_queue_limit = limit(raw.model_queue_limit.as_ref(), default.model_queue_limit, queue);
    let key_queue_limit = limit(raw.key_queue_limit.as_ref(), default.key_queue_limit, queue);
    let leases = "at least 1 lease must be allowed";
    let leases_per_session = limit(raw.leases_per_session.as_ref(), default.leases_per_session, leases);
    let leases_per_key = limit(raw.leases_per_key.as_ref(), default.leases_per_key, leases);
    SchedulerConfig {
        idle_ttl: raw.idle_ttl.map_or(default.idle_ttl, |ttl| ttl.0),
        asleep_ttl: raw.asleep_ttl.map_or(default.asleep_ttl, |ttl| ttl.0),
        max_wait: raw.max_wait.map_or(default.max_wait, |span| span.0),
        host_timeout,
        queue_limit,
        model_queue_limit,
        key_queue_limit,
        lease_ceiling,
        leases_per_session,
        leases_per_key,
        record: raw.record.as_ref().map(|file| record(file, base, findings)),
        metrics_listen: listener(raw.metrics_listen.as_ref(), findings),
    }
}

fn record(file: &Spanned<String>, base: &Path, findings: &mut Findings<'_>) -> PathBuf {
    let path = below(base, Path::new(file.get_ref()));
    if let Some(why) = crate::not_a_record(&path) {
        findings.add(
            file.span(),
            format!("decisions cannot be written to {}: {why}", path.display()),
            "name a file that is not there yet, or one that a scheduler began",
        );
    }
    path
}
