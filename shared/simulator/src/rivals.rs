//! Rivals: simple rules in a world where each accelerator holds one model.
//!
//! What may enter: a rule that is worth beating, in a file of its own, against [`World`]. What may not: knowledge
//! of the core, of sleep, hints or memory sizes.

mod bound;
mod clairvoyant;
mod exhaustive;
mod fifo;
mod ollama;
mod world;

pub(crate) use bound::Bound;
pub(crate) use clairvoyant::Clairvoyant;
pub(crate) use exhaustive::Exhaustive;
pub(crate) use fifo::Fifo;
pub(crate) use ollama::Ollama;
pub(crate) use world::{World, run};

use crate::select::Job;

/// A rule: what it does when something happens. After each event it may load models.
pub(crate) trait Rival {
    /// A job has arrived.
    fn arrived(&mut self, world: &mut World, job: Job) {
        world.queue_or_start(job);
    }

    /// A job has ended on an accelerator.
    fn ended(&mut self, world: &mut World, gpu: usize, _job: Job) {
        world.fill(gpu);
    }

    /// An accelerator has its model now.
    fn loaded(&mut self, world: &mut World, gpu: usize) {
        world.fill(gpu);
    }

    /// Whatever happened has been taken in: what now?
    fn decide(&mut self, world: &mut World);
}
