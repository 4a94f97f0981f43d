//! The agents: offers and commands at their gates, and what comes of them.

use super::*;

impl World {
    pub(super) fn engine(&mut self, host: &HostId, engine: EngineId) -> Option<&mut Engine> {
        self.agents.get_mut(host)?.as_mut()?.engines.get_mut(&engine)
    }

    pub(super) fn ended(
        &mut self,
        host: &HostId,
        id: EngineId,
        job: JobId,
        attempt: Attempt,
        outcome: Outcome,
    ) {
        let Some(agent) = self.agents.get_mut(host).and_then(Option::as_mut) else { return };
        let Some(engine) = agent.engines.get_mut(&id) else { return };
        if engine.running.remove(&(job, attempt)).is_none() {
            return;
        }
        engine.gate.leave();
        agent.outbox.push_ended(Ended { job, attempt, engine: id, outcome, usage: usage(), started: None });
    }

    pub(super) fn take(
        &mut self,
        host: &HostId,
        id: EngineId,
        job: JobId,
        attempt: Attempt,
        ask: impl FnOnce(&mut Gate) -> Result<(), No>,
    ) -> Result<(), No> {
        let gone = Err(No::NotReady(EngineState::Stopped));
        let Some(engine) = self.engine(host, id) else { return gone };
        if engine.running.contains_key(&(job, attempt)) {
            return Ok(());
        }
        ask(&mut engine.gate)?;
        engine.running.insert((job, attempt), Run::default());
        assert!(engine.running.len() <= SLOTS as usize, "more jobs than slots: {engine:?}");
        assert_eq!(engine.running.len(), engine.gate.taken() as usize);
        assert_eq!(engine.gate.state(), EngineState::Ready);
        Ok(())
    }

    pub(super) fn offered(&mut self, n: usize) {
        if self.offers.is_empty() {
            return;
        }
        let (host, engine, job) = self.offers.swap_remove(n % self.offers.len());
        if self.agents[&host].is_none() {
            // Nobody is there: the server says so.
            self.words.push_back((job, Attempt::EXPRESS, Word::Declined));
            return;
        }
        let taken = self.take(&host, engine, job, Attempt::EXPRESS, Gate::offer);
        self.story.push(format!("{host}: offered {job} for {engine}: {taken:?}"));
        if taken.is_err() {
            self.words.push_back((job, Attempt::EXPRESS, Word::Declined));
            return;
        }
        let overtakes = self.engine(&host, engine).unwrap().closed_for_a_waiter;
        assert!(!overtakes, "{job} went before a job that waits: {}", self.told());
        let model = self.jobs[&job].model.clone();
        let started = Started {
            job,
            attempt: Attempt::EXPRESS,
            engine,
            model,
            submitted_at: self.now,
            session: None,
            key: None,
            class: Class::Standard,
            bytes: 9,
        };
        self.agents.get_mut(&host).unwrap().as_mut().unwrap().outbox.push_started(started);
    }

    /// Nobody was there to take a command.
    pub(super) fn unanswered(&mut self, command: &Command) {
        match command {
            Command::Start(engine, ..) => {
                let engine = *engine;
                let failure = EngineFailure { message: "gone".into(), permanent: false, was_ready: false };
                self.tell(Event::StartRefused { engine, failure, silent: false }, None);
            }
            Command::Dispatch(job, attempt, _) => {
                let (job, attempt) = (*job, *attempt);
                let why = Refusal::Failed("gone".into());
                self.tell(Event::DispatchRefused { job, attempt, why }, None);
            }
            Command::Stop(_) | Command::Lane(..) | Command::Cancel(..) => {}
        }
    }

