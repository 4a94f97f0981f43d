//! Hosts that a person drains: what the leader is asked of them, and what it writes down.

use std::collections::BTreeMap;

use actix::{Context, Handler, Message, MessageResult};
use berth_placement::Event;
use berth_wire::{ApiError, Drain, DrainReply, DrainRequest, DrainStatus, ErrorKind, HostId, Timestamp};
use tracing::info;

use super::Leader;
use crate::keeper::Place;

/// So many hosts are named to who asks for one that is not there.
const NAMED: usize = 20;

/// Drained hosts, since when.
pub(super) type Drains = BTreeMap<HostId, Timestamp>;

/// Somebody asks something of drained hosts.
#[derive(Message)]
#[rtype(result = "Answered")]
pub(crate) struct DrainAsked(pub(crate) DrainRequest);

/// The answer, and what is to be written down before it is given.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) reply: DrainReply,
    pub(crate) after: Option<Place>,
}

impl Handler<DrainAsked> for Leader {
    type Result = MessageResult<DrainAsked>;

    fn handle(&mut self, DrainAsked(request): DrainAsked, ctx: &mut Self::Context) -> Self::Result {
        let host = request.host().clone();
        if let Some(error) = self.unknown_host(&host) {
            return MessageResult(Answered { reply: DrainReply::Refused(error), after: None });
        }
        let after = match request {
            DrainRequest::Look { .. } => None,
            DrainRequest::Drain { host } => {
                info!(%host, "a person has it drained");
                let since = *self.drains.entry(host.clone()).or_insert(self.clock.now());
                self.carrier.keeper.keep_drain(&Drain { host: host.clone(), since });
                self.drain_fed(&host, true, ctx);
                Some(Place::of_drain(&host))
            }
            DrainRequest::Undrain { host } => {
                info!(%host, "it is not drained any more");
                self.drains.remove(&host);
                self.carrier.keeper.forget_drain(&host);
                self.drain_fed(&host, false, ctx);
                Some(Place::of_drain(&host))
            }
        };
        MessageResult(Answered { reply: DrainReply::Host(self.drain_status(&host)), after })
    }
}

impl Leader {
    /// What earlier leaders wrote down.
    pub(super) fn restore_drains(&mut self, kept: Vec<Drain>, ctx: &mut Context<Self>) {
        for Drain { host, since } in kept {
            self.drains.insert(host.clone(), since);
            self.drain_fed(&host, true, ctx);
        }
    }

    fn drain_fed(&mut self, host: &HostId, on: bool, ctx: &mut Context<Self>) {
        self.feed(Event::Drain { host: host.clone(), on }, ctx);
    }

    /// Every drained host, as it is now.
    pub(super) fn shown_drains(&self) -> Vec<DrainStatus> {
        self.drains.keys().map(|host| self.drain_status(host)).collect()
    }

    fn drain_status(&self, host: &HostId) -> DrainStatus {
        let left = self.state.left_on(host);
        DrainStatus {
            host: host.clone(),
            draining: self.state.drains(host),
            since: self.drains.get(host).copied(),
            present: left.present,
            running: left.running as u64,
            engines: left.engines as u64,
            staying: left.staying as u64,
            empty: left.running == 0 && left.engines == 0,
        }
    }

    fn unknown_host(&self, host: &HostId) -> Option<ApiError> {
        let known = |id: &HostId| id == host;
        if self.drains.contains_key(host) || self.state.present().any(known) {
            return None;
        }
        let names: Vec<&str> = self.state.present().map(HostId::as_str).take(NAMED).collect();
        let there = match names.as_slice() {
            [] => "no host has joined".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        let message = format!("no host is called `{host}`; {there}");
        Some(ApiError::new(ErrorKind::HostNotFound, "host_not_found", message).param("host"))
    }
}
