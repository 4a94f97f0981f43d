//! The gateway of all clients: asks, hears, gives up.

use super::*;

impl World {
    pub(super) fn ask(&mut self, id: JobId, model: &str, n: usize) {
        let asked = Asked {
            model: model.into(),
            newest: None,
            run: None,
            host: None,
            forwarded: false,
            submitted: false,
            ends: 0,
        };
        self.jobs.insert(id, asked);
        let ready: Vec<(HostId, EngineId)> = self
            .agents
            .iter()
            .filter_map(|(host, agent)| Some((host, agent.as_ref()?)))
            .flat_map(|(host, agent)| agent.engines.iter().map(move |(id, engine)| (host, *id, engine)))
            .filter(|(_, _, engine)| engine.model.as_str() == model)
            .map(|(host, id, _)| (host.clone(), id))
            .collect();
        // What it knows may be old: it also offers to what is full, closed or being stopped.
        match ready.get(n % (ready.len() + 1)) {
            Some((host, engine)) => {
                let job = self.jobs.get_mut(&id).unwrap();
                job.newest = Some(Attempt::EXPRESS);
                job.run = Some(Attempt::EXPRESS);
                job.host = Some(host.clone());
                self.offers.push((host.clone(), *engine, id));
            }
            None => self.submit(id),
        }
    }

    pub(super) fn submit(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        assert!(!job.submitted, "{id} was submitted twice");
        job.submitted = true;
        job.run = None;
        self.sent.push_back((id, true));
    }

    /// An express attempt is given up, whether or not it runs.
    pub(super) fn give_up(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        if job.run != Some(Attempt::EXPRESS) || job.ends > 0 {
            return;
        }
        let host = job.host.clone().unwrap();
        self.commands.push((host, Epoch(u64::MAX), Command::Cancel(id, Attempt::EXPRESS)));
        if self.jobs[&id].forwarded {
            self.end(id);
        } else {
            self.submit(id);
        }
    }

    pub(super) fn end(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        job.ends += 1;
        assert_eq!(job.ends, 1, "{id} ended twice");
    }

    pub(super) fn leave(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        if job.ends > 0 {
            return;
        }
        if let (Some(attempt), Some(host)) = (job.run, job.host.clone()) {
            self.commands.push((host, Epoch(u64::MAX), Command::Cancel(id, attempt)));
        }
        if self.jobs[&id].submitted {
            self.sent.push_back((id, false));
        }
        self.end(id);
    }

    pub(super) fn hear(&mut self) {
        let Some((id, attempt, word)) = self.words.pop_front() else { return };
        self.story.push(format!("gateway: {id} {attempt} {word:?}"));
        let job = self.jobs.get_mut(&id).unwrap();
        if let Word::Begin(host, engine) = &word {
            let go = job.ends == 0 && !job.forwarded && job.newest.is_none_or(|newest| attempt > newest);
            if go {
                job.newest = Some(attempt);
                job.run = Some(attempt);
                job.host = Some(host.clone());
            }
            let (host, engine) = (host.clone(), *engine);
            self.permit(&host, engine, id, attempt, go);
            return;
        }
        if job.ends > 0 {
            return;
        }
        let current = job.run == Some(attempt);
        match word {
            Word::Refused => self.end(id),
            Word::Last => {
                let told = self.told();
                assert!(self.jobs[&id].forwarded, "{id} has ended and its client knows nothing: {told}");
                self.end(id);
            }
            Word::Lost => {
                job.newest = job.newest.max(Some(attempt));
                if current && job.forwarded {
                    self.sent.push_back((id, false));
                    self.end(id);
                } else if current {
                    job.run = None;
                }
            }
            _ if !current => {}
            Word::Declined => self.submit(id),
            Word::Output => {
                assert!(!job.forwarded, "{id} was answered twice");
                job.forwarded = true;
            }
            Word::End => {
                assert!(job.forwarded);
                self.end(id);
            }
            Word::Failed if job.forwarded => self.end(id),
            Word::Failed if attempt.is_express() => self.submit(id),
            Word::Failed | Word::Begin(..) => {}
        }
    }

    pub(super) fn permit(&mut self, host: &HostId, engine: EngineId, job: JobId, attempt: Attempt, go: bool) {
        if go {
            let run = self.engine(host, engine).and_then(|engine| engine.running.get_mut(&(job, attempt)));
            if let Some(run) = run {
                run.permitted = true;
            }
        } else {
            self.ended(host, engine, job, attempt, Outcome::Abandoned);
        }
    }

    /// The stream delivers to the leader.
    pub(super) fn deliver(&mut self) {
        match self.sent.pop_front() {
            Some((job, true)) => {
                self.stream.insert(job);
                let facts = self.facts(job);
                self.tell(Event::JobSubmitted(facts), None);
            }
            Some((job, false)) => self.tell(Event::JobCancelled(job), None),
            None => {}
        }
    }
}