    pub(super) fn obey(&mut self, n: usize) {
        if self.commands.is_empty() {
            return;
        }
        let n = n % self.commands.len();
        let starts = |command: &Command| matches!(command, Command::Start(id, ..) if Some(*id) == self.commands[n].2.engine());
        // One connection keeps its order: nothing comes before the start of its engine.
        let first = self.commands.iter().position(|(_, _, command)| starts(command)).unwrap_or(n);
        let (host, epoch, command) = self.commands.remove(first);
        let Some(agent) = self.agents.get_mut(&host).unwrap() else {
            if epoch.0 == self.epoch {
                self.unanswered(&command);
            }
            return;
        };
        if epoch < agent.fence {
            return;
        }
        if epoch.0 != u64::MAX {
            agent.fence = epoch;
        }
        self.story.push(format!("{host}: {command:?}"));
        match command {
            Command::Start(engine, _, _, boot)
                if !agent.engines.is_empty()
                    || boot.as_ref().is_some_and(|b| *b != agent.boot.to_string()) =>
            {
                if epoch.0 == self.epoch {
                    let failure =
                        EngineFailure { message: "full".into(), permanent: false, was_ready: false };
                    self.tell(Event::StartRefused { engine, failure, silent: false }, None);
                }
            }
            Command::Start(id, model, reservations, _) => {
                let engine = Engine {
                    gate: Gate::new(SLOTS),
                    model,
                    reservations,
                    running: BTreeMap::new(),
                    closed_for_a_waiter: false,
                };
                agent.outbox.push_engine(report_of(id, &engine));
                agent.engines.insert(id, engine);
            }
            Command::Stop(id) => {
                let Some(engine) = agent.engines.get_mut(&id) else { return };
                if engine.gate.stop(false).is_ok() {
                    assert!(engine.running.is_empty(), "an engine was stopped while it served");
                    // Its actor gives a start up.
                    engine.gate.set_state(EngineState::Stopping);
                } else if self.core.is_stopping(id) && epoch.0 == self.epoch {
                    // The leader asks again.
                    self.commands.push((host, epoch, Command::Stop(id)));
                }
            }
            Command::Lane(id, number, open) => {
                let Some(engine) = agent.engines.get_mut(&id) else { return };
                engine.gate.set_lane(epoch, number, open);
                let model = engine.model.clone();
                // A word that comes after a later one closes nothing.
                let closed = !open && !engine.gate.takes_offers();
                if closed && self.queued(&model) && epoch.0 == self.epoch {
                    self.engine(&host, id).unwrap().closed_for_a_waiter = true;
                }
            }
            Command::Cancel(job, attempt) => {
                let on = agent.engines.iter().find(|(_, e)| e.running.contains_key(&(job, attempt)));
                if let Some(id) = on.map(|(id, _)| *id) {
                    self.ended(&host, id, job, attempt, Outcome::Cancelled);
                }
            }
            Command::Dispatch(job, attempt, id) => {
                let answer = self.take(&host, id, job, attempt, Gate::dispatch);
                self.story.push(format!("{host}: {answer:?}"));
                let why = match answer {
                    Ok(()) => {
                        self.words.push_back((job, attempt, Word::Begin(host, id)));
                        return;
                    }
                    Err(No::Full | No::Closed) => Refusal::Busy,
                    Err(No::NotReady(_)) => Refusal::Failed("not ready".into()),
                };
                if epoch.0 == self.epoch {
                    self.tell(Event::DispatchRefused { job, attempt, why }, None);
                }
            }
        }
    }

    pub(super) fn attempts(&self) -> Vec<(HostId, EngineId, JobId, Attempt)> {
        let agents = self.agents.iter().filter_map(|(host, agent)| Some((host, agent.as_ref()?)));
        agents
            .flat_map(|(host, agent)| agent.engines.iter().map(move |(id, engine)| (host, *id, engine)))
            .flat_map(|(host, id, engine)| {
                engine.running.keys().map(move |(job, a)| (host.clone(), id, *job, *a))
            })
            .collect()
    }

    /// An attempt goes on: output, then its end; or it fails.
    pub(super) fn serve(&mut self, n: usize, fails: bool) {
        let attempts = self.attempts();
        if attempts.is_empty() {
            return;
        }
        let (host, id, job, attempt) = attempts[n % attempts.len()].clone();
        let run = self.engine(&host, id).unwrap().running.get_mut(&(job, attempt)).unwrap();
        if !run.permitted && !attempt.is_express() {
            return;
        }
        let output_sent = run.output;
        if fails {
            if output_sent || attempt.is_express() {
                self.words.push_back((job, attempt, Word::Failed));
            }
            self.ended(&host, id, job, attempt, Outcome::Failed { error: error(), output_sent });
        } else if output_sent {
            self.words.push_back((job, attempt, Word::End));
            self.ended(&host, id, job, attempt, Outcome::Completed);
        } else {
            run.output = true;
            self.words.push_back((job, attempt, Word::Output));
        }
    }

    /// Engines become ready, or are gone.
    pub(super) fn grow(&mut self, host: &HostId) {
        let Some(Some(agent)) = self.agents.get_mut(host) else { return };
        let mut gone = Vec::new();
        for (id, engine) in &mut agent.engines {
            let state = match engine.gate.state() {
                EngineState::Starting => EngineState::Ready,
                EngineState::Stopping => EngineState::Stopped,
                _ => continue,
            };
            engine.gate.set_state(state);
            agent.outbox.push_engine(report_of(*id, engine));
            if state.is_gone() {
                gone.push(*id);
            }
        }
        for id in gone {
            agent.engines.remove(&id);
        }
    }
}
