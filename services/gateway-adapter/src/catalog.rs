//! The catalog as the gateway asks it: by name or alias, from memory.

use std::collections::HashMap;
use std::sync::Arc;

use berth_bus::Entries;
use berth_wire::{AdapterSpec, ApiError, ErrorKind, ModelId, ModelSpec};

/// What a client names: a model, or an adapter of one. The queue knows of the model alone, whose engines serve both.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) spec: Arc<ModelSpec>,
    pub(crate) adapter: Option<Arc<AdapterSpec>>,
}

impl Named {
    /// Its own id, which is the adapter's where it is one.
    pub(crate) fn id(&self) -> &ModelId {
        self.adapter.as_ref().map_or(&self.spec.id, |adapter| &adapter.id)
    }

    pub(crate) fn aliases(&self) -> &[String] {
        self.adapter.as_ref().map_or(&self.spec.aliases, |adapter| &adapter.aliases)
    }
}

/// All models by every name they have.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    models: Vec<Named>,
    names: HashMap<String, Named>,
}

impl Catalog {
    pub(crate) fn new(entries: &Entries<ModelSpec>) -> Self {
        let mut models: Vec<_> = entries
            .values()
            .flat_map(|spec| {
                let adapters = spec.adapters.iter().map(|adapter| Some(Arc::new(adapter.clone())));
                let named = |adapter| Named { spec: Arc::clone(spec), adapter };
                std::iter::once(None).chain(adapters).map(named)
            })
            .collect();
        models.sort_by(|a, b| a.id().cmp(b.id()));
        let mut names = HashMap::new();
        for model in &models {
            for alias in model.aliases() {
                names.insert(alias.clone(), model.clone());
            }
        }
        // A model's own name beats another's alias.
        for model in &models {
            names.insert(model.id().as_str().to_owned(), model.clone());
        }
        Self { models, names }
    }

    /// Every model, and every adapter, by name.
    pub(crate) fn models(&self) -> &[Named] {
        &self.models
    }

    /// The model that a client means.
    pub(crate) fn resolve(&self, name: &str) -> Result<&Named, ApiError> {
        self.names.get(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> ApiError {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
        let hint = if self.models.is_empty() {
            "; the catalog is empty".to_owned()
        } else {
            match self.close_to(&shown).as_slice() {
                [] => "; GET /v1/models lists what there is".to_owned(),
                close => format!("; did you mean {}?", close.join(" or ")),
            }
        };
        let message = format!("the model `{shown}` does not exist{hint}");
        ApiError::new(ErrorKind::ModelNotFound, "model_not_found", message).param("model")
    }

    fn close_to(&self, name: &str) -> Vec<String> {
        let wanted = name.to_lowercase();
        let mut scored: Vec<(f64, &str)> = self
            .names
            .keys()
            .map(|known| {
                let lower = known.to_lowercase();
                let within = wanted.len() > 2 && (lower.contains(&wanted) || wanted.contains(&lower));
                let score = if within { 1.0 } else { strsim::jaro_winkler(&wanted, &lower) };
                (score, known.as_str())
            })
            .filter(|(score, _)| *score > 0.8)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        scored.into_iter().take(3).map(|(_, known)| format!("`{known}`")).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use berth_wire::{Driver, EngineKind, EngineSpec};

    use super::*;

    pub(crate) fn spec(id: &str, aliases: &[&str]) -> ModelSpec {
        ModelSpec {
            id: id.into(),
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            engine: EngineSpec {
                kind: EngineKind::Sim,
                driver: Driver::Process,
                image: None,
                command: Vec::new(),
                args: Vec::new(),
                env: Vec::new(),
                volumes: Vec::new(),
                port: 8000,
                health_path: "/health".into(),
                served_name: id.into(),
                routes: None,
                container: berth_wire::ContainerSpec::default(),
                start_timeout: Duration::from_secs(60),
                stop_grace: Duration::from_secs(10),
                sleep: None,
            },
            memory: None,
            accelerators: 1,
            concurrency: 4,
            context: Some(4096),
            idle_ttl: None,
            asleep_ttl: None,
            pin: false,
            replicas: None,
            labels: Vec::new(),
            adapters: Vec::new(),
            max_adapters: None,
            keep_context: None,
            leases_keep_context: false,
            silence: berth_wire::Silence::default(),
        }
    }

    fn catalog(specs: &[ModelSpec]) -> Catalog {
        let entries = specs.iter().map(|s| (s.id.to_string(), Arc::new(s.clone()))).collect();
        Catalog::new(&Arc::new(entries))
    }

    #[test]
    fn a_model_is_found_by_any_of_its_names_and_its_own_name_wins() {
        let catalog = catalog(&[spec("a", &["fast", "b"]), spec("b", &[])]);
        assert_eq!(catalog.resolve("fast").unwrap().id().as_str(), "a");
        assert_eq!(catalog.resolve("b").unwrap().id().as_str(), "b");
    }

    #[test]
    fn an_adapter_is_a_model_of_its_own_on_the_engines_of_its_base() {
        let adapter = AdapterSpec { id: "sql".into(), aliases: vec!["s".into()], path: "/sql".into() };
        let catalog = catalog(&[ModelSpec { adapters: vec![adapter], ..spec("a", &[]) }]);
        let named = catalog.resolve("s").unwrap();
        assert_eq!((named.id().as_str(), named.spec.id.as_str()), ("sql", "a"));
        assert!(catalog.resolve("a").unwrap().adapter.is_none());
        assert_eq!(
            catalog.models().iter().map(|model| model.id().as_str()).collect::<Vec<_>>(),
            ["a", "sql"]
        );
    }

    #[test]
    fn an_unknown_model_is_answered_with_names_like_it() {
        let catalog = catalog(&[spec("qwen2.5-7b", &["qwen"]), spec("llama-3", &[])]);
        let error = catalog.resolve("qwen2.5-7B").unwrap_err();
        assert_eq!(error.code, "model_not_found");
        assert!(error.message.contains("`qwen2.5-7b`"), "{}", error.message);
        let error = catalog.resolve("zzz").unwrap_err();
        assert!(error.message.contains("/v1/models"), "{}", error.message);
    }
}
