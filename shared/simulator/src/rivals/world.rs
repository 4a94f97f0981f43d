//! The world of the rivals: accelerators, a queue for each model, and the events to come.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use super::Rival;
use crate::select::{Job, Workload};
use crate::setup::Setup;
use crate::time::{Micros, span};

/// One accelerator with the engine on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gpu {
    /// Its place among all.
    pub(crate) index: usize,
    /// What it holds or loads.
    pub(crate) model: Option<usize>,
    /// It is loading.
    pub(crate) loading: bool,
    /// It takes nothing new and loads this once it is idle.
    pub(crate) target: Option<usize>,
    /// Its jobs, with their ends.
    pub(crate) running: BTreeMap<usize, Micros>,
    /// When a job last started or ended, or a load ended; `None`: never.
    pub(crate) used: Option<Micros>,
    /// Jobs that waited when it became ready, less those started since.
    pub(crate) quota: i64,
}

impl Gpu {
    /// It could start a job now, if it has a slot.
    fn admits(&self) -> bool {
        !self.loading && self.target.is_none() && self.model.is_some()
    }
}

/// A model's queue and the accelerators that hold it, load it, or will.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    pub(crate) queue: VecDeque<Job>,
    /// Sum of the arrivals queued.
    pub(crate) arrivals: u128,
    pub(crate) holders: BTreeSet<usize>,
}

impl Line {
    /// Arrival of the job that has waited longest.
    pub(crate) fn oldest(&self) -> Option<Micros> {
        self.queue.front().map(|job| job.arrival)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Ended(usize, usize),
    Loaded(usize),
    Wake,
}

/// All that a rule sees and does.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Micros,
    pub(crate) slots: usize,
    pub(crate) load: Micros,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) lines: Vec<Line>,
    /// Models with a queue.
    pub(crate) waiting: BTreeSet<usize>,
    starts: Vec<Option<Micros>>,
    started: usize,
    loads: u64,
    /// By time; at equal times in the order in which they were set.
    due: BinaryHeap<Reverse<(Micros, u64, Due)>>,
    sequence: u64,
    wake: Option<Micros>,
}

/// Runs a workload under a rule: when each job started, and how many loads it took.
pub(crate) fn run(
    workload: &Workload,
    setup: &Setup,
    rule: &mut dyn Rival,
    started: &mut dyn FnMut(usize),
) -> (Vec<Option<Micros>>, u64) {
    let mut world = World::new(workload, setup);
    let mut arrivals = workload.jobs.iter().peekable();
    loop {
        let next = world.due.peek().map(|Reverse((at, ..))| *at);
        // What arrives comes before all else that happens at the same time.
        if let Some(job) = arrivals.next_if(|job| next.is_none_or(|at| job.arrival <= at)) {
            world.now = job.arrival;
            rule.arrived(&mut world, *job);
        } else if let Some(Reverse((at, _, due))) = world.due.pop() {
            world.now = at;
            world.happen(due, workload, rule);
        } else {
            return (world.starts, world.loads);
        }
        rule.decide(&mut world);
        started(world.started);
    }
}

impl World {
    fn new(workload: &Workload, setup: &Setup) -> Self {
        let gpus = (0..setup.accelerators as usize).map(|index| Gpu { index, ..Gpu::default() });
        Self {
            now: 0,
            slots: setup.slots as usize,
            load: span(setup.load),
            gpus: gpus.collect(),
            lines: vec![Line::default(); workload.models.len()],
            waiting: BTreeSet::new(),
            starts: vec![None; workload.jobs.len()],
            started: 0,
            loads: 0,
            due: BinaryHeap::new(),
            sequence: 0,
            wake: None,
        }
    }

    fn happen(&mut self, due: Due, workload: &Workload, rule: &mut dyn Rival) {
        let now = self.now;
        match due {
            Due::Ended(index, job) => {
                let Some(gpu) = self.gpus.get_mut(index) else { return };
                gpu.running.remove(&job);
                gpu.used = Some(now);
                if let (Some(model), true) = (gpu.target, gpu.running.is_empty()) {
                    self.begin_load(index, model);
                }
                if let Some(job) = workload.jobs.get(job) {
                    rule.ended(self, index, *job);
                }
            }
            Due::Loaded(index) => {
                let Some(gpu) = self.gpus.get_mut(index) else { return };
                gpu.loading = false;
                gpu.used = Some(now);
                let line = gpu.model.and_then(|model| self.lines.get(model));
                gpu.quota = line.map_or(0, |line| line.queue.len() as i64);
                rule.loaded(self, index);
            }
            Due::Wake => {
                if self.wake.is_some_and(|at| now >= at) {
                    self.wake = None;
                }
            }
        }
    }

    fn set(&mut self, at: Micros, due: Due) {
        self.sequence += 1;
        self.due.push(Reverse((at, self.sequence, due)));
    }

    /// Has the rule asked again at that time, unless it is asked sooner.
    pub(crate) fn wake_at(&mut self, at: Micros) {
        if self.wake.is_none_or(|sooner| at < sooner) {
            self.wake = Some(at);
            self.set(at, Due::Wake);
        }
    }

