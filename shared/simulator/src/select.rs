//! Workloads: the part of a trace that is run, how fast it comes, and how long each job takes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use md5::{Digest, Md5};
use thiserror::Error;

use crate::time::{Micros, micros, span};
use crate::trace::Request;

/// How long a job takes once it has a slot.
#[derive(Debug, Clone, Copy)]
pub struct ServiceCost {
    /// Every job, whatever its length.
    pub overhead: Duration,
    /// Prompt tokens a second.
    pub prefill: f64,
    /// Output tokens a second.
    pub decode: f64,
}

impl Default for ServiceCost {
    fn default() -> Self {
        Self { overhead: Duration::from_millis(100), prefill: 4000.0, decode: 45.0 }
    }
}

impl ServiceCost {
    fn of(&self, request: &Request) -> Micros {
        let prompt = request.prompt_tokens as f64 / self.prefill;
        let output = request.output_tokens as f64 / self.decode;
        micros(self.overhead.as_secs_f64() + prompt + output)
    }
}

/// Which part of a trace to run, and how.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Arrivals from here on; the first of them is time zero.
    pub from: Duration,
    /// Arrivals before this.
    pub to: Option<Duration>,
    /// This part of all sessions, from 0 to 1, drawn by a hash of their names.
    pub session_share: f64,
    /// Only the models of these ranks, from 1, by number of jobs.
    pub model_ranks: Option<RangeInclusive<usize>>,
    /// Arrivals come so many times as fast.
    pub speed: f64,
    /// How long jobs take.
    pub cost: ServiceCost,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            from: Duration::ZERO,
            to: None,
            session_share: 1.0,
            model_ranks: None,
            speed: 1.0,
            cost: ServiceCost::default(),
        }
    }
}

/// Nothing can be run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SelectError {
    /// No request is left.
    #[error(
        "no request is left of {requests}; widen the window of arrivals, or take a larger share of the sessions"
    )]
    Nothing {
        /// How many there were.
        requests: usize,
    },
    /// There are not so many models.
    #[error(
        "model ranks {first}-{last}: the requests selected are for {models} models; ranks are 1 to {models}"
    )]
    Ranks {
        /// First rank asked for.
        first: usize,
        /// Last rank asked for.
        last: usize,
        /// Models there are.
        models: usize,
    },
}

/// One job of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Its place in the workload.
    pub index: usize,
    /// When it arrives.
    pub arrival: Micros,
    /// Its model's place in [`Workload::models`].
    pub model: usize,
    /// Its session's place in [`Workload::sessions`].
    pub session: usize,
    /// How long it takes once it has a slot.
    pub service: Micros,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Tokens of its answer.
    pub output_tokens: u64,
    /// The line of the trace it comes from.
    pub line: u64,
}

/// What is run: jobs in order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Workload {
    /// Jobs in order of arrival.
    pub jobs: Vec<Job>,
    /// Names of models: by rank where ranks were selected, else by first arrival.
    pub models: Vec<String>,
    /// Names of sessions, by first arrival.
    pub sessions: Vec<String>,
}

impl Selection {
    /// Cuts a trace to a workload.
    ///
    /// # Errors
    /// Nothing is left, or there are not as many models as ranks were asked for.
    pub fn apply(&self, trace: &[Request]) -> Result<Workload, SelectError> {
        let window = Range { start: span(self.from), end: self.to.map_or(Micros::MAX, span) };
        let mut shares: HashMap<&str, bool> = HashMap::new();
        let mut rows: Vec<(Micros, &str, &str, Micros, &Request)> = trace
            .iter()
            .filter(|request| window.contains(&request.arrival))
            .filter(|request| {
                let session = request.session.as_str();
                *shares.entry(session).or_insert_with(|| share_of(session) <= self.session_share)
            })
            .map(|request| {
                let since = request.arrival.saturating_sub(window.start) as f64;
                let arrival = (since / self.speed).round() as Micros;
                (arrival, &*request.model, &*request.session, self.cost.of(request), request)
            })
            .collect();
        rows.sort_by_key(|(arrival, model, session, service, _)| (*arrival, *model, *session, *service));
        let mut models = Names::default();
        for (_, model, ..) in &rows {
            models.number(model);
        }
        if let Some(ranks) = &self.model_ranks {
            models = models.ranked(ranks)?;
            rows.retain(|(_, model, ..)| models.numbers.contains_key(model));
        }
        if rows.is_empty() {
            return Err(SelectError::Nothing { requests: trace.len() });
        }
        let mut sessions = Names::default();
        let jobs = rows
            .into_iter()
            .enumerate()
            .map(|(index, (arrival, model, session, service, request))| Job {
                index,
                arrival,
                model: models.number(model),
                session: sessions.number(session),
                service,
                prompt_tokens: request.prompt_tokens,
                output_tokens: request.output_tokens,
                line: request.line,
            })
            .collect();
        Ok(Workload { jobs, models: models.names(), sessions: sessions.names() })
    }
}

/// Where a session stands between 0 and 1: the same in every trace and on every machine.
fn share_of(session: &str) -> f64 {
    let digest = Md5::digest(session.as_bytes());
    let first = digest.iter().take(3).fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(first) / f64::from(0x00ff_ffff)
}

/// Names numbered as they come.
#[derive(Default)]
struct Names<'a> {
    numbers: HashMap<&'a str, usize>,
    /// In order, with how often each came.
    order: Vec<(&'a str, usize)>,
}

impl<'a> Names<'a> {
    fn number(&mut self, name: &'a str) -> usize {
        let next = self.order.len();
        let number = *self.numbers.entry(name).or_insert(next);
        if number == next {
            self.order.push((name, 0));
        }
        if let Some((_, times)) = self.order.get_mut(number) {
            *times += 1;
        }
        number
    }

    /// Those of these ranks by how often they came; the earlier one first where that is equal.
    fn ranked(self, ranks: &RangeInclusive<usize>) -> Result<Self, SelectError> {
        let (first, last, models) = (*ranks.start(), *ranks.end(), self.order.len());
        if first == 0 || first > last || last > models {
            return Err(SelectError::Ranks { first, last, models });
        }
        let mut order = self.order;
        order.sort_by_key(|(_, times)| Reverse(*times));
        let order: Vec<_> = order.into_iter().take(last).skip(first - 1).collect();
        let numbers = order.iter().enumerate().map(|(number, (name, _))| (*name, number)).collect();
        Ok(Self { numbers, order })
    }

    fn names(&self) -> Vec<String> {
        self.order.iter().map(|(name, _)| (*name).to_owned()).collect()
    }
}
