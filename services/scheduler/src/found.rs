//! Models that hosts found on servers that others run: which of them are in the catalog.
//!
//! Hosts report, the leader decides and alone writes. A name belongs to what is configured first, then to what has it
//! in the catalog already, then to the first host by name. Hosts that report the very same entry share it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_wire::{HostId, ModelId, ModelSpec};

/// The catalog as the leader knows it.
pub(crate) type Catalog = BTreeMap<ModelId, Arc<ModelSpec>>;

/// What is reported, and what was said about it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    by_host: BTreeMap<HostId, Vec<ModelSpec>>,
    refused: BTreeSet<Refused>,
    /// Every host that lives has had the time to report: what nobody reports is gone.
    pub(crate) complete: bool,
}

/// A model that a host reported and that is not in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refused {
    pub(crate) host: HostId,
    pub(crate) model: ModelId,
    pub(crate) why: String,
}

/// What a report changed for its host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) new: Vec<ModelId>,
    pub(crate) gone: Vec<ModelId>,
}

/// What is to be done to the catalog.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) write: Vec<ModelSpec>,
    pub(crate) remove: Vec<ModelId>,
    /// Refused and not yet told of.
    pub(crate) refused: Vec<Refused>,
}

impl Found {
    /// Takes a host's report; an empty one also of a host that is gone.
    pub(crate) fn report(&mut self, host: &HostId, models: &[ModelSpec]) -> News {
        let was = self.by_host.remove(host).unwrap_or_default();
        let only = |these: &[ModelSpec], those: &[ModelSpec]| {
            let ids = these.iter().map(|model| &model.id);
            ids.filter(|id| !those.iter().any(|other| other.id == **id)).cloned().collect()
        };
        let news = News { new: only(models, &was), gone: only(&was, models) };
        if !models.is_empty() {
            self.by_host.insert(host.clone(), models.to_vec());
        }
        news
    }

    /// Compares what is reported with the catalog.
    pub(crate) fn settle(&mut self, catalog: &Catalog) -> Settled {
        let configured: BTreeMap<&str, &ModelId> = catalog
            .values()
            .filter(|spec| !spec.is_found())
            .flat_map(|spec| spec.names().map(|name| (name, &spec.id)))
            .collect();
        let mut wanted: BTreeMap<&ModelId, (&HostId, &ModelSpec)> = BTreeMap::new();
        for (host, spec) in self.by_host.iter().flat_map(|(host, specs)| specs.iter().map(move |s| (host, s)))
        {
            let held = catalog.get(&spec.id).is_some_and(|held| held.labels == spec.labels);
            if held || !wanted.contains_key(&spec.id) {
                wanted.insert(&spec.id, (host, spec));
            }
        }
        wanted.retain(|id, _| !configured.contains_key(id.as_str()));
        let mut refused = BTreeSet::new();
        for (host, spec) in self.by_host.iter().flat_map(|(host, specs)| specs.iter().map(move |s| (host, s)))
        {
            let why = match (configured.get(spec.id.as_str()), wanted.get(&spec.id)) {
                (Some(owner), _) => format!("its name belongs to the configured model `{owner}`"),
                (None, Some((first, other))) if other.labels != spec.labels => {
                    format!("the host {first} has another model of that name, or configures it otherwise")
                }
                _ => continue,
            };
            let why = format!(
                "{why}; give this one another name by `prefix` or `rename` in its [[external]] entry"
            );
            refused.insert(Refused { host: host.clone(), model: spec.id.clone(), why });
        }
        let mut settled =
            Settled { refused: refused.difference(&self.refused).cloned().collect(), ..Settled::default() };
        let mut taken: BTreeSet<&str> = configured.keys().copied().collect();
        taken.extend(wanted.keys().map(|id| id.as_str()));
        for (id, (_, spec)) in &wanted {
            let mut spec = ModelSpec::clone(spec);
            // Clients who use a name that is somebody else's mean that one.
            spec.aliases.retain(|alias| !taken.contains(alias.as_str()));
            if let Some((_, original)) = wanted.get(id) {
                taken.extend(original.aliases.iter().map(String::as_str));
            }
            if catalog.get(*id).is_none_or(|held| **held != spec) {
                settled.write.push(spec);
            }
        }
        if self.complete {
            let stale = catalog.values().filter(|spec| spec.is_found() && !wanted.contains_key(&spec.id));
            settled.remove = stale.map(|spec| spec.id.clone()).collect();
        }
        self.refused = refused;
        settled
    }
}

