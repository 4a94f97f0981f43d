//! A model of an external server, lent as an engine.

use std::time::Duration;

use berth_wire::EngineId;
use futures::FutureExt;
use reqwest::header::HeaderValue;

use crate::driver::{Doing, Instance};
use crate::external::server::Seen;
use crate::external::{Loans, Offer};

/// The engine; its server serves others beside it.
pub(crate) struct Lent {
    engine: EngineId,
    offer: Offer,
    loans: Loans,
    /// Bytes that it took once loaded, where its server tells.
    held: Option<u64>,
}

impl Lent {
    pub(crate) fn new(engine: EngineId, offer: Offer, loans: Loans, held: Option<u64>) -> Self {
        Self { engine, offer, loans, held }
    }

    /// Why it is not lent any more.
    fn over(&self, seen: &Seen) -> Option<String> {
        let (name, served) = (&self.offer.server.config.name, &self.offer.served);
        if let Some(why) = seen.down() {
            return Some(format!("lost its external server `{name}`: {why}"));
        }
        if !seen.listed.iter().any(|listed| listed.name == *served) {
            return Some(format!("ended: the external server `{name}` has its model no more"));
        }
        // One that shares its weights with another name was never listed as loaded.
        (self.held.is_some() && !seen.loaded.contains_key(served))
            .then(|| format!("ended: the external server `{name}` has unloaded its model"))
    }
}

impl Instance for Lent {
    fn endpoint(&self) -> &str {
        &self.offer.server.config.url
    }

    fn key(&self) -> Option<HeaderValue> {
        self.offer.server.key()
    }

    fn holds(&self) -> Option<u64> {
        self.held
    }

    fn is_lent(&self) -> bool {
        true
    }

    fn exited(&mut self) -> Doing<'_, ()> {
        async {
            let mut seen = self.offer.server.follow();
            let _ = seen.wait_for(|seen| self.over(seen).is_some()).await;
        }
        .boxed_local()
    }

    fn how(&mut self) -> Doing<'_, String> {
        let why = self.over(&self.offer.server.seen());
        async move { why.unwrap_or_else(|| "was given back".into()) }.boxed_local()
    }

    fn stop(&mut self, _grace: Duration) -> Doing<'_, ()> {
        async {
            // What is not lent any more may be somebody else's by now.
            if self.over(&self.offer.server.seen()).is_none() {
                self.offer.server.give_back(&self.offer.served).await;
            }
            self.loans.borrow_mut().remove(&self.engine);
        }
        .boxed_local()
    }

    fn tail(&mut self) -> Doing<'_, Vec<String>> {
        async { Vec::new() }.boxed_local()
    }
}
