//! Ollama's rule: one pending queue. A job whose model is held goes to that runner's own queue; a job that needs a
//! load holds up everyone behind it until a runner is idle.

use std::collections::{BTreeSet, VecDeque};

use super::{Rival, World};
use crate::select::Job;

/// One pending loop; the runner used least recently gives way.
#[derive(Debug, Default)]
pub(crate) struct Ollama {
    pending: VecDeque<Job>,
    /// Runners told to go once they are idle.
    expiring: BTreeSet<usize>,
    /// What takes the place of the next one that is.
    next: Option<usize>,
}

impl Ollama {
    fn load(&mut self, world: &mut World, gpu: usize, model: usize) {
        self.expiring.remove(&gpu);
        world.begin_load(gpu, model);
    }
}

impl Rival for Ollama {
    fn arrived(&mut self, _world: &mut World, job: Job) {
        self.pending.push_back(job);
    }

    fn ended(&mut self, world: &mut World, gpu: usize, _job: Job) {
        if !self.expiring.contains(&gpu) {
            return world.fill(gpu);
        }
        // What was given to the runner before it was told to go is served first.
        world.fill_even_so(gpu);
        if let (Some(model), true) =
            (self.next, world.gpus.get(gpu).is_some_and(|gpu| gpu.running.is_empty()))
        {
            self.load(world, gpu, model);
        }
    }

    fn decide(&mut self, world: &mut World) {
        while let Some(head) = self.pending.front().copied() {
            let runner = world.lines.get(head.model).and_then(|line| line.holders.first().copied());
            if let Some(gpu) = runner {
                self.pending.pop_front();
                world.enqueue(head);
                world.fill(gpu);
                continue;
            }
            if let Some(gpu) = World::least_used(world.gpus.iter().filter(|gpu| world.is_idle(gpu))) {
                self.load(world, gpu, head.model);
                continue;
            }
            if let Some(gpu) = World::least_used(world.gpus.iter().filter(|gpu| !gpu.loading)) {
                self.expiring.insert(gpu);
                self.next = Some(head.model);
            }
            return;
        }
    }
}
