//! Jobs of the express lane are known to nobody but their gateway and this host: a gateway that dies without a word is
//! found out here.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use berth_actors::{Supervised, Vitals};
use berth_bus::NatsOutput;
use berth_wire::GatewayId;
use futures::FutureExt;
use tracing::warn;

use crate::actor::Worker;
use crate::shared::Shared;

/// How often gateways are looked for; one that is missed twice in a row is gone.
const EVERY: Duration = Duration::from_secs(3);

pub(crate) fn supervise(vitals: &Vitals, shared: &Rc<Shared>) -> Supervised<Worker> {
    let work = Rc::clone(shared);
    Worker::supervise(
        vitals,
        "agent.gateways",
        Rc::new(move || watch(Rc::clone(&work)).boxed_local()),
        Rc::new(|| serde_json::json!({})),
    )
}

async fn watch(shared: Rc<Shared>) {
    let output = NatsOutput::new(shared.bus.clone());
    let mut missed = BTreeSet::<GatewayId>::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let gateways = shared.books.borrow().express_gateways(EVERY);
        let mut unheard = BTreeSet::new();
        for gateway in gateways {
            if !output.is_heard(&gateway).await {
                unheard.insert(gateway);
            }
        }
        for gateway in unheard.intersection(&missed) {
            let jobs = shared.books.borrow().abandon_express(gateway);
            warn!(%gateway, jobs, "a gateway is gone; ending what its clients waited for");
        }
        missed = unheard;
    }
}
