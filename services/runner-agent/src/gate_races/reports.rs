//! What agents report, and what becomes of them.

use super::*;

impl World {
    /// An agent sends what it has to tell; the answer may be lost on its way.
    pub(super) fn report(&mut self, host: &HostId, lost: bool) {
        let Some(Some(_)) = self.agents.get(host) else { return };
        let mut outbox = std::mem::take(&mut self.agents.get_mut(host).unwrap().as_mut().unwrap().outbox);
        let batch = outbox.batch(|ended| self.snapshot(host, ended));
        self.agents.get_mut(host).unwrap().as_mut().unwrap().outbox = outbox;
        let agent = self.agents.get_mut(host).unwrap().as_mut().unwrap();
        agent.report = batch.clone();
        let (Some(batch), boot) = (batch, agent.boot) else { return };
        let agent_sent = batch.entries.len() as u64;
        let introduces = matches!(batch.entries.first(), Some(ReportEntry::Snapshot(_)));
        let known = self.synced.get(host).copied().filter(|known| known.boot == boot);
        let want_snapshot = known.is_none() && !introduces;
        if !want_snapshot {
            self.died.remove(host);
            let mut heard = known.unwrap_or(Heard { boot, ..Heard::default() });
            let skip = usize::try_from(heard.next.saturating_sub(batch.first)).unwrap();
            let news = batch.entries.into_iter().zip(batch.first..).skip(skip);
            let news: Vec<ReportEntry> = news
                .filter(|(entry, number)| heard.is_news(entry, *number))
                .map(|(entry, _)| entry)
                .collect();
            heard.next = heard.next.max(batch.first + agent_sent);
            self.synced.insert(host.clone(), heard);
            for entry in news {
                self.take_entry(host, entry);
            }
        }
        let ack = ReportAck { epoch: Epoch(self.epoch), want_snapshot };
        let agent = self.agents.get_mut(host).unwrap().as_mut().unwrap();
        if lost {
            agent.outbox.unanswered();
        } else {
            agent.fence = agent.fence.max(ack.epoch);
            agent.outbox.acknowledge(&ack);
        }
    }

    pub(super) fn take_entry(&mut self, host: &HostId, entry: ReportEntry) {
        match entry {
            ReportEntry::Snapshot(snapshot) => {
                for event in events_of(*snapshot) {
                    self.tell(event, None);
                }
            }
            ReportEntry::Engine(report) => {
                self.tell(Event::EngineChanged { host: host.clone(), engine: facts_of(report) }, None);
            }
            ReportEntry::Started(started) => {
                let job = self.facts(started.job);
                self.tell(Event::JobStarted { job, engine: started.engine }, None);
            }
            ReportEntry::Ended(ended) => {
                if ended.started.is_some() {
                    let job = self.facts(ended.job);
                    self.tell(Event::JobStarted { job, engine: ended.engine }, None);
                }
                self.tell(ended_of(ended), None);
            }
            ReportEntry::Goodbye => {}
        }
    }

    pub(super) fn kill(&mut self, host: &HostId) {
        if self.agents.insert(host.clone(), None).flatten().is_some() {
            self.died.insert(host.clone());
            self.cut(host);
        }
    }

    /// Nobody is there to take what was sent to a host.
    pub(super) fn cut(&mut self, host: &HostId) {
        let mut lost = Vec::new();
        self.commands.retain(|(to, epoch, command)| {
            if to == host {
                lost.push((*epoch, command.clone()));
            }
            to != host
        });
        for (epoch, command) in lost {
            if epoch.0 == self.epoch {
                self.unanswered(&command);
            }
        }
        for (to, engine, job) in std::mem::take(&mut self.offers) {
            if to == *host {
                self.words.push_back((job, Attempt::EXPRESS, Word::Declined));
            } else {
                self.offers.push((to, engine, job));
            }
        }
    }

    /// Somebody notices that an agent died: the leader, and the gateway for each job of the express lane.
    pub(super) fn notice(&mut self, host: &HostId) {
        if self.died.remove(host) {
            self.synced.remove(host);
            self.tell(Event::HostLost { host: host.clone(), reason: "test".into() }, None);
        }
        let lost: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.run == Some(Attempt::EXPRESS) && job.host.as_ref() == Some(host))
            .map(|(id, _)| *id)
            .collect();
        for job in lost {
            let runs = self.attempts().iter().any(|(_, _, id, a)| *id == job && a.is_express());
            let offered = self.offers.iter().any(|(_, _, id)| *id == job);
            let heard = self.words.iter().any(|(id, a, _)| *id == job && a.is_express());
            if !runs && !offered && !heard {
                self.give_up(job);
            }
        }
    }
}

fn facts_of(report: EngineReport) -> EngineFacts {
    EngineFacts {
        id: report.engine,
        model: report.model,
        state: report.state,
        reservations: report.reservations,
        concurrency: report.concurrency,
        failure: report.failure,
        start_took: report.start_took,
        sleep: report.sleep,
        peak_memory: report.peak_memory,
    }
}

fn ended_of(ended: Ended) -> Event {
    let end = match ended.outcome {
        Outcome::Completed => AttemptEnd::Completed,
        Outcome::Cancelled | Outcome::Abandoned => AttemptEnd::Cancelled,
        Outcome::Failed { error, output_sent } => AttemptEnd::Failed { error, output_sent },
    };
    let (job, attempt, engine) = (ended.job, ended.attempt, ended.engine);
    Event::AttemptEnded { job, attempt, engine, end, usage: ended.usage }
}

pub(super) fn events_of(snapshot: Snapshot) -> Vec<Event> {
    let beat = snapshot.beat;
    let host = HostFacts {
        id: beat.host,
        boot: beat.boot,
        accelerators: beat.accelerators,
        drivers: beat.drivers,
        labels: beat.labels,
        draining: beat.draining,
        sleep_memory: 0,
        sleep_spare: 0,
    };
    let mut events: Vec<Event> = snapshot.ended.into_iter().map(ended_of).collect();
    let running = snapshot.running.into_iter().map(|r| (r.job, r.attempt, r.engine)).collect();
    let engines = snapshot.engines.into_iter().map(facts_of).collect();
    events.push(Event::HostSnapshot { host, engines, running });
    events
}
