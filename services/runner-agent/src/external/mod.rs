//! Servers that somebody else runs: watched, their models reported, and lent as engines.
//!
//! What may enter: what each kind of server needs to be asked. What may not: starting or ending a server. Where one
//! is and its key stay in this agent; what leaves is the name that its entry gives it.

mod lent;
mod list;
mod ollama;
mod server;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use berth_config::{Config, ExternalKind};
use berth_wire::{Accelerator, EngineId, ModelId, ModelSpec};
use futures::FutureExt;
use tracing::{info, warn};

use crate::driver::{Doing, Driver, Failure, Instance, Order, Progress};
use crate::external::lent::Lent;
use crate::external::server::Server;
pub(crate) use crate::external::server::is_refusal;
use crate::shared::Shared;

/// Whether this host has servers of others.
pub(crate) fn any(config: &Config) -> bool {
    config.external.iter().any(|entry| is_here(config, entry))
}

fn is_here(config: &Config, entry: &berth_config::ExternalConfig) -> bool {
    entry.labels.iter().all(|label| config.host.labels.contains(label))
}

/// A model of a server, by the server's own name for it.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) server: Rc<Server>,
    pub(crate) served: String,
}

/// What is lent now, by engine.
pub(crate) type Loans = Rc<RefCell<BTreeMap<EngineId, Offer>>>;

/// The servers of this host.
pub(crate) struct Externals {
    servers: Vec<Rc<Server>>,
    accelerators: Vec<Accelerator>,
    offers: RefCell<BTreeMap<ModelId, (ModelSpec, Offer)>>,
    loans: Loans,
}

