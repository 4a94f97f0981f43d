//! Names and deadlines of a test run.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long anything may take that should happen by itself; generous, since two cores are shared by many tests.
pub const SOON: Duration = Duration::from_secs(30);

/// A name that nothing else on this machine has.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    format!("t{}-{}-{count}", now.as_millis() % 1_000_000_000, std::process::id())
}

/// Fails the test if `future` takes longer.
///
/// # Panics
/// When it does, naming `what`.
pub async fn at_most<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what} took longer than {limit:?}"),
    }
}
