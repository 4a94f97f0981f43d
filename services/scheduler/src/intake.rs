//! What the leader hears: reports, cancellations, heartbeats, the catalog, and the job stream.

use std::time::Duration;

use actix::Addr;
use berth_actors::Supervised;
use berth_bus::{Bus, BusError, Jobs, Subscriber, View, read};
use berth_wire::{
    ApiError, CancelJob, DrainReply, DrainRequest, Epoch, ErrorKind, HostBeat, LeaseReply, LeaseRequest,
    ModelSpec, OperateRequest, PolicyRecord, Report, RollCall,
};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::keeper::Keeper;
use crate::leader::{
    Arrived, Beats, Cancelled, Catalog, DrainAsked, Leader, LeaseAsked, Operated, PolicyChanged, Reported,
    Restored, RollAsked, StatusAsked, StreamTaken,
};
use crate::restore;

/// A new leader waits so long for hosts to say what runs before it reads jobs.
const HOSTS_FIRST: Duration = Duration::from_secs(2);
/// How often, and how far apart, the stream is asked for after the connection was lost.
const SETTLE: u32 = 20;
const AGAIN: Duration = Duration::from_millis(250);
/// So long an answer waits for what it tells of to be written down.
const WRITTEN: Duration = Duration::from_secs(2);