impl Externals {
    pub(crate) fn new(config: &Config, http: &reqwest::Client, accelerators: &[Accelerator]) -> Self {
        let here = config.external.iter().filter(|entry| is_here(config, entry));
        Self {
            servers: here.map(|entry| Rc::new(Server::new(entry.clone(), http.clone()))).collect(),
            accelerators: accelerators.to_vec(),
            offers: RefCell::default(),
            loans: Loans::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// The models as catalog entries.
    pub(crate) fn found(&self) -> Vec<ModelSpec> {
        self.offers.borrow().values().map(|(spec, _)| spec.clone()).collect()
    }

    /// How the servers are, for people.
    pub(crate) fn observe(&self) -> serde_json::Value {
        let servers = self.servers.iter().map(|server| {
            serde_json::json!({
                "name": server.config.name,
                "kind": server.config.kind.as_str(),
                "state": server.state(),
                "models": server.seen().listed.len(),
            })
        });
        serde_json::json!({ "servers": servers.collect::<Vec<_>>() })
    }

    /// Watches every server for as long as it is polled.
    pub(crate) async fn watch(&self, shared: &Shared) {
        let watched = self.servers.iter().map(|server| server.watch(|| self.refresh(shared)));
        futures::future::join_all(watched).await;
        // Without a server there is nothing to do, and an actor that ends is started again.
        std::future::pending::<()>().await;
    }

    /// Takes over what the servers list, and has it reported if it is news.
    fn refresh(&self, shared: &Shared) {
        let mut offers: BTreeMap<ModelId, (ModelSpec, Offer)> = BTreeMap::new();
        for server in &self.servers {
            for (spec, served) in list::specs(&server.config, &server.seen().listed, &self.accelerators) {
                if let Some((_, first)) = offers.get(&spec.id) {
                    server.warn_once(&format!(
                        "the model `{}` is left out: the server `{}` has one of that name; give it another by \
                         `prefix` or `rename`",
                        spec.id, first.server.config.name
                    ));
                    continue;
                }
                let offer = Offer { server: Rc::clone(server), served };
                offers.insert(spec.id.clone(), (spec, offer));
            }
        }
        let mut known = self.offers.borrow_mut();
        let revived = self.servers.iter().filter(|server| server.take_revival()).count() > 0;
        let news = revived
            || offers.len() != known.len()
            || offers.iter().any(|(id, (spec, _))| known.get(id).is_none_or(|(was, _)| was != spec));
        let gone: Vec<&str> =
            known.keys().filter(|id| !offers.contains_key(*id)).map(ModelId::as_str).collect();
        let new: Vec<&str> =
            offers.keys().filter(|id| !known.contains_key(*id)).map(ModelId::as_str).collect();
        if !gone.is_empty() {
            warn!(models = gone.join(", "), "external servers have these models no more");
        }
        if !new.is_empty() {
            info!(models = new.join(", "), "found models of external servers");
        }
        *known = offers;
        drop(known);
        if news {
            shared.want_snapshot();
        }
    }

    fn offer(&self, model: &ModelId) -> Option<Offer> {
        self.offers.borrow().get(model).map(|(_, offer)| offer.clone())
    }

    /// A request to an engine failed to reach its server: it is looked at now.
    pub(crate) fn doubt(&self, engine: EngineId) {
        if let Some(offer) = self.loans.borrow().get(&engine) {
            offer.server.doubt();
        }
    }

    /// What somebody else had Ollama load gives way to what Berth is about to start. Berth's books know nothing of
    /// it, and whoever asks for it again gets it loaded again.
    pub(crate) async fn make_room(&self, shared: &Shared, order: &Order) {
        let wanted = self.offer(&order.model().id);
        for server in self.servers.iter().filter(|server| server.config.kind == ExternalKind::Ollama) {
            let Ok(loaded) = server.loaded().await else { continue };
            let lent: Vec<String> = self.lent_by(server);
            let foreign = |name: &str| {
                let is_wanted = wanted
                    .as_ref()
                    .is_some_and(|offer| Rc::ptr_eq(&offer.server, server) && offer.served == name);
                !is_wanted && !lent.iter().any(|own| own == name)
            };
            let others: Vec<(&String, u64)> = loaded
                .iter()
                .filter(|(name, _)| foreign(name))
                .map(|(name, held)| (name, held.bytes(&self.accelerators)))
                .collect();
            let theirs: u64 = others.iter().map(|(_, bytes)| *bytes).sum();
            let ours: u64 =
                shared.books.borrow().reserved().iter().map(|reservation| reservation.bytes).sum();
            let all: u64 = self.accelerators.iter().map(|accelerator| accelerator.memory).sum();
            if theirs > 0 && ours.saturating_add(theirs) > all {
                for (name, _) in others {
                    info!(
                        server = server.config.name,
                        model = name,
                        "unloading what others had loaded, to make room"
                    );
                    server.unload(name).await;
                }
            }
        }
    }

    fn lent_by(&self, server: &Rc<Server>) -> Vec<String> {
        let loans = self.loans.borrow();
        let of = loans.values().filter(|offer| Rc::ptr_eq(&offer.server, server));
        of.map(|offer| offer.served.clone()).collect()
    }

    async fn lend(&self, order: &Order, progress: Progress<'_>) -> Result<Lent, Failure> {
        let model = &order.model().id;
        let Some(offer) = self.offer(model) else {
            return Err(Failure::passing(format!(
                "no external server of this host has the model `{model}` any more"
            )));
        };
        self.loans.borrow_mut().insert(order.engine(), offer.clone());
        let server = &offer.server;
        server.look().await;
        if let Some(why) = server.down() {
            return Err(Failure::passing(format!(
                "the external server `{}` cannot be used: {why}",
                server.config.name
            )));
        }
        let mut held = None;
        if server.config.kind == ExternalKind::Ollama {
            progress(format!("loading in the external server `{}`", server.config.name));
            server.load(&offer.served, order.model().engine.start_timeout).await?;
            server.look().await;
            held = server.seen().loaded.get(&offer.served).map(|held| held.bytes(&self.accelerators));
        }
        Ok(Lent::new(order.engine(), offer, Rc::clone(&self.loans), held))
    }
}

impl Driver for Externals {
    fn launch<'a>(
        &'a self,
        order: &'a Order,
        progress: Progress<'a>,
    ) -> Doing<'a, Result<Box<dyn Instance>, Failure>> {
        async move { self.lend(order, progress).await.map(|lent| Box::new(lent) as Box<dyn Instance>) }
            .boxed_local()
    }

    fn sweep(&self, engine: EngineId) -> Doing<'_, ()> {
        let offer = self.loans.borrow_mut().remove(&engine);
        async move {
            if let Some(offer) = offer {
                offer.server.give_back(&offer.served).await;
            }
        }
        .boxed_local()
    }
}
