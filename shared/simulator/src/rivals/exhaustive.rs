//! Exhaustive service: an accelerator keeps its model until nothing of it runs or waits, then takes the model whose
//! oldest job has waited longest. With a fixed home for each model this is llama-swap's rule.

use std::cmp::Reverse;

use super::{Rival, World};
use crate::select::Workload;
use crate::time::Micros;

/// Serves a model until its queue is empty. Nothing bounds how long another one waits for that.
#[derive(Debug)]
pub(crate) struct Exhaustive {
    /// The accelerator of each model; `None`: any.
    homes: Option<Vec<usize>>,
}

impl Exhaustive {
    /// Any idle accelerator takes any model.
    pub(crate) fn pooled() -> Self {
        Self { homes: None }
    }

    /// Each model has a home, chosen as a person with all the facts would: the most work first, onto the
    /// accelerator that has least.
    pub(crate) fn at_home(workload: &Workload, accelerators: u32) -> Self {
        // Models in order of first arrival, so that equals stay in that order.
        let mut work: Vec<(usize, Micros)> = Vec::new();
        let mut places = vec![None; workload.models.len()];
        for job in &workload.jobs {
            let Some(place) = places.get_mut(job.model) else { continue };
            let at = *place.get_or_insert_with(|| {
                work.push((job.model, 0));
                work.len() - 1
            });
            if let Some((_, sum)) = work.get_mut(at) {
                *sum += job.service;
            }
        }
        work.sort_by_key(|(_, sum)| Reverse(*sum));
        let mut loads = vec![0; accelerators as usize];
        let mut homes = vec![0; workload.models.len()];
        for (model, sum) in work {
            let least = loads.iter_mut().enumerate().min_by_key(|(_, load)| **load);
            if let (Some((gpu, load)), Some(home)) = (least, homes.get_mut(model)) {
                *load += sum;
                *home = gpu;
            }
        }
        Self { homes: Some(homes) }
    }

    fn may_hold(&self, gpu: usize, model: usize) -> bool {
        self.homes.as_ref().is_none_or(|homes| homes.get(model) == Some(&gpu))
    }
}

impl Rival for Exhaustive {
    fn decide(&mut self, world: &mut World) {
        let mut turn = world.unserved();
        turn.sort_unstable();
        // One pass is enough: a load takes an idle accelerator away and brings none.
        for (_, model) in turn {
            let idle = world.gpus.iter().filter(|gpu| world.is_idle(gpu) && self.may_hold(gpu.index, model));
            if let Some(gpu) = World::least_used(idle) {
                world.begin_load(gpu, model);
            }
        }
    }
}
