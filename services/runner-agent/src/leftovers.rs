//! What an earlier run of this host left: containers that still serve are adopted, everything else is removed.

use std::rc::Rc;
use std::time::Duration;

use berth_wire::StartEngine;
use futures::StreamExt;
use tracing::{info, warn};

use crate::adapters::settle;
use crate::asleep::{Found, found};
use crate::cell::EngineCell;
use crate::driver::Instance;
use crate::engine::begin;
use crate::ready::is_healthy;
use crate::shared::Shared;

/// Adopts or removes, so that no memory is held that is not on the books.
pub(crate) async fn clear(shared: &Rc<Shared>, killed: usize) {
    if killed > 0 {
        info!(killed, "killed engine processes of an earlier run");
    }
    match shared.records.purge(&format!("{}.", shared.host)).await {
        Ok(0) => {}
        Ok(removed) => info!(removed, "removed the records of engines of an earlier run"),
        Err(error) => warn!(error, "cannot remove the records of engines of an earlier run"),
    }
    adopt(shared).await;
}

/// The same of Docker's containers alone; nothing where Docker is not there yet.
pub(crate) async fn adopt(shared: &Rc<Shared>) {
    let Some(docker) = shared.docker.get() else { return };
    let found = docker.leftovers().await;
    // Side by side: a container that is slow to answer or to go holds up no other.
    let mut judged = futures::stream::iter(found)
        .map(|(start, instance)| judge(shared, start, instance))
        .buffer_unordered(16);
    while let Some(adopted) = judged.next().await {
        let Some((start, mut instance, found)) = adopted else { continue };
        let sleeps = found != Found::Awake { can_sleep: false };
        let cell = EngineCell::new(start.clone(), shared.sleep_cost(&start).filter(|_| sleeps));
        if found == Found::Asleep {
            cell.found_asleep();
        }
        let held: Vec<_> = cell.held().collect();
        let taken = shared.books.borrow().reserved();
        if let Err(why) = shared.devices.check_fit(&held, &taken.iter()) {
            warn!(engine = %start.engine, why, "removing an engine of an earlier run that does not fit any more");
            instance.stop(start.model.engine.stop_grace).await;
            continue;
        }
        let state = cell.state().as_str();
        info!(engine = %start.engine, model = %start.model.id, state, "adopted an engine of an earlier run");
        begin(shared, cell, Some(instance));
    }
}

/// How often an engine is asked whether it serves before it is given up.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

type Judged = (StartEngine, Box<dyn Instance>, Found);

async fn judge(shared: &Shared, start: StartEngine, mut instance: Box<dyn Instance>) -> Option<Judged> {
    for again in (0..TRIES).rev() {
        if is_healthy(&shared.http, instance.endpoint(), &start.model.engine.health_path).await {
            let settled = settle(&shared.http, instance.endpoint(), &start.model).await;
            match settled.and(found(shared, &start, instance.endpoint()).await) {
                Ok(found) => return Some((start, instance, found)),
                Err(why) => {
                    info!(engine = %start.engine, why, "cannot adopt an engine of an earlier run yet");
                }
            }
        }
        // One that is busy may miss a question or two.
        if again > 0 {
            tokio::time::sleep(PAUSE).await;
        }
    }
    info!(engine = %start.engine, "removing an engine of an earlier run that does not answer");
    instance.stop(Duration::ZERO).await;
    None
}
