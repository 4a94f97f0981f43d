//! Leader election: one key with a bucket-wide age limit, kept alive by compare-and-set.
//!
//! KV gives no mutual exclusion by itself: a leader steps down on its own clock before its key can expire, and
//! every command carries its epoch, so that hosts refuse what an older leader still sends.

use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{CreateErrorKind, Store, UpdateErrorKind};
use berth_wire::{Epoch, LeaderRecord, Timestamp, encode_json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::connect::Bus;
use crate::error::BusError;

const KEY: &str = "leader";
const RENEW: Duration = Duration::from_secs(3);
/// Below the bucket's max_age of 10 s, with room for clock drift and a slow answer.
const STEP_DOWN: Duration = Duration::from_secs(8);
const CAMPAIGN: Duration = Duration::from_millis(500);

/// Whether this instance leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Another leads, or nobody.
    Follower,
    /// This one, in this epoch.
    Leader(Epoch),
}

/// A running campaign.
#[derive(Debug, Clone)]
pub struct Election {
    /// Changes as leadership is won and lost.
    pub state: watch::Receiver<Leadership>,
}

impl Election {
    /// Campaigns until `shutdown`, then hands leadership back at once.
    ///
    /// # Errors
    /// When the bucket does not exist.
    pub async fn join(
        bus: &Bus,
        instance: String,
        shutdown: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + use<>), BusError> {
        let store = bus.bucket("leader").await?;
        let (publish, state) = watch::channel(Leadership::Follower);
        Ok((Self { state }, campaign(store, instance, publish, shutdown)))
    }
}

/// Forgets a leader that died with its whole fleet, so that nobody waits for its term to expire. For the only
/// user of a server that has just been started: anybody else would depose a leader that is alive.
///
/// # Errors
/// When the server does not answer. A bucket that does not exist yet is no error.
pub async fn forget_leader(bus: &Bus) -> Result<(), BusError> {
    match bus.bucket("leader").await {
        Ok(store) => store.delete(KEY).await.map_err(|e| BusError::nats("forget the last leader", e)),
        Err(BusError::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Has the next leader be of a later epoch than this one, which a host has seen. Where the server has lost its store,
/// the revisions of which epochs are made have begun anew, and hosts that ran on obey none of them.
///
/// # Errors
/// When the server does not answer or the bucket does not exist.
pub async fn outrun(bus: &Bus, epoch: Epoch) -> Result<(), BusError> {
    let mut store = bus.bucket("leader").await?;
    let info = store.stream.info().await.map_err(|e| BusError::nats("look at the leader key", e))?;
    if info.state.last_sequence >= epoch.0 {
        return Ok(());
    }
    warn!(%epoch, "hosts have seen a later epoch than NATS: it has lost its store; going on behind that epoch");
    let next = epoch.0.saturating_add(1);
    let raised = store.stream.purge().sequence(next).await;
    raised.map(drop).map_err(|e| BusError::nats("raise the epoch", e))
}

fn record(instance: &str, since: Timestamp, epoch: Epoch) -> Result<bytes::Bytes, BusError> {
    Ok(encode_json(&LeaderRecord { instance: instance.into(), since, epoch })?.into())
}

async fn campaign(
    store: Store,
    instance: String,
    publish: watch::Sender<Leadership>,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let since = Timestamp::from(std::time::SystemTime::now());
        let asked = Instant::now();
        let won = match record(&instance, since, Epoch::default()) {
            Ok(value) => store.create(KEY, value).await,
            Err(error) => {
                warn!(%error, "cannot campaign");
                return;
            }
        };
        match won {
            Ok(revision) => {
                let epoch = Epoch(revision);
                info!(%epoch, "this scheduler leads");
                publish.send_replace(Leadership::Leader(epoch));
                reign(&store, &instance, since, revision, asked, &shutdown).await;
                publish.send_replace(Leadership::Follower);
                info!(%epoch, "this scheduler leads no more");
            }
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
            Err(error) => debug!(%error, "campaign failed"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(CAMPAIGN) => {}
        }
    }
}

/// Renews until it fails for too long, somebody else has the key, or shutdown.
async fn reign(
    store: &Store,
    instance: &str,
    since: Timestamp,
    first: u64,
    won: Instant,
    shutdown: &CancellationToken,
) {
    let Ok(value) = record(instance, since, Epoch(first)) else { return };
    let mut revision = first;
    let mut renewed = won;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => {
                let _ = store.delete_expect_revision(KEY, Some(revision)).await;
                return;
            }
            () = tokio::time::sleep(RENEW) => {}
        }
        loop {
            let asked = Instant::now();
            let left = STEP_DOWN.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, store.update(KEY, value.clone(), revision)).await {
                Ok(Ok(next)) => {
                    revision = next;
                    renewed = asked;
                    break;
                }
                Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    warn!("another scheduler holds the leader key");
                    return;
                }
                Ok(Err(error)) => debug!(%error, "renewal failed; trying again"),
                Err(_) => {}
            }
            if renewed.elapsed() >= STEP_DOWN {
                warn!("could not renew leadership in time; stepping down");
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