#[cfg(test)]
mod tests {
    use berth_config::Config;
    use berth_wire::{Driver, EngineKind};

    use super::*;

    fn configured(id: &str, aliases: &[&str]) -> ModelSpec {
        let text = format!("[[models]]\nid = \"{id}\"\nengine = \"sim\"\n");
        let mut spec = Config::parse(&text, "f").unwrap().models.remove(0);
        spec.aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        spec
    }

    fn found(id: &str, mark: &str) -> ModelSpec {
        let mut spec = configured(id, &[]);
        spec.engine.driver = Driver::External;
        spec.engine.kind = EngineKind::Ollama;
        spec.labels = vec![mark.into()];
        spec
    }

    fn catalog(specs: &[ModelSpec]) -> Catalog {
        specs.iter().map(|spec| (spec.id.clone(), Arc::new(spec.clone()))).collect()
    }

    #[test]
    fn what_a_host_reports_enters_the_catalog_and_leaves_it_with_the_last_host_that_has_it() {
        let mut all = Found { complete: true, ..Found::default() };
        let model = found("m", "x");
        assert_eq!(all.report(&"a".into(), std::slice::from_ref(&model)).new, ["m".into()]);
        assert_eq!(all.settle(&catalog(&[])).write, std::slice::from_ref(&model));
        let held = catalog(&[model.clone(), configured("c", &[])]);
        assert_eq!(all.settle(&held), Settled::default());
        all.report(&"b".into(), std::slice::from_ref(&model));
        assert_eq!(all.report(&"a".into(), &[]).gone, ["m".into()]);
        assert_eq!(all.settle(&held), Settled::default(), "the host b has it");
        all.report(&"b".into(), &[]);
        assert_eq!(all.settle(&held).remove, ["m".into()], "and nothing that is configured");
    }

    #[test]
    fn a_new_leader_removes_nothing_before_every_host_could_report() {
        let mut all = Found::default();
        let held = catalog(&[found("m", "x")]);
        assert_eq!(all.settle(&held), Settled::default());
        all.complete = true;
        assert_eq!(all.settle(&held).remove, ["m".into()]);
    }

    #[test]
    fn a_name_of_the_configuration_is_not_taken_and_that_is_told_once() {
        let mut all = Found::default();
        all.report(&"a".into(), &[found("m", "x"), found("n", "y")]);
        let held = catalog(&[configured("m", &[]), configured("o", &["n"])]);
        let settled = all.settle(&held);
        assert!(settled.write.is_empty());
        assert_eq!(settled.refused.len(), 2);
        assert!(settled.refused[1].why.contains("model `o`; give"), "{}", settled.refused[1].why);
        assert!(all.settle(&held).refused.is_empty());
    }

    #[test]
    fn of_two_different_ones_the_one_in_the_catalog_stays() {
        let mut all = Found::default();
        let (one, other) = (found("m", "x"), found("m", "y"));
        all.report(&"a".into(), std::slice::from_ref(&one));
        all.report(&"b".into(), std::slice::from_ref(&other));
        let first = all.settle(&catalog(&[]));
        assert_eq!(first.write, [one]);
        assert_eq!(first.refused[0].host, "b".into());
        let settled = all.settle(&catalog(std::slice::from_ref(&other)));
        assert!(settled.write.is_empty());
        assert_eq!(settled.refused[0].host, "a".into());
    }

    #[test]
    fn an_alias_that_is_somebody_elses_name_is_left_out() {
        let mut all = Found::default();
        let mut model = found("m:latest", "x");
        model.aliases = vec!["m".into(), "mine".into()];
        all.report(&"a".into(), &[model, found("mine", "y")]);
        let settled = all.settle(&catalog(&[configured("m", &[])]));
        let aliases: Vec<_> = settled.write.iter().map(|spec| spec.aliases.clone()).collect();
        assert_eq!(aliases, [Vec::<String>::new(), Vec::new()]);
    }
}