/// Feeds the leader until the term is over; ends early when the job stream can no longer be read.
pub(crate) async fn start(
    bus: &Bus,
    epoch: Epoch,
    leader: &Supervised<Leader>,
    keeper: &Keeper,
    over: &CancellationToken,
) {
    let Ok(addr) = leader.addr() else { return };
    let feeds = async {
        let reports = bus.subscribe(bus.subjects.report_all()).await?;
        let cancels = bus.subscribe(bus.subjects.cancel_all()).await?;
        let asks = bus.subscribe(bus.subjects.scheduler_status()).await?;
        let leases = bus.subscribe(bus.subjects.lease()).await?;
        let rolls = bus.subscribe(bus.subjects.scheduler_roll()).await?;
        let orders = bus.subscribe(bus.subjects.operate()).await?;
        let drains = bus.subscribe(bus.subjects.drain()).await?;
        let hosts = View::<HostBeat>::follow(bus, "hosts");
        let mut catalog = View::<ModelSpec>::follow(bus, "catalog");
        let policy = View::<PolicyRecord>::follow(bus, "policy");
        catalog.synced().await;
        let _ = addr.send(Catalog(catalog.entries())).await;
        let _ = addr.send(Restored(restore::read(bus).await)).await;
        let reading = async {
            heard_of_hosts(&addr, hosts.clone()).await;
            feed_jobs(bus, epoch, &addr).await
        };
        futures::select! {
            result = reading.fuse() => result,
            () = feed_reports(bus, reports, &addr).fuse() => Ok(()),
            () = feed_cancels(cancels, &addr).fuse() => Ok(()),
            () = feed_status(bus, asks, &addr).fuse() => Ok(()),
            () = feed_leases(bus, leases, &addr, keeper).fuse() => Ok(()),
            () = feed_rolls(bus, rolls, &addr).fuse() => Ok(()),
            () = feed_orders(bus, orders, &addr).fuse() => Ok(()),
            () = feed_drains(bus, drains, &addr, keeper).fuse() => Ok(()),
            () = feed_hosts(hosts.clone(), &addr).fuse() => Ok(()),
            () = feed_policy(policy, &addr).fuse() => Ok(()),
            () = feed_catalog(catalog, &addr).fuse() => Ok::<(), BusError>(()),
        }
    };
    // Boxed: it holds every feed's state, and callers hold it.
    if let Some(Err(error)) = over.run_until_cancelled(Box::pin(feeds)).await {
        warn!(%error, "a feed of the leader ended");
        // Not at once again: the server may be restarting.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until the hosts that are alive have said what they run, for a bounded time.
async fn heard_of_hosts(addr: &Addr<Leader>, mut hosts: View<HostBeat>) {
    let heard = async {
        hosts.synced().await;
        let expected = hosts.entries().len();
        while let Ok(alive) = addr.send(Beats(hosts.entries())).await {
            if alive >= expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(HOSTS_FIRST, heard).await;
}

/// Reads the jobs, and from the start once more whenever the connection was lost: what the server counts as delivered
/// may have been lost with it.
async fn feed_jobs(bus: &Bus, epoch: Epoch, addr: &Addr<Leader>) -> Result<(), BusError> {
    let mut again = Box::pin(bus.reconnected().fuse());
    let mut jobs = Jobs::take_over(bus, epoch).await?;
    loop {
        let mut messages = Box::pin(jobs.messages().await?).fuse();
        let _ = addr.send(StreamTaken(jobs)).await;
        loop {
            let job = futures::select_biased! {
                () = again => break,
                job = messages.next() => job,
            };
            let Some(job) = job else { break };
            // Waiting for room in the mailbox is what holds the stream back.
            if addr.send(Arrived(job)).await.is_err() {
                return Ok(());
            }
        }
        again = Box::pin(bus.reconnected().fuse());
        jobs = take_again(bus, epoch).await?;
    }
}

/// A server that has just started may need a moment for its streams.
async fn take_again(bus: &Bus, epoch: Epoch) -> Result<Jobs, BusError> {
    let mut tries = 0;
    loop {
        match Jobs::take_again(bus, epoch).await {
            Err(BusError::Nats { .. }) if tries < SETTLE => tries += 1,
            taken => return taken,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn feed_rolls(bus: &Bus, mut rolls: Subscriber, addr: &Addr<Leader>) {
    while let Some(message) = rolls.next().await {
        let Some(RollCall { jobs }) = read::<RollCall>(&message) else { continue };
        let Ok(answer) = addr.send(RollAsked(jobs)).await else { return };
        // One that has not read the stream yet knows of too few: the gateway asks again.
        let Some(answer) = answer else { continue };
        if let Err(error) = bus.reply(message.reply, &answer).await {
            warn!(%error, "could not answer a gateway's roll call");
        }
    }
}

async fn feed_reports(bus: &Bus, mut reports: Subscriber, addr: &Addr<Leader>) {
    while let Some(message) = reports.next().await {
        let Some(report) = read::<Report>(&message) else { continue };
        // Each host may say things on its own subject alone.
        if *message.subject != bus.subjects.report(&report.host) {
            warn!(subject = %message.subject, host = %report.host, "dropped a report in the name of another host");
            continue;
        }
        let Ok(ack) = addr.send(Reported(report)).await else { return };
        if let Err(error) = bus.reply(message.reply, &ack).await {
            warn!(%error, "could not acknowledge a report; it will come again");
        }
    }
}

async fn feed_cancels(mut cancels: Subscriber, addr: &Addr<Leader>) {
    while let Some(message) = cancels.next().await {
        let Some(cancel) = read::<CancelJob>(&message) else { continue };
        if addr.send(Cancelled(cancel.job)).await.is_err() {
            return;
        }
    }
}

async fn feed_status(bus: &Bus, mut asks: Subscriber, addr: &Addr<Leader>) {
    while let Some(message) = asks.next().await {
        let Some(reply) = message.reply else { continue };
        let Ok(status) = addr.send(StatusAsked).await else { return };
        let body = serde_json::to_vec(&status).unwrap_or_default();
        if let Err(error) = bus.client.publish(reply, body.into()).await {
            warn!(%error, "could not answer a status request");
        }
    }
}

async fn feed_leases(bus: &Bus, mut asks: Subscriber, addr: &Addr<Leader>, keeper: &Keeper) {
    while let Some(message) = asks.next().await {
        let Some(request) = read::<LeaseRequest>(&message) else { continue };
        let Ok(answered) = addr.send(LeaseAsked(request)).await else { return };
        let (bus, keeper) = (bus.clone(), keeper.clone());
        actix_rt::spawn(async move {
            let written = async {
                for place in &answered.after {
                    keeper.written(place).await;
                }
            };
            let reply = match tokio::time::timeout(WRITTEN, written).await {
                Ok(()) => answered.reply,
                Err(_) => LeaseReply::Refused(not_written("lease", "leases")),
            };
            if let Err(error) = bus.reply(message.reply, &reply).await {
                warn!(%error, "could not answer what was asked of leases");
            }
        });
    }
}

async fn feed_orders(bus: &Bus, mut asks: Subscriber, addr: &Addr<Leader>) {
    while let Some(message) = asks.next().await {
        let Some(request) = read::<OperateRequest>(&message) else { continue };
        // Some wait for NATS before they are answered.
        let (bus, addr) = (bus.clone(), addr.clone());
        actix_rt::spawn(async move {
            let Ok(reply) = addr.send(Operated(request)).await else { return };
            if let Err(error) = bus.reply(message.reply, &reply).await {
                warn!(%error, "could not answer what an operator asked");
            }
        });
    }
}

async fn feed_drains(bus: &Bus, mut asks: Subscriber, addr: &Addr<Leader>, keeper: &Keeper) {
    while let Some(message) = asks.next().await {
        let Some(request) = read::<DrainRequest>(&message) else { continue };
        let Ok(answered) = addr.send(DrainAsked(request)).await else { return };
        let (bus, keeper) = (bus.clone(), keeper.clone());
        actix_rt::spawn(async move {
            let written = async {
                if let Some(place) = &answered.after {
                    keeper.written(place).await;
                }
            };
            let reply = match tokio::time::timeout(WRITTEN, written).await {
                Ok(()) => answered.reply,
                Err(_) => DrainReply::Refused(not_written("drain", "drained hosts")),
            };
            if let Err(error) = bus.reply(message.reply, &reply).await {
                warn!(%error, "could not answer what was asked of drained hosts");
            }
        });
    }
}

/// What was asked is done, and asking again does no harm.
fn not_written(what: &str, of: &str) -> ApiError {
    warn!("a change of {of} is not written down yet; it would be lost with this scheduler");
    let message = format!("NATS does not take what is to be kept of {of} right now; ask again in a moment");
    ApiError::new(ErrorKind::Unavailable, &format!("{what}_not_kept"), message).retry_after(WRITTEN)
}

async fn feed_hosts(mut hosts: View<HostBeat>, addr: &Addr<Leader>) {
    loop {
        if addr.send(Beats(hosts.entries())).await.is_err() {
            return;
        }
        // A host also falls silent without any change to see.
        let _ = tokio::time::timeout(Duration::from_secs(1), hosts.changed()).await;
    }
}

async fn feed_policy(mut policy: View<PolicyRecord>, addr: &Addr<Leader>) {
    while let Some(records) = policy.changed().await {
        let Some(record) = records.get(PolicyRecord::KEY) else { continue };
        if addr.send(PolicyChanged(record.policy.clone())).await.is_err() {
            return;
        }
    }
}

async fn feed_catalog(mut catalog: View<ModelSpec>, addr: &Addr<Leader>) {
    while let Some(models) = catalog.changed().await {
        if addr.send(Catalog(models)).await.is_err() {
            return;
        }
    }
}
