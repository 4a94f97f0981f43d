//! Waiting for a state: asked for again and again until a deadline, and named when it does not come.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;

const STEP: Duration = Duration::from_millis(10);

/// Waits until `probe` says yes.
///
/// # Panics
/// When `within` has passed, naming `what`.
pub async fn until(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> bool) {
    until_ok(what, within, async || if probe().await { Ok(()) } else { Err("not yet") }).await;
}

/// Waits until `probe` finds something, and returns it. Its error says how things stand instead.
///
/// # Panics
/// When `within` has passed, naming `what` and the last error.
#[expect(clippy::panic, reason = "a test that waits in vain has failed")]
pub async fn until_ok<T, E: Display>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    let mut last = "nothing".to_owned();
    loop {
        // A probe that hangs must not outlive the deadline either.
        let left = (begun + within).saturating_duration_since(Instant::now()).max(STEP);
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(seen)) => last = seen.to_string(),
            // What was seen before tells more.
            Err(_) => last.push_str(" (and a last look did not come back)"),
        }
        if begun.elapsed() >= within {
            panic!("waited {within:?} in vain until {what}; last seen: {last}");
        }
        tokio::time::sleep(STEP).await;
    }
}