    /// The models that wait and that no accelerator holds or will hold.
    pub(crate) fn unserved(&self) -> Vec<(Micros, usize)> {
        self.waiting
            .iter()
            .filter_map(|model| {
                let line = self.lines.get(*model)?;
                if line.holders.is_empty() { Some((line.oldest()?, *model)) } else { None }
            })
            .collect()
    }

    /// Whether an accelerator has nothing to do: no job runs on it, none waits for it.
    pub(crate) fn is_idle(&self, gpu: &Gpu) -> bool {
        gpu.running.is_empty() && !gpu.loading && gpu.target.is_none() && self.queued_for(gpu) == 0
    }

    /// Jobs that wait for the model on an accelerator.
    pub(crate) fn queued_for(&self, gpu: &Gpu) -> usize {
        gpu.model.and_then(|model| self.lines.get(model)).map_or(0, |line| line.queue.len())
    }

    /// Of these, the one that was used least recently; the first of equals.
    pub(crate) fn least_used<'a>(gpus: impl Iterator<Item = &'a Gpu>) -> Option<usize> {
        gpus.min_by_key(|gpu| gpu.used).map(|gpu| gpu.index)
    }

    /// Loads a model onto an accelerator that runs nothing, in place of what is there.
    pub(crate) fn begin_load(&mut self, index: usize, model: usize) {
        let Some(gpu) = self.gpus.get_mut(index) else { return };
        debug_assert!(gpu.running.is_empty() && !gpu.loading, "loaded while in use");
        for left in [gpu.model, gpu.target].into_iter().flatten() {
            if let Some(line) = self.lines.get_mut(left) {
                line.holders.remove(&index);
            }
        }
        gpu.model = Some(model);
        gpu.target = None;
        gpu.loading = true;
        if let Some(line) = self.lines.get_mut(model) {
            line.holders.insert(index);
        }
        self.loads += 1;
        self.set(self.now.saturating_add(self.load), Due::Loaded(index));
    }

    /// Has an accelerator take nothing new, and load a model once it is idle.
    pub(crate) fn drain_to(&mut self, index: usize, model: usize) {
        let Some(gpu) = self.gpus.get_mut(index) else { return };
        if gpu.running.is_empty() {
            self.begin_load(index, model);
        } else {
            gpu.target = Some(model);
            if let Some(line) = self.lines.get_mut(model) {
                line.holders.insert(index);
            }
        }
    }

    /// Gives a job a slot.
    pub(crate) fn start(&mut self, index: usize, job: Job) {
        let end = self.now.saturating_add(job.service);
        let Some(gpu) = self.gpus.get_mut(index) else { return };
        debug_assert!(gpu.running.len() < self.slots, "no slot is free");
        gpu.running.insert(job.index, end);
        gpu.used = Some(self.now);
        gpu.quota -= 1;
        if let Some(start) = self.starts.get_mut(job.index) {
            debug_assert!(start.is_none(), "started twice");
            *start = Some(self.now);
        }
        self.started += 1;
        self.set(end, Due::Ended(index, job.index));
    }

    /// Puts a job at the end of its model's queue.
    pub(crate) fn enqueue(&mut self, job: Job) {
        if let Some(line) = self.lines.get_mut(job.model) {
            line.queue.push_back(job);
            line.arrivals += u128::from(job.arrival);
            self.waiting.insert(job.model);
        }
    }

    fn take(&mut self, model: usize) -> Option<Job> {
        let line = self.lines.get_mut(model)?;
        let job = line.queue.pop_front()?;
        line.arrivals -= u128::from(job.arrival);
        if line.queue.is_empty() {
            self.waiting.remove(&model);
        }
        Some(job)
    }

    /// Starts what waits for the model of an accelerator, while it has slots and admits.
    pub(crate) fn fill(&mut self, index: usize) {
        if self.gpus.get(index).is_some_and(Gpu::admits) {
            self.fill_even_so(index);
        }
    }

    /// The same for one that is about to be given another model.
    pub(crate) fn fill_even_so(&mut self, index: usize) {
        while let Some(gpu) = self.gpus.get(index)
            && gpu.running.len() < self.slots
            && let Some(model) = gpu.model
            && let Some(job) = self.take(model)
        {
            self.start(index, job);
        }
    }

    /// Queues a job, and starts the head of its queue if its model is ready somewhere with a free slot.
    pub(crate) fn queue_or_start(&mut self, job: Job) {
        self.enqueue(job);
        let Some(line) = self.lines.get(job.model) else { return };
        let ready = line
            .holders
            .iter()
            .filter_map(|index| self.gpus.get(*index))
            .filter(|gpu| gpu.model == Some(job.model) && gpu.admits() && gpu.running.len() < self.slots)
            .min_by_key(|gpu| gpu.running.len())
            .map(|gpu| gpu.index);
        if let Some(index) = ready {
            self.fill(index);
        }
    }
}
