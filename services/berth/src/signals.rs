//! Ctrl-C and SIGTERM: the first one asks for an end in good order, the second one for an end at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;

/// What the user wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signals {
    /// To stop.
    pub(crate) stop: CancellationToken,
    /// To stop at once.
    pub(crate) hurry: CancellationToken,
}

impl Signals {
    /// Listens from now on, on the current runtime.
    pub(crate) fn watch() -> Result<Self, Failure> {
        let failed = |source| Failure::System { what: "cannot listen for signals", source };
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let signals = Self::default();
        let tokens = [signals.stop.clone(), signals.hurry.clone()];
        tokio::spawn(async move {
            for token in tokens {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(signals)
    }
}
