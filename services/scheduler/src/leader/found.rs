//! Models that hosts report: the leader's part of the catalog.

use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use berth_wire::{EventBody, HostId, ModelSpec};
use tracing::warn;

use super::Leader;
use crate::effects::record;

/// Beyond the time after which a silent host counts as lost: a snapshot may be on its way.
const GRACE: Duration = Duration::from_secs(3);

impl Leader {
    /// Takes what a host reports.
    pub(super) fn found_at(&mut self, host: &HostId, models: &[ModelSpec], ctx: &mut Context<Self>) {
        let news = self.found.report(host, models);
        if !news.new.is_empty() {
            self.tell_found(EventBody::ModelsFound { host: host.clone(), models: news.new }, ctx);
        }
        if !news.gone.is_empty() {
            self.tell_found(EventBody::ModelsGone { host: host.clone(), models: news.gone }, ctx);
        }
        for refused in self.settle_found() {
            self.tell_found(refused, ctx);
        }
    }

    /// Makes the catalog agree with what is reported; what is refused is returned to be told.
    pub(super) fn settle_found(&mut self) -> Vec<EventBody> {
        let settled = self.found.settle(&self.catalog);
        let keeper = &self.carrier.keeper;
        settled.write.iter().for_each(|spec| keeper.keep_model(spec));
        settled.remove.iter().for_each(|model| keeper.forget_model(model));
        let refused = settled.refused.into_iter().map(|refused| {
            warn!(host = %refused.host, model = %refused.model, "left a found model out: {}", refused.why);
            EventBody::ModelRefused { host: refused.host, model: refused.model, why: refused.why }
        });
        refused.collect()
    }

    /// From some time into the term on, what no host reports is gone.
    pub(super) fn forget_unfound(&self, ctx: &mut Context<Self>) {
        let wait = tokio::time::sleep(self.hosts.timeout() + GRACE);
        ctx.spawn(wait.into_actor(self).map(|(), leader, ctx| {
            leader.found.complete = true;
            for refused in leader.settle_found() {
                leader.tell_found(refused, ctx);
            }
        }));
    }

    pub(super) fn tell_found(&self, body: EventBody, ctx: &mut Context<Self>) {
        super::log(&body);
        let carrier = self.carrier.clone();
        ctx.spawn(async move { record(&carrier.bus, body).await }.into_actor(self));
    }
}
